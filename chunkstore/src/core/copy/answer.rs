//! What comes back to an order: states, pieces, stored sectors.

use super::decide::{Piece, cut, takes_bad};
use super::{
    Asked, Copies, CopyAction, OrderId, PieceId, REFUSED_MAX_NS, REFUSED_MIN_NS, Window, put,
};
use crate::core::event::PeerId;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{PullMode, SectorState, read_sector_states};
use ukai_proto::{Buffer, Flags, Frame, SectorInChunk, Status};

impl<B: Buffer> Copies<B> {
    /// Answer to [`CopyAction::List`].
    pub(in crate::core) fn listed(
        &mut self,
        now: u64,
        id: OrderId,
        states: Result<Vec<SectorState>, Status>,
        out: &mut Vec<CopyAction<B>>,
    ) {
        match states {
            Err(status) => self.finish(now, id, Err(status), out),
            Ok(states) => self.window_states(now, id, states, false),
        }
        self.advance(now, out);
    }

    fn window_states(&mut self, now: u64, id: OrderId, states: Vec<SectorState>, theirs: bool) {
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        let Some(window) = &mut order.window else {
            return;
        };
        order.progress_at = now;
        let mode = order.pull.mode;
        if theirs {
            window.source = Some(as_copied(mode, states));
        } else {
            window.held = Some(as_compared(mode, states));
        }
        if let Window {
            first,
            count,
            held: Some(held),
            source: Some(source),
        } = window
        {
            let (mode, ceiling) = (order.pull.mode, order.pull.ceiling);
            let (pieces, bad) = cut(*first, held, source, mode, ceiling);
            order.result.sectors_compared += u32::from(*count);
            order.result.sectors_bad += bad;
            order.todo.extend(pieces);
            order.window = None;
        }
    }

    /// Answer to [`CopyAction::Put`].
    pub(in crate::core) fn put_done(
        &mut self,
        now: u64,
        id: OrderId,
        piece: PieceId,
        applied: Result<u16, Status>,
        out: &mut Vec<CopyAction<B>>,
    ) {
        if let Some(order) = self.orders.get_mut(&id)
            && order.in_flight.remove(&piece).is_some()
        {
            self.pieces_in_flight[usize::from(order.is_paced())] -= 1;
            order.progress_at = now;
            match applied {
                Ok(applied) => order.result.sectors_copied += u32::from(applied),
                Err(status) => self.finish(now, id, Err(status), out),
            }
        }
        self.advance(now, out);
    }

    /// A frame of a peer.
    pub(in crate::core) fn peer_frame(
        &mut self,
        now: u64,
        peer: PeerId,
        frame: Frame<B>,
        out: &mut Vec<CopyAction<B>>,
    ) {
        self.peers.heard(now, peer);
        if !frame.header.flags.has(Flags::REPLY) {
            self.give_up(now, peer, out);
        } else if !self.peers.is_ready(peer) {
            if !self.peers.greeted(&self.identity, peer, &frame, out) {
                self.give_up(now, peer, out);
            }
        } else if let Some((asked_of, asked)) = self.asked.remove(&frame.header.tag) {
            if asked_of != peer {
                self.give_up(now, peer, out);
            } else {
                self.answer(now, asked, frame, out);
            }
        }
        self.advance(now, out);
    }

    fn answer(&mut self, now: u64, asked: Asked, frame: Frame<B>, out: &mut Vec<CopyAction<B>>) {
        let (Asked::List(id) | Asked::Read(id, _)) = asked;
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        if let (Status::Busy, Asked::Read(_, piece_id), true) =
            (frame.header.status, asked, order.is_paced())
        {
            if let Some(piece) = order.in_flight.remove(&piece_id) {
                self.pieces_in_flight[1] -= 1;
                if let Some(bucket) = &mut self.rate {
                    bucket.give_back(piece.bytes());
                }
                order.todo.push_front(piece);
                let wait = frame.header.seq.0.clamp(REFUSED_MIN_NS, REFUSED_MAX_NS);
                let again_at = now.saturating_add(wait);
                order.waits.source_ns += again_at - order.waits.again_at.clamp(now, again_at);
                order.waits.again_at = again_at;
            }
            return;
        }
        if frame.header.status != Status::Ok {
            self.finish(now, id, Err(Status::PeerFailed), out);
            return;
        }
        order.progress_at = now;
        if let (Asked::Read(..), true) = (asked, order.is_paced()) {
            let held_ns = frame.header.seq.0;
            order.waits.source_ns = order.waits.source_ns.max(held_ns);
        }
        let expected = match asked {
            Asked::List(_) => order.window.as_ref().map(|window| window.count),
            Asked::Read(_, piece) => order.in_flight.get(&piece).map(|piece| piece.count),
        };
        let states = expected
            .and_then(|count| read_sector_states(&frame.aux, count).ok())
            .map(|(_, states)| states.collect::<Vec<_>>());
        let Some(states) = states else {
            self.finish(now, id, Err(Status::PeerFailed), out);
            return;
        };
        match asked {
            Asked::List(_) => self.window_states(now, id, states, true),
            Asked::Read(_, piece) => self.fetched(now, id, piece, states, frame.data, out),
        }
    }

    /// A piece arrived from the source.
    fn fetched(
        &mut self,
        now: u64,
        id: OrderId,
        piece_id: PieceId,
        states: Vec<SectorState>,
        data: Option<B>,
        out: &mut Vec<CopyAction<B>>,
    ) {
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        let Some(piece) = order.in_flight.get(&piece_id) else {
            return;
        };
        let states = as_copied(order.pull.mode, states);
        if !payload_matches(&states, data.as_ref()) {
            self.finish(now, id, Err(Status::PeerFailed), out);
            return;
        }
        let mode = order.pull.mode;
        let is_lost = |s: &SectorState| s.flags & SectorState::BAD != 0 && !takes_bad(mode, s);
        if states.iter().any(is_lost) {
            // Found bad only when it was read. Fetch what lies around it anew.
            let (piece, mut at) = (piece.clone(), piece.sector.0);
            order.in_flight.remove(&piece_id);
            self.pieces_in_flight[usize::from(order.is_paced())] -= 1;
            for run in states.chunk_by(|a, b| is_lost(a) == is_lost(b)) {
                #[allow(clippy::cast_possible_truncation)] // a part of piece.count
                let count = run.len() as u16;
                if is_lost(&run[0]) {
                    order.result.sectors_bad += u32::from(count);
                } else {
                    order.todo.push_back(Piece {
                        sector: SectorInChunk(at),
                        count,
                        zeros: None,
                    });
                }
                at += count;
            }
            assert_eq!(at, piece.sector.0 + piece.count, "runs cover the piece");
            return;
        }
        let piece = piece.clone();
        out.push(put(id, piece_id, order, &piece, states, data));
    }
}

/// A reconcile takes doubted content for what it is, adopted; all others take it for bad.
fn as_compared(mode: PullMode, mut states: Vec<SectorState>) -> Vec<SectorState> {
    if mode == PullMode::Newer {
        states
            .iter_mut()
            .for_each(|state| *state = state.undoubted());
    }
    states
}

/// What another copy takes from a replica that does not doubt it was reconciled before: it is the truth.
fn as_copied(mode: PullMode, states: Vec<SectorState>) -> Vec<SectorState> {
    let mut states = as_compared(mode, states);
    if mode != PullMode::Newer {
        let good = |state: &&mut SectorState| state.flags & SectorState::BAD == 0;
        let good = states.iter_mut().filter(good);
        good.for_each(|state| state.flags &= !SectorState::ADOPTED);
    }
    states
}

/// Does the payload go with the states: every good non-zero sector is there and verifies?
fn payload_matches<B: Buffer>(states: &[SectorState], data: Option<&B>) -> bool {
    let Some(data) = data else {
        return states.iter().all(|s| s.flags & SectorState::ZERO != 0);
    };
    let sectors = data.as_slice().chunks_exact(SECTOR_BYTES);
    sectors.len() == states.len()
        && sectors.zip(states).all(|(sector, state)| {
            state.flags & (SectorState::ZERO | SectorState::BAD) != 0 || crc32c(sector) == state.crc
        })
}
