//! Scripted scenarios of one lane.
#![allow(clippy::cast_possible_truncation)] // small numbers of a test

use super::api::*;
use super::fixture::*;
use super::{LaneCore, LaneLimits, SharedSeq};
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::transition;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::crc_table;
use ukai_proto::{Flags, Header, Opcode, Status};

struct Bench {
    lane: LaneCore,
    out: Vec<LaneAction>,
    now: Now,
}

impl Bench {
    fn new() -> Self {
        let lane = LaneCore::new(
            LaneId(0),
            Arc::new(SharedSeq::default()),
            LaneLimits::default(),
        );
        let mut bench = Self {
            lane,
            out: Vec::new(),
            now: Now(1),
        };
        bench.up(PEER_A, 1);
        bench.up(PEER_B, 1);
        bench.order(LaneOrder::Install {
            epoch: 1,
            config: config(attached()),
        });
        bench.out.clear();
        bench
    }

    fn up(&mut self, peer: PeerIndex, start: u64) {
        self.lane.peer_up(self.now, peer, run(start), &mut self.out);
    }

    fn down(&mut self, peer: PeerIndex) {
        self.lane.peer_down(self.now, peer, &mut self.out);
    }

    fn order(&mut self, order: LaneOrder) {
        self.lane.order(self.now, order, &mut self.out);
    }

    fn guest(&mut self, tag: u32, op: GuestOp, sector: u64, count: u32) {
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

    fn write(&mut self, tag: u32, sector: u64) {
        self.guest(tag, GuestOp::Write { fua: false }, sector, 1);
    }

    /// Frames to send since the last call.
    fn sent(&mut self) -> Vec<(PeerIndex, Header)> {
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

    fn answer(&mut self, (peer, header): &(PeerIndex, Header), status: Status) {
        let reply = header.reply(status);
        self.lane
            .peer_frame(self.now, *peer, &reply, &[], &[], &mut self.out);
    }

    fn answer_read(&mut self, (peer, header): &(PeerIndex, Header), data: &[u8], crc: u32) {
        let mut reply = header.reply(Status::Ok);
        reply.flags = reply.flags.with(Flags::DATA);
        assert!(self.lane.read_target(&reply).is_some());
        let aux = crc_table(0, std::iter::once(crc));
        self.lane
            .peer_frame(self.now, *peer, &reply, &aux, data, &mut self.out);
    }

    fn completed(&mut self) -> Vec<(u32, Result<(), GuestError>)> {
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

    fn reports(&mut self) -> Vec<LaneReport> {
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
        !bench.reports().contains(&LaneReport::Prepared { epoch: 2 }),
        "B is waited for"
    );
    bench.order(LaneOrder::Prepare {
        epoch: 2,
        lost: vec![B],
    });
    assert!(bench.reports().contains(&LaneReport::Prepared { epoch: 2 }));
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
        bench.lane.read_target(&late),
        None,
        "a late reply must not touch the buffer"
    );
    bench.answer_read(&second[0], &data, crc32c(&data));
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}

#[test]
fn both_replicas_bad_is_an_error_not_zeros() {
    let mut bench = Bench::new();
    bench.guest(0, GuestOp::Read, 5, 1);
    for _ in 0..2 {
        let sent = bench.sent();
        bench.answer(&sent[0], Status::BadCrc);
    }
    assert_eq!(bench.completed(), [(0, Err(GuestError::Io))]);
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
    bench.lane.tick(bench.now, &mut bench.out);
    assert_eq!(bench.completed(), [(0, Err(GuestError::Io))]);
}

#[test]
fn a_silent_peer_is_disconnected() {
    let mut bench = Bench::new();
    bench.write(0, 0);
    bench.now = bench.now.after(Duration::from_secs(6));
    bench.lane.tick(bench.now, &mut bench.out);
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
    assert_eq!(bench.reports(), [LaneReport::Prepared { epoch: 2 }]);
    bench.order(LaneOrder::Install {
        epoch: 2,
        config: config(attached()),
    });
    let again = bench.sent();
    assert_eq!(again.len(), 1);
    bench.answer(&again[0], Status::Ok);
    assert_eq!(bench.completed(), [(0, Ok(()))]);
}
