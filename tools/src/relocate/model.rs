//! Latency distributions, and how those of nodes make that of a volume.
//!
//! Let X(n) be the round trip of a read from host to node n, F(n) its distribution: F(n)(t) is the share
//! of reads answered within t. W(n) and G(n) are the same for one replica's part of a write.
//!
//! - A **read** of chunk c is answered by one replica: of the in-sync set S(c) the one with the lowest
//!   median, r(c). So its distribution is F(r(c)).
//! - A **write** of chunk c is acknowledged by all of S(c): it takes max over n in S(c) of W(n). Were nodes
//!   independent, its distribution would be the product of G(n) over S(c); as much as they are slow together,
//!   it is nearer to the least of them (`together.rs`).
//! - A **volume** is a mixture: chunk c gets a share h(c) of its reads, so its reads are distributed as
//!   the sum over c of h(c) F(r(c)); writes alike with their own shares.
//! - Where a node's round trip was not measured but its parts were, it is their **sum**, taken as
//!   independent: the convolution of network and service.
//!
//! The q-quantile of a volume is at most L exactly if the mixture at L is at least q. That is *linear* in
//! where chunks lie: moving a chunk from r to r' adds h(c) (F(r')(L) - F(r)(L)) to it. The planner lives
//! on this: a target is a sum to be reached, each move brings a known share and costs known bytes.
//!
//! A distribution is kept as its values at the edges of a logarithmic grid, [`PER_OCTAVE`] per doubling,
//! and is linear between them: results are within one step, 2.2 %, of the exact ones. The grid spans 1 us
//! to 134 s; what lies outside counts as its end. Mixtures, maxima and lookups are exact at the edges;
//! only sums round.

use ukai_meta::latency::{LatencyPoints, QUANTILES};

/// Edges per doubling of the latency.
const PER_OCTAVE: u32 = 32;
/// 2^27 us is 134 s: longer than any request lives.
const OCTAVES: u32 = 27;
const EDGES: usize = (PER_OCTAVE * OCTAVES + 1) as usize;

/// A latency distribution.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Distribution {
    /// Share at or below each edge: ascending, from at least 0 to exactly 1.
    cdf: Box<[f64]>,
}

/// Latency at an edge, microseconds.
fn edge_us(edge: usize) -> f64 {
    #[allow(clippy::cast_precision_loss)] // below 2^10
    let edge = edge as f64;
    (edge / f64::from(PER_OCTAVE)).exp2()
}

/// The number of edges at or below `us`, less one: `us` lies in [edge, edge + 1).
fn edge_below(us: f64) -> usize {
    let at = us.max(1.0).log2() * f64::from(PER_OCTAVE);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
    let edge = (at as usize).min(EDGES - 1);
    // The logarithm may round across an edge.
    match edge {
        _ if edge + 1 < EDGES && edge_us(edge + 1) <= us => edge + 1,
        1.. if edge_us(edge) > us => edge - 1,
        _ => edge,
    }
}

/// Where `us` lies between two values, 0 to 1.
fn part(us: f64, from: f64, to: f64) -> f64 {
    if to > from {
        ((us - from) / (to - from)).clamp(0.0, 1.0)
    } else {
        1.0
    }
}

/// The least latency at which `cdf` reaches `probability`: for distributions that are only known as
/// a function, because there are too many to make each. `cdf` must ascend.
pub(crate) fn quantile_of(probability: f64, cdf: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0, EDGES - 1);
    if cdf(edge_us(low)) >= probability {
        return edge_us(low);
    }
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if cdf(edge_us(middle)) >= probability {
            high = middle;
        } else {
            low = middle;
        }
    }
    let (from, to) = (cdf(edge_us(low)), cdf(edge_us(high)));
    edge_us(low) + (edge_us(high) - edge_us(low)) * part(probability, from, to)
}

impl Distribution {
    fn from_cdf(mut cdf: Box<[f64]>) -> Self {
        assert_eq!(cdf.len(), EDGES, "edges");
        let mut least = 0.0f64;
        for share in &mut cdf {
            // Sums of shares may be off by rounding.
            least = least.max(share.clamp(0.0, 1.0));
            *share = least;
        }
        cdf[EDGES - 1] = 1.0;
        Self { cdf }
    }

    fn at_edges(share: impl Fn(usize) -> f64) -> Self {
        Self::from_cdf((0..EDGES).map(share).collect())
    }

    /// As measured: linear between the points.
    pub(crate) fn from_points(points: &LatencyPoints) -> Self {
        let us = points.us.map(f64::from);
        Self::at_edges(|edge| {
            let at = edge_us(edge);
            match us.partition_point(|point| *point <= at) {
                0 => 0.0,
                above if above == us.len() => 1.0,
                above => {
                    let (from, to) = (QUANTILES[above - 1], QUANTILES[above]);
                    from + (to - from) * part(at, us[above - 1], us[above])
                }
            }
        })
    }

    /// Always the same.
    pub(crate) fn constant(us: f64) -> Self {
        // Reaches 1 within the step below it, so that the quantiles are not above.
        let edge = edge_below(us).max(1);
        Self::at_edges(|at| if at >= edge { 1.0 } else { 0.0 })
    }

    /// Share of requests done within `us`.
    pub(crate) fn share_within(&self, us: f64) -> f64 {
        if us < 1.0 {
            return 0.0;
        }
        let edge = edge_below(us);
        if edge + 1 >= EDGES {
            return 1.0;
        }
        let (from, to) = (self.cdf[edge], self.cdf[edge + 1]);
        from + (to - from) * part(us, edge_us(edge), edge_us(edge + 1))
    }

    /// Latency within which a share of `probability` is done, microseconds.
    pub(crate) fn quantile(&self, probability: f64) -> f64 {
        let edge = self.cdf.partition_point(|share| *share < probability);
        if edge == 0 {
            return edge_us(0);
        }
        let edge = edge.min(EDGES - 1);
        let (from, to) = (self.cdf[edge - 1], self.cdf[edge]);
        let (low, high) = (edge_us(edge - 1), edge_us(edge));
        low + (high - low) * part(probability, from, to)
    }

    /// One of several, each with its weight (not negative, not all zero).
    pub(crate) fn mixture<'a>(parts: impl IntoIterator<Item = (f64, &'a Self)>) -> Self {
        let mut sum = vec![0.0; EDGES].into_boxed_slice();
        let mut weights = 0.0;
        for (weight, part) in parts {
            assert!(weight >= 0.0, "weight {weight}");
            weights += weight;
            for (to, share) in sum.iter_mut().zip(&part.cdf) {
                *to += weight * share;
            }
        }
        assert!(weights > 0.0, "a mixture of nothing");
        for share in &mut sum {
            *share /= weights;
        }
        Self::from_cdf(sum)
    }

    /// One after the other, independent.
    pub(crate) fn sum(&self, other: &Self) -> Self {
        let (a, b) = (self.steps(), other.steps());
        let mut mass = vec![0.0; EDGES].into_boxed_slice();
        for (us_a, share_a) in &a {
            let mut edge = 0;
            for (us_b, share_b) in &b {
                // `b` ascends, so the edge only walks forward.
                let us = us_a + us_b;
                while edge + 1 < EDGES && edge_us_table()[edge] < us {
                    edge += 1;
                }
                mass[edge] += share_a * share_b;
            }
        }
        let mut total = 0.0;
        for share in &mut mass {
            total += *share;
            *share = total;
        }
        Self::from_cdf(mass)
    }

    /// The same, so much later.
    pub(crate) fn later(&self, us: f64) -> Self {
        Self::at_edges(|edge| self.share_within(edge_us(edge) - us))
    }

    /// (middle of a step in microseconds, share in it), where there is any.
    fn steps(&self) -> Vec<(f64, f64)> {
        let mut before = 0.0;
        let mut out = Vec::new();
        for (edge, share) in self.cdf.iter().enumerate() {
            let here = share - before;
            if here > 0.0 {
                let low = edge_us(edge.saturating_sub(1));
                out.push((f64::midpoint(low, edge_us(edge)), here));
            }
            before = *share;
        }
        out
    }
}

fn edge_us_table() -> &'static [f64] {
    static TABLE: std::sync::OnceLock<Vec<f64>> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| (0..EDGES).map(edge_us).collect())
}

#[cfg(test)]
mod tests;
