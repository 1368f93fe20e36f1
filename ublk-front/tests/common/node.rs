//! A storage node that keeps sectors in memory: the protocol as far as a front needs it, no disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use ukai_proto::crc::{ZERO_SECTOR_CRC, crc32c};
use ukai_proto::decode::VecDecoder;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{
    Hello, Pulled, Role, SectorState, chunk_list, crc_table, read_crc_table, sector_states,
};
use ukai_proto::{
    BootId, ClusterId, Flags, Frame, Header, Incarnation, NodeId, Opcode, ShardIndex, Status,
    Token, Version,
};

type Sectors = BTreeMap<(u32, u16), (Version, Vec<u8>)>;

#[derive(Default)]
struct Content {
    sectors: Sectors,
    fenced: Token,
    /// Requests seen, by opcode.
    seen: BTreeMap<u8, u64>,
    chunks_written: BTreeSet<u32>,
}

struct Inner {
    cluster: ClusterId,
    number: u8,
    shards: u16,
    content: Mutex<Content>,
    streams: Mutex<Vec<TcpStream>>,
    down: AtomicBool,
    corrupt_reads: AtomicBool,
    junk: AtomicBool,
    stopping: AtomicBool,
    impostor: AtomicBool,
    addresses: Vec<SocketAddr>,
}

pub struct FakeNode(Arc<Inner>);

impl FakeNode {
    pub fn start(cluster: ClusterId, number: u8, shards: u16) -> Self {
        let bind = |_| TcpListener::bind("127.0.0.1:0").expect("bind");
        let listeners: Vec<TcpListener> = (0..shards).map(bind).collect();
        let inner = Arc::new(Inner {
            cluster,
            number,
            shards,
            content: Mutex::default(),
            streams: Mutex::default(),
            down: AtomicBool::new(false),
            corrupt_reads: AtomicBool::new(false),
            junk: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            impostor: AtomicBool::new(false),
            addresses: listeners
                .iter()
                .map(|l| l.local_addr().expect("address"))
                .collect(),
        });
        for (shard, listener) in (0..).zip(listeners) {
            let inner = Arc::clone(&inner);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if inner.down.load(Ordering::SeqCst) {
                        continue;
                    }
                    let copy = stream.try_clone().expect("clone");
                    inner.streams.lock().expect("lock").push(copy);
                    let inner = Arc::clone(&inner);
                    thread::spawn(move || serve(&inner, shard, stream));
                }
            });
        }
        Self(inner)
    }

    pub fn id(&self) -> NodeId {
        self.0.id()
    }

    pub fn name(&self) -> String {
        format!("n{}", self.0.number)
    }

    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation()
    }

    pub fn addresses(&self) -> Vec<Vec<String>> {
        // The first one leads nowhere: fronts must try the next.
        let list = |a| vec!["unix:/nonexistent/socket".into(), format!("tcp:{a}")];
        self.0.addresses.iter().map(list).collect()
    }

    /// Breaks all connections; refuses new ones if `down`.
    pub fn disconnect(&self, down: bool) {
        self.0.down.store(down, Ordering::SeqCst);
        for stream in self.0.streams.lock().expect("lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Answers reads with a flipped bit.
    pub fn corrupt_reads(&self, on: bool) {
        self.0.corrupt_reads.store(on, Ordering::SeqCst);
    }

    /// Answers the next request with bytes that are no frame.
    pub fn junk(&self) {
        self.0.junk.store(true, Ordering::SeqCst);
    }

    /// Answers the next write like a node that stops.
    pub fn refuse_a_write(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
    }

    /// Says in HELLO that it is another node.
    pub fn impostor(&self, on: bool) {
        self.0.impostor.store(on, Ordering::SeqCst);
    }

    /// Sectors that hold data.
    pub fn sectors(&self) -> usize {
        self.0.lock().sectors.len()
    }

    pub fn content(&self) -> Vec<((u32, u16), Vec<u8>)> {
        let content = self.0.lock();
        content
            .sectors
            .iter()
            .map(|(at, (_, data))| (*at, data.clone()))
            .collect()
    }

    /// How many requests of a kind have come.
    pub fn seen(&self, opcode: Opcode) -> u64 {
        self.0
            .lock()
            .seen
            .get(&(opcode as u8))
            .copied()
            .unwrap_or(0)
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.disconnect(true);
    }
}

fn serve(inner: &Inner, shard: u16, mut stream: TcpStream) {
    let (mut decoder, mut frames) = (VecDecoder::default(), Vec::new());
    let mut buffer = vec![0; 1 << 20];
    let mut greeted = false;
    loop {
        let Ok(n @ 1..) = stream.read(&mut buffer) else {
            return;
        };
        if decoder.feed(&buffer[..n], &mut frames).is_err() {
            return;
        }
        for frame in frames.drain(..) {
            if greeted && inner.junk.swap(false, Ordering::SeqCst) {
                let _ = stream.write_all(&[0x55; 300]);
                continue;
            }
            let reply = if greeted {
                inner.handle(&frame)
            } else {
                inner.greet(shard, &frame)
            };
            let ok = reply.header.status == Status::Ok;
            if send(&mut stream, &reply).is_err() || (!greeted && !ok) {
                return;
            }
            greeted = true;
        }
    }
}

fn send(stream: &mut TcpStream, frame: &Frame<Vec<u8>>) -> io::Result<()> {
    stream.write_all(&frame.to_bytes())
}

impl Inner {
    fn id(&self) -> NodeId {
        NodeId([self.number + 1; 16])
    }

    fn incarnation(&self) -> Incarnation {
        Incarnation {
            boot: BootId([7; 16]),
            start: 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("lock")
    }

    fn greet(&self, shard: u16, frame: &Frame<Vec<u8>>) -> Frame<Vec<u8>> {
        let status = match Hello::decode(&frame.aux) {
            _ if frame.header.opcode != Opcode::Hello => Status::BadRequest,
            Err(_) => Status::BadRequest,
            Ok(hello) if hello.cluster != self.cluster => Status::WrongCluster,
            Ok(hello) if hello.node != self.id() => Status::WrongNode,
            Ok(hello) if hello.shard.0 != shard => Status::WrongShard,
            Ok(_) => Status::Ok,
        };
        let impostor = self.impostor.load(Ordering::SeqCst);
        let hello = Hello {
            cluster: self.cluster,
            node: if impostor {
                NodeId([0xee; 16])
            } else {
                self.id()
            },
            role: Role::Node,
            shard: ShardIndex(shard),
            shard_count: self.shards,
            incarnation: self.incarnation(),
        };
        Frame::new(frame.header.reply(status), hello.encode(), None)
    }

    fn handle(&self, frame: &Frame<Vec<u8>>) -> Frame<Vec<u8>> {
        let header = &frame.header;
        let mut content = self.lock();
        *content.seen.entry(header.opcode as u8).or_default() += 1;
        if header.opcode == Opcode::Fence {
            content.fenced = content.fenced.max(header.token);
        } else if header.token < content.fenced {
            return Frame::bare(header.reply(Status::StaleToken));
        }
        if header.opcode == Opcode::Write && self.stopping.swap(false, Ordering::SeqCst) {
            return Frame::bare(header.reply(Status::Stopping));
        }
        let ok = header.reply(Status::Ok);
        let range =
            || (header.sector.0..header.sector.0 + header.count).map(|s| (header.chunk.0, s));
        match header.opcode {
            Opcode::Read => self.read(&content, header),
            Opcode::Write => {
                let data = frame.data.as_deref().unwrap_or_default();
                let (_, crcs) = read_crc_table(&frame.aux, header.count).expect("crc table");
                if !data.chunks_exact(SECTOR_BYTES).map(crc32c).eq(crcs) {
                    return Frame::bare(header.reply(Status::BadCrc));
                }
                for (at, sector) in range().zip(data.chunks_exact(SECTOR_BYTES)) {
                    content.put(at, header.version(), Some(sector));
                }
                Frame::bare(ok)
            }
            Opcode::Zero => {
                range().for_each(|at| content.put(at, header.version(), None));
                Frame::bare(ok)
            }
            Opcode::List => {
                let states = range().map(|at| match content.sectors.get(&at) {
                    Some((version, data)) => {
                        let flags = if data.is_empty() {
                            SectorState::ZERO
                        } else {
                            0
                        };
                        let crc = if data.is_empty() {
                            ZERO_SECTOR_CRC
                        } else {
                            crc32c(data)
                        };
                        SectorState {
                            version: *version,
                            crc,
                            flags,
                        }
                    }
                    None => SectorState::UNWRITTEN,
                });
                Frame::new(ok, sector_states(0, states), None)
            }
            Opcode::Pull => Frame::new(ok, Pulled::default().encode(), None),
            Opcode::Fence | Opcode::WrittenSince => Frame::new(ok, chunk_list(&[]), None),
            _ => Frame::bare(ok),
        }
    }

    fn read(&self, content: &Content, header: &Header) -> Frame<Vec<u8>> {
        let (mut data, mut crcs, mut zero) = (Vec::new(), Vec::new(), true);
        for sector in header.sector.0..header.sector.0 + header.count {
            let held = content.sectors.get(&(header.chunk.0, sector));
            match held.filter(|(_, bytes)| !bytes.is_empty()) {
                Some((_, bytes)) => {
                    zero = false;
                    data.extend_from_slice(bytes);
                    crcs.push(crc32c(bytes));
                }
                None => {
                    data.resize(data.len() + SECTOR_BYTES, 0);
                    crcs.push(ZERO_SECTOR_CRC);
                }
            }
        }
        let mut reply = header.reply(Status::Ok);
        if zero {
            reply.flags = reply.flags.with(Flags::ZEROES);
            return Frame::new(reply, crc_table(1, crcs.into_iter()), None);
        }
        if self.corrupt_reads.load(Ordering::SeqCst) {
            data[17] ^= 1;
        }
        Frame::new(reply, crc_table(1, crcs.into_iter()), Some(data))
    }
}

impl Content {
    fn put(&mut self, at: (u32, u16), version: Version, data: Option<&[u8]>) {
        let newer = self
            .sectors
            .get(&at)
            .is_none_or(|(held, _)| version > *held);
        if newer {
            self.sectors
                .insert(at, (version, data.unwrap_or_default().to_vec()));
        }
        self.chunks_written.insert(at.0);
    }
}
