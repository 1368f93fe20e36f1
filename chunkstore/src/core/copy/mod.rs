//! PULL: the copy engine at the target of a copy.
//!
//! An order walks its range in windows of at most 2048 sectors: LIST at the source and here, compare,
//! then for each run that differs READ_VERSIONED at the source and Put here. At most
//! [`COPY_PIECES_MAX`] pieces are in flight on a shard, whatever the number of orders: they bound the
//! memory that copies take and what they put between a guest's requests. Stale answers of a peer
//! are harmless: each request has a tag of its own, and the store judges each Put again.
//!
//! Mirrors (of relocations and resyncs) also stay under the node's copy rate, here and at the source, which may
//! make them wait (`serve`). Reconciles and repairs, for which guests wait, neither share that rate nor
//! the places of mirrors among orders and pieces.

mod answer;
mod decide;
mod peers;
mod serve;

use super::event::{PeerId, ShardIdentity};
use super::session::LIST_SECTORS_MAX;
use crate::disk::api::{PutRule, SectorRange};
use decide::Piece;
use peers::{Peers, Source};
pub(super) use serve::Serving;
use std::collections::{BTreeMap, VecDeque};
use ukai_proto::bucket::{Bucket, burst_bytes};
use ukai_proto::message::{HeldBack, Pull, PullMode, Pulled, SectorState};
use ukai_proto::route::shard_of;
use ukai_proto::{Buffer, Frame, Header, NodeId, Opcode, SectorInChunk, Seq, Status};

/// Orders that one shard holds, active and waiting; more are answered Busy. A front's control has
/// a few dozen under way per node; 256 leave room for several volumes.
pub const PULLS_MAX: usize = 256;
/// Orders worked on at a time, mirrors and others each: enough to hide the round trips of LISTs in a WAN.
const ACTIVE_MAX: usize = 16;
/// Pieces (at most 1 MiB of memory each) in flight on a shard, of mirrors and of others each.
pub const COPY_PIECES_MAX: usize = 8;
/// An order that the copy rates held back is answered Busy after so long, with what it has copied: fronts give up what is not
/// answered in 20 s.
const HELD_BACK_MAX_NS: u64 = 8_000_000_000;
/// A source that refuses a piece is not asked again before; its hint may say later.
const REFUSED_MIN_NS: u64 = 10_000_000;
const REFUSED_MAX_NS: u64 = 1_000_000_000;
/// A peer that has been asked and says nothing for so long is given up, and its orders fail.
pub const COPY_STALL_NS: u64 = 15_000_000_000;
/// A peer connection unused for so long is closed.
pub const PEER_IDLE_NS: u64 = 30_000_000_000;
/// Peer connections of one shard: more than that many shards are not copied from at a time.
pub const PEERS_MAX: usize = 64;

/// Names an order; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct OrderId(pub(super) u64);

/// Names a piece of an order; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PieceId(u64);

/// What the engine wants; the shard carries it out.
#[derive(Debug)]
pub(super) enum CopyAction<B> {
    /// List these sectors of this shard; answer with [`Copies::listed`].
    List {
        order: OrderId,
        first: SectorInChunk,
        count: u16,
    },
    /// Store; answer with [`Copies::put_done`].
    Put {
        order: OrderId,
        piece: PieceId,
        range: SectorRange,
        states: Vec<SectorState>,
        data: Option<B>,
        admit: PutRule,
    },
    Connect {
        peer: PeerId,
        source: NodeId,
        addresses: Vec<String>,
    },
    Send {
        peer: PeerId,
        frame: Frame<B>,
    },
    Close {
        peer: PeerId,
    },
    /// The order is over.
    Finished {
        order: OrderId,
        result: Result<Pulled, Status>,
        held_back: HeldBack,
    },
}

/// How long an order stood back for copy rates, so far.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    /// Tokens of this node are wanted since.
    tokens_since: Option<u64>,
    target_ns: u64,
    source_ns: u64,
    /// The source refused; it may be asked again then.
    again_at: u64,
}

impl Waits {
    fn told(&self, now: u64) -> HeldBack {
        let now_waits = self
            .tokens_since
            .map_or(0, |since| now.saturating_sub(since));
        let ms = |ns: u64| u32::try_from(ns / 1_000_000).unwrap_or(HeldBack::MAX_MS);
        HeldBack {
            at_target_ms: ms(self.target_ns + now_waits),
            at_source_ms: ms(self.source_ns),
        }
    }
}

#[derive(Debug)]
struct Window {
    first: SectorInChunk,
    count: u16,
    held: Option<Vec<SectorState>>,
    source: Option<Vec<SectorState>>,
}

#[derive(Debug)]
struct Order {
    header: Header,
    pull: Pull,
    peer: Option<PeerId>,
    next: u16,
    window: Option<Window>,
    todo: VecDeque<Piece>,
    in_flight: BTreeMap<PieceId, Piece>,
    result: Pulled,
    progress_at: u64,
    admitted_at: u64,
    waits: Waits,
}

impl Order {
    /// A mirror: its data counts for the copy rates.
    fn is_paced(&self) -> bool {
        self.pull.mode.is_mirror()
    }

    /// Held back for too long to be left unanswered.
    fn is_over(&self, now: u64) -> bool {
        now.saturating_sub(self.admitted_at) >= HELD_BACK_MAX_NS && self.waits.told(now).is_any()
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    List(OrderId),
    Read(OrderId, PieceId),
}

/// The copy engine of a shard.
#[derive(Debug)]
pub(super) struct Copies<B> {
    identity: ShardIdentity,
    orders: BTreeMap<OrderId, Order>,
    peers: Peers<B>,
    asked: BTreeMap<u64, (PeerId, Asked)>,
    next_id: u64,
    /// Of others, and of mirrors.
    pieces_in_flight: [usize; 2],
    /// What mirrors may fetch; `None`: anything.
    rate: Option<Bucket>,
    /// An order could go on then, if nothing happens before.
    wake_at: Option<u64>,
}

impl<B: Buffer> Copies<B> {
    pub(super) fn new(identity: ShardIdentity) -> Self {
        Self {
            identity,
            orders: BTreeMap::new(),
            peers: Peers::default(),
            asked: BTreeMap::new(),
            next_id: 1,
            pieces_in_flight: [0; 2],
            rate: None,
            wake_at: None,
        }
    }

    /// Bytes per second that mirrors may fetch.
    pub(super) fn set_rate(&mut self, now: u64, rate: Option<u64>) {
        self.rate = rate.map(|rate| Bucket::new(now, rate, burst_bytes(rate)));
    }

    /// Call [`Copies::tick`] then at the latest.
    pub(super) fn wake_at(&self) -> Option<u64> {
        self.wake_at
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Take an order, whose range was checked.
    pub(super) fn order(
        &mut self,
        now: u64,
        header: Header,
        pull: Pull,
    ) -> Result<OrderId, Status> {
        if pull.source == self.identity.node || pull.addresses.is_empty() {
            return Err(Status::BadRequest);
        }
        if self.orders.len() >= PULLS_MAX {
            return Err(Status::Busy);
        }
        let id = OrderId(self.id());
        let order = Order {
            header,
            pull,
            peer: None,
            next: header.sector.0,
            window: None,
            todo: VecDeque::new(),
            in_flight: BTreeMap::new(),
            result: Pulled::default(),
            progress_at: now,
            admitted_at: now,
            waits: Waits::default(),
        };
        self.orders.insert(id, order);
        Ok(id)
    }

    /// The order's request, while it lives.
    pub(super) fn header(&self, order: OrderId) -> Option<&Header> {
        self.orders.get(&order).map(|order| &order.header)
    }

    /// Do whatever can be done now; call after orders and answers.
    pub(super) fn advance(&mut self, now: u64, out: &mut Vec<CopyAction<B>>) {
        self.wake_at = None;
        // In the order in which they came: what a late one takes, an early one would miss.
        let mut starved = false;
        for paced in [false, true] {
            let active = self.orders.iter();
            let active = active.filter(|(_, order)| order.is_paced() == paced);
            let active: Vec<OrderId> = active.take(ACTIVE_MAX).map(|(id, _)| *id).collect();
            for id in active {
                self.advance_order(now, id, &mut starved, out);
            }
        }
    }

    fn wake(&mut self, at: u64) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// May this piece be fetched now?
    fn may_fetch(&mut self, now: u64, id: OrderId, starved: &mut bool) -> bool {
        let Some(order) = self.orders.get_mut(&id) else {
            return false;
        };
        let Some(piece) = order.todo.front() else {
            return false;
        };
        if self.pieces_in_flight[usize::from(order.is_paced())] >= COPY_PIECES_MAX {
            return false;
        }
        if !order.is_paced() || piece.zeros.is_some() {
            return true;
        }
        if order.waits.again_at > now {
            let at = order.waits.again_at;
            self.wake(at);
            return false;
        }
        let Some(bucket) = &mut self.rate else {
            return true;
        };
        let bytes = piece.bytes();
        if *starved || !bucket.take(now, bytes) {
            order.waits.tokens_since.get_or_insert(now);
            let at = bucket.ready_at(bytes);
            if !std::mem::replace(starved, true) {
                self.wake(at);
            }
            return false;
        }
        if let Some(since) = order.waits.tokens_since.take() {
            order.waits.target_ns += now.saturating_sub(since);
        }
        true
    }

    fn advance_order(
        &mut self,
        now: u64,
        id: OrderId,
        starved: &mut bool,
        out: &mut Vec<CopyAction<B>>,
    ) {
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        let Some(peer) = order.peer else {
            let shard = shard_of(
                order.header.volume,
                order.header.chunk,
                order.pull.source_shard_count,
            );
            let source = Source {
                node: order.pull.source,
                shard,
                boot: order.pull.source_boot,
            };
            let addresses = order.pull.addresses.clone();
            match self.peers.connect(now, source, &addresses, out) {
                Some(peer) => {
                    order.peer = Some(peer);
                    order.progress_at = now;
                    self.advance_order(now, id, starved, out);
                }
                None => self.finish(now, id, Err(Status::Busy), out),
            }
            return;
        };
        let is_over = order.is_over(now);
        while !is_over && self.may_fetch(now, id, starved) {
            let Some(order) = self.orders.get_mut(&id) else {
                return;
            };
            let Some(piece) = order.todo.pop_front() else {
                return;
            };
            self.next_id += 1;
            let piece_id = PieceId(self.next_id);
            self.pieces_in_flight[usize::from(order.is_paced())] += 1;
            if let Some(states) = piece.zeros.clone() {
                out.push(put(id, piece_id, order, &piece, states, None));
            } else {
                self.next_id += 1;
                let tag = self.next_id;
                let mut header = ask(Opcode::ReadVersioned, tag, order, piece.sector, piece.count);
                header.seq = Seq(u64::from(order.is_paced()));
                self.asked.insert(tag, (peer, Asked::Read(id, piece_id)));
                self.peers.send(now, peer, Frame::bare(header), out);
            }
            order.in_flight.insert(piece_id, piece);
        }
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        if order.window.is_some() || !order.in_flight.is_empty() {
            return;
        }
        if is_over {
            self.finish(now, id, Err(Status::Busy), out);
            return;
        }
        if !order.todo.is_empty() {
            return;
        }
        let end = order.header.sector.0 + order.header.count;
        if order.next == end {
            let result = order.result;
            self.finish(now, id, Ok(result), out);
            return;
        }
        let (first, count) = (
            SectorInChunk(order.next),
            LIST_SECTORS_MAX.min(end - order.next),
        );
        order.next += count;
        order.window = Some(Window {
            first,
            count,
            held: None,
            source: None,
        });
        self.next_id += 1;
        let tag = self.next_id;
        let header = ask(Opcode::List, tag, order, first, count);
        self.asked.insert(tag, (peer, Asked::List(id)));
        self.peers.send(now, peer, Frame::bare(header), out);
        out.push(CopyAction::List {
            order: id,
            first,
            count,
        });
    }

    /// The order is over: forget everything about it. Requests of it that are still under way at
    /// the store or the peer find nothing when they come back.
    fn finish(
        &mut self,
        now: u64,
        id: OrderId,
        result: Result<Pulled, Status>,
        out: &mut Vec<CopyAction<B>>,
    ) {
        let Some(order) = self.orders.remove(&id) else {
            return;
        };
        self.pieces_in_flight[usize::from(order.is_paced())] -= order.in_flight.len();
        self.asked.retain(|_, (_, asked)| match asked {
            Asked::List(of) | Asked::Read(of, _) => *of != id,
        });
        let held_back = match result {
            Ok(_) | Err(Status::Busy) => order.waits.told(now),
            Err(_) => HeldBack::default(),
        };
        out.push(CopyAction::Finished {
            order: id,
            result,
            held_back,
        });
    }

    /// Fail every order for which `which` holds.
    pub(super) fn fail(
        &mut self,
        now: u64,
        status: Status,
        out: &mut Vec<CopyAction<B>>,
        which: impl Fn(&Header) -> bool,
    ) {
        let doomed = self.orders.iter();
        let doomed = doomed.filter(|(_, order)| which(&order.header));
        let doomed: Vec<OrderId> = doomed.map(|(id, _)| *id).collect();
        for id in doomed {
            self.finish(now, id, Err(status), out);
        }
    }

    pub(super) fn peer_opened(&mut self, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        self.peers.opened(&self.identity, peer, out);
    }

    pub(super) fn peer_closed(&mut self, now: u64, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        if self.peers.forget(peer) {
            self.fail_peer(now, peer, out);
            self.advance(now, out);
        }
    }

    fn fail_peer(&mut self, now: u64, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        let users = self.orders.iter();
        let users = users.filter(|(_, order)| order.peer == Some(peer));
        let users: Vec<OrderId> = users.map(|(id, _)| *id).collect();
        for id in users {
            self.finish(now, id, Err(Status::PeerFailed), out);
        }
    }

    /// The peer does not speak as it should, or not at all.
    fn give_up(&mut self, now: u64, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        if self.peers.forget(peer) {
            out.push(CopyAction::Close { peer });
            self.fail_peer(now, peer, out);
        }
    }

    /// Time passed: give up what stalls, close what idles.
    pub(super) fn tick(&mut self, now: u64, out: &mut Vec<CopyAction<B>>) {
        let waits = |order: &&Order| order.window.is_some() || !order.in_flight.is_empty();
        let quiet = |order: &Order| {
            let peer = order.peer?;
            let last = order.progress_at.max(self.peers.heard_at(peer));
            (now.saturating_sub(last) >= COPY_STALL_NS).then_some(peer)
        };
        let stalled = self.orders.values().filter(waits).filter_map(quiet);
        let stalled: Vec<PeerId> = stalled.collect();
        for peer in stalled {
            self.give_up(now, peer, out);
        }
        // Behind others that the rate holds back.
        let limited = self.rate.is_some();
        let waits = self.orders.iter_mut().filter(|(_, order)| {
            limited
                && order.is_paced()
                && order.peer.is_none()
                && order.waits.tokens_since.is_none()
        });
        waits.for_each(|(_, order)| order.waits.tokens_since = Some(order.admitted_at));
        let over = self.orders.iter();
        let over = over.filter(|(_, order)| order.peer.is_none() && order.is_over(now));
        let over: Vec<OrderId> = over.map(|(id, _)| *id).collect();
        for id in over {
            self.finish(now, id, Err(Status::Busy), out);
        }
        let orders = &self.orders;
        self.peers.close_idle(
            now,
            |peer| orders.values().any(|order| order.peer == Some(peer)),
            out,
        );
        self.advance(now, out);
    }

    /// The shard stops.
    pub(super) fn stop(&mut self, now: u64, out: &mut Vec<CopyAction<B>>) {
        self.fail(now, Status::Stopping, out, |_| true);
        self.peers.close_all(out);
    }
}

/// A request to the source, under the order's token.
fn ask(opcode: Opcode, tag: u64, order: &Order, sector: SectorInChunk, count: u16) -> Header {
    Header {
        volume: order.header.volume,
        chunk: order.header.chunk,
        sector,
        count,
        token: order.header.token,
        generation: order.header.generation,
        ..Header::request(opcode, tag)
    }
}

fn put<B>(
    id: OrderId,
    piece_id: PieceId,
    order: &Order,
    piece: &Piece,
    states: Vec<SectorState>,
    data: Option<B>,
) -> CopyAction<B> {
    CopyAction::Put {
        order: id,
        piece: piece_id,
        range: SectorRange {
            volume: order.header.volume,
            chunk: order.header.chunk,
            sector: piece.sector,
            count: piece.count,
        },
        states,
        data,
        admit: match order.pull.mode {
            PullMode::Newer => PutRule::Newer,
            PullMode::Repair => PutRule::Repair,
            PullMode::Mirror => PutRule::Mirror(order.pull.ceiling),
            PullMode::MirrorBad => PutRule::MirrorBad(order.pull.ceiling),
        },
    }
}
