//! Power cuts and process crashes at every moment.

use super::model::{Workload, seeds};
use super::rig::*;
use crate::disk::layout::{Geometry, SlotIndex};
use crate::disk::mem::{Fate, MemDisk};
use crate::disk::store::{Store, StoreLimits};
use rand::RngExt;
use ukai_proto::BootId;

#[test]
pub(super) fn random_cuts() {
    seeds("random_cuts", 150, |seed| {
        let mut work = Workload::new(Rig::new(5, seed), 4);
        for _ in 0..4 {
            let steps = work.rig.rng.random_range(1..150);
            for _ in 0..steps {
                work.step();
            }
            work.rig.cut();
            work.restart(true);
            // What the recovery found stays, whatever happens next.
            work.rig.cut();
            work.restart(true);
        }
    });
}

#[test]
fn structures_torn_by_a_cut_are_found_out() {
    seeds("structures_torn_by_a_cut_are_found_out", 60, |seed| {
        let mut work = Workload::new(Rig::new(5, seed), 4);
        let place = work.rig.place;
        let geometry = Geometry::fit(place.start, place.bytes, LOG_BLOCKS).expect("fits");
        let data = geometry.slot_position(SlotIndex(0));
        for _ in 0..4 {
            let steps = work.rig.rng.random_range(1..150);
            for _ in 0..steps {
                work.step();
            }
            let mut rng = work.rig.rng.clone();
            work.rig
                .disk
                .cut(&mut |pending| match rng.random_range(0..3) {
                    0 => Fate::Old,
                    1 if pending.position < data => Fate::Trash,
                    _ => Fate::New,
                });
            work.rig.rng = rng;
            work.rig.boot += 1;
            work.restart(true);
        }
    });
}

#[test]
pub(super) fn random_process_crashes_lose_nothing_that_was_answered() {
    seeds(
        "random_process_crashes_lose_nothing_that_was_answered",
        150,
        |seed| {
            let mut work = Workload::new(Rig::new(5, seed), 4);
            for _ in 0..4 {
                let steps = work.rig.rng.random_range(1..150);
                for _ in 0..steps {
                    work.step();
                }
                work.rig.crash_process();
                work.restart(false);
                let power = work.rig.rng.random_bool(0.5);
                if power {
                    work.rig.cut();
                    work.restart(true);
                }
            }
        },
    );
}

/// Opens with the power failing at the given call of the recovery.
fn open_cut(disk: &mut MemDisk, rig: &Rig, call: u64, mut keep: impl FnMut() -> bool) -> bool {
    disk.fail_after(call, true);
    let (limits, boot) = (
        StoreLimits {
            page_cache_bytes: 0,
        },
        BootId([100; 16]),
    );
    let opened = Store::<Vec<u8>>::open_on(disk, &rig.place, limits, boot);
    disk.heal();
    disk.cut(&mut |_| if keep() { Fate::New } else { Fate::Old });
    opened.is_ok()
}

#[test]
fn cuts_during_recovery() {
    seeds("cuts_during_recovery", 25, |seed| {
        let mut work = Workload::new(Rig::new(5, seed), 4);
        for _ in 0..120 {
            work.step();
        }
        work.rig.cut();
        let cut = work.rig.disk.snapshot();
        for call in 0.. {
            let mut disk = cut.snapshot();
            let mut bits = work.rig.rng.random::<u64>();
            let keep = || {
                bits = bits.rotate_left(1);
                bits & 1 == 1
            };
            let finished = open_cut(&mut disk, &work.rig, call, keep);
            let mut again = Workload::new(Rig::on_boot(disk, work.rig.place, seed, 101), 4);
            again.oracle = work.oracle.clone();
            again.oracle.check_restart(&mut again.rig, true);
            again.rig.cut();
            again.restart(true);
            if finished {
                assert!(call > 10, "the sweep went through the whole recovery");
                break;
            }
        }
    });
}

/// Tries cuts at this moment: every subset of at most 8 volatile sectors, or some of more.
fn try_cuts(work: &Workload, tried: &mut u64) {
    let count = work.rig.disk.volatile_sectors().len();
    let masks: Vec<u64> = if count <= 8 {
        (0..1 << count).collect()
    } else {
        (0..40u64)
            .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7))
            .collect()
    };
    for mask in masks {
        let mut disk = work.rig.disk.snapshot();
        let mut at = 0;
        disk.cut(&mut |_| {
            at += 1;
            if mask >> ((at - 1) % 64) & 1 == 1 {
                Fate::New
            } else {
                Fate::Old
            }
        });
        let mut rig = Rig::on_boot(disk, work.rig.place, *tried, 100);
        let mut oracle = work.oracle.clone();
        oracle.check_restart(&mut rig, true);
        if tried.is_multiple_of(16) {
            rig.cut();
            rig.reopen();
            oracle.check_restart(&mut rig, true);
        }
        *tried += 1;
    }
}

/// Runs a trace to its end, trying all cuts after each event.
fn exhaust(work: &mut Workload, tried: &mut u64) {
    try_cuts(work, tried);
    loop {
        work.rig.turn();
        work.collect();
        try_cuts(work, tried);
        // Completions in order of submission from either end, for two different histories.
        let pending = work.rig.disk.pending();
        if pending == 0 {
            break;
        }
        let index = if work.token.is_multiple_of(2) {
            0
        } else {
            pending - 1
        };
        work.rig.complete(index);
        work.collect();
        try_cuts(work, tried);
    }
}

fn exhaustive(trace: impl Fn(&mut Workload, &mut u64)) {
    let mut tried = 0;
    for token in 1..=2 {
        let mut work = Workload::new(Rig::new(3, 1), 3);
        work.token = token;
        trace(&mut work, &mut tried);
    }
    assert!(tried > 50, "only {tried} cuts tried");
}

#[test]
fn every_cut_of_overwrites_between_flushes() {
    exhaustive(|work, tried| {
        work.write(0, 0..2, false);
        exhaust(work, tried);
        work.flush();
        exhaust(work, tried);
        work.write(0, 1..3, false);
        exhaust(work, tried);
        work.write(0, 0..2, false);
        work.flush();
        exhaust(work, tried);
        work.write(0, 0..1, true);
        exhaust(work, tried);
    });
}

#[test]
fn every_cut_around_a_flush_with_the_next_write_already_under_way() {
    exhaustive(|work, tried| {
        work.write(0, 0..1, false);
        exhaust(work, tried);
        work.flush();
        work.write(0, 0..1, false);
        exhaust(work, tried);
        work.write(0, 0..1, false);
        work.flush();
        work.write(0, 0..1, false);
        exhaust(work, tried);
    });
}

#[test]
fn every_cut_of_discards_and_slot_reuse() {
    exhaustive(|work, tried| {
        for chunk in 0..3 {
            work.write(chunk, 0..1, false);
        }
        work.settle();
        work.flush();
        work.settle();
        work.zero(0, 0..8, true, false);
        exhaust(work, tried);
        work.write(0, 2..3, false);
        exhaust(work, tried);
        work.zero(1, 0..1, false, false);
        work.write(1, 0..1, false);
        exhaust(work, tried);
        work.flush();
        work.write(1, 0..1, false);
        exhaust(work, tried);
    });
}

#[test]
fn every_cut_of_a_checkpoint() {
    exhaustive(|work, tried| {
        work.write(0, 0..1, false);
        work.write(1, 0..1, false);
        work.settle();
        work.write(0, 0..1, false);
        let mut out = Vec::new();
        work.rig.store.close(&mut out);
        exhaust(work, tried);
        assert!(work.rig.store.closed());
    });
}
