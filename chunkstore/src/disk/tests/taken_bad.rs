//! Sectors that are bad on every replica, and are copied as what they are.

use super::rig::*;
use crate::disk::api::*;
use ukai_proto::message::SectorState;
use ukai_proto::{Generation, SectorInChunk, Status};

fn bad_at(rig: &mut Rig) -> Option<SectorInChunk> {
    match rig.call(StoreRequest::Read(range(2, 4, 3))) {
        StoreReply::Failed {
            status: Status::BadCrc,
            sector,
        } => Some(sector),
        StoreReply::Read { .. } => None,
        other => panic!("{other:?}"),
    }
}

fn states(rig: &mut Rig) -> Vec<SectorState> {
    match rig.call(StoreRequest::List(range(2, 4, 3))) {
        StoreReply::List(states) => states,
        other => panic!("{other:?}"),
    }
}

/// Sectors 4 to 6, the middle one bad: its content does not match its checksum.
fn copy(ceiling: u64, rule: impl Fn(ukai_proto::Version) -> PutRule) -> StoreRequest<Vec<u8>> {
    let data = content(7, 3);
    let mut states: Vec<SectorState> = ukai_proto::crc::sector_crcs(&data)
        .map(|crc| SectorState {
            version: version(1, 7),
            crc,
            flags: 0,
        })
        .collect();
    states[1].crc ^= 1;
    states[1].flags = SectorState::BAD;
    StoreRequest::Put {
        range: range(2, 4, 3),
        states,
        data: Some(data),
        generation: Generation(2),
        admit: rule(version(1, ceiling)),
    }
}

#[test]
fn a_sector_taken_over_as_bad_is_bad_until_it_is_written() {
    for (own, restart) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut rig = Rig::new(4, 1);
        if own {
            rig.done(write(2, 0, 16, 3, false));
        }
        assert_eq!(rig.done(copy(9, PutRule::Mirror)), 2, "never by itself");
        assert_eq!(bad_at(&mut rig), None);
        assert_eq!(rig.done(copy(9, PutRule::MirrorBad)), 1);
        rig.done(StoreRequest::Flush);
        if restart {
            rig.cut();
            rig.reopen();
        }
        assert_eq!(bad_at(&mut rig), Some(SectorInChunk(5)));
        let held = states(&mut rig);
        assert_eq!(held[1].flags & SectorState::BAD, SectorState::BAD);
        assert_eq!(held[1].version, version(1, 7));
        assert_eq!(
            rig.done(copy(9, PutRule::MirrorBad)),
            0,
            "it is as bad as that"
        );
        rig.done(write(2, 5, 1, 8, false));
        assert_eq!(bad_at(&mut rig), None);
        assert_eq!(
            rig.done(copy(7, PutRule::MirrorBad)),
            0,
            "written since: above the ceiling"
        );
        assert_eq!(bad_at(&mut rig), None);
    }
}
