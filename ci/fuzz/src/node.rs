//! `node`: one shard, the real core on the real store over a device in memory, and everybody who can talk
//! to it: clients with frames good and bad, the node that a copy comes from, a device that fails, time,
//! leases, a stop, a power cut.
//!
//! Each request on a connection that stays is answered exactly once, and nothing else is; replies are
//! well-formed; data that is read matches its checksums; memory is bounded by what clients have in
//! flight; a fence that was answered is there after the cut, and the shard opens again.

use crate::alloc::measured;
use crate::frames::{any_frame, status};
use crate::input::Input;
use chunkstore::core::{ConnId, PeerId, ShardAction, ShardCore, ShardEvent, ShardIdentity};
use chunkstore::disk::api::{DiskResult, StoreView};
use chunkstore::disk::format::{NodeFormat, format};
use chunkstore::disk::layout::{BLOCK, ShardPlace};
use chunkstore::disk::mem::{Fate, MemDisk};
use chunkstore::disk::store::{Store, StoreLimits};
use std::collections::BTreeMap;
use ukai_proto::crc::{ZERO_SECTOR_CRC, crc32c, sector_crcs};
use ukai_proto::decode::VecDecoder;
use ukai_proto::limits::{FRAME_BYTES_MAX, SECTOR_BYTES, SLOT_BYTES};
use ukai_proto::message::{
    ChunkRange, Hello, Pull, PullMode, Role, SectorState, chunk_ranges, crc_table, read_crc_table,
    sector_states,
};
use ukai_proto::{
    BootId, ChunkIndex, ClusterId, Flags, Frame, Generation, Header, Incarnation, NodeId, Opcode,
    SectorInChunk, Seq, ShardIndex, Status, Token, Version, VolumeId,
};

const CLUSTER: ClusterId = ClusterId([1; 16]);
const NODE: NodeId = NodeId([2; 16]);
const SOURCE: NodeId = NodeId([3; 16]);
const SLOTS: u64 = 6;
const LOG_BLOCKS: u64 = 64;
const STEPS_MAX: usize = 300;
/// Connections of one script.
const CONNS: u64 = 3;
/// Above what clients and copies have in flight: caches, log, the script's own frames.
const MEMORY_SPARE_BYTES: usize = 32 << 20;

/// A formatted device of this many slots, and where its shard lies.
pub(crate) fn formatted() -> (MemDisk, ShardPlace) {
    let pages = SLOTS + (SLOTS * 4).div_ceil(56);
    let head = (1 << 20) + (64 << 10) + LOG_BLOCKS * BLOCK;
    let mut disk = MemDisk::new(head + pages * BLOCK + SLOTS * SLOT_BYTES as u64);
    let how = NodeFormat {
        cluster: CLUSTER,
        node: NODE,
        name: "n0".into(),
        site: "s".into(),
        labels: vec!["rack=1".into()],
        shard_count: 1,
        log_bytes: Some(LOG_BLOCKS * BLOCK),
    };
    let made = format(&mut disk, &how, false).expect("a blank device");
    (disk, made.shard_place(ShardIndex(0)))
}

#[derive(Default)]
struct Conn {
    decoder: VecDecoder,
    asked: BTreeMap<(u64, u8), u32>,
}

struct Peer {
    open: bool,
    asked: Vec<Header>,
}

struct World {
    core: ShardCore<Vec<u8>>,
    disk: MemDisk,
    place: ShardPlace,
    now: u64,
    conns: BTreeMap<ConnId, Conn>,
    opened: u64,
    peers: BTreeMap<PeerId, Peer>,
    /// Fences that were answered, by volume.
    fenced: BTreeMap<VolumeId, Token>,
    stopped: bool,
    stopping: bool,
    payload_bytes: usize,
    seq: u64,
}

fn identity() -> ShardIdentity {
    ShardIdentity {
        cluster: CLUSTER,
        node: NODE,
        shard: ShardIndex(0),
        shard_count: 1,
        incarnation: Incarnation {
            boot: BootId([9; 16]),
            start: 1,
        },
    }
}

impl World {
    fn new() -> Self {
        thread_local! {
            static FORMATTED: (MemDisk, ShardPlace) = formatted();
        }
        let (mut disk, place) = FORMATTED.with(|(disk, place)| (disk.snapshot(), *place));
        let limits = StoreLimits {
            page_cache_bytes: 0,
        };
        let store = Store::open(&mut disk, &place, limits)
            .expect("just formatted")
            .0;
        Self {
            core: ShardCore::new(identity(), store),
            disk,
            place,
            now: 1,
            conns: BTreeMap::new(),
            opened: 0,
            peers: BTreeMap::new(),
            fenced: BTreeMap::new(),
            stopped: false,
            stopping: false,
            payload_bytes: 0,
            seq: 0,
        }
    }

    fn event(&mut self, event: ShardEvent<Vec<u8>>) {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        self.act(out);
    }

    fn turn(&mut self) {
        let mut out = Vec::new();
        self.core.turn_end(self.now, &mut out);
        self.act(out);
    }

    fn act(&mut self, actions: Vec<ShardAction<Vec<u8>>>) {
        for action in actions {
            match action {
                ShardAction::Send { conn, frame } => {
                    let head = frame.head_bytes();
                    let data = frame.data.as_slice().to_vec();
                    assert!(head.len() + data.len() <= FRAME_BYTES_MAX);
                    self.replied(conn, &frame.header, &frame.aux, &data);
                }
                ShardAction::Close { conn, .. } => {
                    self.conns.remove(&conn);
                }
                ShardAction::Disk(op) => self.disk.submit(op),
                ShardAction::PeerConnect { peer, .. } => {
                    let new = Peer {
                        open: false,
                        asked: Vec::new(),
                    };
                    assert!(self.peers.insert(peer, new).is_none());
                }
                ShardAction::PeerSend { peer, frame } => {
                    assert!(!frame.header.flags.has(Flags::REPLY) && frame.data.is_none());
                    let peer = self.peers.get_mut(&peer).expect("a peer that is there");
                    assert!(peer.open);
                    peer.asked.push(frame.header);
                }
                ShardAction::PeerClose { peer } => {
                    self.peers.remove(&peer);
                }
                ShardAction::Stopped { .. } => {
                    assert!(self.stopping && !self.stopped);
                    self.stopped = true;
                }
            }
        }
    }

    fn replied(&mut self, conn: ConnId, header: &Header, aux: &[u8], data: &[u8]) {
        assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(header));
        assert!(header.flags.has(Flags::REPLY));
        assert_eq!(aux.len(), header.aux_bytes as usize);
        assert_eq!(data.len(), header.data_bytes());
        let held = self
            .conns
            .get_mut(&conn)
            .expect("a reply on an open connection");
        let key = (header.tag, header.opcode as u8);
        let count = held.asked.get_mut(&key);
        let count = count.unwrap_or_else(|| panic!("nobody asked for {header:?}"));
        *count -= 1;
        if *count == 0 {
            held.asked.remove(&key);
        }
        if header.status != Status::Ok {
            return;
        }
        match header.opcode {
            Opcode::Read => {
                let (_, crcs) = read_crc_table(aux, header.count).expect("a table");
                let crcs: Vec<u32> = crcs.collect();
                if header.flags.has(Flags::ZEROES) {
                    assert!(crcs.iter().all(|crc| *crc == ZERO_SECTOR_CRC));
                } else {
                    assert!(data.chunks_exact(SECTOR_BYTES).map(crc32c).eq(crcs));
                }
            }
            Opcode::Fence => {
                let token = self.fenced.entry(header.volume).or_default();
                *token = header.token.max(*token);
            }
            _ => {}
        }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(held) = self.conns.get_mut(&conn) else {
            return;
        };
        let mut frames = Vec::new();
        let result = held.decoder.feed(bytes, &mut frames);
        for frame in frames {
            if let Some(held) = self.conns.get_mut(&conn) {
                let header = &frame.header;
                let key = (header.tag, header.opcode as u8);
                *held.asked.entry(key).or_default() += 1;
                // What it brings, and what it makes the node read.
                self.payload_bytes += usize::from(header.count) * SECTOR_BYTES + frame.aux.len();
                self.event(ShardEvent::Frame { conn, frame });
            }
        }
        if result.is_err() && self.conns.remove(&conn).is_some() {
            self.event(ShardEvent::ConnClosed { conn });
        }
    }

    fn open(&mut self, role: Role) {
        self.opened += 1;
        let conn = ConnId(self.opened);
        self.conns.insert(conn, Conn::default());
        self.event(ShardEvent::ConnOpened { conn });
        let hello = Hello {
            cluster: CLUSTER,
            node: NODE,
            role,
            shard: ShardIndex(0),
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        let frame = Frame::<Vec<u8>>::new(Header::request(Opcode::Hello, 0), hello.encode(), None);
        self.send(conn, &frame.to_bytes());
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let conn = self.conns.keys().nth(usize::from(input.below(3))).copied();
        match input.below(32) {
            0..12 => {
                let frame = self.request(input);
                if let Some(conn) = conn {
                    self.send(conn, &frame.to_bytes());
                }
            }
            12 => {
                let mut frame = any_frame(input);
                if input.below(4) > 0 {
                    frame.header.flags.0 &= !Flags::REPLY.0;
                    frame.header.status = Status::Ok;
                    let data = frame.data.filter(|_| frame.header.opcode == Opcode::Write);
                    frame.header.flags.0 &= !Flags::DATA.0;
                    frame = Frame::new(frame.header, frame.aux, data);
                }
                if let Some(conn) = conn {
                    self.send(conn, &frame.to_bytes());
                }
            }
            13 => {
                if let Some(conn) = conn {
                    self.send(conn, input.short());
                }
            }
            14 => {
                if (self.conns.len() as u64) < CONNS && input.bool() {
                    self.open(Role::Lane);
                } else if (self.conns.len() as u64) < CONNS {
                    self.opened += 1;
                    let conn = ConnId(self.opened);
                    self.conns.insert(conn, Conn::default());
                    self.event(ShardEvent::ConnOpened { conn });
                } else if let Some(conn) = conn {
                    self.conns.remove(&conn);
                    self.event(ShardEvent::ConnClosed { conn });
                }
            }
            15..22 => {
                let pending = self.disk.pending();
                if pending > 0 {
                    self.complete(usize::from(input.u8()) % pending);
                }
            }
            22 => self.disk.fail_after(input.below(4).into(), false),
            23..26 => self.turn(),
            26 => {
                self.now += u64::from(input.u16()) * 1_000_000;
                self.event(ShardEvent::Tick);
            }
            27 => {
                let event = if input.bool() {
                    ShardEvent::LeaseLost
                } else {
                    ShardEvent::LeaseHeld
                };
                self.event(event);
            }
            28..31 => self.peer(input),
            _ if input.rarely(16) && !self.stopping => {
                self.stopping = true;
                self.event(ShardEvent::Stop);
            }
            _ => self.settle(),
        }
    }

    /// A request that makes sense, mostly.
    fn request(&mut self, input: &mut Input<'_>) -> Frame<Vec<u8>> {
        let opcode = match input.below(4) {
            0 => crate::frames::opcode(input),
            1 => Opcode::Read,
            2 => Opcode::Write,
            _ => input.pick(&[Opcode::Fence, Opcode::Flush, Opcode::Zero, Opcode::Pull]),
        };
        self.seq += 1;
        let small = |input: &mut Input<'_>| u32::from(input.below(4));
        let count = match input.below(16) {
            0 => 256,
            1 => input.u16(),
            n => u16::from(n % 4) + 1,
        };
        let mut header = Header {
            volume: VolumeId([input.below(8) / 3; 16]),
            chunk: ChunkIndex(small(input)),
            sector: SectorInChunk(match input.below(8) {
                0 => input.u16(),
                1 => 256,
                n if count == 256 => u16::from(n % 2) * 256,
                n => n.into(),
            }),
            count,
            token: Token(1 + small(input) / 2),
            generation: Generation(small(input)),
            seq: Seq(if input.rarely(4) {
                input.u16().into()
            } else {
                self.seq
            }),
            ..Header::request(opcode, input.u8().into())
        };
        if matches!(opcode, Opcode::Write | Opcode::Zero) {
            let all = Flags::FUA.0 | Flags::UNMAP.0;
            header.flags = Flags(input.u8() & all);
        }
        if opcode == Opcode::List && input.bool() {
            header.flags = Flags::VERIFY;
        }
        let settled = u64::from(input.below(4));
        let mut data = None;
        let mut aux = match opcode {
            Opcode::Write => {
                header.count = header.count.clamp(1, 256);
                let payload = vec![input.u8(); usize::from(header.count) * SECTOR_BYTES];
                let table = crc_table(settled, sector_crcs(&payload));
                data = Some(payload);
                table
            }
            Opcode::Zero => crc_table(settled, std::iter::empty()),
            Opcode::Release => {
                let range = ChunkRange {
                    start: ChunkIndex(small(input)),
                    count: small(input),
                };
                chunk_ranges(&vec![range; usize::from(input.below(3))])
            }
            Opcode::Pull => Pull {
                source: SOURCE,
                source_boot: BootId::NIL,
                source_shard_count: 1 + u16::from(input.below(2)),
                mode: input.pick(&[PullMode::Newer, PullMode::Mirror, PullMode::Repair]),
                ceiling: Version::new(Token(small(input)), Seq(input.u8().into())),
                addresses: vec!["unix:/s".into()],
            }
            .encode(),
            _ => Vec::new(),
        };
        if input.rarely(16) && !aux.is_empty() {
            let at = usize::from(input.u8()) % aux.len();
            aux[at] ^= input.u8();
        }
        Frame::new(header, aux, data)
    }

    /// The node that copies come from does something.
    fn peer(&mut self, input: &mut Input<'_>) {
        let count = self.peers.len();
        if count == 0 {
            return;
        }
        let id = self.peers.keys().nth(usize::from(input.u8()) % count);
        let id = *id.expect("one of them");
        let peer = self.peers.get_mut(&id).expect("one of them");
        match input.below(8) {
            0 => {
                self.peers.remove(&id);
                self.event(ShardEvent::PeerClosed { peer: id });
            }
            _ if !peer.open => {
                peer.open = true;
                self.event(ShardEvent::PeerOpened { peer: id });
            }
            1 => {
                let frame = any_frame(input);
                self.event(ShardEvent::PeerFrame { peer: id, frame });
            }
            _ if !peer.asked.is_empty() => {
                let index = usize::from(input.u8()) % peer.asked.len();
                let asked = peer.asked.swap_remove(index);
                let frame = answer(&asked, input);
                self.event(ShardEvent::PeerFrame { peer: id, frame });
            }
            _ => {}
        }
    }

    fn complete(&mut self, index: usize) {
        let (io, result) = self.disk.complete(index);
        if let DiskResult::Failed(errno) = &result {
            assert!(*errno > 0);
        }
        self.event(ShardEvent::DiskDone { io, result });
    }

    fn settle(&mut self) {
        self.turn();
        let mut steps = 0;
        while self.disk.pending() > 0 {
            self.complete(0);
            self.turn();
            steps += 1;
            assert!(steps < 100_000, "the shard never comes to rest");
        }
    }

    /// Time enough for everything to be answered, one way or the other.
    fn finish(&mut self) {
        self.disk.heal();
        while let Some((peer, _)) = self.peers.pop_first() {
            self.event(ShardEvent::PeerClosed { peer });
        }
        for _ in 0..20 {
            self.settle();
            self.now += 16_000_000_000;
            self.event(ShardEvent::Tick);
        }
        self.settle();
        assert_eq!(self.core.in_flight(), 0);
        for (conn, held) in &self.conns {
            assert!(held.asked.is_empty(), "{conn:?} waits for {:?}", held.asked);
        }
        assert_eq!(self.stopped, self.stopping);
    }
}

/// What the source node answers, honestly or not.
fn answer(asked: &Header, input: &mut Input<'_>) -> Frame<Vec<u8>> {
    let mut header = asked.reply(Status::Ok);
    let mut data = None;
    let mut count = asked.count;
    let mut aux = match asked.opcode {
        Opcode::Hello => Hello {
            cluster: CLUSTER,
            node: SOURCE,
            role: Role::Node,
            shard: asked_shard(input),
            shard_count: 1,
            incarnation: Incarnation::default(),
        }
        .encode(),
        _ => {
            let fill = input.u8();
            let flags = u16::from(input.pick(&[0u8, 0, 0, 1, 2, 4, 7]));
            let zero = flags & SectorState::ZERO != 0;
            let content = vec![fill; SECTOR_BYTES];
            let version = Version::new(Token(input.below(4).into()), Seq(input.u8().into()));
            let state = SectorState {
                version,
                crc: if zero {
                    ZERO_SECTOR_CRC
                } else {
                    crc32c(&content)
                },
                flags,
            };
            if input.rarely(8) {
                count = input.u16() % 2048;
            }
            if asked.opcode == Opcode::ReadVersioned && !zero {
                count = count.min(256);
                data = Some(content.repeat(count.into()));
            }
            let keep = input.u8();
            let states = (0..count.min(2048)).map(|at| {
                if at % 3 == u16::from(keep % 4) {
                    SectorState::UNWRITTEN
                } else {
                    state
                }
            });
            sector_states(0, states)
        }
    };
    header.count = count;
    if input.rarely(4) {
        match input.below(6) {
            0 => header.status = status(input),
            1 => aux.truncate(usize::from(input.u8())),
            2 => header.tag ^= 1 << (input.u8() % 64),
            3 => header.opcode = crate::frames::opcode(input),
            4 if !aux.is_empty() => {
                let at = usize::from(input.u16()) % aux.len();
                aux[at] ^= input.u8();
            }
            _ => header.flags.0 &= input.u8(),
        }
    }
    header.flags.0 &= !Flags::DATA.0;
    Frame::new(header, aux, data)
}

fn asked_shard(input: &mut Input<'_>) -> ShardIndex {
    ShardIndex(u16::from(input.rarely(8)))
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    if input.below(8) > 0 {
        world.event(ShardEvent::LeaseHeld);
        world.open(Role::Lane);
        world.open(Role::Control);
    }
    let ((), used) = measured(|| {
        for _ in 0..STEPS_MAX {
            if input.is_empty() {
                break;
            }
            world.step(&mut input);
        }
    });
    let limit = 6 * world.payload_bytes + MEMORY_SPARE_BYTES;
    assert!(used.peak <= limit, "{used:?}, at most {limit}");
    world.finish();

    let style = input.u8();
    world.disk.cut(&mut |pending| match style & 3 {
        0 => Fate::Old,
        1 => Fate::New,
        _ if (pending.write ^ u64::from(style)) & 4 == 0 => Fate::Old,
        _ => Fate::New,
    });
    let limits = StoreLimits::default();
    let opened = Store::<Vec<u8>>::open(&mut world.disk, &world.place, limits);
    let (store, _) = opened.expect("what clients do damages no shard");
    for (volume, token) in &world.fenced {
        let fence = store.fence(*volume);
        assert!(
            fence.is_some_and(|fence| fence.token >= *token),
            "{volume} was fenced at {token}, the cut left {fence:?}"
        );
    }
}
