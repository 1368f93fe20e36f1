//! A large volume, made up, to make a plan for: what `perf/scale` times. It is the same every time.

use super::model::Distribution;
use super::plan::{Ask, plan};
use super::problem::{Heat, Known, Node, NodeModel, Rules};
use super::target::Target;
use crate::report::HeatTold;
use ukai_meta::map::VolumeMap;
use ukai_meta::transition::{self, Change, NewVolume, STRIPES_MAX};
use ukai_meta::{Durability, LatencyPoints, PlaceRule};
use ukai_proto::heat::ChunkHeat;
use ukai_proto::limits::CHUNK_BYTES_DEFAULT;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, NodeId, VolumeId};

/// Round trip from the host to the nodes of each site, at the median, microseconds. The host is in the last one.
const SITES_US: [f64; 5] = [10_000.0, 12_000.0, 5_000.0, 1_000.0, 200.0];
/// Parts of the volume that were moved to other nodes before: a map as it is after years.
const PARTS: u32 = 1000;
/// Requests per second of the whole volume, each of reads and writes.
const REQUESTS_PER_S: f64 = 100_000.0;
/// Times which the number of a chunk, modulo their count, is its rank by use: all ranks occur, in no order, and
/// those of reads and of writes have nothing to do with each other. Primes.
const RANKS: [u64; 2] = [2_654_435_761, 3_266_489_917];
/// For how long the front has counted, and what it forgets half in.
const AGE_S: u32 = 3600;
const HALF_LIFE_S: u32 = 600;

/// The volume, its nodes and what is told of them.
pub struct Trial {
    map: VolumeMap,
    nodes: Vec<Node>,
    heat: HeatTold,
}

/// What a plan comes to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Every target is met afterwards.
    pub is_met: bool,
    /// Chunks that move.
    pub chunks_moved: u64,
    /// Ranges of the job.
    pub ranges: usize,
}

impl Trial {
    /// Two copies of each chunk in far sites, load by Zipf's law with exponent 1, scattered over all chunks.
    ///
    /// # Panics
    /// Fewer than 8 nodes a site, or fewer than 2000 chunks.
    #[must_use]
    pub fn new(chunks: u32, nodes: u8) -> Self {
        let each = usize::from(nodes) / SITES_US.len();
        assert!(each >= STRIPES_MAX, "{nodes} nodes");
        assert!(chunks >= PARTS * 2, "{chunks} chunks");
        let nodes: Vec<Node> = (0..nodes)
            .map(|at| node(at, usize::from(at) / each))
            .collect();
        Self {
            map: map(chunks, &nodes, each),
            nodes,
            heat: heat(chunks),
        }
    }

    /// Makes the plan, from what the front told.
    ///
    /// # Errors
    /// A target that is none.
    pub fn plan(&self, targets: &[String]) -> Result<Outcome, String> {
        let targets = targets.iter().map(|target| target.parse());
        let ask = Ask {
            host: "hv1".into(),
            targets: targets.collect::<Result<Vec<Target>, String>>()?,
            rules: Rules {
                keep_sites: true,
                ..Rules::default()
            },
            ..Ask::default()
        };
        let heat = Heat::told(&self.heat, self.map.chunk_count());
        let known = Known {
            nodes: self.nodes.clone(),
            heat: Some(&heat),
            written: None,
        };
        let plan = plan(&self.map, known, &ask);
        Ok(Outcome {
            is_met: plan.impossible.is_none() && plan.targets.iter().all(|fate| fate.is_met_after),
            chunks_moved: plan.chunks_moved,
            ranges: plan.goals.goals.len(),
        })
    }
}

fn node(at: u8, site: usize) -> Node {
    let median_us = SITES_US[site.min(SITES_US.len() - 1)] * (1.0 + f64::from(at % 10) / 50.0);
    // The slowest hundredth takes two to four times as long.
    let tail = |probability: f64| median_us * (0.9 + 0.1 / (1.0 - probability).max(0.03));
    let points = LatencyPoints::from_quantiles(1000, tail).expect("there are samples");
    let read = Distribution::from_points(&points);
    Node {
        id: NodeId([at + 1; 16]),
        name: format!("n{at}"),
        site: format!("site-{site}"),
        is_alive: true,
        is_draining: false,
        is_evacuated: false,
        free_bytes: 1 << 50,
        model: Some(NodeModel {
            write: read.clone(),
            read,
        }),
    }
}

/// One copy in each of the first two sites, and parts where one of them was moved to the third.
fn map(chunks: u32, nodes: &[Node], each: usize) -> VolumeMap {
    let of_site = |site: usize| {
        nodes
            .iter()
            .skip(site * each)
            .take(each)
            .map(|node| node.id)
    };
    let rule = |site: usize| PlaceRule {
        site: format!("site-{site}"),
        copies: 1,
    };
    let new = NewVolume {
        volume: VolumeId([1; 16]),
        name: "trial".into(),
        size_bytes: u64::from(chunks) * CHUNK_BYTES_DEFAULT,
        chunk_bytes: CHUNK_BYTES_DEFAULT,
        durability: Durability::Cache,
        place: vec![rule(0), rule(1)],
        nodes: vec![of_site(0).collect(), of_site(1).collect()],
    };
    let legal = "a legal change";
    let mut map = transition::create(&new).expect(legal).next;
    let third: Vec<NodeId> = of_site(2).collect();
    let part = chunks / PARTS;
    for (number, &node) in (0..PARTS).zip(third.iter().cycle()) {
        let half = ChunkRange {
            start: ChunkIndex(number * part),
            count: part / 2,
        };
        // A part may lie across the border of two stripes; each side goes on its own.
        let runs: Vec<_> = map.runs_in(half).collect();
        for (range, set) in runs {
            let from = map.set(set)[0].node;
            let steps: [&[Change]; 3] = [
                &[Change::AddLocation { range, node }],
                &[
                    Change::Promote { range, node },
                    Change::RemoveLocation {
                        range,
                        node: from,
                        min_copies: 2,
                    },
                ],
                &[Change::DropLeaving { range, node: from }],
            ];
            for step in steps {
                map = transition::apply(&map, step).expect(legal).next;
            }
        }
    }
    map
}

fn heat(chunks: u32) -> HeatTold {
    let harmonic: f64 = (1..=chunks).map(|rank| 1.0 / f64::from(rank)).sum();
    let rate = |chunk: u32, prime: u64| {
        let rank = u64::from(chunk) * prime % u64::from(chunks);
        #[allow(clippy::cast_precision_loss)] // below u32
        let rank = rank as f64;
        REQUESTS_PER_S / harmonic / (rank + 1.0)
    };
    let of = |chunk| ChunkHeat::from_rates(rate(chunk, RANKS[0]), rate(chunk, RANKS[1]), 0.0);
    HeatTold {
        age_s: AGE_S,
        half_life_s: HALF_LIFE_S,
        chunks: (0..chunks).map(of).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_forces_moves_that_meet_the_target() {
        let trial = Trial::new(20_000, 100);
        let plan = |targets: &[&str]| {
            let targets: Vec<String> = targets.iter().map(|&target| target.into()).collect();
            trial.plan(&targets)
        };
        let one = plan(&["p99-read<=2ms"]).unwrap();
        assert!(one.is_met && one.chunks_moved > 1000, "{one:?}");
        let two = plan(&["p99-read<=2ms", "p90-write<=3ms"]).unwrap();
        assert!(
            two.is_met && two.chunks_moved > one.chunks_moved / 2,
            "{two:?}"
        );
        assert!(plan(&["soon"]).is_err());
    }
}
