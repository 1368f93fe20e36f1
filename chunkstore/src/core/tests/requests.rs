//! HELLO, limits, shapes, data, stop.

use super::*;
use crate::core::{CloseReason, HELLO_TIMEOUT_NS};
use crate::disk::api::{DiskResult, IoId};
use ukai_proto::limits::CONN_REQUESTS_MAX;
use ukai_proto::message::{ShardStats, read_crc_table, read_sector_states, read_seqs};

fn closes(node: &Node) -> Vec<CloseReason> {
    let closes = node.out.iter().filter_map(|action| match action {
        ShardAction::Close { reason, .. } => Some(*reason),
        _ => None,
    });
    closes.collect()
}

/// A device completion, which makes the fake store answer what it held.
pub(super) fn release(node: &mut Node) {
    node.event(ShardEvent::DiskDone {
        io: IoId(0),
        result: DiskResult::Done,
    });
}

#[test]
fn anything_before_hello_is_refused_and_closed() {
    let mut node = Node::cold(1);
    node.event(ShardEvent::ConnOpened { conn: CONN });
    assert_eq!(node.status(on(Opcode::Ping)), Status::BadRequest);
    assert_eq!(closes(&node), [CloseReason::Hello(Status::BadRequest)]);
    // What was already on the wire behind it is dropped.
    let tag = node.send(on(Opcode::Ping), Vec::new(), None);
    assert!(node.reply(tag).is_none());
}

#[test]
fn a_silent_connection_is_closed_and_a_greeted_one_is_not() {
    let mut node = Node::new(1);
    node.event(ShardEvent::ConnOpened { conn: ConnId(2) });
    node.now += HELLO_TIMEOUT_NS;
    node.event(ShardEvent::Tick);
    assert_eq!(closes(&node), [CloseReason::Silent]);
    assert_eq!(node.status(on(Opcode::Ping)), Status::Ok);
}

#[test]
fn hello_to_the_wrong_one_names_the_right_one() {
    type Change = fn(&mut Hello);
    let cases: [(Change, Status); 4] = [
        (|h| h.cluster = ClusterId([1; 16]), Status::WrongCluster),
        (|h| h.node = NodeId([99; 16]), Status::WrongNode),
        (|h| h.shard = ShardIndex(5), Status::WrongShard),
        (|h| h.role = Role::Node, Status::BadRequest),
    ];
    for (change, status) in cases {
        let mut node = Node::cold(1);
        node.event(ShardEvent::ConnOpened { conn: CONN });
        let reply = node.hello(CONN, change);
        assert_eq!(reply.header.status, status);
        let mine = Hello::decode(&reply.aux).expect("identity");
        assert_eq!((mine.node, mine.role), (NodeId([1; 16]), Role::Node));
        assert_eq!(closes(&node), [CloseReason::Hello(status)]);
    }
}

#[test]
fn written_is_read_and_unwritten_is_zeros() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 1), Status::Ok);
    // Generation 0 after FENCE with generation 1 is an old map.
    assert_eq!(node.write(1, 1, 10, &[1, 2, 3]), Status::StaleMap);
    let header = Header {
        generation: Generation(1),
        ..write_header(1, 1, 10, 3)
    };
    let data = content(&[1, 2, 3]);
    let aux = crc_table(17, crc::sector_crcs(&data));
    let reply = node.ask(header, aux, Some(data.clone()));
    assert_eq!(reply.header.status, Status::Ok);
    assert_eq!(node.core.store.settled, Some((Token(1), Seq(17))));
    let read = Header {
        generation: Generation(1),
        ..ranged(Opcode::Read, 1, 10, 3)
    };
    let reply = node.ask(read, Vec::new(), None);
    assert_eq!(reply.data.as_slice(), data);
    let (_, crcs) = read_crc_table(&reply.aux, 3).expect("crcs");
    assert!(crcs.eq(crc::sector_crcs(&data)));
    let nothing = Header {
        sector: SectorInChunk(100),
        ..read
    };
    let reply = node.ask(nothing, Vec::new(), None);
    assert!(reply.header.flags.has(Flags::ZEROES) && !reply.header.flags.has(Flags::DATA));
}

#[test]
fn a_damaged_payload_is_refused_and_named() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    let data = content(&[1, 2, 3]);
    let mut crcs: Vec<u32> = crc::sector_crcs(&data).collect();
    crcs[1] ^= 1;
    let aux = crc_table(0, crcs.into_iter());
    let reply = node.ask(write_header(1, 1, 10, 3), aux, Some(data));
    assert_eq!(reply.header.status, Status::BadCrc);
    assert_eq!(reply.header.sector, SectorInChunk(11));
    assert_eq!(node.core.in_flight(), 0);
    assert!(node.core.store.sectors.is_empty());
}

#[test]
fn shapes_that_make_no_sense() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    let bad = [
        ranged(Opcode::Read, 1, 0, 0),
        ranged(Opcode::Read, 1, 0, 257),
        ranged(Opcode::Read, 1, 255, 2),
        ranged(Opcode::Read, 1, 16383, 2),
        ranged(Opcode::Read, 1, 16384, 1),
        ranged(Opcode::List, 1, 0, 2049),
        ranged(Opcode::List, 1, 16000, 2048),
        ranged(Opcode::Zero, 0, 0, 1),
        ranged(Opcode::Zero, 1, 0, 1),  // without its auxiliary section
        ranged(Opcode::Write, 1, 0, 1), // without data
        ranged(Opcode::Pull, 1, 0, 16),
        on(Opcode::Fence), // token 0
        on(Opcode::Hello),
        Header::request(Opcode::Flush, 0), // without a volume
        on_token(Opcode::Release, 1),      // without ranges
    ];
    for header in bad {
        assert_eq!(node.status(header), Status::BadRequest, "{header:?}");
    }
    let huge = Header {
        count: u16::MAX,
        ..ranged(Opcode::List, 1, u16::MAX, 0)
    };
    assert_eq!(node.status(huge), Status::BadRequest);
}

#[test]
fn a_chunk_of_another_shard_is_refused() {
    let mut node = Node::new(1);
    node.core.identity.shard_count = 7;
    let owner = |chunk| route::shard_of(VOLUME, ChunkIndex(chunk), 7).0;
    let (mine, other) = (
        (0..).find(|c| owner(*c) == 0),
        (0..).find(|c| owner(*c) != 0),
    );
    node.fence(1, 0);
    let read = |chunk: Option<u32>| Header {
        chunk: ChunkIndex(chunk.expect("one of the first")),
        ..ranged(Opcode::Read, 1, 0, 1)
    };
    assert_eq!(node.status(read(mine)), Status::Ok);
    assert_eq!(node.status(read(other)), Status::WrongShard);
}

#[test]
fn too_much_in_flight_is_busy_until_replies_went_out() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    node.core.store.hold = true;
    for _ in 0..64 {
        node.send(ranged(Opcode::Read, 1, 0, 256), Vec::new(), None);
    }
    // 64 MiB of payload are under way; requests without payload still fit.
    assert_eq!(node.status(ranged(Opcode::Read, 1, 0, 1)), Status::Busy);
    for _ in 64..CONN_REQUESTS_MAX {
        node.send(on_token(Opcode::Flush, 1), Vec::new(), None);
    }
    assert_eq!(node.status(on(Opcode::Ping)), Status::Busy);
    release(&mut node);
    assert_eq!(node.replies.len(), CONN_REQUESTS_MAX);
    assert_eq!(node.status(on(Opcode::Ping)), Status::Ok);
}

#[test]
fn what_closed_connections_left_in_flight_counts_against_the_shard() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    node.core.store.hold = true;
    let mut admitted = 0;
    // A client that fills its connection, leaves and comes back, while the device says nothing.
    let refused = (100..164).map(ConnId).any(|conn| {
        node.event(ShardEvent::ConnOpened { conn });
        assert_eq!(node.hello(conn, |_| {}).header.status, Status::Ok);
        for _ in 0..64 {
            let frame = Frame::bare(ranged(Opcode::Read, 1, 0, 256));
            node.event(ShardEvent::Frame { conn, frame });
            if let Some((_, reply)) = node.replies.pop() {
                assert_eq!(reply.header.status, Status::Busy);
                return true;
            }
            admitted += 1;
        }
        node.event(ShardEvent::ConnClosed { conn });
        false
    });
    assert!(refused, "{admitted} reads of 1 MiB are in flight");
    assert_eq!(admitted, 512);
    release(&mut node);
    assert_eq!(node.status(ranged(Opcode::Read, 1, 0, 256)), Status::Ok);
}

fn on_token(opcode: Opcode, token: u32) -> Header {
    Header {
        token: Token(token),
        ..on(opcode)
    }
}

#[test]
fn without_a_lease_volumes_are_refused_but_questions_answered() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    node.event(ShardEvent::LeaseLost);
    for opcode in [Opcode::Fence, Opcode::Flush, Opcode::WrittenSince] {
        assert_eq!(node.status(on_token(opcode, 1)), Status::NoLease);
    }
    assert_eq!(node.status(ranged(Opcode::Read, 1, 0, 1)), Status::NoLease);
    assert_eq!(node.status(on(Opcode::Ping)), Status::Ok);
    assert_eq!(node.status(on(Opcode::Inventory)), Status::Ok);
    node.event(ShardEvent::LeaseHeld);
    assert_eq!(node.status(ranged(Opcode::Read, 1, 0, 1)), Status::Ok);
}

#[test]
fn a_list_over_several_slots_is_one_answer() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    for sector in [250, 255, 256, 700] {
        node.core.store.plant(sector, 1, u64::from(sector), 5, 0);
    }
    let reply = node.ask(ranged(Opcode::List, 1, 250, 1000), Vec::new(), None);
    assert_eq!(reply.header.status, Status::Ok);
    let (_, states) = read_sector_states(&reply.aux, 1000).expect("states");
    for (sector, state) in (250..).zip(states) {
        assert_eq!(state, node.core.store.state(sector), "sector {sector}");
    }
}

#[test]
fn counters_count() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    assert_eq!(node.write(1, 1, 0, &[1, 2]), Status::Ok);
    assert_eq!(node.status(ranged(Opcode::Read, 1, 0, 2)), Status::Ok);
    assert_eq!(node.status(on_token(Opcode::Flush, 1)), Status::Ok);
    node.fence(2, 0);
    assert_eq!(node.write(1, 2, 0, &[1]), Status::StaleToken);
    let stats = ShardStats::decode(&node.ask(on(Opcode::Stats), Vec::new(), None).aux);
    assert_eq!(
        (stats.reads, stats.writes, stats.flushes, stats.refused),
        (1, 1, 1, 1)
    );
    assert_eq!((stats.read_bytes, stats.write_bytes), (8192, 8192));
    assert_eq!((stats.slots_used, stats.slots_total), (1, 2));
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_refuses_the_rest() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    node.core.store.hold = true;
    let data = content(&[1]);
    let aux = crc_table(0, crc::sector_crcs(&data));
    let write = node.send(write_header(1, 1, 0, 1), aux, Some(data));
    node.event(ShardEvent::Stop);
    assert_eq!(node.status(ranged(Opcode::Read, 1, 0, 1)), Status::Stopping);
    assert!(node.out.is_empty(), "{:?}", node.out);
    release(&mut node);
    let reply = node.reply(write).expect("finished");
    assert_eq!(reply.header.status, Status::Ok);
    assert!(matches!(
        node.out[..],
        [ShardAction::Stopped { clean: true }]
    ));
}

#[test]
fn replies_to_a_closed_connection_are_dropped() {
    let mut node = Node::new(1);
    node.fence(1, 0);
    node.core.store.hold = true;
    node.send(on_token(Opcode::Flush, 1), Vec::new(), None);
    node.event(ShardEvent::ConnClosed { conn: CONN });
    release(&mut node);
    assert!(node.replies.is_empty());
    assert_eq!(node.core.in_flight(), 0);
}

#[test]
fn a_reply_from_a_client_closes_it() {
    let mut node = Node::new(1);
    let header = on(Opcode::Ping).reply(Status::Ok);
    node.send(header, Vec::new(), None);
    assert!(matches!(closes(&node)[..], [CloseReason::Protocol(_)]));
}

#[test]
fn the_background_goes_on_beside_requests_in_flight() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 0), Status::Ok);
    node.core.store.hold = true;
    node.send(ranged(Opcode::Read, 1, 0, 1), Vec::new(), None);
    assert_eq!(node.core.in_flight(), 1);
    let before = node.core.store.backgrounds;
    node.event(ShardEvent::Tick);
    assert!(node.core.store.backgrounds > before);
}

/// The highest sequence number says nothing about the other sectors: their writes may end later.
#[test]
fn a_read_of_several_sectors_tells_the_number_of_each_while_one_may_be_in_flight() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 0), Status::Ok);
    for (seq, sector) in [(5, 10), (9, 11)] {
        assert_eq!(node.write(1, seq, sector, &[1]), Status::Ok);
    }
    for (settled, told) in [(0, true), (8, true), (9, false)] {
        node.core.store.settled = Some((Token(1), Seq(settled)));
        let reply = node.ask(ranged(Opcode::Read, 1, 10, 2), Vec::new(), None);
        assert_eq!(reply.header.seq, Seq(9));
        // Padding reads as zeros, which no write has.
        let seqs = read_seqs(&reply.aux, 2).into_iter().flatten();
        let seqs: Vec<Seq> = seqs.filter(|seq| *seq > Seq(0)).collect();
        let expected = [Seq(5), Seq(9)];
        assert_eq!(seqs, expected[..if told { 2 } else { 0 }]);
    }
}
