//! From a problem to a plan: latency now and afterwards, the ranges that are too slow, the moves, and if
//! there is no plan, why.

use super::breaking::{Breaking, breaking};
use super::cover::{Cover, cover};
use super::curve::{Point, curve, default_demands};
use super::explain::{Impossible, explain};
use super::goals::{Goals, RANGES_MAX, goals};
use super::outlook::{Outlook, SiteShare};
use super::problem::{Demand, Known, NodeIndex, NodeModel, Problem, Rules};
use super::target::{Kind, Target};
use super::together::{Dependence, Measured};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use ukai_meta::job::{GoalSet, Percentiles};
use ukai_meta::map::VolumeMap;
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

/// Of the requests that a target lets be slow, so many may be; the rest is kept for what cannot be known:
/// exactly on the edge, the measured percentile would miss the target half of the time.
pub(crate) const MARGIN: f64 = 0.8;
/// A read is as near as the nearest node's if it is no slower than this quantile of its reads.
const NEAR_QUANTILE: f64 = 0.99;
/// What is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) host: String,
    pub(crate) targets: Vec<Target>,
    pub(crate) rules: Rules,
    pub(crate) range: Option<ChunkRange>,
    pub(crate) curve: bool,
    /// In place of what the targets need: so much of the reads is to come from where they are fastest.
    pub(crate) share: Option<f64>,
    /// Nodes as another host sees them, for [`Plan::present`].
    pub(crate) present: Option<BTreeMap<NodeId, NodeModel>>,
    /// How much nodes were slow together.
    pub(crate) measured: Option<Measured>,
}

/// How one target fares.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct TargetFate {
    pub(crate) target: String,
    pub(crate) kind: Kind,
    pub(crate) limit_us: f64,
    pub(crate) now_us: f64,
    pub(crate) after_us: f64,
    pub(crate) is_met_now: bool,
    pub(crate) is_met_after: bool,
}

/// Moves that are alike.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Move {
    #[serde(flatten)]
    pub(crate) goal: GoalSet,
    pub(crate) chunks: u64,
    pub(crate) bytes: u64,
    pub(crate) wan_bytes: u64,
    /// Share of the volume's reads and writes that goes with them.
    pub(crate) reads: f64,
    pub(crate) writes: f64,
}

/// The plan.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    /// Absent: latencies are not known.
    pub(crate) now: Option<Percentiles>,
    pub(crate) after: Option<Percentiles>,
    /// Now and afterwards on the host of [`Ask::present`]; absent: not asked, or not known.
    pub(crate) present: Option<[Percentiles; 2]>,
    pub(crate) reads_now: Vec<SiteShare>,
    pub(crate) reads_after: Vec<SiteShare>,
    pub(crate) targets: Vec<TargetFate>,
    /// See [`MARGIN`]; 1: there is no plan that keeps it.
    pub(crate) margin: f64,
    pub(crate) breaking: Vec<Breaking>,
    pub(crate) moves: Vec<Move>,
    pub(crate) goals: Goals,
    pub(crate) chunks_moved: u64,
    pub(crate) bytes_moved: u64,
    pub(crate) wan_bytes: u64,
    /// No plan with this margin does with less.
    pub(crate) bytes_min: u64,
    pub(crate) impossible: Option<Impossible>,
    pub(crate) curve: Vec<Point>,
    pub(crate) heat_known: [bool; 2],
    /// Between nodes that a write waits for.
    pub(crate) dependence: Dependence,
}

/// Makes the plan.
pub(crate) fn plan(map: &VolumeMap, known: Known<'_>, ask: &Ask) -> Plan {
    let range = ask.range.unwrap_or(map.all());
    let mut demands = demands(&ask.targets, 1.0);
    let mut problem = Problem::new(map, known, range, ask.rules.clone(), demands.clone())
        .depending(ask.measured.as_ref());
    if let Some(share) = ask.share {
        demands = near(&problem, share).into_iter().collect();
        problem.demands.clone_from(&demands);
    }
    let in_use =
        |problem: &Problem, at: NodeIndex| problem.sets.iter().any(|set| set.in_sync.contains(&at));
    let is_known = (0..)
        .zip(&problem.nodes)
        .all(|(at, node)| node.model.is_some() || !in_use(&problem, at));
    assert!(
        is_known || ask.targets.is_empty(),
        "targets without latencies"
    );
    let mut margin = 1.0;
    if let Some(careful) = careful(&problem, ask) {
        problem.demands = careful;
        margin = MARGIN;
    }
    let first = cover(&problem);
    let result = match first {
        Err(_) if margin < 1.0 => {
            problem.demands = demands;
            margin = 1.0;
            cover(&problem)
        }
        first => first,
    };
    let now = Outlook::now(&problem);
    let mut out = Plan {
        now: is_known.then(|| now.percentiles()),
        after: None,
        present: None,
        reads_now: now.reads_by_site(),
        reads_after: Vec::new(),
        targets: Vec::new(),
        margin,
        breaking: breaking(&problem, map, &ask.targets),
        moves: Vec::new(),
        goals: Goals::default(),
        chunks_moved: 0,
        bytes_moved: 0,
        wan_bytes: 0,
        bytes_min: 0,
        impossible: None,
        curve: Vec::new(),
        heat_known: problem.heat_known,
        dependence: problem.dependence,
    };
    let after = match &result {
        Ok(found) => {
            out.goals = goals(found, map, RANGES_MAX);
            out.moves = moves(found, &out.goals);
            out.chunks_moved =
                out.moves.iter().map(|one| one.chunks).sum::<u64>() + out.goals.filled_chunks;
            out.bytes_moved = found.bytes + out.goals.filled_bytes;
            out.wan_bytes = found.wan_bytes;
            out.bytes_min = found.bytes_min;
            out.present = ask
                .present
                .as_ref()
                .and_then(|models| seen_by(models, &problem, found));
            Outlook::after(found)
        }
        Err(failure) => {
            out.impossible = Some(explain(&problem, *failure, &ask.host));
            now.clone()
        }
    };
    out.after = is_known.then(|| after.percentiles());
    out.reads_after = after.reads_by_site();
    out.targets = fates(&ask.targets, &now, &after);
    if ask.curve && is_known {
        if problem.demands.is_empty() {
            problem.demands = default_demands(&problem);
        }
        out.curve = curve(&problem).unwrap_or_default();
    }
    out
}

/// That so much of the reads comes from the node with the least median, or one as good. `None`: no node is
/// known.
fn near(problem: &Problem, share: f64) -> Option<Demand> {
    let holds = |at: &NodeIndex| problem.sets.iter().any(|set| set.in_sync.contains(at));
    let nearest = (0..)
        .zip(&problem.nodes)
        .filter(|(at, node)| {
            let may_get = node.unusable().is_none() && node.free_bytes >= problem.chunk_bytes;
            may_get || holds(at)
        })
        .filter_map(|(_, node)| node.model.as_ref())
        .min_by(|a, b| a.read.quantile(0.5).total_cmp(&b.read.quantile(0.5)))?;
    let limit_us = nearest.read.quantile(NEAR_QUANTILE);
    // Sums of shares are exact to this.
    let probability = share * nearest.read.share_within(limit_us) * (1.0 - 1e-6);
    Some(Demand {
        kind: Kind::Read,
        probability,
        limit_us,
    })
}

/// What `cover` makes of a volume whose nodes are seen so, now and afterwards.
fn seen_by(
    models: &BTreeMap<NodeId, NodeModel>,
    problem: &Problem,
    cover: &Cover<'_>,
) -> Option<[Percentiles; 2]> {
    let mut there = problem.clone();
    for node in &mut there.nodes {
        node.model = models.get(&node.id).cloned();
    }
    let (now, after) = (Outlook::now(&there), Outlook::after_seen_by(&there, cover));
    (now.is_known() && after.is_known()).then(|| [now.percentiles(), after.percentiles()])
}

/// The demands with the margin; what is met already needs none. `None`: all are.
fn careful(problem: &Problem, ask: &Ask) -> Option<Vec<Demand>> {
    // A share is meant as it is said.
    if ask.share.is_some() {
        return None;
    }
    let now = Outlook::now(problem);
    let is_met =
        |demand: &Demand| now.share_within(demand.kind, demand.limit_us) >= demand.probability;
    let exact = problem.demands.iter();
    let pairs: Vec<(Demand, Demand)> = exact.copied().zip(demands(&ask.targets, MARGIN)).collect();
    if pairs.iter().all(|(exact, _)| is_met(exact)) {
        return None;
    }
    let pick = |(exact, careful)| if is_met(&exact) { exact } else { careful };
    Some(pairs.into_iter().map(pick).collect())
}

/// One demand per target and kind.
fn demands(targets: &[Target], margin: f64) -> Vec<Demand> {
    let of = |target: &Target| {
        let probability = 1.0 - (1.0 - target.percentile.probability()) * margin;
        #[allow(clippy::cast_precision_loss)] // at most 100 s
        let limit_us = target.limit.us as f64;
        target
            .kinds()
            .map(move |kind| Demand {
                kind,
                probability,
                limit_us,
            })
            .collect::<Vec<_>>()
    };
    targets.iter().flat_map(of).collect()
}

fn fates(targets: &[Target], now: &Outlook<'_>, after: &Outlook<'_>) -> Vec<TargetFate> {
    let of = |target: &Target| {
        let text = target.to_string();
        let probability = target.percentile.probability();
        #[allow(clippy::cast_precision_loss)] // at most 100 s
        let limit_us = target.limit.us as f64;
        let fate = move |kind| TargetFate {
            target: text.clone(),
            kind,
            limit_us,
            now_us: now.quantile(kind, probability),
            after_us: after.quantile(kind, probability),
            is_met_now: now.share_within(kind, limit_us) >= probability - 1e-9,
            is_met_after: after.share_within(kind, limit_us) >= probability - 1e-9,
        };
        target.kinds().map(fate).collect::<Vec<_>>()
    };
    targets.iter().flat_map(of).collect()
}

fn moves(found: &Cover<'_>, goals: &Goals) -> Vec<Move> {
    let problem = found.problem;
    let ids = |nodes: &[NodeIndex]| {
        nodes
            .iter()
            .map(|node| problem.node(*node).id)
            .collect::<Vec<_>>()
    };
    let mut out: Vec<Move> = goals
        .sets
        .iter()
        .map(|goal| Move {
            goal: goal.clone(),
            chunks: 0,
            bytes: 0,
            wan_bytes: 0,
            reads: 0.0,
            writes: 0.0,
        })
        .collect();
    let mut known: HashMap<(usize, u32), Option<usize>> = HashMap::new();
    for piece in &found.pieces {
        let (choice, class) = (&found.choices[piece.choice], &problem.classes[piece.class]);
        if choice.moves_nothing() {
            continue;
        }
        let at = *known.entry((piece.choice, class.set)).or_insert_with(|| {
            let copies = problem.copies_min(&problem.sets[class.set as usize]);
            let (add, remove) = (ids(&choice.add), ids(&choice.remove));
            out.iter().position(|one| {
                one.goal.add == add
                    && one.goal.remove == remove
                    && usize::from(one.goal.copies) == copies
            })
        });
        // What was left out for want of goal sets has none.
        let Some(at) = at else { continue };
        #[allow(clippy::cast_precision_loss)] // chunks are counted in u32
        let chunks = piece.chunks as f64;
        let one = &mut out[at];
        one.chunks += piece.chunks;
        one.bytes += piece.chunks * class.bytes * choice.copies();
        one.wan_bytes += piece.chunks * class.bytes * u64::from(choice.wan);
        one.reads += class.read * chunks;
        one.writes += class.write * chunks;
    }
    out.sort_by_key(|one| std::cmp::Reverse(one.bytes));
    out
}

#[cfg(test)]
mod tests;
