//! LIST with VERIFY.

use super::requests::release;
use super::*;
use crate::disk::api::StoreRequest;
use ukai_proto::message::{SectorState, ShardStats, read_sector_states};

fn verify(sector: u16, count: u16) -> Header {
    Header {
        generation: Generation(1),
        flags: Flags::VERIFY,
        ..ranged(Opcode::List, 1, sector, count)
    }
}

#[test]
fn one_slot_is_read_at_a_time() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 1), Status::Ok);
    node.core.store.plant(300, 1, 5, 1, 0);
    node.core.store.plant(700, 1, 6, 1, SectorState::BAD);
    node.core.store.hold = true;
    let tag = node.send(verify(100, 800), Vec::new(), None);
    let [(_, StoreRequest::Verify(range))] = &node.core.store.held[..] else {
        panic!("{:?}", node.core.store.held)
    };
    assert_eq!((range.sector.0, range.count), (100, 156));
    release(&mut node);
    let reply = node.reply(tag).expect("answered");
    assert_eq!(reply.header.status, Status::Ok);
    let (_, states) = read_sector_states(&reply.aux, 800).expect("states");
    let states: Vec<SectorState> = states.collect();
    assert_eq!(states[200].version.seq, Seq(5));
    assert_ne!(states[600].flags & SectorState::BAD, 0);
    let reply = node.ask(on(Opcode::Stats), Vec::new(), None);
    assert_eq!(ShardStats::decode(&reply.aux).verified_sectors, 2);
}

#[test]
fn a_list_tells_what_is_settled_under_its_token() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 1), Status::Ok);
    let list = ranged(Opcode::List, 1, 0, 1);
    assert_eq!(node.ask(list, Vec::new(), None).header.seq, Seq(0));
    node.core.store.settled = Some((Token(1), Seq(17)));
    assert_eq!(node.ask(list, Vec::new(), None).header.seq, Seq(17));
    node.core.store.settled = Some((Token(0), Seq(99)));
    let reply = node.ask(list, Vec::new(), None);
    assert_eq!(reply.header.seq, Seq(0), "of another token");
}

#[test]
fn what_is_verified_counts_as_payload_in_flight() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 1), Status::Ok);
    node.core.store.hold = true;
    let mut busy = false;
    for _ in 0..limits::CONN_BYTES_MAX / (2048 * limits::SECTOR_BYTES) + 1 {
        let tag = node.send(verify(0, 2048), Vec::new(), None);
        busy = node
            .reply(tag)
            .is_some_and(|reply| reply.header.status == Status::Busy);
    }
    assert!(busy, "64 MiB of reads are enough for one connection");
}
