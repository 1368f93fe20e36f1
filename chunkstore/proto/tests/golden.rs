//! The bytes of each message of each protocol version, committed: the newest program reads them all and
//! still writes those of its own version.
//!
//! After a new protocol version was made, add its files with `UKAI_WRITE_GOLDEN=1 cargo test -p ukai-proto
//! --test golden`; files that are there are never rewritten.

use std::path::PathBuf;
use ukai_proto::decode::VecDecoder;
use ukai_proto::header::{HeaderError, PROTOCOL};
use ukai_proto::message::*;
use ukai_proto::*;

fn header(opcode: Opcode) -> Header {
    Header {
        volume: VolumeId([0x76; 16]),
        chunk: ChunkIndex(0x0102_0304),
        sector: SectorInChunk(0x0506),
        count: 2,
        token: Token(0x0708_090a),
        generation: Generation(0x0b0c_0d0e),
        seq: Seq(0x0000_1112_1314_1516),
        ..Header::request(opcode, 0x2122_2324_2526_2728)
    }
}

fn states() -> Vec<SectorState> {
    let state = |token, seq, crc, flags| SectorState {
        version: Version::new(Token(token), Seq(seq)),
        crc,
        flags,
    };
    vec![
        state(1, 2, 0xdead_beef, 0),
        state(
            3,
            limits::SEQ_MAX,
            5,
            SectorState::BAD | SectorState::ADOPTED,
        ),
    ]
}

fn hello(role: Role) -> Hello {
    Hello {
        cluster: ClusterId([1; 16]),
        node: NodeId([2; 16]),
        role,
        shard: ShardIndex(3),
        shard_count: 4,
        incarnation: Incarnation {
            boot: BootId([5; 16]),
            start: 6,
        },
    }
}

/// Counters are only ever added at the end, without a new protocol version.
const COUNTERS: u64 = 16;

fn stats(counters: u64) -> ShardStats {
    let words: Vec<u8> = (1..=counters)
        .flat_map(|n| (n << 32 | n).to_le_bytes())
        .collect();
    ShardStats::decode(&words)
}

fn report(body: &[u8]) -> Vec<u8> {
    let report = Report {
        kind: ReportKind::HEAT,
        page: 0x0102_0304,
        body: body.to_vec(),
    };
    report.encode()
}

fn heat() -> heat::HeatPage {
    let mut chunks = vec![heat::ChunkHeat::default(); 200];
    chunks[70] = heat::ChunkHeat {
        reads: 1,
        writes: 100,
        bytes: 255,
    };
    heat::HeatPage {
        age_s: 0x0102_0304,
        half_life_s: 600,
        chunks,
    }
}

/// Every message of version 1, by name.
fn samples() -> Vec<(&'static str, Frame<Vec<u8>>)> {
    let request = |opcode, aux| Frame::new(header(opcode), aux, None);
    let reply = |opcode, aux| Frame::new(header(opcode).reply(Status::Ok), aux, None);
    let chunks = [ChunkIndex(1), ChunkIndex(0x0102_0304)];
    let ranges = [
        ChunkRange {
            start: ChunkIndex(7),
            count: 9,
        },
        ChunkRange {
            start: ChunkIndex(0x0102_0304),
            count: 1,
        },
    ];
    let pull = Pull {
        source: NodeId([2; 16]),
        source_boot: BootId([9; 16]),
        source_shard_count: 2,
        mode: PullMode::Mirror,
        ceiling: Version::new(Token(4), Seq(77)),
        addresses: vec!["unix:/run/n0/0".into(), "tcp:127.0.0.1:9000".into()],
    };
    let bare = |mode| Pull {
        mode,
        addresses: Vec::new(),
        ..pull.clone()
    };
    let pulled = Pulled {
        sectors_compared: 1,
        sectors_copied: 2,
        sectors_bad: 3,
    };
    let entry = InventoryEntry {
        volume: VolumeId([7; 16]),
        slots: 8,
        token: Token(9),
    };
    let mut fua = header(Opcode::Zero);
    fua.flags = Flags::FUA.with(Flags::UNMAP);
    let mut more = header(Opcode::WrittenSince).reply(Status::Ok);
    more.flags = more.flags.with(Flags::MORE);
    let mut verify = header(Opcode::List);
    verify.flags = Flags::VERIFY;
    let mut zeroes = header(Opcode::Read).reply(Status::Ok);
    zeroes.flags = zeroes.flags.with(Flags::ZEROES);
    let table = || crc_table(0x3132_3334, [0xaabb_ccdd, 1].into_iter());
    vec![
        ("hello", request(Opcode::Hello, hello(Role::Lane).encode())),
        (
            "hello-reply",
            reply(Opcode::Hello, hello(Role::Node).encode()),
        ),
        ("fence", request(Opcode::Fence, Vec::new())),
        ("fence-reply", reply(Opcode::Fence, chunk_list(&chunks))),
        ("adopt", request(Opcode::Adopt, Vec::new())),
        ("read", request(Opcode::Read, Vec::new())),
        ("read-zeroes-reply", Frame::new(zeroes, table(), None)),
        ("write-without-data", request(Opcode::Write, table())),
        ("flush", request(Opcode::Flush, Vec::new())),
        (
            "zero",
            Frame::new(fua, crc_table(5, std::iter::empty()), None),
        ),
        ("list-verify", Frame::bare(verify)),
        (
            "list-reply",
            reply(Opcode::List, sector_states(6, states().into_iter())),
        ),
        ("read-versioned", request(Opcode::ReadVersioned, Vec::new())),
        ("pull", request(Opcode::Pull, pull.encode())),
        (
            "pull-newer",
            request(Opcode::Pull, bare(PullMode::Newer).encode()),
        ),
        (
            "pull-repair",
            request(Opcode::Pull, bare(PullMode::Repair).encode()),
        ),
        ("pull-reply", reply(Opcode::Pull, pulled.encode())),
        (
            "written-since-reply",
            Frame::new(more, chunk_list(&chunks), None),
        ),
        ("release", request(Opcode::Release, chunk_ranges(&ranges))),
        ("settled", request(Opcode::Settled, Vec::new())),
        (
            "stats-reply-16",
            reply(Opcode::Stats, stats(COUNTERS).encode()),
        ),
        ("ping", request(Opcode::Ping, Vec::new())),
        (
            "inventory-reply",
            reply(Opcode::Inventory, inventory(&[entry; 2])),
        ),
        ("delete-volume", request(Opcode::DeleteVolume, Vec::new())),
        ("put-report", request(Opcode::PutReport, report(b"{}"))),
        (
            "put-report-heat",
            request(Opcode::PutReport, report(&heat().encode())),
        ),
        ("get-report", request(Opcode::GetReport, report(b""))),
        (
            "get-report-reply",
            reply(Opcode::GetReport, report(b"{\"a\":1}")),
        ),
        (
            "get-report-not-found",
            Frame::bare(header(Opcode::GetReport).reply(Status::NotFound)),
        ),
        (
            "refused",
            Frame::bare(header(Opcode::Write).reply(Status::StaleToken)),
        ),
    ]
}

fn path(version: u8, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}/{name}.bin"))
}

#[test]
fn version_1_is_written_and_read_as_ever() {
    assert_eq!(
        PROTOCOL, 1,
        "keep this test for version 1, add one for the new version"
    );
    for (name, frame) in samples() {
        let (file, bytes) = (path(1, name), frame.to_bytes());
        if std::env::var_os("UKAI_WRITE_GOLDEN").is_some() && !file.exists() {
            std::fs::create_dir_all(file.parent().expect("in a folder")).expect("made");
            std::fs::write(&file, &bytes).expect("written");
        }
        let golden = std::fs::read(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            bytes, golden,
            "{name}: the layout changed, make a new protocol version"
        );
        let mut read = Vec::new();
        VecDecoder::default().feed(&golden, &mut read).expect(name);
        assert_eq!(read, [frame], "{name}");
    }
}

#[test]
fn every_golden_file_is_one_of_the_messages() {
    let mut known: Vec<PathBuf> = samples().iter().map(|(name, _)| path(1, name)).collect();
    known.push(path(1, "stats-reply-14"));
    let folder = path(1, "x").parent().expect("in a folder").to_owned();
    for file in std::fs::read_dir(folder).expect("is there") {
        let file = file.expect("listed").path();
        assert!(
            known.contains(&file),
            "{} is read by no test",
            file.display()
        );
    }
}

/// What the golden bodies mean, value by value: encoder and decoder could be wrong together.
#[test]
fn bodies_mean_what_they_meant() {
    let read = |name: &str| {
        let mut frames = Vec::new();
        let bytes = std::fs::read(path(1, name)).expect(name);
        VecDecoder::default().feed(&bytes, &mut frames).expect(name);
        frames.pop().expect("one frame").aux
    };
    assert_eq!(Hello::decode(&read("hello")), Ok(hello(Role::Lane)));
    let pull = Pull::decode(&read("pull")).expect("pull");
    assert_eq!((pull.mode, pull.addresses.len()), (PullMode::Mirror, 2));
    let chunks = read_chunk_list(&read("fence-reply")).expect("chunks");
    assert_eq!(chunks, [ChunkIndex(1), ChunkIndex(0x0102_0304)]);
    let (prefix, crcs) = read_crc_table(&read("write-without-data"), 2)
        .map(|(prefix, crcs)| (prefix, crcs.collect::<Vec<_>>()))
        .expect("table");
    assert_eq!((prefix, crcs), (0x3132_3334, vec![0xaabb_ccdd, 1]));
    let list = read("list-reply");
    let (_, listed) = read_sector_states(&list, 2).expect("states");
    assert!(listed.eq(states()));
    // A node that counts less, and a reader that knows less: what is missing is 0, what is too much is
    // not looked at.
    assert_eq!(ShardStats::decode(&read("stats-reply-14")), stats(14));
    assert_eq!(ShardStats::decode(&read("stats-reply-16")), stats(COUNTERS));
    assert_eq!(
        read_chunk_ranges(&read("release")).expect("ranges").len(),
        2
    );
    let report = Report::decode(&read("put-report-heat")).expect("report");
    assert_eq!((report.kind, report.page), (ReportKind::HEAT, 0x0102_0304));
    assert_eq!(heat::HeatPage::decode(&report.body), Ok(heat()));
    assert_eq!(
        read_inventory(&read("inventory-reply"))
            .expect("entries")
            .len(),
        2
    );
}

/// A version that this program does not speak, older or newer, is named, nothing of it is guessed.
#[test]
fn other_versions_are_refused_by_name() {
    let golden = std::fs::read(path(1, "hello")).expect("hello");
    for version in [0, PROTOCOL + 1, u8::MAX] {
        let mut bytes = golden.clone();
        bytes[2] = version;
        let crc = crc::crc32c(&bytes[..limits::HEADER_BYTES - 4]);
        bytes[limits::HEADER_BYTES - 4..limits::HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        let error = VecDecoder::default().feed(&bytes, &mut Vec::new());
        let expected = HeaderError::Protocol(version);
        assert_eq!(error, Err(expected.into()));
        assert!(expected.to_string().contains(&version.to_string()));
    }
}
