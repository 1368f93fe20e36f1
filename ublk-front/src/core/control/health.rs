//! Which nodes are down, lost, restarted, slow; which one to read from.

use super::publish::RoundTrips;
use super::request::Want;
use super::{ControlCore, Phase};
use crate::core::api::{ControlAction, LaneId, Now, Peer, PeerIndex};
use crate::core::config::{Heard, NodeEntry};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, Generation, Incarnation, NodeId, Opcode, ShardIndex, Status, Token};

/// Between questions whether a node admits our token still: often enough that one lost answer does not
/// cost the read lease.
const LEASE_EVERY: Duration = Duration::from_millis(500);
/// Each so many of them go to all shards of a node, which learn what is settled.
const SETTLED_EVERY: u64 = 4;
/// A node that leaves such a question unanswered so long counts as down: it is recorded stale before
/// the read lease ends ([`crate::core::config::READ_LEASE`]), or reads of the others would stop.
const SILENT_MAX: Duration = Duration::from_millis(3500);
/// Between reconsiderations of the read preference: a switch costs a barrier.
const PREFER_EVERY: Duration = Duration::from_secs(10);
/// A node must be this much nearer than the present choice to replace it.
const PREFER_GAIN_MIN: Duration = Duration::from_micros(50);

/// What is seen of a node.
#[derive(Debug, Default)]
pub(super) struct NodeSeen {
    /// Control's connections, by peer, with the run at their other end.
    pub(super) up: BTreeMap<PeerIndex, Incarnation>,
    /// Lanes that report a connection down.
    pub(super) lanes_down: BTreeSet<(LaneId, PeerIndex)>,
    /// It is connected and does not answer.
    pub(super) silent: bool,
    /// Since when something is down.
    pub(super) down_since: Option<Now>,
    /// A lane said that the node cannot take part, and with which answer it came.
    pub(super) failed: Option<Status>,
    /// Shards fenced under this front's token, at which generation, by this run.
    pub(super) fenced: BTreeMap<PeerIndex, Generation>,
    /// Of which run FENCE was asked first, under which token. Another run that answers may know the token from
    /// the first one's log: that one's answer was lost with its process.
    pub(super) asked: Option<(Token, Incarnation)>,
    /// Open intents that its fence replies listed.
    pub(super) intents: BTreeSet<ChunkIndex>,
    /// Shards that have deleted the replicas that leave.
    pub(super) released: BTreeMap<PeerIndex, Vec<ChunkRange>>,
    /// A FENCE that it refused is not asked again before this.
    pub(super) fence_after: Now,
    /// Since when it is in sync, and how often in a row it was lost soon after.
    pub(super) in_sync_at: Option<Now>,
    pub(super) flaps: u32,
    /// Round trip, exponentially averaged.
    pub(super) round_trip: Option<Duration>,
    /// The latest ones of questions that cost it nothing.
    pub(super) round_trips: RoundTrips,
}

impl ControlCore {
    /// Peers and entries for every node of the map; existing ones keep their indices.
    pub(super) fn learn_nodes(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let mut peers = (*self.peers).clone();
        for node in self.map().nodes() {
            let Some(record) = self.records.get(&node) else {
                continue;
            };
            if let Some(entry) = self.nodes.iter().find(|entry| entry.node == node) {
                // A restarted node may listen elsewhere.
                for shard in 0..entry.shard_count.min(record.shard_count) {
                    let peer = &mut peers[entry.first_peer.0 as usize + usize::from(shard)];
                    let addresses = record.shard_addresses.get(usize::from(shard));
                    peer.addresses = addresses.cloned().unwrap_or_default();
                }
                continue;
            }
            let first_peer = PeerIndex(u32::try_from(peers.len()).unwrap_or(u32::MAX));
            for shard in 0..record.shard_count {
                peers.push(Peer {
                    node,
                    shard: ShardIndex(shard),
                    shard_count: record.shard_count,
                    addresses: record
                        .shard_addresses
                        .get(usize::from(shard))
                        .cloned()
                        .unwrap_or_default(),
                });
            }
            self.nodes.push(NodeEntry {
                node,
                first_peer,
                shard_count: record.shard_count,
                incarnation: None,
                heard: Heard::default(),
            });
            self.seen
                .entry(node)
                .or_default()
                .down_since
                .get_or_insert(now);
        }
        if peers != *self.peers {
            self.peers = Arc::new(peers);
            out.push(ControlAction::Peers((*self.peers).clone()));
        }
    }

    pub(super) fn peer_up(&mut self, now: Now, peer: PeerIndex, incarnation: Incarnation) {
        let node = self.node_of(peer);
        let seen = self.seen.entry(node).or_default();
        seen.up.insert(peer, incarnation);
        seen.silent = false;
        self.update_down(now, node);
    }

    pub(super) fn peer_down(&mut self, now: Now, peer: PeerIndex, out: &mut Vec<ControlAction>) {
        let node = self.node_of(peer);
        let seen = self.seen.entry(node).or_default();
        seen.up.remove(&peer);
        // What it knows of fences is asked again: it may be another run that comes back.
        seen.fenced.remove(&peer);
        seen.released.remove(&peer);
        self.update_down(now, node);
        self.requests_lost(now, peer, out);
    }

    pub(super) fn lane_peer(&mut self, now: Now, lane: LaneId, peer: PeerIndex, up: bool) {
        if !self.lanes.contains_key(&lane) {
            return; // it closes its connections as it ends
        }
        let node = self.node_of(peer);
        let seen = self.seen.entry(node).or_default();
        if up {
            seen.lanes_down.remove(&(lane, peer));
        } else {
            seen.lanes_down.insert((lane, peer));
        }
        self.update_down(now, node);
    }

    /// What a lane that has ended said of connections says nothing about nodes.
    pub(super) fn forget_lane(&mut self, now: Now, lane: LaneId) {
        let nodes: Vec<NodeId> = self.seen.keys().copied().collect();
        for node in nodes {
            let seen = self.seen.entry(node).or_default();
            let before = seen.lanes_down.len();
            seen.lanes_down.retain(|(l, _)| *l != lane);
            if seen.lanes_down.len() != before {
                self.update_down(now, node);
            }
        }
    }

    /// It does not take part: whoever waits for its fence must go on without it.
    pub(super) fn fence_refused(
        &mut self,
        now: Now,
        node: NodeId,
        status: Status,
        out: &mut Vec<ControlAction>,
    ) {
        // A connection that broke is told by itself.
        if matches!(
            status,
            Status::PeerFailed | Status::StaleToken | Status::Busy
        ) {
            return;
        }
        let name = self.name(node);
        self.note(format!("node {name} cannot be fenced: {status}"), out);
        let counts = self.is_serving() && self.is_active(node);
        let seen = self.seen.entry(node).or_default();
        seen.fence_after = now.after(self.config.retry);
        if counts {
            seen.failed = Some(status);
        }
        if self.sync.as_ref().is_some_and(|sync| sync.node == node) {
            self.sync_failed(now, out);
        }
    }

    /// The node admitted our token when it was asked at that time, or later.
    pub(super) fn heard(&self, node: NodeId, asked: Now) {
        if let Some(entry) = self.nodes.iter().find(|entry| entry.node == node) {
            entry.heard.answered(asked);
        }
    }

    pub(super) fn update_down(&mut self, now: Now, node: NodeId) {
        let all_up = self.all_up(node).is_some();
        let seen = self.seen.entry(node).or_default();
        if all_up && seen.lanes_down.is_empty() && !seen.silent {
            seen.down_since = None;
        } else {
            seen.down_since.get_or_insert(now);
        }
    }

    /// The run of the node, if control is connected to all its shards and all are of that run.
    pub(super) fn all_up(&self, node: NodeId) -> Option<Incarnation> {
        let seen = self.seen.get(&node)?;
        let mut runs = self.peers_of(node).map(|peer| seen.up.get(&peer).copied());
        let first = runs.next()??;
        runs.all(|run| run == Some(first)).then_some(first)
    }

    /// All shards fenced under our token, by the run that is up now.
    pub(super) fn all_fenced(&self, node: NodeId) -> Option<Incarnation> {
        let run = self.all_up(node)?;
        let seen = self.seen.get(&node)?;
        self.peers_of(node)
            .all(|peer| seen.fenced.contains_key(&peer))
            .then_some(run)
    }

    /// Sends FENCE to every shard that is up, not fenced and not asked.
    pub(super) fn fence_node(&mut self, now: Now, node: NodeId, out: &mut Vec<ControlAction>) {
        for peer in self.peers_of(node) {
            let seen = self.seen.entry(node).or_default();
            let due = seen.up.contains_key(&peer)
                && !seen.fenced.contains_key(&peer)
                && now >= seen.fence_after;
            if due
                && !self
                    .requests
                    .on_peer(peer, |want| matches!(want, Want::Fence(_)))
            {
                self.ask_fence(now, peer, ChunkIndex(0), out);
            }
        }
    }

    /// Nodes that lanes cannot count on at this moment: down, restarted, or failed.
    pub(super) fn doubtful(&self) -> BTreeSet<NodeId> {
        let doubtful = self.nodes.iter().filter(|entry| self.doubts(entry));
        doubtful.map(|entry| entry.node).collect()
    }

    /// The same of one node.
    pub(super) fn is_doubtful(&self, node: NodeId) -> bool {
        let mut entries = self.nodes.iter().filter(|entry| entry.node == node);
        entries.any(|entry| self.doubts(entry))
    }

    fn doubts(&self, entry: &NodeEntry) -> bool {
        let seen = self.seen.get(&entry.node);
        let troubled = seen.is_none_or(|s| s.down_since.is_some() || s.failed.is_some());
        troubled || self.all_up(entry.node) != entry.incarnation
    }

    /// Nodes to be recorded stale now: failed, restarted with a new boot, or down for too long.
    pub(super) fn lost(&self, now: Now) -> BTreeSet<NodeId> {
        let lost = |entry: &&NodeEntry| {
            let Some(seen) = self.seen.get(&entry.node) else {
                return true;
            };
            let rebooted = self.is_rebooted(entry.node);
            let down = seen
                .down_since
                .is_some_and(|at| now.since(at) > self.config.node_grace);
            seen.failed.is_some() || rebooted || (down && !self.restarted(entry))
        };
        self.nodes
            .iter()
            .filter(lost)
            .map(|entry| entry.node)
            .collect()
    }

    /// Its machine restarted since control took it on: it may lack what was not flushed.
    pub(super) fn is_rebooted(&self, node: NodeId) -> bool {
        let known = self.nodes.iter().find(|entry| entry.node == node);
        let known = known.and_then(|entry| entry.incarnation);
        self.seen.get(&node).is_some_and(|seen| {
            let mut runs = seen.up.values();
            runs.any(|run| known.is_some_and(|known| known.boot != run.boot))
        })
    }

    /// A location was added on a node that is not fenced yet: writes to it would only wait.
    pub(super) fn awaits_fence(&self, now: Now) -> bool {
        let lost = self.lost(now);
        self.nodes.iter().any(|entry| {
            entry.incarnation.is_none() && self.is_active(entry.node) && !lost.contains(&entry.node)
        })
    }

    /// A new run on the same boot: nothing acknowledged can be lost, so it is fenced and taken on.
    pub(super) fn restarted(&self, entry: &NodeEntry) -> bool {
        let same_boot = |run: Incarnation| {
            entry
                .incarnation
                .is_some_and(|known| known != run && known.boot == run.boot)
        };
        self.all_up(entry.node).is_some_and(same_boot)
    }

    pub(super) fn round_trip(&mut self, node: NodeId, sample: Duration) {
        let seen = self.seen.entry(node).or_default();
        // 1/8 of each new sample, as TCP's smoothed round trip (RFC 6298).
        seen.round_trip = Some(seen.round_trip.map_or(sample, |old| (old * 7 + sample) / 8));
    }

    /// Takes on new and restarted nodes, measures round trips, reconsiders the read preference.
    pub(super) fn drive_health(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let unfenced = |entry: &&NodeEntry| {
            (entry.incarnation.is_none() || self.restarted(entry)) && self.is_active(entry.node)
        };
        let unfenced: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(unfenced)
            .map(|entry| entry.node)
            .collect();
        let may_fence = self.may_fence();
        for node in unfenced.into_iter().filter(|_| may_fence) {
            if let Some(run) = self.all_fenced(node) {
                for entry in self.nodes.iter_mut().filter(|entry| entry.node == node) {
                    entry.incarnation = Some(run);
                }
                self.update_down(now, node);
                self.reinstall = true;
            } else {
                self.fence_node(now, node, out);
            }
        }
        // A connection that broke and came back to the same run: what was fenced stays fenced at the
        // node, but only an answer says so.
        let reconnected: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|e| e.incarnation.is_some() && self.all_up(e.node) == e.incarnation)
            .map(|entry| entry.node)
            .filter(|node| self.is_active(*node) && self.all_fenced(*node).is_none())
            .collect();
        for node in reconnected.into_iter().filter(|_| may_fence) {
            self.fence_node(now, node, out);
        }
        self.ask_leases(now, out);
        if now.since(self.preference_at) > PREFER_EVERY && self.doubtful().is_empty() {
            self.preference_at = now;
            let preferred = self.preferred(&BTreeSet::new());
            if preferred != self.preference && self.gains(&preferred) {
                self.preference = preferred;
                self.reinstall = true;
            }
        }
    }

    /// Asks fenced nodes whether they admit our token still, and tells them what is settled.
    fn ask_leases(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        if now.since(self.lease_at) < LEASE_EVERY {
            return;
        }
        self.lease_at = now;
        self.leases_asked += 1;
        for index in 0..self.nodes.len() {
            let (node, first) = (self.nodes[index].node, self.nodes[index].first_peer);
            if self.all_fenced(node).is_none() {
                continue;
            }
            let is_lease = |want: &Want| *want == Want::Lease(node);
            if self.requests.is_overdue(now, SILENT_MAX, is_lease) {
                self.seen.entry(node).or_default().silent = true;
                self.update_down(now, node);
            }
            for peer in self.peers_of(node) {
                let due = peer == first || self.leases_asked.is_multiple_of(SETTLED_EVERY);
                if due && !self.requests.on_peer(peer, is_lease) {
                    self.ask_plain(now, peer, Opcode::Settled, Want::Lease(node), out);
                }
            }
        }
    }

    /// Nodes best first: reachable before doubtful (reads may move to a replica that has answered
    /// everything, never to one that has not), own host first, then by round trip.
    pub(super) fn preferred(&self, behind: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let mut doubtful = self.doubtful();
        doubtful.extend(behind);
        let mut nodes: Vec<NodeId> = self.nodes.iter().map(|entry| entry.node).collect();
        nodes.sort_by_key(|node| {
            let here = self
                .records
                .get(node)
                .is_some_and(|r| r.host == self.config.attach.host);
            let round_trip = self.seen.get(node).and_then(|seen| seen.round_trip);
            (
                doubtful.contains(node),
                !here,
                round_trip.unwrap_or(Duration::MAX),
                *node,
            )
        });
        nodes
    }

    /// Is the change of the best node worth a barrier?
    fn gains(&self, preferred: &[NodeId]) -> bool {
        let round_trip = |node: Option<&NodeId>| {
            node.and_then(|node| self.seen.get(node))
                .and_then(|seen| seen.round_trip)
        };
        match (
            round_trip(self.preference.first()),
            round_trip(preferred.first()),
        ) {
            (Some(old), Some(new)) => old > new + PREFER_GAIN_MIN && old > new * 13 / 10,
            (old, _) => old.is_none(),
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }
}
