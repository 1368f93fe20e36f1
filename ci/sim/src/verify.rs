//! Phases of a run, and the judgement at its end.

use crate::Failure;
use crate::device::Planned;
use crate::front::lane_id;
use crate::guest::values;
use crate::net::{Client, LinkId};
use crate::queue::{MS, SECOND};
use crate::world::{CLUSTER, Event, NodeIndex, VOLUME, World};
use std::collections::BTreeSet;
use ublk_front::core::api::{ControlEvent, LaneId, LaneReport};
use ukai_checker::{Event as Line, History};
use ukai_meta::ReplicaState;
use ukai_proto::header::PROTOCOL;
use ukai_proto::limits::{SECTOR_BYTES, SEQ_MAX, SLOT_SECTORS};
use ukai_proto::message::{Hello, Role};
use ukai_proto::route::shard_of;
use ukai_proto::{
    Flags, Frame, Header, Incarnation, Opcode, SectorInChunk, Seq, ShardIndex, Status,
};

/// The safety phase ends after this at the latest.
const SAFETY_MAX: u64 = 90 * SECOND;
/// Everything must be whole so long after the last fault: longer than every timeout and the longest
/// pause that flap damping may add.
const SETTLE_MAX: u64 = 600 * SECOND;
/// Whole or not is asked only after this: by then every half-open connection and every late frame of the
/// last fault has been noticed.
const SETTLE_MIN: u64 = 15 * SECOND;

/// What a replica doubts in the end must be repaired within this time.
const REPAIR_MAX: u64 = 30 * SECOND;

/// Where a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The guest works, faults happen.
    Safety,
    /// No more faults: everything must end well.
    Settling { deadline: u64 },
    /// The guest reads everything it used.
    FinalReads,
    /// Every replica is read directly.
    Inspecting { left: usize, deadline: u64 },
    /// Judge.
    Done,
}

impl Phase {
    pub(crate) fn has_faults(self) -> bool {
        self == Phase::Safety
    }
}

impl World {
    pub(crate) fn check(&mut self) {
        let now = self.queue.now();
        self.queue.push(now + SECOND / 10, Event::Check);
        match self.phase {
            Phase::Safety if self.guest.requests_left == 0 || now > SAFETY_MAX => {
                self.end_of_faults();
            }
            Phase::Settling { deadline } => {
                if self.newest_front().is_none() && now % (3 * SECOND) < SECOND / 10 {
                    self.replace_front(self.fronts.len());
                }
                match self.unsettled() {
                    None if now + SETTLE_MAX < deadline + SETTLE_MIN => {}
                    None => self.begin_final_reads(),
                    Some(what) if now > deadline => self.fail(Failure::Liveness(what)),
                    Some(_) => self.give_room(),
                }
            }
            Phase::FinalReads => {
                let idle = self
                    .fronts
                    .iter()
                    .all(|front| !front.alive || front.in_flight() == 0);
                if self.guest.final_reads.is_empty() && idle {
                    self.begin_inspection();
                }
            }
            Phase::Inspecting { left: 0, .. } => self.phase = Phase::Done,
            Phase::Safety | Phase::Inspecting { .. } | Phase::Done => {}
        }
    }

    /// After a double fault a run is given up: what the guest saw until here is judged.
    pub(crate) fn give_up(&mut self, why: &str) {
        if !matches!(self.phase, Phase::Inspecting { .. } | Phase::Done) {
            self.say(|| format!("given up: {why}"));
            self.given_up = true;
            self.phase = Phase::Done;
        }
    }

    fn end_of_faults(&mut self) {
        let now = self.queue.now();
        self.say(|| "faults end".into());
        self.phase = Phase::Settling {
            deadline: now + SETTLE_MAX,
        };
        self.meta_heals();
        for node in 0..self.nodes.len() {
            self.queue.push(now + MS, Event::NodeStart { node });
            self.nodes[node].planned = Planned::default();
            self.nodes[node].device_full_until = 0;
            if self.nodes[node].protocol != PROTOCOL {
                self.queue.push(now + MS, Event::RightVersion { node });
            }
        }
        self.moving = None;
        self.resume_job();
        self.queue.push(now + MS, Event::Scrub);
    }

    /// What is not whole yet.
    fn unsettled(&mut self) -> Option<String> {
        let Some(front) = self
            .newest_front()
            .filter(|front| self.fronts[*front].ready)
        else {
            return Some(match self.newest_front() {
                Some(front) => format!("no front serves: {}", self.front_status(front)),
                None => "no front is left".into(),
            });
        };
        for (index, front) in self.fronts.iter().enumerate() {
            if front.alive && front.in_flight() > 0 {
                return Some(format!(
                    "guest requests do not complete: {}",
                    self.front_status(index)
                ));
            }
        }
        if let Some(node) = self.nodes.iter().position(|node| node.process.is_none()) {
            return Some(format!("node n{node} does not run"));
        }
        let Some(map) = self.map.clone() else {
            return Some("the map cannot be loaded".into());
        };
        self.forget_healed();
        if let Some(damage) = self.damage.first() {
            return Some(format!(
                "sector {} on n{} is still damaged",
                damage.sector, damage.node
            ));
        }
        let mut health = map.head.health.iter();
        if let Some((node, health)) = health.find(|(node, _)| !self.gone.contains(node)) {
            let node = self.node_name(*node);
            return Some(format!(
                "node {node} is still {health:?}: {}",
                self.front_status(front)
            ));
        }
        if let Some(what) = self.unended_job() {
            return Some(format!("{what}: {}", self.front_status(front)));
        }
        for (range, set) in map.runs() {
            for replica in map.set(set) {
                let gone = self.gone.contains(&replica.node);
                if replica.state != ReplicaState::InSync && !gone {
                    let node = self.node_name(replica.node);
                    let what = format!(
                        "chunks from {} on {node} are still {:?}",
                        range.start, replica.state
                    );
                    return Some(format!("{what}: {}", self.front_status(front)));
                }
            }
        }
        None
    }

    fn begin_final_reads(&mut self) {
        self.say(|| "everything is whole; the guest reads what it used".into());
        self.phase = Phase::FinalReads;
        let Some(front) = self.newest_front() else {
            return;
        };
        self.guest.final_reads = self.guest.ranges.clone();
        let now = self.queue.now();
        for tag in 0..self.swarm.depth as usize {
            let (lane, tag) = (lane_id(0), Self::guest_tag(tag));
            self.queue.push(now, Event::GuestNext { front, lane, tag });
        }
    }

    /// Asks every in-sync replica for every slot that the guest used.
    fn begin_inspection(&mut self) {
        self.say(|| "every replica is read".into());
        let Some(map) = self.map.clone() else { return };
        let slots: BTreeSet<u64> = self
            .guest
            .ranges
            .iter()
            .flat_map(|(start, count)| start / 256..=(start + u64::from(*count) - 1) / 256)
            .collect();
        let mut left = 0;
        for slot in slots {
            let chunk = self.chunk_of(slot * SLOT_SECTORS as u64);
            for id in map.in_sync(chunk) {
                if let Some(node) = self.nodes.iter().position(|node| node.id == id) {
                    self.inspect(node, slot);
                    left += 1;
                }
            }
        }
        let deadline = self.queue.now() + REPAIR_MAX;
        self.phase = Phase::Inspecting { left, deadline };
    }

    /// Reads a slot directly from a node.
    pub(crate) fn inspect(&mut self, node: NodeIndex, slot: u64) {
        let Some(map) = self.map.clone() else { return };
        let sector = slot * SLOT_SECTORS as u64;
        let in_chunk = sector % u64::from(map.chunk_sectors());
        let (chunk, id) = (self.chunk_of(sector), self.nodes[node].id);
        let shard = shard_of(VOLUME, chunk, self.swarm.shards);
        let Some(link) = self.open_link(Client::Inspector, node, shard.0) else {
            self.fail(Failure::Liveness(format!(
                "node n{node} takes no connection"
            )));
            return;
        };
        let header = Header {
            volume: VOLUME,
            chunk,
            sector: SectorInChunk(u16::try_from(in_chunk).unwrap_or(u16::MAX)),
            count: 256,
            token: map.head.token,
            generation: map.head.generation,
            // The slot travels in the tag.
            ..Header::request(Opcode::Read, slot)
        };
        self.greet(link, id, shard);
        self.transmit(link, true, Frame::bare(header));
    }

    pub(crate) fn greet(&mut self, link: LinkId, node: ukai_proto::NodeId, shard: ShardIndex) {
        let hello = Hello {
            cluster: CLUSTER,
            node,
            role: Role::Tools,
            shard,
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        self.transmit(
            link,
            true,
            Frame::new(Header::request(Opcode::Hello, 0), hello.encode(), None),
        );
    }

    pub(crate) fn inspected(&mut self, link: LinkId, frame: Frame<Vec<u8>>) {
        let Phase::Inspecting { left, deadline } = self.phase else {
            return;
        };
        if frame.header.opcode == Opcode::Hello && frame.header.status == Status::Ok {
            return;
        }
        let Some(node) = self.links.get(&link).map(|link| link.node) else {
            return;
        };
        let (slot, header) = (frame.header.tag, frame.header);
        let now = self.queue.now();
        if header.status == Status::BadCrc && header.seq == Seq(SEQ_MAX) && now < deadline {
            // Adopted when its node died, and doubted, as nobody has read it there since: the front repairs it when told.
            if let Some(front) = self.serving_front() {
                let report = LaneReport::BadSector {
                    node: self.nodes[node].id,
                    chunk: header.chunk,
                    sector: header.sector,
                };
                self.control(front, ControlEvent::Lane(LaneId(0), report));
            }
            self.queue
                .push(now + SECOND / 2, Event::Inspect { node, slot });
            return;
        }
        if header.status != Status::Ok {
            self.fail(Failure::Correctness(format!(
                "replica of slot {slot} on n{node} cannot be read: sector {} of chunk {}, sequence {}: {}",
                header.sector, header.chunk, header.seq, header.status
            )));
            return;
        }
        let data = match frame.data {
            Some(data) if !frame.header.flags.has(Flags::ZEROES) => data,
            _ => vec![0; SLOT_SECTORS * SECTOR_BYTES],
        };
        let sector = slot * SLOT_SECTORS as u64;
        let values = values(sector, &data);
        self.guest.record(|t| Line::Replica {
            t,
            volume: "v".into(),
            node: format!("n{node}"),
            sector,
            values,
        });
        self.phase = Phase::Inspecting {
            left: left - 1,
            deadline,
        };
    }

    pub(crate) fn inspector_closed(&mut self) {
        if let Phase::Inspecting { left: 1.., .. } = self.phase {
            self.fail(Failure::Liveness(
                "a node closed the connection of the final comparison".into(),
            ));
        }
    }

    /// The checker's verdict over the whole history.
    pub(crate) fn judge(&mut self) -> Option<Failure> {
        let report = std::mem::take::<History>(&mut self.guest.history).check();
        let first = report.violations.first()?;
        Some(Failure::Correctness(format!(
            "{:?}: {first} ({} violations)",
            first.kind, report.violation_count
        )))
    }
}
