//! From answers to a completed request.

use super::{ASKED_AGAIN_AT_ONCE_MAX, Gate, LaneCore, READ_ROUNDS_MAX, WRITE_RETRIES_MAX};
use crate::core::api::{GuestError, GuestTag, LaneAction, LaneReport, Now};
use crate::core::piece::{Kind, Target, TargetState};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::{SECTOR_BYTES, SEQ_MAX};
use ukai_proto::message::{read_crc_table, read_seqs};
use ukai_proto::{Flags, Header, Seq, Status};

impl LaneCore {
    #[allow(clippy::too_many_arguments)] // one reply, as it came
    pub(super) fn answered(
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
            let unsettled = self.first_in_flight(header, aux);
            if !self.may_tell(now, index, target, unsettled, out) {
                return;
            }
        }
        self.pieces.get_mut(index).targets[target].state = TargetState::Acked;
        let asked_first = self.config.as_ref().is_some_and(|c| !c.full.is_empty());
        if asked_first {
            self.send_all(now, index, out);
        }
        self.check_piece(now, index, out);
    }

    /// A write in flight that a READ reply shows.
    fn first_in_flight(&self, header: &Header, aux: &[u8]) -> Option<Seq> {
        // A node tells SEQ_MAX for content whose record it lost: its write is sent again.
        let in_flight = |seq: &Seq| seq.0 >= SEQ_MAX || self.seq.is_in_flight(*seq);
        match header.count {
            1 => Some(header.seq).filter(in_flight),
            count => read_seqs(aux, count)?.find(in_flight),
        }
    }

    /// May the guest be told what was read? Not while a write that it shows is still missing on some
    /// replica (I7: the guest would see it vanish with the replicas that have it), nor without the
    /// read lease. Then the read waits for the write, or is asked again.
    fn may_tell(
        &mut self,
        now: Now,
        index: u32,
        target: usize,
        in_flight: Option<Seq>,
        out: &mut Vec<LaneAction>,
    ) -> bool {
        let config = self.current();
        let piece = self.pieces.get_mut(index);
        let leased = config.may_read(now, piece.part.chunk);
        if leased && in_flight.is_none() {
            return true;
        }
        if let Some(seq) = in_flight
            && leased
            && self.seqs.contains(&seq)
        {
            piece.targets[target].state = TargetState::Unsettled(seq);
            self.unsettled.entry(seq).or_default().push(index);
            return false;
        }
        // Its state is Unsent. A write of another lane takes about as long as asking again; what takes
        // longer is asked again by every tick.
        piece.asked_again = piece.asked_again.saturating_add(1);
        if leased && piece.asked_again <= ASKED_AGAIN_AT_ONCE_MAX && self.gate == Gate::Open {
            self.send(now, index, target, out);
        }
        false
    }

    pub(super) fn verified(header: &Header, aux: &[u8], payload: &[u8], bytes: usize) -> bool {
        let Ok((_, crcs)) = read_crc_table(aux, header.count) else {
            return false;
        };
        payload.len() == bytes && payload.chunks_exact(SECTOR_BYTES).map(crc32c).eq(crcs)
    }

    /// A replica could not do it.
    pub(super) fn refused(
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
            piece.doubted |= status == Status::BadCrc && header.seq.0 >= SEQ_MAX;
            piece.tried.push(slot);
            piece.targets.clear();
            let tried = std::mem::take(&mut piece.tried);
            Self::aim(piece, &config, &tried);
            piece.tried = tried;
            if piece.targets.is_empty() {
                self.none_could_serve(now, index, out);
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

    /// Every replica has refused a read: with the next tick all are asked again, as often as is sensible. If what
    /// one has was only adopted, the write that it may belong to is sent again meanwhile, or another replica
    /// repairs it. If that does not help, control is to have the chunk reconciled under a new token.
    fn none_could_serve(&mut self, now: Now, index: u32, out: &mut Vec<LaneAction>) {
        let config = self.current();
        let piece = self.pieces.get_mut(index);
        let alone = config.set_of(piece.part.chunk).read.len() == 1;
        let doubted = std::mem::take(&mut piece.doubted);
        if doubted && piece.retries >= READ_ROUNDS_MAX {
            let chunk = piece.part.chunk;
            out.push(LaneAction::Report(LaneReport::Doubted { chunk }));
            piece.retries = 0;
        } else if !doubted && (alone || piece.retries >= READ_ROUNDS_MAX) {
            self.end_piece(now, index, Err(GuestError::Io), out);
            return;
        }
        piece.retries += 1;
        piece.asked_again = piece.asked_again.saturating_add(1);
        piece.tried.clear();
        Self::aim(piece, &config, &[]);
        self.pieces.renew(index);
    }

    /// A write failed on devices whose replicas cannot be spared. What went wrong once may go well the next time,
    /// and the same write heals what it left bad. `true`: it is to be sent to them again.
    pub(super) fn failed_in_passing(&mut self, index: u32, status: Status) -> bool {
        let piece = self.pieces.get_mut(index);
        if status != Status::IoError
            || piece.retries >= WRITE_RETRIES_MAX
            || !piece.kind.is_versioned()
        {
            return false;
        }
        let failed = |t: &&mut Target| t.state == TargetState::Failed(status);
        let mut again = false;
        for target in piece.targets.iter_mut().filter(failed) {
            target.state = TargetState::Unsent;
            again = true;
        }
        piece.retries += u8::from(again);
        again
    }

    /// Ends the piece if every target has answered, or every one has failed.
    pub(super) fn check_piece(&mut self, now: Now, index: u32, out: &mut Vec<LaneAction>) {
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
            if self.failed_in_passing(index, Status::IoError) {
                for target in 0..self.pieces.get(index).targets.len() {
                    let Target { slot, state, .. } = self.pieces.get(index).targets[target];
                    if let TargetState::Failed(status) = state {
                        // Now there may be others that have it: control is to judge this one.
                        let node = self.current().nodes[usize::from(slot.0)].node;
                        let failed = LaneReport::ReplicaFailed { node, status };
                        out.push(LaneAction::Report(failed));
                    }
                    self.send(now, index, target, out);
                }
                return;
            }
            let piece = self.pieces.get(index);
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

    pub(super) fn end_piece(
        &mut self,
        now: Now,
        index: u32,
        result: Result<(), GuestError>,
        out: &mut Vec<LaneAction>,
    ) {
        let tag = self.pieces.get(index).tag;
        self.end_seq(now, index, result.is_ok(), out);
        self.pieces.remove(index);
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

    /// A write ends: reads that wait for it may be told, or must be asked again.
    pub(super) fn end_seq(&mut self, now: Now, index: u32, done: bool, out: &mut Vec<LaneAction>) {
        let piece = self.pieces.get(index);
        if !piece.kind.is_versioned() {
            return;
        }
        let seq = piece.seq;
        let settled = done || !piece.may_be_somewhere();
        self.seqs.remove(&seq);
        let oldest = self.seqs.first().copied();
        if settled {
            self.seq.ended(self.lane, seq, oldest);
        } else if self.seq.abandon(self.lane, seq, oldest) {
            let chunk = piece.part.chunk;
            out.push(LaneAction::Report(LaneReport::Abandoned { chunk }));
        } else {
            out.push(LaneAction::Report(LaneReport::Fenced));
            self.gate = Gate::Failed;
        }
        for read in self.unsettled.remove(&seq).unwrap_or_default() {
            let piece = self.pieces.get_mut(read);
            let waits = |t: &Target| t.state == TargetState::Unsettled(seq);
            let Some(target) = piece.targets.iter().position(waits).filter(|_| piece.live) else {
                continue; // it went to another replica meanwhile
            };
            if done && piece.part.count == 1 {
                piece.targets[target].state = TargetState::Acked;
                self.check_piece(now, read, out);
                continue;
            }
            // Of several sectors others may be in flight still.
            piece.targets[target].state = TargetState::Unsent;
            if done && self.gate == Gate::Open {
                self.send(now, read, target, out);
            } else {
                // The next tick asks again.
                piece.asked_again = piece.asked_again.saturating_add(1);
            }
        }
    }

    pub(super) fn complete(
        &mut self,
        now: Now,
        tag: GuestTag,
        result: Result<(), GuestError>,
        out: &mut Vec<LaneAction>,
    ) {
        if let Some(op) = self.ops[tag.0 as usize].take() {
            let latency = now.since(op.started);
            self.stats.guest(&op.io, latency, result);
            if result.is_ok() && op.pieces == 1 {
                self.stats.front(&op.io, latency.saturating_sub(op.waited));
                if op.acked > 1 {
                    self.stats.replicated(&op.io, latency);
                }
            }
        }
        self.held.retain(|held| *held != tag);
        out.push(LaneAction::Complete { tag, result });
    }
}
