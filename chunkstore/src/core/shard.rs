//! The shard: takes events, asks gate and store, answers.

use super::copy::{Copies, CopyAction, OrderId, PieceId, Serving};
use super::event::{
    CloseReason, ConnId, OutData, OutFrame, ShardAction, ShardEvent, ShardIdentity,
};
use super::gate::Gate;
use super::reports::Reports;
use super::service::ServiceTimes;
use super::session::{Sessions, greet};
use super::stats::Counters;
use super::storage::Storage;
use crate::disk::api::{OpId, SectorRange, StoreAction, StoreRequest};
use crate::disk::store::Store;
use std::collections::{BTreeMap, VecDeque};
use ukai_proto::message::SectorState;
use ukai_proto::{Buffer, Flags, Frame, Header, Opcode, SectorInChunk, Status};

/// The store counts time in these, a little less than the quarter of a second between ticks.
const STORE_TICK_NS: u64 = 200_000_000;

/// A client's request under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) conn: ConnId,
    pub(super) header: Header,
    pub(super) admitted: u64,
}

/// Names a LIST that was split into slots; never reused.
pub(super) type ListId = u64;

/// What a store operation belongs to.
#[derive(Debug)]
pub(super) enum Op {
    Client(Request),
    /// A piece of a peer's mirror.
    Served(Request),
    ListPart {
        list: ListId,
        offset: usize,
    },
    CopyPut {
        order: OrderId,
        piece: PieceId,
        /// It brings no data.
        zeroes: bool,
    },
}

#[derive(Debug)]
pub(super) enum ListOwner {
    Client(Request),
    Copy(OrderId),
}

/// A LIST over several slots, being collected.
#[derive(Debug)]
pub(super) struct List {
    pub(super) owner: ListOwner,
    pub(super) states: Vec<SectorState>,
    pub(super) parts_left: usize,
    /// Read and verify, one slot after the other: a scrub is not to crowd the device.
    pub(super) verify: bool,
    /// Parts that are not asked for yet: offset in `states`, and range.
    pub(super) parts_waiting: VecDeque<(usize, SectorRange)>,
    pub(super) failed: Option<(Status, SectorInChunk)>,
}

/// Life of the shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Serving,
    /// Finishing what is in flight.
    Draining,
    /// The store writes its last checkpoint.
    Closing,
    Stopped,
}

/// One shard of a node.
#[derive(Debug)]
pub struct ShardCore<B, S = Store<B>> {
    pub(super) identity: ShardIdentity,
    pub(super) store: S,
    pub(super) gate: Gate,
    pub(super) sessions: Sessions,
    pub(super) copies: Copies<B>,
    pub(super) serving: Serving<Request>,
    pub(super) ops: BTreeMap<OpId, Op>,
    pub(super) lists: BTreeMap<ListId, List>,
    pub(super) pulls: BTreeMap<OrderId, Request>,
    pub(super) next_op: u64,
    pub(super) lease_held: bool,
    /// Something was submitted since the store's last turn end.
    pub(super) submitted: bool,
    life: Life,
    /// When the store was last told that time passes.
    store_ticked_ns: u64,
    pub(super) counters: Counters,
    pub(super) service: ServiceTimes,
    pub(super) reports: Reports,
    pub(super) store_out: Vec<StoreAction<B>>,
    pub(super) copy_out: Vec<CopyAction<B>>,
}

impl<B: Buffer, S: Storage<B>> ShardCore<B, S> {
    /// A shard over a recovered store. Until [`ShardEvent::LeaseHeld`] it answers NoLease.
    pub fn new(identity: ShardIdentity, store: S) -> Self {
        assert!(
            identity.shard.0 < identity.shard_count,
            "shard {} of {}",
            identity.shard,
            identity.shard_count
        );
        Self {
            identity,
            store,
            gate: Gate::default(),
            sessions: Sessions::default(),
            copies: Copies::new(identity),
            serving: Serving::default(),
            ops: BTreeMap::new(),
            lists: BTreeMap::new(),
            pulls: BTreeMap::new(),
            next_op: 1,
            lease_held: false,
            submitted: false,
            life: Life::Serving,
            store_ticked_ns: 0,
            counters: Counters::default(),
            service: ServiceTimes::default(),
            reports: Reports::default(),
            store_out: Vec::new(),
            copy_out: Vec::new(),
        }
    }

    /// Who it is.
    pub fn identity(&self) -> &ShardIdentity {
        &self.identity
    }

    /// The store, for what it can tell (space in use, fences).
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Bounds what mirrors fetch to this shard, and what they fetch from it: bytes per second each. `None`: any rate.
    pub fn set_copy_rate(&mut self, now_ns: u64, rate: Option<u64>) {
        self.copies.set_rate(now_ns, rate);
        self.serving.set_rate(now_ns, rate);
    }

    /// Send a [`ShardEvent::Tick`] then: a copy that waits for the copy rate could go on.
    pub fn wake_at(&self) -> Option<u64> {
        let (copies, serving) = (self.copies.wake_at(), self.serving.wake_at());
        copies.into_iter().chain(serving).min()
    }

    /// Store operations in flight.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    pub(super) fn is_serving(&self) -> bool {
        self.life == Life::Serving
    }

    /// Take one event. `now_ns` is any monotonic clock.
    pub fn handle(&mut self, now_ns: u64, event: ShardEvent<B>, out: &mut Vec<ShardAction<B>>) {
        match event {
            ShardEvent::ConnOpened { conn } => {
                let reason = match self.life {
                    Life::Serving if self.sessions.opened(now_ns, conn) => return,
                    Life::Serving => CloseReason::TooMany,
                    _ => CloseReason::Stopping,
                };
                out.push(ShardAction::Close { conn, reason });
            }
            ShardEvent::ConnClosed { conn } => self.sessions.closed(conn),
            ShardEvent::Frame { conn, frame } => self.frame(now_ns, conn, frame, out),
            ShardEvent::DiskDone { io, result } => {
                self.store.disk_done(io, result, &mut self.store_out);
            }
            ShardEvent::PeerOpened { peer } => self.copies.peer_opened(peer, &mut self.copy_out),
            ShardEvent::PeerFrame { peer, frame } => {
                self.copies
                    .peer_frame(now_ns, peer, frame, &mut self.copy_out);
            }
            ShardEvent::PeerClosed { peer } => {
                self.copies.peer_closed(now_ns, peer, &mut self.copy_out);
            }
            ShardEvent::Tick => {
                self.service.tick(now_ns);
                // Ticks also come when a copy may go on.
                if now_ns.saturating_sub(self.store_ticked_ns) >= STORE_TICK_NS {
                    self.store_ticked_ns = now_ns;
                    self.store.tick();
                }
                self.copies.tick(now_ns, &mut self.copy_out);
                self.serve_copies(now_ns, out);
                for conn in self.sessions.silent(now_ns) {
                    let reason = CloseReason::Silent;
                    out.push(ShardAction::Close { conn, reason });
                }
            }
            ShardEvent::LeaseLost => {
                self.lease_held = false;
                self.copies
                    .fail(now_ns, Status::NoLease, &mut self.copy_out, |_| true);
                self.serve_none(Status::NoLease, out);
            }
            ShardEvent::LeaseHeld => self.lease_held = true,
            ShardEvent::Stop => {
                if self.life == Life::Serving {
                    self.life = Life::Draining;
                    self.copies.stop(now_ns, &mut self.copy_out);
                    self.serve_none(Status::Stopping, out);
                }
            }
        }
        self.drain(now_ns, out);
    }

    /// End of a batch of events: group commit, idle work, progress of a stop.
    pub fn turn_end(&mut self, now_ns: u64, out: &mut Vec<ShardAction<B>>) {
        match self.life {
            // The store knows what may go on beside requests.
            Life::Serving => self.store.background(&mut self.store_out),
            Life::Draining if self.ops.is_empty() => {
                self.life = Life::Closing;
                self.store.close(&mut self.store_out);
            }
            Life::Draining | Life::Closing | Life::Stopped => {}
        }
        // A reply emitted here can start the next piece of a copy, which wants its commit too.
        loop {
            self.submitted = false;
            self.store.turn_end(&mut self.store_out);
            self.drain(now_ns, out);
            if !self.submitted {
                break;
            }
        }
        if self.life == Life::Closing
            && let Some(clean) = self.store.closed()
        {
            self.life = Life::Stopped;
            out.push(ShardAction::Stopped { clean });
        }
    }

    /// Carry out what store and copy engine asked for, until they ask for nothing more. Ends: each
    /// round either answers a request or hands something to device or peer.
    fn drain(&mut self, now: u64, out: &mut Vec<ShardAction<B>>) {
        while !self.store_out.is_empty() || !self.copy_out.is_empty() {
            let mut batch = std::mem::take(&mut self.store_out);
            for action in batch.drain(..) {
                match action {
                    StoreAction::Disk(op) => out.push(ShardAction::Disk(op)),
                    StoreAction::Reply(op, reply) => self.replied(now, op, reply, out),
                }
            }
            // Keep the allocation for the next turn.
            if self.store_out.is_empty() {
                self.store_out = batch;
            }
            for action in std::mem::take(&mut self.copy_out) {
                self.copy_action(now, action, out);
            }
        }
    }

    fn frame(&mut self, now: u64, conn: ConnId, frame: Frame<B>, out: &mut Vec<ShardAction<B>>) {
        let header = frame.header;
        let Some(greeted) = self.sessions.greeted(conn) else {
            return; // Closed by us; the shell had more in its buffers.
        };
        if !greeted {
            self.hello(conn, &frame, out);
            return;
        }
        if header.flags.has(Flags::REPLY) {
            let reason = CloseReason::Protocol("a reply on a connection that asks");
            self.sessions.closed(conn);
            out.push(ShardAction::Close { conn, reason });
            return;
        }
        if let Err(status) = self.sessions.admit(conn, &header) {
            let frame = OutFrame::bare(header.reply(status));
            out.push(ShardAction::Send { conn, frame });
            return;
        }
        let request = Request {
            conn,
            header,
            admitted: now,
        };
        if let Err((status, sector)) = self.start(now, request, frame, out) {
            self.fail(request, status, sector, out);
        }
    }

    fn hello(&mut self, conn: ConnId, frame: &Frame<B>, out: &mut Vec<ShardAction<B>>) {
        let is_hello =
            frame.header.opcode == Opcode::Hello && !frame.header.flags.has(Flags::REPLY);
        let (mine, status) = if is_hello {
            greet(&self.identity, &frame.aux)
        } else {
            (greet(&self.identity, &[]).0, Status::BadRequest)
        };
        let reply = frame.header.reply(status);
        let aux = if is_hello { mine.encode() } else { Vec::new() };
        let frame = OutFrame::new(reply, aux, OutData::None);
        out.push(ShardAction::Send { conn, frame });
        if status == Status::Ok {
            self.sessions.set_greeted(conn);
        } else {
            self.sessions.closed(conn);
            let reason = CloseReason::Hello(status);
            out.push(ShardAction::Close { conn, reason });
        }
    }

    fn copy_action(&mut self, now: u64, action: CopyAction<B>, out: &mut Vec<ShardAction<B>>) {
        match action {
            CopyAction::Connect {
                peer,
                source,
                addresses,
            } => out.push(ShardAction::PeerConnect {
                peer,
                source,
                addresses,
            }),
            CopyAction::Send { peer, frame } => out.push(ShardAction::PeerSend { peer, frame }),
            CopyAction::Close { peer } => out.push(ShardAction::PeerClose { peer }),
            CopyAction::List {
                order,
                first,
                count,
            } => {
                if let Some(header) = self.copies.header(order) {
                    let (volume, chunk) = (header.volume, header.chunk);
                    let range = SectorRange {
                        volume,
                        chunk,
                        sector: first,
                        count,
                    };
                    self.list(ListOwner::Copy(order), range, false);
                }
            }
            CopyAction::Put {
                order,
                piece,
                range,
                states,
                data,
                admit,
            } => {
                let Some(header) = self.copies.header(order).copied() else {
                    return;
                };
                // The order was admitted a while ago: fence, map or lease may have moved on (I4).
                if let Err(status) = self.pass(&header) {
                    self.copies
                        .put_done(now, order, piece, Err(status), &mut self.copy_out);
                    return;
                }
                let zeroes = data.is_none();
                let request = StoreRequest::Put {
                    range,
                    states,
                    data,
                    generation: header.generation,
                    admit,
                };
                let op = Op::CopyPut {
                    order,
                    piece,
                    zeroes,
                };
                self.submit(op, request);
            }
            CopyAction::Finished {
                order,
                result,
                held_back,
            } => {
                let Some(request) = self.pulls.remove(&order) else {
                    panic!("{order:?} finished but was never begun")
                };
                self.pulled(request, result, held_back, out);
            }
        }
    }
}
