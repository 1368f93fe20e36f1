//! One queue thread's view of the volume: guest requests in, node frames out.
//!
//! A request becomes pieces (one slot each), a piece has one target per replica that must answer. A
//! piece ends when every target has; a replica that cannot answer leaves the targets only by a new
//! configuration, which control installs after the metadata store has recorded why (I1). Nothing
//! here waits: what cannot be sent now is sent by `peer_up` or by the next installation.

mod configure;
mod issue;
mod reply;

use super::api::{
    BufferPart, GuestError, GuestIo, GuestOp, GuestTag, LANE_DEPTH_MAX, LaneAction, LaneId,
    LaneOrder, LaneReport, Now, PeerIndex,
};
use super::config::{LaneConfig, NodeSlot};
use super::piece::{Kind, Pieces, TargetState};
use super::seq::SharedSeq;
use super::stats::LaneStats;
use super::window::{LaneWindow, Told};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::read_service_ns;
use ukai_proto::{ChunkIndex, Flags, Header, Incarnation, NodeId, Seq, Status};

/// Pieces of one long discard or write-zeroes in flight: keeps one request from filling every
/// connection, and the piece table bounded ([`LANE_DEPTH_MAX`] x this).
const OP_PIECES_MAX: u16 = 32;
/// Resends of a piece that a node found damaged on arrival before the node counts as failed.
pub(super) const WRITE_RETRIES_MAX: u8 = 3;
/// Times that a read which no replica could serve is tried at all of them again, each with the next tick: a bad
/// sector is repaired meanwhile from a replica that only failed in passing. One replica alone has nobody
/// to be repaired from.
pub(super) const READ_ROUNDS_MAX: u8 = 4;
/// Times that a read which may not be told yet is asked again at once; then only by ticks, so that
/// reads of what hangs do not load the node.
const ASKED_AGAIN_AT_ONCE_MAX: u8 = 8;

/// Times of a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaneLimits {
    /// A guest request older than this fails with EIO (`io_hold_max`).
    pub io_hold_max: Duration,
    /// A peer that leaves a request unanswered so long is disconnected.
    pub reply_max: Duration,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self {
            io_hold_max: Duration::from_secs(120),
            reply_max: Duration::from_secs(5),
        }
    }
}

/// May requests start?
#[derive(Clone, PartialEq, Eq, Debug)]
enum Gate {
    /// Yes.
    Open,
    /// Before the first configuration.
    Closed,
    /// A barrier: drained or draining.
    Preparing {
        epoch: u64,
        lost: Vec<NodeId>,
        reported: bool,
    },
    /// Everything fails.
    Failed,
}

#[derive(Debug)]
struct Op {
    io: GuestIo,
    started: Now,
    crcs: Vec<u32>,
    /// Sectors handed to pieces so far (Flush: 1 when its piece exists).
    issued: u64,
    pieces_live: u16,
    /// Round trips of its pieces: of nodes that are asked at the same time the longest, of those asked one after the
    /// other the sum.
    waited: Duration,
    /// Replicas that answered its writes.
    acked: u32,
    /// Pieces it was cut into so far.
    pieces: u32,
    error: Option<GuestError>,
}

#[derive(Debug, Default)]
struct PeerState {
    up: Option<Incarnation>,
    requests_out: usize,
    bytes_out: usize,
    /// Targets that wait for room on the connection.
    backlog: VecDeque<(u32, u16)>,
}

/// The lane's state machine. See the module docs.
#[derive(Debug)]
pub struct LaneCore {
    lane: LaneId,
    seq: Arc<SharedSeq>,
    limits: LaneLimits,
    config: Option<Arc<LaneConfig>>,
    gate: Gate,
    ops: Vec<Option<Op>>,
    pieces: Pieces,
    /// Requests that came while the gate was shut, in order.
    held: VecDeque<GuestTag>,
    /// Sequence numbers in flight.
    seqs: BTreeSet<Seq>,
    /// Reads that hold what a write in flight has stored (I7), by that write. An entry may outlive
    /// its read; it goes with the write.
    unsettled: BTreeMap<Seq, Vec<u32>>,
    /// Chunks that are not to be touched yet, and whether control was told that the guest wants one.
    unreconciled: BTreeMap<ChunkIndex, bool>,
    peers: Vec<PeerState>,
    stats: LaneStats,
    told: Told,
}

impl LaneCore {
    /// A lane without a configuration: it holds requests until the first installation.
    #[must_use]
    pub fn new(lane: LaneId, seq: Arc<SharedSeq>, limits: LaneLimits) -> Self {
        Self {
            lane,
            seq,
            limits,
            config: None,
            gate: Gate::Closed,
            ops: Vec::new(),
            pieces: Pieces::default(),
            held: VecDeque::new(),
            seqs: BTreeSet::new(),
            unsettled: BTreeMap::new(),
            unreconciled: BTreeMap::new(),
            peers: Vec::new(),
            stats: LaneStats::default(),
            told: Told::default(),
        }
    }

    /// Counters and histograms since the start.
    #[must_use]
    pub fn stats(&self) -> &LaneStats {
        &self.stats
    }

    /// The lane was woken so long after a timer of its shell had run out: threads of the guest wake as late.
    pub fn woke(&mut self, late: Duration) {
        self.stats.woke(late);
    }

    /// What was measured since the last call; `None` if there was nothing. Shells call it every
    /// [`super::window::WINDOW`] and give it to control.
    pub fn window(&mut self, now: Now) -> Option<Box<LaneWindow>> {
        let ages = self.ops.iter().flatten().map(|op| now.since(op.started));
        self.told.window(&self.stats, ages.max())
    }

    /// Guest requests not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.ops.iter().flatten().count()
    }

    /// A request from the guest. `data` is its buffer's content for writes, else empty.
    pub fn guest(&mut self, now: Now, io: GuestIo, data: &[u8], out: &mut Vec<LaneAction>) {
        assert!(
            io.tag.0 < LANE_DEPTH_MAX,
            "tag {} of a lane of {LANE_DEPTH_MAX}",
            io.tag.0
        );
        let index = io.tag.0 as usize;
        if self.ops.len() <= index {
            self.ops.resize_with(index + 1, || None);
        }
        assert!(
            self.ops[index].is_none(),
            "tag {} is in flight already",
            io.tag.0
        );
        let mut crcs = Vec::new();
        if let GuestOp::Write { .. } = io.op {
            assert_eq!(
                data.len(),
                io.count as usize * SECTOR_BYTES,
                "data of tag {}",
                io.tag.0
            );
            crcs.extend(data.chunks_exact(SECTOR_BYTES).map(crc32c));
        }
        self.ops[index] = Some(Op {
            io,
            started: now,
            crcs,
            issued: 0,
            pieces_live: 0,
            waited: Duration::ZERO,
            acked: 0,
            pieces: 0,
            error: None,
        });
        match self.gate {
            Gate::Open => self.start(now, io.tag, out),
            Gate::Failed => self.complete(now, io.tag, Err(GuestError::Fenced), out),
            Gate::Closed | Gate::Preparing { .. } => self.held.push_back(io.tag),
        }
    }

    /// A connection to a peer is up (HELLO answered).
    pub fn peer_up(
        &mut self,
        now: Now,
        peer: PeerIndex,
        incarnation: Incarnation,
        out: &mut Vec<LaneAction>,
    ) {
        *self.peer(peer) = PeerState {
            up: Some(incarnation),
            ..PeerState::default()
        };
        out.push(LaneAction::Report(LaneReport::PeerUp { peer, incarnation }));
        for (piece, target) in self.pieces.unsent_to(peer) {
            self.send(now, piece, target, out);
        }
    }

    /// It broke, or could not be made. What was unanswered is sent again when it is back.
    pub fn peer_down(&mut self, _now: Now, peer: PeerIndex, out: &mut Vec<LaneAction>) {
        *self.peer(peer) = PeerState::default();
        self.pieces.unsend(peer);
        out.push(LaneAction::Report(LaneReport::PeerDown { peer }));
    }

    /// Where the payload of this reply belongs; `None`: nobody waits for it any more, or not from
    /// this peer. Another one must not reach the guest's buffer: it could still be writing there
    /// after the right one's answer was verified.
    #[must_use]
    pub fn read_target(&self, peer: PeerIndex, header: &Header) -> Option<BufferPart> {
        // A read has one target, and a new serial number with each new target, so that a late
        // reply of an earlier one never lands in the guest's buffer.
        let piece = self.pieces.get(self.pieces.find(header.tag)?);
        let target = piece.targets.first()?;
        let waiting = target.peer == peer && matches!(target.state, TargetState::Sent { .. });
        (piece.kind == Kind::Read && waiting && header.count == piece.part.count)
            .then(|| Self::buffer_part(piece))
    }

    /// A reply. `payload` is what was received into [`LaneCore::read_target`]'s place.
    pub fn peer_frame(
        &mut self,
        now: Now,
        peer: PeerIndex,
        header: &Header,
        aux: &[u8],
        payload: &[u8],
        out: &mut Vec<LaneAction>,
    ) {
        if !header.flags.has(Flags::REPLY) {
            out.push(LaneAction::Disconnect {
                peer,
                why: "a node sent a request",
            });
            return;
        }
        let Some(index) = self.pieces.find(header.tag) else {
            return;
        };
        let piece = self.pieces.get_mut(index);
        let Some(target) = piece.targets.iter().position(|t| t.peer == peer) else {
            return;
        };
        let TargetState::Sent { at, bytes } = piece.targets[target].state else {
            return;
        };
        if header.opcode != piece.kind.opcode() {
            out.push(LaneAction::Disconnect {
                peer,
                why: "a reply to another operation",
            });
            return;
        }
        let slot = piece.targets[target].slot;
        // Until decided otherwise below, the target is one that must be sent again.
        piece.targets[target].state = TargetState::Unsent;
        self.room_again(now, peer, bytes, out);
        if header.status == Status::Ok {
            self.measured(index, slot, now.since(at), header, aux);
        }
        match header.status {
            Status::Ok => self.answered(now, index, target, header, aux, payload, out),
            // Sent to a node that did not count any more when this front renewed its token.
            Status::StaleToken if matches!(self.gate, Gate::Preparing { .. }) => {
                self.pieces.get_mut(index).targets[target].state = TargetState::Parked;
                out.push(LaneAction::Report(LaneReport::StaleMap));
            }
            Status::StaleToken => self.fenced(now, out),
            // It was overtaken by the news of a configuration that this lane runs under by now.
            Status::StaleMap if header.generation < self.current().generation => {
                self.send(now, index, target, out);
            }
            Status::StaleMap => {
                self.pieces.get_mut(index).targets[target].state = TargetState::Parked;
                out.push(LaneAction::Report(LaneReport::StaleMap));
            }
            Status::Busy => self.queue(peer, index, target),
            status if status.is_passing() => {
                // As if the connection were lost: what is unanswered is sent again when it is back,
                // or control goes on without the node.
                let node = self.current().nodes[usize::from(slot.0)].node;
                out.push(LaneAction::Report(LaneReport::ReplicaFailed {
                    node,
                    status,
                }));
                let why = "the node does not serve now";
                out.push(LaneAction::Disconnect { peer, why });
            }
            status => self.refused(now, index, target, status, header, out),
        }
        self.check_prepared(out);
    }

    /// A node has done its part: the round trip, and what of it was the node's.
    fn measured(
        &mut self,
        index: u32,
        slot: NodeSlot,
        round_trip: Duration,
        header: &Header,
        aux: &[u8],
    ) {
        let piece = self.pieces.get(index);
        let (sectors, tag, seq) = (piece.part.count, piece.tag, piece.seq);
        match piece.kind {
            Kind::Read => {
                self.op(tag).waited += round_trip;
                let service_ns = read_service_ns(aux);
                self.stats.node_read(slot, sectors, round_trip, service_ns);
            }
            Kind::Write { .. } => {
                let op = self.op(tag);
                op.waited = round_trip.max(op.waited);
                op.acked += 1;
                // A node that does not tell it echoes the sequence number.
                let service_ns = Some(header.seq.0).filter(|_| header.seq != seq);
                self.stats.node_write(slot, sectors, round_trip, service_ns);
            }
            Kind::Zero { .. } | Kind::Flush => {}
        }
    }

    /// An order from control.
    pub fn order(&mut self, now: Now, order: LaneOrder, out: &mut Vec<LaneAction>) {
        match order {
            LaneOrder::Prepare { epoch, lost } => {
                if self.gate != Gate::Failed {
                    let reported = matches!(self.gate,
                        Gate::Preparing { epoch: e, reported, .. } if e == epoch && reported);
                    self.gate = Gate::Preparing {
                        epoch,
                        lost,
                        reported,
                    };
                    self.check_prepared(out);
                }
            }
            LaneOrder::Install { epoch, config } => {
                if self.gate != Gate::Failed {
                    self.install(now, config, out);
                }
                out.push(LaneAction::Report(LaneReport::Installed { epoch }));
            }
            LaneOrder::Reconciled { chunks } => self.reconciled(now, &chunks, out),
            LaneOrder::Fail => self.fail(now, out),
        }
    }

    /// Time passes: requests held too long fail, silent peers are disconnected.
    pub fn tick(&mut self, now: Now, out: &mut Vec<LaneAction>) {
        for peer in self.pieces.silent(now, self.limits.reply_max) {
            out.push(LaneAction::Disconnect {
                peer,
                why: "no answer in time",
            });
        }
        let expired: Vec<GuestTag> = self
            .ops
            .iter()
            .flatten()
            // What fails during a barrier could not be told to control before its installation.
            .filter(|_| !matches!(self.gate, Gate::Preparing { .. }))
            .filter(|op| now.since(op.started) > self.limits.io_hold_max)
            .map(|op| op.io.tag)
            .collect();
        for tag in expired {
            for index in self.pieces.of(tag) {
                self.end_seq(now, index, false, out);
                self.pieces.remove(index);
            }
            self.complete(now, tag, Err(GuestError::Io), out);
        }
        for index in self.pieces.reads_to_ask_again() {
            self.send(now, index, 0, out);
        }
        for index in 0..self.peers.len() {
            if self.peers[index].requests_out == 0 && !self.peers[index].backlog.is_empty() {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                self.room_again(now, PeerIndex(index), 0, out);
            }
        }
        self.check_prepared(out);
    }

    fn peer(&mut self, peer: PeerIndex) -> &mut PeerState {
        let index = peer.0 as usize;
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, PeerState::default);
        }
        &mut self.peers[index]
    }

    fn op(&mut self, tag: GuestTag) -> &mut Op {
        let op = self.ops.get_mut(tag.0 as usize).and_then(Option::as_mut);
        op.unwrap_or_else(|| panic!("tag {} is not in flight", tag.0))
    }

    fn current(&self) -> Arc<LaneConfig> {
        let config = self.config.as_ref();
        Arc::clone(config.unwrap_or_else(|| panic!("a request started without a configuration")))
    }
}
