//! Making a shard ready after a stop of any kind.
//!
//! 1. Superblock, log up to its first gap, page table, records onto pages (`replay.rs`).
//! 2. A new epoch is taken, durably: nothing this recovery writes can be joined to what another left.
//! 3. Sectors that changed after the last flush known are read and settled (`settle.rs`). The rest of
//!    the slots in open chunks become suspect, to be settled when touched.
//! 4. A checkpoint under the new epoch: all that matters is logged again, with images of changed pages;
//!    flush; superblock; pages in place; flush. A cut anywhere before the superblock repeats the
//!    recovery from the old tail, a cut after it replays the images.

use super::api::{Disk, DiskError};
use super::directory::{Directory, Entry};
use super::hole::{self, SlotKey};
use super::intent::Intents;
use super::layout::{BLOCK, BLOCK_BYTES, Geometry, PageIndex, ShardPlace, SlotIndex};
use super::log::{LogBuffer, Marks};
use super::page;
use super::record::Record;
use super::replay::Replay;
use super::scan::{LogScan, scan_log};
use super::settle::{Lost, Verdict, decide};
use super::space::Space;
use super::store::{OpenError, RecoveryReport};
use super::superblock::ShardSuperblock;
use std::collections::BTreeSet;
use ukai_proto::BootId;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::SectorState;

/// What a store starts from.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) geometry: Geometry,
    pub(super) superblock: ShardSuperblock,
    pub(super) next_block: u64,
    pub(super) directory: Directory,
    pub(super) intents: Intents,
    pub(super) space: Space,
    pub(super) suspects: BTreeSet<SlotKey>,
    pub(super) lost: Lost,
    pub(super) report: RecoveryReport,
}

/// Recovers a shard.
///
/// `boot` is the boot of the machine now. If it is still the one under which the log was written, only
/// the process died, and everything that was written is there, flushed or not.
pub(super) fn recover(
    disk: &mut dyn Disk,
    place: &ShardPlace,
    boot: BootId,
) -> Result<Recovered, OpenError> {
    let (mut superblock, geometry) = ShardSuperblock::read(disk, place)?;
    let needed = place.start + place.bytes;
    if disk.size() < needed {
        return Err(OpenError::TooSmall {
            needed,
            actual: disk.size(),
        });
    }
    let log = scan_log(disk, place, geometry, &superblock)?;
    let mut replay = Replay::default();
    replay.flushed = superblock.flushed.max(log.marks.flushed);
    let power_lost = boot == BootId::NIL || superblock.boot != boot;
    if !power_lost {
        replay.flushed = replay.flushed.max(log.marks.written);
    }
    replay.scan_pages(disk, place, &geometry, &log)?;
    if replay.flushed >= log.end {
        // Something that was flushed once is not there any more.
        let position = geometry.log_position(log.end);
        return Err(OpenError::Damaged {
            what: "the log is",
            position,
        });
    }
    replay.apply_images(&geometry, &log)?;
    for (number, block) in &log.blocks {
        for record in &block.records {
            replay.apply(disk, &geometry, &log, *number, record)?;
        }
    }
    let mut report = RecoveryReport {
        clean: superblock.clean,
        blocks_replayed: log.blocks.len() as u64,
        records_replayed: replay.records,
        ..RecoveryReport::default()
    };

    superblock.epoch_used += 1;
    superblock.sequence += 1;
    superblock.clean = false;
    superblock.write(disk, place)?;

    bury(&mut replay);
    let lost = if power_lost {
        Lost::Unflushed
    } else {
        Lost::Unanswered
    };
    settle_changed(disk, &geometry, &log, &mut replay, lost, &mut report)?;
    let mut recovered = gather(geometry, superblock, &replay, report)?;
    recovered.lost = lost;
    checkpoint(disk, place, boot, &log, &mut replay, &mut recovered)?;
    Ok(recovered)
}

/// Takes the owners that tombstones have removed out of the table.
fn bury(replay: &mut Replay) {
    for tombstone in &replay.tombstones {
        let end = u64::from(tombstone.range.start.0) + u64::from(tombstone.range.count);
        let dead = |key: &SlotKey, block: u64| {
            key.volume == tombstone.volume
                && key.chunk >= tombstone.range.start
                && u64::from(key.chunk.0) < end
                && block <= tombstone.origin
        };
        let slots: Vec<SlotIndex> = replay
            .owners
            .iter()
            .filter(|(_, owner)| dead(&owner.key, owner.lsn))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in slots {
            replay.owners.remove(&slot);
            replay.pages.insert(slot, None);
            replay.stale_slots.insert(slot);
        }
        let holes: Vec<_> = replay
            .holes
            .iter()
            .filter(|(_, entry)| dead(&entry.key, entry.block))
            .map(|(index, _)| *index)
            .collect();
        for index in holes {
            replay.holes.remove(&index);
            replay.stale_holes.insert(index);
        }
    }
    let owners = &replay.owners;
    replay
        .chains
        .retain(|(slot, _), _| owners.contains_key(slot));
}

/// Settles the sectors that changed after the last flush known.
fn settle_changed(
    disk: &mut dyn Disk,
    geometry: &Geometry,
    log: &LogScan,
    replay: &mut Replay,
    lost_if_open: Lost,
    report: &mut RecoveryReport,
) -> Result<(), OpenError> {
    let chains = std::mem::take(&mut replay.chains);
    let mut rest = chains.iter().peekable();
    while let Some((&(slot, first), _)) = rest.next() {
        // Neighbours are read together.
        let mut last = first;
        while let Some(&(&(next, sector), _)) = rest.peek()
            && next == slot
            && last.checked_add(1) == Some(sector)
        {
            last = sector;
            rest.next();
        }
        let mut contents = read_crcs(disk, geometry, slot, first, last);
        let key = replay.owners[&slot].key;
        let open = replay.open.contains_key(&(key.volume, key.chunk));
        let lost = if open { lost_if_open } else { Lost::Nothing };
        let page = replay.page(disk, geometry, log, slot)?;
        let page = page.as_mut().expect("a slot with an owner has a page");
        let is_newest =
            |(sector, content): (u8, &Option<u32>)| *content == Some(page.state(sector).crc);
        if !(first..=last).zip(&contents).all(is_newest) {
            // What is not the newest may be given up for zeros, say: not for one read that went wrong on its way.
            let again = read_crcs(disk, geometry, slot, first, last);
            for (at, sector) in (first..=last).enumerate() {
                if !is_newest((sector, &contents[at])) {
                    contents[at] = again[at];
                }
            }
        }
        for (sector, content) in (first..=last).zip(contents) {
            let newest = page.state(sector);
            let older = chains[&(slot, sector)].iter().rev().copied();
            let state = match decide(std::iter::once(newest).chain(older), content, lost) {
                Verdict::Keep => continue,
                Verdict::Revert(state) => {
                    report.sectors_reverted += 1;
                    state
                }
                Verdict::Adopt(state) => {
                    report.sectors_adopted += 1;
                    state
                }
                Verdict::Bad => {
                    report.sectors_bad += 1;
                    SectorState {
                        flags: newest.flags | SectorState::BAD,
                        ..newest
                    }
                }
            };
            page.set_state(sector, &state);
        }
        replay.dirty.insert(slot.page());
    }
    Ok(())
}

/// Checksums of sectors as they lie on disk; `None`: unreadable.
fn read_crcs(
    disk: &mut dyn Disk,
    geometry: &Geometry,
    slot: SlotIndex,
    first: u8,
    last: u8,
) -> Vec<Option<u32>> {
    let count = usize::from(last - first) + 1;
    let position = geometry.slot_position(slot) + u64::from(first) * SECTOR_BYTES as u64;
    let mut bytes = vec![0u8; count * SECTOR_BYTES];
    if disk.read(position, &mut bytes).is_ok() {
        return bytes
            .chunks_exact(SECTOR_BYTES)
            .map(|content| Some(crc32c(content)))
            .collect();
    }
    (0..count as u64)
        .map(|sector| {
            let content = &mut bytes[..SECTOR_BYTES];
            let read = disk.read(position + sector * BLOCK, content);
            read.is_ok().then(|| crc32c(content))
        })
        .collect()
}

/// The structures in memory.
fn gather(
    geometry: Geometry,
    superblock: ShardSuperblock,
    replay: &Replay,
    mut report: RecoveryReport,
) -> Result<Recovered, OpenError> {
    let mut directory = Directory::default();
    for (volume, fence) in &replay.fences {
        directory.raise(*volume, *fence);
    }
    // Two homes of one piece: which holds the truth, nothing here can tell.
    let twice = |page: PageIndex| OpenError::Damaged {
        what: "a page that names an owner a second time is",
        position: geometry.page_position(page),
    };
    for (slot, owner) in &replay.owners {
        if directory.entry(&owner.key).is_some() {
            return Err(twice(slot.page()));
        }
        directory.set(&owner.key, Entry::Slot(*slot, owner.generation));
    }
    for (index, entry) in &replay.holes {
        if directory.entry(&entry.key).is_some() {
            return Err(twice(index.page(geometry.slots)));
        }
        directory.set(&entry.key, Entry::Hole(*index));
    }
    directory.load_holes(replay.holes.clone(), geometry.holes());

    let mut intents = Intents::default();
    for ((volume, chunk), (token, suspect)) in &replay.open {
        // A clean stop loses nothing; what was lost before it, and is not accounted for, is marked.
        if *suspect || !report.clean {
            intents.recover(*volume, *chunk, *token);
        } else {
            intents.reopen(*volume, *chunk, *token);
        }
        // Settled versions are told per volume; one must be there to tell them to.
        directory.volumes.entry(*volume).or_default();
    }
    let suspects: BTreeSet<SlotKey> = replay
        .owners
        .values()
        .map(|owner| owner.key)
        .filter(|key| {
            let open = replay.open.get(&(key.volume, key.chunk));
            open.is_some_and(|(_, suspect)| *suspect || !report.clean)
        })
        .collect();
    let owned: BTreeSet<SlotIndex> = replay.owners.keys().copied().collect();
    let mut space = Space::default();
    space.free = (0..geometry.slots)
        .rev()
        .map(SlotIndex)
        .filter(|slot| !owned.contains(slot))
        .collect();
    space.tombstones.clone_from(&replay.tombstones);
    space.stale_slots.clone_from(&replay.stale_slots);
    space.stale_hole_pages = replay
        .stale_holes
        .iter()
        .map(|index| index.page(geometry.slots))
        .collect();
    report.intents_open = intents.len() as u64;
    report.slots_suspect = suspects.len() as u64;
    Ok(Recovered {
        geometry,
        superblock,
        next_block: 0,
        directory,
        intents,
        space,
        suspects,
        lost: Lost::Nothing,
        report,
    })
}

/// Writes down what was recovered.
fn checkpoint(
    disk: &mut dyn Disk,
    place: &ShardPlace,
    boot: BootId,
    log: &LogScan,
    replay: &mut Replay,
    recovered: &mut Recovered,
) -> Result<(), OpenError> {
    let geometry = recovered.geometry;
    let start = log.end;
    let lsn = start - 1;
    let mut buffer = LogBuffer::new(start);
    for (volume, fence) in &replay.fences {
        let super::api::Fence { token, generation } = *fence;
        buffer.append(&Record::Fence {
            volume: *volume,
            token,
            generation,
        });
    }
    for tombstone in &replay.tombstones {
        let super::space::Tombstone {
            volume,
            range,
            generation,
            origin,
        } = *tombstone;
        buffer.append(&Record::Tombstone {
            volume,
            range,
            generation,
            origin,
        });
    }
    for ((volume, chunk), (token, _)) in &replay.open {
        let (volume, chunk, token) = (*volume, *chunk, *token);
        let suspect = recovered.intents.recovered(volume, chunk).is_some();
        buffer.append(&Record::Open {
            volume,
            chunk,
            token,
            suspect,
        });
    }
    buffer.touch();

    let mut images: Vec<(PageIndex, Vec<u8>)> = Vec::new();
    for page in replay.dirty.clone() {
        let image = if page.0 < geometry.slots {
            let slot = SlotIndex(page.0);
            recovered.space.stale_slots.remove(&slot);
            match replay.page(disk, &geometry, log, slot)? {
                Some(content) => content.image(place, page, lsn),
                None => page::free_image(place, page, lsn),
            }
        } else {
            recovered.space.stale_hole_pages.remove(&page);
            let number = page.0 - geometry.slots;
            hole::encode_page(place, page, lsn, recovered.directory.hole_page(number))
        };
        images.push((page, image));
    }
    buffer.append_pages(lsn, &images);

    // The invariant of `room.rs` keeps this much free; a ring that has it not was tampered with.
    if buffer.next() - recovered.superblock.tail > geometry.log_blocks {
        let position = geometry.log_position(start);
        return Err(OpenError::Damaged {
            what: "the log is overfull, and so",
            position,
        });
    }
    let epoch = recovered.superblock.epoch_used;
    let marks = Marks {
        flushed: replay.flushed,
        written: replay.flushed,
    };
    let (bytes, last) = buffer.seal(place, epoch, marks);
    for (number, block) in (start..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
        disk.write(geometry.log_position(number), block)?;
    }
    disk.sync()?;
    let superblock = &mut recovered.superblock;
    superblock.sequence += 1;
    superblock.tail = start;
    superblock.epoch = epoch;
    superblock.boot = boot;
    superblock.flushed = last;
    superblock.write(disk, place)?;
    write_pages(disk, &geometry, &images)?;
    recovered.next_block = last + 1;
    Ok(())
}

fn write_pages(
    disk: &mut dyn Disk,
    geometry: &Geometry,
    images: &[(PageIndex, Vec<u8>)],
) -> Result<(), DiskError> {
    for (page, image) in images {
        disk.write(geometry.page_position(*page), image)?;
    }
    disk.sync()
}
