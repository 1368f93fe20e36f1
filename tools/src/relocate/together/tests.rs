//! The copula against samples of it, and fits against what they were made from.

use super::super::problem::{Class, Node, Rules, Set};
use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ukai_meta::report::GuestReports;
use ukai_meta::{LatencyPoints, NodeLatency};
use ukai_proto::Token;

const SAMPLES: u32 = 100_000;
/// See `model/tests.rs`.
const TOLERANCE: f64 = 0.0104;

/// Three numbers, each even from 0 to 1, joined by the copula: Marshall and Olkin's way, with a positive stable variable by
/// Kanter's.
fn sample(alpha: f64, random: &mut ChaCha8Rng) -> [f64; 3] {
    let exponential = |random: &mut ChaCha8Rng| -(1.0 - random.random::<f64>()).ln();
    let angle = random.random::<f64>() * std::f64::consts::PI;
    let stable = (alpha * angle).sin() / angle.sin().powf(alpha.recip())
        * (((1.0 - alpha) * angle).sin() / exponential(random)).powf((1.0 - alpha) / alpha);
    [(); 3].map(|()| (-(exponential(random) / stable).powf(alpha)).exp())
}

fn points(us: f64, slow: f64) -> LatencyPoints {
    // A body, and a tail of one in twenty.
    LatencyPoints::from_quantiles(2000, |q| {
        us * (1.0 + q + slow * ((q - 0.95).max(0.0) / 0.05).powi(2))
    })
    .expect("finite")
}

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

/// A chunk each on nodes 0 and 1, on 1 and 2, and on 0 alone.
fn problem() -> Problem {
    let node = |n| Node {
        id: id(n),
        name: format!("n{n}"),
        site: "s".into(),
        is_alive: true,
        is_draining: false,
        is_evacuated: false,
        free_bytes: 0,
        model: None,
    };
    let class = |set, write| Class {
        set,
        movable: true,
        read: 0.0,
        write,
        bytes: 0,
        chunks: 1,
        runs: vec![(set, 1)],
    };
    let set = |in_sync: &[NodeIndex]| Set {
        in_sync: in_sync.to_vec(),
        ..Set::default()
    };
    Problem {
        nodes: (0..3).map(node).collect(),
        sets: vec![set(&[0, 1]), set(&[1, 2]), set(&[0])],
        classes: vec![class(0, 0.2), class(1, 0.3), class(2, 0.5)],
        rules: Rules::default(),
        demands: Vec::new(),
        chunk_bytes: 1 << 20,
        heat_known: [true; 2],
        dependence: Dependence::default(),
    }
}

fn front(writes: Option<LatencyPoints>, nodes: &[LatencyPoints]) -> FrontReport {
    let mut guest = GuestReports::default();
    guest.write.front = LatencyPoints::from_quantiles(2000, |q| 10.0 + q);
    let node = |(n, points): (u8, &LatencyPoints)| NodeLatency {
        write: Some(*points),
        ..NodeLatency::of(id(n))
    };
    FrontReport {
        host: "h".into(),
        token: Token(1),
        at_unix_s: 1,
        since_unix_s: None,
        guest,
        wake: None,
        write_replicated: writes,
        nodes: (0..).zip(nodes).map(node).collect(),
        job: None,
    }
}

/// Alike: of nodes of which one is always the slowest nothing can be found.
fn nodes() -> [LatencyPoints; 3] {
    [
        points(500.0, 20.0),
        points(500.0, 21.0),
        points(490.0, 20.5),
    ]
}

/// What a front measures where nodes are as dependent as that.
fn writes(dependence: Dependence) -> LatencyPoints {
    let told = Measured::of(&front(Some(points(1.0, 1.0)), &nodes())).expect("enough");
    let within =
        |set: [u8; 2], us| dependence.all(set.map(|n| told.nodes[&id(n)].share_within(us)));
    LatencyPoints::from_quantiles(2000, |q| {
        super::super::model::quantile_of(q, |us| {
            0.4 * within([0, 1], us) + 0.6 * within([1, 2], us)
        })
    })
    .expect("finite")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_copula_agrees_with_monte_carlo(alpha in ALPHA_MIN..0.99, us in prop::array::uniform3(0.05f64..0.999), seed in any::<u64>()) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut all, mut first) = (0, 0);
        for _ in 0..SAMPLES {
            let drawn = sample(alpha, &mut random);
            all += u32::from(drawn.iter().zip(us).all(|(drawn, us)| *drawn <= us));
            first += u32::from(drawn[0] <= us[0]);
        }
        let share = |count: u32| f64::from(count) / f64::from(SAMPLES);
        prop_assert!((share(first) - us[0]).abs() <= TOLERANCE, "margin {} {}", share(first), us[0]);
        let model = Dependence::new(alpha).all(us);
        prop_assert!((share(all) - model).abs() <= TOLERANCE, "{} {model}", share(all));
    }

    #[test]
    fn it_lies_between_independent_and_together(alpha in 0.0f64..=1.0, us in prop::collection::vec(0.0f64..=1.0, 1..6)) {
        let all = Dependence::new(alpha).all(us.iter().copied());
        let least = us.iter().copied().fold(1.0, f64::min);
        prop_assert!(all <= least + 1e-12 && all >= us.iter().product::<f64>() - 1e-12, "{all}");
    }

    #[test]
    fn a_fit_finds_what_the_writes_were_made_with(alpha in 0.1f64..0.95) {
        let measured = Measured::of(&front(Some(writes(Dependence::new(alpha))), &nodes())).expect("enough");
        let found = problem().dependence_fitting(&measured).expect("two copies").alpha();
        // The tail is kept at few points, the shares at steps of 2.2 %.
        prop_assert!((found - alpha).abs() < 0.08, "{found} of {alpha}");
    }
}

#[test]
fn what_no_dependence_explains_is_the_nearest() {
    let fitted = |writes| {
        let measured = Measured::of(&front(Some(writes), &nodes())).expect("enough");
        problem()
            .dependence_fitting(&measured)
            .expect("two copies")
            .alpha()
    };
    assert_eq!(fitted(points(5000.0, 30.0)), 1.0);
    assert_eq!(fitted(points(5.0, 1.0)), ALPHA_MIN);
}

#[test]
fn nothing_is_fitted_to_too_little() {
    assert!(Measured::of(&front(None, &nodes())).is_none());
    let few = LatencyPoints::from_quantiles(SAMPLES_MIN - 1, |q| 1.0 + q);
    assert!(Measured::of(&front(few, &nodes())).is_none());
    // One node is not measured.
    let told = front(Some(points(500.0, 20.0)), &nodes()[..2]);
    let measured = Measured::of(&told).expect("enough");
    assert_eq!(problem().dependence_fitting(&measured), None);
    assert_eq!(
        problem().depending(Some(&measured)).dependence,
        Dependence::default()
    );
    let mut alone = problem();
    alone
        .sets
        .iter_mut()
        .for_each(|set| set.in_sync.truncate(1));
    let measured = Measured::of(&front(Some(points(500.0, 20.0)), &nodes())).expect("enough");
    assert_eq!(alone.dependence_fitting(&measured), None);
}
