//! READ, READ_VERSIONED, LIST, and the verifying of scrub.

use super::api::{DiskOp, IoId, ReadData, StoreAction, StoreReply};
use super::change::runs;
use super::control::unknown_version;
use super::directory::Entry;
use super::layout::{BLOCK_BYTES_U32, SlotIndex};
use super::op::{Again, Io, Kind, Op, Span};
use super::record::{Record, Run};
use super::room::Need;
use super::store::{Step, Store};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::SectorState;
use ukai_proto::{Buffer, SectorInChunk, Status, Version};

fn is(state: &SectorState, flag: u16) -> bool {
    state.flags & flag != 0
}

/// What lies below zeros is nobody's business.
fn fill_zeros(states: &[SectorState], data: &mut [u8]) {
    for (state, content) in states.iter().zip(data.chunks_exact_mut(SECTOR_BYTES)) {
        if is(state, SectorState::ZERO) {
            content.fill(0);
        }
    }
}

/// Versions of sectors. Content whose record was lost belongs to a write that nobody has numbered here:
/// it counts as the last one of its token.
fn versions(states: &[SectorState]) -> Vec<Version> {
    let versions = states.iter().map(|state| match state.version {
        Version { token, .. } if is(state, SectorState::ADOPTED) => unknown_version(token),
        version => version,
    });
    versions.collect()
}

impl<B: Buffer> Store<B> {
    pub(super) fn advance_read(
        &mut self,
        key: u64,
        op: &mut Op<B>,
        out: &mut Vec<StoreAction<B>>,
    ) -> Step<B> {
        let span = op.kind.span().expect("a read has sectors");
        let mut slot = None;
        let held: Vec<SectorState> = match self.directory.entry(&span.key) {
            None => vec![SectorState::UNWRITTEN; span.count.into()],
            Some(Entry::Hole(index)) => {
                let hole = &self.directory.holes[&index].hole;
                span.sectors().map(|sector| hole.state(sector)).collect()
            }
            Some(Entry::Slot(index, _)) => {
                if !self.page_ready(index, Some(key), out)
                    || !self.settled_ready(&span.key, index, key, out)
                {
                    return Step::Wait;
                }
                slot = Some(index);
                let page = self
                    .cache
                    .get(index)
                    .and_then(|cached| cached.page.as_ref());
                let page = page.expect("checked above");
                span.sectors().map(|sector| page.state(sector)).collect()
            }
        };
        let Kind::Read {
            versioned,
            verify,
            states,
            ..
        } = &mut op.kind
        else {
            return Step::Reply(StoreReply::List(self.told(&span.key, held)));
        };
        if held.iter().all(|state| is(state, SectorState::ZERO)) {
            return Step::Reply(if *verify {
                StoreReply::List(held)
            } else if *versioned {
                StoreReply::ReadVersioned {
                    states: held,
                    data: ReadData::Zeroes,
                }
            } else {
                let crcs = held.iter().map(|state| state.crc).collect();
                StoreReply::Read {
                    versions: versions(&held),
                    crcs,
                    data: ReadData::Zeroes,
                }
            });
        }
        let bad = span
            .sectors()
            .zip(&held)
            .find(|(_, state)| is(state, SectorState::BAD));
        if let Some((sector, _)) = bad
            && !*versioned
        {
            return Step::fail(Status::BadCrc, span.in_chunk(sector));
        }
        if !*versioned
            && !*verify
            && let Some(sector) = self.first_doubted(&span, &held)
        {
            return Step::Reply(StoreReply::Doubted { sector });
        }
        *states = held;
        op.executed = true;
        op.ios = 1;
        let slot = slot.expect("only slots hold data");
        self.read_data(Io::Read { op: key }, slot, span.first, span.bytes(), out);
        Step::Wait
    }

    /// Reads sectors of a slot.
    pub(super) fn read_data(
        &mut self,
        io: Io,
        slot: SlotIndex,
        first: u8,
        bytes: u32,
        out: &mut Vec<StoreAction<B>>,
    ) {
        let io = self.io(io);
        let position = self.geometry.slot_position(slot) + u64::from(first) * SECTOR_BYTES as u64;
        out.push(StoreAction::Disk(DiskOp::Read {
            io,
            position,
            bytes,
        }));
    }

    /// Is this device operation for somebody who is in no hurry (scrub)? Asked by the shell right after
    /// the operation was emitted, to give it few shares.
    #[must_use]
    pub fn in_background(&self, io: IoId) -> bool {
        let (Some(Io::Read { op }) | Some(Io::ReadSector { op, .. })) = self.ios.get(io.0) else {
            return false;
        };
        let kind = self.ops.get(*op).map(|op| &op.kind);
        matches!(kind, Some(Kind::Read { verify: true, .. }))
    }

    /// The device answered a read.
    pub(super) fn data_read(&mut self, key: u64, read: Option<B>, out: &mut Vec<StoreAction<B>>) {
        let mut op = self.ops.lend(key).expect("the request waits for its data");
        op.ios -= 1;
        let Kind::Read {
            span,
            versioned,
            verify,
            states,
            again,
        } = &mut op.kind
        else {
            panic!("only reads read");
        };
        let Some(data) = read.filter(|data| data.as_slice().len() == span.bytes() as usize) else {
            // One sector may be what cannot be read: find out which, the others are good.
            let written = span.sectors().zip(states.iter());
            let written = written.filter(|(_, state)| !is(state, SectorState::ZERO));
            let sectors: Vec<u8> = written.map(|(sector, _)| sector).collect();
            *again = Some(Again::new(vec![0; span.bytes() as usize], Status::IoError));
            let span = *span;
            op.ios += u32::try_from(sectors.len()).expect("at most 256");
            self.read_sectors(key, &span, &sectors, out);
            self.ops.give_back(key, op);
            return;
        };
        let mut zeros = false;
        let mut differ = Vec::new();
        let sectors = data.as_slice().chunks_exact(SECTOR_BYTES);
        for ((sector, state), content) in span.sectors().zip(states.iter_mut()).zip(sectors) {
            if is(state, SectorState::ZERO) {
                zeros = true;
            } else if !is(state, SectorState::BAD) && crc32c(content) != state.crc {
                differ.push(sector);
            }
        }
        if !differ.is_empty() {
            // What is marked bad is not read here any more, and this may be the last replica: a single read that went
            // wrong on its way must not do that.
            let mut found = data.as_slice().to_vec();
            fill_zeros(states, &mut found);
            *again = Some(Again::new(found, Status::BadCrc));
            let span = *span;
            op.ios += u32::try_from(differ.len()).expect("at most 256");
            self.read_sectors(key, &span, &differ, out);
            self.ops.give_back(key, op);
            return;
        }
        let data = if *verify {
            ReadData::Zeroes // not wanted
        } else if zeros {
            let mut owned = data.as_slice().to_vec();
            fill_zeros(states, &mut owned);
            ReadData::Owned(owned)
        } else {
            ReadData::Buffer(data)
        };
        let span = *span;
        let reply = self.read_reply(span, (*versioned, *verify), states, data, Status::BadCrc);
        self.ops.give_back(key, op);
        self.reply(key, reply, out);
    }

    /// Reads sectors of a request one by one.
    fn read_sectors(
        &mut self,
        key: u64,
        span: &Span,
        sectors: &[u8],
        out: &mut Vec<StoreAction<B>>,
    ) {
        let Some(Entry::Slot(slot, _)) = self.directory.entry(&span.key) else {
            panic!("a slot that is being read has an owner");
        };
        for sector in sectors.iter().copied() {
            let io = Io::ReadSector { op: key, sector };
            self.read_data(io, slot, sector, BLOCK_BYTES_U32, out);
        }
    }

    /// One sector that a read of several did not bring, or not as its checksum wants it.
    pub(super) fn sector_read(
        &mut self,
        key: u64,
        sector: u8,
        read: Option<B>,
        out: &mut Vec<StoreAction<B>>,
    ) {
        let mut op = self.ops.lend(key).expect("the request waits for its data");
        op.ios -= 1;
        let Kind::Read {
            span,
            versioned,
            verify,
            states,
            again,
        } = &mut op.kind
        else {
            panic!("only reads read");
        };
        let at = usize::from(sector - span.first);
        let rest = again.as_mut().expect("the first read failed");
        let read = read.filter(|data| data.as_slice().len() == SECTOR_BYTES);
        if let Some(content) = &read {
            let into = &mut rest.data[at * SECTOR_BYTES..][..SECTOR_BYTES];
            into.copy_from_slice(content.as_slice());
        }
        let good = read.is_some_and(|content| crc32c(content.as_slice()) == states[at].crc);
        if !good && !is(&states[at], SectorState::BAD) {
            states[at].flags |= SectorState::BAD;
            rest.bad.push(sector);
        }
        if op.ios > 0 {
            self.ops.give_back(key, op);
            return;
        }
        let Again { data, status, bad } = again.take().expect("still there");
        let data = if *verify {
            ReadData::Zeroes // not wanted
        } else {
            ReadData::Owned(data)
        };
        let span = *span;
        let reply = self.read_reply(span, (*versioned, *verify), states, data, status);
        self.mark_bad(&span, &bad);
        self.ops.give_back(key, op);
        self.reply(key, reply, out);
    }

    fn first_doubted(&self, span: &Span, states: &[SectorState]) -> Option<SectorInChunk> {
        let mut doubted = span.sectors().zip(states);
        let found = doubted.find(|(_, state)| self.is_doubted(&span.key, state));
        found.map(|(sector, _)| span.in_chunk(sector))
    }

    fn read_reply(
        &self,
        span: Span,
        (versioned, verify): (bool, bool),
        states: &mut Vec<SectorState>,
        data: ReadData<B>,
        status: Status,
    ) -> StoreReply<B> {
        let states = std::mem::take(states);
        if verify {
            return StoreReply::List(self.told(&span.key, states));
        }
        if versioned {
            let states = self.told(&span.key, states);
            return StoreReply::ReadVersioned { states, data };
        }
        match span
            .sectors()
            .zip(&states)
            .find(|(_, state)| is(state, SectorState::BAD))
        {
            Some((sector, _)) => StoreReply::Failed {
                status,
                sector: span.in_chunk(sector),
            },
            None => {
                let crcs = states.iter().map(|state| state.crc).collect();
                let versions = versions(&states);
                StoreReply::Read {
                    versions,
                    crcs,
                    data,
                }
            }
        }
    }

    /// Remembers that sectors cannot be used, so that a copy from a peer replaces them whatever its
    /// version. The caller holds the sectors. Best effort: what is forgotten is found again by a read.
    pub(super) fn mark_bad(&mut self, span: &Span, sectors: &[u8]) {
        let picked = runs(span, |sector| sectors.contains(&sector));
        self.log_bad(span, &picked, Store::has_room);
    }

    /// The write of these sectors failed, and the log says that it is there. `false`: there is no room
    /// in the log to say otherwise, not even in the part that is kept free for this.
    pub(super) fn data_is_bad(&mut self, span: &Span) -> bool {
        self.log_bad(span, &[(span.first, span.count)], Store::has_margin)
    }

    fn log_bad(
        &mut self,
        span: &Span,
        runs: &[(u8, u16)],
        has_room: impl Fn(&Self, &Need) -> bool,
    ) -> bool {
        let Some(Entry::Slot(slot, _)) = self.directory.entry(&span.key) else {
            return false;
        };
        let bad = runs.iter().map(|(first, count)| Run {
            slot,
            first: *first,
            count: *count,
        });
        let mut need = Need::default();
        bad.clone()
            .for_each(|run| need.record(&Record::Bad { run }));
        need.pages = usize::from(!self.cache.is_pinned(slot));
        let lasting = !runs.is_empty() && !self.poisoned && has_room(self, &need);
        let Some(cached) = self.cache.get(slot) else {
            return false;
        };
        let page = cached.page.as_mut().expect("the slot has an owner");
        for sector in bad.clone().flat_map(|run| run.sectors()) {
            let mut state = page.state(sector);
            state.flags |= SectorState::BAD;
            page.set_state(sector, &state);
            self.stats.bad_sectors += 1;
        }
        if lasting {
            self.cache.mark_dirty(slot);
            for run in bad {
                self.log.append(&Record::Bad { run });
            }
        }
        lasting
    }
}
