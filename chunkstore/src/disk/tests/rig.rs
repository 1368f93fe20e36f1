//! A store on a [`MemDisk`], driven step by step, and an oracle of what each sector may hold.

use super::twin::{self, Twin};
use crate::disk::api::*;
use crate::disk::format::{NodeFormat, NodeSuperblock, format};
use crate::disk::layout::{BLOCK, ShardPlace};
use crate::disk::mem::MemDisk;
use crate::disk::store::{RecoveryReport, Store, StoreLimits};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::ops::Range;
use ukai_proto::crc::sector_crcs;
use ukai_proto::limits::{SECTOR_BYTES, SLOT_BYTES};
use ukai_proto::{
    BootId, ChunkIndex, ClusterId, Generation, NodeId, SectorInChunk, Seq, ShardIndex, Status,
    Token, Version, VolumeId,
};

pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);
pub(super) const LOG_BLOCKS: u64 = 64;

pub(super) fn node_format() -> NodeFormat {
    NodeFormat {
        cluster: ClusterId([1; 16]),
        node: NodeId([2; 16]),
        name: "n0".into(),
        site: "site-a".into(),
        labels: vec!["rack=1".into()],
        shard_count: 1,
        log_bytes: Some(LOG_BLOCKS * BLOCK),
    }
}

/// A formatted device with room for this many slots.
pub(super) fn device(slots: u64) -> (MemDisk, ShardPlace) {
    device_with_log(slots, LOG_BLOCKS)
}

pub(super) fn device_with_log(slots: u64, log_blocks: u64) -> (MemDisk, ShardPlace) {
    let head = (1 << 20) + (64 << 10) + log_blocks * BLOCK;
    let pages = slots + (slots * 4).div_ceil(56);
    let mut disk = MemDisk::new(head + pages * BLOCK + slots * SLOT_BYTES as u64);
    let how = NodeFormat {
        log_bytes: Some(log_blocks * BLOCK),
        ..node_format()
    };
    let superblock = format(&mut disk, &how, false).expect("formats");
    assert_eq!(superblock.slots, slots);
    let place = NodeSuperblock::read(&mut disk)
        .expect("reads")
        .shard_place(ShardIndex(0));
    (disk, place)
}

pub(super) fn range(chunk: u32, sector: u16, count: u16) -> SectorRange {
    SectorRange {
        volume: VOLUME,
        chunk: ChunkIndex(chunk),
        sector: SectorInChunk(sector),
        count,
    }
}

/// Content that names its write.
pub(super) fn content(value: u64, count: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(usize::from(count) * SECTOR_BYTES);
    while out.len() < usize::from(count) * SECTOR_BYTES {
        out.extend_from_slice(&value.to_le_bytes());
    }
    out
}

pub(super) fn version(token: u32, seq: u64) -> Version {
    Version::new(Token(token), Seq(seq))
}

pub(super) fn write(
    chunk: u32,
    sector: u16,
    count: u16,
    seq: u64,
    fua: bool,
) -> StoreRequest<Vec<u8>> {
    write_as(chunk, sector, count, version(1, seq), seq, fua)
}

pub(super) fn write_as(
    chunk: u32,
    sector: u16,
    count: u16,
    version: Version,
    value: u64,
    fua: bool,
) -> StoreRequest<Vec<u8>> {
    let data = content(value, count);
    let crcs = sector_crcs(&data).collect();
    let generation = Generation(version.token.0);
    StoreRequest::Write {
        range: range(chunk, sector, count),
        version,
        generation,
        crcs,
        data,
        fua,
    }
}

pub(super) fn zero(
    chunk: u32,
    sector: u16,
    count: u16,
    seq: u64,
    unmap: bool,
) -> StoreRequest<Vec<u8>> {
    StoreRequest::Zero {
        range: range(chunk, sector, count),
        version: version(1, seq),
        generation: Generation(1),
        unmap,
        fua: false,
    }
}

/// Values of the sectors of a read; panics if a sector mixes two writes.
pub(super) fn values(data: &ReadData<Vec<u8>>, count: u16) -> Vec<u64> {
    let bytes = match data {
        ReadData::Zeroes => return vec![0; count.into()],
        ReadData::Buffer(bytes) | ReadData::Owned(bytes) => bytes,
    };
    assert_eq!(bytes.len(), usize::from(count) * SECTOR_BYTES);
    bytes
        .chunks_exact(SECTOR_BYTES)
        .map(|sector| {
            let word = |at: usize| {
                let mut word = [0; 8];
                word.copy_from_slice(&sector[at..at + 8]);
                u64::from_le_bytes(word)
            };
            assert!(
                (0..SECTOR_BYTES).step_by(8).all(|at| word(at) == word(0)),
                "a torn sector"
            );
            word(0)
        })
        .collect()
}

/// A store and its device.
pub(super) struct Rig {
    pub(super) disk: MemDisk,
    pub(super) place: ShardPlace,
    pub(super) store: Store<Vec<u8>>,
    pub(super) report: RecoveryReport,
    pub(super) replies: BTreeMap<OpId, StoreReply<Vec<u8>>>,
    next: u64,
    /// Boot of the machine; a cut makes a new one.
    pub(super) boot: u8,
    pub(super) rng: ChaCha8Rng,
    /// In the conformance arm: a real device that does the same.
    pub(super) twin: Option<Twin>,
}

pub(super) fn open(
    disk: &mut dyn Disk,
    place: &ShardPlace,
    boot: u8,
) -> (Store<Vec<u8>>, RecoveryReport) {
    let limits = StoreLimits {
        page_cache_bytes: 0,
    };
    let opened = Store::open_on(disk, place, limits, BootId([boot; 16])).expect("opens");
    let (used, all) = opened.0.slots();
    let free = opened.0.space.free.len() as u64;
    assert_eq!(used + free, all, "a slot is owned or free");
    opened
}

impl Rig {
    pub(super) fn new(slots: u64, seed: u64) -> Self {
        let (disk, place) = device(slots);
        let Some(mut twin) = twin::wanted(disk.size()) else {
            return Self::on(disk, place, seed);
        };
        format(&mut twin.blocking, &node_format(), false).expect("formats");
        let opened = open(&mut twin.blocking, &place, 1);
        let mut rig = Self::on(disk, place, seed);
        rig.conform(twin, opened);
        rig
    }

    /// Goes on with the store of the real device, if it found the same.
    fn conform(&mut self, mut twin: Twin, opened: (Store<Vec<u8>>, RecoveryReport)) {
        assert_eq!(opened.1, self.report, "recovery on the real device");
        twin.compare(&mut self.disk);
        self.store = opened.0;
        self.twin = Some(twin);
    }

    pub(super) fn on(disk: MemDisk, place: ShardPlace, seed: u64) -> Self {
        Self::on_boot(disk, place, seed, 1)
    }

    pub(super) fn on_boot(mut disk: MemDisk, place: ShardPlace, seed: u64, boot: u8) -> Self {
        let (store, report) = open(&mut disk, &place, boot);
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            disk,
            place,
            store,
            report,
            replies: BTreeMap::new(),
            next: 0,
            boot,
            rng,
            twin: None,
        }
    }

    /// The process or the machine starts again.
    pub(super) fn reopen(&mut self) {
        (self.store, self.report) = open(&mut self.disk, &self.place, self.boot);
        self.replies.clear();
        if let Some(mut twin) = self.twin.take() {
            let opened = open(&mut twin.blocking, &self.place, self.boot);
            self.conform(twin, opened);
        }
    }

    pub(super) fn perform(&mut self, actions: Vec<StoreAction<Vec<u8>>>) {
        for action in actions {
            match action {
                StoreAction::Disk(op) => {
                    if let Some(twin) = &mut self.twin {
                        twin.submit(&op);
                    }
                    self.disk.submit(op);
                }
                StoreAction::Reply(op, reply) => {
                    assert!(
                        self.replies.insert(op, reply).is_none(),
                        "{op:?} answered twice"
                    );
                }
            }
        }
    }

    pub(super) fn submit(&mut self, request: StoreRequest<Vec<u8>>) -> OpId {
        self.next += 1;
        let op = OpId(self.next);
        let mut out = Vec::new();
        self.store.submit(op, request, &mut out);
        self.perform(out);
        op
    }

    pub(super) fn turn(&mut self) {
        let mut out = Vec::new();
        self.store.turn_end(&mut out);
        self.perform(out);
        let (used, needed) = self.store.recovery_blocks();
        assert!(
            self.store.poisoned() || used + needed <= self.store.geometry.log_blocks,
            "{used} blocks in use and {needed} that a recovery now would add"
        );
    }

    pub(super) fn background(&mut self) {
        let mut out = Vec::new();
        self.store.tick();
        self.store.background(&mut out);
        self.perform(out);
    }

    pub(super) fn complete(&mut self, index: usize) {
        let (io, mut result) = self.disk.complete(index);
        if let Some(twin) = &mut self.twin {
            result = twin.complete(io, result, &mut self.disk);
        }
        let mut out = Vec::new();
        self.store.disk_done(io, result, &mut out);
        self.perform(out);
    }

    /// One completion, chosen at random, if anything is under way.
    pub(super) fn complete_any(&mut self) -> bool {
        let pending = self.disk.pending();
        if pending == 0 {
            return false;
        }
        let index = self.rng.random_range(0..pending);
        self.complete(index);
        true
    }

    /// Until nothing is under way.
    pub(super) fn settle(&mut self) {
        self.turn();
        let mut steps = 0;
        while self.complete_any() {
            self.turn();
            steps += 1;
            assert!(steps < 200_000, "the store never comes to rest");
        }
    }

    /// A request to its reply, with everything else that is under way.
    pub(super) fn call(&mut self, request: StoreRequest<Vec<u8>>) -> StoreReply<Vec<u8>> {
        let op = self.submit(request);
        self.settle();
        self.replies.remove(&op).expect("answered")
    }

    pub(super) fn done(&mut self, request: StoreRequest<Vec<u8>>) -> u16 {
        match self.call(request) {
            StoreReply::Done { applied } => applied,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn refused(&mut self, request: StoreRequest<Vec<u8>>) -> Status {
        match self.call(request) {
            StoreReply::Failed { status, .. } => status,
            other => panic!("{other:?}"),
        }
    }

    /// A read by a front that attached after the last start: it fences first.
    pub(super) fn read_by_the_next_front(&mut self, what: SectorRange) -> StoreReply<Vec<u8>> {
        let reply = self.call(StoreRequest::Read(what));
        if !matches!(reply, StoreReply::Doubted { .. }) {
            return reply;
        }
        let Fence { token, generation } = self.store.fence(what.volume).unwrap_or_default();
        self.done(StoreRequest::Fence {
            volume: what.volume,
            token: Token(token.0 + 1),
            generation,
        });
        self.call(StoreRequest::Read(what))
    }

    pub(super) fn read(&mut self, chunk: u32, sector: u16, count: u16) -> Vec<u64> {
        match self.call(StoreRequest::Read(range(chunk, sector, count))) {
            StoreReply::Read { crcs, data, .. } => {
                assert_eq!(crcs.len(), usize::from(count));
                values(&data, count)
            }
            other => panic!("read {chunk}/{sector}+{count}: {other:?}"),
        }
    }

    pub(super) fn close(&mut self) {
        let mut out = Vec::new();
        self.store.close(&mut out);
        self.perform(out);
        self.settle();
        assert!(self.store.closed(), "a clean stop ends");
    }

    /// The power fails; each volatile sector is old or new by chance.
    pub(super) fn cut(&mut self) {
        self.boot = self.boot.wrapping_add(1).max(1);
        use crate::disk::mem::Fate;
        let style = self.rng.random_range(0..4);
        let rng = &mut self.rng;
        self.disk.cut(&mut |_| match style {
            0 => Fate::Old,
            1 => Fate::New,
            _ if rng.random_bool(0.5) => Fate::Old,
            _ => Fate::New,
        });
        self.follow();
    }

    /// The real device cannot lose what it was told: it is given what the fake has kept.
    fn follow(&mut self) {
        if let Some(twin) = &mut self.twin {
            twin.follow(&mut self.disk);
        }
    }

    pub(super) fn crash_process(&mut self) {
        let rng = &mut self.rng;
        self.disk.crash_process(&mut || rng.random_bool(0.5));
        self.follow();
    }
}

/// One write of a sector: the stamp tells it from others of the same value.
#[derive(Clone, Copy, Debug)]
struct Written {
    stamp: u64,
    value: u64,
    answered: bool,
}

/// What one sector may hold: writes in the order in which they were sent.
#[derive(Clone, Debug)]
struct Cell {
    writes: Vec<Written>,
    /// Index of the first write that a power cut may leave.
    durable: usize,
    /// A write failed: BadCrc is a legal answer.
    may_be_bad: bool,
}

impl Default for Cell {
    fn default() -> Self {
        let writes = vec![Written {
            stamp: 0,
            value: 0,
            answered: true,
        }];
        Self {
            writes,
            durable: 0,
            may_be_bad: false,
        }
    }
}

impl Cell {
    fn index(&self, stamp: u64) -> usize {
        self.writes
            .iter()
            .rposition(|held| held.stamp == stamp)
            .expect("wrote")
    }

    fn answered(&self) -> usize {
        self.writes
            .iter()
            .rposition(|held| held.answered)
            .expect("the first one is")
    }
}

/// The oracle.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    cells: BTreeMap<(u32, u16), Cell>,
}

impl Oracle {
    fn cell(&mut self, at: (u32, u16)) -> &mut Cell {
        self.cells.entry(at).or_default()
    }

    pub(super) fn wrote(&mut self, chunk: u32, sectors: Range<u16>, stamp: u64, value: u64) {
        for sector in sectors {
            self.cell((chunk, sector)).writes.push(Written {
                stamp,
                value,
                answered: false,
            });
        }
    }

    pub(super) fn answered(&mut self, chunk: u32, sectors: Range<u16>, stamp: u64, durable: bool) {
        for sector in sectors {
            let cell = self.cell((chunk, sector));
            let index = cell.index(stamp);
            cell.writes[index].answered = true;
            if durable {
                cell.durable = cell.durable.max(index);
            }
        }
    }

    /// A write was refused before it had any effect.
    pub(super) fn refused(&mut self, chunk: u32, sectors: Range<u16>, stamp: u64) {
        for sector in sectors {
            let cell = self.cell((chunk, sector));
            let index = cell.index(stamp);
            assert!(
                cell.durable < index,
                "a refused write was promised to be durable"
            );
            cell.writes.remove(index);
        }
    }

    pub(super) fn failed(&mut self, chunk: u32, sectors: Range<u16>) {
        for sector in sectors {
            self.cell((chunk, sector)).may_be_bad = true;
        }
    }

    /// What a flush that begins now will make durable: stamps by sector.
    pub(super) fn flush_begins(&self) -> Vec<((u32, u16), u64)> {
        self.cells
            .iter()
            .map(|(at, cell)| (*at, cell.writes[cell.answered()].stamp))
            .collect()
    }

    pub(super) fn flush_ends(&mut self, began: &[((u32, u16), u64)]) {
        for (at, stamp) in began {
            let cell = self.cell(*at);
            cell.durable = cell.durable.max(cell.index(*stamp));
        }
    }

    /// Stamp of the last answered write: reads that begin now see it or a later one.
    pub(super) fn floor(&mut self, at: (u32, u16)) -> u64 {
        let cell = self.cell(at);
        cell.writes[cell.answered()].stamp
    }

    /// Values that a read may see which began at this floor.
    pub(super) fn allowed(&mut self, at: (u32, u16), floor: u64) -> Vec<u64> {
        let cell = self.cell(at);
        cell.writes[cell.index(floor)..]
            .iter()
            .map(|held| held.value)
            .collect()
    }

    pub(super) fn may_be_bad(&self, chunk: u32, sectors: &Range<u16>) -> bool {
        sectors.clone().any(|at| {
            self.cells
                .get(&(chunk, at))
                .is_some_and(|cell| cell.may_be_bad)
        })
    }

    /// After a restart: every sector holds something legal, and from now on exactly that.
    pub(super) fn check_restart(&mut self, rig: &mut Rig, power: bool) {
        let sectors: Vec<(u32, u16)> = self.cells.keys().copied().collect();
        for at in sectors {
            let cell = self.cell(at);
            let floor = if power { cell.durable } else { cell.answered() };
            let allowed: Vec<u64> = cell.writes[floor..].iter().map(|held| held.value).collect();
            match rig.read_by_the_next_front(range(at.0, at.1, 1)) {
                StoreReply::Read { data, .. } => {
                    let value = values(&data, 1)[0];
                    let may_be_bad = self.cell(at).may_be_bad;
                    assert!(
                        allowed.contains(&value),
                        "{at:?} reads {value}, allowed {allowed:?}, of {:?}",
                        self.cell(at)
                    );
                    let writes = vec![Written {
                        stamp: 0,
                        value,
                        answered: true,
                    }];
                    *self.cell(at) = Cell {
                        writes,
                        durable: 0,
                        may_be_bad,
                    };
                }
                StoreReply::Failed {
                    status: Status::BadCrc,
                    ..
                } if self.cell(at).may_be_bad => {}
                other => panic!("{at:?}: {other:?}, allowed {allowed:?}"),
            }
        }
    }
}
