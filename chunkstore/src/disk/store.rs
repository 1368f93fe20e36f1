//! The store of one shard as a state machine.
//!
//! [`Store::submit`] and [`Store::disk_done`] are events; each may emit replies and device operations.
//! After a batch of events the caller calls [`Store::turn_end`], which sends the records of the whole
//! batch to the log in one write. Requests that cannot go on are parked on what they wait for and
//! looked at again from the start when it happens, so a request's path is one function that reads from
//! top to bottom: `read.rs`, `write.rs`, `zero.rs`, `put.rs`, `control.rs`.

pub use super::report::{OpenError, RecoveryReport, StoreStats};

use super::api::{Disk, DiskResult, IoId, OpId, StoreAction, StoreReply, StoreRequest};
use super::cache::Cache;
use super::checkpoint::Checkpoint;
use super::commit::{Commit, GroupId};
use super::control::Rest;
use super::directory::Directory;
use super::intent::Intents;
use super::layout::{BLOCK_BYTES, Geometry, ShardPlace, SlotIndex};
use super::log::LogBuffer;
use super::op::{Io, Kind, Op, Waiter};
use super::order::Order;
use super::recovery::{Recovered, recover};
use super::room::Bounds;
use super::slab::Slab;
use super::space::Space;
use super::sweep::Sweep;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use ukai_proto::{BootId, Buffer, SectorInChunk, Status, VolumeId};

/// Bounds of a store's memory. Besides the page cache a shard keeps about 30 bytes per slot in use
/// (30 MiB per TiB stored) and about 110 per hole that a discard left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreLimits {
    /// Bytes of cached pages (each covers one slot of 1 MiB): 16 MiB keep the states of 4 GiB at hand.
    pub page_cache_bytes: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            page_cache_bytes: 16 << 20,
        }
    }
}

/// How far a request got.
pub(super) enum Step<B> {
    /// It waits, registered somewhere; or its effect is made and completions do the rest.
    Wait,
    /// It is finished.
    Reply(StoreReply<B>),
}

impl<B> Step<B> {
    pub(super) fn fail(status: Status, sector: SectorInChunk) -> Self {
        Self::Reply(StoreReply::Failed { status, sector })
    }
}

/// Why a part of a request's path ends early.
pub(super) enum Stop {
    /// Parked.
    Parked,
    /// Refused.
    Refused(Status),
}

/// The store.
#[derive(Debug)]
pub struct Store<B> {
    pub(super) place: ShardPlace,
    pub(super) geometry: Geometry,
    pub(super) bounds: Bounds,
    /// Blocks of the pending group.
    pub(super) log: LogBuffer,
    pub(super) epoch: u64,
    /// Oldest block that a replay would need.
    pub(super) tail: u64,
    pub(super) superblock_sequence: u64,
    pub(super) boot: BootId,
    pub(super) commit: Commit,
    pub(super) directory: Directory,
    pub(super) intents: Intents,
    pub(super) space: Space,
    pub(super) cache: Cache,
    pub(super) dirty_hole_pages: BTreeSet<super::layout::PageIndex>,
    pub(super) order: Order,
    pub(super) sweep: Sweep,
    pub(super) checkpoint: Checkpoint,
    pub(super) ops: Slab<Op<B>>,
    pub(super) ios: Slab<Io>,
    /// Requests to be started, and to be looked at again.
    starting: VecDeque<u64>,
    pub(super) ready: VecDeque<u64>,
    /// Page reads under way.
    pub(super) reading: BTreeMap<SlotIndex, Vec<u64>>,
    pub(super) on_log_durable: VecDeque<(GroupId, Waiter)>,
    pub(super) on_flushed: VecDeque<(GroupId, Waiter)>,
    /// Requests that wait for log room, cache room, or a settled slot's turn.
    pub(super) stalled: Vec<u64>,
    pub(super) wait_slot: Vec<u64>,
    pub(super) wait_marker: Vec<u64>,
    pub(super) wait_intent_room: Vec<u64>,
    /// Something other than a flush may have made room for intents; what was flushed at the last look.
    pub(super) intent_room_moved: bool,
    pub(super) intent_room_flushed: GroupId,
    /// A marker is wanted for which the log has no room.
    pub(super) marker_stalled: bool,
    /// Volumes whose last write was known everywhere when somebody told.
    pub(super) at_rest: VecDeque<Rest>,
    /// Those in `at_rest`.
    pub(super) resting: BTreeSet<VolumeId>,
    /// Calls of [`Store::tick`].
    pub(super) ticks: u64,
    /// A marker of this group must become durable; the group that will tell it.
    pub(super) marker_wanted: GroupId,
    pub(super) marker_group: Option<GroupId>,
    pub(super) written_marker_wanted: GroupId,
    /// Markers when requests that wait for them were woken last.
    pub(super) markers_seen: (GroupId, GroupId),
    pub(super) told: Vec<u64>,
    pub(super) poisoned: bool,
    /// The superblock that tells of the poison is under way, or has to be.
    pub(super) disowning: bool,
    pub(super) closing: bool,
    pub(super) closed: bool,
    pub(super) stats: StoreStats,
}

impl<B: Buffer> Store<B> {
    /// Recovers the shard and makes it ready: superblock, page table, log, settled sectors, a checkpoint
    /// under a new epoch. Blocking; nothing is served meanwhile.
    ///
    /// Assumes that the power failed. [`Store::open_on`] knows better.
    pub fn open(
        disk: &mut dyn Disk,
        place: &ShardPlace,
        limits: StoreLimits,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        Self::open_on(disk, place, limits, BootId::NIL)
    }

    /// As [`Store::open`], on this boot of the machine: if the last run was on the same one, every
    /// write that had completed is there, and nothing that was answered is lost even if it was
    /// overwritten when the process died.
    pub fn open_on(
        disk: &mut dyn Disk,
        place: &ShardPlace,
        limits: StoreLimits,
        boot: BootId,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let Recovered {
            geometry,
            superblock,
            next_block,
            directory,
            intents,
            space,
            suspects,
            lost,
            report,
        } = recover(disk, place, boot)?;
        let bounds = Bounds::new(geometry.log_blocks, limits.page_cache_bytes / BLOCK_BYTES);
        let store = Self {
            place: *place,
            geometry,
            bounds,
            log: LogBuffer::new(next_block),
            epoch: superblock.epoch,
            tail: superblock.tail,
            superblock_sequence: superblock.sequence,
            boot,
            commit: Commit::new(superblock.flushed),
            directory,
            intents,
            space,
            cache: Cache::new(bounds.cache_pages),
            dirty_hole_pages: BTreeSet::new(),
            order: Order::default(),
            sweep: Sweep::new(suspects, lost),
            checkpoint: Checkpoint::default(),
            ops: Slab::default(),
            ios: Slab::default(),
            starting: VecDeque::new(),
            ready: VecDeque::new(),
            reading: BTreeMap::new(),
            on_log_durable: VecDeque::new(),
            on_flushed: VecDeque::new(),
            stalled: Vec::new(),
            wait_slot: Vec::new(),
            wait_marker: Vec::new(),
            wait_intent_room: Vec::new(),
            intent_room_moved: false,
            intent_room_flushed: 0,
            marker_stalled: false,
            at_rest: VecDeque::new(),
            resting: BTreeSet::new(),
            ticks: 0,
            marker_wanted: 0,
            marker_group: None,
            written_marker_wanted: 0,
            markers_seen: (0, 0),
            told: Vec::new(),
            poisoned: false,
            disowning: false,
            closing: false,
            closed: false,
            stats: StoreStats::default(),
        };
        Ok((store, report))
    }

    /// A request. Replies may be emitted at once or by a later call.
    pub fn submit(&mut self, op: OpId, request: StoreRequest<B>, out: &mut Vec<StoreAction<B>>) {
        let refused = match Kind::new(request) {
            None => Status::BadRequest,
            Some(_) if self.closing => Status::Stopping,
            Some(kind) if self.poisoned && kind.changes() => Status::Poisoned,
            Some(kind) => {
                let key = self.ops.insert(Op::new(op, kind));
                self.starting.push_back(key);
                self.run(out);
                return;
            }
        };
        let sector = SectorInChunk(0);
        out.push(StoreAction::Reply(
            op,
            StoreReply::Failed {
                status: refused,
                sector,
            },
        ));
    }

    /// A device operation ended.
    pub fn disk_done(&mut self, io: IoId, result: DiskResult<B>, out: &mut Vec<StoreAction<B>>) {
        let io = self
            .ios
            .remove(io.0)
            .expect("completions name operations that are under way");
        let (read, error) = match result {
            DiskResult::Read(data) => (Some(data), None),
            DiskResult::Done => (None, None),
            DiskResult::Failed(errno) => (None, Some(errno)),
        };
        match io {
            Io::Superblock if error.is_some() || self.poisoned => {
                self.superblock_failed(error.is_some());
                self.poison(out);
                self.disown(out);
            }
            Io::Log { .. } | Io::Sync | Io::InPlace if error.is_some() => self.poison(out),
            Io::Log { group } => self.commit.log_ends(group),
            Io::Sync => self.commit.end_sync(),
            Io::Superblock => self.superblock_written(out),
            // If even this failed, nothing is worse than it was.
            Io::Disown => self.disowning = false,
            Io::InPlace => self.page_written(out),
            Io::Data {
                op,
                group,
                first,
                count,
            } => self.data_written(op, group, (first, count), error, out),
            Io::Read { op } => self.data_read(op, read, out),
            Io::ReadSector { op, sector } => self.sector_read(op, sector, read, out),
            Io::Page { slot } => self.page_read(slot, read, out),
            Io::Punch { slot } => self.space.punched(slot),
            Io::Settle { key } => self.slot_read(key, read, out),
            Io::SettleSector { key, sector } => self.settle_sector_read(key, sector, read, out),
        }
        self.progress(out);
        self.run(out);
        self.begin_sync(out);
    }

    /// After a batch of events: emits the group-committed log write, starts checkpoints.
    pub fn turn_end(&mut self, out: &mut Vec<StoreAction<B>>) {
        self.run(out);
        if !self.poisoned {
            self.want_marker();
            self.seal(out);
            self.maybe_checkpoint(out);
            self.progress(out);
            self.run(out);
            // What became possible by progress (a freed slot, say) may have left records.
            self.seal(out);
            self.begin_sync(out);
        }
        self.maybe_closed();
    }

    /// Four times a second, about.
    pub fn tick(&mut self) {
        self.ticks += 1;
    }

    /// Once per turn: one step of sweeping suspect slots (when idle) and closing intents. `true` if
    /// there is more to do at once. Call [`Store::turn_end`] after it as after any event.
    pub fn background(&mut self, out: &mut Vec<StoreAction<B>>) -> bool {
        if self.closing || self.poisoned {
            return false;
        }
        // Settling competes with requests for the device; only a lack of intents makes it urgent.
        let urgent = self.intents.len() > self.bounds.intents / 2;
        let more = (self.ops.len() == 0 || urgent) && self.sweep_step(out);
        self.account_recovered(out);
        self.close_quiet_intents();
        self.wake_intent_room();
        self.run(out);
        more
    }

    /// Clean stop: new requests are refused with Stopping, those in flight finish, then a checkpoint.
    /// [`Store::closed`] tells when all is on disk. Call [`Store::turn_end`] after it as after any event.
    pub fn close(&mut self, _out: &mut Vec<StoreAction<B>>) {
        self.closing = true;
    }

    /// The clean stop is complete (or the store is poisoned and no request is in flight).
    #[must_use]
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// A log write or flush failed; every later write and flush is refused.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.poisoned
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            intents_open: self.intents.len() as u64,
            slots_suspect: self.sweep.suspects.len() as u64,
            requests: self.ops.len() as u64,
            ..self.stats
        }
    }

    /// Starts and re-examines requests until nothing moves.
    pub(super) fn run(&mut self, out: &mut Vec<StoreAction<B>>) {
        loop {
            if let Some(key) = self.starting.pop_front() {
                self.start(key, out);
            } else if let Some(key) = self.ready.pop_front() {
                self.advance(key, out);
            } else {
                break;
            }
        }
    }

    /// Volume gate, then sectors, then the request's own path.
    fn start(&mut self, key: u64, out: &mut Vec<StoreAction<B>>) {
        let Some(op) = self.ops.get_mut(key) else {
            return;
        };
        if let Some((volume, barrier)) = op.kind.gate()
            && !op.entered
        {
            // The gate lets it in at once or puts it back to `starting` later.
            op.entered = true;
            if !self.order.enter(volume, key, barrier) {
                return;
            }
        }
        if let Some(span) = op.kind.span() {
            let exclusive = op.kind.changes();
            op.claimed = true;
            if !self
                .order
                .acquire(span.key, key, (span.first, span.last()), exclusive)
            {
                return;
            }
        }
        self.advance(key, out);
    }

    fn advance(&mut self, key: u64, out: &mut Vec<StoreAction<B>>) {
        let Some(mut op) = self.ops.lend(key) else {
            return;
        };
        op.started = true;
        let step = if op.executed {
            Step::Wait
        } else if self.poisoned && op.kind.changes() {
            Step::fail(Status::Poisoned, SectorInChunk(0))
        } else {
            match op.kind {
                Kind::Read { .. } | Kind::List { .. } => self.advance_read(key, &mut op, out),
                Kind::Write { .. } => self.advance_write(key, &mut op, out),
                Kind::Zero { .. } => self.advance_zero(key, &mut op, out),
                Kind::Put { .. } => self.advance_put(key, &mut op, out),
                Kind::Flush => self.advance_flush(key, &mut op),
                Kind::Fence { .. } | Kind::Adopt { .. } => self.advance_fence(key, &mut op),
                Kind::Release { .. } => self.advance_release(key, &mut op),
            }
        };
        match step {
            Step::Wait => self.ops.give_back(key, op),
            Step::Reply(reply) => {
                self.ops.retire(key);
                self.finish(key, &op, reply, out);
            }
        }
    }

    /// A request whose effect is made: is all done that it waits for?
    pub(super) fn settle_up(&mut self, key: u64, out: &mut Vec<StoreAction<B>>) {
        let Some(op) = self.ops.get(key) else {
            return;
        };
        if !op.executed || op.ios > 0 || !op.kind.changes() {
            return;
        }
        let reply = match op.failure {
            _ if self.poisoned && !op.log_ok => StoreReply::Failed {
                status: Status::Poisoned,
                sector: SectorInChunk(0),
            },
            _ if !op.log_ok => return,
            Some((status, sector)) => StoreReply::Failed { status, sector },
            None => StoreReply::Done {
                applied: op.applied,
            },
        };
        self.reply(key, reply, out);
    }

    /// Finishes a request that is in its place.
    pub(super) fn reply(&mut self, key: u64, reply: StoreReply<B>, out: &mut Vec<StoreAction<B>>) {
        let op = self.ops.remove(key).expect("the request is in flight");
        self.finish(key, &op, reply, out);
    }

    fn finish(
        &mut self,
        key: u64,
        op: &Op<B>,
        reply: StoreReply<B>,
        out: &mut Vec<StoreAction<B>>,
    ) {
        assert_eq!(op.ios, 0, "a finished request has nothing under way");
        if let Some(span) = op.kind.span() {
            self.order.release(span.key, key, &mut self.ready);
        }
        if let Some((volume, _)) = op.kind.gate() {
            self.order.leave(volume, &mut self.starting);
        }
        out.push(StoreAction::Reply(op.id, reply));
    }
}
