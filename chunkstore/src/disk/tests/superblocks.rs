//! Formatting, superblocks, and damage that no crash explains.

use super::rig::*;
use crate::disk::api::{Disk, StoreRequest};
use crate::disk::format::{FormatError, NodeError, NodeFormat, NodeSuperblock, format};
use crate::disk::layout::{BLOCK, Geometry, PageIndex};
use crate::disk::mem::{EIO, MemDisk};
use crate::disk::store::{OpenError, Store, StoreLimits};
use proptest::prelude::*;
use ukai_proto::NodeId;

fn try_open(disk: &mut MemDisk, place: &crate::disk::layout::ShardPlace) -> Option<OpenError> {
    Store::<Vec<u8>>::open(disk, place, StoreLimits::default()).err()
}

#[test]
fn a_formatted_device_is_not_overwritten_unless_told() {
    let mut disk = MemDisk::new(64 << 20);
    assert_eq!(
        NodeSuperblock::read(&mut disk),
        Err(NodeError::NotFormatted)
    );
    let how = NodeFormat {
        shard_count: 3,
        log_bytes: None,
        ..node_format()
    };
    let made = format(&mut disk, &how, false).expect("formats");
    assert_eq!(NodeSuperblock::read(&mut disk).as_ref(), Ok(&made));
    assert_eq!(
        (made.name.as_str(), made.labels.len(), made.shard_count),
        ("n0", 1, 3)
    );
    let error = format(&mut disk, &how, false).expect_err("refused");
    assert!(
        matches!(&error, FormatError::Formatted { name, .. } if name == "n0"),
        "{error}"
    );
    let other = NodeFormat {
        node: NodeId([9; 16]),
        ..how
    };
    let made = format(&mut disk, &other, true).expect("told");
    assert_eq!(made.node, NodeId([9; 16]));
    disk.rot(0);
    disk.rot(BLOCK);
    let error = format(&mut disk, &other, false).expect_err("something is there");
    assert!(
        matches!(error, FormatError::Unreadable(NodeError::Damaged)),
        "{error}"
    );
}

#[test]
fn starts_are_counted_and_a_torn_copy_is_survived() {
    let mut disk = MemDisk::new(64 << 20);
    let mut node = format(&mut disk, &node_format(), false).expect("formats");
    for start in 1..=5 {
        node.bump_start(&mut disk).expect("written");
        let mut read = NodeSuperblock::read(&mut disk).expect("reads");
        assert_eq!(read.start, start);
        // The copy written last is torn: the one before it still stands.
        let mut torn = disk.snapshot();
        read.bump_start(&mut torn).expect("written");
        let newer = (0..2)
            .find(|copy| {
                let (mut old, mut new) = ([0; 4096], [0; 4096]);
                disk.read(copy * BLOCK, &mut old).expect("reads");
                torn.read(copy * BLOCK, &mut new).expect("reads");
                old != new
            })
            .expect("one copy changed");
        torn.rot(newer * BLOCK);
        assert_eq!(NodeSuperblock::read(&mut torn).expect("reads").start, start);
    }
}

#[test]
fn wrong_devices_are_named() {
    let mut disk = MemDisk::new(64 << 20);
    format(&mut disk, &node_format(), false).expect("formats");
    let mut small = MemDisk::new(32 << 20);
    let mut bytes = vec![0; 8192];
    disk.read(0, &mut bytes).expect("reads");
    small.write(0, &bytes).expect("writes");
    let error = NodeSuperblock::read(&mut small).expect_err("too small");
    assert!(matches!(error, NodeError::OtherSize { .. }), "{error}");

    // A version of the future, with a right checksum.
    let mut newer = bytes[..4096].to_vec();
    newer[8] = 9;
    newer[12..16].fill(0);
    let crc = ukai_proto::crc::crc32c(&newer);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    disk.write(0, &newer).expect("writes");
    disk.write(BLOCK, &newer).expect("writes");
    let error = NodeSuperblock::read(&mut disk).expect_err("newer");
    assert_eq!(
        error,
        NodeError::WrongVersion {
            found: 9,
            expected: 1
        }
    );

    let tiny = format(&mut MemDisk::new(2 << 20), &node_format(), false).expect_err("tiny");
    assert!(matches!(tiny, FormatError::TooSmall { .. }), "{tiny}");
    let no_name = NodeFormat {
        name: String::new(),
        ..node_format()
    };
    let error = format(&mut MemDisk::new(64 << 20), &no_name, false).expect_err("no name");
    assert!(
        matches!(error, FormatError::Invalid { what: "name", .. }),
        "{error}"
    );
    let mut failing = MemDisk::new(64 << 20);
    failing.fail_after(5, true);
    let error = format(&mut failing, &node_format(), false).expect_err("fails");
    assert_eq!(error, FormatError::Device(crate::disk::api::DiskError(EIO)));
}

#[test]
fn damage_that_no_crash_explains_is_not_papered_over() {
    let mut rig = Rig::new(4, 1);
    for chunk in 0..3 {
        rig.done(write(chunk, 0, 8, 5, false));
    }
    rig.done(StoreRequest::Flush);
    let flushed = rig.disk.durable_copy();
    let place = rig.place;
    let geometry = Geometry::fit(place.start, place.bytes, LOG_BLOCKS).expect("fits");
    assert_eq!(try_open(&mut flushed.snapshot(), &place), None);

    rig.close();
    let clean = rig.disk.durable_copy();
    let mut rotten = clean.snapshot();
    rotten.rot(geometry.page_position(PageIndex(1)));
    // The last checkpoint's images are still in the log.
    assert_eq!(try_open(&mut rotten, &place), None);
    let mut rotten = clean.snapshot();
    for block in 0..LOG_BLOCKS {
        rotten.rot(geometry.log_position(block));
    }
    let error = try_open(&mut rotten, &place).expect("flushed blocks are missing");
    assert!(
        matches!(
            error,
            OpenError::Damaged {
                what: "the log is",
                ..
            }
        ),
        "{error}"
    );

    let mut rotten = clean.snapshot();
    rotten.rot(place.start);
    rotten.rot(place.start + BLOCK);
    assert_eq!(try_open(&mut rotten, &place), Some(OpenError::NotFormatted));
    let mut other = place;
    other.node = NodeId([8; 16]);
    assert_eq!(
        try_open(&mut clean.snapshot(), &other),
        Some(OpenError::NotFormatted)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any block of the structures replaced by noise or by another block: an error or a store, never a
    /// panic.
    #[test]
    fn arbitrary_structures_never_panic(
        noise in proptest::collection::vec((0u64..100, 0u64..100, any::<u8>(), 0usize..4096), 1..20),
        whole: bool,
    ) {
        let mut rig = Rig::new(4, 3);
        for chunk in 0..3 {
            rig.done(write(chunk, 0, 8, 5, false));
            rig.done(zero(chunk, 0, 256, 6, chunk == 1));
        }
        rig.crash_process();
        let mut disk = rig.disk.snapshot();
        let start = rig.place.start;
        let at = |block: u64| start + if block < 2 { block * BLOCK } else { (64 << 10) + (block - 2) * BLOCK };
        for (from, to, byte, offset) in noise {
            let mut bytes = [0u8; 4096];
            disk.read(at(from % 70), &mut bytes).expect("reads");
            if whole {
                bytes[offset..].fill(byte);
            } else {
                bytes[offset] = byte;
            }
            disk.write(at(to % 70), &bytes).expect("writes");
        }
        let _ = try_open(&mut disk, &rig.place);
    }
}
