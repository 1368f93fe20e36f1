//! Content that a recovery adopted under a front that lives on.

use super::rig::*;
use crate::disk::api::*;
use crate::disk::layout::{BLOCK, SlotIndex};
use crate::disk::mem::Fate;
use ukai_proto::message::SectorState;
use ukai_proto::{Generation, SectorInChunk, Seq, Token, Version};

fn fence(token: u32) -> StoreRequest<Vec<u8>> {
    StoreRequest::Fence {
        volume: VOLUME,
        token: Token(token),
        generation: Generation(token),
    }
}

fn state(rig: &mut Rig) -> SectorState {
    match rig.call(StoreRequest::List(range(3, 5, 1))) {
        StoreReply::List(states) => states[0],
        other => panic!("{other:?}"),
    }
}

fn doubted(rig: &mut Rig) -> bool {
    match rig.call(StoreRequest::Read(range(3, 4, 3))) {
        StoreReply::Doubted { sector } => {
            assert_eq!(sector, SectorInChunk(5));
            true
        }
        StoreReply::Read { .. } => false,
        other => panic!("{other:?}"),
    }
}

/// A sector rots in an open chunk, and the process (or the machine) dies.
fn rotten(dies: impl FnOnce(&mut Rig)) -> Rig {
    let mut rig = Rig::new(8, 1);
    rig.done(fence(1));
    for seq in 1..4 {
        rig.done(write(3, 4, 3, seq, false));
    }
    rig.done(StoreRequest::Flush);
    // A later block tells that the first write of these sectors was flushed.
    rig.done(write(3, 100, 1, 4, false));
    rig.done(StoreRequest::Flush);
    let slot = rig.store.geometry.slot_position(SlotIndex(0));
    rig.disk.rot(slot + 5 * BLOCK);
    dies(&mut rig);
    rig.reopen();
    rig
}

fn killed() -> Rig {
    rotten(|rig| rig.disk.crash_process(&mut || true))
}

const SHOWN: u16 = SectorState::ADOPTED | SectorState::BAD | SectorState::DOUBTED;

/// Simulation seeds 4066, 14632, 17997, 23125.
#[test]
fn adopted_content_is_not_read_until_a_higher_token_is_fenced() {
    let mut rig = killed();
    rig.done(fence(1));
    assert!(doubted(&mut rig), "the front that lives on");
    assert_eq!(state(&mut rig).flags, SHOWN);
    // Neither time nor another death of the process ends that.
    for _ in 0..3 {
        rig.store.settled(VOLUME, Token(1), Seq(9));
        for _ in 0..20 {
            rig.done(StoreRequest::Flush);
            rig.background();
            rig.settle();
        }
        rig.disk.crash_process(&mut || true);
        rig.reopen();
        rig.done(fence(1));
        assert!(doubted(&mut rig));
    }
    rig.done(fence(2));
    assert!(!doubted(&mut rig), "its front reconciles first");
    assert_eq!(state(&mut rig).flags, SectorState::ADOPTED);
}

#[test]
fn a_write_or_a_repair_ends_the_doubt_and_lets_the_intent_close() {
    for repair in [false, true] {
        let mut rig = killed();
        rig.done(fence(1));
        assert!(doubted(&mut rig));
        if repair {
            let whole = SectorState {
                version: version(1, 3),
                crc: ukai_proto::crc::crc32c(&content(3, 1)),
                flags: 0,
            };
            let put = StoreRequest::Put {
                range: range(3, 5, 1),
                states: vec![whole],
                data: Some(content(3, 1)),
                generation: Generation(1),
                admit: PutRule::Repair,
            };
            assert_eq!(rig.done(put), 1);
        } else {
            assert_eq!(rig.done(write(3, 5, 1, 5, false)), 1);
        }
        assert!(!doubted(&mut rig));
        rig.store.settled(VOLUME, Token(1), Seq(9));
        rig.store.resumed(VOLUME, Token(1), Seq(9));
        for _ in 0..20 {
            rig.done(StoreRequest::Flush);
            rig.background();
            rig.settle();
        }
        assert_eq!(rig.store.stats().intents_open, 0);
    }
}

/// After a loss of power every whole replica has what was flushed; rot must not outrank it.
#[test]
fn what_is_adopted_after_a_loss_of_power_ranks_below_everything() {
    let mut rig = rotten(|rig| {
        rig.disk.cut(&mut |_| Fate::New);
        rig.boot += 1;
    });
    rig.done(fence(2));
    let adopted = state(&mut rig);
    assert_eq!(
        (adopted.version, adopted.flags),
        (Version::ZERO, SectorState::ADOPTED)
    );
    let mut rig = killed();
    rig.done(fence(2));
    assert_eq!(state(&mut rig).version, version(1, 3));
}
