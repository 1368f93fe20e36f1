//! How much nodes are slow at the same time.
//!
//! A write takes as long as its slowest replica. Were nodes independent, its distribution would be the product of theirs
//! (`model.rs`). They are not: what stalls the host, its link or a switch on the way stalls requests to all of them, and the
//! product counts that once for each node. Of two nodes that are only ever slow together, the product's p99 is their p99.5.
//!
//! So they are joined by Gumbel's copula: with u(n) = G(n)(t),
//!
//! P(all within t) = exp(-(sum over n of (-ln u(n))^(1/alpha))^alpha), 0 < alpha <= 1
//!
//! which is the product at alpha = 1 and nears the least u(n) as alpha nears 0. It is the one family that is both
//! Archimedean and max-stable (Genest and Rivest 1989), made for what is slow together: k equal nodes behave as k^alpha
//! independent ones do, their extremal coefficient. alpha is fitted to what a front measured of writes that several
//! replicas answered, at a high quantile, where plans look. The front's own time, which is the same for all replicas, is in both
//! sides of the fit.

use super::model::Distribution;
use super::problem::{NodeIndex, Problem};
use std::collections::BTreeMap;
use ukai_meta::LatencyPoints;
use ukai_meta::report::FrontReport;
use ukai_proto::NodeId;

/// Below it the copula is the least share to within 4 % of the logarithm, for two nodes.
const ALPHA_MIN: f64 = 0.05;
/// Samples above the quantile at which is fitted.
const SLOW_MIN: u64 = 10;
/// Fewer samples say nothing of the slow ones.
const SAMPLES_MIN: u64 = 100;
/// The quantile at which is fitted, if there are samples enough.
const QUANTILE_MAX: f64 = 0.99;
/// Halvings of the range of alpha: to 0.001.
const STEPS: u32 = 10;

/// See the module's words: alpha.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Dependence(f64);

impl Default for Dependence {
    /// Independent, which errs to the slow side.
    fn default() -> Self {
        Self(1.0)
    }
}

impl Dependence {
    pub(super) fn new(alpha: f64) -> Self {
        Self(alpha.clamp(ALPHA_MIN, 1.0))
    }

    /// 1 if nodes are independent, near 0 if they are slow at the same time only.
    pub(crate) fn alpha(self) -> f64 {
        self.0
    }

    /// Probability that all are done, each of which is done with one of `shares`.
    pub(crate) fn all(self, shares: impl IntoIterator<Item = f64>) -> f64 {
        let shares = shares.into_iter();
        if self == Self::default() {
            return shares.product();
        }
        let mut sum = 0.0;
        for share in shares {
            if share <= 0.0 {
                return 0.0;
            }
            sum += (-share.ln()).max(0.0).powf(self.0.recip());
        }
        (-sum.powf(self.0)).exp()
    }
}

/// What a front measured at the same time of nodes and of writes to several of them.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Of writes that several replicas answered, in the front.
    writes: LatencyPoints,
    /// What each node's part of it took, with the front's own time.
    nodes: BTreeMap<NodeId, Distribution>,
}

impl Measured {
    /// `None`: the front told too little of it.
    pub(crate) fn of(front: &FrontReport) -> Option<Self> {
        let writes = front
            .write_replicated
            .filter(|writes| writes.count >= SAMPLES_MIN)?;
        let own = Distribution::from_points(front.guest.write.front.as_ref()?);
        let nodes = front.nodes.iter().filter_map(|node| {
            let write = Distribution::from_points(node.write.as_ref()?).sum(&own);
            Some((node.node, write))
        });
        Some(Self {
            writes,
            nodes: nodes.collect(),
        })
    }
}

impl Problem {
    /// The dependence with which the volume as it is has the writes that were measured. `None`: no chunk has
    /// several replicas, or one of their nodes was not measured.
    pub(crate) fn dependence_fitting(&self, measured: &Measured) -> Option<Dependence> {
        let mut sets: Vec<(f64, &[NodeIndex])> = Vec::new();
        for class in &self.classes {
            let in_sync = self.sets[class.set as usize].in_sync.as_slice();
            #[allow(clippy::cast_precision_loss)] // chunks are counted in u32
            let load = class.write * class.chunks as f64;
            if in_sync.len() < 2 || load <= 0.0 {
                continue;
            }
            match sets.iter_mut().find(|(_, set)| *set == in_sync) {
                Some((sum, _)) => *sum += load,
                None => sets.push((load, in_sync)),
            }
        }
        let total: f64 = sets.iter().map(|(load, _)| load).sum();
        #[allow(clippy::cast_precision_loss)] // of requests of a minute
        let slow = SLOW_MIN as f64 / measured.writes.count as f64;
        let probability = (1.0 - slow).min(QUANTILE_MAX);
        let us = measured.writes.quantile(probability);
        let mut known: Vec<(f64, Vec<f64>)> = Vec::new();
        for (load, set) in sets {
            let share = |at: &NodeIndex| {
                let write = measured.nodes.get(&self.node(*at).id)?;
                Some(write.share_within(us))
            };
            known.push((load, set.iter().map(share).collect::<Option<_>>()?));
        }
        let within = |alpha: f64| -> f64 {
            let all = |shares: &Vec<f64>| Dependence::new(alpha).all(shares.iter().copied());
            known.iter().map(|(load, set)| load * all(set)).sum::<f64>() / total
        };
        if known.is_empty() {
            return None;
        }
        // The less alpha, the more are done.
        let (mut low, mut high) = (ALPHA_MIN, 1.0);
        if within(high) >= probability {
            return Some(Dependence::new(high));
        }
        if within(low) < probability {
            return Some(Dependence::new(low));
        }
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            if within(middle) >= probability {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(Dependence::new(low))
    }
}

#[cfg(test)]
mod tests;
