//! One shard on its executor: the queue, the turn, and the tasks around it.

use super::buffer::NodeBuf;
use super::clock::{now_ns, ns};
use super::conn::Conn;
use super::device::Device;
use super::gather::Body;
use super::notify::Notify;
use super::peer;
use super::queues::Queues;
use super::stream::{adopt_listener, prepare};
use crate::core::{ConnId, PeerId, ShardAction, ShardCore, ShardEvent};
use crate::disk::api::{DiskOp, StoreView};
use glommio::net::TcpStream;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ukai_proto::limits::SLOT_BYTES;

/// Events of one turn: a group commit should not wait for more.
const TURN_EVENTS_MAX: usize = 512;
/// Receivers pause while so many events wait: a turn is then overdue.
const QUEUE_EVENTS_MAX: usize = 2048;
/// How often the core sees the time, and the lease is looked at, if nothing else happens.
const TICK: Duration = Duration::from_millis(250);
/// The core is woken no more often: buckets hold more than what comes meanwhile.
const WAKE_MIN: Duration = Duration::from_millis(2);
/// A tick that comes so late is worth a line: fronts take a node that says nothing for dead.
const LATE: Duration = Duration::from_secs(1);
/// A shard stops serving so long before its lease could have ended.
const LEASE_MARGIN: Duration = Duration::from_millis(250);
/// After an accept that failed (no descriptors left, say) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An order from the control thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// The lease deadline changed; look at once.
    Lease,
    /// Clean stop.
    Stop,
}

/// What shards and the control thread share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The node serves until this moment ([`now_ns`]); 0 before it is registered.
    pub(super) lease_until: AtomicU64,
    /// Bytes in use of each shard, by index.
    pub(super) used_bytes: Vec<AtomicU64>,
}

/// The shell of a shard.
pub(super) struct Shard {
    index: usize,
    core: RefCell<ShardCore<NodeBuf>>,
    device: Rc<Device>,
    queues: Queues,
    shared: Arc<Shared>,
    queue: RefCell<VecDeque<ShardEvent<NodeBuf>>>,
    wake: Notify,
    room: Notify,
    conns: RefCell<BTreeMap<ConnId, Rc<Conn>>>,
    peers: RefCell<BTreeMap<PeerId, Rc<Conn>>>,
    next_conn: Cell<u64>,
    lease_held: Cell<bool>,
    /// A timer that wakes the core runs until then.
    wakes_at: Cell<Option<u64>>,
    poisoned: Cell<bool>,
}

impl Shard {
    pub(super) fn new(
        core: ShardCore<NodeBuf>,
        device: Rc<Device>,
        queues: Queues,
        shared: Arc<Shared>,
    ) -> Rc<Self> {
        Rc::new(Self {
            index: core.identity().shard.0.into(),
            core: RefCell::new(core),
            device,
            queues,
            shared,
            queue: RefCell::default(),
            wake: Notify::default(),
            room: Notify::default(),
            conns: RefCell::default(),
            peers: RefCell::default(),
            next_conn: Cell::new(1),
            lease_held: Cell::new(false),
            wakes_at: Cell::new(None),
            poisoned: Cell::new(false),
        })
    }

    /// Spawn a task of this shard. Tasks never outlive the executor, and a panic in one ends the
    /// process (the hook set at start), so nobody waits for them.
    fn spawn(&self, queue: glommio::TaskQueueHandle, task: impl Future<Output = ()> + 'static) {
        match glommio::spawn_local_into(task, queue) {
            Ok(task) => drop(task.detach()),
            Err(error) => panic!("spawn a task of shard {}: {error}", self.index),
        }
    }

    /// Queue an event for the next turn.
    pub(super) fn push(&self, event: ShardEvent<NodeBuf>) {
        self.queue.borrow_mut().push_back(event);
        self.wake.notify();
    }

    /// Serve until stopped; tells whether the stop was clean.
    pub(super) async fn serve(
        self: Rc<Self>,
        listeners: Vec<OwnedFd>,
        commands: flume::Receiver<Command>,
    ) -> bool {
        for listener in listeners {
            self.spawn(self.queues.data, self.clone().accept(listener));
        }
        self.spawn(self.queues.data, self.clone().listen_to(commands));
        self.spawn(self.queues.data, self.clone().tick());
        let mut actions = Vec::new();
        loop {
            self.wake.until(|| !self.queue.borrow().is_empty()).await;
            let now = now_ns();
            {
                let mut core = self.core.borrow_mut();
                // Before anything is served: the process may have been stopped for a while.
                if let Some(event) = self.look_at_lease(now) {
                    core.handle(now, event, &mut actions);
                }
                for _ in 0..TURN_EVENTS_MAX {
                    let Some(event) = self.queue.borrow_mut().pop_front() else {
                        break;
                    };
                    core.handle(now, event, &mut actions);
                }
                core.turn_end(now, &mut actions);
            }
            self.room.notify();
            self.set_timer(now);
            if let Some(clean) = self.carry_out(&mut actions) {
                return clean;
            }
            // Receivers and completions that are ready join the next turn, not one turn each.
            glommio::yield_if_needed().await;
        }
    }

    /// The core may want to be woken before the next tick.
    fn set_timer(self: &Rc<Self>, now: u64) {
        let Some(at) = self.core.borrow().wake_at() else {
            return;
        };
        let wait = Duration::from_nanos(at.saturating_sub(now)).max(WAKE_MIN);
        if wait >= TICK || self.wakes_at.get().is_some_and(|set| set <= at) {
            return;
        }
        self.wakes_at.set(Some(at));
        let shard = self.clone();
        self.spawn(self.queues.data, async move {
            glommio::timer::sleep(wait).await;
            if shard.wakes_at.get() == Some(at) {
                shard.wakes_at.set(None);
                shard.push(ShardEvent::Tick);
            }
        });
    }

    /// Carry out the actions of a turn; `Some(clean)` once the shard has stopped.
    fn carry_out(self: &Rc<Self>, actions: &mut Vec<ShardAction<NodeBuf>>) -> Option<bool> {
        let mut stopped = None;
        let mut dirty = BTreeSet::new();
        let mut dirty_peers = BTreeSet::new();
        for action in actions.drain(..) {
            match action {
                ShardAction::Send { conn, frame } => {
                    if let Some(target) = self.conns.borrow().get(&conn) {
                        target.push(frame.head_bytes(), Body::Reply(frame.data));
                        dirty.insert(conn);
                    }
                }
                ShardAction::Close { conn, reason } => {
                    let target = self.conns.borrow_mut().remove(&conn);
                    if let Some(target) = target {
                        tracing::info!(shard = self.index, conn = conn.0, %reason, "connection closed");
                        target.close();
                    }
                }
                ShardAction::Disk(op) => {
                    let shard = self.clone();
                    let scrub = match &op {
                        DiskOp::Read { io, .. } => self.core.borrow().store().in_background(*io),
                        _ => false,
                    };
                    let queue = if scrub {
                        self.queues.copy
                    } else {
                        self.queues.data
                    };
                    self.spawn(queue, async move {
                        let (io, result) = shard.device.run(op).await;
                        shard.push(ShardEvent::DiskDone { io, result });
                    });
                }
                ShardAction::PeerConnect {
                    peer,
                    source,
                    addresses,
                } => {
                    let shard = self.clone();
                    self.spawn(self.queues.copy, async move {
                        match peer::connect(&addresses).await {
                            Ok(stream) => shard.adopt_peer(peer, stream),
                            Err(error) => {
                                tracing::warn!(
                                    shard = shard.index, %source, ?addresses, %error,
                                    "cannot reach the source of a copy"
                                );
                                shard.push(ShardEvent::PeerClosed { peer });
                            }
                        }
                    });
                }
                ShardAction::PeerSend { peer, frame } => {
                    if let Some(target) = self.peers.borrow().get(&peer) {
                        let mut head = frame.header.encode().to_vec();
                        head.extend_from_slice(&frame.aux);
                        target.push(head, Body::Request(frame.data));
                        dirty_peers.insert(peer);
                    }
                }
                ShardAction::PeerClose { peer } => {
                    let target = self.peers.borrow_mut().remove(&peer);
                    target.into_iter().for_each(|target| target.cut());
                }
                ShardAction::Stopped { clean } => stopped = Some(clean),
            }
        }
        // One gathered send per connection and turn.
        for conn in dirty {
            let target = self.conns.borrow().get(&conn).cloned();
            target.into_iter().for_each(|target| target.flush());
        }
        for peer in dirty_peers {
            let target = self.peers.borrow().get(&peer).cloned();
            target.into_iter().for_each(|target| target.flush());
        }
        stopped
    }

    async fn accept(self: Rc<Self>, listener: OwnedFd) {
        let listener = adopt_listener(listener);
        loop {
            match listener.accept().await {
                Ok(stream) => self.adopt(stream),
                Err(error) => {
                    tracing::warn!(shard = self.index, %error, "accept a connection");
                    glommio::timer::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn prepare(&self, stream: &TcpStream) {
        if let Err(error) = prepare(stream) {
            tracing::warn!(shard = self.index, %error, "set the options of a connection");
        }
    }

    /// Take a client's connection.
    fn adopt(self: &Rc<Self>, stream: TcpStream) {
        self.prepare(&stream);
        let id = ConnId(self.next_conn.replace(self.next_conn.get() + 1));
        let conn = Conn::new(stream);
        self.conns.borrow_mut().insert(id, conn.clone());
        self.push(ShardEvent::ConnOpened { conn: id });
        self.spawn(self.queues.data, conn.clone().write_blocked());
        let shard = self.clone();
        self.spawn(self.queues.data, async move {
            let deliver = |frame| shard.push(ShardEvent::Frame { conn: id, frame });
            if let Err(error) = conn.receive(deliver, || shard.has_room()).await {
                tracing::warn!(shard = shard.index, conn = id.0, %error, "connection dropped");
            }
            conn.cut();
            shard.conns.borrow_mut().remove(&id);
            shard.push(ShardEvent::ConnClosed { conn: id });
        });
    }

    /// Take the connection to a peer that the core asked for.
    fn adopt_peer(self: &Rc<Self>, id: PeerId, stream: TcpStream) {
        self.prepare(&stream);
        let conn = Conn::new(stream);
        self.peers.borrow_mut().insert(id, conn.clone());
        self.push(ShardEvent::PeerOpened { peer: id });
        self.spawn(self.queues.copy, conn.clone().write_blocked());
        let shard = self.clone();
        self.spawn(self.queues.copy, async move {
            let deliver = |frame| shard.push(ShardEvent::PeerFrame { peer: id, frame });
            if let Err(error) = conn.receive(deliver, || shard.has_room()).await {
                tracing::warn!(shard = shard.index, peer = id.0, %error, "peer dropped");
            }
            conn.cut();
            shard.peers.borrow_mut().remove(&id);
            shard.push(ShardEvent::PeerClosed { peer: id });
        });
    }

    /// Receivers wait here while the shard is behind.
    async fn has_room(&self) {
        let room = || self.queue.borrow().len() < QUEUE_EVENTS_MAX;
        self.room.until(room).await;
    }

    async fn listen_to(self: Rc<Self>, commands: flume::Receiver<Command>) {
        while let Ok(command) = commands.recv_async().await {
            match command {
                Command::Lease => self.push(ShardEvent::Tick),
                Command::Stop => self.push(ShardEvent::Stop),
            }
        }
    }

    async fn tick(self: Rc<Self>) {
        let mut last = now_ns();
        loop {
            let now = now_ns();
            if now.saturating_sub(last) > ns(TICK + LATE) {
                let away_ms = now.saturating_sub(last) / 1_000_000;
                tracing::warn!(
                    shard = self.index,
                    away_ms,
                    "the executor did not run: it had no CPU, slept too long, or a task held it"
                );
            }
            last = now;
            self.push(ShardEvent::Tick);
            let (used, poisoned) = {
                let core = self.core.borrow();
                (core.store().slots().0, core.store().poisoned())
            };
            if poisoned && !self.poisoned.replace(true) {
                tracing::error!(
                    shard = self.index,
                    "a log write or flush failed: the shard refuses writes; check the device, then \
                     start the node again"
                );
            }
            if let Some(gauge) = self.shared.used_bytes.get(self.index) {
                gauge.store(used * SLOT_BYTES as u64, Ordering::Relaxed);
            }
            glommio::timer::sleep(TICK).await;
        }
    }

    /// The shard stops serving by its own clock, whatever the control thread is stuck in.
    fn look_at_lease(&self, now: u64) -> Option<ShardEvent<NodeBuf>> {
        let until = self.shared.lease_until.load(Ordering::Acquire);
        // A little early: what this turn admits takes its time on the device.
        let held = now.saturating_add(ns(LEASE_MARGIN)) < until;
        match (self.lease_held.replace(held), held) {
            (false, true) => Some(ShardEvent::LeaseHeld),
            (true, false) => {
                tracing::warn!(
                    shard = self.index,
                    "membership not renewed in time: not serving"
                );
                Some(ShardEvent::LeaseLost)
            }
            _ => None,
        }
    }
}
