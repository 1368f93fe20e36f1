//! Sockets from one lane to the node shards, on the lane's own ring.
//!
//! Per shard one connection: one standing RECV, at most one SENDMSG in flight that gathers whatever
//! was queued in the turn. A connection that fails is shut down, and only when the kernel has
//! returned all its operations (so that nothing writes into guest buffers any more) is the lane told
//! that the peer is down; then it connects again, with growing pauses, to the next of its addresses.

mod link;
mod receive;

use super::buffers::{GuestBuffers, Holds};
use super::user_data::{Kind, pack};
use crate::core::api::{BufferPart, Now, Peer, PeerIndex};
use io_uring::squeue;
use link::Link;
pub(crate) use link::greet;
use std::sync::Arc;
use ukai_proto::{ClusterId, Header, Incarnation};

/// What peer sockets tell the lane, and ask it.
pub trait PeerEvents {
    /// Connected; HELLO was answered by the right shard.
    fn up(&mut self, peer: PeerIndex, incarnation: Incarnation);
    /// The connection broke, or could not be made.
    fn down(&mut self, peer: PeerIndex);
    /// Where the payload that follows this header belongs.
    fn target(&mut self, peer: PeerIndex, header: &Header) -> Option<BufferPart>;
    /// A whole frame; `payload` is what was received into the target's place.
    fn frame(&mut self, peer: PeerIndex, header: &Header, aux: &[u8], payload: &[u8]);
}

/// What a lane asks of those that carry its frames to the nodes: its sockets, or what a measurement
/// puts in their place.
pub trait Peers {
    /// Connect to these; earlier ones keep their index, and take new addresses at the next attempt.
    fn set_peers(&mut self, now: Now, peers: &Arc<Vec<Peer>>, events: &mut impl PeerEvents);

    /// Queue a frame; `false`: the connection is not up, the frame is dropped.
    fn send(
        &mut self,
        peer: PeerIndex,
        header: &Header,
        aux: &[u8],
        payload: Option<BufferPart>,
        holds: &mut Holds,
    ) -> bool;

    /// Break the connection; it is made again after a pause.
    fn disconnect(&mut self, peer: PeerIndex, why: &str, holds: &mut Holds);

    /// Time passes: connect what is due, give up attempts that take too long, close what nothing in the
    /// kernel keeps open.
    fn tick(&mut self, now: Now, holds: &mut Holds, events: &mut impl PeerEvents);

    /// A completion of one of their operations.
    #[allow(clippy::too_many_arguments)] // one completion, and all it may touch
    fn completed<B: GuestBuffers>(
        &mut self,
        now: Now,
        kind: Kind,
        slot: u16,
        result: i32,
        buffers: &B,
        holds: &mut Holds,
        events: &mut impl PeerEvents,
    );

    /// Hands out the operations that are due; `push` must take every one.
    fn submit<B: GuestBuffers>(&mut self, buffers: &B, push: &mut dyn FnMut(squeue::Entry));

    /// End all connections for good.
    fn close(&mut self, now: Now, holds: &mut Holds);

    /// After [`Peers::close`]: has the kernel returned everything?
    fn is_quiet(&self) -> bool;
}

/// The connections of one lane.
#[derive(Debug)]
pub struct PeerSockets {
    cluster: ClusterId,
    peers: Arc<Vec<Peer>>,
    links: Vec<Link>,
    /// Links that may have something to submit.
    dirty: Vec<u16>,
    closing: bool,
}

impl PeerSockets {
    /// No connection yet.
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            peers: Arc::default(),
            links: Vec::new(),
            dirty: Vec::new(),
            closing: false,
        }
    }

    fn poll_links(&mut self, now: Now, events: &mut impl PeerEvents) {
        if self.closing {
            return;
        }
        for (index, (link, peer)) in self.links.iter_mut().zip(self.peers.iter()).enumerate() {
            #[allow(clippy::cast_possible_truncation)] // at most u16::MAX links
            let index = PeerIndex(index as u32);
            if link.due(now) {
                if link.connect(now, peer) {
                    mark(&mut self.dirty, index);
                } else {
                    events.down(index);
                }
            }
        }
    }
}

impl Peers for PeerSockets {
    fn set_peers(&mut self, now: Now, peers: &Arc<Vec<Peer>>, events: &mut impl PeerEvents) {
        assert!(
            peers.len() >= self.links.len(),
            "peers are only ever appended"
        );
        assert!(
            peers.len() <= usize::from(u16::MAX),
            "{} peers",
            peers.len()
        );
        self.peers = Arc::clone(peers);
        self.links.resize_with(peers.len(), Link::default);
        self.poll_links(now, events);
    }

    fn send(
        &mut self,
        peer: PeerIndex,
        header: &Header,
        aux: &[u8],
        payload: Option<BufferPart>,
        holds: &mut Holds,
    ) -> bool {
        let Some(link) = self.links.get_mut(peer.0 as usize) else {
            return false;
        };
        let queued = link.queue(header, aux, payload, holds);
        if queued {
            mark(&mut self.dirty, peer);
        }
        queued
    }

    fn disconnect(&mut self, peer: PeerIndex, why: &str, holds: &mut Holds) {
        if let Some(link) = self.links.get_mut(peer.0 as usize) {
            link.shut(peer, why, holds);
            mark(&mut self.dirty, peer);
        }
    }

    fn tick(&mut self, now: Now, holds: &mut Holds, events: &mut impl PeerEvents) {
        for (index, link) in self.links.iter_mut().enumerate() {
            #[allow(clippy::cast_possible_truncation)] // at most u16::MAX links
            let peer = PeerIndex(index as u32);
            if link.overdue(now) {
                link.shut(peer, "no answer to connect or HELLO in time", holds);
                mark(&mut self.dirty, peer);
            }
            // A connection that the lane gave up on over a frame that had just arrived has no operation
            // in the kernel whose completion would close it.
            if link.finish_closing(now, holds) {
                events.down(peer);
            }
        }
        self.poll_links(now, events);
    }

    #[allow(clippy::too_many_arguments)] // one completion, and all it may touch
    fn completed<B: GuestBuffers>(
        &mut self,
        now: Now,
        kind: Kind,
        slot: u16,
        result: i32,
        buffers: &B,
        holds: &mut Holds,
        events: &mut impl PeerEvents,
    ) {
        let peer = PeerIndex(slot.into());
        let at = usize::from(slot);
        let (Some(link), Some(target)) = (self.links.get_mut(at), self.peers.get(at)) else {
            return;
        };
        match kind {
            Kind::PeerConnect => link.connected(peer, target, self.cluster, result, holds),
            Kind::PeerSend => link.sent(peer, result, holds),
            Kind::PeerReceive => link.received(peer, target, result, buffers, holds, events),
            _ => unreachable!("not a peer's operation: {kind:?}"),
        }
        if link.finish_closing(now, holds) {
            events.down(peer);
        }
        mark(&mut self.dirty, peer);
    }

    fn submit<B: GuestBuffers>(&mut self, buffers: &B, push: &mut dyn FnMut(squeue::Entry)) {
        for slot in self.dirty.drain(..) {
            let link = &mut self.links[usize::from(slot)];
            if let Some(entry) = link.next_connect() {
                push(entry.user_data(pack(Kind::PeerConnect, slot)));
            }
            if let Some(entry) = link.next_receive(buffers) {
                push(entry.user_data(pack(Kind::PeerReceive, slot)));
            }
            if let Some(entry) = link.next_send(buffers) {
                push(entry.user_data(pack(Kind::PeerSend, slot)));
            }
        }
    }

    fn close(&mut self, now: Now, holds: &mut Holds) {
        self.closing = true;
        for (index, link) in self.links.iter_mut().enumerate() {
            #[allow(clippy::cast_possible_truncation)] // at most u16::MAX links
            link.shut(PeerIndex(index as u32), "the lane ends", holds);
            link.finish_closing(now, holds);
        }
    }

    fn is_quiet(&self) -> bool {
        self.links.iter().all(Link::is_idle)
    }
}

fn mark(dirty: &mut Vec<u16>, peer: PeerIndex) {
    #[allow(clippy::cast_possible_truncation)] // at most u16::MAX links
    let slot = peer.0 as u16;
    if !dirty.contains(&slot) {
        dirty.push(slot);
    }
}
