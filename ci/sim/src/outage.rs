//! Faults between processes and of whole processes: partitions, slow nodes, late bytes, pauses.

use crate::front::Conn;
use crate::net::{Client, Ending, LinkId};
use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::world::{Event, FrontIndex, NodeIndex, World};
use rand::RngExt;

/// An end of a network path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// All hosts of fronts.
    Fronts,
    /// One host.
    Host(usize),
    Node(NodeIndex),
}

impl End {
    fn covers(self, other: Self) -> bool {
        self == other || matches!((self, other), (Self::Fronts, Self::Host(_)))
    }
}

/// A direction in which nothing gets through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    from: End,
    to: End,
    until: u64,
}

impl World {
    /// Until when nothing gets from one end to the other; `None`: it does.
    fn blocked_until(&self, from: End, to: End) -> Option<u64> {
        let now = self.queue.now();
        self.blocks
            .iter()
            .filter(|block| block.until > now && block.from.covers(from) && block.to.covers(to))
            .map(|block| block.until)
            .max()
    }

    fn end_of(&self, client: Client) -> Option<End> {
        match client {
            Client::Front { front, .. } => Some(End::Host(self.fronts[front].host)),
            Client::Peer { node, .. } => Some(End::Node(node)),
            Client::Inspector | Client::Scrub { .. } | Client::Stranger => None,
        }
    }

    /// When what is sent now between a client and a node may arrive at the earliest.
    pub(crate) fn passes_at(&self, client: Client, node: NodeIndex, to_node: bool) -> u64 {
        let now = self.queue.now();
        if self.blocks.is_empty() {
            return now;
        }
        let Some(end) = self.end_of(client) else {
            return now;
        };
        let (from, to) = if to_node {
            (end, End::Node(node))
        } else {
            (End::Node(node), end)
        };
        self.blocked_until(from, to).unwrap_or(now)
    }

    /// Can a connection be made?
    pub(crate) fn is_reachable(&self, client: Client, node: NodeIndex) -> bool {
        let now = self.queue.now();
        [true, false]
            .iter()
            .all(|to_node| self.passes_at(client, node, *to_node) == now)
    }

    fn block(&mut self, from: End, to: End, until: u64) {
        let now = self.queue.now();
        self.blocks.retain(|block| block.until > now);
        self.blocks.push(Block { from, to, until });
    }

    fn partition_ns(&mut self) -> u64 {
        let long = if self.in_256(64) { 12_000 } else { 2500 };
        self.up_to(long * MS)
    }

    /// No front reaches the node, or nothing comes back from it, or both.
    pub(crate) fn partition_node(&mut self, node: NodeIndex, both: bool) -> bool {
        let until = self.queue.now() + self.partition_ns();
        let from_node = self.in_256(128);
        self.say(|| format!("n{node} is cut off from fronts, both ways: {both}"));
        if both || from_node {
            self.block(End::Node(node), End::Fronts, until);
        }
        if both || !from_node {
            self.block(End::Fronts, End::Node(node), until);
        }
        self.troubled(node, until);
        true
    }

    /// No front and the node reach each other until then.
    pub(crate) fn cut_node(&mut self, node: NodeIndex, until: u64) {
        self.block(End::Node(node), End::Fronts, until);
        self.block(End::Fronts, End::Node(node), until);
        self.troubled(node, until);
    }

    pub(crate) fn partition_nodes(&mut self) -> bool {
        let count = self.nodes.len();
        let (one, other) = (
            self.rng.random_range(0..count),
            self.rng.random_range(0..count),
        );
        if one == other {
            return false;
        }
        let until = self.queue.now() + self.partition_ns();
        self.say(|| format!("n{one} does not reach n{other}"));
        self.block(End::Node(one), End::Node(other), until);
        if self.in_256(128) {
            self.block(End::Node(other), End::Node(one), until);
        }
        true
    }

    /// The host of the front reaches no node, or lacks one, perhaps the metadata store as well.
    pub(crate) fn partition_host(&mut self) -> bool {
        let Some(front) = self.serving_front() else {
            return false;
        };
        let count = self.nodes.len();
        let one = self.rng.random_range(0..count);
        let all = self.in_256(128);
        let nodes: Vec<NodeIndex> = (0..count).filter(|node| all || *node == one).collect();
        if !nodes.iter().all(|node| self.may_be_away(*node)) {
            return false;
        }
        let (now, host) = (self.queue.now(), self.fronts[front].host);
        let until = now + self.partition_ns();
        self.say(|| format!("h{host} does not reach nodes {nodes:?}"));
        for node in nodes {
            self.block(End::Node(node), End::Host(host), until);
            self.block(End::Host(host), End::Node(node), until);
            self.troubled(node, until);
        }
        if self.in_256(128) {
            self.fronts[front].meta.set_unavailable(true);
            self.queue.push(until, Event::HostHeal { front });
        }
        if self.in_256(128) {
            self.mark(Mark::HostReplaced);
            let (at, host) = (now + self.up_to(until - now), host + 1);
            self.queue.push(at, Event::FrontStart { host, force: true });
        }
        true
    }

    pub(crate) fn slow_node(&mut self, node: NodeIndex) -> bool {
        let until = self.queue.now() + self.up_to(5 * SECOND);
        self.nodes[node].slow_until = until;
        self.say(|| format!("n{node} is slow"));
        self.troubled(node, until);
        true
    }

    /// What a slow node adds to each delay.
    pub(crate) fn slowness(&mut self, node: NodeIndex) -> u64 {
        if self.nodes[node].slow_until > self.queue.now() {
            self.up_to(300 * MS)
        } else {
            0
        }
    }

    /// What a front sends from now on arrives seconds later; the front meanwhile gives the connection up,
    /// makes another one and sends the same again.
    pub(crate) fn late_bytes(&mut self, link: LinkId) -> bool {
        let Some(state) = self.links.get(&link).copied() else {
            return false;
        };
        if !matches!(
            state.client,
            Client::Front {
                conn: Conn::Lane(_),
                ..
            }
        ) {
            return false;
        }
        let now = self.queue.now();
        let hold = self.up_to(2 * SECOND);
        let gives_up = now + self.up_to(hold);
        self.clog_link(link, true, hold);
        let ending = Ending {
            to_node_until: now + hold,
            to_client_until: now,
            node_learns: Some(now + hold + self.up_to(SECOND)),
            client_learns: Some(gives_up),
        };
        self.end_link(link, ending);
        self.troubled(state.node, now + hold);
        true
    }

    pub(crate) fn pause_node(&mut self, node: NodeIndex) -> bool {
        let long = if self.in_256(64) { 12_000 } else { 2000 };
        let until = self.queue.now() + self.up_to(long * MS);
        self.say(|| format!("n{node} stands still for a while"));
        self.nodes[node].paused_until = until;
        self.troubled(node, until);
        true
    }

    /// SIGSTOP, mostly with a successor before SIGCONT.
    pub(crate) fn pause_the_front(&mut self) -> bool {
        let Some(front) = self.serving_front() else {
            return false;
        };
        let now = self.queue.now();
        let long = if self.in_256(128) { 12_000 } else { 3000 };
        let until = now + self.up_to(long * MS);
        self.say(|| format!("front f{front} stands still for a while"));
        self.fronts[front].paused_until = until;
        if self.in_256(192) {
            let host = self.fronts[front].host + 1;
            let at = now + self.up_to(until - now);
            self.queue.push(at, Event::FrontStart { host, force: true });
        }
        true
    }

    /// Until when what the event is for stands still.
    pub(crate) fn paused_until(&self, event: &Event) -> Option<u64> {
        let front = |front: FrontIndex| self.fronts[front].paused_until;
        let node = |node: NodeIndex| self.nodes[node].paused_until;
        let until = match event {
            Event::Frame { link, to_node, .. } | Event::LinkClosed { link, to_node } => {
                let link = self.links.get(link)?;
                match link.client {
                    _ if *to_node => node(link.node),
                    Client::Front { front: f, .. } => front(f),
                    Client::Peer { node: n, .. } => node(n),
                    Client::Inspector | Client::Scrub { .. } | Client::Stranger => 0,
                }
            }
            Event::DiskDone { node: n, .. } => node(*n).max(self.nodes[*n].hung_until),
            Event::PeerConnect { node: n, .. }
            | Event::ConnOpened { node: n, .. }
            | Event::NodeTurn { node: n, .. }
            | Event::NodeTick { node: n, .. }
            | Event::ShardWake { node: n, .. } => node(*n),
            Event::Connect { front: f, .. }
            | Event::Order { front: f, .. }
            | Event::Report { front: f, .. }
            | Event::FrontTick { front: f }
            | Event::MetaAnswer { front: f, .. }
            | Event::MapChanged { front: f }
            | Event::JobChanged { front: f }
            | Event::GuestNext { front: f, .. } => front(*f),
            _ => 0,
        };
        (until > self.queue.now()).then_some(until)
    }
}
