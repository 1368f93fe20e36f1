//! Node processes: shards of the real core on the real store, over a device in memory.

use crate::Failure;
use crate::net::{Client, Ending, LinkId};
use crate::queue::{MS, SECOND};
use crate::world::{CLUSTER, Event, NodeIndex, VOLUME, World};
use chunkstore::core::{ConnId, PeerId, ShardAction, ShardCore, ShardEvent, ShardIdentity};
use chunkstore::disk::format::{NodeFormat, NodeSuperblock, format};
use chunkstore::disk::mem::{Fate, MemDisk};
use chunkstore::disk::store::{Store, StoreLimits};
use rand::RngExt;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use ukai_meta::catalog;
use ukai_meta::memory::MemoryStore;
use ukai_meta::transition::NewVolume;
use ukai_meta::{Durability, NodeLive, NodeRecord, PlaceRule};
use ukai_proto::{BootId, Frame, Incarnation, NodeId, ShardIndex};

/// A running node.
pub(crate) struct Process {
    shards: Vec<ShardCore<Vec<u8>>>,
    turn_due: Vec<bool>,
    /// Connections of the copy engine.
    peers: BTreeMap<(u16, u64), LinkId>,
    _session: MemoryStore,
}

/// A node, running or not.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    record: NodeRecord,
    pub(crate) disk: MemDisk,
    /// Shard of each operation pending at the device, in its order.
    owners: VecDeque<u16>,
    boot: u8,
    /// Counts process lives; events of former ones are void.
    pub(crate) epoch: u64,
    pub(crate) process: Option<Process>,
    /// Power was lost when the map still said in-sync: it may lack acknowledged writes.
    pub(crate) suspect_since: Option<u64>,
}

/// Address of a shard, as the simulated network understands it.
fn address(node: NodeIndex, shard: u16) -> String {
    format!("tcp:sim:{}", node * 100 + usize::from(shard))
}

impl World {
    /// Formats and registers the nodes, creates the volume, starts everything.
    pub(crate) fn make_cluster(&mut self) {
        let made = catalog::init_cluster(&self.operator, CLUSTER);
        assert!(
            made.is_ok(),
            "a fresh metadata store takes a cluster: {made:?}"
        );
        for index in 0..self.swarm.nodes {
            let node = self.make_node(index);
            self.nodes.push(node);
            self.start_node(index);
        }
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let new = NewVolume {
            volume: VOLUME,
            name: "v".into(),
            size_bytes: u64::from(self.swarm.chunks) * self.swarm.chunk_bytes,
            chunk_bytes: self.swarm.chunk_bytes,
            durability: if self.swarm.through {
                Durability::Through
            } else {
                Durability::Cache
            },
            place: vec![PlaceRule {
                site: "s".into(),
                copies: self.swarm.copies,
            }],
            nodes: vec![ids],
        };
        let made = catalog::create_volume(&self.operator, &new);
        assert!(made.is_ok(), "the volume is legal: {made:?}");
    }

    fn make_node(&mut self, index: NodeIndex) -> Node {
        let id = NodeId([0xa0 + u8::try_from(index).unwrap_or(0); 16]);
        let name = format!("n{index}");
        let shards = u64::from(self.swarm.shards);
        let data = u64::from(self.swarm.chunks) * self.swarm.chunk_bytes;
        // Each shard could hold the whole volume and as much again.
        let region = self.swarm.log_bytes + (2 * data + (4 << 20));
        let mut disk = MemDisk::new((1 << 20) + shards * region);
        let wanted = NodeFormat {
            cluster: CLUSTER,
            node: id,
            name: name.clone(),
            site: "s".into(),
            labels: Vec::new(),
            shard_count: self.swarm.shards,
            log_bytes: Some(self.swarm.log_bytes),
        };
        let formatted = format(&mut disk, &wanted, false);
        assert!(
            formatted.is_ok(),
            "a blank device can be formatted: {formatted:?}"
        );
        Node {
            id,
            record: NodeRecord {
                node: id,
                name: name.clone(),
                site: "s".into(),
                labels: Vec::new(),
                shard_count: self.swarm.shards,
                shard_addresses: (0..self.swarm.shards)
                    .map(|shard| vec![address(index, shard)])
                    .collect(),
                host: name,
                capacity_bytes: 2 * data,
                draining: false,
            },
            disk,
            owners: VecDeque::new(),
            boot: 1,
            epoch: 0,
            process: None,
            suspect_since: None,
        }
    }

    /// Recovers the store and serves.
    pub(crate) fn start_node(&mut self, index: NodeIndex) {
        let now = self.queue.now();
        if self.nodes[index].process.is_some() {
            return;
        }
        let session = self.meta.session();
        let node = &mut self.nodes[index];
        node.epoch += 1;
        let epoch = node.epoch;
        let opened = NodeSuperblock::read(&mut node.disk)
            .map_err(|error| error.to_string())
            .and_then(|mut block| {
                block
                    .bump_start(&mut node.disk)
                    .map_err(|error| error.to_string())?;
                let incarnation = Incarnation {
                    boot: BootId([node.boot; 16]),
                    start: block.start,
                };
                let mut shards = Vec::new();
                for shard in (0..block.shard_count).map(ShardIndex) {
                    let place = block.shard_place(shard);
                    let limits = StoreLimits::default();
                    let (store, _) =
                        Store::open_on(&mut node.disk, &place, limits, incarnation.boot)
                            .map_err(|error| error.to_string())?;
                    let identity = ShardIdentity {
                        cluster: CLUSTER,
                        node: node.id,
                        shard,
                        shard_count: block.shard_count,
                        incarnation,
                    };
                    shards.push(ShardCore::new(identity, store));
                }
                Ok((shards, incarnation))
            });
        let (shards, incarnation) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.fail(Failure::Correctness(format!(
                    "node n{index} cannot recover: {error}"
                )));
                return;
            }
        };
        let live = NodeLive {
            incarnation,
            used_bytes: 0,
        };
        let registered = catalog::register_node(&session, &node.record, &live);
        assert!(registered.is_ok(), "a node registers: {registered:?}");
        let turn_due = vec![false; shards.len()];
        node.process = Some(Process {
            shards,
            turn_due,
            peers: BTreeMap::new(),
            _session: session,
        });
        self.say(|| format!("node n{index} starts, {incarnation:?}"));
        for shard in 0..self.swarm.shards {
            self.shard_event(index, shard, ShardEvent::LeaseHeld);
        }
        self.queue
            .push(now + SECOND, Event::NodeTick { node: index, epoch });
    }

    /// Ends the process: everything in its memory is gone.
    fn end_process(&mut self, index: NodeIndex, clients_learn_within: u64) {
        let now = self.queue.now();
        self.nodes[index].process = None;
        self.nodes[index].epoch += 1;
        self.nodes[index].owners.clear();
        let ours: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| {
                link.node == index
                    || matches!(link.client, Client::Peer { node, .. } if node == index)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in ours {
            // What was in the socket still arrives.
            let arrives = now + self.up_to(self.swarm.net_delay_ns);
            let learns = arrives + self.up_to(clients_learn_within);
            self.end_link(
                id,
                Ending {
                    to_node_until: arrives,
                    to_client_until: arrives,
                    node_learns: Some(learns),
                    client_learns: Some(learns),
                },
            );
        }
    }

    /// kill -9: the kernel lives, completed writes stay.
    pub(crate) fn crash_node(&mut self, index: NodeIndex) {
        self.say(|| format!("node n{index} crashes"));
        self.end_process(index, 20 * MS);
        let rng = &mut self.rng;
        self.nodes[index]
            .disk
            .crash_process(&mut || rng.random_range(0..2u32) == 0);
    }

    /// The machine loses power: what was not flushed is old or new, sector by sector.
    pub(crate) fn power_cut_node(&mut self, index: NodeIndex) {
        self.say(|| format!("node n{index} loses power"));
        let now = self.queue.now();
        self.end_process(index, 3 * SECOND);
        let rng = &mut self.rng;
        let old_in_4 = rng.random_range(0..=4u32);
        self.nodes[index].disk.cut(&mut |_| {
            if rng.random_range(0..4u32) < old_in_4 {
                Fate::Old
            } else {
                Fate::New
            }
        });
        let node = &mut self.nodes[index];
        node.boot += 1;
        node.suspect_since.get_or_insert(now);
    }

    /// Brings a node back later.
    pub(crate) fn restart_later(&mut self, index: NodeIndex) {
        let at = self.queue.now() + MS + self.up_to(self.swarm.node_away_ns);
        self.queue.push(at, Event::NodeStart { node: index });
    }

    pub(crate) fn node_by_address(&self, text: &str) -> Option<(NodeIndex, u16)> {
        let number: usize = text.strip_prefix("tcp:sim:")?.parse().ok()?;
        let (node, shard) = (number / 100, u16::try_from(number % 100).ok()?);
        (node < self.nodes.len()).then_some((node, shard))
    }

    fn shard_event(&mut self, node: NodeIndex, shard: u16, event: ShardEvent<Vec<u8>>) {
        let now = self.queue.now();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let mut out = Vec::new();
        process.shards[usize::from(shard)].handle(now, event, &mut out);
        if !std::mem::replace(&mut process.turn_due[usize::from(shard)], true) {
            let epoch = self.nodes[node].epoch;
            let at = now + self.up_to(20_000);
            self.queue.push(at, Event::NodeTurn { node, epoch, shard });
        }
        self.carry_out(node, shard, out);
    }

    pub(crate) fn node_turn(&mut self, node: NodeIndex, epoch: u64, shard: u16) {
        let now = self.queue.now();
        if self.nodes[node].epoch != epoch {
            return;
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.turn_due[usize::from(shard)] = false;
        let mut out = Vec::new();
        process.shards[usize::from(shard)].turn_end(now, &mut out);
        self.carry_out(node, shard, out);
    }

    pub(crate) fn node_tick(&mut self, node: NodeIndex, epoch: u64) {
        if self.nodes[node].epoch != epoch {
            return;
        }
        for shard in 0..self.swarm.shards {
            self.shard_event(node, shard, ShardEvent::Tick);
        }
        let at = self.queue.now() + SECOND;
        self.queue.push(at, Event::NodeTick { node, epoch });
    }

    fn carry_out(&mut self, node: NodeIndex, shard: u16, actions: Vec<ShardAction<Vec<u8>>>) {
        let now = self.queue.now();
        let epoch = self.nodes[node].epoch;
        for action in actions {
            match action {
                ShardAction::Send { conn, frame } => {
                    self.transmit(conn.0, false, frame.into_frame());
                }
                ShardAction::Close { conn, .. } => self.close_from(conn.0, true),
                ShardAction::Disk(op) => {
                    self.nodes[node].disk.submit(op);
                    self.nodes[node].owners.push_back(shard);
                    let at = now + 10_000 + self.up_to(self.swarm.disk_delay_ns);
                    self.queue.push(at, Event::DiskDone { node, epoch });
                }
                ShardAction::PeerConnect {
                    peer, addresses, ..
                } => {
                    let at = now + self.up_to(self.swarm.net_delay_ns);
                    let peer = peer.0;
                    self.queue.push(
                        at,
                        Event::PeerConnect {
                            node,
                            epoch,
                            shard,
                            peer,
                            addresses,
                        },
                    );
                }
                ShardAction::PeerSend { peer, frame } => {
                    if let Some(link) = self.peer_link(node, shard, peer.0) {
                        self.transmit(link, true, frame);
                    }
                }
                ShardAction::PeerClose { peer } => {
                    if let Some(link) = self.peer_link(node, shard, peer.0) {
                        self.close_from(link, false);
                    }
                    if let Some(process) = &mut self.nodes[node].process {
                        process.peers.remove(&(shard, peer.0));
                    }
                }
                ShardAction::Stopped { .. } => {}
            }
        }
    }

    fn peer_link(&self, node: NodeIndex, shard: u16, peer: u64) -> Option<LinkId> {
        self.nodes[node]
            .process
            .as_ref()?
            .peers
            .get(&(shard, peer))
            .copied()
    }

    pub(crate) fn disk_done(&mut self, node: NodeIndex, epoch: u64) {
        if self.nodes[node].epoch != epoch || self.nodes[node].disk.pending() == 0 {
            return;
        }
        let pending = self.nodes[node].disk.pending();
        let index = self.rng.random_range(0..pending);
        let Some(shard) = self.nodes[node].owners.remove(index) else {
            unreachable!("every pending operation has an owner")
        };
        let (io, result) = self.nodes[node].disk.complete(index);
        self.trace.mix(io.0);
        self.shard_event(node, shard, ShardEvent::DiskDone { io, result });
    }

    pub(crate) fn conn_opened(&mut self, node: NodeIndex, shard: u16, link: LinkId) {
        self.shard_event(node, shard, ShardEvent::ConnOpened { conn: ConnId(link) });
    }

    pub(crate) fn conn_closed(&mut self, node: NodeIndex, shard: u16, link: LinkId) {
        self.shard_event(node, shard, ShardEvent::ConnClosed { conn: ConnId(link) });
    }

    pub(crate) fn node_frame(
        &mut self,
        node: NodeIndex,
        shard: u16,
        link: LinkId,
        frame: Frame<Vec<u8>>,
    ) {
        self.shard_event(
            node,
            shard,
            ShardEvent::Frame {
                conn: ConnId(link),
                frame,
            },
        );
    }

    pub(crate) fn node_connects(
        &mut self,
        node: NodeIndex,
        epoch: u64,
        shard: u16,
        peer: u64,
        addresses: &[String],
    ) {
        if self.nodes[node].epoch != epoch {
            return;
        }
        let target = addresses.iter().find_map(|text| self.node_by_address(text));
        let client = Client::Peer {
            node,
            epoch,
            shard,
            peer,
        };
        let link =
            target.and_then(|(target, target_shard)| self.open_link(client, target, target_shard));
        let event = match link {
            Some(link) => {
                if let Some(process) = &mut self.nodes[node].process {
                    process.peers.insert((shard, peer), link);
                }
                ShardEvent::PeerOpened { peer: PeerId(peer) }
            }
            None => ShardEvent::PeerClosed { peer: PeerId(peer) },
        };
        self.shard_event(node, shard, event);
    }

    pub(crate) fn peer_frame(
        &mut self,
        node: NodeIndex,
        epoch: u64,
        shard: u16,
        peer: u64,
        frame: Frame<Vec<u8>>,
    ) {
        if self.nodes[node].epoch == epoch {
            let peer = PeerId(peer);
            self.shard_event(node, shard, ShardEvent::PeerFrame { peer, frame });
        }
    }

    pub(crate) fn peer_closed(&mut self, node: NodeIndex, epoch: u64, shard: u16, peer: u64) {
        if self.nodes[node].epoch != epoch {
            return;
        }
        if let Some(process) = &mut self.nodes[node].process {
            process.peers.remove(&(shard, peer));
        }
        self.shard_event(node, shard, ShardEvent::PeerClosed { peer: PeerId(peer) });
    }
}
