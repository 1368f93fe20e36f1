//! What an administrator does in several steps: moving chunks, settling a detached volume. Commands are run twice,
//! cancelled, killed in the middle, and run again.

use crate::queue::{MS, SECOND};
use crate::tally::Mark;
use crate::world::{Event, FrontIndex, World};
use rand::RngExt;
use ukai_meta::ReplicaState::{InSync, Leaving};
use ukai_meta::transition;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, NodeId};

/// A move gives up after so many looks: some node may stay away.
const LOOKS_MAX: u32 = 60;
const LOOK_EVERY: u64 = 250 * MS;
/// `synchronize` is given up after this.
const SYNCHRONIZE_MAX: u64 = 6 * SECOND;

/// Chunks on their way from one node to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    range: ChunkRange,
    from: NodeId,
    to: NodeId,
    looks: u32,
    /// The command that began it was killed.
    killed: bool,
}

/// What the next front to start is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NextFront {
    /// It speaks this version.
    pub(crate) protocol: Option<u8>,
    /// It is a `synchronize`.
    pub(crate) settles: bool,
    /// And so many before it were killed.
    pub(crate) runs: u32,
}

impl World {
    pub(crate) fn begin_move(&mut self) -> bool {
        let Some(map) = self.map.clone().filter(|_| self.moving.is_none()) else {
            return false;
        };
        let start = self.rng.random_range(0..map.chunk_count());
        let count = self.rng.random_range(1..=map.chunk_count() - start);
        let to = self.rng.random_range(0..self.nodes.len());
        if !self.nodes[to].has_run {
            return false; // never registered
        }
        let to = self.nodes[to].id;
        let set = map.replicas(ChunkIndex(start));
        let Some(from) = map.in_sync(ChunkIndex(start)).next() else {
            return false;
        };
        if set.on(to).is_some() {
            return false;
        }
        let range = ChunkRange {
            start: ChunkIndex(start),
            count,
        };
        self.say(|| format!("chunks {range:?} are to move from {from} to {to}"));
        self.moving = Some(Move {
            range,
            from,
            to,
            looks: 0,
            killed: false,
        });
        self.move_step();
        true
    }

    /// The command looks how far it is and does what is next, whoever did what was before.
    pub(crate) fn move_step(&mut self) {
        let (Some(mut job), Some(map)) = (self.moving.take(), self.map.clone()) else {
            return;
        };
        if std::mem::take(&mut job.killed) {
            self.mark(Mark::MoveResumed);
        }
        job.looks += 1;
        let Move {
            range, from, to, ..
        } = job;
        let chunks = || (range.start.0..range.start.0 + range.count).map(ChunkIndex);
        let all = |is: &dyn Fn(ChunkIndex) -> bool| chunks().all(is);
        if all(&|chunk| matches!(map.replicas(chunk).on(from), None | Some(Leaving))) {
            self.mark(Mark::Moved);
            return;
        }
        if job.looks > LOOKS_MAX {
            return;
        }
        let copies = self.swarm.copies;
        if all(&|chunk| map.replicas(chunk).on(to) == Some(InSync)) {
            let index = self.nodes.iter().position(|node| node.id == from);
            let may = index.is_none_or(|node| chunks().all(|c| self.may_be_removed(node, c)));
            if may {
                let remove = || transition::remove_location(&map, range, from, copies);
                self.command(remove);
            }
        } else if self.in_256(10) {
            self.mark(Mark::MoveCancelled);
            self.operate(transition::remove_location(&map, range, to, 1));
            return;
        } else if !all(&|chunk| map.replicas(chunk).on(to).is_some()) {
            self.command(|| transition::add_location(&map, range, to));
        }
        let mut next = self.queue.now() + LOOK_EVERY;
        if self.in_256(24) {
            job.killed = true;
            next += SECOND + self.up_to(3 * SECOND);
        }
        self.moving = Some(job);
        self.queue.push(next, Event::MoveStep);
    }

    /// Runs a command, now and then two of them at once: the second finds that the map is not what it read.
    fn command(
        &mut self,
        update: impl Fn() -> Result<transition::MapUpdate, transition::TransitionError>,
    ) {
        let done = self.operate(update());
        if done && self.in_256(64) {
            let again = self.operate(update());
            assert!(!again, "one change of the map was made twice");
            self.mark(Mark::RunTwice);
        }
    }

    /// The guest stops, the front detaches, `synchronize` runs, another host attaches.
    pub(crate) fn begin_synchronize(&mut self) -> bool {
        let begun = self.begin_hand_over();
        if begun {
            self.next_front.settles = true;
        }
        begun
    }

    /// A front starts: what becomes of one that is not like others.
    pub(crate) fn started_as(&mut self, front: FrontIndex, next: NextFront) {
        let now = self.queue.now();
        if next.protocol.is_some() {
            let at = now + SECOND / 2 + self.up_to(4 * SECOND);
            self.queue.push(at, Event::RightFront { front });
        }
        if next.settles {
            let killed = next.runs < 2 && self.in_256(128);
            let at = if killed {
                now + self.up_to(SECOND)
            } else {
                now + SYNCHRONIZE_MAX
            };
            self.fronts[front].runs = next.runs;
            self.queue
                .push(at, Event::SynchronizeEnds { front, killed });
        }
    }

    pub(crate) fn synchronize_ends(&mut self, front: FrontIndex, killed: bool) {
        let state = &mut self.fronts[front];
        if !state.alive || state.ended {
            return;
        }
        if !killed || !self.phase.has_faults() {
            // It gives the volume back as it is.
            state.settles = false;
            return;
        }
        let runs = state.runs + 1;
        let host = state.host;
        let waits = self.reissues(front);
        self.guest_left_alone(front, waits);
        self.crash_front(front);
        self.mark(Mark::SynchronizeAgain);
        self.next_front = NextFront {
            settles: true,
            runs,
            ..NextFront::default()
        };
        if self.newest_front().is_none() {
            self.replace_front(host);
        }
    }

    /// A front has detached.
    pub(crate) fn synchronized(&mut self, front: FrontIndex, well: bool) {
        if well && self.fronts[front].settles {
            self.mark(Mark::Synchronized);
        }
    }
}
