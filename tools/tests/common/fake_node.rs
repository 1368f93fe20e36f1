//! A node's shards as far as the tools speak with them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use ukai_meta::NodeRecord;
use ukai_proto::decode::VecDecoder;
use ukai_proto::message::{
    Hello, InventoryEntry, Pull, Pulled, Report, Role, SectorState, ShardStats, chunk_list,
    inventory, sector_states,
};
use ukai_proto::route::shard_of;
use ukai_proto::{
    ChunkIndex, ClusterId, Flags, Frame, Generation, Header, Incarnation, NodeId, Opcode, Seq,
    ShardIndex, Status, Token, VolumeId,
};

/// What the node holds, and what it was told.
#[derive(Default)]
pub struct Held {
    /// Slots per volume, on shard 0.
    pub slots: Vec<(VolumeId, u64)>,
    /// FENCE and DELETE_VOLUME requests: shard, what, volume, token, generation.
    pub orders: Vec<(u16, Opcode, VolumeId, Token, Generation)>,
    /// Answer to everything after HELLO, if not Ok.
    pub refuse: Option<Status>,
    /// Entries per INVENTORY page.
    pub inventory_page: usize,
    /// States of sectors by (chunk, sector), for LIST; chunks that have some are told as written.
    pub states: BTreeMap<(u32, u16), SectorState>,
    /// The front's settled sequence, as LIST tells it.
    pub settled: u64,
    /// PULLs: chunk, first sector, count, order.
    pub pulls: Vec<(u32, u16, u16, Pull)>,
    /// What a PULL brings, by (chunk, sector).
    pub heals: BTreeMap<(u32, u16), SectorState>,
    /// So many LISTs are answered StaleMap first.
    pub stale_lists: u32,
    /// LISTs with VERIFY, and FLUSHes.
    pub verified: u32,
    pub flushes: u32,
    /// Reports of fronts, by (kind, page).
    pub reports: BTreeMap<(u16, u32), Vec<u8>>,
    /// The cluster it says it belongs to, if another.
    pub other_cluster: Option<ClusterId>,
}

pub struct FakeNode {
    record: NodeRecord,
    held: Arc<Mutex<Held>>,
    stop: Arc<AtomicBool>,
    listeners: Vec<JoinHandle<()>>,
}

impl FakeNode {
    pub fn start(cluster: ClusterId, record: &NodeRecord) -> Self {
        let held = Arc::new(Mutex::new(Held {
            inventory_page: 1024,
            ..Held::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let mut listeners = Vec::new();
        for shard in 0..record.shard_count {
            let listener = UnixListener::bind(path(record, shard)).unwrap();
            let (held, stop) = (Arc::clone(&held), Arc::clone(&stop));
            let me = (cluster, record.node, ShardIndex(shard));
            listeners.push(std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let held = Arc::clone(&held);
                    // Ends with its connection, which ends with the tool.
                    std::thread::spawn(move || serve(stream.unwrap(), me, &held));
                }
            }));
        }
        Self {
            record: record.clone(),
            held,
            stop,
            listeners,
        }
    }

    pub fn id(&self) -> NodeId {
        self.record.node
    }

    pub fn held<T>(&self, look: impl FnOnce(&mut Held) -> T) -> T {
        look(&mut self.held.lock().unwrap())
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for shard in 0..self.record.shard_count {
            // Wakes the listener, which then sees the flag.
            let _ = UnixStream::connect(path(&self.record, shard));
            let _ = std::fs::remove_file(path(&self.record, shard));
        }
        for listener in self.listeners.drain(..) {
            let _ = listener.join();
        }
    }
}

fn path(record: &NodeRecord, shard: u16) -> String {
    record.shard_addresses[usize::from(shard)][0]
        .strip_prefix("unix:")
        .unwrap()
        .into()
}

fn serve(mut stream: UnixStream, me: (ClusterId, NodeId, ShardIndex), held: &Mutex<Held>) {
    let mut decoder = VecDecoder::default();
    let mut buffer = vec![0; 1 << 16];
    let mut greeted = false;
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let mut frames = Vec::new();
        decoder.feed(&buffer[..n], &mut frames).unwrap();
        for frame in frames {
            assert!(
                greeted || frame.header.opcode == Opcode::Hello,
                "HELLO comes first"
            );
            greeted = true;
            let reply = answer(&frame, me, &mut held.lock().unwrap());
            if stream.write_all(&reply.to_bytes()).is_err() {
                return;
            }
        }
    }
}

fn answer(
    frame: &Frame<Vec<u8>>,
    (cluster, node, shard): (ClusterId, NodeId, ShardIndex),
    held: &mut Held,
) -> Frame<Vec<u8>> {
    let header = &frame.header;
    let reply = |status| header.reply(status);
    if header.opcode == Opcode::Hello {
        let hello = Hello::decode(&frame.aux).unwrap();
        assert_eq!(hello.role, Role::Tools);
        let cluster = held.other_cluster.unwrap_or(cluster);
        let status = match () {
            () if hello.cluster != cluster => Status::WrongCluster,
            () if hello.node != node => Status::WrongNode,
            () if hello.shard != shard => Status::WrongShard,
            () => Status::Ok,
        };
        let incarnation = Incarnation {
            start: 1,
            ..Incarnation::default()
        };
        let own = Hello {
            cluster,
            node,
            role: Role::Node,
            shard,
            shard_count: 2,
            incarnation,
        };
        return Frame::new(reply(status), own.encode(), None);
    }
    if let Some(status) = held.refuse {
        return Frame::bare(reply(status));
    }
    match header.opcode {
        Opcode::Fence | Opcode::DeleteVolume => {
            let Header {
                opcode,
                volume,
                token,
                generation,
                ..
            } = *header;
            held.orders
                .push((shard.0, opcode, volume, token, generation));
            if opcode == Opcode::DeleteVolume {
                held.slots.retain(|(held, _)| *held != volume);
            }
            Frame::bare(reply(Status::Ok))
        }
        Opcode::Stats => {
            let stats = ShardStats {
                reads: 10,
                slots_total: 100,
                ..ShardStats::default()
            };
            Frame::new(reply(Status::Ok), stats.encode(), None)
        }
        Opcode::Inventory => {
            let mut entries: Vec<InventoryEntry> = held
                .slots
                .iter()
                .filter(|(volume, _)| shard.0 == 0 && *volume > header.volume)
                .map(|&(volume, slots)| InventoryEntry {
                    volume,
                    slots,
                    token: Token(1),
                })
                .collect();
            entries.sort_by_key(|entry| entry.volume);
            let mut header = reply(Status::Ok);
            if entries.len() > held.inventory_page {
                entries.truncate(held.inventory_page);
                header.flags = header.flags.with(Flags::MORE);
            }
            Frame::new(header, inventory(&entries), None)
        }
        Opcode::WrittenSince => {
            let chunks = held.states.keys().map(|(chunk, _)| ChunkIndex(*chunk));
            let mut chunks: Vec<ChunkIndex> = chunks
                .filter(|chunk| {
                    *chunk >= header.chunk && shard_of(header.volume, *chunk, 2) == shard
                })
                .collect();
            chunks.dedup();
            Frame::new(reply(Status::Ok), chunk_list(&chunks), None)
        }
        Opcode::List => {
            assert_eq!(shard_of(header.volume, header.chunk, 2), shard, "routing");
            if held.stale_lists > 0 {
                held.stale_lists -= 1;
                return Frame::bare(reply(Status::StaleMap));
            }
            held.verified += u32::from(header.flags.has(Flags::VERIFY));
            let first = header.sector.0;
            let states = (first..first + header.count).map(|sector| {
                let state = held.states.get(&(header.chunk.0, sector));
                state.copied().unwrap_or(SectorState::UNWRITTEN)
            });
            let aux = sector_states(0, states);
            let mut header = reply(Status::Ok);
            header.seq = Seq(held.settled);
            Frame::new(header, aux, None)
        }
        Opcode::Pull => {
            let pull = Pull::decode(&frame.aux).unwrap();
            let (chunk, first) = (header.chunk.0, header.sector.0);
            held.pulls.push((chunk, first, header.count, pull));
            let mut pulled = Pulled::default();
            for sector in first..first + header.count {
                if let Some(state) = held.heals.get(&(chunk, sector)) {
                    held.states.insert((chunk, sector), *state);
                    pulled.sectors_copied += 1;
                }
            }
            Frame::new(reply(Status::Ok), pulled.encode(), None)
        }
        Opcode::GetReport => {
            let asked = Report::decode(&frame.aux).unwrap();
            match held.reports.get(&(asked.kind.0, asked.page)) {
                None => Frame::bare(reply(Status::NotFound)),
                Some(body) => {
                    let body = body.clone();
                    let aux = Report { body, ..asked }.encode();
                    Frame::new(reply(Status::Ok), aux, None)
                }
            }
        }
        Opcode::Flush => {
            held.flushes += 1;
            Frame::bare(reply(Status::Ok))
        }
        Opcode::Ping => Frame::bare(reply(Status::Ok)),
        _ => Frame::bare(reply(Status::BadRequest)),
    }
}
