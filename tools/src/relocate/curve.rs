//! Latency against bytes moved: what each further gigabyte buys.

use super::cover::{Cover, Failure};
use super::outlook::Outlook;
use super::problem::{Demand, Problem};
use super::target::Kind;
use serde::Serialize;
use ukai_meta::job::Percentiles;

/// Shares of everything that is worth moving at which the curve is told: dense where a skewed load falls
/// fast.
const SHARES: [f64; 16] = [
    0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0,
];

/// One point.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Point {
    pub(crate) bytes: u64,
    pub(crate) wan_bytes: u64,
    pub(crate) latency: Percentiles,
}

/// Demands that stand for "as fast as can be" where none are given: reads within a limit between what there
/// is now and what the nearest node gives.
pub(crate) fn default_demands(problem: &Problem) -> Vec<Demand> {
    let probability = 0.99;
    let now = Outlook::now(problem).quantile(Kind::Read, probability);
    let usable = problem
        .nodes
        .iter()
        .filter(|node| node.unusable().is_none());
    let best = usable
        .filter_map(|node| {
            node.model
                .as_ref()
                .map(|model| model.read.quantile(probability))
        })
        .fold(f64::INFINITY, f64::min);
    if !best.is_finite() || best >= now {
        return Vec::new();
    }
    vec![Demand {
        kind: Kind::Read,
        probability,
        limit_us: (now * best).sqrt(),
    }]
}

/// The curve for the problem's demands.
pub(crate) fn curve(problem: &Problem) -> Result<Vec<Point>, Failure> {
    let free: Vec<u64> = problem.nodes.iter().map(|node| node.free_bytes).collect();
    let mut end = Cover::new(problem, free)?;
    let start = end.clone();
    let weights = vec![1.0; problem.demands.len()];
    end.want_everything();
    // Falls short by design: everything that helps is moved.
    let _ = end.reach(&weights);
    let most = end.bytes - start.bytes;
    let mut out = Vec::new();
    let mut state = start.clone();
    state.want_everything();
    for share in SHARES {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )] // bytes of one volume
        let bytes = start.bytes + (most as f64 * share) as u64;
        state.reach_bytes(&weights, bytes);
        let latency = Outlook::after(&state).percentiles();
        let point = Point {
            bytes: state.bytes,
            wan_bytes: state.wan_bytes,
            latency,
        };
        if out
            .last()
            .is_none_or(|last: &Point| last.bytes < point.bytes)
        {
            out.push(point);
        }
    }
    Ok(out)
}
