//! A small blocking client of the protocol, and real node processes to talk to.
#![allow(dead_code)] // each test file uses a part

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;
use ukai_proto::decode::VecDecoder;
use ukai_proto::message::{Hello, Pulled, Role, SectorState, crc_table, read_sector_states};
use ukai_proto::*;

/// Far above anything that is expected: a hung node fails the test instead of hanging it.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_chunkstore");
pub(crate) const VOLUME: VolumeId = VolumeId([9; 16]);

/// A directory on a disk with a metadata store and node files; removed at the end.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        // The build directory: /tmp may be memory, which nodes refuse.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn meta(&self) -> String {
        format!("sqlite:{}", self.path("meta.db").display())
    }

    /// `chunkstore ARGS`, to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        Command::new(BINARY)
            .args(args)
            .env("UKAI_META", self.meta())
            .output()
            .expect("run chunkstore")
    }

    /// `chunkstore format` of a file named like the node.
    pub(crate) fn format(&self, name: &str, more: &[&str]) -> Output {
        let path = self.path(name);
        let path = path.to_str().expect("utf-8 path");
        let mut args = vec!["format", path, "--site", "here", "--name", name];
        args.extend(["--cluster-init"]);
        args.extend(more);
        self.run(&args)
    }

    /// A formatted node of 64 MiB with one shard.
    pub(crate) fn node(&self, name: &str) -> Node {
        let output = self.format(name, &["--size", "64MiB"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        self.start(name, &[])
    }

    /// Start `chunkstore run` on a node's file and wait until it is ready.
    pub(crate) fn start(&self, name: &str, more: &[&str]) -> Node {
        self.start_with(name, more, &[])
    }

    /// The same with more environment.
    pub(crate) fn start_with(
        &self,
        name: &str,
        more: &[&str],
        environment: &[(&str, &Path)],
    ) -> Node {
        let child = Command::new(BINARY)
            .arg("run")
            .arg(self.path(name))
            .args(["--unix-dir", self.path("sockets").to_str().expect("utf-8")])
            .args(more)
            .env("UKAI_META", self.meta())
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.path(&format!("{name}.log"))).expect("log"))
            .spawn()
            .expect("start chunkstore");
        Node::ready(child, &self.path(&format!("{name}.log")))
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running node.
pub(crate) struct Node {
    child: Child,
    pub(crate) id: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) boot: BootId,
    /// Addresses of each shard: TCP, then Unix.
    pub(crate) shards: Vec<Vec<String>>,
}

impl Node {
    fn ready(mut child: Child, log: &Path) -> Self {
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        if !line.starts_with("ready ") {
            let log = fs::read_to_string(log).unwrap_or_default();
            panic!("no ready line but {line:?}; exit {:?}\n{log}", child.wait());
        }
        let mut words = line.split_whitespace().skip(1);
        let id = words.next().and_then(|w| w.strip_prefix("node="));
        let id = id.expect("node=").parse().expect("uuid");
        let mut shards: Vec<Vec<String>> = Vec::new();
        for word in words.skip(1) {
            if word == "shard" {
                shards.push(Vec::new());
            } else if word.contains(':') {
                shards.last_mut().expect("shard first").push(word.into());
            }
        }
        let mut node = Self {
            child,
            id,
            cluster: ClusterId::NIL,
            boot: BootId::NIL,
            shards,
        };
        // A node tells its cluster even to those who name the wrong one.
        let reply = Client::dial(&node.shards[0][0]).hello(&node, 0, |_| {});
        let identity = Hello::decode(&reply.aux).expect("identity");
        (node.cluster, node.boot) = (identity.cluster, identity.incarnation.boot);
        node
    }

    /// A greeted connection to shard 0 over TCP.
    pub(crate) fn client(&self) -> Client {
        self.client_of(0, 0)
    }

    pub(crate) fn client_of(&self, shard: usize, address: usize) -> Client {
        let mut client = Client::dial(&self.shards[shard][address]);
        let reply = client.hello(self, shard as u16, |_| {});
        assert_eq!(reply.header.status, Status::Ok);
        client
    }

    /// SIGKILL: the process is gone, the machine stays.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// SIGTERM, to the end.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill").success());
        self.child.wait().expect("wait")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

trait Socket: Read + Write {}
impl<T: Read + Write> Socket for T {}

/// One connection.
pub(crate) struct Client {
    socket: Box<dyn Socket>,
    decoder: VecDecoder,
    ready: Vec<Frame<Vec<u8>>>,
    tag: u64,
    pub(crate) token: u32,
    pub(crate) generation: u32,
}

impl Client {
    pub(crate) fn dial(address: &str) -> Self {
        let socket: Box<dyn Socket> = match address.split_once(':').expect("kind:where") {
            ("tcp", host) => {
                let socket = TcpStream::connect(host).expect("connect");
                socket.set_read_timeout(Some(TIMEOUT)).expect("timeout");
                Box::new(socket)
            }
            ("unix", path) => {
                let socket = UnixStream::connect(path).expect("connect");
                socket.set_read_timeout(Some(TIMEOUT)).expect("timeout");
                Box::new(socket)
            }
            other => panic!("address {other:?}"),
        };
        Self {
            socket,
            decoder: VecDecoder::default(),
            ready: Vec::new(),
            tag: 0,
            token: 0,
            generation: 0,
        }
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        // The node may have closed already: then the read tells.
        let _ = self.socket.write_all(bytes);
    }

    /// The next frame; `None`: the node closed the connection.
    pub(crate) fn receive(&mut self) -> Option<Frame<Vec<u8>>> {
        let mut buffer = vec![0; 1 << 16];
        while self.ready.is_empty() {
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("receive: {error}"),
                Ok(n) => self
                    .decoder
                    .feed(&buffer[..n], &mut self.ready)
                    .expect("frames"),
            }
        }
        Some(self.ready.remove(0))
    }

    pub(crate) fn hello(
        &mut self,
        node: &Node,
        shard: u16,
        change: impl Fn(&mut Hello),
    ) -> Frame<Vec<u8>> {
        let mut hello = Hello {
            cluster: node.cluster,
            node: node.id,
            role: Role::Lane,
            shard: ShardIndex(shard),
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        change(&mut hello);
        self.ask(Header::request(Opcode::Hello, 0), hello.encode(), None)
    }

    /// Send; returns the tag.
    pub(crate) fn send(&mut self, header: Header, aux: Vec<u8>, data: Option<Vec<u8>>) -> u64 {
        self.tag += 1;
        let header = Header {
            tag: self.tag,
            ..header
        };
        self.send_bytes(&Frame::new(header, aux, data).to_bytes());
        self.tag
    }

    /// Send and wait for the reply.
    pub(crate) fn ask(
        &mut self,
        header: Header,
        aux: Vec<u8>,
        data: Option<Vec<u8>>,
    ) -> Frame<Vec<u8>> {
        let tag = self.send(header, aux, data);
        let reply = self.receive().expect("the node closed the connection");
        assert_eq!(reply.header.tag, tag);
        reply
    }

    /// A header under this client's token and generation.
    pub(crate) fn header(&self, opcode: Opcode, chunk: u32, sector: u16, count: u16) -> Header {
        Header {
            volume: VOLUME,
            chunk: ChunkIndex(chunk),
            sector: SectorInChunk(sector),
            count,
            token: Token(self.token),
            generation: Generation(self.generation),
            ..Header::request(opcode, 0)
        }
    }

    pub(crate) fn status(&mut self, header: Header) -> Status {
        self.ask(header, Vec::new(), None).header.status
    }

    pub(crate) fn fence(&mut self, token: u32, generation: u32) -> Status {
        let header = Header {
            token: Token(token),
            generation: Generation(generation),
            ..self.header(Opcode::Fence, 0, 0, 0)
        };
        let status = self.status(header);
        if status == Status::Ok {
            (self.token, self.generation) = (token, generation);
        }
        status
    }

    pub(crate) fn write(&mut self, chunk: u32, sector: u16, seq: u64, data: Vec<u8>) -> Status {
        let count = (data.len() / 4096) as u16;
        let header = Header {
            seq: Seq(seq),
            ..self.header(Opcode::Write, chunk, sector, count)
        };
        let aux = crc_table(0, crc::sector_crcs(&data));
        self.ask(header, aux, Some(data)).header.status
    }

    /// The content, zeros included, or why not.
    pub(crate) fn read(&mut self, chunk: u32, sector: u16, count: u16) -> Result<Vec<u8>, Status> {
        let header = self.header(Opcode::Read, chunk, sector, count);
        let reply = self.ask(header, Vec::new(), None);
        match reply.header.status {
            Status::Ok if reply.header.flags.has(Flags::ZEROES) => {
                Ok(vec![0; usize::from(count) * 4096])
            }
            Status::Ok => Ok(reply.data.expect("data")),
            status => Err(status),
        }
    }

    pub(crate) fn zero(&mut self, chunk: u32, sector: u16, count: u16, seq: u64) -> Status {
        let header = Header {
            seq: Seq(seq),
            flags: Flags::UNMAP,
            ..self.header(Opcode::Zero, chunk, sector, count)
        };
        self.ask(header, vec![0; 64], None).header.status
    }

    pub(crate) fn flush(&mut self) -> Status {
        self.status(self.header(Opcode::Flush, 0, 0, 0))
    }

    pub(crate) fn list(&mut self, chunk: u32, sector: u16, count: u16) -> Vec<SectorState> {
        let header = self.header(Opcode::List, chunk, sector, count);
        let reply = self.ask(header, Vec::new(), None);
        assert_eq!(reply.header.status, Status::Ok);
        let (_, states) = read_sector_states(&reply.aux, count).expect("states");
        states.collect()
    }

    pub(crate) fn pull(
        &mut self,
        chunk: u32,
        count: u16,
        pull: &message::Pull,
    ) -> Result<Pulled, Status> {
        let header = self.header(Opcode::Pull, chunk, 0, count);
        let reply = self.ask(header, pull.encode(), None);
        match reply.header.status {
            Status::Ok => Ok(Pulled::decode(&reply.aux).expect("pulled")),
            status => Err(status),
        }
    }
}

/// Sectors that differ from each other and between seeds.
pub(crate) fn pattern(seed: u64, sectors: usize) -> Vec<u8> {
    (0..sectors as u64 * 512)
        .flat_map(|i| {
            (seed << 32 | i)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes()
        })
        .collect()
}
