//! PULL between two shards.

use super::requests::release;
use super::*;
use crate::core::{COPY_STALL_NS, PEER_IDLE_NS, PULLS_MAX};
use proptest::prelude::*;
use ukai_proto::message::{Pull, PullMode, Pulled, SectorState};

pub(super) fn order(mode: PullMode, ceiling: u64) -> Vec<u8> {
    Pull {
        source: NodeId([2; 16]),
        source_boot: BootId([2; 16]),
        source_shard_count: 1,
        mode,
        ceiling: Version::new(Token(1), Seq(ceiling)),
        addresses: vec!["tcp:source".into()],
    }
    .encode()
}

pub(super) fn fenced() -> Pair {
    let mut pair = Pair::new();
    pair.target.fence(1, 1);
    pair.source.fence(1, 1);
    pair
}

pub(super) fn pull_header(sector: u16, count: u16) -> Header {
    Header {
        generation: Generation(1),
        ..ranged(Opcode::Pull, 1, sector, count)
    }
}

fn finish(pair: &mut Pair, tag: u64) -> (Status, Pulled) {
    pair.pump();
    let reply = pair.target.reply(tag).expect("the order is answered");
    let pulled = Pulled::decode(&reply.aux).unwrap_or_default();
    (reply.header.status, pulled)
}

fn pull(pair: &mut Pair, mode: PullMode, ceiling: u64) -> (Status, Pulled) {
    pull_first(pair, 4096, mode, ceiling)
}

fn pull_first(pair: &mut Pair, count: u16, mode: PullMode, ceiling: u64) -> (Status, Pulled) {
    let header = pull_header(0, count);
    let tag = pair.target.send(header, order(mode, ceiling), None);
    finish(pair, tag)
}

#[test]
fn what_differs_is_copied_and_nothing_else() {
    let mut pair = fenced();
    for sector in 0..2000 {
        pair.source.core.store.plant(sector, 1, 5, 1, 0);
        pair.target.core.store.plant(sector, 1, 5, 1, 0);
    }
    for sector in [0, 100, 255, 256, 257, 1999, 4095] {
        pair.source.core.store.plant(sector, 1, 9, sector as u8, 0);
    }
    let (status, pulled) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(status, Status::Ok);
    assert_eq!(
        (
            pulled.sectors_compared,
            pulled.sectors_copied,
            pulled.sectors_bad
        ),
        (4096, 7, 0)
    );
    assert_eq!(
        pair.target.core.store.sectors,
        pair.source.core.store.sectors
    );
    // Once more: equal, nothing moves; the connection is the same.
    let (_, again) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(again.sectors_copied, 0);
    assert_eq!(pair.peers.len(), 1);
}

#[test]
fn zeros_travel_without_payload() {
    let mut pair = fenced();
    for sector in 0..300 {
        pair.target.core.store.plant(sector, 1, 1, 1, 0);
    }
    let zero = Header {
        generation: Generation(1),
        seq: Seq(7),
        ..ranged(Opcode::Zero, 1, 0, 256)
    };
    let reply = pair.source.ask(zero, vec![0; 64], None);
    assert_eq!(reply.header.status, Status::Ok);
    pair.tamper = |frame| {
        assert!(!frame.header.flags.has(Flags::DATA), "payload for zeros");
        true
    };
    let (status, pulled) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!((status, pulled.sectors_copied), (Status::Ok, 256));
    assert_eq!(pair.target.core.store.state(3).version.seq, Seq(7));
    assert_eq!(pair.target.core.store.state(299).version.seq, Seq(1));
}

#[test]
fn mirror_undoes_what_was_never_acknowledged_but_not_new_writes() {
    let mut pair = fenced();
    pair.source.core.store.plant(0, 1, 3, 1, 0);
    pair.target.core.store.plant(0, 1, 4, 2, 0); // newer, below the ceiling
    pair.source.core.store.plant(1, 1, 3, 1, 0);
    pair.target.core.store.plant(1, 1, 20, 2, 0); // written since the join began
    pair.target.core.store.plant(2, 1, 4, 2, 0); // never written at the source
    let (status, pulled) = pull(&mut pair, PullMode::Mirror, 10);
    assert_eq!((status, pulled.sectors_copied), (Status::Ok, 2));
    let target = &pair.target.core.store;
    assert_eq!(target.state(0).version.seq, Seq(3));
    assert_eq!(target.state(1).version.seq, Seq(20));
    assert_eq!(target.state(2), SectorState::UNWRITTEN);
}

#[test]
fn bad_sectors_are_not_copied_but_counted_and_their_neighbours_are_copied() {
    let mut pair = fenced();
    for sector in 0..10 {
        pair.source.core.store.plant(sector, 1, 2, 1, 0);
    }
    pair.source.core.store.plant(4, 1, 2, 1, SectorState::BAD);
    let (status, pulled) = pull(&mut pair, PullMode::Mirror, 10);
    assert_eq!(status, Status::Ok);
    assert_eq!((pulled.sectors_copied, pulled.sectors_bad), (9, 1));
    assert_eq!(pair.target.core.store.state(4), SectorState::UNWRITTEN);
}

#[test]
fn what_is_bad_at_the_source_becomes_bad_here_if_that_is_asked_for() {
    let mut pair = fenced();
    for sector in 0..10 {
        pair.source.core.store.plant(sector, 1, 2, 1, 0);
    }
    pair.source.core.store.plant(4, 1, 2, 1, SectorState::BAD);
    let doubted = SectorState::ADOPTED | SectorState::BAD | SectorState::DOUBTED;
    pair.source.core.store.plant(7, 1, 2, 1, doubted);
    let (status, pulled) = pull(&mut pair, PullMode::MirrorBad, 10);
    assert_eq!(status, Status::Ok);
    assert_eq!((pulled.sectors_copied, pulled.sectors_bad), (9, 1));
    assert_eq!(
        pair.target.core.store.state(4),
        pair.source.core.store.state(4)
    );
    assert_eq!(
        pair.target.core.store.state(7),
        SectorState::UNWRITTEN,
        "what is only doubted may turn out to be good"
    );
    pair.source.core.store.plant(7, 1, 2, 1, 0);
    let (_, pulled) = pull(&mut pair, PullMode::MirrorBad, 10);
    assert_eq!((pulled.sectors_copied, pulled.sectors_bad), (1, 0));
    let (_, pulled) = pull(&mut pair, PullMode::MirrorBad, 10);
    assert_eq!((pulled.sectors_copied, pulled.sectors_bad), (0, 0), "equal");
}

#[test]
fn a_sector_found_bad_while_reading_is_read_around() {
    let mut pair = fenced();
    for sector in 0..10 {
        pair.source.core.store.plant(sector, 1, 2, 1, 0);
    }
    // LIST said good, READ_VERSIONED says bad.
    pair.tamper = |frame| {
        let header = frame.header;
        let covers = header.sector.0 <= 4 && 4 < header.sector.0 + header.count;
        if header.opcode == Opcode::ReadVersioned && covers {
            let (prefix, states) =
                message::read_sector_states(&frame.aux, header.count).expect("states");
            let states: Vec<_> = (header.sector.0..)
                .zip(states)
                .map(|(at, mut state)| {
                    state.flags |= if at == 4 { SectorState::BAD } else { 0 };
                    state
                })
                .collect();
            let aux = message::sector_states(prefix, states.into_iter());
            *frame = Frame::new(header, aux, frame.data.take());
        }
        true
    };
    let (status, pulled) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(status, Status::Ok);
    assert_eq!((pulled.sectors_copied, pulled.sectors_bad), (9, 1));
}

#[test]
fn a_payload_that_does_not_verify_fails_the_order() {
    let mut pair = fenced();
    pair.source.core.store.plant(0, 1, 2, 1, 0);
    pair.tamper = |frame| {
        if let Some(data) = &mut frame.data {
            data[77] ^= 1;
        }
        true
    };
    let (status, _) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(status, Status::PeerFailed);
    assert!(pair.target.core.store.sectors.is_empty());
}

#[test]
fn an_unreachable_source_fails_the_order_and_the_next_tries_anew() {
    let mut pair = fenced();
    let body = order(PullMode::Newer, 0);
    let tag = pair.target.send(pull_header(0, 16), body.clone(), None);
    let peer = pair.target.connects()[0];
    pair.target.event(ShardEvent::PeerClosed { peer });
    let status = pair.target.reply(tag).expect("failed").header.status;
    assert_eq!(status, Status::PeerFailed);
    pair.target.send(pull_header(0, 16), body, None);
    assert_eq!(pair.target.connects().len(), 2);
}

#[test]
fn a_source_that_is_somebody_else_is_not_copied_from() {
    let mut pair = fenced();
    pair.source = Node::new(3);
    let (status, _) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(status, Status::PeerFailed);
}

#[test]
fn a_source_that_is_not_fenced_for_the_token_fails_the_order() {
    let mut pair = Pair::new();
    pair.target.fence(1, 1);
    let (status, _) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(status, Status::PeerFailed);
}

#[test]
fn a_silent_source_is_given_up() {
    let mut pair = fenced();
    pair.tamper = |frame| frame.header.opcode == Opcode::Hello;
    let body = order(PullMode::Newer, 0);
    let tag = pair.target.send(pull_header(0, 16), body, None);
    pair.pump();
    assert!(pair.target.reply(tag).is_none());
    pair.target.now += COPY_STALL_NS;
    pair.target.event(ShardEvent::Tick);
    let status = pair.target.reply(tag).expect("given up").header.status;
    assert_eq!(status, Status::PeerFailed);
    pair.pump();
    assert!(pair.peers.is_empty(), "the connection is closed");
}

#[test]
fn a_connection_made_too_late_is_closed() {
    let mut pair = fenced();
    let body = order(PullMode::Newer, 0);
    pair.target.send(pull_header(0, 16), body, None);
    let peer = pair.target.connects()[0];
    pair.target.now += COPY_STALL_NS;
    pair.target.event(ShardEvent::Tick);
    pair.target.out.clear();
    pair.target.event(ShardEvent::PeerOpened { peer });
    assert!(matches!(
        pair.target.out[..],
        [ShardAction::PeerClose { peer: closed }] if closed == peer
    ));
}

#[test]
fn an_idle_connection_is_closed() {
    let mut pair = fenced();
    pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(pair.peers.len(), 1);
    pair.target.now += PEER_IDLE_NS;
    pair.target.event(ShardEvent::Tick);
    pair.pump();
    assert!(pair.peers.is_empty());
}

#[test]
fn a_fence_stops_the_copies_of_the_former_front() {
    let mut pair = fenced();
    let body = order(PullMode::Newer, 0);
    let tag = pair.target.send(pull_header(0, 16), body, None);
    assert_eq!(pair.target.fence(2, 2), Status::Ok);
    let status = pair.target.reply(tag).expect("stopped").header.status;
    assert_eq!(status, Status::StaleToken);
}

#[test]
fn a_map_that_moved_on_stops_the_copy_before_it_stores() {
    let mut pair = fenced();
    pair.source.core.store.plant(0, 1, 2, 1, 0);
    let body = order(PullMode::Newer, 0);
    let tag = pair.target.send(pull_header(0, 16), body, None);
    let adopt = Header {
        token: Token(1),
        generation: Generation(2),
        ..on(Opcode::Adopt)
    };
    assert_eq!(pair.target.status(adopt), Status::Ok);
    let (status, _) = finish(&mut pair, tag);
    assert_eq!(status, Status::StaleMap);
    assert!(pair.target.core.store.sectors.is_empty());
}

#[test]
fn a_full_target_says_so() {
    let mut pair = fenced();
    pair.source.core.store.plant(0, 1, 2, 1, 0);
    pair.target.core.store.fail_puts = Some(Status::NoSpace);
    let (status, _) = pull(&mut pair, PullMode::Newer, 0);
    assert_eq!(status, Status::NoSpace);
}

#[test]
fn orders_are_bounded_and_bad_ones_refused() {
    let mut pair = fenced();
    let body = order(PullMode::Newer, 0);
    for _ in 0..PULLS_MAX {
        pair.target.send(pull_header(0, 1), body.clone(), None);
    }
    let reply = pair.target.ask(pull_header(0, 1), body, None);
    assert_eq!(reply.header.status, Status::Busy);
    pair.pump();
    assert_eq!(pair.target.replies.len(), PULLS_MAX);
    let own = Pull {
        source: NodeId([1; 16]),
        source_boot: BootId([1; 16]),
        source_shard_count: 1,
        mode: PullMode::Newer,
        ceiling: Version::ZERO,
        addresses: vec!["tcp:me".into()],
    };
    let reply = pair.target.ask(pull_header(0, 1), own.encode(), None);
    assert_eq!(reply.header.status, Status::BadRequest);
}

#[test]
fn a_source_that_rebooted_is_not_copied_from() {
    let mut pair = fenced();
    pair.target.core.store.plant(0, 1, 5, 1, 0);
    // What the source had was lost with its power; the front does not know yet.
    let mut pull = Pull::decode(&order(PullMode::Mirror, 10)).expect("an order");
    pull.source_boot = BootId([7; 16]);
    let tag = pair.target.send(pull_header(0, 1), pull.encode(), None);
    let (status, _) = finish(&mut pair, tag);
    assert_eq!(status, Status::PeerFailed);
    assert_eq!(pair.target.core.store.state(0).version.seq, Seq(5));
}

#[test]
fn a_write_during_the_copy_wins() {
    let mut pair = fenced();
    pair.source.core.store.plant(0, 1, 2, 1, 0);
    let body = order(PullMode::Mirror, 10);
    let tag = pair.target.send(pull_header(0, 1), body, None);
    // The front writes to both while the copy is under way.
    for node in [&mut pair.target, &mut pair.source] {
        let header = Header {
            generation: Generation(1),
            ..write_header(1, 11, 0, 1)
        };
        let data = content(&[9]);
        let aux = crc_table(0, crc::sector_crcs(&data));
        assert_eq!(node.ask(header, aux, Some(data)).header.status, Status::Ok);
    }
    let (status, _) = finish(&mut pair, tag);
    assert_eq!(status, Status::Ok);
    assert_eq!(pair.target.core.store.state(0).version.seq, Seq(11));
}

#[test]
fn a_repair_heals_a_bad_sector_and_leaves_a_newer_write_alone() {
    let mut pair = fenced();
    for sector in 0..4 {
        pair.source.core.store.plant(sector, 1, 5, 1, 0);
        pair.target.core.store.plant(sector, 1, 5, 1, 0);
    }
    pair.target.core.store.plant(1, 1, 5, 7, SectorState::BAD);
    // A write that went bad here before the source has got it.
    pair.target.core.store.plant(2, 1, 6, 7, SectorState::BAD);
    let (status, pulled) = pull(&mut pair, PullMode::Repair, 0);
    assert_eq!(status, Status::Ok);
    assert_eq!((pulled.sectors_copied, pulled.sectors_bad), (1, 1));
    let target = &mut pair.target.core.store;
    assert!(target.state(1).same(&pair.source.core.store.state(1)));
    assert_eq!(target.state(2).version.seq, Seq(6));

    // The guest overwrites the bad sector while its repair is under way.
    target.plant(3, 1, 5, 7, SectorState::BAD);
    let body = order(PullMode::Repair, 0);
    let tag = pair.target.send(pull_header(3, 1), body, None);
    let header = Header {
        generation: Generation(1),
        ..write_header(1, 11, 3, 1)
    };
    let data = content(&[9]);
    let aux = crc_table(0, crc::sector_crcs(&data));
    let reply = pair.target.ask(header, aux, Some(data));
    assert_eq!(reply.header.status, Status::Ok);
    let (status, pulled) = finish(&mut pair, tag);
    assert_eq!((status, pulled.sectors_copied), (Status::Ok, 0));
    assert_eq!(pair.target.core.store.state(3).version.seq, Seq(11));
    assert_eq!(pair.target.core.store.state(3).flags, 0);
}

/// What a node doubts is bad for a repair and for a mirror; a reconcile sees what it is.
#[test]
fn doubted_content_is_reconciled_and_not_copied_otherwise() {
    let doubted = SectorState::ADOPTED | SectorState::BAD | SectorState::DOUBTED;
    let mut pair = fenced();
    pair.source.core.store.plant(0, 1, 5, 7, doubted);
    pair.target.core.store.plant(0, 1, 4, 1, 0);
    for mode in [PullMode::Repair, PullMode::Mirror] {
        let (status, pulled) = pull_first(&mut pair, 1, mode, 9);
        assert_eq!((status, pulled.sectors_copied), (Status::Ok, 0));
    }
    let (status, pulled) = pull_first(&mut pair, 1, PullMode::Newer, 0);
    assert_eq!((status, pulled.sectors_copied), (Status::Ok, 1));
    let state = pair.target.core.store.state(0);
    assert_eq!(
        (state.version.seq, state.flags),
        (Seq(5), SectorState::ADOPTED)
    );
}

/// Content that was adopted once and is no more in doubt passes for logged, where it is copied.
#[test]
fn a_mirror_of_adopted_content_is_certain() {
    let mut pair = fenced();
    pair.source
        .core
        .store
        .plant(0, 1, 5, 7, SectorState::ADOPTED);
    let (status, pulled) = pull_first(&mut pair, 1, PullMode::Mirror, 9);
    assert_eq!((status, pulled.sectors_copied), (Status::Ok, 1));
    assert_eq!(pair.target.core.store.state(0).flags, 0);
}

#[test]
fn a_stop_ends_copies_and_peers() {
    let mut pair = fenced();
    let body = order(PullMode::Newer, 0);
    let tag = pair.target.send(pull_header(0, 16), body, None);
    pair.target.core.store.hold = true;
    pair.target.event(ShardEvent::Stop);
    let status = pair.target.reply(tag).expect("ended").header.status;
    assert_eq!(status, Status::Stopping);
    let closed = pair.target.out.iter();
    let closed = closed.filter(|action| matches!(action, ShardAction::PeerClose { .. }));
    assert_eq!(closed.count(), 1);
    release(&mut pair.target);
    let last = pair.target.out.last();
    assert!(matches!(last, Some(ShardAction::Stopped { clean: true })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Reconcile: pulled both ways, both nodes hold the same, and the newest of both.
    #[test]
    fn newer_both_ways_converges(
        sectors in prop::collection::vec(
            ((1u64..4, 1u8..4, any::<bool>()), (1u64..4, 1u8..4, any::<bool>())), 1..300),
    ) {
        let count = sectors.len() as u16;
        let mut pair = fenced();
        for (sector, (a, b)) in sectors.iter().enumerate() {
            for (node, (seq, fill, adopted)) in [(&mut pair.target, a), (&mut pair.source, b)] {
                // Content of a version differs only where it was adopted.
                let (fill, flags) =
                    if *adopted { (*fill, SectorState::ADOPTED) } else { (*seq as u8 + 10, 0) };
                node.core.store.plant(sector as u16, 1, *seq, fill, flags);
            }
        }
        let before: Vec<_> = (0..count)
            .map(|s| pair.target.core.store.state(s).version
                .max(pair.source.core.store.state(s).version))
            .collect();
        let (status, _) = pull_first(&mut pair, count, PullMode::Newer, 0);
        prop_assert_eq!(status, Status::Ok);
        std::mem::swap(&mut pair.target.core.store, &mut pair.source.core.store);
        let (status, _) = pull_first(&mut pair, count, PullMode::Newer, 0);
        prop_assert_eq!(status, Status::Ok);
        for (sector, newest) in before.iter().enumerate() {
            let (a, b) = (pair.target.core.store.state(sector as u16),
                pair.source.core.store.state(sector as u16));
            prop_assert!(a.same(&b), "{}: {:?} {:?}", sector, a, b);
            prop_assert_eq!(a.version, *newest);
        }
    }
}
