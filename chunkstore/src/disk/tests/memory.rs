//! The fake device itself.

use crate::disk::api::{Disk, DiskOp, DiskResult, IoId, WriteData};
use crate::disk::mem::{Fate, MemDisk};

fn block(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}

fn first(disk: &mut MemDisk, position: u64) -> u8 {
    let mut out = block(0);
    disk.read(position, &mut out).expect("reads");
    out[0]
}

fn write(io: u64, position: u64, byte: u8, dsync: bool) -> DiskOp<Vec<u8>> {
    let data = WriteData::Owned(block(byte));
    DiskOp::Write {
        io: IoId(io),
        position,
        data,
        dsync,
    }
}

#[test]
fn writes_are_volatile_until_a_sync_that_began_after_them() {
    let mut disk = MemDisk::new(1 << 20);
    disk.submit(write(1, 0, 1, false));
    assert_eq!(first(&mut disk, 0), 0, "nothing happens before completion");
    disk.complete(0);
    disk.submit(DiskOp::Sync { io: IoId(2) });
    disk.submit(write(3, 4096, 2, false));
    assert!(matches!(disk.complete(1), (IoId(3), DiskResult::Done)));
    disk.complete(0);
    assert_eq!((first(&mut disk, 0), first(&mut disk, 4096)), (1, 2));
    let pending = disk.volatile_sectors();
    assert_eq!(
        pending.len(),
        1,
        "the sync began before the second write completed"
    );
    assert!(pending[0].completed && pending[0].position == 4096);
    disk.cut(&mut |_| Fate::Old);
    assert_eq!((first(&mut disk, 0), first(&mut disk, 4096)), (1, 0));
}

#[test]
fn a_cut_decides_each_sector_by_itself_and_dsync_is_not_undone() {
    let mut disk = MemDisk::new(1 << 20);
    let data = WriteData::Payload([block(1), block(2), block(3)].concat());
    disk.submit(DiskOp::Write {
        io: IoId(1),
        position: 0,
        data,
        dsync: false,
    });
    disk.complete(0);
    disk.submit(write(2, 4096, 9, true));
    disk.complete(0);
    disk.cut(&mut |pending| {
        if pending.position == 0 {
            Fate::New
        } else {
            Fate::Trash
        }
    });
    assert_eq!(first(&mut disk, 0), 1);
    assert_eq!(
        first(&mut disk, 4096),
        9,
        "an older volatile write cannot overtake it"
    );
    assert!(![0, 3].contains(&first(&mut disk, 8192)), "noise");
}

#[test]
fn a_process_crash_keeps_what_completed_and_failures_come_as_planned() {
    let mut disk = MemDisk::new(1 << 20);
    disk.submit(write(1, 0, 1, false));
    disk.complete(0);
    disk.submit(write(2, 4096, 2, false));
    disk.submit(write(3, 8192, 3, false));
    let mut happens = [true, false].into_iter();
    disk.crash_process(&mut || happens.next().expect("two are under way"));
    assert_eq!(disk.pending(), 0);
    let seen = [0, 4096, 8192].map(|position| first(&mut disk, position));
    assert_eq!(seen, [1, 2, 0]);
    assert_eq!(
        disk.volatile_sectors().len(),
        2,
        "caches are still volatile"
    );

    disk.fail_after(1, false);
    assert!(disk.write(0, &block(5)).is_ok());
    assert!(!disk.failure_fired());
    assert!(disk.sync().is_err() && disk.failure_fired());
    assert!(disk.sync().is_ok(), "once");
    disk.fail_after(0, true);
    assert!(disk.sync().is_err() && disk.sync().is_err());
    disk.heal();
    assert!(disk.sync().is_ok());
}
