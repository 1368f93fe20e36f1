//! Single rules, each by a short scenario.

use super::rig::*;
use crate::disk::api::*;
use crate::disk::mem::OpKind;
use ukai_proto::message::{ChunkRange, SectorState};
use ukai_proto::{ChunkIndex, Generation, SectorInChunk, Seq, Status, Token, VolumeId};

fn release(generation: u32, start: u32, count: u32) -> StoreRequest<Vec<u8>> {
    StoreRequest::Release {
        volume: VOLUME,
        token: Token(1),
        generation: Generation(generation),
        ranges: vec![ChunkRange {
            start: ChunkIndex(start),
            count,
        }],
    }
}

fn list(rig: &mut Rig, chunk: u32, sector: u16, count: u16) -> Vec<SectorState> {
    match rig.call(StoreRequest::List(range(chunk, sector, count))) {
        StoreReply::List(states) => states,
        other => panic!("{other:?}"),
    }
}

#[test]
pub(super) fn writes_are_read_back_and_unwritten_sectors_are_zeros_without_io() {
    let mut rig = Rig::new(4, 1);
    let calls = rig.disk.calls;
    assert_eq!(rig.read(0, 0, 256), vec![0; 256]);
    assert_eq!(
        rig.disk.calls, calls,
        "nothing is read for an unallocated slot"
    );
    assert_eq!(rig.done(write(0, 3, 4, 5, false)), 4);
    assert_eq!(rig.read(0, 2, 6), [0, 5, 5, 5, 5, 0]);
    assert_eq!(rig.read(0, 4, 2), [5, 5]);
    assert_eq!(rig.store.slots(), (1, 4));
}

#[test]
pub(super) fn older_and_equal_versions_change_nothing() {
    let mut rig = Rig::new(4, 1);
    rig.done(write(0, 2, 2, 10, false));
    assert_eq!(rig.done(write(0, 2, 2, 10, false)), 0);
    assert_eq!(
        rig.done(write(0, 0, 6, 9, false)),
        4,
        "only around the newer ones"
    );
    assert_eq!(rig.read(0, 0, 6), [9, 9, 10, 10, 9, 9]);
    assert_eq!(
        rig.done(write_as(0, 2, 1, version(2, 1), 77, false)),
        1,
        "the token counts first"
    );
    assert_eq!(rig.done(zero(0, 0, 6, 9, true)), 0);
}

#[test]
pub(super) fn requests_in_flight_keep_their_order() {
    for seed in 0..50 {
        let mut rig = Rig::new(4, seed);
        rig.done(write(0, 0, 1, 1, false));
        let first = rig.submit(write(0, 0, 4, 2, false));
        let read = rig.submit(StoreRequest::Read(range(0, 1, 4)));
        let second = rig.submit(write(0, 2, 4, 3, false));
        let last = rig.submit(StoreRequest::Read(range(0, 0, 6)));
        rig.settle();
        for op in [first, second] {
            assert!(matches!(rig.replies[&op], StoreReply::Done { applied: 4 }));
        }
        let seen = |op| match &rig.replies[&op] {
            StoreReply::Read { data, crcs, .. } => {
                values(data, u16::try_from(crcs.len()).expect("few"))
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(seen(read), [2, 2, 2, 0]);
        assert_eq!(seen(last), [2, 2, 3, 3, 3, 3]);
    }
}

#[test]
pub(super) fn discards_free_the_slot_and_late_older_writes_do_not_come_back() {
    let mut rig = Rig::new(2, 1);
    rig.done(write(0, 0, 256, 5, false));
    rig.done(write(1, 0, 1, 5, false));
    assert_eq!(rig.refused(write(2, 0, 1, 6, false)), Status::NoSpace);
    rig.done(zero(0, 0, 256, 7, true));
    assert_eq!(rig.store.slots(), (1, 2));
    assert_eq!(rig.read(0, 0, 256), vec![0; 256]);
    assert_eq!(
        rig.done(write(0, 9, 2, 6, false)),
        0,
        "older than the zeros"
    );
    assert_eq!(list(&mut rig, 0, 9, 1)[0].version, version(1, 7));
    assert_eq!(
        rig.done(write(2, 0, 1, 8, false)),
        1,
        "the slot is used again"
    );
    assert_eq!(
        rig.read(2, 0, 2),
        [8, 0],
        "nothing of its former content shows"
    );
    assert_eq!(rig.refused(write(3, 0, 1, 8, false)), Status::NoSpace);
    assert_eq!(rig.read(1, 0, 1), [5], "a full shard harms nobody");
    rig.done(write(1, 0, 1, 9, false));
    rig.done(StoreRequest::Flush);
    rig.close();
    rig.reopen();
    assert_eq!(
        rig.done(write(0, 9, 2, 6, false)),
        0,
        "the hole's versions survive"
    );
    assert_eq!(
        (rig.read(1, 0, 1), rig.read(2, 0, 2)),
        (vec![9], vec![8, 0])
    );
}

#[test]
pub(super) fn zeros_without_a_slot_take_none_unless_their_versions_are_many() {
    let mut rig = Rig::new(2, 1);
    rig.done(zero(0, 10, 10, 5, true));
    assert_eq!(rig.store.slots().0, 0);
    rig.done(zero(0, 20, 5, 6, false));
    assert_eq!(rig.store.slots().0, 1, "four runs of versions");
    assert_eq!(rig.read(0, 0, 256), vec![0; 256]);
    let states = list(&mut rig, 0, 9, 17);
    let seqs: Vec<u64> = states.iter().map(|state| state.version.seq.0).collect();
    assert_eq!(seqs, [vec![0], vec![5; 10], vec![6; 5], vec![0]].concat());
    assert_eq!(rig.done(write(0, 12, 1, 5, false)), 0);
    assert_eq!(rig.done(write(0, 12, 1, 7, false)), 1);
}

#[test]
pub(super) fn copies_obey_their_rule_at_the_moment_they_are_applied() {
    let mut rig = Rig::new(4, 1);
    rig.done(write(0, 0, 4, 10, false));
    let put = |seqs: [u64; 4], admit| {
        let data: Vec<u8> = seqs.iter().flat_map(|seq| content(seq + 1000, 1)).collect();
        let states = seqs
            .iter()
            .zip(ukai_proto::crc::sector_crcs(&data))
            .map(|(seq, crc)| SectorState {
                version: version(1, *seq),
                crc,
                flags: 0,
            })
            .collect();
        let generation = Generation(2);
        StoreRequest::Put {
            range: range(0, 0, 4),
            states,
            data: Some(data),
            generation,
            admit,
        }
    };
    assert_eq!(rig.done(put([9, 11, 10, 12], PutRule::Newer)), 2);
    assert_eq!(rig.read(0, 0, 4), [10, 1011, 10, 1012]);
    let mirror = PutRule::Mirror(version(1, 11));
    assert_eq!(
        rig.done(put([9, 3, 10, 3], mirror)),
        3,
        "the last one is above the ceiling"
    );
    assert_eq!(rig.read(0, 0, 4), [1009, 1003, 1010, 1012]);
    let unwritten = vec![SectorState::UNWRITTEN; 4];
    let request = StoreRequest::Put {
        range: range(0, 0, 4),
        states: unwritten,
        data: None,
        generation: Generation(2),
        admit: mirror,
    };
    assert_eq!(rig.done(request), 3);
    assert_eq!(rig.read(0, 0, 4), [0, 0, 0, 1012]);
    let mut bad = put([20; 4], PutRule::Newer);
    if let StoreRequest::Put { states, .. } = &mut bad {
        states[2].crc ^= 1;
    }
    assert_eq!(rig.refused(bad), Status::BadCrc);
}

/// A reconcile must not fail for want of room: the chunk could not be touched any more.
#[test]
pub(super) fn the_last_free_slots_are_for_what_makes_replicas_equal() {
    let mut rig = Rig::new(32, 1);
    let put = |chunk, admit| {
        let data = content(7, 1);
        let states = ukai_proto::crc::sector_crcs(&data)
            .map(|crc| SectorState {
                version: version(1, 7),
                crc,
                flags: 0,
            })
            .collect();
        StoreRequest::Put {
            range: range(chunk, 0, 1),
            states,
            data: Some(data),
            generation: Generation(2),
            admit,
        }
    };
    for chunk in 0..30 {
        rig.done(write(chunk, 0, 1, 5, false));
    }
    assert_eq!(rig.refused(write(30, 0, 1, 6, false)), Status::NoSpace);
    let mirror = PutRule::Mirror(version(1, 9));
    assert_eq!(rig.refused(put(30, mirror)), Status::NoSpace);
    assert_eq!(rig.done(put(30, PutRule::Newer)), 1);
    assert_eq!(rig.done(put(31, PutRule::Repair)), 1);
    assert_eq!(rig.refused(put(32, PutRule::Newer)), Status::NoSpace);
    assert_eq!(rig.store.slots(), (32, 32));

    // What is freed fills the reserve first. Who waits for it is told when all of it has come.
    rig.done(zero(0, 0, 256, 8, true));
    rig.done(zero(1, 0, 256, 8, true));
    assert_eq!(rig.refused(write(33, 0, 1, 9, false)), Status::NoSpace);
    let freed = rig.submit(zero(2, 0, 256, 8, true));
    let waits = rig.submit(write(34, 0, 1, 9, false));
    rig.settle();
    for op in [freed, waits] {
        assert!(matches!(rig.replies[&op], StoreReply::Done { .. }));
    }
    assert_eq!(rig.refused(write(35, 0, 1, 9, false)), Status::NoSpace);
}

#[test]
pub(super) fn fences_and_generations_survive_and_never_sink() {
    let mut rig = Rig::new(4, 1);
    assert_eq!(rig.store.fence(VOLUME), None);
    let fence = |token, generation| StoreRequest::Fence {
        volume: VOLUME,
        token: Token(token),
        generation: Generation(generation),
    };
    rig.done(fence(3, 5));
    rig.cut();
    rig.reopen();
    let held = Fence {
        token: Token(3),
        generation: Generation(5),
    };
    assert_eq!(rig.store.fence(VOLUME), Some(held), "durable when answered");
    rig.done(fence(2, 4));
    assert_eq!(rig.store.fence(VOLUME), Some(held));
    let adopt = StoreRequest::Adopt {
        volume: VOLUME,
        token: Token(3),
        generation: Generation(9),
    };
    rig.done(adopt);
    rig.cut();
    rig.reopen();
    assert_eq!(
        rig.store.fence(VOLUME).map(|fence| fence.generation),
        Some(Generation(9))
    );
}

#[test]
pub(super) fn a_fence_waits_for_the_writes_before_it() {
    let mut rig = Rig::new(4, 1);
    rig.done(write(0, 0, 1, 1, false));
    let write = rig.submit(write(0, 0, 1, 2, false));
    let fence = rig.submit(StoreRequest::Fence {
        volume: VOLUME,
        token: Token(2),
        generation: Generation(2),
    });
    let after = rig.submit(write_as(0, 0, 1, version(2, 1), 99, false));
    rig.turn();
    while !rig.replies.contains_key(&fence) {
        assert!(!rig.replies.contains_key(&after));
        assert!(rig.complete_any(), "the fence ends");
        rig.turn();
    }
    assert!(rig.replies.contains_key(&write));
    rig.settle();
    assert_eq!(rig.read(0, 0, 1), [99]);
}

#[test]
pub(super) fn released_chunks_are_gone_for_good_and_others_stay() {
    let mut rig = Rig::new(8, 1);
    for chunk in 0..6 {
        rig.done(write(chunk, 0, 2, 5, false));
    }
    rig.done(zero(6, 0, 256, 6, true));
    rig.done(release(4, 1, 3));
    rig.done(release(4, 6, 1));
    assert_eq!(rig.store.slots().0, 3);
    rig.cut();
    rig.reopen();
    assert_eq!(
        rig.store.fence(VOLUME).map(|fence| fence.generation),
        Some(Generation(4))
    );
    for chunk in 0..7 {
        let expected = if matches!(chunk, 0 | 4 | 5) {
            [5, 5]
        } else {
            [0, 0]
        };
        assert_eq!(rig.read(chunk, 0, 2), expected, "chunk {chunk}");
    }
    assert_eq!(list(&mut rig, 6, 0, 1), [SectorState::UNWRITTEN]);
    // Chunks may come back, also into the same slots, and the tombstone must not touch them.
    for chunk in 1..4 {
        assert_eq!(rig.done(write(chunk, 1, 1, 3, false)), 1);
    }
    rig.done(StoreRequest::Flush);
    for _ in 0..3 {
        rig.cut();
        rig.reopen();
        for chunk in 1..4 {
            assert_eq!(rig.read(chunk, 0, 2), [0, 3], "chunk {chunk}");
        }
    }
    rig.done(StoreRequest::DeleteVolume { volume: VOLUME });
    assert_eq!(rig.store.slots().0, 0);
    rig.close();
    rig.reopen();
    assert_eq!(rig.store.slots().0, 0);
    assert!(rig.store.fence(VOLUME).is_some(), "the fence stays");
    assert_eq!(
        rig.store.open_intents(VOLUME, ChunkIndex(0), 10),
        (vec![], false)
    );
}

#[test]
pub(super) fn written_since_names_chunks_by_their_last_generation() {
    let mut rig = Rig::new(8, 1);
    for chunk in 0..4 {
        rig.done(write_as(chunk, 0, 1, version(chunk + 1, 1), 5, false));
    }
    rig.done(StoreRequest::Zero {
        range: range(1, 0, 256),
        version: version(9, 1),
        generation: Generation(9),
        unmap: true,
        fua: false,
    });
    let since = |rig: &Rig, generation, start, limit| {
        let (chunks, more) =
            rig.store
                .written_since(VOLUME, Generation(generation), ChunkIndex(start), limit);
        (chunks.iter().map(|chunk| chunk.0).collect::<Vec<_>>(), more)
    };
    for _ in 0..2 {
        assert_eq!(
            since(&rig, 3, 0, 10),
            (vec![1, 2, 3], false),
            "discards count"
        );
        assert_eq!(since(&rig, 0, 0, 2), (vec![0, 1], true));
        assert_eq!(since(&rig, 0, 2, 2), (vec![2, 3], false));
        assert_eq!(since(&rig, 10, 0, 2), (vec![], false));
        rig.close();
        rig.reopen();
    }
    let (entries, more) = rig.store.inventory(VolumeId::NIL, 10);
    assert!(!more);
    assert_eq!((entries.len(), entries[0].slots), (1, 3));
}

#[test]
pub(super) fn intents_open_durably_before_data_and_close_when_all_is_known() {
    let mut rig = Rig::new(8, 1);
    let intents = |rig: &Rig| rig.store.open_intents(VOLUME, ChunkIndex(0), 10).0;
    rig.submit(write(3, 0, 1, 5, false));
    rig.turn();
    assert_eq!(rig.disk.pending(), 1, "the OPEN record goes first, alone");
    rig.settle();
    assert_eq!(intents(&rig), [ChunkIndex(3)]);
    let open = |rig: &mut Rig| {
        for _ in 0..30 {
            rig.background();
            rig.settle();
        }
        intents(rig)
    };
    assert_eq!(open(&mut rig).len(), 1, "neither flushed nor settled");
    rig.done(StoreRequest::Flush);
    assert_eq!(open(&mut rig).len(), 1, "not settled");
    rig.store.settled(VOLUME, Token(1), Seq(4));
    assert_eq!(open(&mut rig).len(), 1, "not settled up to the last write");
    rig.store.settled(VOLUME, Token(1), Seq(5));
    assert_eq!(open(&mut rig).len(), 0);
    rig.done(write(3, 0, 1, 6, false));
    rig.cut();
    rig.reopen();
    assert_eq!(intents(&rig), [ChunkIndex(3)], "opened again, durably");
}

#[test]
pub(super) fn the_background_settles_everything_after_a_crash_and_then_rests() {
    let mut rig = Rig::new(20, 1);
    for chunk in 0..20 {
        rig.submit(write(chunk, 0, 3, 5, false));
    }
    rig.settle();
    rig.cut();
    rig.reopen();
    assert!(rig.report.slots_suspect > 0);
    let unreadable = data_position(&mut Rig::new(20, 1), 3, 1) / 4096;
    rig.disk.unreadable.insert(unreadable);
    for _ in 0..1000 {
        rig.background();
        rig.settle();
    }
    assert_eq!(rig.store.stats().slots_suspect, 0);
    let calls = rig.disk.calls;
    rig.background();
    rig.settle();
    assert_eq!(rig.disk.calls, calls);
}

#[test]
pub(super) fn all_intents_of_a_volume_at_rest_close() {
    let mut rig = Rig::new(150, 1);
    for chunk in 0..150 {
        rig.submit(write(chunk, 0, 1, u64::from(chunk) + 1, false));
    }
    rig.settle();
    rig.done(StoreRequest::Flush);
    rig.store.settled(VOLUME, Token(1), Seq(150));
    for _ in 0..10 {
        rig.background();
        rig.settle();
    }
    assert_eq!(rig.store.stats().intents_open, 0);
    rig.done(StoreRequest::Flush);
    rig.cut();
    rig.reopen();
    assert_eq!((rig.report.intents_open, rig.report.slots_suspect), (0, 0));
}

#[test]
pub(super) fn one_write_after_the_other_opens_each_chunk_once() {
    // All is known everywhere after each write, as with a guest that sends one request at a time.
    let mut rig = Rig::new(8, 1);
    for seq in 1..100u64 {
        let chunk = u32::try_from(seq % 3).expect("small");
        rig.done(write(chunk, 0, 1, seq, false));
        rig.store.settled(VOLUME, Token(1), Seq(seq));
        let mut out = Vec::new();
        rig.store.background(&mut out);
        rig.perform(out);
        rig.settle();
        let expected = seq.min(3);
        assert_eq!(rig.store.stats().intents_open, expected, "after {seq}");
    }
}

#[test]
pub(super) fn the_limit_of_open_chunks_closes_what_it_can() {
    // Beside the slots that writes leave free.
    let mut rig = Rig::new(220, 1);
    let mut chunk = 0;
    while rig.store.stats().intents_open == u64::from(chunk) {
        match rig.call(write(chunk, 0, 1, 5, false)) {
            StoreReply::Done { .. } => chunk += 1,
            StoreReply::Failed { status, .. } => {
                assert_eq!(status, Status::Busy, "nothing can be closed");
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(chunk < 200, "there is a limit");
    }
    rig.store.settled(VOLUME, Token(1), Seq(5));
    for chunk in chunk..200 {
        assert_eq!(
            rig.done(write(chunk, 0, 1, 5, false)),
            1,
            "after a flush of its own"
        );
    }
    assert!(rig.store.stats().intents_open <= u64::from(chunk));
    rig.cut();
    rig.reopen();
    assert!(rig.report.intents_open > 0);
}

#[test]
pub(super) fn many_holes_take_no_slots_and_survive() {
    let mut rig = Rig::new(200, 1);
    for chunk in 0..150 {
        rig.store.settled(VOLUME, Token(1), Seq(5));
        rig.done(zero(chunk, 0, 256, 5, true));
    }
    rig.done(StoreRequest::Flush);
    rig.cut();
    rig.reopen();
    assert_eq!(rig.store.slots().0, 0);
    for chunk in 0..150 {
        assert_eq!(rig.done(write(chunk, 0, 1, 4, false)), 0, "chunk {chunk}");
    }
    rig.done(release(1, 10, 100));
    rig.settle();
    assert_eq!(rig.done(write(20, 0, 1, 4, true)), 1);
    rig.cut();
    rig.reopen();
    assert_eq!(
        rig.store
            .written_since(VOLUME, Generation(0), ChunkIndex(0), 1000)
            .0
            .len(),
        51
    );
}

#[test]
pub(super) fn a_discard_larger_than_the_node_neither_fails_nor_takes_slots() {
    let mut rig = Rig::new(4, 1);
    rig.done(write(0, 0, 1, 1, false));
    for chunk in 0..40 {
        rig.store.settled(VOLUME, Token(1), Seq(5));
        rig.done(zero(chunk, 0, 256, 5, true));
    }
    rig.done(StoreRequest::Flush);
    assert_eq!(rig.store.slots().0, 0);
    rig.done(write(39, 0, 1, 6, false));
    assert_eq!(rig.store.slots().0, 1);
}

#[test]
pub(super) fn discards_of_nothing_leave_holes_for_every_slot_to_be_given_back() {
    let mut rig = Rig::new(4, 1);
    for chunk in 0..4 {
        rig.done(write(chunk, 0, 1, 1, false));
    }
    for chunk in (4..60).chain(0..4) {
        rig.store.settled(VOLUME, Token(1), Seq(5));
        rig.done(zero(chunk, 0, 256, 5, true));
    }
    assert_eq!(rig.store.slots().0, 0);
}

#[test]
pub(super) fn malformed_requests_are_refused() {
    let mut rig = Rig::new(2, 1);
    let bad = Status::BadRequest;
    assert_eq!(rig.refused(StoreRequest::Read(range(0, 0, 0))), bad);
    assert_eq!(rig.refused(StoreRequest::Read(range(0, 255, 2))), bad);
    assert_eq!(rig.refused(StoreRequest::List(range(0, 0, u16::MAX))), bad);
    assert_eq!(rig.refused(write(0, 250, 10, 1, false)), bad);
    assert_eq!(
        rig.refused(write_as(0, 0, 1, version(0, 0), 1, false)),
        bad,
        "never written"
    );
    let mut short = write(0, 0, 2, 1, false);
    if let StoreRequest::Write { crcs, .. } = &mut short {
        crcs.pop();
    }
    assert_eq!(rig.refused(short), bad);
    let no_data = StoreRequest::Put {
        range: range(0, 0, 1),
        states: vec![SectorState {
            version: version(1, 1),
            crc: 1,
            flags: 0,
        }],
        data: None,
        generation: Generation(1),
        admit: PutRule::Newer,
    };
    assert_eq!(rig.refused(no_data), bad);
}

#[test]
pub(super) fn rot_is_found_refused_and_repaired_by_a_copy_of_any_version() {
    let mut rig = Rig::new(2, 1);
    rig.done(write(0, 0, 4, 5, false));
    rig.done(StoreRequest::Flush);
    rig.store.settled(VOLUME, Token(1), Seq(5));
    rig.close();
    rig.reopen();
    let first_slot = rig.disk.volatile_sectors();
    assert!(first_slot.is_empty());
    let position = data_position(&mut rig, 0, 2);
    rig.disk.rot(position);
    match rig.call(StoreRequest::Read(range(0, 0, 4))) {
        StoreReply::Failed {
            status: Status::BadCrc,
            sector,
        } => assert_eq!(sector, SectorInChunk(2)),
        other => panic!("{other:?}"),
    }
    let states = list(&mut rig, 0, 0, 4);
    assert_eq!(
        states.iter().map(|s| s.flags).collect::<Vec<_>>(),
        [0, 0, SectorState::BAD, 0]
    );
    match rig.call(StoreRequest::ReadVersioned(range(0, 0, 4))) {
        StoreReply::ReadVersioned { states, .. } => assert_eq!(states[2].flags, SectorState::BAD),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.read(0, 0, 2), [5, 5], "the others are fine");
    rig.cut();
    rig.reopen();
    let data = content(5, 1);
    let crc = ukai_proto::crc::crc32c(&data);
    let copy = StoreRequest::Put {
        range: range(0, 2, 1),
        states: vec![SectorState {
            version: version(1, 5),
            crc,
            flags: 0,
        }],
        data: Some(data),
        generation: Generation(1),
        admit: PutRule::Newer,
    };
    let _ = rig.call(StoreRequest::Read(range(0, 2, 1)));
    assert_eq!(rig.done(copy), 1);
    assert_eq!(rig.read(0, 0, 4), [5; 4]);
    rig.disk
        .unreadable
        .insert(data_position(&mut Rig::new(2, 1), 0, 1) / 4096);
    assert_eq!(
        rig.refused(StoreRequest::Read(range(0, 0, 4))),
        Status::IoError
    );
    rig.disk.heal();
    assert_eq!(
        rig.refused(StoreRequest::Read(range(0, 1, 1))),
        Status::BadCrc,
        "remembered"
    );
    assert_eq!(
        rig.done(write(0, 1, 1, 5, false)),
        1,
        "sending the write again heals"
    );
    assert_eq!(rig.read(0, 0, 4), [5; 4]);
}

/// Where a sector of the first slots lies: slots are handed out in ascending order.
pub(super) fn data_position(rig: &mut Rig, slot: u32, sector: u64) -> u64 {
    let geometry = crate::disk::layout::Geometry::fit(rig.place.start, rig.place.bytes, LOG_BLOCKS);
    let slot = crate::disk::layout::SlotIndex(slot);
    geometry.expect("fits").slot_position(slot) + sector * 4096
}

#[test]
fn a_write_that_waits_for_an_intent_gets_one_though_the_others_are_written_again() {
    let mut rig = Rig::new(8, 1);
    rig.store.bounds.intents = 2;
    for seq in 1..3 {
        for chunk in 0..2 {
            rig.done(write(chunk, 0, 1, seq, false));
        }
    }
    rig.store.settled(VOLUME, Token(1), Seq(2));
    let third = rig.submit(write(2, 0, 1, 4, false));
    rig.turn();
    let sync =
        |rig: &Rig| (0..rig.disk.pending()).find(|at| rig.disk.pending_kind(*at) == OpKind::Sync);
    assert!(sync(&rig).is_some(), "it waits for a flush");
    for chunk in 0..2 {
        rig.submit(write(chunk, 0, 1, 3, false));
    }
    rig.turn();
    while let Some(other) =
        (0..rig.disk.pending()).find(|at| rig.disk.pending_kind(*at) != OpKind::Sync)
    {
        rig.complete(other);
        rig.turn();
    }
    rig.store.settled(VOLUME, Token(1), Seq(3));
    rig.settle();
    assert!(matches!(
        rig.replies.get(&third),
        Some(StoreReply::Done { .. })
    ));
}

#[test]
fn a_lack_of_intents_makes_settling_urgent_under_load() {
    let mut rig = Rig::new(8, 1);
    for chunk in 0..6 {
        rig.submit(write(chunk, 0, 1, 1, false));
    }
    rig.settle();
    rig.cut();
    rig.reopen();
    rig.store.bounds.intents = 8;
    let suspect = rig.store.stats().slots_suspect;
    assert!(suspect > 0);
    // A read that does not end.
    rig.done(write_as(7, 0, 1, version(2, 1), 1, false));
    rig.submit(StoreRequest::Read(range(7, 0, 1)));
    for _ in 0..100 {
        rig.background();
        rig.turn();
        while rig.disk.pending() > 1 {
            rig.complete(1);
            rig.turn();
        }
    }
    assert_eq!(rig.store.stats().slots_suspect, 0);
}
