//! Scripted scenarios of one lane.
#![allow(clippy::cast_possible_truncation)] // small numbers of a test

use super::api::*;
use super::config::{LaneConfig, READ_LEASE};
use super::fixture::*;
use super::lane::{READ_ROUNDS_MAX, WRITE_RETRIES_MAX};
use super::stats::NodeStats;
use super::{LaneCore, LaneLimits, SharedSeq};
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::latency::SMALL_SECTORS_MAX;
use ukai_meta::transition;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::{SECTOR_BYTES, SEQ_MAX};
use ukai_proto::message::{append_seqs, crc_table};
use ukai_proto::{ChunkIndex, Flags, Header, NodeId, Opcode, Seq, Status};

fn prepared(epoch: u64, behind: &[NodeId]) -> LaneReport {
    let behind = behind.to_vec();
    LaneReport::Prepared { epoch, behind }
}

pub(super) struct Bench {
    pub(super) lane: LaneCore,
    pub(super) config: Arc<LaneConfig>,
    pub(super) out: Vec<LaneAction>,
    pub(super) now: Now,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_seq(Arc::new(SharedSeq::default()))
    }

    pub(super) fn with_seq(seq: Arc<SharedSeq>) -> Self {
        let config = config(attached());
        let mut bench = Self {
            lane: LaneCore::new(LaneId(0), seq, LaneLimits::default()),
            config: Arc::clone(&config),
            out: Vec::new(),
            now: Now(1),
        };
        bench.up(PEER_A, 1);
        bench.up(PEER_B, 1);
        bench.order(LaneOrder::Install { epoch: 1, config });
        bench.out.clear();
        bench
    }

    pub(super) fn up(&mut self, peer: PeerIndex, start: u64) {
        self.lane.peer_up(self.now, peer, run(start), &mut self.out);
    }

    pub(super) fn down(&mut self, peer: PeerIndex) {
        self.lane.peer_down(self.now, peer, &mut self.out);
    }

    pub(super) fn tick(&mut self) {
        self.lane.tick(self.now, &mut self.out);
    }

    pub(super) fn order(&mut self, order: LaneOrder) {
        self.lane.order(self.now, order, &mut self.out);
    }

    pub(super) fn guest(&mut self, tag: u32, op: GuestOp, sector: u64, count: u32) {
        let io = GuestIo {
            tag: GuestTag(tag),
            op,
            sector,
            count,
        };
        let data = match op {
            GuestOp::Write { .. } => vec![tag as u8; count as usize * SECTOR_BYTES],
            _ => Vec::new(),
        };
        self.lane.guest(self.now, io, &data, &mut self.out);
    }

    pub(super) fn write(&mut self, tag: u32, sector: u64) {
        self.guest(tag, GuestOp::Write { fua: false }, sector, 1);
    }

    /// Frames to send since the last call.
    pub(super) fn sent(&mut self) -> Vec<(PeerIndex, Header)> {
        let taken = std::mem::take(&mut self.out);
        let (sent, rest): (Vec<_>, Vec<_>) = taken
            .into_iter()
            .partition(|action| matches!(action, LaneAction::Send { .. }));
        self.out = rest;
        sent.into_iter()
            .map(|action| match action {
                LaneAction::Send { peer, header, .. } => (peer, header),
                other => unreachable!("{other:?}"),
            })
            .collect()
    }

    pub(super) fn answer(&mut self, (peer, header): &(PeerIndex, Header), status: Status) {
        let reply = header.reply(status);
        self.lane
            .peer_frame(self.now, *peer, &reply, &[], &[], &mut self.out);
    }

    pub(super) fn answer_read(&mut self, sent: &(PeerIndex, Header), data: &[u8], crc: u32) {
        self.answer_read_of(sent, data, crc, Seq(0));
    }

    /// With the highest sequence number that the sectors have.
    pub(super) fn answer_read_of(
        &mut self,
        (peer, header): &(PeerIndex, Header),
        data: &[u8],
        crc: u32,
        seq: Seq,
    ) {
        let mut reply = header.reply(Status::Ok);
        reply.seq = seq;
        reply.flags = reply.flags.with(Flags::DATA);
        assert!(self.lane.read_target(*peer, &reply).is_some());
        let aux = crc_table(0, std::iter::once(crc));
        self.lane
            .peer_frame(self.now, *peer, &reply, &aux, data, &mut self.out);
    }

    pub(super) fn completed(&mut self) -> Vec<(u32, Result<(), GuestError>)> {
        let mut done = Vec::new();
        self.out.retain(|action| match action {
            LaneAction::Complete { tag, result } => {
                done.push((tag.0, *result));
                false
            }
            _ => true,
        });
        done
    }

    pub(super) fn reports(&mut self) -> Vec<LaneReport> {
        let mut reports = Vec::new();
        self.out.retain(|action| match action {
            LaneAction::Report(report) => {
                reports.push(report.clone());
                false
            }
            _ => true,
        });
        reports
    }
}

#[test]
fn a_write_is_answered_when_every_in_sync_replica_has_it() {
    let mut bench = Bench::new();
    bench.write(3, 9);
    let sent = bench.sent();
    assert_eq!(
        sent.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(),
        [PEER_A, PEER_B]
    );
    assert!(
        sent.iter()
            .all(|(_, h)| h.opcode == Opcode::Write && h.seq.0 == 1 && h.sector.0 == 9)
    );
    bench.answer(&sent[0], Status::Ok);
    assert_eq!(bench.completed(), [], "one replica lacks it (I1)");
    bench.answer(&sent[1], Status::Ok);
    assert_eq!(bench.completed(), [(3, Ok(()))]);
}

#[test]
fn a_lost_node_holds_acks_until_a_configuration_without_it() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::Ok);
    bench.down(PEER_B);
    bench.order(LaneOrder::Prepare {
        epoch: 2,
        lost: vec![],
    });
    assert!(
        !bench.reports().contains(&prepared(2, &[B])),
        "B is waited for"
    );
    bench.order(LaneOrder::Prepare {
        epoch: 2,
        lost: vec![B],
    });
    assert!(bench.reports().contains(&prepared(2, &[B])));
    bench.write(1, 1);
    assert_eq!(
        (bench.sent().len(), bench.completed()),
        (0, vec![]),
        "held behind the barrier"
    );
    let stale = committed(transition::mark_stale(&attached(), &[B]).unwrap());
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: config(stale),
    });
    assert_eq!(bench.completed(), [(0, Ok(()))]);
    let sent = bench.sent();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((sent[0].0, sent[0].1.seq.0), (PEER_A, 2));
}

#[test]
fn a_connection_restored_with_the_same_run_gets_the_same_version_again() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let first = bench.sent();
    bench.answer(&first[0], Status::Ok);
    bench.down(PEER_B);
    bench.up(PEER_B, 1);
    let again = bench.sent();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].1.version(), first[1].1.version());
    bench.answer(&again[0], Status::Ok);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn another_run_of_a_node_gets_nothing() {
    let mut bench = Bench::new();
    bench.down(PEER_B);
    bench.up(PEER_B, 2);
    bench.write(0, 0);
    assert_eq!(
        bench.sent().len(),
        1,
        "B may have lost writes: control decides"
    );
}

#[test]
fn a_damaged_read_is_served_by_the_other_replica_and_reported() {
    let mut bench = Bench::new();
    bench.guest(0, GuestOp::Read, 5, 1);
    let first = bench.sent();
    assert_eq!(first[0].0, PEER_A, "the preferred one");
    let data = vec![9u8; SECTOR_BYTES];
    bench.answer_read(&first[0], &data, crc32c(&data) ^ 1);
    assert!(matches!(
        bench.reports()[..],
        [LaneReport::BadSector { node: A, .. }]
    ));
    let second = bench.sent();
    assert_eq!(second[0].0, PEER_B);
    let mut late = first[0].1.reply(Status::Ok);
    late.flags = late.flags.with(Flags::DATA);
    assert_eq!(
        bench.lane.read_target(PEER_A, &late),
        None,
        "a late reply must not touch the buffer"
    );
    let mut foreign = second[0].1.reply(Status::Ok);
    foreign.flags = foreign.flags.with(Flags::DATA);
    assert_eq!(
        bench.lane.read_target(PEER_A, &foreign),
        None,
        "nor one from a node that was not asked"
    );
    bench.answer_read(&second[0], &data, crc32c(&data));
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn both_replicas_bad_is_an_error_not_zeros() {
    let mut bench = Bench::new();
    bench.guest(0, GuestOp::Read, 5, 1);
    for round in 0.. {
        for peer in [PEER_A, PEER_B] {
            let sent = bench.sent();
            assert_eq!(sent[0].0, peer);
            bench.answer(&sent[0], Status::BadCrc);
        }
        if round == READ_ROUNDS_MAX {
            break;
        }
        assert_eq!(bench.completed(), [], "one may be repaired meanwhile");
        assert!(bench.sent().is_empty());
        bench.tick();
    }
    assert_eq!(bench.completed(), [(0, Err(GuestError::Io))]);
}

/// Simulation seed 15566: one replica was being repaired when the other one failed in passing.
#[test]
fn a_read_that_no_replica_could_serve_is_tried_again() {
    let mut bench = Bench::new();
    bench.guest(0, GuestOp::Read, 5, 1);
    for status in [Status::BadCrc, Status::IoError] {
        let sent = bench.sent();
        bench.answer(&sent[0], status);
    }
    let repairs = bench.reports();
    let bad = |report: &LaneReport| matches!(report, LaneReport::BadSector { .. });
    assert!(repairs.len() == 2 && repairs.iter().all(bad));
    bench.tick();
    let sent = bench.sent();
    let data = vec![9u8; SECTOR_BYTES];
    bench.answer_read(&sent[0], &data, crc32c(&data));
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn a_bad_sector_of_the_only_replica_is_an_error_at_once() {
    let mut bench = Bench::new();
    let alone = committed(transition::mark_stale(&attached(), &[B]).unwrap());
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: config(alone),
    });
    bench.guest(0, GuestOp::Read, 5, 1);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::BadCrc);
    assert_eq!(bench.completed(), [(0, Err(GuestError::Io))]);
}

/// A node says so of content that it adopted after the death of its process.
#[test]
fn a_read_that_only_doubted_content_could_serve_asks_for_a_reconcile() {
    let mut bench = Bench::new();
    let alone = committed(transition::mark_stale(&attached(), &[B]).unwrap());
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: config(alone),
    });
    bench.guest(0, GuestOp::Read, 5, 1);
    let doubted = |report: &LaneReport| matches!(report, LaneReport::Doubted { .. });
    for round in 0..=READ_ROUNDS_MAX {
        assert!(!bench.reports().iter().any(doubted), "round {round}");
        let sent = bench.sent();
        let mut header = sent[0].1.reply(Status::BadCrc);
        header.seq = Seq(SEQ_MAX);
        let out = &mut bench.out;
        bench
            .lane
            .peer_frame(bench.now, sent[0].0, &header, &[], &[], out);
        assert_eq!(bench.completed(), [], "its write may be sent again yet");
        if round < READ_ROUNDS_MAX {
            bench.tick();
        }
    }
    assert!(bench.reports().iter().any(doubted));
    bench.tick();
    let sent = bench.sent();
    let data = vec![9u8; SECTOR_BYTES];
    bench.answer_read(&sent[0], &data, crc32c(&data));
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

/// Simulation seed 6462: the devices of both replicas failed the same write once.
#[test]
fn a_write_that_every_device_failed_is_sent_again() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let first = bench.sent();
    first
        .iter()
        .for_each(|sent| bench.answer(sent, Status::IoError));
    let second = bench.sent();
    assert_eq!(second.len(), 2);
    assert_eq!(second[0].1.seq, first[0].1.seq, "the same version heals");
    bench.answer(&second[0], Status::Ok);
    bench.answer(&second[1], Status::Poisoned);
    assert_eq!(bench.completed(), [], "held until B is judged");
    let reports = bench.reports();
    let judged = LaneReport::ReplicaFailed {
        node: B,
        status: Status::Poisoned,
    };
    assert_eq!(reports.last(), Some(&judged));

    bench.write(1, 1);
    for _ in 0..=WRITE_RETRIES_MAX {
        let sent = bench.sent();
        sent.iter()
            .for_each(|sent| bench.answer(sent, Status::IoError));
    }
    assert_eq!(bench.completed(), [(1, Err(GuestError::Io))]);
}

/// What the last replica failed once it is asked again, what it fails for good is an error.
#[test]
fn a_write_that_the_last_replica_failed_in_passing_is_sent_again() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::Ok);
    bench.answer(&sent[1], Status::IoError);
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: helpless(attached(), B),
    });
    let again = bench.sent();
    assert_eq!((again.len(), again[0].0), (1, PEER_B));
    bench.answer(&again[0], Status::Ok);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn a_zombie_fails_everything_at_once_and_for_ever() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    bench.write(1, 1);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::StaleToken);
    let mut done = bench.completed();
    done.sort_by_key(|(tag, _)| *tag);
    assert_eq!(
        done,
        [(0, Err(GuestError::Fenced)), (1, Err(GuestError::Fenced))]
    );
    assert_eq!(bench.reports(), [LaneReport::Fenced]);
    bench.write(2, 2);
    assert_eq!(bench.completed(), [(2, Err(GuestError::Fenced))]);
}

#[test]
fn a_full_replica_is_reported_and_full_replicas_are_enospc() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::Ok);
    bench.answer(&sent[1], Status::NoSpace);
    assert_eq!(bench.completed(), []);
    let failed = LaneReport::ReplicaFailed {
        node: B,
        status: Status::NoSpace,
    };
    assert_eq!(bench.reports(), [failed]);
    bench.write(1, 1);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::NoSpace);
    bench.answer(&sent[1], Status::NoSpace);
    assert_eq!(bench.completed(), [(1, Err(GuestError::NoSpace))]);
}

/// What it refuses is nowhere: no chunk is left that it could not be made equal in.
#[test]
fn a_full_replica_that_cannot_be_spared_is_asked_first() {
    let mut bench = Bench::new();
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: full(attached(), B),
    });
    assert_eq!(bench.reports(), [LaneReport::Installed { epoch: 2 }]);
    bench.write(0, 0);
    let asked = bench.sent();
    assert_eq!((asked.len(), asked[0].0), (1, PEER_B));
    bench.answer(&asked[0], Status::NoSpace);
    let failed = LaneReport::ReplicaFailed {
        node: B,
        status: Status::NoSpace,
    };
    assert_eq!(bench.reports(), [failed]);
    // Control cannot do without it still.
    bench.order(LaneOrder::Prepare {
        epoch: 3,
        lost: Default::default(),
    });
    assert_eq!(bench.reports(), [prepared(3, &[A, B])]);
    bench.order(LaneOrder::Install {
        epoch: 3,
        config: full(attached(), B),
    });
    assert_eq!(bench.completed(), [(0, Err(GuestError::NoSpace))]);
    assert_eq!(bench.sent().len(), 0, "nobody has it");
    let abandoned = |report: &LaneReport| matches!(report, LaneReport::Abandoned { .. });
    assert!(!bench.reports().iter().any(abandoned));

    // Where it has room the others get the write after it.
    bench.write(1, 1);
    let asked = bench.sent();
    bench.answer(&asked[0], Status::Ok);
    assert_eq!(bench.completed(), []);
    let others = bench.sent();
    assert_eq!((others.len(), others[0].0), (1, PEER_A));
    bench.answer(&others[0], Status::Ok);
    assert_eq!(bench.completed(), [(1, Ok(()))]);

    // And if it can be spared after all, without it.
    bench.write(2, 2);
    let asked = bench.sent();
    bench.answer(&asked[0], Status::NoSpace);
    let alone = committed(transition::mark_stale(&attached(), &[B]).unwrap());
    bench.order(LaneOrder::Install {
        epoch: 4,
        config: config(alone),
    });
    let others = bench.sent();
    assert_eq!((others.len(), others[0].0), (1, PEER_A));
    bench.answer(&others[0], Status::Ok);
    assert_eq!(bench.completed(), [(2, Ok(()))]);
}

/// A barrier for another reason comes before control has recorded the replica stale.
#[test]
fn what_a_replica_failed_waits_for_the_verdict_on_it() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::Ok);
    bench.answer(&sent[1], Status::Poisoned);
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: config(attached()),
    });
    assert_eq!(bench.completed(), [], "B may yet be recorded stale");
    bench.order(LaneOrder::Install {
        epoch: 3,
        config: helpless(attached(), B),
    });
    assert_eq!(bench.completed(), [(0, Err(GuestError::Io))]);
}

#[test]
fn a_node_that_does_not_serve_now_is_as_good_as_disconnected() {
    let mut bench = Bench::new();
    bench.guest(0, GuestOp::Read, 0, 1);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::NoLease);
    assert_eq!(bench.completed(), [], "no error: it waits");
    let status = Status::NoLease;
    assert_eq!(
        bench.reports(),
        [LaneReport::ReplicaFailed { node: A, status }]
    );
    assert!(matches!(
        bench.out[..],
        [LaneAction::Disconnect { peer: PEER_A, .. }]
    ));
    bench.down(PEER_A);
    bench.up(PEER_A, 1);
    assert_eq!(bench.sent().len(), 1, "sent again");
}

#[test]
fn requests_outside_the_volume_are_refused() {
    let mut bench = Bench::new();
    let sectors = (64 << 20) / SECTOR_BYTES as u64;
    bench.guest(0, GuestOp::Read, sectors, 1);
    bench.guest(1, GuestOp::Read, u64::MAX, 1);
    bench.guest(2, GuestOp::Read, 0, 257);
    bench.guest(
        3,
        GuestOp::Zero {
            unmap: true,
            fua: false,
        },
        sectors - 1,
        2,
    );
    bench.guest(4, GuestOp::Read, 0, 0);
    assert_eq!(bench.sent().len(), 0);
    assert_eq!(bench.completed().len(), 5);
}

#[test]
fn a_long_discard_goes_out_in_a_window_and_covers_its_range() {
    let mut bench = Bench::new();
    let count = 48 * 256;
    bench.guest(
        0,
        GuestOp::Zero {
            unmap: true,
            fua: false,
        },
        128,
        count,
    );
    let mut covered = 0u32;
    loop {
        let sent = bench.sent();
        if sent.is_empty() {
            break;
        }
        assert!(sent.len() <= 2 * 32, "{} pieces at once", sent.len() / 2);
        for frame in &sent {
            if frame.0 == PEER_A {
                assert!(frame.1.flags.has(Flags::UNMAP));
                covered += u32::from(frame.1.count);
            }
            bench.answer(frame, Status::Ok);
        }
    }
    assert_eq!(covered, count);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn a_flush_goes_to_every_shard_that_gets_writes() {
    let mut bench = Bench::new();
    bench.guest(0, GuestOp::Flush, 0, 0);
    let sent = bench.sent();
    assert_eq!(sent.len(), 2);
    bench.answer(&sent[1], Status::Ok);
    assert_eq!(bench.completed(), []);
    bench.answer(&sent[0], Status::Ok);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn a_request_held_too_long_is_an_error() {
    let mut bench = Bench::new();
    bench.down(PEER_A);
    bench.guest(0, GuestOp::Read, 0, 1);
    bench.now = bench.now.after(Duration::from_secs(121));
    bench.tick();
    assert_eq!(bench.completed(), [(0, Err(GuestError::Io))]);
}

#[test]
fn a_silent_peer_is_disconnected() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    bench.now = bench.now.after(Duration::from_secs(6));
    bench.tick();
    let cut = bench
        .out
        .iter()
        .filter(|a| matches!(a, LaneAction::Disconnect { .. }))
        .count();
    assert_eq!(cut, 2);
}

#[test]
fn an_old_generation_waits_for_the_next_installation() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::StaleMap);
    bench.answer(&sent[1], Status::Ok);
    assert_eq!(bench.reports(), [LaneReport::StaleMap]);
    bench.order(LaneOrder::Prepare {
        epoch: 2,
        lost: vec![],
    });
    // A has not got the write: it is no source for copies, and may lack it if it is lost now.
    assert_eq!(bench.reports(), [prepared(2, &[A])]);
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: config(attached()),
    });
    let again = bench.sent();
    assert_eq!(again.len(), 1);
    bench.answer(&again[0], Status::Ok);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

/// I7: what only one replica has may vanish with it.
#[test]
fn a_read_of_a_write_in_flight_is_told_when_every_replica_has_the_write() {
    let mut bench = Bench::new();
    bench.write(0, 8);
    let writes = bench.sent();
    bench.answer(&writes[0], Status::Ok);
    bench.guest(1, GuestOp::Read, 8, 1);
    let read = bench.sent();
    let data = vec![0; SECTOR_BYTES];
    bench.answer_read_of(&read[0], &data, crc32c(&data), writes[0].1.seq);
    assert_eq!(bench.completed(), [], "B has not answered");
    bench.answer(&writes[1], Status::Ok);
    let mut done = bench.completed();
    done.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(done, [(0, Ok(())), (1, Ok(()))]);
}

#[test]
fn a_read_of_another_lanes_write_in_flight_is_asked_again() {
    let seq = Arc::new(SharedSeq::default());
    let mut bench = Bench::with_seq(Arc::clone(&seq));
    let other = seq.take(LaneId(1), None);
    bench.guest(0, GuestOp::Read, 8, 1);
    let data = vec![0; SECTOR_BYTES];
    for _ in 0..3 {
        let read = bench.sent();
        assert_eq!(read.len(), 1);
        bench.answer_read_of(&read[0], &data, crc32c(&data), other);
        assert_eq!(bench.completed(), []);
    }
    seq.ended(LaneId(1), other, None);
    let read = bench.sent();
    bench.answer_read_of(&read[0], &data, crc32c(&data), other);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn without_the_read_lease_nothing_is_told_and_a_tick_asks_again() {
    let mut bench = Bench::new();
    bench.now = bench.now.after(READ_LEASE + Duration::from_millis(1));
    bench.guest(0, GuestOp::Read, 8, 1);
    let read = bench.sent();
    let data = vec![0; SECTOR_BYTES];
    bench.answer_read(&read[0], &data, crc32c(&data));
    assert_eq!((bench.completed(), bench.sent()), (vec![], vec![]));
    for entry in &bench.config.nodes {
        entry.heard.answered(bench.now);
    }
    bench.tick();
    let read = bench.sent();
    bench.answer_read(&read[0], &data, crc32c(&data));
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn what_is_not_reconciled_is_touched_only_after_control_said_so() {
    let mut bench = Bench::new();
    let mut config = LaneConfig::new(
        Arc::clone(&bench.config.map),
        Arc::clone(&bench.config.peers),
        bench.config.nodes.clone(),
        &[A, B],
    );
    config.unreconciled.insert(ChunkIndex(0));
    let config = Arc::new(config);
    bench.order(LaneOrder::Install { epoch: 2, config });
    bench.reports();
    bench.write(0, 8);
    bench.guest(1, GuestOp::Read, 9, 1);
    assert_eq!(bench.sent(), []);
    let chunk = ChunkIndex(0);
    assert_eq!(bench.reports(), [LaneReport::Touched { chunk }]);
    // A barrier does not wait for what waits for control.
    let (epoch, lost) = (3, Vec::new());
    bench.order(LaneOrder::Prepare { epoch, lost });
    assert_eq!(
        bench.reports(),
        [LaneReport::Prepared {
            epoch,
            behind: vec![A, B]
        }]
    );
    let chunks = vec![chunk];
    bench.order(LaneOrder::Reconciled { chunks });
    assert_eq!(bench.sent().len(), 3);
}

#[test]
fn a_write_that_fails_halfway_is_abandoned_and_in_flight_until_the_next_token() {
    let seq = Arc::new(SharedSeq::default());
    let mut bench = Bench::with_seq(Arc::clone(&seq));
    bench.write(0, 8);
    let writes = bench.sent();
    bench.answer(&writes[0], Status::Ok);
    bench.now = bench.now.after(Duration::from_secs(121));
    bench.tick();
    assert_eq!(bench.completed(), [(0, Err(GuestError::Io))]);
    let chunk = ChunkIndex(0);
    assert!(bench.reports().contains(&LaneReport::Abandoned { chunk }));
    assert_eq!(seq.settled(), Seq(0));
    assert!(seq.is_in_flight(writes[0].1.seq));
}

#[test]
fn under_a_new_token_everything_unfinished_is_sent_to_every_replica_again() {
    let mut bench = Bench::new();
    bench.write(0, 8);
    let writes = bench.sent();
    bench.answer(&writes[0], Status::Ok);
    let (epoch, lost) = (2, vec![B]);
    bench.order(LaneOrder::Prepare { epoch, lost });
    // B has fenced the next token before it saw the write: no news of another front.
    bench.answer(&writes[1], Status::StaleToken);
    assert_eq!(bench.completed(), []);
    let renewed = committed(transition::renew(&attached()).unwrap());
    let config = config(renewed);
    bench.order(LaneOrder::Install { epoch: 2, config });
    let again = bench.sent();
    assert_eq!(again.len(), 2);
    assert!(again.iter().all(|(_, header)| header.token.0 == 2));
    bench.answer(&again[0], Status::Ok);
    bench.answer(&again[1], Status::Ok);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn what_a_new_generation_overtook_is_sent_again_at_once() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    let sent = bench.sent();
    let newer = committed(transition::mark_stale(&attached(), &[B]).unwrap());
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: config(newer),
    });
    bench.sent();
    bench.answer(&sent[0], Status::StaleMap);
    let again = bench.sent();
    assert_eq!(again.len(), 1);
    assert!(again[0].1.generation > sent[0].1.generation);
}

/// The highest sequence number of several sectors says nothing about the others.
#[test]
fn a_read_of_several_sectors_waits_for_each_write_that_it_shows() {
    let mut bench = Bench::new();
    bench.write(0, 8);
    let older = bench.sent();
    bench.write(1, 9);
    for sent in bench.sent() {
        bench.answer(&sent, Status::Ok);
    }
    assert_eq!(bench.completed(), [(1, Ok(()))]);
    bench.answer(&older[0], Status::Ok);
    let (first, second) = (older[0].1.seq, Seq(older[0].1.seq.0 + 1));
    bench.guest(2, GuestOp::Read, 8, 2);
    let data = vec![0; 2 * SECTOR_BYTES];
    let crc = crc32c(&data[..SECTOR_BYTES]);
    for told in [false, true] {
        let read = bench.sent();
        let (peer, header) = read[0];
        let mut reply = header.reply(Status::Ok);
        reply.seq = second;
        reply.flags = reply.flags.with(Flags::DATA);
        let mut aux = crc_table(0, [crc, crc].into_iter());
        append_seqs(&mut aux, [first, second].into_iter());
        let (now, out) = (bench.now, &mut bench.out);
        bench.lane.peer_frame(now, peer, &reply, &aux, &data, out);
        assert_eq!(bench.completed().len(), usize::from(told));
        if !told {
            bench.answer(&older[1], Status::Ok);
            assert_eq!(bench.completed(), [(0, Ok(()))]);
        }
    }
}

#[test]
fn a_window_tells_what_ended_and_what_hangs() {
    let mut bench = Bench::new();
    assert_eq!(bench.lane.window(bench.now), None);
    bench.write(1, 0);
    bench.now = bench.now.after(Duration::from_millis(3));
    let window = bench.lane.window(bench.now).expect("one is in flight");
    assert_eq!(window.oldest, Some(Duration::from_millis(3)));
    assert!(window.write.is_empty() && window.write_bytes == 0);
    for sent in bench.sent() {
        bench.answer(&sent, Status::Ok);
    }
    let window = bench.lane.window(bench.now).expect("one ended");
    assert_eq!((window.oldest, window.write.len()), (None, 1));
    assert_eq!(window.write_bytes, SECTOR_BYTES as u64);
    assert_eq!(bench.lane.window(bench.now), None);
}

#[test]
fn nodes_are_measured_with_and_without_their_service() {
    let mut bench = Bench::new();
    bench.write(1, 0);
    let writes = bench.sent();
    bench.now = bench.now.after(Duration::from_micros(500));
    for (peer, header) in &writes {
        let mut reply = header.reply(Status::Ok);
        // A tells its service; B is of a release that echoes the sequence number.
        if *peer == PEER_A {
            reply.seq = Seq(200_000);
        }
        bench
            .lane
            .peer_frame(bench.now, *peer, &reply, &[], &[], &mut bench.out);
    }
    bench.guest(2, GuestOp::Read, 0, 1);
    let reads = bench.sent();
    let [(peer, header)] = &reads[..] else {
        panic!("{reads:?}")
    };
    assert_eq!(*peer, PEER_A);
    bench.now = bench.now.after(Duration::from_micros(300));
    let data = vec![7; SECTOR_BYTES];
    let mut reply = header.reply(Status::Ok);
    reply.flags = reply.flags.with(Flags::DATA);
    let aux = crc_table(100_000, std::iter::once(crc32c(&data)));
    bench
        .lane
        .peer_frame(bench.now, PEER_A, &reply, &aux, &data, &mut bench.out);
    let [a, b] = &bench.lane.stats().nodes[..] else {
        panic!("two nodes")
    };
    let us = |histogram: &hdrhistogram::Histogram<u32>| {
        let mean = (histogram.mean() / 1000.0).round();
        (histogram.len(), mean as u64)
    };
    let near = |(got, want): ((u64, u64), (u64, u64))| {
        assert_eq!(got.0, want.0);
        assert!(
            got.1.abs_diff(want.1) <= want.1 / 50,
            "{got:?}, not {want:?}"
        );
    };
    near((us(&a.write), (1, 500)));
    near((us(&a.write_service), (1, 200)));
    near((us(&a.read), (1, 300)));
    near((us(&a.read_service), (1, 100)));
    near((us(&a.network), (2, 250)));
    near((us(&b.write), (1, 500)));
    assert!(b.network.is_empty() && b.write_service.is_empty() && b.read.is_empty());
    let known = a.latency(A, 5);
    assert_eq!(known.network.expect("two samples").count, 2);
    assert_eq!(b.latency(B, 5).network, None);
    assert!(!a.since(a).latency(A, 5).tells());
    let front = &bench.lane.stats();
    assert_eq!((front.read_front.len(), front.write_front.len()), (1, 1));
    assert!(front.read_front.max() <= 1_000 && front.write_front.max() <= 1_000);
    let replicated = &front.write_replicated;
    assert_eq!(replicated.len(), 1);
    assert!((495_000..505_000).contains(&replicated.max()));
    bench.lane.woke(Duration::from_micros(60));
    let wake = &bench.lane.stats().wake;
    assert_eq!(wake.len(), 1);
    assert!((60_000..61_000).contains(&wake.max()), "{}", wake.max());
}

/// Bulk tells of bandwidth: it counts as the guest's latency, and apart from what plans are made from.
#[test]
fn large_requests_are_measured_apart() {
    let mut bench = Bench::new();
    let (small, large) = (SMALL_SECTORS_MAX, SMALL_SECTORS_MAX + 1);
    for (tag, sectors, late) in [(1, small, 1), (2, large, 70)] {
        bench.guest(tag, GuestOp::Write { fua: false }, 0, sectors.into());
        let writes = bench.sent();
        bench.now = bench.now.after(Duration::from_millis(late));
        for (peer, header) in &writes {
            let mut reply = header.reply(Status::Ok);
            reply.seq = Seq(300_000);
            let (now, out) = (bench.now, &mut bench.out);
            bench.lane.peer_frame(now, *peer, &reply, &[], &[], out);
        }
        assert_eq!(bench.completed(), [(tag, Ok(()))]);
    }
    let stats = bench.lane.stats();
    assert_eq!((stats.write.len(), stats.write_front.len()), (2, 1));
    for (node, id) in stats.nodes.iter().zip([A, B]) {
        assert_eq!((node.write.len(), node.write_large.len()), (1, 1));
        assert_eq!(node.write_service.len(), 1);
        assert!(node.write.max() < 1_100_000 && node.network.max() < 1_000_000);
        let told = node.latency(id, 7);
        assert!(told.write.is_some() && told.write_large.is_none());
        let mut only_large = NodeStats::default();
        only_large.write_large.saturating_record(70_000_000);
        let told = only_large.latency(id, 7);
        assert!(told.write.is_none() && told.write_large.is_some());
    }
}

#[test]
fn a_refusal_is_no_round_trip() {
    let mut bench = Bench::new();
    bench.write(1, 0);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::Busy);
    assert!(bench.lane.stats().nodes.is_empty());
}

#[test]
fn lanes_count_the_use_of_chunks() {
    let mut bench = Bench::new();
    let mut config = LaneConfig::new(
        Arc::clone(&bench.config.map),
        Arc::clone(&bench.config.peers),
        bench.config.nodes.clone(),
        &[A, B],
    );
    let heat = Arc::new(super::heat::HeatTable::new(16));
    config.heat = Arc::clone(&heat);
    let config = Arc::new(config);
    bench.order(LaneOrder::Prepare {
        epoch: 2,
        lost: Vec::new(),
    });
    bench.order(LaneOrder::Install { epoch: 2, config });
    // The last sector of chunk 0 and the first of chunk 1.
    bench.guest(1, GuestOp::Write { fua: false }, 1023, 2);
    bench.guest(2, GuestOp::Read, 3 * 1024, 4);
    bench.guest(3, GuestOp::Flush, 0, 0);
    let page = heat.page(0, Duration::from_secs(60));
    let used: Vec<_> = page
        .chunks
        .iter()
        .map(|heat| (heat.reads > 0, heat.writes > 0, heat.bytes > 0))
        .collect();
    assert_eq!(used[0], (false, true, true));
    assert_eq!(used[1], (false, true, true));
    assert_eq!(used[3], (true, false, true));
    assert_eq!(used.iter().filter(|u| u.2).count(), 3);
}
