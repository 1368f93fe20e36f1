//! Faults: which kinds there are, when they come, and how each is done.
//!
//! Who may be hit is decided by `atlas`: the last valid copy of a sector is never destroyed. When all
//! nodes lose power at once (a blackout), what was flushed must survive, and the history is judged by that.

use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::world::{Event, FrontIndex, NodeIndex, World};
use rand::RngExt;
use ukai_checker::Event as Line;
use ukai_proto::ChunkIndex;

/// How likely a run has a kind of fault, and what range its mean time is drawn from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Odds {
    pub(crate) percent: u32,
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $percent:literal, $from:literal..$to:literal;)*) => {
        /// Kinds of faults.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub(crate) enum FaultKind {
            $($(#[$doc])* $name,)*
        }

        impl FaultKind {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// What people call it.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            pub(crate) fn odds(self) -> Odds {
                let (percent, from_ms, to_ms) = match self {
                    $(Self::$name => ($percent, $from, $to),)*
                };
                Odds { percent, from_ms, to_ms }
            }
        }
    };
}

kinds! {
    /// A connection breaks, half-open for a while.
    CutLink = "link cut", 50, 100..3000;
    /// One direction of a connection delivers nothing for a while.
    Clog = "link clogged", 50, 100..3000;
    /// A client gives a connection up and connects anew; its old bytes arrive all the same, later.
    LateBytes = "late bytes", 25, 200..4000;
    /// A node and all fronts cannot reach each other.
    Partition = "partition", 25, 1000..8000;
    /// One of the two directions.
    PartitionOneWay = "one-way partition", 25, 1000..8000;
    /// Two nodes cannot reach each other.
    PartitionNodes = "partition of nodes", 20, 1000..8000;
    /// A node answers late, but answers.
    SlowNode = "slow node", 20, 1000..8000;
    /// kill -9.
    CrashNode = "node crash", 50, 300..8000;
    /// A machine loses power.
    PowerCutNode = "node power cut", 45, 300..8000;
    /// A node stands still, then goes on.
    PauseNode = "node pause", 20, 1000..10_000;
    /// A node's device is replaced by a blank one; it comes back as another node.
    Wipe = "node wiped", 10, 3000..15_000;
    /// kill -9 of a front.
    CrashFront = "front crash", 45, 500..8000;
    /// A front stands still, mostly while another one takes the volume, then goes on as a zombie.
    PauseFront = "front pause", 20, 2000..12_000;
    /// A second host takes the volume while the first front lives.
    Steal = "forced attach", 20, 1000..10_000;
    /// Detached cleanly, attached elsewhere.
    HandOver = "hand-over", 15, 2000..12_000;
    /// All nodes and fronts lose power at once.
    Blackout = "blackout", 20, 1500..10_000;
    /// The metadata store cannot be reached.
    MetaOutage = "metadata outage", 35, 500..8000;
    /// The metadata servers end a session.
    SessionExpiry = "session expiry", 20, 1000..10_000;
    /// A metadata server that lags answers reads.
    StaleRead = "stale metadata reads", 25, 500..6000;
    /// An administrator adds or removes a location.
    Relocate = "relocation", 40, 300..5000;
    /// Someone who is no proper peer connects.
    Stranger = "stranger", 20, 500..8000;
    /// A sector at rest changes.
    Rot = "rot", 25, 300..5000;
    /// A sector can no longer be read, until it is written.
    BadSector = "unreadable sector", 20, 500..6000;
    /// A read fails once.
    ReadError = "read error", 20, 300..5000;
    /// A write fails once.
    WriteError = "write error", 12, 1000..10_000;
    /// A sync fails.
    FlushError = "flush error", 10, 2000..12_000;
    /// A write went to another sector's place.
    MisdirectedWrite = "misdirected write", 15, 500..6000;
    /// A read comes from another sector's place.
    MisdirectedRead = "misdirected read", 15, 500..6000;
    /// A device answers nothing for a while.
    Hang = "device hang", 15, 1000..10_000;
    /// A device takes nothing new for a while: ENOSPC, as from a thin file on a full file system.
    DeviceFull = "device full", 30, 500..6000;
    /// A node's process is started in another protocol version, later in the right one.
    OtherNode = "node of another version", 25, 1500..10_000;
    /// The same with a front, after a crash of the one that served.
    OtherFront = "front of another version", 20, 3000..15_000;
    /// One host reaches no node, or some, perhaps not the metadata store either; perhaps another host attaches.
    PartitionHost = "partition of a host", 30, 2000..12_000;
    /// An administrator moves chunks in steps; the command may be run twice, cancelled, or killed and run again.
    Move = "move", 35, 500..5000;
    /// Detached; then `synchronize` runs (may be killed and run again), then another host attaches.
    Synchronize = "synchronize", 25, 3000..15_000;
}

impl FaultKind {
    /// Kinds that came later are drawn from a stream of their own: seeds that do not have them stay what they were.
    pub(crate) fn is_later(self) -> bool {
        self >= Self::DeviceFull
    }
}

impl World {
    pub(crate) fn schedule_faults(&mut self) {
        for kind in FaultKind::ALL {
            self.schedule_fault(*kind);
        }
    }

    fn schedule_fault(&mut self, kind: FaultKind) {
        if let Some(mean) = self.swarm.faults.get(&kind).copied() {
            let at = self.queue.now() + 1 + self.up_to(2 * mean);
            self.queue.push(at, Event::Fault(kind));
        }
    }

    pub(crate) fn fault(&mut self, kind: FaultKind) {
        if !self.phase.has_faults() {
            return;
        }
        self.schedule_fault(kind);
        if self.inflict(kind) {
            self.faults.hit(kind.name());
        }
    }

    /// `false`: there was nothing to hit, or it would have been the last good copy.
    fn inflict(&mut self, kind: FaultKind) -> bool {
        match kind {
            FaultKind::CutLink => self.any_link().is_some_and(|link| {
                self.cut_link(link);
                true
            }),
            FaultKind::Clog => self.any_link().is_some_and(|link| {
                let to_node = self.in_256(128);
                let long = if self.in_256(64) { 8000 } else { 800 };
                let for_ns = self.up_to(long * MS);
                self.clog_link(link, to_node, for_ns);
                true
            }),
            FaultKind::LateBytes => self.any_link().is_some_and(|link| self.late_bytes(link)),
            FaultKind::Partition | FaultKind::PartitionOneWay => {
                let both = kind == FaultKind::Partition;
                self.any_dispensable_node()
                    .is_some_and(|node| self.partition_node(node, both))
            }
            FaultKind::PartitionNodes => self.partition_nodes(),
            FaultKind::SlowNode => self
                .any_dispensable_node()
                .is_some_and(|node| self.slow_node(node)),
            FaultKind::CrashNode => {
                let away = MS + self.up_to(self.swarm.node_away_ns);
                self.crash_any_node(away)
            }
            FaultKind::PowerCutNode => self.any_running_node().is_some_and(|node| {
                self.may_lose_power(node) && {
                    self.power_cut_node(node);
                    self.restart_later(node);
                    true
                }
            }),
            FaultKind::PauseNode => self
                .any_dispensable_node()
                .is_some_and(|node| self.pause_node(node)),
            FaultKind::Wipe => self.wipe_any_node(),
            FaultKind::CrashFront => self.crash_the_front(),
            FaultKind::PauseFront => self.pause_the_front(),
            FaultKind::Steal => self.serving_front().is_some_and(|front| {
                let host = self.fronts[front].host + 1;
                let now = self.queue.now();
                self.queue
                    .push(now, Event::FrontStart { host, force: true });
                true
            }),
            FaultKind::HandOver => self.begin_hand_over(),
            FaultKind::Blackout => self.blackout(),
            FaultKind::MetaOutage => {
                !self.meta_down && {
                    let for_ns = self.up_to(6000 * MS);
                    self.meta_outage(for_ns);
                    true
                }
            }
            FaultKind::SessionExpiry => self.expire_a_session(),
            FaultKind::StaleRead => self.lag_reads(),
            FaultKind::Relocate => self.relocate(),
            FaultKind::Stranger => self.stranger_comes(),
            FaultKind::Rot => self.rot_a_sector(),
            FaultKind::BadSector => self.break_a_sector(),
            FaultKind::MisdirectedWrite => self.misdirect_a_write(),
            FaultKind::ReadError
            | FaultKind::WriteError
            | FaultKind::FlushError
            | FaultKind::MisdirectedRead => self.plan_device_error(kind),
            FaultKind::Hang => self
                .any_dispensable_node()
                .is_some_and(|node| self.hang_device(node)),
            FaultKind::DeviceFull => self.fill_a_device(),
            FaultKind::OtherNode => self.restart_in_other_version(),
            FaultKind::OtherFront => self.front_of_other_version(),
            FaultKind::PartitionHost => self.partition_host(),
            FaultKind::Move => self.begin_move(),
            FaultKind::Synchronize => self.begin_synchronize(),
        }
    }

    /// A connection whose loss endangers nothing.
    fn any_link(&mut self) -> Option<u64> {
        let count = self.links.len();
        let index = self.rng.random_range(0..count.max(1));
        let (id, link) = self.links.iter().nth(index)?;
        let (id, node) = (*id, link.node);
        self.may_be_away(node).then_some(id)
    }

    pub(crate) fn any_running_node(&mut self) -> Option<NodeIndex> {
        let index = self.rng.random_range(0..self.nodes.len());
        self.nodes[index].process.is_some().then_some(index)
    }

    /// A running node without which the others have everything.
    pub(crate) fn any_dispensable_node(&mut self) -> Option<NodeIndex> {
        self.any_running_node()
            .filter(|node| self.may_be_away(*node))
    }

    /// The newest front, if it serves guests and runs.
    pub(crate) fn serving_front(&self) -> Option<usize> {
        let now = self.queue.now();
        self.newest_front().filter(|front| {
            let front = &self.fronts[*front];
            front.ready && !front.leaving && front.paused_until <= now
        })
    }

    pub(crate) fn crash_the_front(&mut self) -> bool {
        let Some(front) = self.newest_front() else {
            return false;
        };
        self.crash_front(front);
        // Of two guests whose fronts died, one is lost with its host.
        let stays = self.reissues(front);
        self.guest_left_alone(front, stays);
        let host = self.fronts[front].host;
        let host = if stays || self.in_256(128) {
            host
        } else {
            host + 1
        };
        self.replace_front(host);
        // Rarely does one thing fail alone: what the front was doing is on some nodes only, and the next
        // front has to go on without one of them.
        if self.swarm.has(FaultKind::CrashNode) && self.in_256(128) {
            let away = 6 * SECOND + self.up_to(6 * SECOND);
            if self.crash_any_node(away) {
                self.faults.hit(FaultKind::CrashNode.name());
            }
        }
        true
    }

    /// Are the requests of a front that dies issued again? If it was fenced meanwhile, their intervals are over.
    pub(crate) fn reissues(&self, front: FrontIndex) -> bool {
        let token = self.load_map().map(|map| map.head.token.0);
        self.swarm.reissue
            && self.fronts[front].ready
            && token == Some(self.fronts[front].token)
            && !self.has_orphans()
    }

    /// Crashes a node, unless it has what another one lacks.
    fn crash_any_node(&mut self, away_ns: u64) -> bool {
        let Some(node) = self.any_dispensable_node() else {
            return false;
        };
        if self.is_fragile(node) {
            return false;
        }
        self.crash_node(node);
        let at = self.queue.now() + away_ns;
        self.troubled(node, at);
        self.queue.push(at, Event::NodeStart { node });
        true
    }

    fn blackout(&mut self) -> bool {
        if (0..self.nodes.len()).any(|node| self.is_fragile(node)) || self.is_damage_overwritten() {
            return false;
        }
        self.say(|| "blackout".into());
        for front in 0..self.fronts.len() {
            if self.fronts[front].alive {
                self.crash_front(front);
                self.guest_left_alone(front, false);
            }
        }
        self.forget_orphans();
        self.guest.record(|t| Line::PowerCut { t });
        for node in 0..self.nodes.len() {
            self.power_cut_node(node);
            self.restart_later(node);
            // What is lost now may be lost: the history says so.
            self.nodes[node].suspect_since = None;
        }
        let host = self.fronts.len();
        self.replace_front(host);
        true
    }

    pub(crate) fn mark(&self, mark: Mark) {
        self.marks.borrow_mut().hit(mark.name());
    }

    pub(crate) fn chunk_of(&self, sector: u64) -> ChunkIndex {
        let chunk = sector * 4096 / self.swarm.chunk_bytes;
        ChunkIndex(u32::try_from(chunk).unwrap_or(u32::MAX))
    }
}
