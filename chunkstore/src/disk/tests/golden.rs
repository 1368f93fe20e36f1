//! The bytes of each structure of the disk, of each format version, committed: the newest program reads
//! them all and still writes those of its own version.
//!
//! After a new format version was made, add its files with `UKAI_WRITE_GOLDEN=1 cargo test -p chunkstore
//! golden`; files that are there are never rewritten.

use crate::disk::format::{NodeError, NodeSuperblock};
use crate::disk::hole::{self, Hole, HoleEntry, HoleIndex, SlotKey};
use crate::disk::layout::{BLOCK_BYTES, PageIndex, ShardPlace, SlotIndex};
use crate::disk::log::{LogBuffer, Marks, read_block};
use crate::disk::mem::MemDisk;
use crate::disk::page::{self, Page, PageCheck};
use crate::disk::record::{Record, Run};
use crate::disk::store::OpenError;
use crate::disk::superblock::{FORMAT_VERSION, ShardSuperblock};
use crate::disk::tests::rig::node_format;
use std::borrow::Cow;
use std::path::PathBuf;
use ukai_proto::message::{ChunkRange, SectorState};
use ukai_proto::{
    BootId, ChunkIndex, Generation, NodeId, Seq, ShardIndex, Token, Version, VolumeId,
};

const PLACE: ShardPlace = ShardPlace {
    node: NodeId([2; 16]),
    shard: ShardIndex(1),
    start: 1 << 20,
    bytes: 64 << 20,
};
const MARKS: Marks = Marks {
    flushed: 5,
    written: 6,
};
const EPOCH: u64 = 3;
const NUMBER: u64 = 77;
const LSN: u64 = 70;
const KEY: SlotKey = SlotKey {
    volume: VolumeId([7; 16]),
    chunk: ChunkIndex(8),
    index: 2,
};

fn golden(name: &str, bytes: &[u8]) -> [u8; BLOCK_BYTES] {
    assert_eq!(
        FORMAT_VERSION, 1,
        "keep the files of version 1, add those of the new one"
    );
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("src/disk/tests/golden/v1/{name}.bin"));
    if std::env::var_os("UKAI_WRITE_GOLDEN").is_some() && !file.exists() {
        std::fs::create_dir_all(file.parent().expect("in a folder")).expect("made");
        std::fs::write(&file, bytes).expect("written");
    }
    let golden = std::fs::read(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(
        bytes == golden,
        "{name}: the layout changed, make a new format version"
    );
    golden.try_into().expect("one block")
}

fn version(seq: u64) -> Version {
    Version::new(Token(4), Seq(seq))
}

fn states() -> impl Iterator<Item = SectorState> {
    (0..=u8::MAX).map(|sector| match sector % 4 {
        0 => SectorState::UNWRITTEN,
        1 => SectorState {
            version: version(9),
            ..SectorState::UNWRITTEN
        },
        2 => SectorState {
            version: version(u64::from(sector)),
            crc: 0xdead_0000 | u32::from(sector),
            flags: 0,
        },
        _ => SectorState {
            version: version(1 << 47),
            crc: 5,
            flags: SectorState::BAD | SectorState::ADOPTED,
        },
    })
}

fn hole() -> Hole {
    let states = (0..=u8::MAX).map(|sector| SectorState {
        version: if sector < 100 { version(1) } else { version(2) },
        ..SectorState::UNWRITTEN
    });
    Hole::from_states(states, Generation(5)).expect("two runs")
}

/// Each kind of record.
fn records() -> Vec<Record<'static>> {
    let run = Run {
        slot: SlotIndex(9),
        first: 250,
        count: 6,
    };
    let (version, generation, index) = (version(77), Generation(5), HoleIndex(3));
    let (volume, chunk, token) = (KEY.volume, KEY.chunk, Token(4));
    let range = ChunkRange {
        start: chunk,
        count: 3,
    };
    vec![
        Record::Write {
            run,
            version,
            generation,
            crcs: Cow::Owned(vec![1, 2, 3, 4, 5, 0xffff_ffff]),
        },
        Record::Zero {
            run,
            version,
            generation,
        },
        Record::States {
            run,
            generation,
            states: states().take(6).collect::<Vec<_>>().into(),
        },
        Record::Bad { run },
        Record::Alloc {
            slot: run.slot,
            key: KEY,
            generation,
            hole: None,
        },
        Record::Alloc {
            slot: run.slot,
            key: KEY,
            generation,
            hole: Some((index, hole())),
        },
        Record::Free {
            slot: run.slot,
            hole: None,
        },
        Record::Free {
            slot: run.slot,
            hole: Some((index, KEY, hole())),
        },
        Record::Hole {
            index,
            key: KEY,
            hole: hole(),
        },
        Record::Open {
            volume,
            chunk,
            token,
            suspect: true,
        },
        Record::Close { volume, chunk },
        Record::Fence {
            volume,
            token,
            generation,
        },
        Record::Tombstone {
            volume,
            range,
            generation,
            origin: 12,
        },
    ]
}

fn block(records: &[Record<'static>]) -> Vec<u8> {
    let mut buffer = LogBuffer::new(NUMBER);
    buffer.touch();
    for record in records {
        buffer.append(record);
    }
    buffer.seal(&PLACE, EPOCH, MARKS).0
}

fn check_block(name: &str, records: &[Record<'static>]) {
    let bytes = golden(name, &block(records));
    let read = read_block(&bytes, &PLACE, EPOCH, NUMBER).expect(name);
    assert_eq!(
        (read.marks, read.records.as_slice()),
        (MARKS, records),
        "{name}"
    );
}

#[test]
fn log_blocks_of_version_1() {
    check_block("log-block-records", &records());
    check_block("log-block-empty", &[]);
    let pages = vec![(PageIndex(4), 0xaabb_ccdd), (PageIndex(5), 1)];
    let record = Record::Pages {
        lsn: LSN,
        pages: pages.into(),
    };
    check_block("log-block-pages", &[record]);
}

#[test]
fn pages_of_version_1() {
    let number = PageIndex(9);
    let head = |bytes: &[u8]| match page::check(bytes, &PLACE, number) {
        PageCheck::Valid(head) => head,
        other => panic!("{other:?}"),
    };
    let slot = Page::allocated(&KEY, Generation(5), states());
    let bytes = golden("page-slot", &slot.image(&PLACE, number, LSN));
    assert_eq!(
        (head(&bytes).kind, head(&bytes).lsn),
        (page::KIND_SLOT, LSN)
    );
    let read = Page::from_image(&bytes);
    assert_eq!((read.key(), read.generation()), (KEY, Generation(5)));
    assert!(read.states().eq(states()));

    let bytes = golden("page-free", &page::free_image(&PLACE, number, LSN));
    assert_eq!(head(&bytes).kind, page::KIND_FREE);

    let entry = HoleEntry {
        key: KEY,
        hole: hole(),
        block: 60,
    };
    let entries = [None, Some(entry), None, Some(entry)];
    let image = hole::encode_page(&PLACE, number, LSN, entries.iter().map(Option::as_ref));
    let bytes = golden("page-holes", &image);
    let read = hole::decode_page(&bytes, &head(&bytes)).expect("holes");
    assert_eq!(read[..4], entries);
    assert!(read[4..].iter().all(Option::is_none));
}

fn shard_superblock() -> ShardSuperblock {
    ShardSuperblock {
        sequence: 12,
        log_blocks: 256,
        tail: 40,
        epoch: EPOCH,
        epoch_used: EPOCH + 1,
        flushed: 60,
        boot: BootId([9; 16]),
        clean: true,
    }
}

/// With a checksum that fits: made by a bug, or by somebody.
#[test]
fn absurd_counters_are_damage() {
    let good = shard_superblock();
    let far = u64::MAX - 1;
    let shards = [
        ShardSuperblock { tail: far, ..good },
        ShardSuperblock { tail: 0, ..good },
        ShardSuperblock {
            sequence: far,
            ..good
        },
        ShardSuperblock {
            epoch_used: far,
            ..good
        },
        ShardSuperblock {
            epoch: EPOCH + 2,
            ..good
        },
        ShardSuperblock {
            flushed: far,
            ..good
        },
    ];
    for bad in shards {
        let bytes = bad.encode(&PLACE).try_into().expect("one block");
        let result = ShardSuperblock::decode(&bytes, &PLACE);
        let damaged = matches!(result, Err(OpenError::Damaged { .. }));
        assert!(damaged, "{bad:?}: {result:?}");
    }
    let mut disk = MemDisk::new(64 << 20);
    let good = crate::disk::format::format(&mut disk, &node_format(), false).expect("formats");
    let (mut start, mut region) = (good.clone(), good);
    start.start = far;
    region.region_bytes -= 1;
    for bad in [start, region] {
        let bytes = bad.encode().try_into().expect("one block");
        assert_eq!(NodeSuperblock::decode(&bytes), Err(NodeError::Damaged));
    }
}

#[test]
fn superblocks_of_version_1() {
    let block = shard_superblock();
    let bytes = golden("superblock-shard", &block.encode(&PLACE));
    assert_eq!(ShardSuperblock::decode(&bytes, &PLACE), Ok(Some(block)));

    let mut disk = MemDisk::new(64 << 20);
    let made = crate::disk::format::format(&mut disk, &node_format(), false).expect("formats");
    let bytes = golden("superblock-node", &made.encode());
    let read = NodeSuperblock::decode(&bytes).expect("as written");
    assert_eq!(read, made);
    assert_eq!((read.name.as_str(), read.site.as_str()), ("n0", "site-a"));
    assert_eq!(
        (read.labels.as_slice(), read.shard_count),
        (["rack=1".to_owned()].as_slice(), 1)
    );
}
