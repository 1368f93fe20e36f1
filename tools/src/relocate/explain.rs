//! Why a plan is not possible, and the best that can be had instead.
//!
//! The best is found by asking again with other limits. The reasons are found by taking one rule away after
//! the other and asking again: what makes it possible is what stands in the way.

use super::cover::{Cover, Failure, cover};
use super::outlook::Outlook;
use super::problem::{Class, Demand, Problem, Rules};
use super::target::{Kind, latency_text};
use crate::place::place_text;
use crate::units::ByteSize;
use serde::Serialize;
use ukai_proto::limits::REPLICAS_MAX;

/// Halvings of the gap, on a logarithmic scale, between what was asked for and what there is now: from 100
/// times the limit to within 1 %.
const BEST_STEPS: usize = 9;

/// The best that can be had of one target.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Best {
    pub(crate) kind: Kind,
    pub(crate) probability: f64,
    pub(crate) asked_us: f64,
    /// With this target alone; absent: not even now's latency can be kept under the rules.
    pub(crate) best_us: Option<f64>,
}

/// Why there is no plan.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Impossible {
    /// Chunks that the rules do not leave where they are and that no node may take.
    pub(crate) homeless_chunks: u64,
    /// Targets that cannot be met, each alone; empty if only all together are impossible.
    pub(crate) best: Vec<Best>,
    pub(crate) reasons: Vec<String>,
}

/// Explains a failed search. `host`: what people call where the volume is used.
pub(crate) fn explain(problem: &Problem, failure: Failure, host: &str) -> Impossible {
    let homeless_chunks = match failure {
        Failure::NoPlace { chunks } => chunks,
        Failure::Short => 0,
    };
    let mut best = Vec::new();
    if failure == Failure::Short {
        best.extend(
            problem
                .demands
                .iter()
                .filter_map(|demand| best_of(problem, demand)),
        );
    }
    let mut reasons = Vec::new();
    if failure == Failure::Short && best.is_empty() {
        reasons.push("each target can be met alone, all of them together cannot".into());
    }
    reasons.extend(reasons_of(problem));
    if problem.rules.only_add {
        reasons.extend(too_many_replicas(problem));
    }
    if reasons.is_empty() {
        reasons.extend(nearest(problem, host));
    }
    let unknown: Vec<&str> = problem
        .nodes
        .iter()
        .filter(|node| node.model.is_none())
        .map(|node| node.name.as_str())
        .collect();
    if !problem.demands.is_empty() && !unknown.is_empty() {
        reasons.push(format!(
            "nodes never measured from {host} were not considered: {} (`ukai-tools probe` there measures them)",
            unknown.join(", ")
        ));
    }
    Impossible {
        homeless_chunks,
        best,
        reasons,
    }
}

/// Chunks that can get no copy more.
fn too_many_replicas(problem: &Problem) -> Option<String> {
    let is_full = |class: &&Class| {
        problem.sets[class.set as usize].replicas() >= REPLICAS_MAX && class.bytes > 0
    };
    let full = problem.classes.iter().filter(is_full);
    let chunks: u64 = full.map(|class| class.chunks).sum();
    (chunks > 0).then(|| {
        format!(
            "{chunks} chunks have {REPLICAS_MAX} replicas already, the most that are possible; \
             `ukai-tools volume remove-location` takes some away"
        )
    })
}

/// `None`: the demand alone can be met.
fn best_of(problem: &Problem, demand: &Demand) -> Option<Best> {
    let possible = |limit_us: f64| {
        let alone = Problem {
            demands: vec![Demand {
                limit_us,
                ..*demand
            }],
            ..problem.clone()
        };
        cover(&alone).is_ok()
    };
    if possible(demand.limit_us) {
        return None;
    }
    let (mut low, mut high) = (
        demand.limit_us,
        demand
            .limit_us
            .max(Outlook::now(problem).quantile(demand.kind, demand.probability) * 1.03),
    );
    let mut best_us = None;
    if possible(high) {
        for _ in 0..BEST_STEPS {
            let middle = (low * high).sqrt();
            if possible(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        best_us = Some(high);
    }
    Some(Best {
        kind: demand.kind,
        probability: demand.probability,
        asked_us: demand.limit_us,
        best_us,
    })
}

fn reasons_of(problem: &Problem) -> Vec<String> {
    let mut out = Vec::new();
    let mut all = problem.clone();
    let mut ask = |changed: Problem, why: &dyn Fn(&Cover<'_>) -> String| {
        if let Ok(found) = cover(&changed) {
            out.push(why(&found));
        }
    };
    for node in &mut all.nodes {
        node.free_bytes = u64::MAX / 4;
    }
    ask(all.clone(), &|found| space(problem, found));
    let mut usable = problem.clone();
    for node in usable.nodes.iter_mut().chain(&mut all.nodes) {
        (node.is_alive, node.is_draining) = (true, false);
    }
    if problem
        .nodes
        .iter()
        .any(|node| !node.is_alive || node.is_draining)
    {
        ask(usable, &|found| unusable(problem, found));
    }
    let with_rules = |rules: Rules| Problem {
        rules,
        ..problem.clone()
    };
    let rules = &problem.rules;
    if !rules.copies.is_empty() {
        ask(
            with_rules(Rules {
                copies: Vec::new(),
                ..rules.clone()
            }),
            &|_| format!("the rule --copies {} forbids it", place_text(&rules.copies)),
        );
    }
    if rules.keep_sites {
        ask(
            with_rules(Rules {
                keep_sites: false,
                ..rules.clone()
            }),
            &|_| {
                "chunks stay in as many sites as now; --copies SITE:2 would allow two copies in one site".into()
            },
        );
    }
    if !rules.only_sites.is_empty() {
        ask(
            with_rules(Rules {
                only_sites: Vec::new(),
                ..rules.clone()
            }),
            &|_| {
                format!(
                    "the rule --only-sites {} forbids it",
                    rules.only_sites.join(",")
                )
            },
        );
    }
    if let Some(site) = &rules.to_site {
        ask(
            with_rules(Rules {
                to_site: None,
                ..rules.clone()
            }),
            &|_| format!("--to-site {site} forbids it"),
        );
    }
    if problem.classes.iter().any(|class| !class.movable) {
        let mut classes = problem.classes.clone();
        classes.iter_mut().for_each(|class| class.movable = true);
        ask(
            Problem {
                classes,
                ..problem.clone()
            },
            &|_| "chunks outside of --range would have to move too".into(),
        );
    }
    if out.is_empty() {
        all.rules = Rules {
            only_add: rules.only_add,
            ..Rules::default()
        };
        all.classes
            .iter_mut()
            .for_each(|class| class.movable = true);
        if cover(&all).is_ok() {
            out.push("several things stand in its way together: space, nodes that take no chunks, and the rules".into());
        }
    }
    out
}

/// Which nodes are too full for the plan that would work.
fn space(problem: &Problem, found: &Cover<'_>) -> String {
    let mut lacking = Vec::new();
    for (at, node) in problem.nodes.iter().enumerate() {
        let used = (u64::MAX / 4).saturating_sub(found.free[at]);
        if used > node.free_bytes {
            lacking.push(format!(
                "node {} in {} has {} free, {} would be needed",
                node.name,
                node.site,
                ByteSize(node.free_bytes).about(),
                ByteSize(used).about()
            ));
        }
    }
    match lacking.is_empty() {
        true => "there is not enough space".into(),
        false => format!("not enough space: {}", lacking.join("; ")),
    }
}

fn unusable(problem: &Problem, found: &Cover<'_>) -> String {
    let used = |at: usize| found.free[at] < found.problem.nodes[at].free_bytes;
    let list: Vec<String> = (0..problem.nodes.len())
        .filter(|at| used(*at))
        .filter_map(|at| {
            let node = &problem.nodes[at];
            node.unusable()
                .map(|why| format!("node {} in {} is {why}", node.name, node.site))
        })
        .collect();
    list.join("; ")
}

/// Nothing stands in the way: no node is near enough.
fn nearest(problem: &Problem, host: &str) -> Vec<String> {
    let mut out = Vec::new();
    for demand in &problem.demands {
        let quantile = |node: &super::problem::Node| {
            let model = node.model.as_ref();
            model.map(|model| model.of(demand.kind).quantile(demand.probability))
        };
        let known = problem
            .nodes
            .iter()
            .filter_map(|node| quantile(node).map(|us| (us, node)));
        if let Some((us, node)) = known.min_by(|a, b| a.0.total_cmp(&b.0)) {
            let text = format!(
                "no node is near enough: the nearest to {host} is {} in {}, {} of whose {}s are done within {}",
                node.name,
                node.site,
                share_text(demand.probability),
                demand.kind.name(),
                latency_text(us)
            );
            if us > demand.limit_us && !out.contains(&text) {
                out.push(text);
            }
        }
    }
    if out.is_empty() && !problem.demands.is_empty() {
        out.push("a write waits for all copies of a chunk, and too few nodes are near enough to hold all of them".into());
    }
    out
}

/// "99 %".
pub(crate) fn share_text(share: f64) -> String {
    let percent = (share * 10_000.0).round() / 100.0;
    format!("{percent} %")
}
