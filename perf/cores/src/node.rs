//! One shard of a node, its real store on a device that does everything at once and keeps what it must give back.

use chunkstore::core::{ConnId, ShardAction, ShardCore, ShardEvent, ShardIdentity};
use chunkstore::disk::api::{DiskOp, DiskResult, WriteData};
use chunkstore::disk::format::{NodeFormat, format};
use chunkstore::disk::mem::MemDisk;
use chunkstore::disk::store::{Store, StoreLimits};
use std::collections::BTreeMap;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{Hello, Role, crc_table};
use ukai_proto::{
    BootId, ChunkIndex, ClusterId, Flags, Frame, Generation, Header, Incarnation, NodeId, Opcode,
    SectorInChunk, Seq, ShardIndex, Status, Token, VolumeId,
};

const CLUSTER: ClusterId = ClusterId([1; 16]);
const NODE: NodeId = NodeId([2; 16]);
const CONN: ConnId = ConnId(1);
const DEVICE_BYTES: u64 = 64 << 20;
/// Of the device, all with slots of their own.
const CHUNKS: u32 = 8;
const CHUNK_SECTORS: u32 = 1024;

struct Node {
    core: ShardCore<Vec<u8>>,
    now: u64,
    /// What was written, by position; only in `keeps`.
    written: BTreeMap<u64, Vec<u8>>,
    keeps: bool,
    actions: Vec<ShardAction<Vec<u8>>>,
    tag: u64,
}

impl Node {
    fn serving() -> Self {
        let mut disk = MemDisk::new(DEVICE_BYTES);
        let how = NodeFormat {
            cluster: CLUSTER,
            node: NODE,
            name: "n".into(),
            site: "s".into(),
            labels: Vec::new(),
            shard_count: 1,
            log_bytes: None,
        };
        let made = format(&mut disk, &how, false).expect("a blank device");
        let limits = StoreLimits {
            page_cache_bytes: 1 << 20,
        };
        let place = made.shard_place(ShardIndex(0));
        let (store, _) = Store::open(&mut disk, &place, limits).expect("just formatted");
        let incarnation = Incarnation {
            boot: BootId([9; 16]),
            start: 1,
        };
        let identity = ShardIdentity {
            cluster: CLUSTER,
            node: NODE,
            shard: ShardIndex(0),
            shard_count: 1,
            incarnation,
        };
        let mut node = Self {
            core: ShardCore::new(identity, store),
            now: 1,
            written: BTreeMap::new(),
            keeps: false,
            actions: Vec::new(),
            tag: 0,
        };
        node.event(ShardEvent::LeaseHeld);
        node.event(ShardEvent::ConnOpened { conn: CONN });
        let hello = Hello {
            cluster: CLUSTER,
            node: NODE,
            role: Role::Lane,
            shard: ShardIndex(0),
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        node.ask(Header::request(Opcode::Hello, 0), hello.encode(), None);
        node.ask(header(Opcode::Fence), Vec::new(), None);
        node
    }

    fn event(&mut self, event: ShardEvent<Vec<u8>>) {
        self.core.handle(self.now, event, &mut self.actions);
    }

    /// A request to its reply, turn after turn as the shell makes them.
    fn ask(&mut self, mut header: Header, aux: Vec<u8>, data: Option<Vec<u8>>) {
        self.now += 100_000;
        self.tag += 1;
        header.tag = self.tag;
        let frame = Frame::new(header, aux, data);
        self.event(ShardEvent::Frame { conn: CONN, frame });
        let mut answered = false;
        for _ in 0..100 {
            self.core.turn_end(self.now, &mut self.actions);
            for action in std::mem::take(&mut self.actions) {
                match action {
                    ShardAction::Send { frame, .. } => {
                        assert_eq!(frame.header.status, Status::Ok, "{:?}", frame.header);
                        answered |= frame.header.tag == self.tag;
                    }
                    ShardAction::Disk(op) => self.device(op),
                    other => panic!("{other:?}"),
                }
            }
            if answered && self.actions.is_empty() {
                return;
            }
        }
        panic!("{header:?} is not answered");
    }

    fn device(&mut self, op: DiskOp<Vec<u8>>) {
        let (io, result) = match op {
            DiskOp::Read {
                io,
                position,
                bytes,
            } => {
                let held = self.written.get(&position).cloned();
                let data = held.unwrap_or_else(|| vec![0; bytes as usize]);
                (io, DiskResult::Read(data))
            }
            DiskOp::Write {
                io, position, data, ..
            } => {
                if self.keeps {
                    let bytes = match data {
                        WriteData::Payload(data) => data,
                        WriteData::Owned(data) => data,
                    };
                    self.written.insert(position, bytes);
                }
                (io, DiskResult::Done)
            }
            DiskOp::Sync { io } | DiskOp::Punch { io, .. } => (io, DiskResult::Done),
        };
        self.event(ShardEvent::DiskDone { io, result });
    }

    fn write(&mut self, index: u32, seq: u64, fua: bool) {
        let data = vec![7; SECTOR_BYTES];
        let crc = crc32c(&data);
        let flags = if fua {
            Flags::DATA.with(Flags::FUA)
        } else {
            Flags::DATA
        };
        let header = Header {
            flags,
            seq: Seq(seq),
            ..sector(Opcode::Write, index)
        };
        self.ask(header, crc_table(seq - 1, std::iter::once(crc)), Some(data));
    }
}

fn header(opcode: Opcode) -> Header {
    Header {
        volume: VolumeId([7; 16]),
        token: Token(1),
        generation: Generation(1),
        ..Header::request(opcode, 0)
    }
}

/// The `index`th place of a fixed scatter.
fn sector(opcode: Opcode, index: u32) -> Header {
    let place = index.wrapping_mul(2_654_435_761) >> 7;
    #[allow(clippy::cast_possible_truncation)] // less than a chunk
    let sector = (place % CHUNK_SECTORS) as u16;
    Header {
        chunk: ChunkIndex(place / CHUNK_SECTORS % CHUNKS),
        sector: SectorInChunk(sector),
        count: 1,
        ..header(opcode)
    }
}

pub(crate) fn writes(count: u32) {
    let mut node = Node::serving();
    for index in 0..count {
        node.write(index, u64::from(index) + 1, false);
    }
}

pub(crate) fn durable_writes(count: u32) {
    let mut node = Node::serving();
    for index in 0..count {
        node.write(index, u64::from(index) + 1, true);
    }
}

/// Of what was written before: as many sectors, however many reads.
pub(crate) fn reads(count: u32) {
    const WRITTEN: u32 = 256;
    let mut node = Node::serving();
    node.keeps = true;
    for index in 0..WRITTEN {
        node.write(index, u64::from(index) + 1, false);
    }
    node.keeps = false;
    for index in 0..count {
        node.ask(sector(Opcode::Read, index % WRITTEN), Vec::new(), None);
    }
}
