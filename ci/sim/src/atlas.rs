//! The fault atlas: which copies are good, and so what may still be destroyed.
//!
//! A replica is *good* for a chunk if the map says in-sync, its node did not lose power unnoticed and takes
//! writes (no failed flush, and no change refused just now for want of room), and no sector of the chunk is damaged on it. It
//! is *sound* if besides no front waits to record it stale. A fault that takes data away needs another sound replica; one
//! that only takes a node away for a while must not leave an unsound one as the last in sync.
//! So whatever fails in a run is a bug, not bad luck.

use crate::node::Process;
use crate::queue::SECOND;
use crate::world::{NodeIndex, World};
use chunkstore::disk::mem::MemDisk;
use std::rc::Rc;
use ukai_meta::map::VolumeMap;
use ukai_proto::ChunkIndex;
use ukai_proto::header::PROTOCOL;

/// Damage found so late was overlooked by nobody: fronts notice a lost node within this time.
pub(crate) const NOTICE_MAX: u64 = 3 * SECOND;

/// A sector that a node cannot give back as it was written.
#[derive(Debug)]
pub(crate) struct Damage {
    pub(crate) node: NodeIndex,
    /// On the device.
    pub(crate) position: u64,
    /// Of the volume.
    pub(crate) sector: u64,
    pub(crate) since: u64,
    /// What the device holds now: something else there means that it was written since.
    pub(crate) content: Rc<[u8; 4096]>,
    pub(crate) unreadable: bool,
    /// The record of its checksum may not be durable. If the record is lost, recovery has nothing to tell
    /// the damage by: that would be two faults in one sector.
    pub(crate) fragile: bool,
}

/// What became of damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trace {
    /// It is there.
    There,
    /// Written over, but a loss of power may bring it back.
    Covered,
    Gone,
}

impl Damage {
    fn trace(&self, disk: &MemDisk) -> Trace {
        let is_it = |held: Option<Rc<_>>| held.is_some_and(|held| Rc::ptr_eq(&held, &self.content));
        let readable = !disk.unreadable.contains(&(self.position / 4096));
        if is_it(disk.sector(self.position)) && !(self.unreadable && readable) {
            Trace::There
        } else if !self.unreadable && is_it(disk.durable_sector(self.position)) {
            Trace::Covered
        } else {
            Trace::Gone
        }
    }
}

impl World {
    /// The node is or may be out of reach of someone until then.
    pub(crate) fn troubled(&mut self, node: NodeIndex, until: u64) {
        let trouble = &mut self.nodes[node].trouble_until;
        *trouble = (*trouble).max(until + NOTICE_MAX);
    }

    fn map_now(&self) -> Option<Rc<VolumeMap>> {
        self.map.clone()
    }

    /// Forgets damage that was written over, and knows again what came back with a loss of power.
    pub(crate) fn forget_healed(&mut self) {
        let (damage, covered) = (&mut self.damage, &mut self.damage_covered);
        for damage in std::mem::take(damage)
            .into_iter()
            .chain(std::mem::take(covered))
        {
            match damage.trace(&self.nodes[damage.node].disk) {
                Trace::There => self.damage.push(damage),
                Trace::Covered => self.damage_covered.push(damage),
                Trace::Gone => {}
            }
        }
    }

    /// Would a crash of the node make damage look whole?
    pub(crate) fn is_fragile(&mut self, node: NodeIndex) -> bool {
        self.forget_healed();
        let mut damage = self.damage.iter().chain(&self.damage_covered);
        damage.any(|damage| damage.node == node && damage.fragile)
    }

    /// May a damaged sector be under way on another node? If its record there is lost with the power of all,
    /// what is there matches as little as the damage does: two faults in one sector.
    pub(crate) fn is_damage_overwritten(&mut self) -> bool {
        self.forget_healed();
        let mut damage = self.damage.iter().chain(&self.damage_covered);
        damage.any(|damage| {
            let others = self.nodes.iter().enumerate();
            let mut others = others.filter(|(index, _)| *index != damage.node);
            others.any(|(_, node)| !node.disk.is_quiet())
        })
    }

    fn is_damaged(&self, node: NodeIndex, chunk: ChunkIndex) -> bool {
        self.damage
            .iter()
            .any(|damage| damage.node == node && self.chunk_of(damage.sector) == chunk)
    }

    /// In-sync replicas of a chunk, by node.
    fn holders(&self, map: &VolumeMap, chunk: ChunkIndex) -> Vec<NodeIndex> {
        map.in_sync(chunk)
            .filter_map(|id| self.nodes.iter().position(|node| node.id == id))
            .collect()
    }

    fn is_good(&self, node: NodeIndex, chunk: ChunkIndex) -> bool {
        let state = &self.nodes[node];
        let poisoned = state.process.as_ref().is_some_and(Process::is_poisoned);
        let full = state.full_until > self.queue.now();
        state.suspect_since.is_none() && !poisoned && !full && !self.is_damaged(node, chunk)
    }

    /// Good, and not given up by a front that waits for it only because the metadata store is away. A node that failed a flush
    /// cannot make it good by being started again: only what the guest is told, or a resynchronisation, ends that.
    fn is_sound(&self, node: NodeIndex, chunk: ChunkIndex) -> bool {
        let given_up = self.nodes[node].refused.is_some_and(|(front, at)| {
            let front = &self.fronts[front];
            let mut waiting = front.slots.iter().flatten().flatten();
            front.alive && !front.ended && waiting.any(|slot| slot.since <= at)
        });
        let now = self.queue.now();
        let mut copies = self.no_room.iter();
        let no_room = copies.any(|((refused, _), at)| *refused == node && at + NOTICE_MAX > now);
        self.is_good(node, chunk) && !given_up && !no_room
    }

    /// Does something hold for the other in-sync replicas of every chunk that the node has in sync?
    fn others_of_all(
        &mut self,
        node: NodeIndex,
        holds: impl Fn(&Self, ChunkIndex, &[NodeIndex]) -> bool,
    ) -> bool {
        self.forget_healed();
        let Some(map) = self.map_now() else {
            return false;
        };
        (0..map.chunk_count()).map(ChunkIndex).all(|chunk| {
            let holders = self.holders(&map, chunk);
            let others: Vec<_> = holders.iter().copied().filter(|n| *n != node).collect();
            others.len() == holders.len() || holds(self, chunk, &others)
        })
    }

    /// May the node be out of reach? Its data stays; but the front may go on with the others alone.
    pub(crate) fn may_be_away(&mut self, node: NodeIndex) -> bool {
        self.others_of_all(node, |world, chunk, others| {
            others.iter().all(|other| world.is_sound(*other, chunk))
        })
    }

    /// May what the node has not flushed be lost?
    pub(crate) fn may_lose_power(&mut self, node: NodeIndex) -> bool {
        !self.is_fragile(node)
            && self.others_of_all(node, |world, chunk, others| {
                others.iter().any(|other| world.is_sound(*other, chunk))
            })
    }

    /// May everything on the node be lost? Another one must be good and surely at hand.
    pub(crate) fn may_be_wiped(&mut self, node: NodeIndex) -> bool {
        self.others_of_all(node, |world, chunk, others| {
            others
                .iter()
                .any(|other| world.is_sound(*other, chunk) && world.is_at_hand(*other))
                && others.iter().all(|other| world.is_sound(*other, chunk))
        })
    }

    fn is_at_hand(&self, node: NodeIndex) -> bool {
        let state = &self.nodes[node];
        state.process.is_some() && state.trouble_until < self.queue.now()
    }

    /// May this sector be destroyed on this node? Not before replicas are reconciled: of another copy the
    /// record may be lost, so that it needs this one to be told from damage.
    pub(crate) fn may_be_damaged(&mut self, node: NodeIndex, sector: u64) -> bool {
        // Nor on a node that nobody speaks to: it cannot be healed there, and waits for that before it is restarted.
        if !self.are_replicas_reconciled() || self.nodes[node].protocol != PROTOCOL {
            return false;
        }
        self.forget_healed();
        let Some(map) = self.map_now() else {
            return false;
        };
        let chunk = self.chunk_of(sector);
        let holders = self.holders(&map, chunk);
        holders.contains(&node)
            && holders.iter().any(|other| {
                *other != node && self.is_sound(*other, chunk) && self.is_at_hand(*other)
            })
    }

    /// After the replica of a chunk on this node is given up: is a good one left?
    pub(crate) fn may_be_removed(&mut self, node: NodeIndex, chunk: ChunkIndex) -> bool {
        self.forget_healed();
        let Some(map) = self.map_now() else {
            return false;
        };
        let holders = self.holders(&map, chunk);
        let mut others = holders.iter().filter(|other| **other != node);
        others.all(|other| self.is_sound(*other, chunk))
    }

    /// No good copy of this sector is in sync: what the guest is told about it is nobody's fault.
    pub(crate) fn is_lost(&mut self, sector: u64) -> bool {
        self.forget_healed();
        let Some(map) = self.map_now() else {
            return false;
        };
        let chunk = self.chunk_of(sector);
        !self
            .holders(&map, chunk)
            .iter()
            .any(|node| self.is_good(*node, chunk))
    }

    /// Replicas of a chunk, for explanations.
    pub(crate) fn chunk_status(&self, chunk: ChunkIndex) -> String {
        let Some(map) = self.map_now() else {
            return String::new();
        };
        let now = self.queue.now();
        let mut text = format!("chunk {chunk}:");
        for replica in map.replicas(chunk).iter() {
            let name = self.node_name(replica.node);
            let state = replica.state;
            text.push_str(&format!(" {name} {state:?}"));
            if let Some(index) = self.nodes.iter().position(|node| node.id == replica.node) {
                let node = &self.nodes[index];
                let good = self.is_good(index, chunk);
                let runs = node.process.is_some();
                let trouble = node.trouble_until.saturating_sub(now) / 1_000_000;
                text.push_str(&format!(
                    " (runs {runs}, good {good}, trouble for {trouble} ms)"
                ));
            }
        }
        text
    }

    /// Only replicas that lost power before anyone recorded it are left in sync: a double fault that
    /// nothing can make good. The front had not noticed the first when the second took the others.
    pub(crate) fn is_beyond_help(&self) -> bool {
        let Some(map) = self.map_now() else {
            return false;
        };
        (0..map.chunk_count()).map(ChunkIndex).any(|chunk| {
            let suspect = |id| {
                let node = self.nodes.iter().find(|node| node.id == id);
                node.is_some_and(|node| node.suspect_since.is_some())
            };
            map.in_sync(chunk).all(suspect)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chunkstore::disk::api::{DiskOp, IoId, WriteData};
    use chunkstore::disk::mem::Fate;

    /// Rot, repaired, and then the power fails: seed 75901 took the replica for good.
    #[test]
    fn damage_that_was_written_over_comes_back_with_a_loss_of_power() {
        let mut disk = MemDisk::new(8 * 4096);
        disk.place(4096, &[1; 4096]);
        disk.rot(4096);
        let damage = Damage {
            node: 0,
            position: 4096,
            sector: 0,
            since: 0,
            content: disk.sector(4096).unwrap(),
            unreadable: false,
            fragile: false,
        };
        assert_eq!(damage.trace(&disk), Trace::There);
        let write = |disk: &mut MemDisk, dsync| {
            disk.submit(DiskOp::Write {
                io: IoId(1),
                position: 4096,
                data: WriteData::Owned(vec![1; 4096]),
                dsync,
            });
            disk.complete(0);
        };
        write(&mut disk, false);
        assert_eq!(damage.trace(&disk), Trace::Covered);
        disk.cut(&mut |_| Fate::Old);
        assert_eq!(damage.trace(&disk), Trace::There);
        write(&mut disk, true);
        assert_eq!(damage.trace(&disk), Trace::Gone);
    }
}
