//! WRITTEN_SINCE: what a replica that was away must be compared with.

use super::rig::*;
use crate::disk::api::*;
use crate::disk::mem::{Fate, OpKind};
use ukai_proto::message::SectorState;
use ukai_proto::{ChunkIndex, Generation, Seq, Token};

fn fence(token: u32, generation: u32) -> StoreRequest<Vec<u8>> {
    StoreRequest::Fence {
        volume: VOLUME,
        token: Token(token),
        generation: Generation(generation),
    }
}

fn since(rig: &Rig, generation: u32) -> Vec<u32> {
    let (chunks, more) =
        rig.store
            .written_since(VOLUME, Generation(generation), ChunkIndex(0), 1000);
    assert!(!more);
    chunks.iter().map(|chunk| chunk.0).collect()
}

/// A write under another generation than its token's number.
fn write_under(generation: u32, chunk: u32, seq: u64) -> StoreRequest<Vec<u8>> {
    let mut request = write(chunk, 0, 1, seq, false);
    if let StoreRequest::Write { generation: g, .. } = &mut request {
        *g = Generation(generation);
    }
    request
}

/// Everything settled and closed under the token, in the background.
fn rest(rig: &mut Rig, token: u32) {
    for _ in 0..20 {
        rig.store.settled(VOLUME, Token(token), Seq(9));
        rig.done(StoreRequest::Flush);
        rig.background();
        rig.settle();
    }
    let stats = rig.store.stats();
    assert_eq!((stats.intents_open, stats.slots_suspect), (0, 0));
}

/// Chunk 3 was written under generation 5, flushed, closed; then a write under 10 of which the data
/// survives a power cut and the record does not.
fn lost_record(rig: &mut Rig) {
    rig.done(fence(1, 5));
    rig.done(write_under(5, 3, 1));
    rest(rig, 1);
    let write = rig.submit(write_under(10, 3, 2));
    rig.turn();
    rig.complete(0);
    rig.turn();
    assert_eq!(rig.disk.pending(), 2, "data and its record");
    assert_eq!(rig.disk.pending_kind(0), OpKind::Write);
    let data = rig.disk.volatile_sectors()[0].write;
    rig.disk.cut(&mut |pending| {
        if pending.write == data {
            Fate::New
        } else {
            Fate::Old
        }
    });
    assert!(!rig.replies.contains_key(&write));
    rig.boot += 1;
    rig.reopen();
}

#[test]
fn a_chunk_whose_record_was_lost_is_named() {
    for touched in [false, true] {
        let mut rig = Rig::new(8, 1);
        lost_record(&mut rig);
        assert_eq!(since(&rig, 9), [3], "before anybody looked at it");
        rig.done(fence(2, 12));
        if touched {
            assert_eq!(rig.read(3, 0, 1), [2], "the lost record's data was adopted");
        }
        assert_eq!(since(&rig, 9), [3]);
        rest(&mut rig, 2);
        assert_eq!(since(&rig, 9), [3], "after its intent closed");
        assert!(since(&rig, 13).is_empty());
        for _ in 0..2 {
            rig.close();
            rig.reopen();
            assert_eq!(since(&rig, 9), [3], "after a clean stop");
        }
    }
}

/// What the other replicas have of a chunk may be lost here without a trace.
#[test]
fn a_chunk_that_was_open_is_named_even_if_nothing_is_left_of_it() {
    let mut rig = Rig::new(8, 1);
    rig.done(fence(1, 5));
    let _ = rig.submit(write_under(8, 3, 1));
    rig.turn();
    rig.complete(0);
    rig.turn();
    rig.disk.cut(&mut |_| Fate::Old);
    rig.boot += 1;
    rig.reopen();
    assert_eq!(rig.store.slots().0, 0);
    assert_eq!(since(&rig, 9), [3]);
    rig.done(fence(2, 12));
    rest(&mut rig, 2);
    assert_eq!(since(&rig, 9), [3]);
    rig.cut();
    rig.reopen();
    assert_eq!(since(&rig, 9), [3]);
    assert!(since(&rig, 13).is_empty());
    assert_eq!(rig.done(write_as(3, 0, 1, version(2, 1), 7, false)), 1);
    assert_eq!(rig.read(3, 0, 2), [7, 0]);
}

#[test]
fn a_late_write_into_a_hole_does_not_hide_the_discard_around_it() {
    let mut rig = Rig::new(8, 1);
    rig.done(write_under(5, 3, 1));
    let mut discard = zero(3, 0, 256, 3, true);
    if let StoreRequest::Zero { generation, .. } = &mut discard {
        *generation = Generation(10);
    }
    rig.done(discard);
    rig.done(write_under(9, 3, 4));
    assert_eq!(since(&rig, 10), [3]);
    rig.cut();
    rig.reopen();
    assert_eq!(since(&rig, 10), [3]);
    rig.close();
    rig.reopen();
    rig.done(fence(2, 12));
    assert_eq!(since(&rig, 10), [3]);
}

fn put_zeros(generation: u32, chunk: u32, seq: u64) -> StoreRequest<Vec<u8>> {
    let state = SectorState {
        version: version(1, seq),
        ..SectorState::UNWRITTEN
    };
    StoreRequest::Put {
        range: range(chunk, 0, 256),
        states: vec![state; 256],
        data: None,
        generation: Generation(generation),
        admit: PutRule::Mirror(version(1, 100)),
    }
}

#[test]
fn a_copy_of_zeros_onto_nothing_tells_later_of_the_discard() {
    let mut rig = Rig::new(2, 1);
    assert_eq!(rig.done(put_zeros(12, 3, 7)), 256);
    assert_eq!(since(&rig, 9), [3]);
    assert_eq!(rig.done(put_zeros(12, 3, 7)), 0, "again");
    rig.cut();
    rig.reopen();
    rest(&mut rig, 2);
    for chunk in 10..50 {
        rig.done(put_zeros(12, chunk, 7));
        rig.store.settled(VOLUME, Token(9), Seq(9));
        assert_eq!(rig.store.slots().0, 0, "no slot, however many there are");
    }
    for chunk in 0..2 {
        assert_eq!(rig.done(write(chunk, 0, 1, 8, false)), 1);
        assert_eq!(rig.done(zero(chunk, 0, 256, 9, true)), 256);
        rig.store.settled(VOLUME, Token(9), Seq(9));
        assert_eq!(rig.store.slots().0, 0, "and every slot can be given back");
    }
}
