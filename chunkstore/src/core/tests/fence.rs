//! Tokens and generations, as fronts meet them.

use super::requests::release;
use super::*;
use ukai_proto::message::read_chunk_list;

fn with(opcode: Opcode, token: u32, generation: u32) -> Header {
    Header {
        token: Token(token),
        generation: Generation(generation),
        ..on(opcode)
    }
}

#[test]
fn a_zombie_is_refused_from_the_moment_the_fence_arrives() {
    let mut node = Node::new(1);
    assert_eq!(node.write(1, 1, 0, &[1]), Status::NotFenced);
    assert_eq!(node.fence(1, 0), Status::Ok);
    assert_eq!(node.write(1, 1, 0, &[1]), Status::Ok);
    node.core.store.hold = true;
    let fence = node.send(with(Opcode::Fence, 2, 0), Vec::new(), None);
    assert_eq!(node.write(1, 2, 0, &[2]), Status::StaleToken);
    assert_eq!(node.write(2, 1, 0, &[2]), Status::NotFenced);
    release(&mut node);
    assert_eq!(node.reply(fence).expect("fenced").header.status, Status::Ok);
    assert_eq!(node.write(1, 3, 0, &[3]), Status::StaleToken);
    assert_eq!(node.write(2, 1, 0, &[2]), Status::Ok);
    assert_eq!(node.fence(1, 0), Status::StaleToken);
}

#[test]
fn a_fence_overtaken_by_a_higher_one_is_told() {
    let mut node = Node::new(1);
    node.core.store.hold = true;
    let low = node.send(with(Opcode::Fence, 1, 0), Vec::new(), None);
    let high = node.send(with(Opcode::Fence, 2, 0), Vec::new(), None);
    // The store finishes the higher one first.
    node.core.store.held.reverse();
    release(&mut node);
    assert_eq!(node.reply(high).expect("done").header.status, Status::Ok);
    let status = node.reply(low).expect("done").header.status;
    assert_eq!(status, Status::StaleToken);
}

#[test]
fn open_intents_come_in_pages() {
    let mut node = Node::new(1);
    let all: Vec<ChunkIndex> = (0..20_000).map(ChunkIndex).collect();
    node.core.store.intents = all.clone();
    let (mut got, mut start) = (Vec::new(), ChunkIndex(0));
    loop {
        let header = Header {
            chunk: start,
            ..with(Opcode::Fence, 3, 1)
        };
        let reply = node.ask(header, Vec::new(), None);
        assert_eq!(reply.header.status, Status::Ok);
        got.extend(read_chunk_list(&reply.aux).expect("list"));
        if !reply.header.flags.has(Flags::MORE) {
            break;
        }
        start = ChunkIndex(got.last().expect("a page is not empty").0 + 1);
    }
    assert_eq!(got, all);
}

#[test]
fn an_adopted_map_refuses_the_older_one() {
    let mut node = Node::new(1);
    node.fence(1, 5);
    assert_eq!(node.status(with(Opcode::Adopt, 1, 7)), Status::Ok);
    assert_eq!(node.status(with(Opcode::Adopt, 1, 6)), Status::StaleMap);
    assert_eq!(node.status(with(Opcode::Adopt, 2, 8)), Status::NotFenced);
    let read = |generation| Header {
        generation: Generation(generation),
        ..ranged(Opcode::Read, 1, 0, 1)
    };
    assert_eq!(node.status(read(6)), Status::StaleMap);
    assert_eq!(node.status(read(7)), Status::Ok);
    // A newer map is fine, and not recorded.
    assert_eq!(node.status(read(9)), Status::Ok);
    assert_eq!(node.status(read(7)), Status::Ok);
    // What only proves the token does not look at the map.
    assert_eq!(node.status(with(Opcode::Flush, 1, 1)), Status::Ok);
}

#[test]
fn release_records_and_deletes() {
    let mut node = Node::new(1);
    node.fence(1, 1);
    node.core.store.plant(0, 1, 1, 1, 0);
    let release = with(Opcode::Release, 1, 2);
    let reply = node.ask(release, ranges(CHUNK.0, 1), None);
    assert_eq!(reply.header.status, Status::Ok);
    assert!(node.core.store.sectors.is_empty());
    assert_eq!(node.core.store.tombstones, [(Generation(2), CHUNK.0)]);
    assert_eq!(node.write(1, 2, 0, &[1]), Status::StaleMap);
    let old = node.ask(with(Opcode::Release, 1, 1), ranges(0, 1), None);
    assert_eq!(old.header.status, Status::StaleMap);
}

#[test]
fn the_rest_of_the_table() {
    let mut node = Node::new(1);
    node.fence(2, 1);
    for opcode in [
        Opcode::Flush,
        Opcode::List,
        Opcode::ReadVersioned,
        Opcode::WrittenSince,
        Opcode::Settled,
        Opcode::DeleteVolume,
    ] {
        let header = |token| Header {
            count: 1,
            ..with(opcode, token, 0)
        };
        assert_eq!(node.status(header(1)), Status::StaleToken, "{opcode:?}");
        assert_eq!(node.status(header(3)), Status::NotFenced, "{opcode:?}");
        assert_eq!(node.status(header(2)), Status::Ok, "{opcode:?}");
    }
    let settled = Header {
        seq: Seq(44),
        ..with(Opcode::Settled, 2, 0)
    };
    node.status(settled);
    assert_eq!(node.core.store.settled, Some((Token(2), Seq(44))));
    let reply = node.ask(with(Opcode::WrittenSince, 2, 5), Vec::new(), None);
    let chunks = read_chunk_list(&reply.aux).expect("list");
    assert_eq!(chunks, [ChunkIndex(CHUNK.0 + 5)]);
}
