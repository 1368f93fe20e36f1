//! Connections: what is sent arrives in order, late, or not at all after a cut.
//!
//! Different connections know nothing of each other's order. A clogged direction delivers nothing for a
//! while (packet loss, seen from TCP); a cut loses everything after some point of either stream, and
//! each end learns of it in its own time (half-open in between).

use crate::front::Conn;
use crate::world::{Event, FrontIndex, NodeIndex, World};
use rand::RngExt;
use ublk_front::core::api::PeerIndex;
use ukai_proto::Frame;
use ukai_proto::decode::VecDecoder;

/// Number of a connection; never reused.
pub(crate) type LinkId = u64;

/// Who opened it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Client {
    /// A front.
    Front {
        front: FrontIndex,
        conn: Conn,
        peer: PeerIndex,
    },
    /// A node's copy engine.
    Peer {
        node: NodeIndex,
        epoch: u64,
        shard: u16,
        peer: u64,
    },
    /// The final comparison.
    Inspector,
    /// Looks for damage.
    Scrub {
        /// Of the volume.
        sector: u64,
    },
    /// No proper peer.
    Stranger,
}

/// One direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direction {
    last: u64,
    clogged_until: u64,
    /// Nothing arrives after it.
    until: u64,
    /// The receiving end knows that it is closed.
    told: bool,
}

impl Direction {
    const OPEN: Self = Self {
        last: 0,
        clogged_until: 0,
        until: u64::MAX,
        told: false,
    };
}

/// A connection to a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) node: NodeIndex,
    pub(crate) epoch: u64,
    pub(crate) shard: u16,
    to_node: Direction,
    to_client: Direction,
}

impl Link {
    fn direction(&mut self, to_node: bool) -> &mut Direction {
        if to_node {
            &mut self.to_node
        } else {
            &mut self.to_client
        }
    }
}

/// When and how both ends learn that a connection is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Frames that would arrive at the node later are lost.
    pub(crate) to_node_until: u64,
    /// The same, at the client.
    pub(crate) to_client_until: u64,
    pub(crate) node_learns: Option<u64>,
    pub(crate) client_learns: Option<u64>,
}

impl World {
    /// Opens a connection, if someone listens.
    pub(crate) fn open_link(
        &mut self,
        client: Client,
        node: NodeIndex,
        shard: u16,
    ) -> Option<LinkId> {
        let epoch = self.nodes[node].epoch;
        self.nodes[node].process.as_ref()?;
        if !self.is_reachable(client, node) {
            return None;
        }
        let id = self.next_link;
        self.next_link += 1;
        let link = Link {
            client,
            node,
            epoch,
            shard,
            to_node: Direction::OPEN,
            to_client: Direction::OPEN,
        };
        self.links.insert(id, link);
        let paused_until = self.nodes[node].paused_until;
        if paused_until > self.queue.now() {
            // The kernel accepts; the process sees it later.
            let opened = Event::ConnOpened {
                node,
                epoch,
                shard,
                link: id,
            };
            self.queue.push(paused_until, opened);
        } else {
            self.conn_opened(node, shard, id);
        }
        Some(id)
    }

    /// Puts a frame on the wire.
    pub(crate) fn transmit(&mut self, link: LinkId, to_node: bool, frame: Frame<Vec<u8>>) {
        let now = self.queue.now();
        let delay = self.swarm.net_delay_ns / 20 + self.up_to(self.swarm.net_delay_ns);
        let Some(Link { client, node, .. }) = self.links.get(&link).copied() else {
            return;
        };
        let passes = self.passes_at(client, node, to_node);
        let delay = delay + self.slowness(node);
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let direction = state.direction(to_node);
        if direction.told {
            return;
        }
        let at = (now.max(passes) + delay)
            .max(direction.last)
            .max(direction.clogged_until);
        direction.last = at;
        let frame = if self.in_256(self.swarm.recode_in_256) {
            self.recode(frame)
        } else {
            frame
        };
        self.queue.push(
            at,
            Event::Frame {
                link,
                to_node,
                frame: Box::new(frame),
            },
        );
    }

    /// Through bytes and back, cut anywhere.
    fn recode(&mut self, frame: Frame<Vec<u8>>) -> Frame<Vec<u8>> {
        let bytes = frame.to_bytes();
        let mut decoder = VecDecoder::default();
        let mut out = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(self.rng.random_range(1..=rest.len()));
            rest = tail;
            let fed = decoder.feed(piece, &mut out);
            assert!(
                fed.is_ok(),
                "a frame that a core made does not decode: {fed:?}"
            );
        }
        assert_eq!(out.len(), 1, "one frame in, one frame out");
        out.remove(0)
    }

    pub(crate) fn frame_arrives(&mut self, id: LinkId, to_node: bool, frame: Frame<Vec<u8>>) {
        let now = self.queue.now();
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let direction = *link.direction(to_node);
        let link = *link;
        if now > direction.until || direction.told {
            return;
        }
        self.trace.mix(id << 1 | u64::from(to_node));
        self.trace.bytes(&frame.header.encode());
        if to_node {
            if self.refuses_version(id, &link, &frame) {
                return;
            }
            if self.nodes[link.node].epoch == link.epoch {
                self.node_frame(link.node, link.shard, id, frame);
            }
            return;
        }
        match link.client {
            Client::Front { front, conn, peer } => self.front_frame(front, conn, peer, id, frame),
            Client::Peer {
                node,
                epoch,
                shard,
                peer,
            } => self.peer_frame(node, epoch, shard, peer, frame),
            Client::Inspector => self.inspected(id, frame),
            Client::Scrub { sector } => self.scrubbed(id, link.node, sector, &frame),
            Client::Stranger => self.stranger_answered(id, link.node, &frame.header),
        }
    }

    /// Ends a connection.
    pub(crate) fn end_link(&mut self, id: LinkId, ending: Ending) {
        let Some(Link { client, node, .. }) = self.links.get(&id).copied() else {
            return;
        };
        // The news of it is stopped by a partition like everything else.
        let node_hears = self.passes_at(client, node, true);
        let client_hears = self.passes_at(client, node, false);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.to_node.until = link.to_node.until.min(ending.to_node_until);
        link.to_client.until = link.to_client.until.min(ending.to_client_until);
        if let Some(at) = ending.node_learns {
            self.queue.push(
                at.max(node_hears),
                Event::LinkClosed {
                    link: id,
                    to_node: true,
                },
            );
        }
        if let Some(at) = ending.client_learns {
            self.queue.push(
                at.max(client_hears),
                Event::LinkClosed {
                    link: id,
                    to_node: false,
                },
            );
        }
    }

    pub(crate) fn link_closed(&mut self, id: LinkId, to_node: bool) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let direction = link.direction(to_node);
        if direction.told {
            return;
        }
        direction.told = true;
        let link = *link;
        if link.to_node.told && link.to_client.told {
            self.links.remove(&id);
        }
        self.trace.mix(id << 1 | u64::from(to_node));
        if to_node {
            if self.nodes[link.node].epoch == link.epoch {
                self.conn_closed(link.node, link.shard, id);
            }
            return;
        }
        match link.client {
            Client::Front { front, conn, peer } => self.front_link_closed(front, conn, peer, id),
            Client::Peer {
                node,
                epoch,
                shard,
                peer,
            } => self.peer_closed(node, epoch, shard, peer),
            Client::Inspector => self.inspector_closed(),
            Client::Scrub { .. } | Client::Stranger => {}
        }
    }

    fn link_name(&self, id: LinkId) -> String {
        self.links.get(&id).map_or_else(
            || format!("link {id}"),
            |link| {
                format!(
                    "link {id} of {:?} to n{} shard {}",
                    link.client, link.node, link.shard
                )
            },
        )
    }

    /// The network cuts a connection: a random part of what is under way still arrives.
    pub(crate) fn cut_link(&mut self, id: LinkId) {
        let now = self.queue.now();
        self.say(|| format!("cut of {}", self.link_name(id)));
        let endangered = self.links.get(&id).map(|link| link.node);
        let (lost_in, lost_out) = (
            self.up_to(self.swarm.net_delay_ns),
            self.up_to(self.swarm.net_delay_ns),
        );
        let late = if self.in_256(64) {
            3_000_000_000
        } else {
            50_000_000
        };
        let (node_learns, client_learns) = (self.up_to(late), self.up_to(late));
        if let Some(node) = endangered {
            self.troubled(node, now + late);
        }
        self.end_link(
            id,
            Ending {
                to_node_until: now + lost_in,
                to_client_until: now + lost_out,
                node_learns: Some(now + lost_in + node_learns),
                client_learns: Some(now + lost_out + client_learns),
            },
        );
    }

    /// Nothing gets through in one direction for a while.
    pub(crate) fn clog_link(&mut self, id: LinkId, to_node: bool, for_ns: u64) {
        let until = self.queue.now() + for_ns;
        self.say(|| {
            let way = if to_node { "to" } else { "from" };
            format!(
                "{} is clogged {way} the node for {} ms",
                self.link_name(id),
                for_ns / 1_000_000
            )
        });
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let direction = link.direction(to_node);
        direction.clogged_until = direction.clogged_until.max(until);
        let node = link.node;
        self.troubled(node, until);
    }

    /// One end closes after what it has sent.
    pub(crate) fn close_from(&mut self, id: LinkId, by_node: bool) {
        let now = self.queue.now();
        let delay = self.up_to(self.swarm.net_delay_ns);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let sent = link.direction(!by_node).last.max(now);
        // What the other end sends from here on is not read any more.
        let ending = if by_node {
            Ending {
                to_node_until: now,
                to_client_until: sent,
                node_learns: None,
                client_learns: Some(sent + delay),
            }
        } else {
            Ending {
                to_node_until: sent,
                to_client_until: now,
                node_learns: Some(sent + delay),
                client_learns: None,
            }
        };
        link.direction(by_node).told = true;
        self.end_link(id, ending);
    }
}
