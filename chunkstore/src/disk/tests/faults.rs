//! The N-th call fails, once or for good.

use super::model::Workload;
use super::rig::*;
use crate::disk::api::*;
use crate::disk::layout::{BLOCK, Geometry, SlotIndex};
use crate::disk::mem::{Fate, OpKind};
use crate::disk::store::{OpenError, Store, StoreLimits};
use ukai_proto::Status;
use ukai_proto::message::SectorState;

/// A fixed workload that uses everything, so that N means the same in every run.
fn workload(work: &mut Workload) {
    for round in 0..3 {
        for chunk in 0..3 {
            work.write(chunk, 0..4, round == 1);
            work.write(chunk, 2..6, false);
            work.rig.turn();
        }
        work.read(1, 0..8);
        work.settle();
        work.flush();
        work.settle();
        work.zero(1, 0..8, true, false);
        work.zero(2, 0..3, false, true);
        work.settle();
    }
}

fn sweep(persistent: bool) {
    for call in 0.. {
        let mut work = Workload::new(Rig::new(4, 5), 3);
        work.faulty = true;
        let before = work.rig.disk.calls;
        work.rig.disk.fail_after(call, persistent);
        workload(&mut work);
        let fired = work.rig.disk.failure_fired();
        assert!(fired || work.rig.disk.calls - before <= call);
        work.rig.disk.heal();
        if work.rig.store.poisoned() {
            assert_eq!(
                work.rig.refused(write_as(0, 0, 1, version(9, 9), 9, false)),
                Status::Poisoned
            );
            assert_eq!(work.rig.refused(StoreRequest::Flush), Status::Poisoned);
        }
        // Everything that was answered is there after a crash of the process; what was flushed is there
        // after a cut.
        let mut disk = work.rig.disk.snapshot();
        disk.cut(&mut |pending| {
            if (pending.write ^ call) & 1 == 0 {
                Fate::Old
            } else {
                Fate::New
            }
        });
        let mut cut = Workload::new(Rig::on_boot(disk, work.rig.place, call, 100), 3);
        cut.oracle = work.oracle.clone();
        cut.oracle.check_restart(&mut cut.rig, true);
        if work.rig.store.poisoned() && !persistent {
            // The kernel lives, but what it had not written when the flush failed is gone.
            work.rig.disk.cut(&mut |pending| {
                if (pending.write ^ call) & 2 == 0 {
                    Fate::Old
                } else {
                    Fate::New
                }
            });
            work.restart(true);
        } else {
            work.rig.crash_process();
            work.restart(false);
        }
        if !fired {
            assert!(call > 50, "the sweep went through {call} calls");
            break;
        }
    }
}

#[test]
fn the_nth_call_fails_once() {
    sweep(false);
}

#[test]
fn the_nth_call_and_all_later_ones_fail() {
    sweep(true);
}

#[test]
fn a_failed_flush_poisons_and_is_never_retried() {
    let mut rig = Rig::new(4, 1);
    rig.done(write(0, 0, 1, 1, false));
    let flush = rig.submit(StoreRequest::Flush);
    let waiting = rig.submit(StoreRequest::Flush);
    rig.turn();
    let sync = (0..rig.disk.pending()).find(|index| rig.disk.pending_kind(*index) == OpKind::Sync);
    rig.disk.fail_after(0, false);
    rig.complete(sync.expect("a sync is under way"));
    for op in [flush, waiting] {
        let reply = &rig.replies[&op];
        assert!(
            matches!(
                reply,
                StoreReply::Failed {
                    status: Status::Poisoned,
                    ..
                }
            ),
            "{reply:?}"
        );
    }
    assert!(rig.store.poisoned());
    assert_eq!(rig.refused(write(0, 0, 1, 2, false)), Status::Poisoned);
    assert_eq!(rig.refused(StoreRequest::Flush), Status::Poisoned);
    assert_eq!(rig.read(0, 0, 1), [1], "reads go on");
    assert!((0..rig.disk.pending()).all(|index| rig.disk.pending_kind(index) != OpKind::Sync));
    let mut out = Vec::new();
    rig.store.close(&mut out);
    rig.settle();
    assert!(rig.store.closed());
}

#[test]
fn a_failed_data_write_hurts_only_its_sectors() {
    let mut rig = Rig::new(4, 1);
    rig.done(write(0, 0, 4, 1, false));
    let op = rig.submit(write(0, 1, 2, 2, false));
    rig.turn();
    while rig.disk.pending() < 2 {
        // A block that tells of the first write comes first.
        rig.complete(0);
        rig.turn();
    }
    rig.disk.fail_after(0, false);
    rig.complete(0);
    rig.settle();
    assert!(matches!(
        rig.replies[&op],
        StoreReply::Failed {
            status: Status::IoError,
            ..
        }
    ));
    assert!(!rig.store.poisoned());
    assert_eq!(
        rig.refused(StoreRequest::Read(range(0, 0, 4))),
        Status::BadCrc
    );
    assert_eq!((rig.read(0, 0, 1), rig.read(0, 3, 1)), (vec![1], vec![1]));
    assert_eq!(
        rig.done(write(0, 1, 2, 2, false)),
        2,
        "the same write, sent again"
    );
    assert_eq!(rig.read(0, 0, 4), [1, 2, 2, 1]);
}

fn state(rig: &mut Rig, chunk: u32, sector: u16) -> SectorState {
    match rig.call(StoreRequest::List(range(chunk, sector, 1))) {
        StoreReply::List(states) => states[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_failed_flush_lost_is_lost_for_the_next_run_on_the_same_boot() {
    let mut rig = Rig::new(4, 1);
    let data = Geometry::fit(rig.place.start, rig.place.bytes, LOG_BLOCKS)
        .expect("fits")
        .slot_position(SlotIndex(0));
    rig.done(write(0, 0, 1, 1, false));
    // Its block tells that the first one was written.
    rig.done(write(0, 9, 1, 2, false));
    rig.submit(StoreRequest::Flush);
    rig.turn();
    rig.disk.fail_after(0, false);
    rig.settle();
    assert!(rig.store.poisoned());
    // The log was written back, the data was not.
    rig.disk.cut(&mut |pending| {
        if pending.position < data {
            Fate::New
        } else {
            Fate::Old
        }
    });
    rig.reopen();
    assert_eq!(state(&mut rig, 0, 0), SectorState::UNWRITTEN);
}

#[test]
fn a_first_write_that_failed_is_not_taken_for_done_by_a_checkpoint() {
    let mut rig = Rig::new(4, 1);
    // What lies below the zeros: another chunk's data.
    rig.done(write(0, 0, 8, 9, false));
    rig.done(zero(0, 0, 256, 10, true));
    rig.done(StoreRequest::Flush);
    for sector in 7.. {
        if rig.store.log_used() == LOG_BLOCKS / 2 - 1 {
            break;
        }
        rig.done(write(1, sector, 1, 1, false));
    }
    rig.submit(write(1, 0, 1, 2, false));
    rig.turn();
    assert_eq!(rig.disk.pending(), 3, "data, its record, a checkpoint");
    rig.complete(1);
    rig.complete(1);
    rig.disk.fail_after(0, false);
    rig.complete(0);
    // The block that says so is lost: everything else goes on as far as it can without another turn.
    while rig.disk.pending() > 0 {
        rig.complete(0);
    }
    let below = Geometry::fit(rig.place.start, rig.place.bytes, LOG_BLOCKS)
        .expect("fits")
        .slot_position(SlotIndex(0));
    rig.disk.cut(&mut |pending| {
        if pending.position == below {
            Fate::Old
        } else {
            Fate::New
        }
    });
    rig.boot += 1;
    rig.reopen();
    assert_eq!(state(&mut rig, 1, 0), SectorState::UNWRITTEN);
}

#[test]
fn sectors_that_cannot_be_read_hurt_only_who_needs_them() {
    let mut rig = Rig::new(4, 1);
    let geometry = Geometry::fit(rig.place.start, rig.place.bytes, LOG_BLOCKS).expect("fits");
    rig.done(write(0, 0, 1, 1, false));
    rig.close();
    let page = geometry.page_position(SlotIndex(0).page());
    for position in [geometry.log_position(LOG_BLOCKS - 2), page] {
        let mut disk = rig.disk.snapshot();
        disk.unreadable.insert(position / BLOCK);
        let mut again = Rig::on(disk, rig.place, 1);
        again.disk.heal();
        assert_eq!(again.read(0, 0, 1), [1]);
    }
    // Once the log has gone on, the page is all there is.
    rig.reopen();
    for chunk in 1..4 {
        rig.done(write(chunk, 0, 1, 1, false));
    }
    rig.close();
    rig.disk.unreadable.insert(page / BLOCK);
    let limits = StoreLimits {
        page_cache_bytes: 0,
    };
    let opened = Store::<Vec<u8>>::open(&mut rig.disk, &rig.place, limits);
    assert!(matches!(opened, Err(OpenError::Device(_))), "{opened:?}");
}
