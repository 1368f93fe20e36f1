//! Faults of devices: rot, unreadable sectors, failing and misdirected operations, hangs; and the scrub
//! that finds in time what no guest reads.

use crate::atlas::Damage;
use crate::fault::FaultKind;
use crate::net::{Client, LinkId};
use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::world::{Event, NodeIndex, VOLUME, World};
use chunkstore::disk::api::{DiskResult, IoId};
use chunkstore::disk::mem::{ENOSPC, OpKind};
use rand::RngExt;
use ublk_front::core::api::{ControlEvent, LaneId, LaneReport};
use ukai_checker::Content;
use ukai_proto::route::shard_of;
use ukai_proto::{Frame, Header, Opcode, SectorInChunk, Status};

/// Damage is looked for after this at the latest.
const SCRUB_EVERY: u64 = 2 * SECOND;

/// Is `old` what a freed slot still holds of the sector that `new` is of? Nobody reads or heals that place, so it is not
/// damaged by what is written there, which is what the sector rightly holds.
fn is_left_over(old: &[u8], new: &[u8]) -> bool {
    match (Content::read(old), Content::read(new)) {
        (Content::Whole(old), Content::Whole(new)) => {
            (old.volume, old.sector) == (new.volume, new.sector) && old.write_id < new.write_id
        }
        _ => false,
    }
}

/// Operations of a device that will go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planned {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) sync: bool,
    pub(crate) misdirect: bool,
}

impl World {
    /// A sector of the guest's on a device: where, and which.
    fn data_sector(&mut self, node: NodeIndex) -> Option<(u64, u64)> {
        for _ in 0..12 {
            let from = self.up_to(self.nodes[node].disk.bytes() - 4096);
            let mut position = self.nodes[node].disk.next_held(from)?;
            for _ in 0..self.rng.random_range(0..24u32) {
                position = self.nodes[node].disk.next_held(position + 4096)?;
            }
            let content = self.nodes[node].disk.sector(position)?;
            if let Content::Whole(stamp) = Content::read(&content[..])
                && stamp.volume == VOLUME.0
            {
                return Some((position, stamp.sector));
            }
        }
        None
    }

    fn any_vulnerable_sector(&mut self) -> Option<(NodeIndex, u64, u64)> {
        let first = self.rng.random_range(0..self.nodes.len());
        for turn in 0..2 * self.nodes.len() {
            let node = (first + turn) % self.nodes.len();
            if let Some((position, sector)) = self.data_sector(node)
                && self.may_be_damaged(node, sector)
            {
                return Some((node, position, sector));
            }
        }
        None
    }

    fn damaged(&mut self, node: NodeIndex, position: u64, sector: u64, unreadable: bool) {
        let Some(content) = self.nodes[node].disk.sector(position) else {
            return;
        };
        let fragile = !self.nodes[node].disk.is_quiet();
        let now = self.queue.now();
        self.say(|| format!("sector {sector} is damaged on n{node} at {position}"));
        self.damage.push(Damage {
            node,
            position,
            sector,
            since: now,
            content,
            unreadable,
            fragile,
        });
        let at = now + self.up_to(SCRUB_EVERY);
        self.queue.push(at, Event::Scrub);
    }

    pub(crate) fn rot_a_sector(&mut self) -> bool {
        let Some((node, position, sector)) = self.any_vulnerable_sector() else {
            return false;
        };
        self.nodes[node].disk.rot(position);
        self.damaged(node, position, sector, false);
        true
    }

    /// After a loss of power.
    pub(crate) fn find_damage_again(&mut self) {
        let before = self.damage.len();
        self.forget_healed();
        if self.damage.len() > before {
            let at = self.queue.now() + self.up_to(SCRUB_EVERY);
            self.queue.push(at, Event::Scrub);
        }
    }

    /// On this node, if another one has it.
    pub(crate) fn rot_on(&mut self, node: NodeIndex) -> bool {
        let Some((position, sector)) = self.data_sector(node) else {
            return false;
        };
        let may = self.may_be_damaged(node, sector);
        if may {
            self.nodes[node].disk.rot(position);
            self.damaged(node, position, sector, false);
        }
        may
    }

    pub(crate) fn break_a_sector(&mut self) -> bool {
        let Some((node, position, sector)) = self.any_vulnerable_sector() else {
            return false;
        };
        self.nodes[node].disk.unreadable.insert(position / 4096);
        self.damaged(node, position, sector, true);
        true
    }

    /// What was written to one place lies at another, and the first still has what was there before.
    pub(crate) fn misdirect_a_write(&mut self) -> bool {
        let Some((node, position, sector)) = self.any_vulnerable_sector() else {
            return false;
        };
        let Some((victim, other)) = self.data_sector(node) else {
            return false;
        };
        let disk = &self.nodes[node].disk;
        let (Some(new), Some(old)) = (disk.sector(position), disk.sector(victim)) else {
            return false;
        };
        if victim == position || new[..] == old[..] || !self.may_be_damaged(node, other) {
            return false;
        }
        let left_over = is_left_over(&old[..], &new[..]);
        if left_over && !self.nodes[node].disk.is_quiet() {
            return false; // a loss of power may yet make it the sector's place again
        }
        let disk = &mut self.nodes[node].disk;
        disk.place(victim, &new);
        disk.place(position, &[0; 4096]);
        self.damaged(node, position, sector, false);
        if !left_over {
            self.damaged(node, victim, other, false);
        }
        true
    }

    pub(crate) fn plan_device_error(&mut self, kind: FaultKind) -> bool {
        let Some(node) = self.any_running_node() else {
            return false;
        };
        let planned = &mut self.nodes[node].planned;
        match kind {
            FaultKind::ReadError => planned.read = true,
            FaultKind::WriteError => planned.write = true,
            FaultKind::FlushError => planned.sync = true,
            _ => planned.misdirect = true,
        }
        // Counted when it happens.
        false
    }

    pub(crate) fn hang_device(&mut self, node: NodeIndex) -> bool {
        let long = if self.in_256(64) { 20_000 } else { 3000 };
        let until = self.queue.now() + self.up_to(long * MS);
        self.say(|| format!("the device of n{node} hangs"));
        self.nodes[node].hung_until = until;
        self.troubled(node, until);
        true
    }

    /// Completes a device operation, well or as planned.
    pub(crate) fn complete_io(
        &mut self,
        node: NodeIndex,
        index: usize,
    ) -> (IoId, DiskResult<Vec<u8>>) {
        let op = self.nodes[node].disk.pending_kind(index);
        let planned = self.nodes[node].planned;
        let kind = match op {
            OpKind::Read if planned.read => Some(FaultKind::ReadError),
            OpKind::Write if planned.write => Some(FaultKind::WriteError),
            OpKind::Sync if planned.sync => Some(FaultKind::FlushError),
            _ => None,
        };
        if op == OpKind::Write && self.finds_device_full(node, index) {
            return self.nodes[node].disk.fail(index, ENOSPC);
        }
        // Others must have what the operation was about: the guest would have to see the error.
        if let Some(kind) = kind
            && self.may_be_wiped(node)
        {
            let now = self.queue.now();
            self.troubled(node, now + 2 * SECOND);
            self.faults.hit(kind.name());
            self.say(|| format!("n{node}: {} of operation {index}", kind.name()));
            let state = &mut self.nodes[node];
            match op {
                OpKind::Read => state.planned.read = false,
                OpKind::Write => state.planned.write = false,
                _ => state.planned.sync = false,
            }
            state.disk.fail_after(0, false);
            return state.disk.complete(index);
        }
        let (io, result) = self.nodes[node].disk.complete(index);
        let DiskResult::Read(mut data) = result else {
            return (io, result);
        };
        if planned.misdirect
            && self.may_be_wiped(node)
            && matches!(Content::read(&data[..4096]), Content::Whole(stamp) if stamp.volume == VOLUME.0)
            && let Some((position, _)) = self.data_sector(node)
            && let Some(other) = self.nodes[node].disk.sector(position)
        {
            let now = self.queue.now();
            self.troubled(node, now + 2 * SECOND);
            self.faults.hit(FaultKind::MisdirectedRead.name());
            self.say(|| format!("n{node}: a read is misdirected to {position}"));
            self.nodes[node].planned.misdirect = false;
            data[..4096].copy_from_slice(&other[..]);
        }
        (io, DiskResult::Read(data))
    }

    /// Reads what is damaged, as a scrub of the node would, and tells the front what it finds.
    pub(crate) fn scrub(&mut self) {
        self.forget_healed();
        let now = self.queue.now();
        let due: Vec<(NodeIndex, u64)> = self
            .damage
            .iter()
            .filter(|damage| damage.since + SCRUB_EVERY / 4 < now)
            .map(|damage| (damage.node, damage.sector))
            .collect();
        for (node, sector) in due {
            self.scrub_sector(node, sector);
        }
        if !self.damage.is_empty() {
            self.queue.push(now + SCRUB_EVERY, Event::Scrub);
        }
    }

    fn scrub_sector(&mut self, node: NodeIndex, sector: u64) {
        let Some(map) = self.map.clone() else { return };
        let (chunk, id) = (self.chunk_of(sector), self.nodes[node].id);
        let shard = shard_of(VOLUME, chunk, self.swarm.shards);
        let in_chunk = sector % u64::from(map.chunk_sectors());
        let in_chunk = SectorInChunk(u16::try_from(in_chunk).unwrap_or(u16::MAX));
        let client = Client::Scrub { sector };
        let Some(link) = self.open_link(client, node, shard.0) else {
            return;
        };
        let header = Header {
            volume: VOLUME,
            chunk,
            sector: in_chunk,
            count: 1,
            token: map.head.token,
            generation: map.head.generation,
            ..Header::request(Opcode::Read, 1)
        };
        self.greet(link, id, shard);
        self.transmit(link, true, Frame::bare(header));
    }

    pub(crate) fn scrubbed(
        &mut self,
        link: LinkId,
        node: NodeIndex,
        sector: u64,
        frame: &Frame<Vec<u8>>,
    ) {
        let header = &frame.header;
        if header.opcode == Opcode::Hello {
            return;
        }
        self.close_from(link, false);
        match header.status {
            // It lies elsewhere by now; unless the damage itself is told: adopted by a node that died, until the chunk is
            // reconciled.
            Status::Ok => self.damage.retain(|damage| {
                let told = frame.data.as_deref();
                (damage.node, damage.sector) != (node, sector)
                    || told == Some(&damage.content[..]) && !damage.unreadable
            }),
            Status::BadCrc | Status::IoError => {
                let Some(front) = self.serving_front() else {
                    return;
                };
                let report = LaneReport::BadSector {
                    node: self.nodes[node].id,
                    chunk: header.chunk,
                    sector: header.sector,
                };
                self.control(front, ControlEvent::Lane(LaneId(0), report));
            }
            _ => {}
        }
    }

    /// A shard that refuses writes since a flush failed is started again by its operator.
    pub(crate) fn look_at_poison(&mut self, node: NodeIndex) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        if process.is_poisoned() && !std::mem::replace(&mut self.nodes[node].repairing, true) {
            self.mark(Mark::PoisonRefused);
            let at = self.queue.now() + MS + self.up_to(4 * SECOND);
            self.queue.push(at, Event::NodeRestart { node });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_checker::Stamp;

    /// Seed 515803: a write went astray to where an earlier slot held the same sector. That place was waited for in vain.
    #[test]
    fn only_the_place_that_a_sector_left_is_no_damage() {
        let content = |sector, write_id| {
            let volume = VOLUME.0;
            let stamp = Stamp {
                volume,
                sector,
                write_id,
            };
            stamp.bytes()
        };
        assert!(is_left_over(&content(247, 3), &content(247, 4)));
        // What a sector held before, where it lies now; and another sector's.
        assert!(!is_left_over(&content(247, 4), &content(247, 3)));
        assert!(!is_left_over(&content(246, 3), &content(247, 4)));
        assert!(!is_left_over(&[0; 4096], &content(247, 4)));
    }
}
