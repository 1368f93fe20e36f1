//! What an administrator does: locations, hand-over, a node replaced; and strangers at the door.

use crate::net::Client;
use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::version::assert_refused;
use crate::world::{CLUSTER, Event, FrontIndex, NodeIndex, VOLUME, World};
use rand::RngExt;
use ublk_front::core::api::ControlEvent;
use ukai_meta::transition::{self, MapUpdate, TransitionError};
use ukai_meta::{ReplicaState, catalog};
use ukai_proto::header::PROTOCOL;
use ukai_proto::message::{ChunkRange, Hello, Role};
use ukai_proto::{
    ChunkIndex, ClusterId, Flags, Frame, Header, Incarnation, NodeId, Opcode, Seq, ShardIndex,
    Status, Token,
};

impl World {
    pub(crate) fn operate(&mut self, update: Result<MapUpdate, TransitionError>) -> bool {
        let done = update.is_ok_and(|u| catalog::commit_update(&self.operator, u).is_ok());
        if done {
            self.head_changed();
        }
        done
    }

    /// Something is moved.
    pub(crate) fn relocate(&mut self) -> bool {
        let Some(map) = self.map.clone() else {
            return false;
        };
        let start = self.rng.random_range(0..map.chunk_count());
        let count = self.rng.random_range(1..=map.chunk_count() - start);
        let range = ChunkRange {
            start: ChunkIndex(start),
            count,
        };
        let index = self.rng.random_range(0..self.nodes.len());
        if !self.nodes[index].has_run {
            return false; // never registered
        }
        let node = self.nodes[index].id;
        let update = if self.in_256(128) {
            transition::add_location(&map, range, node)
        } else {
            for chunk in (start..start + count).map(ChunkIndex) {
                if !self.may_be_removed(index, chunk) {
                    return false;
                }
            }
            transition::remove_location(&map, range, node, self.swarm.copies)
        };
        self.operate(update)
    }

    /// The guest stops, the front detaches; then another host attaches.
    pub(crate) fn begin_hand_over(&mut self) -> bool {
        let Some(front) = self.serving_front() else {
            return false;
        };
        self.say(|| format!("front f{front} is to hand over"));
        self.fronts[front].leaving = true;
        self.detach_when_idle(front);
        true
    }

    pub(crate) fn detach_when_idle(&mut self, front: FrontIndex) {
        let state = &self.fronts[front];
        let idle = state.leaving && state.serves() && state.in_flight() == 0;
        if idle && !state.detaching && (!state.settles || self.is_settled(front)) {
            self.fronts[front].detaching = true;
            self.control(front, ControlEvent::Detach);
        }
    }

    /// The front that was to hand over has ended, well or not.
    pub(crate) fn handed_over(&mut self, front: FrontIndex, well: bool) {
        if self.newest_front().is_some() {
            return;
        }
        if well {
            self.mark(Mark::HandedOver);
        }
        self.synchronized(front, well);
        let at = self.queue.now() + 50 * MS + self.up_to(SECOND);
        let host = self.fronts[front].host + 1;
        let force = !well;
        self.queue.push(at, Event::FrontStart { host, force });
    }

    /// A node's device is lost: another node comes in its place and takes over what it had.
    pub(crate) fn wipe_any_node(&mut self) -> bool {
        let index = self.rng.random_range(0..self.nodes.len());
        // Ids, names and replica sets are not for ever: a few times a run.
        if self.gone.len() >= 3 || !self.may_be_wiped(index) {
            return false;
        }
        let old = self.nodes[index].id;
        if self.nodes[index].process.is_some() {
            self.crash_node(index);
        }
        self.gone.push(old);
        let life = self.nodes[index].life + 1;
        let (epoch, boot) = (self.nodes[index].epoch, self.nodes[index].boot);
        self.nodes[index] = self.make_node(index, life);
        self.nodes[index].epoch = epoch;
        self.nodes[index].boot = boot;
        self.damage.retain(|damage| damage.node != index);
        self.damage_covered.retain(|damage| damage.node != index);
        self.say(|| format!("n{index} is wiped and comes back as another node"));
        self.restart_later(index);
        let at = self.queue.now() + self.swarm.node_away_ns;
        self.troubled(index, at);
        let new = self.nodes[index].id;
        self.queue
            .push(self.queue.now() + SECOND, Event::Replace { old, new });
        true
    }

    /// Puts locations on the new node where the old one had them, and removes the old ones.
    pub(crate) fn replace_node(&mut self, old: NodeId, new: NodeId) {
        let Some(map) = self.map.clone() else { return };
        // Tools refuse a node that has never registered.
        let mut left = !self.nodes.iter().any(|n| n.id == new && n.has_run);
        let chunks = if left { 0 } else { map.chunk_count() };
        for chunk in (0..chunks).map(ChunkIndex) {
            let set = map.replicas(chunk);
            let range = transition::one_chunk(chunk);
            let is_there = |id| set.on(id).is_some_and(|s| s != ReplicaState::Leaving);
            if !is_there(old) {
                continue;
            }
            left = true;
            let whole = set.on(new) == Some(ReplicaState::InSync);
            let update = if whole || map.in_sync(chunk).count() >= usize::from(self.swarm.copies) {
                transition::remove_location(&map, range, old, 1)
            } else {
                transition::add_location(&map, range, new)
            };
            if self.operate(update) {
                break;
            }
        }
        if left {
            let at = self.queue.now() + SECOND / 4;
            self.queue.push(at, Event::Replace { old, new });
        } else {
            self.mark(Mark::Replaced);
        }
    }

    /// Someone connects who speaks another protocol, belongs to another cluster, or just talks nonsense.
    pub(crate) fn stranger_comes(&mut self) -> bool {
        let Some(node) = self.any_running_node() else {
            return false;
        };
        let shard = u16::try_from(self.up_to(u64::from(self.swarm.shards) - 1)).unwrap_or(0);
        let Some(link) = self.open_link(Client::Stranger, node, shard) else {
            return false;
        };
        let hello = Hello {
            cluster: CLUSTER,
            node: self.nodes[node].id,
            role: Role::Lane,
            shard: ShardIndex(shard),
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        let greeting = |hello: &Hello| {
            Frame::<Vec<u8>>::new(Header::request(Opcode::Hello, 0), hello.encode(), None)
        };
        let write = Header {
            volume: VOLUME,
            token: Token(u32::MAX),
            seq: Seq(1),
            count: 1,
            ..Header::request(Opcode::Zero, 1)
        };
        match self.rng.random_range(0..6u32) {
            0 => {
                // Another version: what reads bytes refuses it before anything else sees it.
                assert_refused(&greeting(&hello), PROTOCOL + 1);
                self.mark(Mark::StrangerRefused);
                self.close_from(link, false);
            }
            1 => {
                let cluster = ClusterId([0xdd; 16]);
                self.transmit(link, true, greeting(&Hello { cluster, ..hello }));
            }
            2 => {
                let id = NodeId([0xdd; 16]);
                self.transmit(link, true, greeting(&Hello { node: id, ..hello }));
            }
            3 => self.transmit(link, true, Frame::bare(write)),
            4 => {
                self.transmit(link, true, greeting(&hello));
                self.transmit(link, true, Frame::bare(write));
            }
            _ => {
                self.transmit(link, true, greeting(&hello));
                let mut header = write;
                header.flags = Flags::REPLY;
                self.transmit(link, true, Frame::bare(header));
            }
        }
        true
    }

    pub(crate) fn stranger_answered(&mut self, link: u64, node: NodeIndex, header: &Header) {
        if header.opcode != Opcode::Hello && header.status == Status::Ok {
            self.fail(crate::Failure::Correctness(format!(
                "node n{node} did what a stranger asked: {:?}",
                header.opcode
            )));
        }
        if header.status != Status::Ok {
            self.mark(Mark::StrangerRefused);
            self.close_from(link, false);
        }
    }
}
