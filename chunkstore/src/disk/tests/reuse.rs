//! Slots that go from one owner to the next, and what a crash makes of it.

use super::rig::*;
use crate::disk::api::*;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, VolumeId};

fn volume(number: u8) -> VolumeId {
    VolumeId([number; 16])
}

/// The same request for another volume.
fn of(number: u8, mut request: StoreRequest<Vec<u8>>) -> StoreRequest<Vec<u8>> {
    match &mut request {
        StoreRequest::Write { range, .. }
        | StoreRequest::Zero { range, .. }
        | StoreRequest::Read(range) => range.volume = volume(number),
        other => panic!("{other:?}"),
    }
    request
}

fn delete(number: u8) -> StoreRequest<Vec<u8>> {
    StoreRequest::DeleteVolume {
        volume: volume(number),
    }
}

#[test]
fn an_owner_from_before_the_released_one_never_comes_back() {
    const FILLERS: u32 = 12;
    let mut rig = Rig::new(2 + u64::from(FILLERS), 1);
    // Slots are handed out in ascending order: 0, the fillers', and the highest one.
    rig.done(of(4, write(0, 0, 1, 1, false)));
    for chunk in 0..FILLERS {
        rig.done(of(3, write(chunk, 0, 1, 1, false)));
    }
    rig.done(of(1, write(0, 0, 1, 1, false)));
    rig.close();
    rig.reopen();
    // The lowest and the highest slot are given up, the highest is the next one used.
    rig.done(of(4, zero(0, 0, 256, 2, true)));
    rig.done(StoreRequest::Flush);
    rig.done(of(1, zero(0, 0, 256, 2, true)));
    rig.done(StoreRequest::Flush);
    let before = rig.store.stats().checkpoints;
    rig.done(of(2, write(0, 0, 1, 3, false)));
    rig.done(of(1, write(0, 5, 1, 4, false)));
    rig.done(StoreRequest::Flush);
    assert_eq!(
        rig.store.stats().checkpoints,
        before,
        "the page on disk must still name the first owner"
    );
    // More pages of deleted owners than one checkpoint writes.
    rig.submit(delete(3));
    rig.submit(delete(2));
    while rig.store.stats().checkpoints == before {
        rig.turn();
        assert!(rig.complete_any(), "a checkpoint ends");
    }
    rig.crash_process();
    rig.reopen();
    match rig.call(of(1, StoreRequest::Read(range(0, 0, 8)))) {
        StoreReply::Read { data, .. } => assert_eq!(values(&data, 8), [0, 0, 0, 0, 0, 4, 0, 0]),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.store.slots().0, 1);
}

#[test]
fn deletions_in_quick_succession_leave_no_more_to_recover_than_fits_the_log() {
    let mut rig = Rig::new(120, 1);
    // One durable write that does not end holds every flush back, so freed slots are not reused.
    rig.submit(of(200, write(0, 0, 1, 1, true)));
    rig.turn();
    rig.complete(0);
    rig.turn();
    assert!(rig.disk.pending() >= 2, "data and log of the held write");
    for round in 0..12 {
        for piece in 0..4 {
            rig.submit(of(round, write(0, piece * 256, 1, 1, true)));
        }
        for _ in 0..2 {
            rig.turn();
            while rig.disk.pending() > 1 {
                rig.complete(1);
                rig.turn();
            }
        }
        rig.submit(delete(round));
        rig.turn();
        while rig.disk.pending() > 1 {
            rig.complete(1);
            rig.turn();
        }
    }
    rig.disk.cut(&mut |_| crate::disk::mem::Fate::New);
    rig.boot += 1;
    rig.reopen();
    assert!(rig.report.records_replayed > 0);
}

#[test]
fn a_released_range_gives_back_every_slot() {
    let mut rig = Rig::new(6, 1);
    for round in 0..20u64 {
        for chunk in 0..6 {
            rig.done(write(chunk, 0, 1, round + 1, false));
        }
        let ranges = vec![ChunkRange {
            start: ChunkIndex(0),
            count: 6,
        }];
        rig.done(StoreRequest::Release {
            volume: VOLUME,
            token: ukai_proto::Token(1),
            generation: ukai_proto::Generation(1),
            ranges,
        });
        assert_eq!(rig.store.slots().0, 0);
        if round % 3 == 0 {
            rig.crash_process();
            rig.reopen();
        }
    }
}
