//! The node without a disk serves what was written to it, and leaves nothing behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use ukai_proto::crc::sector_crcs;
use ukai_proto::decode::VecDecoder;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{Hello, Role, crc_table};
use ukai_proto::{
    ChunkIndex, ClusterId, Flags, Frame, Generation, Header, Incarnation, NodeId, Opcode,
    SectorInChunk, Seq, ShardIndex, Status, Token, VolumeId,
};

/// Far above anything that is expected: a hung node fails the test instead of hanging it.
const TIMEOUT: Duration = Duration::from_secs(60);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Client {
    socket: TcpStream,
    decoder: VecDecoder,
    tag: u64,
}

impl Client {
    fn ask(&mut self, header: Header, aux: Vec<u8>, data: Option<Vec<u8>>) -> Frame<Vec<u8>> {
        self.tag += 1;
        let tag = self.tag;
        let frame = Frame::new(Header { tag, ..header }, aux, data);
        self.socket.write_all(&frame.to_bytes()).expect("sends");
        let (mut buffer, mut ready) = (vec![0; 1 << 16], Vec::new());
        while ready.is_empty() {
            let bytes = self.socket.read(&mut buffer).expect("receives");
            assert!(bytes > 0, "the node closed the connection");
            self.decoder
                .feed(&buffer[..bytes], &mut ready)
                .expect("frames");
        }
        let reply = ready.remove(0);
        assert_eq!(reply.header.tag, tag);
        reply
    }
}

fn header(opcode: Opcode, sector: u16) -> Header {
    Header {
        volume: VolumeId([7; 16]),
        chunk: ChunkIndex(3),
        sector: SectorInChunk(sector),
        count: 2,
        token: Token(1),
        generation: Generation(1),
        ..Header::request(opcode, 0)
    }
}

fn content(number: u8) -> Vec<u8> {
    (0..2 * SECTOR_BYTES)
        .map(|at| number ^ at.to_le_bytes()[0])
        .collect()
}

#[test]
fn what_was_written_is_read_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a disk");
    let path = dir.path().join("node");
    let meta = format!("sqlite:{}", dir.path().join("meta.db").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_ukai-null-node"));
    command
        .arg(&path)
        .args(["--meta", &meta, "--site", "here", "--name", "null"])
        .args(["--mib", "64"]);
    let child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut node = Killed(child);
    let mut line = String::new();
    let said = node.0.stdout.take().expect("piped");
    BufReader::new(said).read_line(&mut line).expect("a line");
    let word = |prefix| {
        let found = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix(prefix));
        found.unwrap_or_else(|| panic!("no {prefix} in {line:?}"))
    };
    let (id, address): (NodeId, _) = (word("node=").parse().expect("an id"), word("tcp:"));
    assert!(!line.contains("unix:"), "{line}");
    let second = command.output().expect("starts");
    assert!(!second.status.success(), "on a file that is there");

    let socket = TcpStream::connect(address).expect("connects");
    socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let (decoder, tag) = (VecDecoder::default(), 0);
    let mut client = Client {
        socket,
        decoder,
        tag,
    };
    let mut hello = Hello {
        cluster: ClusterId::NIL,
        node: id,
        role: Role::Lane,
        shard: ShardIndex(0),
        shard_count: 0,
        incarnation: Incarnation::default(),
    };
    // A node tells its cluster even to those who name the wrong one.
    let reply = client.ask(Header::request(Opcode::Hello, 0), hello.encode(), None);
    hello.cluster = Hello::decode(&reply.aux).expect("an identity").cluster;
    client.socket = TcpStream::connect(address).expect("connects");
    client.decoder = VecDecoder::default();
    let reply = client.ask(Header::request(Opcode::Hello, 0), hello.encode(), None);
    assert_eq!(reply.header.status, Status::Ok);
    let fence = Header {
        count: 0,
        ..header(Opcode::Fence, 0)
    };
    let fence = client.ask(fence, Vec::new(), None);
    assert_eq!(fence.header.status, Status::Ok);
    for (number, flags) in [(1u8, Flags::DATA), (2, Flags::DATA.with(Flags::FUA))] {
        for sector in [0u16, 2, 40] {
            let data = content(number ^ sector.to_le_bytes()[0]);
            let write = Header {
                seq: Seq(u64::from(sector) + 100 * u64::from(number)),
                flags,
                ..header(Opcode::Write, sector)
            };
            let table = crc_table(0, sector_crcs(&data));
            let reply = client.ask(write, table, Some(data));
            assert_eq!(reply.header.status, Status::Ok, "sector {sector}");
        }
    }
    for sector in [0u16, 2, 40] {
        // The node verified the checksum, or it would have answered with an error.
        let reply = client.ask(header(Opcode::Read, sector), Vec::new(), None);
        assert_eq!(reply.header.status, Status::Ok, "sector {sector}");
        assert!(reply.data == Some(content(2 ^ sector.to_le_bytes()[0])));
    }
    let pid = node.0.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.expect("kill").success());
    assert!(node.0.wait().expect("ends").success(), "a clean stop");
    assert!(!path.exists(), "the file is deleted");
}
