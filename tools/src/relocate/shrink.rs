//! How much a chunk is used, judged by what all chunks of the volume are used. Pure.
//!
//! A front counts each chunk's requests for some time. Of few counts the highest are high by luck as well:
//! a plan that picks the hottest chunks and believes their counts promises more than it brings. So each rate
//! is replaced by what is to be expected of a chunk that was counted so often.
//!
//! The counts of a chunk with rate `r` are taken as Poisson with mean `r T`. They fade with half-life `h`, so after
//! an age `a`, with `l = ln 2 / h`, the rate has the variance `r / T` with
//!
//! > `T = (2 / l) tanh(l a / 2)`
//!
//! which is `a` at first and `2 / l` in the long run. The levels in which rates are told add an error of their own,
//! relative variance `q`; so of `n = r T` counts only `n / (1 + n q)` are believed: the logarithm of the likelihood is
//! divided by `1 + n q`.
//!
//! How the true rates are spread over the chunks is estimated from all chunks together, without assuming any
//! shape: weights on a grid of rates that make the counts most likely (nonparametric maximum likelihood: Robbins
//! 1956, Kiefer and Wolfowitz 1956; by expectation maximisation: Laird 1978). The expected rate of a chunk is then
//! the mean of the grid under weight times likelihood. Even load thus shrinks to nearly the mean. Shrinking linearly,
//! `(n + k m) / (1 + k)` with `k` from the excess variance, would do the same for even load, but a volume whose one half is
//! never used has so much variance that nothing would shrink in the other half.

use super::problem::Heat;
use crate::report::HeatTold;
use std::f64::consts::LN_2;
use ukai_proto::heat::ChunkHeat;

/// Points of the grid for each doubling of the rate: 4.4 % apart.
const POINTS_PER_DOUBLING: f64 = 16.0;
/// The grid reaches so far below the smallest rate that was told.
const BELOW: f64 = 8.0;
/// Points at most: 32 doublings are all that levels can tell.
const POINTS_MAX: usize = 600;
/// Rounds of the estimate. Of the luck in the counts of an even load, one part in the root of twice the rounds is left.
const ROUNDS: usize = 300;
/// Relative variance of a rate told in levels of 6 to 12.5 %.
const LEVEL_VARIANCE: f64 = 0.0008;

impl Heat {
    /// What the front told of a volume of `chunk_count` chunks.
    pub(crate) fn told(told: &HeatTold, chunk_count: u32) -> Self {
        let rates: [f64; 256] = std::array::from_fn(|level| {
            let reads = u8::try_from(level).expect("256 levels");
            let heat = ChunkHeat {
                reads,
                ..ChunkHeat::default()
            };
            heat.reads_per_s()
        });
        let codes: Vec<[u8; 2]> = told
            .chunks
            .iter()
            .take(chunk_count as usize)
            .map(|chunk| [chunk.reads, chunk.writes])
            .collect();
        // Of few counts the highest are high by luck too.
        let exposure_s = exposure_s(told.age_s, told.half_life_s);
        let expected = |kind: usize| {
            let mut chunks = [0_u64; 256];
            codes.iter().for_each(|c| chunks[usize::from(c[kind])] += 1);
            chunks[0] += u64::from(chunk_count) - codes.len() as u64;
            shrink(&rates, &chunks, exposure_s)
        };
        Self {
            rates: [expected(0), expected(1)],
            codes,
        }
    }
}

/// For how long counting without fading would tell the rates as exactly, seconds.
fn exposure_s(age_s: u32, half_life_s: u32) -> f64 {
    let (age_s, half_life_s) = (f64::from(age_s.max(1)), f64::from(half_life_s.max(1)));
    let fade = LN_2 / half_life_s;
    2.0 / fade * (fade * age_s / 2.0).tanh()
}

/// What each level of `rates` (per second, ascending) has to be taken for, if `chunks[level]` chunks of the volume
/// have it, counted for `exposure_s`. Ascending; the sum over all chunks is kept.
fn shrink(rates: &[f64; 256], chunks: &[u64; 256], exposure_s: f64) -> Box<[f64; 256]> {
    let told: Vec<(f64, f64)> = (0..256)
        .filter(|level| chunks[*level] > 0)
        .map(|level| (rates[level] * exposure_s, count(chunks[level])))
        .collect();
    let positive = || told.iter().map(|(n, _)| *n).filter(|n| *n > 0.0);
    let (low, high) = (
        positive().fold(f64::INFINITY, f64::min),
        positive().fold(0.0, f64::max),
    );
    if high <= 0.0 {
        return Box::new(*rates);
    }
    let grid = grid(low, high);
    let likelihood: Vec<Vec<f64>> = told.iter().map(|(n, _)| likelihood(*n, &grid)).collect();
    let weights = spread(&told, &likelihood);
    let mut out = Box::new([0.0; 256]);
    let mut least = 0.0_f64;
    for (level, rate) in out.iter_mut().enumerate() {
        // More counts never mean less use, whatever the steps of the grid say.
        least = least.max(expected(
            &grid,
            &weights,
            &self::likelihood(rates[level] * exposure_s, &grid),
        ));
        *rate = least / exposure_s;
    }
    let sum = |rates: &[f64; 256]| -> f64 {
        let of = |(rate, chunks): (&f64, &u64)| rate * count(*chunks);
        rates.iter().zip(chunks).map(of).sum()
    };
    let keep = sum(rates) / sum(&out);
    out.iter_mut().for_each(|rate| *rate *= keep);
    out
}

/// Nothing, and from below the lowest to the highest count in equal ratios.
fn grid(low: f64, high: f64) -> Vec<f64> {
    let step = (1.0 / POINTS_PER_DOUBLING).exp2();
    let mut grid = vec![0.0];
    let mut at = low / BELOW;
    while at < high * step && grid.len() < POINTS_MAX {
        grid.push(at);
        at *= step;
    }
    grid
}

/// Of `n` counts, for each point of the grid, up to a factor.
fn likelihood(n: f64, grid: &[f64]) -> Vec<f64> {
    let believed = 1.0 / (1.0 + n * LEVEL_VARIANCE);
    let log = |mean: f64| match (n > 0.0, mean > 0.0) {
        (true, true) => (n * (mean / n).ln() - mean + n) * believed,
        (false, _) => -mean,
        (true, false) => f64::NEG_INFINITY,
    };
    grid.iter().map(|mean| log(*mean).exp()).collect()
}

/// Weights of the points of the grid under which what was told is most likely.
fn spread(told: &[(f64, f64)], likelihood: &[Vec<f64>]) -> Vec<f64> {
    let points = likelihood[0].len();
    let total: f64 = told.iter().map(|(_, chunks)| chunks).sum();
    #[allow(clippy::cast_precision_loss)] // POINTS_MAX
    let mut weights = vec![1.0 / points as f64; points];
    for _ in 0..ROUNDS {
        let mut next = vec![0.0; points];
        for ((_, chunks), likelihood) in told.iter().zip(likelihood) {
            let sum: f64 = dot(&weights, likelihood);
            if sum > 0.0 {
                let share = chunks / total / sum;
                for ((next, weight), likelihood) in next.iter_mut().zip(&weights).zip(likelihood) {
                    *next += share * weight * likelihood;
                }
            }
        }
        weights = next;
    }
    weights
}

/// Mean of the grid under weight times likelihood; nothing if all of it is out of the question.
fn expected(grid: &[f64], weights: &[f64], likelihood: &[f64]) -> f64 {
    let both: Vec<f64> = weights.iter().zip(likelihood).map(|(w, l)| w * l).collect();
    let sum: f64 = both.iter().sum();
    if sum > 0.0 {
        dot(grid, &both) / sum
    } else {
        0.0
    }
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// Chunks are counted in u32.
fn count(chunks: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let chunks = chunks as f64;
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const AGE_S: u32 = 20;

    fn rates() -> [f64; 256] {
        std::array::from_fn(|level| {
            let reads = u8::try_from(level).unwrap();
            ChunkHeat {
                reads,
                ..ChunkHeat::default()
            }
            .reads_per_s()
        })
    }

    /// A Poisson number, by waiting times.
    fn poisson(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
        let (mut time, mut n) = (0.0, 0.0);
        loop {
            time -= (1.0 - rng.random_range(0.0..1.0_f64)).ln();
            if time > mean {
                return n;
            }
            n += 1.0;
        }
    }

    /// Levels that a front tells of chunks with these true means.
    fn levels(seed: u64, means: &[f64]) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let of = |mean: &f64| {
            let rate = poisson(&mut rng, *mean) / exposure_s(AGE_S, 600);
            usize::from(ChunkHeat::from_rates(rate, 0.0, 0.0).reads)
        };
        means.iter().map(of).collect()
    }

    /// Counts that each chunk is then taken to have, in the mean, and those that were told.
    fn believed(levels: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let mut chunks = [0; 256];
        levels.iter().for_each(|level| chunks[*level] += 1);
        let exposure_s = exposure_s(AGE_S, 600);
        let shrunk = shrink(&rates(), &chunks, exposure_s);
        let of = |table: &[f64; 256]| levels.iter().map(|l| table[*l] * exposure_s).collect();
        (of(&shrunk), of(&rates()))
    }

    /// Share of all that the `part` highest by `by` have of `of`.
    fn share_of_highest(by: &[f64], of: &[f64], part: f64) -> f64 {
        let mut order: Vec<usize> = (0..by.len()).collect();
        order.sort_by(|a, b| by[*b].total_cmp(&by[*a]));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        order.truncate((part * count(by.len() as u64)) as usize);
        order.iter().map(|at| of[*at]).sum::<f64>() / of.iter().sum::<f64>()
    }

    #[test]
    fn the_exposure_is_the_age_at_first_and_bounded_later() {
        assert!((exposure_s(20, 600) / 20.0 - 1.0).abs() < 0.01);
        let long = exposure_s(1_000_000, 600);
        assert!((long - 2.0 * 600.0 / LN_2).abs() < 1.0, "{long}");
        assert!(exposure_s(0, 0) > 0.0);
    }

    #[test]
    fn nothing_told_stays_nothing() {
        let mut chunks = [0; 256];
        chunks[0] = 7;
        assert_eq!(*shrink(&rates(), &chunks, 20.0), rates());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Even load: what the luckiest chunks are said to get is what they get.
        #[test]
        fn even_load_becomes_nearly_equal(seed: u64, mean in 5.0..200.0_f64, unused in 0usize..3) {
            let used = 1500;
            let mut means = vec![mean; used];
            means.resize(used * (1 + unused), 0.0);
            let (shrunk, told) = believed(&levels(seed, &means));
            let (fact, promised) = (share_of_highest(&told[..used], &vec![1.0; used], 0.5), |of: &[f64]| {
                share_of_highest(&told[..used], &of[..used], 0.5)
            });
            prop_assert!((promised(&shrunk) - fact).abs() < 0.02, "{} for {fact}; told {}", promised(&shrunk), promised(&told));
            // Counts alone promise more, the more so the fewer they are.
            prop_assert!(promised(&told) - fact > 0.3 / mean.sqrt() - 0.02, "{}", promised(&told));
        }

        /// Strong skew: nearly what was told, and hot stays hot.
        #[test]
        fn skewed_load_stays(seed: u64, hot in 500.0..5000.0_f64, exponent in 0.8..1.3_f64) {
            // Chunks in no order, so that those with equal counts are not told apart by their place.
            let rank = |at: u32| f64::from(at * 617 % 1000 + 1);
            let means: Vec<f64> = (0..1000).map(|at| hot / rank(at).powf(exponent)).collect();
            let (shrunk, told) = believed(&levels(seed, &means));
            let total = |of: &[f64]| of.iter().sum::<f64>();
            let kept = total(&shrunk) / total(&told);
            prop_assert!((kept - 1.0).abs() < 1e-6, "{kept}");
            for (shrunk, told) in shrunk.iter().zip(&told).filter(|(_, told)| **told > 50.0) {
                prop_assert!((shrunk / told - 1.0).abs() < 0.25, "{shrunk} for {told}");
            }
            for part in [0.05, 0.2, 0.5] {
                let fact = share_of_highest(&told, &means, part);
                let promised = share_of_highest(&told, &shrunk, part);
                prop_assert!((promised - fact).abs() < 0.03, "{part}: {promised} for {fact}");
            }
        }

        /// Whatever is told: ascending, finite, and no use is lost or made.
        #[test]
        fn always_a_table(told in prop::collection::vec((0usize..256, 1u64..1_000_000), 1..40), exposure_s in 1.0..2000.0_f64) {
            let mut chunks = [0; 256];
            told.iter().for_each(|(level, count)| chunks[*level] += count);
            let (rates, out) = (rates(), shrink(&rates(), &chunks, exposure_s));
            prop_assert!(out.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(out.iter().all(|rate| rate.is_finite() && *rate >= 0.0));
            let sum = |rates: &[f64; 256]| (0..256).map(|l| rates[l] * count(chunks[l])).sum::<f64>();
            prop_assert!((sum(&out) - sum(&rates)).abs() <= 1e-6 * sum(&rates));
        }
    }
}
