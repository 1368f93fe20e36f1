//! Node processes: shards of the real core on the real store, over a device in memory.

use crate::device::Planned;
use crate::net::{Client, Ending, LinkId};
use crate::queue::{MS, SECOND};
use crate::seam::{Claimed, Marks, SeamStore};
use crate::tally::Mark;
use crate::world::{CLUSTER, Event, FrontIndex, NodeIndex, VOLUME, World};
use crate::{Canary, Failure};
use chunkstore::core::{ConnId, PeerId, ShardAction, ShardCore, ShardEvent, ShardIdentity};
use chunkstore::disk::api::StoreView;
use chunkstore::disk::format::{NodeFormat, NodeSuperblock, format};
use chunkstore::disk::mem::{Fate, MemDisk};
use chunkstore::disk::store::{RecoveryReport, Store, StoreLimits};
use rand::RngExt;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use ukai_meta::catalog;
use ukai_meta::memory::MemoryStore;
use ukai_meta::transition::NewVolume;
use ukai_meta::{Durability, NodeLive, NodeRecord, PlaceRule};
use ukai_proto::header::PROTOCOL;
use ukai_proto::message::{HeldBack, Pull, PullMode, Pulled};
use ukai_proto::{BootId, Frame, Header, Incarnation, NodeId, Opcode, ShardIndex, Status};

/// A running node.
pub(crate) struct Process {
    shards: Vec<ShardCore<Vec<u8>, SeamStore>>,
    turn_due: Vec<bool>,
    /// Of each shard: when its timer wakes it.
    wakes_at: Vec<Option<u64>>,
    /// Connections of the copy engine.
    peers: BTreeMap<(u16, u64), LinkId>,
    pub(crate) session: MemoryStore,
    pub(crate) incarnation: Incarnation,
}

impl Process {
    /// Some shard has no free slot.
    pub(crate) fn is_full(&self) -> bool {
        self.shards.iter().any(|shard| {
            let (used, slots) = shard.store().slots();
            used >= slots
        })
    }

    /// Some shard refuses writes since a flush failed.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.shards
            .iter()
            .any(|shard| shard.store().store.poisoned())
    }
}

/// A node, running or not.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) record: NodeRecord,
    pub(crate) disk: MemDisk,
    /// Shard of each operation pending at the device, in its order.
    owners: VecDeque<u16>,
    pub(crate) boot: u8,
    /// How often its device was replaced.
    pub(crate) life: u8,
    /// Counts process lives; events of former ones are void.
    pub(crate) epoch: u64,
    /// It is registered.
    pub(crate) has_run: bool,
    pub(crate) process: Option<Process>,
    /// Power was lost when the map still said in-sync: it may lack acknowledged writes.
    pub(crate) suspect_since: Option<u64>,
    /// Until then someone may not reach it; with what it takes to notice.
    pub(crate) trouble_until: u64,
    pub(crate) slow_until: u64,
    pub(crate) paused_until: u64,
    pub(crate) hung_until: u64,
    pub(crate) planned: Planned,
    /// It takes nothing new until then.
    pub(crate) device_full_until: u64,
    /// It refused a change for want of room; until then fronts may not have noticed.
    pub(crate) full_until: u64,
    /// It failed a change or a flush of this front then, which will record it stale or tell the guest.
    pub(crate) refused: Option<(FrontIndex, u64)>,
    /// It was recorded stale for want of room.
    pub(crate) was_full: bool,
    /// When a chunk had its only in-sync replica here last.
    pub(crate) sole_at: Option<u64>,
    /// The version of the protocol that its process speaks.
    pub(crate) protocol: u8,
    /// It spoke another one before.
    pub(crate) was_other: bool,
    /// An operator is about to start it again.
    pub(crate) repairing: bool,
    /// The front that served when its process came back.
    pub(crate) back_for: Option<usize>,
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
            let node = self.make_node(index, 0);
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

    /// A blank device, formatted; `life` tells how many came before it.
    pub(crate) fn make_node(&mut self, index: NodeIndex, life: u8) -> Node {
        let id = NodeId([0x10 * (10 - life) + u8::try_from(index).unwrap_or(0); 16]);
        let name = format!("n{index}-{life}");
        let shards = u64::from(self.swarm.shards);
        let data = u64::from(self.swarm.chunks) * self.swarm.chunk_bytes;
        let small = self.swarm.small.get(index).copied().flatten();
        let room = match small.filter(|_| life == 0) {
            // So many slots, and their pages.
            Some(slots) => (slots << 20) + (512 << 10),
            // Each shard could hold the whole volume and as much again.
            None => 2 * data + (4 << 20),
        };
        let region = self.swarm.log_bytes + room;
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
                capacity_bytes: shards * room,
                draining: false,
            },
            disk,
            owners: VecDeque::new(),
            boot: 1,
            life,
            epoch: 0,
            has_run: false,
            process: None,
            suspect_since: None,
            trouble_until: 0,
            slow_until: 0,
            paused_until: 0,
            hung_until: 0,
            planned: Planned::default(),
            device_full_until: 0,
            full_until: 0,
            refused: None,
            was_full: false,
            sole_at: None,
            protocol: PROTOCOL,
            was_other: false,
            repairing: false,
            back_for: None,
        }
    }

    /// Recovers the store and serves.
    pub(crate) fn start_node(&mut self, index: NodeIndex) {
        let now = self.queue.now();
        if self.nodes[index].process.is_some() {
            return;
        }
        let session = self.meta.session();
        let (canary, marks) = (self.options.canary, &self.marks);
        let copy_rate = self.swarm.copy_rate;
        let serving = self.serving_front();
        let node = &mut self.nodes[index];
        node.planned = Planned::default();
        node.repairing = false;
        node.back_for = serving.filter(|_| node.suspect_since.is_none());
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
                    let (store, report) =
                        Store::open_on(&mut node.disk, &place, limits, incarnation.boot)
                            .map_err(|error| error.to_string())?;
                    mark_recovery(&report, marks);
                    let store = SeamStore::new(
                        store,
                        canary,
                        Claimed::clone(&self.claimed),
                        Marks::clone(marks),
                    );
                    let identity = ShardIdentity {
                        cluster: CLUSTER,
                        node: node.id,
                        shard,
                        shard_count: block.shard_count,
                        incarnation,
                    };
                    let mut core = ShardCore::new(identity, store);
                    core.set_copy_rate(now, copy_rate);
                    shards.push(core);
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
        node.has_run = true;
        let turn_due = vec![false; shards.len()];
        let wakes_at = vec![None; shards.len()];
        node.process = Some(Process {
            shards,
            turn_due,
            wakes_at,
            peers: BTreeMap::new(),
            session,
            incarnation,
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
        if let Some(process) = self.nodes[index].process.take() {
            for shard in &process.shards {
                let stats = shard.store().store.stats();
                let mut marks = self.marks.borrow_mut();
                marks.add(Mark::Checkpointed.name(), stats.checkpoints);
            }
        }
        self.nodes[index].paused_until = 0;
        self.nodes[index].hung_until = 0;
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
        self.forget_healed();
        let rng = &mut self.rng;
        let old_in_4 = rng.random_range(0..=4u32);
        self.nodes[index].disk.cut(&mut |_| {
            if rng.random_range(0..4u32) < old_in_4 {
                Fate::Old
            } else {
                Fate::New
            }
        });
        self.find_damage_again();
        let node = &mut self.nodes[index];
        if self.options.canary != Some(Canary::ForgetFlush) {
            node.boot += 1;
        }
        // The latest loss: what an attach before it made good does not count.
        node.suspect_since = Some(now);
    }

    /// Brings a node back later.
    pub(crate) fn restart_later(&mut self, index: NodeIndex) {
        let at = self.queue.now() + MS + self.up_to(self.swarm.node_away_ns);
        self.troubled(index, at);
        self.queue.push(at, Event::NodeStart { node: index });
    }

    /// An operator stops the process, not kindly, and starts it again.
    pub(crate) fn restart_node(&mut self, node: NodeIndex) {
        if self.nodes[node].process.is_some() && self.nodes[node].repairing {
            self.crash_node(node);
            let at = self.queue.now() + MS;
            self.queue.push(at, Event::NodeStart { node });
        }
    }

    pub(crate) fn node_by_address(&self, text: &str) -> Option<(NodeIndex, u16)> {
        let number: usize = text.strip_prefix("tcp:sim:")?.parse().ok()?;
        let (node, shard) = (number / 100, u16::try_from(number % 100).ok()?);
        (node < self.nodes.len()).then_some((node, shard))
    }

    pub(crate) fn shard_event(&mut self, node: NodeIndex, shard: u16, event: ShardEvent<Vec<u8>>) {
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
        let core = &mut process.shards[usize::from(shard)];
        core.turn_end(now, &mut out);
        // The shell's timer: it wakes no more often.
        let wakes_at = core.wake_at().map(|at| at.max(now + 2 * MS));
        let timer = &mut process.wakes_at[usize::from(shard)];
        if let Some(at) = wakes_at.filter(|at| timer.is_none_or(|set| set <= now || *at < set)) {
            *timer = Some(at);
            self.queue.push(at, Event::ShardWake { node, epoch, shard });
        }
        self.carry_out(node, shard, out);
    }

    pub(crate) fn shard_wake(&mut self, node: NodeIndex, epoch: u64, shard: u16) {
        if self.nodes[node].epoch == epoch {
            self.shard_event(node, shard, ShardEvent::Tick);
        }
    }

    pub(crate) fn node_tick(&mut self, node: NodeIndex, epoch: u64) {
        if self.nodes[node].epoch != epoch {
            return;
        }
        for shard in 0..self.swarm.shards {
            self.shard_event(node, shard, ShardEvent::Tick);
        }
        self.look_at_poison(node);
        let at = self.queue.now() + SECOND;
        self.queue.push(at, Event::NodeTick { node, epoch });
    }

    fn carry_out(&mut self, node: NodeIndex, shard: u16, actions: Vec<ShardAction<Vec<u8>>>) {
        let now = self.queue.now();
        let epoch = self.nodes[node].epoch;
        for action in actions {
            match action {
                ShardAction::Send { conn, frame } => {
                    let frame = frame.into_frame();
                    self.mark_reply(conn.0, &frame);
                    self.transmit(conn.0, false, frame);
                }
                ShardAction::Close { conn, .. } => self.close_from(conn.0, true),
                ShardAction::Disk(op) => {
                    self.nodes[node].disk.submit(op);
                    self.nodes[node].owners.push_back(shard);
                    let at = now + 10_000 + self.up_to(self.swarm.disk_delay_ns);
                    let at = at + self.slowness(node);
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
        let (io, result) = self.complete_io(node, index);
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
        mut frame: Frame<Vec<u8>>,
    ) {
        if frame.header.opcode == Opcode::Pull
            && let Ok(pull) = Pull::decode(&frame.aux)
        {
            self.pulls.insert((link, frame.header.tag), pull.mode);
        }
        let claimed = self.canary_request(node, shard, &mut frame);
        self.claimed.set(claimed);
        self.shard_event(
            node,
            shard,
            ShardEvent::Frame {
                conn: ConnId(link),
                frame,
            },
        );
        self.claimed.set(None);
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

fn mark_recovery(report: &RecoveryReport, marks: &Marks) {
    let mut marks = marks.borrow_mut();
    for (mark, count) in [
        (Mark::SectorReverted, report.sectors_reverted),
        (Mark::SectorAdopted, report.sectors_adopted),
        (Mark::SlotSettled, report.slots_suspect),
    ] {
        if count > 0 {
            marks.add(mark.name(), count);
        }
    }
}

impl World {
    /// Marks what an answer of a node tells.
    fn mark_reply(&mut self, link: LinkId, frame: &Frame<Vec<u8>>) {
        let header = &frame.header;
        let client = self.links.get(&link).map(|link| link.client);
        if client == Some(Client::Stranger) && header.status == Status::NotFenced {
            self.mark(Mark::NotFencedAnswered);
        }
        let pull = self.pulls.remove(&(link, header.tag));
        if header.status == Status::NoSpace {
            self.told_full(link, header, pull);
        }
        let Some(Client::Front { front, .. }) = client else {
            return;
        };
        self.note_refusal(link, front, header);
        let mark = match (header.opcode, header.status) {
            (Opcode::Write | Opcode::Zero, Status::StaleToken) => Mark::ZombieWriteRefused,
            (Opcode::Read, Status::StaleToken) => Mark::ZombieReadRefused,
            (_, Status::StaleMap) => Mark::StaleMapAnswered,
            (_, Status::NotFenced) => Mark::NotFencedAnswered,
            (_, Status::NoLease) => Mark::NoLeaseRefused,
            (Opcode::Read, Status::BadCrc | Status::IoError) => Mark::BadSectorAnswered,
            (Opcode::Write, Status::Ok) => {
                self.mark_version_returned(link);
                self.mark_taken_on(client);
                return;
            }
            (Opcode::Pull, Status::Ok) => {
                self.mark_pulled(pull, &frame.aux);
                if pull.is_some() && HeldBack::from_seq(frame.header.seq).is_any() {
                    self.mark(Mark::CopyHeldBack);
                }
                return;
            }
            _ => return,
        };
        self.mark(mark);
    }

    /// What a front cannot do without telling its guest, or without recording the node stale.
    fn note_refusal(&mut self, link: LinkId, front: FrontIndex, header: &Header) {
        let refused = matches!(
            (header.opcode, header.status),
            (
                Opcode::Write | Opcode::Zero | Opcode::Flush,
                Status::NoSpace | Status::IoError | Status::Poisoned
            )
        );
        let node = self.links.get(&link).map(|link| link.node);
        if let Some(node) = node.filter(|_| refused) {
            self.nodes[node].refused = Some((front, self.queue.now()));
        }
    }

    /// A front goes on with a node whose process had died under it.
    fn mark_taken_on(&mut self, client: Option<Client>) {
        let Some(Client::Front { front, .. }) = client else {
            return;
        };
        for node in &mut self.nodes {
            if node.back_for == Some(front) {
                node.back_for = None;
                self.marks.borrow_mut().hit(Mark::RestartTakenOn.name());
            }
        }
    }

    fn mark_pulled(&mut self, mode: Option<PullMode>, aux: &[u8]) {
        let copied = Pulled::decode(aux).is_ok_and(|pulled| pulled.sectors_copied > 0);
        match mode {
            Some(PullMode::Repair) if copied => self.mark(Mark::RepairDone),
            Some(PullMode::Newer) => {
                self.mark(Mark::IntentReconciled);
                if copied {
                    self.mark(Mark::IntentRolledForward);
                }
            }
            _ => {}
        }
    }
}
