//! Reads that went wrong on their way, once: what lies on the device is good.

use super::rig::*;
use super::rules::data_position;
use crate::disk::api::*;
use ukai_proto::message::SectorState;
use ukai_proto::{Generation, Token};

/// Sectors 4..7 of chunk 3, written and flushed, and the place of the middle one on the device.
fn written() -> (Rig, u64) {
    let mut rig = Rig::new(8, 1);
    rig.done(StoreRequest::Fence {
        volume: VOLUME,
        token: Token(1),
        generation: Generation(1),
    });
    rig.done(write(3, 4, 3, 7, false));
    rig.done(StoreRequest::Flush);
    let middle = data_position(&mut rig, 0, 5) / 4096;
    (rig, middle)
}

fn flags(rig: &mut Rig) -> Vec<u16> {
    match rig.call(StoreRequest::List(range(3, 3, 5))) {
        StoreReply::List(states) => states.iter().map(|state| state.flags).collect(),
        other => panic!("{other:?}"),
    }
}

const GOOD: [u16; 5] = [SectorState::ZERO, 0, 0, 0, SectorState::ZERO];

/// Simulation seed 89: the sector was bad from then on, and soon this was the last replica.
#[test]
fn a_sector_is_not_bad_for_one_read() {
    let (mut rig, middle) = written();
    rig.disk.misread.insert(middle);
    assert_eq!(rig.read(3, 3, 5), [0, 7, 7, 7, 0]);
    rig.disk.misread.insert(middle);
    match rig.call(StoreRequest::ReadVersioned(range(3, 3, 5))) {
        StoreReply::ReadVersioned { states, data } => {
            let flags: Vec<u16> = states.iter().map(|state| state.flags).collect();
            assert_eq!(flags, GOOD);
            assert_eq!(values(&data, 5), [0, 7, 7, 7, 0]);
        }
        other => panic!("{other:?}"),
    }
    rig.disk.misread.insert(middle);
    match rig.call(StoreRequest::Verify(range(3, 3, 5))) {
        StoreReply::List(states) => assert!(states.iter().zip(GOOD).all(|(s, f)| s.flags == f)),
        other => panic!("{other:?}"),
    }
    assert!(rig.disk.misread.is_empty(), "all of them were read");
    assert_eq!(flags(&mut rig), GOOD);
    assert_eq!(rig.store.stats().bad_sectors, 0);
}

#[test]
fn a_suspect_sector_is_not_adopted_for_one_read() {
    let (mut rig, middle) = written();
    rig.disk.crash_process(&mut || true);
    rig.reopen();
    assert_eq!(rig.report.slots_suspect, 1);
    rig.disk.misread.insert(middle);
    assert_eq!(flags(&mut rig), GOOD);
    assert!(rig.disk.misread.is_empty(), "it was read");
}

/// Below zeros there is nothing: what does not match there would be given up for them.
#[test]
fn what_was_answered_is_not_given_up_for_one_read_of_a_recovery() {
    let (mut rig, _) = written();
    rig.done(write(3, 20, 1, 8, false));
    let late = data_position(&mut rig, 0, 20) / 4096;
    rig.disk.crash_process(&mut || true);
    rig.disk.misread.insert(late);
    rig.reopen();
    assert!(rig.disk.misread.is_empty(), "it was read");
    assert_eq!(rig.report.sectors_reverted, 0);
    assert_eq!(rig.read(3, 20, 1), [8]);
}
