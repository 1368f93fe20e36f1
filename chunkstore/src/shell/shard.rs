//! One shard on its executor: the queue, the turn, and the tasks around it.

use super::backing::Backing;
use super::buffer::NodeBuf;
use super::clock::{now_ns, ns};
use super::conn::{Conn, Line};
use super::gather::Body;
use super::peer;
use super::queues::Queues;
use super::ring::{Completed, Ring};
use super::stream::{adopt_listener, prepare, taken_over};
use crate::core::{ConnId, ShardAction, ShardCore, ShardEvent};
use crate::disk::api::StoreView;
use glommio::net::TcpStream;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ukai_proto::ShardIndex;
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
    /// Among the shards of the executor.
    place: usize,
    core: RefCell<ShardCore<NodeBuf>>,
    executor: Executor,
    shared: Arc<Shared>,
    queue: RefCell<VecDeque<ShardEvent<NodeBuf>>>,
    lines: RefCell<BTreeMap<Line, Rc<Conn>>>,
    /// Not read from for now: the shard is behind, or they do not take their replies.
    paused: RefCell<Vec<Rc<Conn>>>,
    actions: RefCell<Vec<ShardAction<NodeBuf>>>,
    next_conn: Cell<u64>,
    lease_held: Cell<bool>,
    /// The core wants to be woken then.
    wakes_at: Cell<Option<u64>>,
    poisoned: Cell<bool>,
    /// Was the stop clean?
    stopped: Cell<Option<bool>>,
}

/// What the shards of an executor share.
#[derive(Clone, Debug)]
pub(super) struct Executor {
    pub(super) ring: Rc<Ring>,
    pub(super) backing: Rc<Backing>,
    pub(super) queues: Queues,
}

impl Shard {
    pub(super) fn new(
        place: usize,
        core: ShardCore<NodeBuf>,
        executor: Executor,
        shared: Arc<Shared>,
    ) -> Rc<Self> {
        Rc::new(Self {
            index: core.identity().shard.0.into(),
            place,
            core: RefCell::new(core),
            executor,
            shared,
            queue: RefCell::default(),
            lines: RefCell::default(),
            paused: RefCell::default(),
            actions: RefCell::default(),
            next_conn: Cell::new(1),
            lease_held: Cell::new(false),
            wakes_at: Cell::new(None),
            poisoned: Cell::new(false),
            stopped: Cell::new(None),
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
    }

    /// Begin to serve.
    pub(super) fn serve(
        self: &Rc<Self>,
        listeners: Vec<OwnedFd>,
        commands: flume::Receiver<Command>,
    ) {
        let queue = self.executor.queues.data;
        for listener in listeners {
            self.spawn(queue, self.clone().accept(listener));
        }
        self.spawn(queue, self.clone().listen_to(commands));
        self.spawn(queue, self.clone().tick());
    }

    /// Is there something for a turn?
    pub(super) fn has_events(&self) -> bool {
        self.stopped.get().is_none() && !self.queue.borrow().is_empty()
    }

    /// Which one it is.
    pub(super) fn id(&self) -> ShardIndex {
        self.core.borrow().identity().shard
    }

    /// Stopped; clean?
    pub(super) fn stopped(&self) -> Option<bool> {
        self.stopped.get()
    }

    /// Something came back from the ring.
    pub(super) fn completed(&self, completed: Completed) {
        match completed {
            Completed::Disk { io, result, .. } => {
                self.push(ShardEvent::DiskDone { io, result });
            }
            Completed::Writable(conn) => {
                if !conn.polled() {
                    self.executor.ring.writable(&conn);
                }
                self.resume();
            }
            Completed::Receive(conn, result) => {
                let deliver = |frame| {
                    self.push(match conn.line {
                        Line::Client(id) => ShardEvent::Frame { conn: id, frame },
                        Line::Peer(id) => ShardEvent::PeerFrame { peer: id, frame },
                    });
                };
                match conn.received(result, deliver) {
                    Ok(true) => return self.receive(conn),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(shard = self.index, line = ?conn.line, %error, "connection dropped");
                    }
                }
                conn.cut();
                self.over(&conn);
            }
        }
    }

    /// Read on, now or when there is room.
    fn receive(&self, conn: Rc<Conn>) {
        if conn.is_over() {
            self.over(&conn);
        } else if conn.has_room() && self.queue.borrow().len() < QUEUE_EVENTS_MAX {
            self.executor.ring.receive(&conn);
        } else {
            self.paused.borrow_mut().push(conn);
        }
    }

    /// Nothing more comes from it.
    fn over(&self, conn: &Conn) {
        self.lines.borrow_mut().remove(&conn.line);
        self.push(match conn.line {
            Line::Client(id) => ShardEvent::ConnClosed { conn: id },
            Line::Peer(id) => ShardEvent::PeerClosed { peer: id },
        });
    }

    /// A turn, if there is something for one. `true`: there was.
    pub(super) fn turn(self: &Rc<Self>) -> bool {
        if !self.has_events() {
            return false;
        }
        let mut actions = self.actions.take();
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
        self.note_wake(now);
        self.carry_out(&mut actions);
        self.actions.replace(actions);
        self.resume();
        true
    }

    /// Those that were not read from may be again.
    fn resume(&self) {
        let paused = self.paused.take();
        for conn in paused {
            self.receive(conn);
        }
    }

    /// The core may want to be woken before the next tick.
    fn note_wake(&self, now: u64) {
        let at = self.core.borrow().wake_at();
        let at = at.map(|at| at.max(now + ns(WAKE_MIN)));
        // Turns that come closer together must not put it off.
        let set = self.wakes_at.get();
        self.wakes_at
            .set(at.map(|at| set.map_or(at, |set| set.min(at))));
    }

    /// When the core wants to be woken, if it does.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        self.wakes_at.get().filter(|_| self.stopped.get().is_none())
    }

    /// Wakes the core if it is time.
    pub(super) fn wake(&self, now: u64) {
        if self.wakes_at().is_some_and(|at| at <= now) {
            self.wakes_at.set(None);
            self.push(ShardEvent::Tick);
        }
    }

    fn carry_out(self: &Rc<Self>, actions: &mut Vec<ShardAction<NodeBuf>>) {
        let executor = &self.executor;
        let mut dirty = BTreeSet::new();
        for action in actions.drain(..) {
            match action {
                ShardAction::Send { conn, frame } => {
                    let line = Line::Client(conn);
                    if let Some(target) = self.lines.borrow().get(&line) {
                        target.push(frame.head_bytes(), Body::Reply(frame.data));
                        dirty.insert(line);
                    }
                }
                ShardAction::Close { conn, reason } => {
                    let target = self.lines.borrow().get(&Line::Client(conn)).cloned();
                    if let Some(target) = target {
                        tracing::info!(shard = self.index, conn = conn.0, %reason, "connection closed");
                        if !target.close() {
                            executor.ring.writable(&target);
                        }
                    }
                }
                ShardAction::Disk(op) => {
                    let done = executor.backing.begin(&executor.ring, self.place, op);
                    if let Some((io, result)) = done {
                        self.push(ShardEvent::DiskDone { io, result });
                    }
                }
                ShardAction::PeerConnect {
                    peer,
                    source,
                    addresses,
                } => {
                    let shard = self.clone();
                    self.spawn(executor.queues.copy, async move {
                        match peer::connect(&addresses).await {
                            Ok(stream) => shard.adopt(Line::Peer(peer), &stream),
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
                    let line = Line::Peer(peer);
                    if let Some(target) = self.lines.borrow().get(&line) {
                        let mut head = frame.header.encode().to_vec();
                        head.extend_from_slice(&frame.aux);
                        target.push(head, Body::Request(frame.data));
                        dirty.insert(line);
                    }
                }
                ShardAction::PeerClose { peer } => {
                    let target = self.lines.borrow_mut().remove(&Line::Peer(peer));
                    target.into_iter().for_each(|target| target.cut());
                }
                ShardAction::Stopped { clean } => self.stop(clean),
            }
        }
        // One gathered send per connection and turn.
        for line in dirty {
            let target = self.lines.borrow().get(&line).cloned();
            if let Some(target) = target
                && !target.flush()
            {
                executor.ring.writable(&target);
            }
        }
    }

    /// Nothing is served any more; what is in the kernel ends.
    fn stop(&self, clean: bool) {
        self.stopped.set(Some(clean));
        for conn in self.lines.borrow().values() {
            conn.cut();
        }
    }

    async fn accept(self: Rc<Self>, listener: OwnedFd) {
        let listener = adopt_listener(listener);
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    let id = ConnId(self.next_conn.replace(self.next_conn.get() + 1));
                    self.adopt(Line::Client(id), &stream);
                }
                Err(error) => {
                    tracing::warn!(shard = self.index, %error, "accept a connection");
                    glommio::timer::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Take a connection.
    fn adopt(&self, line: Line, stream: &TcpStream) {
        if let Err(error) = prepare(stream) {
            tracing::warn!(shard = self.index, %error, "set the options of a connection");
        }
        let (opened, closed) = match line {
            Line::Client(conn) => (
                ShardEvent::ConnOpened { conn },
                ShardEvent::ConnClosed { conn },
            ),
            Line::Peer(peer) => (
                ShardEvent::PeerOpened { peer },
                ShardEvent::PeerClosed { peer },
            ),
        };
        let socket = match taken_over(stream) {
            Ok(socket) if self.stopped.get().is_none() => socket,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(shard = self.index, %error, "take a connection over");
                return self.push(closed);
            }
        };
        let conn = Conn::new(self.place, line, socket);
        self.lines.borrow_mut().insert(line, conn.clone());
        self.push(opened);
        self.receive(conn);
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
