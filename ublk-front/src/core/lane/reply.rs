//! From answers to a completed request.

use super::{Gate, LaneCore, WRITE_RETRIES_MAX};
use crate::core::api::{GuestError, GuestTag, LaneAction, LaneReport, Now};
use crate::core::piece::{Kind, TargetState};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::read_crc_table;
use ukai_proto::{Flags, Header, Status};

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
        }
        self.pieces.get_mut(index).targets[target].state = TargetState::Acked;
        self.check_piece(now, index, out);
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

    pub(super) fn complete(
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
}
