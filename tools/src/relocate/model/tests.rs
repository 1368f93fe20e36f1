//! Against Monte Carlo with a fixed seed per case.
//!
//! Tolerance: with N = 100,000 samples the empirical distribution is off by more than 0.0104 anywhere in
//! one of 10^9 cases (Dvoretzky, Kiefer, Wolfowitz); the grid is off by at most a step, 2.2 %, per
//! operation, and sums by two. So the model at 5 % above a sampled quantile must be at least the quantile's
//! probability less 0.0104, and at 5 % below at most that plus 0.0104.

use super::super::together::Dependence;
use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SAMPLES: usize = 100_000;
const SHARE_TOLERANCE: f64 = 0.0104;
const VALUE_TOLERANCE: f64 = 0.05;

/// Points of a plausible shape: a least value and steps upward that may be zero.
fn points() -> impl Strategy<Value = LatencyPoints> {
    (
        1.0f64..20_000.0,
        prop::collection::vec(prop_oneof![Just(0.0), 0.0f64..0.2, 0.0f64..3.0], 18),
    )
        .prop_map(|(least, steps)| {
            let mut us = vec![least];
            for step in steps {
                us.push((us[us.len() - 1] * (1.0 + step)).min(1e7));
            }
            let at = |q: f64| {
                us[QUANTILES
                    .iter()
                    .position(|quantile| *quantile == q)
                    .unwrap()]
            };
            LatencyPoints::from_quantiles(1000, at).unwrap()
        })
}

/// The slowest of several.
fn maximum(dependence: Dependence, parts: &[&Distribution]) -> Distribution {
    Distribution::at_edges(|edge| dependence.all(parts.iter().map(|part| part.cdf[edge])))
}

fn sample(points: &LatencyPoints, random: &mut ChaCha8Rng) -> f64 {
    points.quantile(random.random::<f64>())
}

fn agree(model: &Distribution, mut samples: Vec<f64>, what: &str) {
    samples.sort_by(f64::total_cmp);
    for share in [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98] {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let value = samples[(share * samples.len() as f64) as usize].max(1.0);
        let above = model.share_within(value * (1.0 + VALUE_TOLERANCE));
        let below = model.share_within(value * (1.0 - VALUE_TOLERANCE));
        assert!(
            above >= share - SHARE_TOLERANCE && below <= share + SHARE_TOLERANCE,
            "{what}: {share} of the samples are within {value} us, the model says {below}..{above}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn operations_agree_with_monte_carlo(a in points(), b in points(), c in points(), weight in 0.05f64..0.95, seed in any::<u64>()) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let [da, db, dc] = [&a, &b, &c].map(Distribution::from_points);
        let mut draw = |pick: &dyn Fn(&mut ChaCha8Rng) -> f64| -> Vec<f64> { (0..SAMPLES).map(|_| pick(&mut random)).collect() };

        let mixed = draw(&|r| if r.random::<f64>() < weight { sample(&a, r) } else { sample(&b, r) });
        agree(&Distribution::mixture([(weight * 7.0, &da), ((1.0 - weight) * 7.0, &db)]), mixed, "mixture");
        let slowest = draw(&|r| sample(&a, r).max(sample(&b, r)).max(sample(&c, r)));
        agree(&maximum(Dependence::default(), &[&da, &db, &dc]), slowest, "maximum");
        let summed = draw(&|r| sample(&a, r) + sample(&b, r));
        agree(&da.sum(&db), summed, "sum");
        // A volume: half its writes go to {a, b}, half to {c}.
        let volume = draw(&|r| if r.random::<bool>() { sample(&a, r).max(sample(&b, r)) } else { sample(&c, r) });
        agree(&Distribution::mixture([(1.0, &maximum(Dependence::default(), &[&da, &db])), (1.0, &dc)]), volume, "volume");
    }
}

proptest! {
    #[test]
    fn distributions_ascend_and_quantiles_come_back(points in points(), a in 0.001f64..0.999, b in 0.001f64..0.999, us in 1.0f64..1e8) {
        let d = Distribution::from_points(&points);
        prop_assert!(d.cdf.is_sorted() && d.cdf[EDGES - 1] == 1.0);
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(d.quantile(low) <= d.quantile(high));
        prop_assert!((d.share_within(d.quantile(a)) - a).abs() < 1e-9 || d.share_within(d.quantile(a)) >= a);
        let share = d.share_within(us);
        prop_assert!(share == 0.0 || d.quantile(share) <= us * (1.0 + 1e-9) + 1e-6);
        // Against the points themselves: one step of the grid. Below 1 us everything is 1 us.
        let exact = points.quantile(a).max(1.0);
        let near = |us: f64| us * 1.023;
        prop_assert!(d.quantile(a) <= near(exact) && exact <= near(d.quantile(a)), "{} against {exact}", d.quantile(a));
        prop_assert!((quantile_of(a, |us| d.share_within(us)) - d.quantile(a)).abs() <= exact * 1e-6 + 1e-6);
    }

    #[test]
    fn more_replicas_are_never_faster_and_mixtures_lie_between(a in points(), b in points(), us in 1.0f64..1e8, alpha in 0.0f64..=1.0) {
        let (a, b) = (Distribution::from_points(&a), Distribution::from_points(&b));
        let (fa, fb) = (a.share_within(us), b.share_within(us));
        prop_assert!(maximum(Dependence::new(alpha), &[&a, &b]).share_within(us) <= fa.min(fb) + 1e-12);
        let mixed = Distribution::mixture([(1.0, &a), (3.0, &b)]).share_within(us);
        prop_assert!(mixed >= fa.min(fb) - 1e-12 && mixed <= fa.max(fb) + 1e-12);
        prop_assert!(a.sum(&b).share_within(us) <= fa.min(fb) + 1e-12);
    }

    #[test]
    fn a_constant_is_within_a_step(us in 1.03f64..1e8, other in points(), at in 0.01f64..0.99) {
        let constant = Distribution::constant(us);
        for share in [0.001, 0.5, 0.999] {
            let got = constant.quantile(share);
            prop_assert!(got <= us * 1.0001 && got >= us / 1.045, "{got} for {us}");
        }
        let other = Distribution::from_points(&other);
        let (sum, exact) = (constant.sum(&other).quantile(at), us + other.quantile(at));
        prop_assert!((sum / exact - 1.0).abs() < 0.07, "{sum} for {exact}");
    }
}

#[test]
fn edges_are_found_exactly() {
    for edge in 0..EDGES {
        assert_eq!(edge_below(edge_us(edge)), edge);
        assert_eq!(edge_below(edge_us(edge) * 1.000_001), edge);
    }
    assert_eq!(edge_below(0.0), 0);
    assert_eq!(edge_below(1e12), EDGES - 1);
}
