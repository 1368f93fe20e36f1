//! Pieces in flight and their targets: a slab whose entries keep their allocations.

use super::api::{GuestTag, Now, PeerIndex};
use super::config::NodeSlot;
use super::split::Part;
use std::collections::BTreeSet;
use std::time::Duration;
use ukai_proto::{ChunkIndex, Opcode, Seq, Status};

/// What a piece does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    Write { fua: bool },
    Zero { unmap: bool, fua: bool },
    Flush,
}

impl Kind {
    /// Does it carry a sequence number?
    pub(super) fn is_versioned(self) -> bool {
        matches!(self, Kind::Write { .. } | Kind::Zero { .. })
    }
}

impl Kind {
    pub(super) fn opcode(self) -> Opcode {
        match self {
            Kind::Read => Opcode::Read,
            Kind::Write { .. } => Opcode::Write,
            Kind::Zero { .. } => Opcode::Zero,
            Kind::Flush => Opcode::Flush,
        }
    }
}

/// How far one replica is with a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TargetState {
    /// To be sent when the peer is up and has room.
    Unsent,
    /// Waiting for the answer.
    Sent { at: Now, bytes: usize },
    /// Refused for an old generation: to be sent after the next installation.
    Parked,
    /// A read, answered with what a write in flight on this lane has stored: told to the guest when
    /// that write has reached every replica (I7).
    Unsettled(Seq),
    /// Done.
    Acked,
    /// Cannot; control has been told.
    Failed(Status),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) slot: NodeSlot,
    pub(super) peer: PeerIndex,
    pub(super) state: TargetState,
    /// It may have the piece, or get it yet, unless it refused.
    pub(super) sent: bool,
}

#[derive(Debug)]
pub(super) struct Piece {
    pub(super) live: bool,
    /// Distinguishes the uses of this entry in wire tags.
    serial: u32,
    pub(super) tag: GuestTag,
    pub(super) kind: Kind,
    pub(super) part: Part,
    pub(super) seq: Seq,
    pub(super) targets: Vec<Target>,
    /// Reads: replicas that could not serve it.
    pub(super) tried: Vec<NodeSlot>,
    /// Writes: sent again as damaged on the way, or as every replica's device failed. Reads: rounds over all
    /// replicas that ended with nothing.
    pub(super) retries: u8,
    /// Some replica may have it, whatever was answered.
    pub(super) sent: bool,
    /// Reads: in this round over the replicas one had content that was adopted.
    pub(super) doubted: bool,
    /// Reads: answered, but not to be told yet, so often; asked again.
    pub(super) asked_again: u8,
}

impl Piece {
    /// Of a write that fails: may some replica have it, or get it yet, and others not?
    pub(super) fn may_be_somewhere(&self) -> bool {
        // Who has no room for a slot has applied nothing.
        let refused = |t: &Target| t.state == TargetState::Failed(Status::NoSpace) || !t.sent;
        let answered = |t: &Target| matches!(t.state, TargetState::Failed(_));
        let alone = self.targets.len() == 1 && self.targets.iter().all(answered);
        self.sent && !alone && !self.targets.iter().all(refused)
    }
}

#[derive(Debug, Default)]
pub(super) struct Pieces {
    entries: Vec<Piece>,
    free: Vec<u32>,
}

impl Pieces {
    pub(super) fn add(&mut self, tag: GuestTag, kind: Kind, part: Part, seq: Seq) -> u32 {
        if let Some(index) = self.free.pop() {
            let piece = &mut self.entries[index as usize];
            piece.serial = piece.serial.wrapping_add(1);
            (piece.live, piece.tag, piece.kind, piece.part, piece.seq) =
                (true, tag, kind, part, seq);
            piece.targets.clear();
            piece.tried.clear();
            piece.retries = 0;
            (piece.sent, piece.doubted, piece.asked_again) = (false, false, 0);
            return index;
        }
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        assert!(
            index <= u32::from(u16::MAX),
            "more pieces than all requests of a lane can have"
        );
        self.entries.push(Piece {
            live: true,
            serial: 0,
            tag,
            kind,
            part,
            seq,
            targets: Vec::with_capacity(2),
            tried: Vec::new(),
            retries: 0,
            sent: false,
            doubted: false,
            asked_again: 0,
        });
        index
    }

    pub(super) fn get(&self, index: u32) -> &Piece {
        &self.entries[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Piece {
        &mut self.entries[index as usize]
    }

    pub(super) fn remove(&mut self, index: u32) {
        let piece = &mut self.entries[index as usize];
        assert!(piece.live, "piece {index} ended twice");
        piece.live = false;
        self.free.push(index);
    }

    /// Its earlier answers, should they still come, are nobody's.
    pub(super) fn renew(&mut self, index: u32) {
        let piece = &mut self.entries[index as usize];
        piece.serial = piece.serial.wrapping_add(1);
    }

    /// Names a piece on the wire; with the peer that answers it names the target.
    pub(super) fn wire_tag(&self, index: u32) -> u64 {
        u64::from(self.entries[index as usize].serial) << 32 | u64::from(index)
    }

    /// The live piece that a wire tag names.
    pub(super) fn find(&self, wire_tag: u64) -> Option<u32> {
        let index = u32::try_from(wire_tag & 0xffff_ffff).ok()?;
        let piece = self.entries.get(index as usize)?;
        (piece.live && u64::from(piece.serial) == wire_tag >> 32).then_some(index)
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Piece> {
        self.entries.iter().filter(|piece| piece.live)
    }

    pub(super) fn indices(&self) -> Vec<u32> {
        (0u32..)
            .zip(&self.entries)
            .filter(|(_, piece)| piece.live)
            .map(|(index, _)| index)
            .collect()
    }

    /// Live pieces of a request.
    pub(super) fn of(&self, tag: GuestTag) -> Vec<u32> {
        let mut indices = self.indices();
        indices.retain(|index| self.entries[*index as usize].tag == tag);
        indices
    }

    pub(super) fn drop_of(&mut self, tag: GuestTag) {
        for index in self.of(tag) {
            self.remove(index);
        }
    }

    pub(super) fn unsent_to(&self, peer: PeerIndex) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        for (index, piece) in (0u32..).zip(&self.entries).filter(|(_, piece)| piece.live) {
            for (target, t) in piece.targets.iter().enumerate() {
                if t.peer == peer && t.state == TargetState::Unsent {
                    found.push((index, target));
                }
            }
        }
        found
    }

    /// Pieces of a chunk that have something to send.
    pub(super) fn unsent_of(&self, chunk: ChunkIndex) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        for (index, piece) in (0u32..).zip(&self.entries).filter(|(_, piece)| piece.live) {
            for (target, t) in piece.targets.iter().enumerate() {
                if piece.part.chunk == chunk && t.state == TargetState::Unsent {
                    found.push((index, target));
                }
            }
        }
        found
    }

    /// Reads that are to be asked again.
    pub(super) fn reads_to_ask_again(&self) -> Vec<u32> {
        (0u32..)
            .zip(&self.entries)
            .filter(|(_, piece)| piece.live && piece.asked_again > 0)
            .filter(|(_, piece)| piece.targets.iter().any(|t| t.state == TargetState::Unsent))
            .map(|(index, _)| index)
            .collect()
    }

    pub(super) fn unsend(&mut self, peer: PeerIndex) {
        for piece in self.entries.iter_mut().filter(|piece| piece.live) {
            for target in piece
                .targets
                .iter_mut()
                .filter(|target| target.peer == peer)
            {
                if matches!(target.state, TargetState::Sent { .. }) {
                    target.state = TargetState::Unsent;
                }
            }
        }
    }

    /// Peers that have left something unanswered for longer than `reply_max`.
    pub(super) fn silent(&self, now: Now, reply_max: Duration) -> BTreeSet<PeerIndex> {
        let targets = self.live().flat_map(|piece| &piece.targets);
        targets
            .filter(
                |t| matches!(t.state, TargetState::Sent { at, .. } if now.since(at) > reply_max),
            )
            .map(|t| t.peer)
            .collect()
    }
}
