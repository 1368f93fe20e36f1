//! `device`: a node's whole device, damaged (bits flipped, sectors unreadable, blocks lost or misplaced) or
//! forged (fields changed under a checksum that fits), then opened, used, closed and opened again.
//!
//! It opens or says why not. If only bits were flipped in a device that had been stopped cleanly, each
//! sector then reads as what was written, or as an error: never as anything else.

use crate::block::{CRC_AT_BLOCK, CRC_AT_SUPERBLOCK, seal};
use crate::input::Input;
use crate::node::formatted;
use chunkstore::disk::api::{
    Disk, OpId, PutRule, ReadData, SectorRange, StoreAction, StoreReply, StoreRequest, StoreView,
};
use chunkstore::disk::format::NodeSuperblock;
use chunkstore::disk::layout::{BLOCK, BLOCK_BYTES, Geometry, PageIndex, ShardPlace, SlotIndex};
use chunkstore::disk::mem::{Fate, MemDisk};
use chunkstore::disk::store::{Store, StoreLimits};
use std::collections::BTreeMap;
use ukai_proto::crc::sector_crcs;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{ChunkRange, SectorState, ShardStats};
use ukai_proto::{
    BootId, ChunkIndex, Generation, SectorInChunk, Seq, ShardIndex, Status, Token, Version,
    VolumeId,
};

const VOLUME: VolumeId = VolumeId([7; 16]);
const LOG_BLOCKS: u64 = 64;
/// Sectors of each chunk that are written.
const SECTORS: u16 = 4;
const CHUNKS: u32 = 6;
/// No byte.
const MIXED: u16 = 256;

/// Where an edit can hit, and where the checksum of a block there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Area {
    Superblock,
    LogOrPage,
    Data,
}

impl Area {
    fn crc_at(self) -> Option<usize> {
        match self {
            Area::Superblock => Some(CRC_AT_SUPERBLOCK),
            Area::LogOrPage => Some(CRC_AT_BLOCK),
            Area::Data => None,
        }
    }
}

struct Base {
    disk: MemDisk,
    place: ShardPlace,
    /// First byte of each sector; absent: zeros.
    content: BTreeMap<(u32, u16), u8>,
    /// Stopped cleanly: whatever is then lost is lost by the device.
    clean: bool,
    blocks: Vec<(u64, Area)>,
}

/// A store being used.
struct Rig {
    disk: MemDisk,
    store: Store<Vec<u8>>,
    next: u64,
    seq: u64,
    token: u32,
    content: BTreeMap<(u32, u16), u8>,
}

fn range(chunk: u32, sector: u16, count: u16) -> SectorRange {
    SectorRange {
        volume: VOLUME,
        chunk: ChunkIndex(chunk),
        sector: SectorInChunk(sector),
        count,
    }
}

impl Rig {
    fn new(disk: MemDisk, store: Store<Vec<u8>>, token: u32) -> Self {
        Self {
            disk,
            store,
            next: 0,
            seq: 0,
            token,
            content: BTreeMap::new(),
        }
    }

    fn perform(
        &mut self,
        actions: Vec<StoreAction<Vec<u8>>>,
        wanted: OpId,
    ) -> Option<StoreReply<Vec<u8>>> {
        let mut reply = None;
        for action in actions {
            match action {
                StoreAction::Disk(op) => self.disk.submit(op),
                StoreAction::Reply(op, got) if op == wanted => reply = Some(got),
                StoreAction::Reply(..) => {}
            }
        }
        reply
    }

    /// Until nothing is under way.
    fn settle(&mut self, wanted: OpId) -> Option<StoreReply<Vec<u8>>> {
        let (mut reply, mut steps) = (None, 0);
        loop {
            let mut out = Vec::new();
            self.store.turn_end(&mut out);
            let got = self.perform(out, wanted);
            reply = reply.or(got);
            if self.disk.pending() == 0 {
                return reply;
            }
            let (io, result) = self.disk.complete(0);
            let mut out = Vec::new();
            self.store.disk_done(io, result, &mut out);
            let got = self.perform(out, wanted);
            reply = reply.or(got);
            steps += 1;
            assert!(steps < 100_000, "the store never comes to rest");
        }
    }

    fn call(&mut self, request: StoreRequest<Vec<u8>>) -> StoreReply<Vec<u8>> {
        self.next += 1;
        let op = OpId(self.next);
        let mut out = Vec::new();
        self.store.submit(op, request, &mut out);
        let first = self.perform(out, op);
        let later = self.settle(op);
        first.or(later).expect("every request is answered")
    }

    fn version(&mut self) -> Version {
        self.seq += 1;
        Version::new(Token(self.token), Seq(self.seq))
    }

    fn write(&mut self, chunk: u32, sector: u16, count: u16, fill: u8) -> bool {
        let data = vec![fill; usize::from(count) * SECTOR_BYTES];
        let request = StoreRequest::Write {
            range: range(chunk, sector, count),
            version: self.version(),
            generation: Generation(self.token),
            crcs: sector_crcs(&data).collect(),
            data,
            fua: false,
        };
        let done = matches!(self.call(request), StoreReply::Done { .. });
        if done {
            let sectors = sector..sector + count;
            self.content.extend(sectors.map(|at| ((chunk, at), fill)));
        }
        done
    }

    fn zero(&mut self, chunk: u32, sector: u16, count: u16) -> bool {
        let request = StoreRequest::Zero {
            range: range(chunk, sector, count),
            version: self.version(),
            generation: Generation(self.token),
            unmap: true,
            fua: false,
        };
        let done = matches!(self.call(request), StoreReply::Done { .. });
        if done {
            self.content
                .retain(|(of, at), _| *of != chunk || !(sector..sector + count).contains(at));
        }
        done
    }

    fn fence(&mut self) {
        let (volume, token, generation) = (VOLUME, Token(self.token), Generation(self.token));
        self.call(StoreRequest::Fence {
            volume,
            token,
            generation,
        });
    }

    fn release(&mut self, chunk: u32) {
        let range = ChunkRange {
            start: ChunkIndex(chunk),
            count: 1,
        };
        self.call(StoreRequest::Release {
            volume: VOLUME,
            token: Token(self.token),
            generation: Generation(self.token),
            ranges: vec![range],
        });
        self.content.retain(|(of, _), _| *of != chunk);
    }

    /// What a sector is filled with, [`MIXED`] if it is not one byte; `None`: an error.
    fn read(&mut self, chunk: u32, sector: u16) -> Option<u16> {
        match self.call(StoreRequest::Read(range(chunk, sector, 1))) {
            StoreReply::Read { data, .. } => Some(match data {
                ReadData::Zeroes => 0,
                ReadData::Buffer(bytes) | ReadData::Owned(bytes) => {
                    let same = bytes.iter().all(|byte| *byte == bytes[0]);
                    if same { bytes[0].into() } else { MIXED }
                }
            }),
            StoreReply::Failed { .. } => None,
            // Adopted by the recovery: the next front reads it.
            StoreReply::Doubted { .. } => {
                self.token += 1;
                self.fence();
                self.read(chunk, sector)
            }
            other => panic!("a read was answered by {other:?}"),
        }
    }

    fn close(&mut self) {
        let mut out = Vec::new();
        self.store.close(&mut out);
        self.perform(out, OpId(0));
        self.settle(OpId(0));
        assert!(self.store.closed(), "a stop ends");
    }

    /// A bit of everything.
    fn workload(&mut self) {
        self.fence();
        for chunk in 0..CHUNKS - 1 {
            self.write(chunk, 0, SECTORS, 10 + u8::try_from(chunk).expect("few"));
        }
        self.zero(1, 0, 256);
        self.write(2, 1, 2, 99);
        self.zero(2, 3, 1);
        self.release(3);
        self.write(0, 0, 1, 77);
        self.write(CHUNKS - 1, 300, 1, 66);
        self.call(StoreRequest::Flush);
    }
}

fn open(disk: &mut MemDisk, place: &ShardPlace, token: u32) -> Rig {
    let limits = StoreLimits {
        page_cache_bytes: 0,
    };
    let store = Store::open(disk, place, limits).expect("a good device").0;
    Rig::new(disk.snapshot(), store, token)
}

fn base(lives: u32, last_is_clean: bool, cut: bool) -> Base {
    let (mut disk, place) = formatted();
    let mut content = BTreeMap::new();
    for token in 1..=lives {
        let mut rig = open(&mut disk, &place, token);
        rig.content = content;
        rig.workload();
        if token < lives || last_is_clean {
            rig.close();
        } else if cut {
            rig.write(0, 0, 2, 55);
            rig.zero(4, 0, 256);
            rig.write(3, 0, 1, 44);
        }
        content = rig.content;
        disk = rig.disk;
    }
    let mut nth = 0;
    disk.cut(&mut |_| {
        nth += 1;
        if cut && nth % 3 == 0 {
            Fate::Old
        } else {
            Fate::New
        }
    });
    let mut node = NodeSuperblock::read(&mut disk).expect("a good device");
    node.bump_start(&mut disk).expect("written");
    let geometry = Geometry::fit(place.start, place.bytes, LOG_BLOCKS).expect("formatted");
    let mut blocks: Vec<(u64, Area)> = Vec::new();
    for copy in 0..2 {
        blocks.push((copy * BLOCK, Area::Superblock));
        blocks.push((place.start + copy * BLOCK, Area::Superblock));
    }
    for number in 0..LOG_BLOCKS {
        blocks.push((geometry.log_position(number), Area::LogOrPage));
    }
    for page in 0..geometry.pages() {
        blocks.push((geometry.page_position(PageIndex(page)), Area::LogOrPage));
    }
    for slot in 0..geometry.slots {
        for sector in 0..u64::from(SECTORS) {
            let position = geometry.slot_position(SlotIndex(slot)) + sector * BLOCK;
            blocks.push((position, Area::Data));
        }
    }
    Base {
        disk,
        place,
        content,
        clean: last_is_clean,
        blocks,
    }
}

/// What an input did to the device.
#[derive(Default)]
struct Damage {
    /// Checksums were made to fit.
    forged: bool,
    /// Blocks lost or put elsewhere, sectors unreadable.
    lost: bool,
    metadata: bool,
    data: bool,
}

fn block_of(disk: &mut MemDisk, position: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    // An unreadable one is as good as zeros for an edit.
    let _ = disk.read(position, &mut block);
    block
}

fn put(disk: &mut MemDisk, position: u64, block: &[u8]) {
    disk.write(position, block).expect("no faults are planned");
}

fn damage(base: &Base, disk: &mut MemDisk, input: &mut Input<'_>) -> Damage {
    let mut done = Damage::default();
    for _ in 0..input.below(6) + 1 {
        let (position, area) = input.pick(&base.blocks);
        match area {
            Area::Data => done.data = true,
            Area::Superblock | Area::LogOrPage => done.metadata = true,
        }
        let mut block = block_of(disk, position);
        match input.below(10) {
            0..3 => {
                let at = usize::from(input.u16()) % BLOCK_BYTES;
                let bits = input.u8();
                block[at] ^= bits | u8::from(bits == 0);
                put(disk, position, &block);
            }
            3..7 => {
                for _ in 0..input.below(4) + 1 {
                    if input.bool() {
                        // A number of the head, at a limit of its type.
                        let at = 8 * usize::from(input.below(16));
                        let near = u64::from(input.u8());
                        let word =
                            input.pick(&[near, u64::MAX - near, (1 << 32) - 1 - near, 1 << 63]);
                        block[at..at + 8].copy_from_slice(&word.to_le_bytes());
                        continue;
                    }
                    // Words near the head more often than others.
                    let at = match input.below(3) {
                        0 => usize::from(input.u8()) % 64,
                        1 => 64 + usize::from(input.u8()),
                        _ => usize::from(input.u16()) % BLOCK_BYTES,
                    };
                    let new = input.short();
                    let end = BLOCK_BYTES.min(at + new.len().min(16));
                    block[at..end].copy_from_slice(&new[..end - at]);
                }
                if let Some(at) = area.crc_at() {
                    seal(&mut block, at);
                }
                put(disk, position, &block);
                done.forged = true;
            }
            7 => {
                let (from, _) = input.pick(&base.blocks);
                let other = block_of(disk, from);
                put(disk, position, &other);
                done.lost = true;
            }
            8 => {
                put(disk, position, &[0; BLOCK_BYTES]);
                done.lost = true;
            }
            _ => {
                disk.unreadable.insert(position / BLOCK);
                done.lost = true;
            }
        }
    }
    disk.sync().expect("no faults are planned");
    done
}

/// The device is not as large as it was.
fn shrunk(base: &Base, disk: &mut MemDisk, blocks: u64) -> MemDisk {
    let bytes = disk.size().min(blocks * BLOCK);
    let mut small = MemDisk::new(bytes);
    for (position, _) in &base.blocks {
        if position + BLOCK <= bytes {
            let block = block_of(disk, *position);
            put(&mut small, *position, &block);
        }
    }
    small
}

fn use_it(rig: &mut Rig, base: &Base, damage: &Damage) {
    // Data of an open chunk that matches nothing is taken for a write whose record was lost: rot of data
    // is told from that only after a clean stop that is known to be one.
    let told_apart = !(damage.metadata && damage.data);
    if base.clean && !damage.forged && !damage.lost && told_apart {
        for chunk in 0..CHUNKS {
            for sector in (0..SECTORS).chain([300]) {
                let right = base.content.get(&(chunk, sector)).copied();
                let right = u16::from(right.unwrap_or(0));
                let read = rig.read(chunk, sector);
                assert!(
                    read.is_none_or(|read| read == right),
                    "{chunk}/{sector} reads {read:?}, written was {right}"
                );
            }
        }
    }
    for chunk in 0..CHUNKS {
        rig.read(chunk, 0);
        rig.call(StoreRequest::List(range(chunk, 0, 256)));
        rig.call(StoreRequest::ReadVersioned(range(chunk, 0, SECTORS)));
        if rig.write(chunk, 0, 2, 200) {
            // A version that the damage raised may be above the new one: then it was not applied.
            rig.read(chunk, 0);
        }
        rig.zero(chunk, 1, 1);
    }
    let states = vec![SectorState::UNWRITTEN; 2];
    rig.call(StoreRequest::Put {
        range: range(2, 0, 2),
        states,
        data: None,
        generation: Generation(9),
        admit: PutRule::Mirror(Version::new(Token(9), Seq(9))),
    });
    rig.fence();
    rig.release(0);
    let volume = VOLUME;
    rig.call(StoreRequest::DeleteVolume { volume });
    let (chunks, _) = rig
        .store
        .written_since(VOLUME, Generation(0), ChunkIndex(0), 100);
    assert!(chunks.is_sorted_by(|a, b| a < b));
    rig.store.open_intents(VOLUME, ChunkIndex(0), 100);
    rig.store.inventory(VolumeId::NIL, 100);
    rig.store.settled(VOLUME, Token(9), Seq(1));
    for _ in 0..12 {
        let mut out = Vec::new();
        rig.store.background(&mut out);
        rig.perform(out, OpId(0));
        rig.settle(OpId(0));
    }
    let mut stats = ShardStats::default();
    (stats.slots_used, stats.slots_total) = rig.store.slots();
    assert!(stats.slots_used <= stats.slots_total);
    rig.call(StoreRequest::Flush);
    rig.close();
    let refused = rig.call(StoreRequest::Flush);
    let stopping = |reply| {
        matches!(
            reply,
            StoreReply::Failed {
                status: Status::Stopping | Status::Poisoned,
                ..
            }
        )
    };
    assert!(stopping(refused), "a closed store takes nothing");
}

pub(crate) fn run(data: &[u8]) {
    thread_local! {
        static BASES: Vec<Base> = vec![
            base(1, true, false),
            base(2, true, false),
            base(3, true, false),
            base(1, false, false),
            base(2, false, false),
            base(2, false, true),
        ];
    }
    let mut input = Input::new(data);
    BASES.with(|bases| {
        let base = &bases[usize::from(input.u8()) % bases.len()];
        let mut disk = base.disk.snapshot();
        let mut done = damage(base, &mut disk, &mut input);
        let small = input.rarely(64);
        if small {
            let blocks = u64::from(input.u16());
            disk = shrunk(base, &mut disk, blocks);
            // Only what edits can hit was copied.
            done.lost = true;
        }
        let place = match NodeSuperblock::read(&mut disk) {
            Ok(mut node) => {
                assert!(node.capacity_bytes() >= node.slots);
                if let Err(error) = node.bump_start(&mut disk) {
                    assert!(!error.to_string().is_empty());
                }
                node.shard_place(ShardIndex(0))
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                if small {
                    return;
                }
                base.place
            }
        };
        let boot = if input.bool() {
            BootId([1; 16])
        } else {
            BootId::NIL
        };
        let limits = StoreLimits {
            page_cache_bytes: usize::from(input.below(8)) * BLOCK_BYTES,
        };
        let (store, report) = match Store::open_on(&mut disk, &place, limits, boot) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        assert!(report.sectors_bad == 0 || done.lost || done.forged || done.data || done.metadata);
        let unreadable = std::mem::take(&mut disk.unreadable);
        let mut used = disk.snapshot();
        used.unreadable = unreadable;
        let mut rig = Rig::new(used, store, 9);
        use_it(&mut rig, base, &done);
        rig.disk.cut(&mut |_| Fate::New);
        let again = Store::<Vec<u8>>::open_on(&mut rig.disk, &place, limits, BootId::NIL);
        match again {
            Ok(_) => {}
            Err(error) => assert!(
                done.forged || done.lost,
                "what could be opened once can be opened again: {error}"
            ),
        }
    });
}
