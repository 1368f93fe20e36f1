//! PULL: the copy engine at the target of a copy.
//!
//! An order walks its range in windows of at most 2048 sectors: LIST at the source and here, compare,
//! then for each run that differs READ_VERSIONED at the source and Put here. At most
//! [`COPY_PIECES_MAX`] pieces are in flight on a shard, whatever the number of orders: they bound the
//! memory that copies take and what they put between a guest's requests. Stale answers of a peer
//! are harmless: each request has a tag of its own, and the store judges each Put again.

mod answer;
mod decide;
mod peers;

use super::event::{PeerId, ShardIdentity};
use super::session::LIST_SECTORS_MAX;
use crate::disk::api::{PutRule, SectorRange};
use decide::Piece;
use peers::{Peers, Source};
use std::collections::{BTreeMap, VecDeque};
use ukai_proto::message::{Pull, PullMode, Pulled, SectorState};
use ukai_proto::route::shard_of;
use ukai_proto::{Buffer, Frame, Header, NodeId, Opcode, SectorInChunk, Status};

/// Orders that one shard holds, active and waiting; more are answered Busy. A front's control has
/// a few dozen under way per node; 256 leave room for several volumes.
pub const PULLS_MAX: usize = 256;
/// Orders worked on at a time: enough to hide the round trips of LISTs in a WAN.
const ACTIVE_MAX: usize = 16;
/// Pieces (at most 1 MiB of memory each) in flight on a shard.
pub const COPY_PIECES_MAX: usize = 8;
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
    },
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
    pieces_in_flight: usize,
}

impl<B: Buffer> Copies<B> {
    pub(super) fn new(identity: ShardIdentity) -> Self {
        Self {
            identity,
            orders: BTreeMap::new(),
            peers: Peers::default(),
            asked: BTreeMap::new(),
            next_id: 1,
            pieces_in_flight: 0,
        }
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
        let active: Vec<OrderId> = self.orders.keys().take(ACTIVE_MAX).copied().collect();
        for id in active {
            self.advance_order(now, id, out);
        }
    }

    fn advance_order(&mut self, now: u64, id: OrderId, out: &mut Vec<CopyAction<B>>) {
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
                    self.advance_order(now, id, out);
                }
                None => self.finish(id, Err(Status::Busy), out),
            }
            return;
        };
        while self.pieces_in_flight < COPY_PIECES_MAX
            && let Some(piece) = order.todo.pop_front()
        {
            self.next_id += 1;
            let piece_id = PieceId(self.next_id);
            self.pieces_in_flight += 1;
            if let Some(states) = piece.zeros.clone() {
                out.push(put(id, piece_id, order, &piece, states, None));
            } else {
                self.next_id += 1;
                let tag = self.next_id;
                let header = ask(Opcode::ReadVersioned, tag, order, piece.sector, piece.count);
                self.asked.insert(tag, (peer, Asked::Read(id, piece_id)));
                self.peers.send(now, peer, Frame::bare(header), out);
            }
            order.in_flight.insert(piece_id, piece);
        }
        if order.window.is_some() || !order.todo.is_empty() || !order.in_flight.is_empty() {
            return;
        }
        let end = order.header.sector.0 + order.header.count;
        if order.next == end {
            let result = order.result;
            self.finish(id, Ok(result), out);
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
        id: OrderId,
        result: Result<Pulled, Status>,
        out: &mut Vec<CopyAction<B>>,
    ) {
        let Some(order) = self.orders.remove(&id) else {
            return;
        };
        self.pieces_in_flight -= order.in_flight.len();
        self.asked.retain(|_, (_, asked)| match asked {
            Asked::List(of) | Asked::Read(of, _) => *of != id,
        });
        out.push(CopyAction::Finished { order: id, result });
    }

    /// Fail every order for which `which` holds.
    pub(super) fn fail(
        &mut self,
        status: Status,
        out: &mut Vec<CopyAction<B>>,
        which: impl Fn(&Header) -> bool,
    ) {
        let doomed = self.orders.iter();
        let doomed = doomed.filter(|(_, order)| which(&order.header));
        let doomed: Vec<OrderId> = doomed.map(|(id, _)| *id).collect();
        for id in doomed {
            self.finish(id, Err(status), out);
        }
    }

    pub(super) fn peer_opened(&mut self, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        self.peers.opened(&self.identity, peer, out);
    }

    pub(super) fn peer_closed(&mut self, now: u64, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        if self.peers.forget(peer) {
            self.fail_peer(peer, out);
            self.advance(now, out);
        }
    }

    fn fail_peer(&mut self, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        let users = self.orders.iter();
        let users = users.filter(|(_, order)| order.peer == Some(peer));
        let users: Vec<OrderId> = users.map(|(id, _)| *id).collect();
        for id in users {
            self.finish(id, Err(Status::PeerFailed), out);
        }
    }

    /// The peer does not speak as it should, or not at all.
    fn give_up(&mut self, peer: PeerId, out: &mut Vec<CopyAction<B>>) {
        if self.peers.forget(peer) {
            out.push(CopyAction::Close { peer });
            self.fail_peer(peer, out);
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
            self.give_up(peer, out);
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
    pub(super) fn stop(&mut self, out: &mut Vec<CopyAction<B>>) {
        self.fail(Status::Stopping, out, |_| true);
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
