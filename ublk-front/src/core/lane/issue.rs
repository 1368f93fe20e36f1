//! From a guest request to frames: pieces, targets, room on connections.

use super::{LaneCore, OP_PIECES_MAX};
use crate::core::api::{
    BufferPart, GUEST_SECTORS_MAX, GuestError, GuestOp, GuestTag, LaneAction, LaneReport, Now,
    PeerIndex,
};
use crate::core::config::{LaneConfig, NodeSlot};
use crate::core::piece::{Kind, Piece, Target, TargetState};
use crate::core::split::part_at;
use ukai_proto::limits::{CONN_BYTES_MAX, CONN_REQUESTS_MAX, SECTOR_BYTES};
use ukai_proto::message::crc_table;
use ukai_proto::{Flags, Frame, Header, Seq};

impl LaneCore {
    /// Checks the range, then hands out pieces.
    pub(super) fn start(&mut self, now: Now, tag: GuestTag, out: &mut Vec<LaneAction>) {
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
    pub(super) fn issue(&mut self, now: Now, tag: GuestTag, out: &mut Vec<LaneAction>) {
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
            op.pieces += 1;
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
            match kind {
                Kind::Read => config.heat.read(part.chunk, part.count),
                Kind::Write { .. } => config.heat.write(part.chunk, part.count),
                Kind::Zero { .. } | Kind::Flush => {}
            }
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
            self.send_all(now, index, out);
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
    pub(super) fn aim(piece: &mut Piece, config: &LaneConfig, skip: &[NodeSlot]) {
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
                    sent: false,
                });
            }
        }
    }

    pub(super) fn buffer_part(piece: &Piece) -> BufferPart {
        #[allow(clippy::cast_possible_truncation)] // reads and writes are at most 1 MiB
        BufferPart {
            tag: piece.tag,
            offset_bytes: (piece.part.skipped * SECTOR_BYTES as u64) as u32,
            bytes: u32::from(piece.part.count) * SECTOR_BYTES as u32,
        }
    }

    /// Is a replica that may have no room to be asked before this one? See [`LaneConfig::full`].
    pub(super) fn waits_for_room(piece: &Piece, target: usize, config: &LaneConfig) -> bool {
        if config.full.is_empty() || !piece.kind.is_versioned() {
            return false;
        }
        let full = |t: &Target| {
            let entry = &config.nodes[usize::from(t.slot.0)];
            config.full.contains(&entry.node)
        };
        let waited_for = |t: &Target| full(t) && t.state != TargetState::Acked;
        !full(&piece.targets[target]) && piece.targets.iter().any(waited_for)
    }

    /// Sends to every target that waits for nothing any more.
    pub(super) fn send_all(&mut self, now: Now, index: u32, out: &mut Vec<LaneAction>) {
        for target in 0..self.pieces.get(index).targets.len() {
            self.send(now, index, target, out);
        }
    }

    /// Sends if the connection is up, is to the run that control fenced, and has room.
    pub(super) fn send(&mut self, now: Now, index: u32, target: usize, out: &mut Vec<LaneAction>) {
        let config = self.current();
        let piece = self.pieces.get(index);
        let Target {
            slot, peer, state, ..
        } = piece.targets[target];
        if state != TargetState::Unsent || Self::waits_for_room(piece, target, &config) {
            return;
        }
        let (kind, part, tag, seq) = (piece.kind, piece.part, piece.tag, piece.seq);
        let bytes = match kind {
            Kind::Read | Kind::Write { .. } => usize::from(part.count) * SECTOR_BYTES,
            Kind::Zero { .. } | Kind::Flush => 0,
        };
        if kind != Kind::Flush
            && let Some(told) = self.unreconciled.get_mut(&part.chunk)
        {
            if !std::mem::replace(told, true) {
                let chunk = part.chunk;
                out.push(LaneAction::Report(LaneReport::Touched { chunk }));
            }
            return;
        }
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
        piece.targets[target].sent = true;
        piece.sent = true;
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
        // A node that is being filled keeps its intents: they tell what to compare.
        let in_sync = kind.is_versioned() && config.set_of(part.chunk).read.contains(&slot);
        let settled = if in_sync { self.seq.announced().0 } else { 0 };
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

    pub(super) fn queue(&mut self, peer: PeerIndex, index: u32, target: usize) {
        #[allow(clippy::cast_possible_truncation)] // targets are few
        self.peer(peer).backlog.push_back((index, target as u16));
    }

    /// A reply made room on a connection.
    pub(super) fn room_again(
        &mut self,
        now: Now,
        peer: PeerIndex,
        bytes: usize,
        out: &mut Vec<LaneAction>,
    ) {
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
}
