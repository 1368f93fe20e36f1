//! Nodes that are too small for what they shall hold, devices that take nothing new for a while, and how room is given
//! in the end: an administrator gives up locations, the guest discards.
//!
//! A node without room refuses; it is recorded stale, and the guest goes on with the others. Only if a node that refused
//! cannot be spared does the guest see ENOSPC, and its write is one that may have happened or not.

use crate::atlas::NOTICE_MAX;
use crate::fault::FaultKind;
use crate::guest::Slot;
use crate::net::{Client, LinkId};
use crate::node::Process;
use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::world::{Event, FrontIndex, NodeIndex, World};
use ublk_front::core::api::{GuestError, GuestIo, GuestOp, GuestTag};
use ukai_meta::map::VolumeMap;
use ukai_meta::transition;
use ukai_meta::{NodeHealth, ReplicaState};
use ukai_proto::message::PullMode;
use ukai_proto::{ChunkIndex, Header, Opcode};

/// Room is given in steps this far apart: what is there may suffice.
const GIVE_EVERY: u64 = 2 * SECOND;

impl World {
    /// The file system under a node's file is full for a while.
    pub(crate) fn fill_a_device(&mut self) -> bool {
        if let Some(node) = self.any_running_node() {
            let until = self.queue.now() + self.up_to(4000 * MS);
            self.nodes[node].device_full_until = until;
        }
        // Counted when it happens.
        false
    }

    /// Shall this write fail for want of room? Others must have what it was about.
    pub(crate) fn finds_device_full(&mut self, node: NodeIndex, index: usize) -> bool {
        let now = self.queue.now();
        let state = &self.nodes[node];
        let full = state.device_full_until > now && state.disk.needs_room(index);
        if !full || !self.may_be_wiped(node) {
            return false;
        }
        self.say(|| format!("the device of n{node} is full"));
        self.troubled(node, now + 2 * SECOND);
        self.faults.hit(FaultKind::DeviceFull.name());
        true
    }

    /// A node answers that it has no room.
    pub(crate) fn told_full(&mut self, link: LinkId, header: &Header, pull: Option<PullMode>) {
        let Some(link) = self.links.get(&link).copied() else {
            return;
        };
        if !matches!(link.client, Client::Front { .. }) {
            return;
        }
        let (now, node) = (self.queue.now(), link.node);
        if header.opcode == Opcode::Pull {
            self.mark(Mark::CopyNoSpace);
            if pull == Some(PullMode::Newer) {
                self.no_room.insert((node, header.chunk), now);
            }
            return;
        }
        self.mark(Mark::NoSpaceAnswered);
        self.nodes[node].full_until = now + NOTICE_MAX;
        self.troubled(node, now);
        self.full.insert((node, header.chunk), now);
    }

    /// Remembers when a node had the only in-sync replica of a chunk: it could not be spared then.
    pub(crate) fn note_sole_replicas(&mut self, map: &VolumeMap) {
        let now = self.queue.now();
        for chunk in (0..map.chunk_count()).map(ChunkIndex) {
            let mut in_sync = map.in_sync(chunk);
            if let (Some(only), None) = (in_sync.next(), in_sync.next())
                && let Some(node) = self.nodes.iter_mut().find(|node| node.id == only)
            {
                node.sole_at = Some(now);
            }
        }
    }

    pub(crate) fn mark_full(&mut self, before: &VolumeMap, after: &VolumeMap) {
        let now = self.queue.now();
        for index in 0..self.nodes.len() {
            let id = self.nodes[index].id;
            let node = &mut self.nodes[index];
            let mark = match (before.health(id), after.health(id)) {
                (None, Some(NodeHealth::Stale { .. })) if node.full_until > now => {
                    node.was_full = true;
                    Mark::FullStale
                }
                (Some(_), None) if std::mem::take(&mut node.was_full) => Mark::FullReturned,
                _ => continue,
            };
            self.mark(mark);
        }
    }

    /// May this request have failed so because a node that cannot be spared has no room?
    pub(crate) fn is_for_want_of_room(&self, slot: &Slot, result: Result<(), GuestError>) -> bool {
        let failed = matches!(result, Err(GuestError::NoSpace | GuestError::Io));
        let ranged = !matches!(slot.io.op, GuestOp::Flush);
        let changes = ranged && slot.io.op != GuestOp::Read;
        let Some(map) = self.map.clone().filter(|_| failed && ranged) else {
            return false;
        };
        let last = slot.io.sector + u64::from(slot.io.count) - 1;
        let chunks = self.chunk_of(slot.io.sector).0..=self.chunk_of(last).0;
        chunks.map(ChunkIndex).any(|chunk| {
            // Held back, as the chunk cannot be reconciled: there neither.
            let mut copies = self.no_room.iter();
            let held = copies.any(|((node, of), at)| {
                *of == chunk && *at >= slot.since && self.is_sole(&map, *node, slot)
            });
            if held || !changes {
                return held;
            }
            let refused = |node: NodeIndex| {
                let at = self.full.get(&(node, chunk));
                at.is_some_and(|at| *at >= slot.since)
            };
            let index = |id| self.nodes.iter().position(|node| node.id == id);
            let mut holders = map.in_sync(chunk).filter_map(index);
            let all = holders.all(refused);
            all || (0..self.nodes.len()).any(|node| refused(node) && self.is_sole(&map, node, slot))
        })
    }

    /// Some chunk has, or had since the request was made, its only in-sync replica there.
    fn is_sole(&self, map: &VolumeMap, node: NodeIndex, slot: &Slot) -> bool {
        let id = self.nodes[node].id;
        let only = |chunk| map.is_in_sync(chunk, id) && map.in_sync(chunk).count() == 1;
        self.nodes[node].sole_at >= Some(slot.since)
            || (0..map.chunk_count()).map(ChunkIndex).any(only)
    }

    /// One step: a location that is being filled where there is no room is given up, or else the guest discards.
    pub(crate) fn give_room(&mut self) {
        let now = self.queue.now();
        if self.swarm.small.is_empty() || now % GIVE_EVERY >= SECOND / 10 {
            return;
        }
        let is_full =
            |node: &crate::node::Node| node.process.as_ref().is_some_and(Process::is_full);
        let full = self.nodes.iter().filter(|node| is_full(node));
        let full: Vec<_> = full.map(|node| node.id).collect();
        let Some(map) = self.map.clone().filter(|_| !full.is_empty()) else {
            return;
        };
        for (range, set) in map.runs() {
            for replica in map.set(set) {
                let no_room =
                    replica.state == ReplicaState::Joining && full.contains(&replica.node);
                if no_room
                    && self.operate(transition::remove_location(&map, range, replica.node, 1))
                {
                    return;
                }
            }
        }
        let Some(front) = self.serving_front() else {
            return;
        };
        if self.guest.gives_back.is_none() {
            let ranges = self.guest.ranges.iter();
            let mut slots = ranges
                .flat_map(|(start, count)| start / 256..=(start + u64::from(*count) - 1) / 256);
            let next = slots.find(|slot| !self.guest.given_back.contains(slot));
            let Some(slot) = next else {
                self.guest.given_back.clear();
                return;
            };
            self.guest.given_back.insert(slot);
            self.guest.gives_back = Some(slot);
        }
        let slots = self.fronts[front].slots.iter().zip(0..);
        let free = slots.flat_map(|(tags, lane)| tags.iter().zip(0..).map(move |tag| (lane, tag)));
        let free = free.filter(|(_, (slot, _))| slot.is_none());
        if let Some((lane, tag)) = free.map(|(lane, (_, tag))| (lane, tag)).next() {
            let (lane, tag) = (crate::front::lane_id(lane), Self::guest_tag(tag));
            self.queue.push(now, Event::GuestNext { front, lane, tag });
        }
    }

    /// What the guest does at the end to make room.
    pub(crate) fn discard_to_make_room(
        &mut self,
        front: FrontIndex,
        tag: GuestTag,
    ) -> Option<GuestIo> {
        let slot = self.guest.gives_back?;
        let io = GuestIo {
            tag,
            op: GuestOp::Zero {
                unmap: true,
                fua: false,
            },
            sector: slot * 256,
            count: 256,
        };
        if self.collides(front, &io) {
            // What is in flight there may wait for the very room: another slot first.
            self.guest.gives_back = None;
            return None;
        }
        self.guest.gives_back = None;
        self.mark(Mark::RoomGiven);
        Some(io)
    }
}
