//! Verifying in the background: what a scrub asks.

use super::rig::*;
use super::rules::data_position;
use crate::disk::api::*;
use ukai_proto::message::SectorState;

fn verify(rig: &mut Rig, count: u16) -> Vec<u16> {
    match rig.call(StoreRequest::Verify(range(0, 0, count))) {
        StoreReply::List(states) => states.iter().map(|state| state.flags).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rot_is_found_and_remembered_and_only_written_slots_are_read() {
    let mut rig = Rig::new(2, 1);
    let calls = rig.disk.calls;
    assert_eq!(verify(&mut rig, 256), [SectorState::ZERO; 256]);
    assert_eq!(rig.disk.calls, calls, "nothing is written, nothing is read");
    rig.done(write(0, 0, 4, 5, false));
    assert_eq!(verify(&mut rig, 5), [0, 0, 0, 0, SectorState::ZERO]);
    let position = data_position(&mut rig, 0, 2);
    rig.disk.rot(position);
    assert_eq!(
        verify(&mut rig, 5),
        [0, 0, SectorState::BAD, 0, SectorState::ZERO]
    );
    assert_eq!(rig.store.stats().bad_sectors, 1);
    assert_eq!(rig.read(0, 3, 1), [5]);
    let unreadable = data_position(&mut rig, 0, 1) / 4096;
    rig.disk.unreadable.insert(unreadable);
    let bad = SectorState::BAD;
    assert_eq!(verify(&mut rig, 4), [0, bad, bad, 0]);
}

#[test]
fn its_reads_are_told_apart_from_those_of_guests() {
    let mut rig = Rig::new(2, 1);
    rig.done(write(0, 0, 4, 5, false));
    let read_of = |rig: &mut Rig, request| {
        let mut out = Vec::new();
        rig.store.submit(OpId(1 << 40), request, &mut out);
        let background = match &out[..] {
            [StoreAction::Disk(DiskOp::Read { io, .. })] => rig.store.in_background(*io),
            other => panic!("{other:?}"),
        };
        rig.perform(out);
        rig.settle();
        rig.replies.clear();
        background
    };
    assert!(read_of(&mut rig, StoreRequest::Verify(range(0, 0, 4))));
    assert!(!read_of(&mut rig, StoreRequest::Read(range(0, 0, 4))));
}
