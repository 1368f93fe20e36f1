//! What latency a volume has when its chunks lie as a search state says.

use super::cover::{Cover, Piece};
use super::model::{Distribution, quantile_of};
use super::problem::{NodeIndex, Problem};
use super::target::{Kind, Percentile};
use serde::Serialize;
use std::collections::HashMap;
use ukai_meta::job::{Percentiles, Tail};

/// Shares of a volume's requests by where they are served.
#[derive(Clone, Debug)]
pub(crate) struct Outlook<'a> {
    problem: &'a Problem,
    /// By node that reads come from.
    reads: Vec<(f64, NodeIndex)>,
    /// By nodes that a write waits for.
    writes: Vec<(f64, Vec<NodeIndex>)>,
}

/// A share of the requests and what it is about.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct SiteShare {
    pub(crate) site: String,
    pub(crate) reads: f64,
}

/// Sites that less than this of the reads come from are not named.
const SHARE_SHOWN_MIN: f64 = 5e-5;

impl<'a> Outlook<'a> {
    /// The volume as it is.
    pub(crate) fn now(problem: &'a Problem) -> Self {
        let load = problem.classes.iter().map(|class| {
            let set = &problem.sets[class.set as usize];
            (class, class.chunks, set.in_sync.as_slice())
        });
        Self::of(problem, load)
    }

    /// The volume as `cover` would have it.
    pub(crate) fn after(cover: &'a Cover<'_>) -> Self {
        Self::after_seen_by(cover.problem, cover)
    }

    /// The same by the latencies of `other`, which has the same nodes.
    pub(crate) fn after_seen_by(other: &'a Problem, cover: &Cover<'_>) -> Self {
        let problem = cover.problem;
        let load = cover.pieces.iter().map(|piece: &Piece| {
            let in_sync = cover.choices[piece.choice].in_sync.as_slice();
            (&problem.classes[piece.class], piece.chunks, in_sync)
        });
        Self::of(other, load)
    }

    fn of<'b>(
        problem: &'a Problem,
        load: impl Iterator<Item = (&'b super::problem::Class, u64, &'b [NodeIndex])>,
    ) -> Self {
        let mut sets: HashMap<&[NodeIndex], [f64; 2]> = HashMap::new();
        for (class, chunks, in_sync) in load {
            #[allow(clippy::cast_precision_loss)] // chunks are counted in u32
            let chunks = chunks as f64;
            let sum = sets.entry(in_sync).or_default();
            sum[0] += class.read * chunks;
            sum[1] += class.write * chunks;
        }
        let mut reads: HashMap<NodeIndex, f64> = HashMap::new();
        for (in_sync, load) in &sets {
            *reads.entry(problem.reader(in_sync)).or_default() += load[0];
        }
        let mut reads: Vec<(f64, NodeIndex)> =
            reads.into_iter().map(|(node, load)| (load, node)).collect();
        // Sums of shares must not depend on the order of a hash map.
        reads.sort_by_key(|(_, node)| *node);
        let mut writes: Vec<(f64, Vec<NodeIndex>)> = sets
            .into_iter()
            .map(|(set, load)| (load[1], set.to_vec()))
            .collect();
        writes.sort_by(|a, b| a.1.cmp(&b.1));
        Self {
            problem,
            reads,
            writes,
        }
    }

    /// Whether the latency of every node that matters is known.
    pub(crate) fn is_known(&self) -> bool {
        let mut nodes = self.writes.iter().flat_map(|(_, set)| set);
        nodes.all(|node| self.problem.node(*node).model.is_some())
    }

    /// Share of the requests that are done within `us`.
    pub(crate) fn share_within(&self, kind: Kind, us: f64) -> f64 {
        let model = |node: NodeIndex, us: f64| {
            let model = self.problem.node(node).model.as_ref();
            model.map_or(0.0, |model| model.of(kind).share_within(us))
        };
        match kind {
            Kind::Read => self
                .reads
                .iter()
                .map(|(load, node)| load * model(*node, us))
                .sum(),
            Kind::Write => {
                let nodes: Vec<f64> = (0..)
                    .zip(&self.problem.nodes)
                    .map(|(at, _)| model(at, us))
                    .collect();
                let of = |set: &[NodeIndex]| -> f64 {
                    let shares = set.iter().map(|node| nodes[usize::from(*node)]);
                    self.problem.dependence.all(shares)
                };
                self.writes.iter().map(|(load, set)| load * of(set)).sum()
            }
        }
    }

    /// Latency within which a share of `probability` is done, microseconds.
    pub(crate) fn quantile(&self, kind: Kind, probability: f64) -> f64 {
        quantile_of(probability, |us| self.share_within(kind, us))
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let tail = |kind| {
            let [p50_us, p99_us, p999_us] =
                Percentile::SHOWN.map(|p| self.quantile(kind, p.probability()));
            Tail {
                p50_us,
                p99_us,
                p999_us,
            }
        };
        Percentiles {
            read: tail(Kind::Read),
            write: tail(Kind::Write),
        }
    }

    /// Sites that reads come from, most first.
    pub(crate) fn reads_by_site(&self) -> Vec<SiteShare> {
        let mut sites: HashMap<&str, f64> = HashMap::new();
        for (load, node) in &self.reads {
            *sites.entry(self.problem.site(*node)).or_default() += load;
        }
        let mut sites: Vec<SiteShare> = sites
            .into_iter()
            .filter(|(_, reads)| *reads > SHARE_SHOWN_MIN)
            .map(|(site, reads)| SiteShare {
                site: site.into(),
                reads,
            })
            .collect();
        sites.sort_by(|a, b| b.reads.total_cmp(&a.reads).then(a.site.cmp(&b.site)));
        sites
    }
}

/// Latency of chunks on these replicas alone.
pub(crate) fn set_quantile(
    problem: &Problem,
    in_sync: &[NodeIndex],
    kind: Kind,
    probability: f64,
) -> f64 {
    let model = |node: NodeIndex| {
        problem
            .node(node)
            .model
            .as_ref()
            .map(|model| model.of(kind))
    };
    match kind {
        Kind::Read => model(problem.reader(in_sync))
            .map_or(f64::INFINITY, |model| model.quantile(probability)),
        Kind::Write => {
            let parts: Option<Vec<&Distribution>> =
                in_sync.iter().map(|node| model(*node)).collect();
            parts.map_or(f64::INFINITY, |parts| {
                let within = |us| parts.iter().map(move |part| part.share_within(us));
                quantile_of(probability, |us| problem.dependence.all(within(us)))
            })
        }
    }
}
