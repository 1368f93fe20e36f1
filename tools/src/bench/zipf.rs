//! Zipf's distribution over any number of ranks, without a table: rejection-inversion, after W. Hörmann and
//! G. Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions" (1996).

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Ranks 1 to `count`, each with a weight of its power of minus `theta`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zipf {
    count: f64,
    theta: f64,
    /// The integral of the weight at the ends of what is drawn from.
    low: f64,
    high: f64,
    /// A draw so little below its rank is taken without a look at the weight.
    sure: f64,
}

impl Zipf {
    /// `count`: at least 1. `theta`: above 0.
    pub(crate) fn new(count: u64, theta: f64) -> Self {
        assert!(count > 0 && theta > 0.0, "zipf of {count} ranks, {theta}");
        #[allow(clippy::cast_precision_loss)] // a volume has at most 2^38 sectors
        let mut zipf = Self {
            count: count as f64,
            theta,
            low: 0.0,
            high: 0.0,
            sure: 0.0,
        };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(zipf.count + 0.5);
        zipf.sure = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    pub(crate) fn rank(&self, rng: &mut ChaCha8Rng) -> u64 {
        loop {
            let draw = self.high + rng.random::<f64>() * (self.low - self.high);
            let x = self.inverse(draw);
            let rank = (x + 0.5).floor().clamp(1.0, self.count);
            if rank - x <= self.sure || draw >= self.integral(rank + 0.5) - self.weight(rank) {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1 to `count`
                return rank as u64;
            }
        }
    }

    fn weight(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }

    /// Of the weight, from 1 to `x`.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        exp_m1_share((1.0 - self.theta) * log) * log
    }

    fn inverse(&self, integral: f64) -> f64 {
        // Rounding may go below.
        let t = (integral * (1.0 - self.theta)).max(-1.0);
        (ln_1p_share(t) * integral).exp()
    }
}

/// Below this the first terms of the series are exact, and the division is not.
const SMALL: f64 = 1e-8;

/// `(e^x - 1) / x`
fn exp_m1_share(x: f64) -> f64 {
    if x.abs() > SMALL {
        x.exp_m1() / x
    } else {
        1.0 + x / 2.0
    }
}

/// `ln(1 + x) / x`
fn ln_1p_share(x: f64) -> f64 {
    if x.abs() > SMALL {
        x.ln_1p() / x
    } else {
        1.0 - x / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// Each rank comes as often as its weight says, at theta 1 too, where the integral is another.
    #[test]
    fn ranks_have_their_weights() {
        for theta in [0.3, 0.99, 1.0, 1.5, 4.0] {
            let (count, draws) = (7, 100_000);
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            let zipf = Zipf::new(count, theta);
            let mut seen = [0.0; 8];
            for _ in 0..draws {
                seen[usize::try_from(zipf.rank(&mut rng)).unwrap()] += 1.0;
            }
            let weight = |rank: i32| f64::from(rank).powf(-theta);
            let sum: f64 = (1..=7).map(weight).sum();
            for rank in 1..=7i32 {
                let expected = f64::from(draws) * weight(rank) / sum;
                let seen: f64 = seen[usize::try_from(rank).unwrap()];
                // Five standard deviations.
                let most = 5.0 * expected.sqrt() + 1.0;
                assert!(
                    (seen - expected).abs() < most,
                    "{theta}: {rank}: {seen} of {expected}"
                );
            }
        }
    }

    #[test]
    fn one_rank_and_very_many() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        assert_eq!(Zipf::new(1, 0.99).rank(&mut rng), 1);
        let zipf = Zipf::new(1 << 38, 0.99);
        assert!((0..1000).all(|_| (1..=1 << 38).contains(&zipf.rank(&mut rng))));
    }
}
