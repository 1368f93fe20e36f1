//! One queue thread's view of the volume: guest requests in, node frames out.
//!
//! A request becomes pieces (one slot each), a piece has one target per replica that must answer. A
//! piece ends when every target has; a replica that cannot answer leaves the targets only by a new
//! configuration, which control installs after the metadata store has recorded why (I1). Nothing
//! here waits: what cannot be sent now is sent by `peer_up` or by the next installation.

use super::api::{
    BufferPart, GUEST_SECTORS_MAX, GuestError, GuestIo, GuestOp, GuestTag, LANE_DEPTH_MAX,
    LaneAction, LaneId, LaneOrder, LaneReport, Now, PeerIndex,
};
use super::config::{LaneConfig, NodeSlot};
use super::piece::{Kind, Piece, Pieces, Target, TargetState};
use super::seq::SharedSeq;
use super::split::part_at;
use super::stats::LaneStats;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::{CONN_BYTES_MAX, CONN_REQUESTS_MAX, SECTOR_BYTES};
use ukai_proto::message::{crc_table, read_crc_table};
use ukai_proto::{Flags, Frame, Header, Incarnation, NodeId, Opcode, Seq, Status};

/// Pieces of one long discard or write-zeroes in flight: keeps one request from filling every
/// connection, and the piece table bounded ([`LANE_DEPTH_MAX`] x this).
const OP_PIECES_MAX: u16 = 32;
/// Resends of a piece that a node found damaged on arrival before the node counts as failed.
const WRITE_RETRIES_MAX: u8 = 3;

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
    peers: Vec<PeerState>,
    stats: LaneStats,
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
            peers: Vec::new(),
            stats: LaneStats::default(),
        }
    }

    /// Counters and histograms since the start.
    #[must_use]
    pub fn stats(&self) -> &LaneStats {
        &self.stats
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

    /// Where the payload of this reply belongs; `None`: nobody waits for it any more.
    #[must_use]
    pub fn read_target(&self, header: &Header) -> Option<BufferPart> {
        // A read has one target, and a new serial number with each new target, so that a late
        // reply of an earlier one never lands in the guest's buffer.
        let piece = self.pieces.get(self.pieces.find(header.tag)?);
        let waiting = matches!(piece.targets.first()?.state, TargetState::Sent { .. });
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
        self.stats.round_trip(slot, now.since(at));
        match header.status {
            Status::Ok => self.answered(now, index, target, header, aux, payload, out),
            Status::StaleToken => self.fenced(now, out),
            Status::StaleMap => {
                self.pieces.get_mut(index).targets[target].state = TargetState::Parked;
                out.push(LaneAction::Report(LaneReport::StaleMap));
            }
            Status::Busy => self.queue(peer, index, target),
            status => self.refused(now, index, target, status, header, out),
        }
        self.check_prepared(out);
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
            .filter(|op| now.since(op.started) > self.limits.io_hold_max)
            .map(|op| op.io.tag)
            .collect();
        for tag in expired {
            // The write may still be on some replica: its sequence number stays unsettled, so the
            // intents of its chunk stay open and a reconcile will look at it.
            self.pieces.drop_of(tag);
            self.complete(now, tag, Err(GuestError::Io), out);
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

    /// Checks the range, then hands out pieces.
    fn start(&mut self, now: Now, tag: GuestTag, out: &mut Vec<LaneAction>) {
        let size = self.current().size_sectors;
        let io = self.op(tag).io;
        let end = io.sector.checked_add(u64::from(io.count));
        let too_long =
            matches!(io.op, GuestOp::Read | GuestOp::Write { .. }) && io.count > GUEST_SECTORS_MAX;
        let empty = io.op != GuestOp::Flush && io.count == 0;
        if too_long || empty || end.is_none_or(|end| end > size) {
            self.complete(now, tag, Err(GuestError::Invalid), out);
            return;
        }
        self.issue(now, tag, out);
    }

    /// Starts pieces of a request up to its window; completes it when none is left.
    fn issue(&mut self, now: Now, tag: GuestTag, out: &mut Vec<LaneAction>) {
        let config = self.current();
        loop {
            let op = self.op(tag);
            if op.error.is_some() || op.pieces_live >= OP_PIECES_MAX {
                break;
            }
            let io = op.io;
            let part = if io.op == GuestOp::Flush {
                part_at(0, 1, op.issued, config.chunk_sectors)
            } else {
                part_at(io.sector, io.count.into(), op.issued, config.chunk_sectors)
            };
            let Some(part) = part else { break };
            op.issued += u64::from(part.count);
            op.pieces_live += 1;
            let kind = match io.op {
                GuestOp::Read => Kind::Read,
                GuestOp::Write { fua } => Kind::Write {
                    fua: fua || config.through,
                },
                GuestOp::Zero { unmap, fua } => Kind::Zero {
                    unmap,
                    fua: fua || config.through,
                },
                GuestOp::Flush => Kind::Flush,
            };
            let seq = if kind.is_versioned() {
                let seq = self.seq.take(self.lane, self.seqs.first().copied());
                self.seqs.insert(seq);
                seq
            } else {
                Seq(0)
            };
            let index = self.pieces.add(tag, kind, part, seq);
            let piece = self.pieces.get_mut(index);
            Self::aim(piece, &config, &[]);
            for target in 0..self.pieces.get(index).targets.len() {
                self.send(now, index, target, out);
            }
            self.check_piece(now, index, out);
            if self.ops[tag.0 as usize].is_none() {
                return; // completed inside check_piece
            }
        }
        let op = self.op(tag);
        let more = op.error.is_none() && op.issued < u64::from(op.io.count.max(1));
        if op.pieces_live == 0 && !more {
            let result = op.error.map_or(Ok(()), Err);
            self.complete(now, tag, result, out);
        }
    }

    /// Makes the targets of a piece those of the configuration; keeps what has been answered.
    fn aim(piece: &mut Piece, config: &LaneConfig, skip: &[NodeSlot]) {
        let want: Vec<(NodeSlot, PeerIndex)> = match piece.kind {
            Kind::Flush => config.flush_peers().collect(),
            Kind::Read => {
                let set = config.set_of(piece.part.chunk);
                let choice = set.read.iter().find(|slot| !skip.contains(slot));
                choice
                    .map(|slot| (*slot, config.peer_of(*slot, piece.part.chunk)))
                    .into_iter()
                    .collect()
            }
            Kind::Write { .. } | Kind::Zero { .. } => {
                let set = config.set_of(piece.part.chunk);
                set.write
                    .iter()
                    .map(|slot| (*slot, config.peer_of(*slot, piece.part.chunk)))
                    .collect()
            }
        };
        piece
            .targets
            .retain(|target| want.contains(&(target.slot, target.peer)));
        for (slot, peer) in want {
            if !piece.targets.iter().any(|target| target.peer == peer) {
                piece.targets.push(Target {
                    slot,
                    peer,
                    state: TargetState::Unsent,
                });
            }
        }
    }

    fn buffer_part(piece: &Piece) -> BufferPart {
        #[allow(clippy::cast_possible_truncation)] // reads and writes are at most 1 MiB
        BufferPart {
            tag: piece.tag,
            offset_bytes: (piece.part.skipped * SECTOR_BYTES as u64) as u32,
            bytes: u32::from(piece.part.count) * SECTOR_BYTES as u32,
        }
    }

    /// Sends if the connection is up, is to the run that control fenced, and has room.
    fn send(&mut self, now: Now, index: u32, target: usize, out: &mut Vec<LaneAction>) {
        let config = self.current();
        let piece = self.pieces.get(index);
        let Target { slot, peer, state } = piece.targets[target];
        if state != TargetState::Unsent {
            return;
        }
        let (kind, part, tag, seq) = (piece.kind, piece.part, piece.tag, piece.seq);
        let bytes = match kind {
            Kind::Read | Kind::Write { .. } => usize::from(part.count) * SECTOR_BYTES,
            Kind::Zero { .. } | Kind::Flush => 0,
        };
        let fenced = config.nodes[usize::from(slot.0)].incarnation;
        let state = self.peer(peer);
        if state.up.is_none() || state.up != fenced {
            return;
        }
        if state.requests_out >= CONN_REQUESTS_MAX / 2
            || state.bytes_out + bytes > CONN_BYTES_MAX / 2
        {
            self.queue(peer, index, target);
            return;
        }
        state.requests_out += 1;
        state.bytes_out += bytes;
        let piece = self.pieces.get_mut(index);
        piece.targets[target].state = TargetState::Sent { at: now, bytes };
        let wire_tag = self.pieces.wire_tag(index);
        let mut header = Header {
            volume: config.volume,
            token: config.token,
            generation: config.generation,
            ..Header::request(kind.opcode(), wire_tag)
        };
        if kind != Kind::Flush {
            header.chunk = part.chunk;
            header.sector = part.sector;
            header.count = part.count;
            header.seq = seq;
        }
        let settled = self.seq.settled().0;
        let mut payload = None;
        let aux = match kind {
            Kind::Write { fua } => {
                header.flags = if fua {
                    Flags::DATA.with(Flags::FUA)
                } else {
                    Flags::DATA
                };
                payload = Some(Self::buffer_part(self.pieces.get(index)));
                #[allow(clippy::cast_possible_truncation)] // at most 256 sectors
                let first = part.skipped as usize;
                let crcs = &self.op(tag).crcs[first..first + usize::from(part.count)];
                crc_table(settled, crcs.iter().copied())
            }
            Kind::Zero { unmap, fua } => {
                header.flags = if fua { Flags::FUA } else { Flags::NONE };
                if unmap {
                    header.flags = header.flags.with(Flags::UNMAP);
                }
                crc_table(settled, std::iter::empty())
            }
            Kind::Read | Kind::Flush => Vec::new(),
        };
        let frame = Frame::<Vec<u8>>::new(header, aux, None);
        out.push(LaneAction::Send {
            peer,
            header: frame.header,
            aux: frame.aux,
            payload,
        });
    }

    fn queue(&mut self, peer: PeerIndex, index: u32, target: usize) {
        #[allow(clippy::cast_possible_truncation)] // targets are few
        self.peer(peer).backlog.push_back((index, target as u16));
    }

    /// A reply made room on a connection.
    fn room_again(&mut self, now: Now, peer: PeerIndex, bytes: usize, out: &mut Vec<LaneAction>) {
        let state = self.peer(peer);
        state.requests_out = state.requests_out.saturating_sub(1);
        state.bytes_out = state.bytes_out.saturating_sub(bytes);
        for _ in 0..2 {
            let Some((index, target)) = self.peer(peer).backlog.pop_front() else {
                break;
            };
            let piece = self.pieces.get(index);
            let target = usize::from(target);
            // The slot may have been reused since; sending an unsent target is right anyway.
            if piece.live && piece.targets.get(target).is_some_and(|t| t.peer == peer) {
                self.send(now, index, target, out);
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // one reply, as it came
    fn answered(
        &mut self,
        now: Now,
        index: u32,
        target: usize,
        header: &Header,
        aux: &[u8],
        payload: &[u8],
        out: &mut Vec<LaneAction>,
    ) {
        let piece = self.pieces.get(index);
        if piece.kind == Kind::Read {
            let part = Self::buffer_part(piece);
            if header.flags.has(Flags::ZEROES) {
                out.push(LaneAction::FillZeroes(part));
            } else if !Self::verified(header, aux, payload, part.bytes as usize) {
                self.refused(now, index, target, Status::BadCrc, header, out);
                return;
            }
        }
        self.pieces.get_mut(index).targets[target].state = TargetState::Acked;
        self.check_piece(now, index, out);
    }

    fn verified(header: &Header, aux: &[u8], payload: &[u8], bytes: usize) -> bool {
        let Ok((_, crcs)) = read_crc_table(aux, header.count) else {
            return false;
        };
        payload.len() == bytes && payload.chunks_exact(SECTOR_BYTES).map(crc32c).eq(crcs)
    }

    /// A replica could not do it.
    fn refused(
        &mut self,
        now: Now,
        index: u32,
        target: usize,
        status: Status,
        header: &Header,
        out: &mut Vec<LaneAction>,
    ) {
        let config = self.current();
        let piece = self.pieces.get_mut(index);
        let slot = piece.targets[target].slot;
        let node = config.nodes[usize::from(slot.0)].node;
        let chunk = piece.part.chunk;
        if piece.kind == Kind::Read {
            self.stats.read_retries += 1;
            match status {
                Status::BadCrc | Status::IoError => {
                    out.push(LaneAction::Report(LaneReport::BadSector {
                        node,
                        chunk,
                        sector: header.sector,
                    }));
                }
                status => {
                    out.push(LaneAction::Report(LaneReport::ReplicaFailed {
                        node,
                        status,
                    }));
                }
            }
            piece.tried.push(slot);
            piece.targets.clear();
            let tried = std::mem::take(&mut piece.tried);
            Self::aim(piece, &config, &tried);
            piece.tried = tried;
            if piece.targets.is_empty() {
                self.end_piece(now, index, Err(GuestError::Io), out);
            } else {
                self.pieces.renew(index);
                self.send(now, index, 0, out);
            }
            return;
        }
        if status == Status::BadCrc && piece.retries < WRITE_RETRIES_MAX {
            piece.retries += 1; // damaged on the way
            self.send(now, index, target, out);
            return;
        }
        piece.targets[target].state = TargetState::Failed(status);
        let all_failed = piece
            .targets
            .iter()
            .all(|t| matches!(t.state, TargetState::Failed(_)));
        if !all_failed {
            out.push(LaneAction::Report(LaneReport::ReplicaFailed {
                node,
                status,
            }));
        }
        self.check_piece(now, index, out);
    }

    /// Ends the piece if every target has answered, or every one has failed.
    fn check_piece(&mut self, now: Now, index: u32, out: &mut Vec<LaneAction>) {
        let piece = self.pieces.get(index);
        if !piece.live {
            return;
        }
        assert!(
            !piece.targets.is_empty(),
            "a piece that nobody serves is ended, not checked (I1)"
        );
        if piece.targets.iter().all(|t| t.state == TargetState::Acked) {
            self.end_piece(now, index, Ok(()), out);
        } else if piece
            .targets
            .iter()
            .all(|t| matches!(t.state, TargetState::Failed(_)))
        {
            let full = piece
                .targets
                .iter()
                .all(|t| t.state == TargetState::Failed(Status::NoSpace));
            let error = if full {
                GuestError::NoSpace
            } else {
                GuestError::Io
            };
            self.end_piece(now, index, Err(error), out);
        }
    }

    fn end_piece(
        &mut self,
        now: Now,
        index: u32,
        result: Result<(), GuestError>,
        out: &mut Vec<LaneAction>,
    ) {
        let piece = self.pieces.get(index);
        let (tag, seq, versioned) = (piece.tag, piece.seq, piece.kind.is_versioned());
        self.pieces.remove(index);
        if versioned {
            self.seqs.remove(&seq);
            self.seq.ended(self.lane, self.seqs.first().copied());
        }
        let open = self.gate == Gate::Open;
        let op = self.op(tag);
        op.pieces_live -= 1;
        if let Err(error) = result {
            op.error.get_or_insert(error);
        }
        let finished = op.error.is_some() || op.issued >= u64::from(op.io.count.max(1));
        if op.pieces_live == 0 && finished {
            let result = op.error.map_or(Ok(()), Err);
            self.complete(now, tag, result, out);
        } else if open && !finished {
            self.issue(now, tag, out);
        }
    }

    fn complete(
        &mut self,
        now: Now,
        tag: GuestTag,
        result: Result<(), GuestError>,
        out: &mut Vec<LaneAction>,
    ) {
        if let Some(op) = self.ops[tag.0 as usize].take() {
            self.stats.guest(&op.io, now.since(op.started), result);
        }
        self.held.retain(|held| *held != tag);
        out.push(LaneAction::Complete { tag, result });
    }

    /// Tells control once that everything in flight has ended or waits only for lost nodes.
    fn check_prepared(&mut self, out: &mut Vec<LaneAction>) {
        let Gate::Preparing {
            epoch,
            lost,
            reported: false,
        } = &self.gate
        else {
            return;
        };
        let epoch = *epoch;
        let nodes = self.config.as_ref().map(|config| &config.nodes);
        let is_lost = |slot: NodeSlot| {
            nodes.is_some_and(|nodes| lost.contains(&nodes[usize::from(slot.0)].node))
        };
        let drained = self.pieces.live().all(|piece| {
            piece.targets.iter().all(|target| match target.state {
                TargetState::Acked | TargetState::Failed(_) | TargetState::Parked => true,
                TargetState::Unsent | TargetState::Sent { .. } => is_lost(target.slot),
            })
        });
        if drained {
            if let Gate::Preparing { reported, .. } = &mut self.gate {
                *reported = true;
            }
            out.push(LaneAction::Report(LaneReport::Prepared { epoch }));
        }
    }

    fn install(&mut self, now: Now, config: Arc<LaneConfig>, out: &mut Vec<LaneAction>) {
        if let Some(old) = &self.config {
            assert_eq!(old.volume, config.volume, "a lane serves one volume");
            assert!(old.generation <= config.generation, "generations only grow");
        }
        self.config = Some(Arc::clone(&config));
        self.gate = Gate::Open;
        for index in self.pieces.indices() {
            let piece = self.pieces.get_mut(index);
            for target in &mut piece.targets {
                if target.state == TargetState::Parked {
                    target.state = TargetState::Unsent;
                }
            }
            let tried = std::mem::take(&mut piece.tried);
            let before = piece.targets.first().map(|target| target.peer);
            Self::aim(piece, &config, &tried);
            piece.tried = tried;
            if piece.kind == Kind::Read && piece.targets.first().map(|t| t.peer) != before {
                self.pieces.renew(index);
            }
            let piece = self.pieces.get(index);
            // Replicas that failed and are still in the set: control could not do without them.
            let failed = piece.targets.iter().find_map(|t| match t.state {
                TargetState::Failed(status) => Some(status),
                _ => None,
            });
            if let Some(status) = failed {
                let full = status == Status::NoSpace;
                let error = if full {
                    GuestError::NoSpace
                } else {
                    GuestError::Io
                };
                self.end_piece(now, index, Err(error), out);
                continue;
            }
            if piece.targets.is_empty() && piece.kind == Kind::Read {
                self.end_piece(now, index, Err(GuestError::Io), out);
                continue;
            }
            for target in 0..self.pieces.get(index).targets.len() {
                self.send(now, index, target, out);
            }
            self.check_piece(now, index, out);
        }
        for index in 0..self.ops.len() {
            let unfinished = self.ops[index]
                .as_ref()
                .filter(|op| op.issued > 0)
                .map(|op| op.io.tag);
            if let Some(tag) = unfinished {
                self.issue(now, tag, out);
            }
        }
        for tag in std::mem::take(&mut self.held) {
            self.start(now, tag, out);
        }
    }

    fn fenced(&mut self, now: Now, out: &mut Vec<LaneAction>) {
        if self.gate != Gate::Failed {
            out.push(LaneAction::Report(LaneReport::Fenced));
            self.fail(now, out);
        }
    }

    fn fail(&mut self, now: Now, out: &mut Vec<LaneAction>) {
        self.gate = Gate::Failed;
        let tags: Vec<GuestTag> = self.ops.iter().flatten().map(|op| op.io.tag).collect();
        for tag in tags {
            self.pieces.drop_of(tag);
            self.complete(now, tag, Err(GuestError::Fenced), out);
        }
    }
}

impl Kind {
    fn opcode(self) -> Opcode {
        match self {
            Kind::Read => Opcode::Read,
            Kind::Write { .. } => Opcode::Write,
            Kind::Zero { .. } => Opcode::Zero,
            Kind::Flush => Opcode::Flush,
        }
    }
}
