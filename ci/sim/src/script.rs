//! Scenarios: faults at given moments, instead of those that a seed draws. What a seed decides here is only what
//! the faults meet: sizes of requests, delays, order. So a bug that was found once stays found when draws change.

use crate::queue::MS;
use crate::swarm::Swarm;
use crate::world::{Event, World};
use crate::{Options, Outcome, run_world};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use ukai_meta::transition;
use ukai_proto::ChunkIndex;
use ukai_proto::message::ChunkRange;

/// Something that happens. Nodes are numbered from 0; replicas of every chunk are first on the first ones.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// kill -9 of a node, which stays away for so long.
    CrashNode(usize, u64),
    /// A node's machine loses power and stays away for so long.
    PowerCut(usize, u64),
    /// kill -9 of the front; its requests are issued again to the next one.
    CrashFront,
    /// The front stands still for so long.
    PauseFront(u64),
    /// Another host takes the volume.
    Successor,
    /// Fronts and a node cannot reach each other for so long.
    CutNode(usize, u64),
    /// An administrator adds a location for the whole volume.
    Add(usize),
    /// Or removes it.
    Remove(usize),
    /// The next transactions of fronts land, but nobody is told.
    LoseAnswers(u32),
    /// The next write at a node's device fails.
    FailWrite(usize),
    /// A sector of the guest's rots on a node.
    Rot(usize),
    /// A node's device takes nothing new for so long.
    DeviceFull(usize, u64),
    /// The metadata store cannot be reached for so long.
    MetaOutage(u64),
    /// The guest stops, the front detaches, another host attaches.
    HandOver,
}

/// A cluster with one volume, and what happens to it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Nodes.
    pub nodes: usize,
    /// Replicas of each chunk.
    pub copies: u8,
    /// Slots per shard of nodes that are too small.
    pub slots: Vec<Option<u64>>,
    /// Guest requests.
    pub requests: u64,
    /// When, in milliseconds, and what.
    pub steps: Vec<(u64, Step)>,
}

/// Runs a scenario once, under the delays and requests that `seed` stands for.
#[must_use]
pub fn run_scenario(scenario: &Scenario, seed: u64, options: Options) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut swarm = Swarm::draw(&mut rng, &mut ChaCha8Rng::seed_from_u64(seed));
    swarm.nodes = scenario.nodes;
    swarm.copies = scenario.copies;
    swarm.requests = scenario.requests;
    swarm.small.clone_from(&scenario.slots);
    swarm.faults.clear();
    swarm.meta_unknown_in_256 = 0;
    swarm.lost_watch_in_256 = 0;
    swarm.isolated_refuse = false;
    swarm.reissue = true;
    run_world(rng, swarm, None, options, &scenario.steps)
}

impl World {
    pub(crate) fn schedule_steps(&mut self, steps: &[(u64, Step)]) {
        for (at_ms, step) in steps {
            self.queue.push(at_ms * MS, Event::Step(*step));
        }
    }

    pub(crate) fn step(&mut self, step: Step) {
        if !self.phase.has_faults() {
            return;
        }
        let now = self.queue.now();
        self.say(|| format!("{step:?}"));
        match step {
            Step::CrashNode(node, away_ms) | Step::PowerCut(node, away_ms) => {
                if matches!(step, Step::PowerCut(..)) {
                    self.power_cut_node(node);
                } else {
                    self.crash_node(node);
                }
                let at = now + away_ms * MS;
                self.troubled(node, at);
                self.queue.push(at, Event::NodeStart { node });
            }
            Step::CrashFront => {
                self.crash_the_front();
            }
            Step::PauseFront(for_ms) => {
                if let Some(front) = self.serving_front() {
                    self.fronts[front].paused_until = now + for_ms * MS;
                }
            }
            Step::Successor => {
                let host = self.fronts.len();
                self.queue
                    .push(now, Event::FrontStart { host, force: true });
            }
            Step::CutNode(node, for_ms) => self.cut_node(node, now + for_ms * MS),
            Step::Add(node) | Step::Remove(node) => {
                let Some(map) = self.map.clone() else { return };
                let node = self.nodes[node].id;
                let range = ChunkRange {
                    start: ChunkIndex(0),
                    count: map.chunk_count(),
                };
                self.operate(if matches!(step, Step::Add(_)) {
                    transition::add_location(&map, range, node)
                } else {
                    transition::remove_location(&map, range, node, 1)
                });
            }
            Step::LoseAnswers(count) => self.answers_lost = count,
            Step::FailWrite(node) => self.nodes[node].planned.write = true,
            Step::Rot(node) => {
                self.rot_on(node);
            }
            Step::DeviceFull(node, for_ms) => {
                self.nodes[node].device_full_until = now + for_ms * MS;
            }
            Step::MetaOutage(for_ms) => self.meta_outage(for_ms * MS),
            Step::HandOver => {
                self.begin_hand_over();
            }
        }
    }
}
