//! Connections to the shards that copies come from: made on demand, shared by orders, greeted
//! before use, closed when idle.

use super::{CopyAction, PEER_IDLE_NS, PEERS_MAX};
use crate::core::event::{PeerId, ShardIdentity};
use crate::core::session::hello_to;
use std::collections::BTreeMap;
use ukai_proto::message::Hello;
use ukai_proto::{BootId, Frame, Header, NodeId, Opcode, ShardIndex, Status};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Connecting,
    Greeting,
    Ready,
}

/// What an order copies from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Source {
    pub(super) node: NodeId,
    pub(super) shard: ShardIndex,
    /// After another boot it may lack what the order's front counts on.
    pub(super) boot: BootId,
}

#[derive(Debug)]
struct Peer<B> {
    source: Source,
    stage: Stage,
    /// Frames for when it is ready; bounded by the active orders, one LIST each.
    waiting: Vec<Frame<B>>,
    used_at: u64,
    heard_at: u64,
}

/// The peers of a shard.
#[derive(Debug)]
pub(super) struct Peers<B> {
    next: u64,
    open: BTreeMap<PeerId, Peer<B>>,
}

impl<B> Default for Peers<B> {
    fn default() -> Self {
        Self {
            next: 1,
            open: BTreeMap::new(),
        }
    }
}

impl<B: ukai_proto::Buffer> Peers<B> {
    /// The connection to that shard, made if need be. `None`: there are too many.
    pub(super) fn connect(
        &mut self,
        now: u64,
        source: Source,
        addresses: &[String],
        out: &mut Vec<CopyAction<B>>,
    ) -> Option<PeerId> {
        let mut known = self.open.iter_mut();
        if let Some((id, peer)) = known.find(|(_, peer)| peer.source == source) {
            peer.used_at = now;
            return Some(*id);
        }
        if self.open.len() >= PEERS_MAX {
            return None;
        }
        let id = PeerId(self.next);
        self.next += 1;
        let peer = Peer {
            source,
            stage: Stage::Connecting,
            waiting: Vec::new(),
            used_at: now,
            heard_at: now,
        };
        self.open.insert(id, peer);
        out.push(CopyAction::Connect {
            peer: id,
            source: source.node,
            addresses: addresses.to_vec(),
        });
        Some(id)
    }

    /// Send now, or when the peer is ready. A peer that is gone is noticed by its orders.
    pub(super) fn send(
        &mut self,
        now: u64,
        id: PeerId,
        frame: Frame<B>,
        out: &mut Vec<CopyAction<B>>,
    ) {
        let Some(peer) = self.open.get_mut(&id) else {
            return;
        };
        peer.used_at = now;
        if peer.stage == Stage::Ready {
            out.push(CopyAction::Send { peer: id, frame });
        } else {
            peer.waiting.push(frame);
        }
    }

    pub(super) fn opened(
        &mut self,
        identity: &ShardIdentity,
        id: PeerId,
        out: &mut Vec<CopyAction<B>>,
    ) {
        let Some(peer) = self.open.get_mut(&id) else {
            // Given up while it was being made.
            out.push(CopyAction::Close { peer: id });
            return;
        };
        if peer.stage == Stage::Connecting {
            peer.stage = Stage::Greeting;
            let hello = hello_to(identity, peer.source.node, peer.source.shard);
            let header = Header::request(Opcode::Hello, 0);
            out.push(CopyAction::Send {
                peer: id,
                frame: Frame::new(header, hello.encode(), None),
            });
        }
    }

    /// A frame came from it.
    pub(super) fn heard(&mut self, now: u64, id: PeerId) {
        if let Some(peer) = self.open.get_mut(&id) {
            peer.heard_at = now;
        }
    }

    /// When a frame last came from it, or when it was made.
    pub(super) fn heard_at(&self, id: PeerId) -> u64 {
        self.open.get(&id).map_or(0, |peer| peer.heard_at)
    }

    /// Is the peer greeted, so that its frames are answers to orders?
    pub(super) fn is_ready(&self, id: PeerId) -> bool {
        self.open
            .get(&id)
            .is_some_and(|peer| peer.stage == Stage::Ready)
    }

    /// The answer to our HELLO. `false`: it is not who it should be; give it up.
    pub(super) fn greeted(
        &mut self,
        identity: &ShardIdentity,
        id: PeerId,
        frame: &Frame<B>,
        out: &mut Vec<CopyAction<B>>,
    ) -> bool {
        let Some(peer) = self.open.get_mut(&id) else {
            return false;
        };
        let right = frame.header.opcode == Opcode::Hello
            && frame.header.status == Status::Ok
            && Hello::decode(&frame.aux).is_ok_and(|hello| {
                hello.cluster == identity.cluster
                    && hello.node == peer.source.node
                    && hello.shard == peer.source.shard
                    && hello.incarnation.boot == peer.source.boot
            });
        if right {
            peer.stage = Stage::Ready;
            let waiting = std::mem::take(&mut peer.waiting);
            out.extend(
                waiting
                    .into_iter()
                    .map(|frame| CopyAction::Send { peer: id, frame }),
            );
        }
        right
    }

    /// Forget it; `true` if it was known.
    pub(super) fn forget(&mut self, id: PeerId) -> bool {
        self.open.remove(&id).is_some()
    }

    /// Close those not used for a while.
    pub(super) fn close_idle(
        &mut self,
        now: u64,
        in_use: impl Fn(PeerId) -> bool,
        out: &mut Vec<CopyAction<B>>,
    ) {
        self.open.retain(|id, peer| {
            let idle = !in_use(*id) && now.saturating_sub(peer.used_at) >= PEER_IDLE_NS;
            if idle {
                out.push(CopyAction::Close { peer: *id });
            }
            !idle
        });
    }

    /// Close all.
    pub(super) fn close_all(&mut self, out: &mut Vec<CopyAction<B>>) {
        let all = std::mem::take(&mut self.open);
        out.extend(all.into_keys().map(|peer| CopyAction::Close { peer }));
    }
}
