use super::super::goals::tests::{heat, id, map, nodes};
use super::super::problem::Heat;
use super::super::problem::Node;
use super::*;
use std::time::Instant;
use ukai_meta::PlaceRule;
use ukai_meta::transition;
use ukai_proto::ChunkIndex;

fn ask(targets: &[&str]) -> Ask {
    Ask {
        host: "hv1".into(),
        targets: targets
            .iter()
            .map(|target| target.parse().unwrap())
            .collect(),
        rules: Rules {
            keep_sites: true,
            ..Rules::default()
        },
        ..Ask::default()
    }
}

fn copies(site: &str, copies: u8) -> PlaceRule {
    PlaceRule {
        site: site.into(),
        copies,
    }
}

#[test]
fn a_skewed_load_moves_its_hot_part_only() {
    // 10 of 100 chunks take 99.2 % of the load, a little less than the margin wants.
    let mut codes = vec![0u8; 100];
    codes[40..50].fill(99);
    codes[70..78].fill(1);
    let heat = heat(codes);
    let known = Known {
        nodes: nodes(1 << 40),
        heat: Some(&heat),
        written: None,
    };
    let plan = plan(
        &map(100),
        known,
        &Ask {
            curve: true,
            ..ask(&["p99-read<=1ms"])
        },
    );
    assert_eq!(plan.impossible, None);
    assert_eq!(
        (plan.chunks_moved, plan.bytes_moved, plan.bytes_min),
        (11, 11 << 20, plan.bytes_min)
    );
    assert!(
        plan.bytes_min > 10 << 20 && plan.bytes_min <= 11 << 20,
        "{}",
        plan.bytes_min
    );
    assert!((plan.margin - MARGIN).abs() < 1e-12);
    assert_eq!(plan.goals.sets.len(), 1);
    assert_eq!(plan.goals.sets[0].add, [id(3)]);
    assert_eq!(plan.goals.sets[0].copies, 2);
    assert_eq!(plan.goals.goals[0], (40, 10, 0), "the hottest first");
    let (now, after) = (plan.now.unwrap(), plan.after.unwrap());
    assert!(
        (now.read.p99_us / 10_000.0 - 1.0).abs() < 0.03
            && (after.read.p99_us / 200.0 - 1.0).abs() < 0.03
    );
    // One copy stays far: writes are as slow as before.
    assert!((after.write.p50_us / now.write.p50_us - 1.0).abs() < 0.03);
    assert!(!plan.targets[0].is_met_now && plan.targets[0].is_met_after);
    assert!((plan.breaking.iter().map(|range| range.load).sum::<f64>() - 1.0).abs() < 1e-6);
    assert!(plan.curve.len() > 5);
    assert!(
        plan.curve.is_sorted_by(
            |a, b| a.bytes < b.bytes && a.latency.read.p99_us >= b.latency.read.p99_us
        )
    );
    assert!(
        (plan.moves[0].reads - 991.0 / 998.0).abs() < 1e-9,
        "{:?}",
        plan.moves
    );
}

#[test]
fn writes_need_every_copy_near_and_keep_their_sites() {
    let known = || Known {
        nodes: nodes(1 << 40),
        heat: None,
        written: None,
    };
    let both = plan(&map(100), known(), &ask(&["p50-write<=1ms"]));
    // 60 % of the chunks (the margin), both copies of each.
    assert_eq!((both.bytes_moved, both.wan_bytes), (120 << 20, 120 << 20));
    assert_eq!(both.goals.sets[0].add, [id(3), id(4)]);
    let tied = Ask {
        rules: Rules {
            copies: vec![copies("site-a", 1)],
            ..Rules::default()
        },
        ..ask(&["p50-write<=1ms"])
    };
    let impossible = plan(&map(100), known(), &tied).impossible.unwrap();
    assert_eq!(
        impossible.reasons,
        ["the rule --copies site-a:1 forbids it"]
    );
    let best = impossible.best[0].best_us.unwrap();
    assert!((best / 10_000.0 - 1.0).abs() < 0.05, "{best}");
}

#[test]
fn what_is_met_already_moves_nothing() {
    let known = Known {
        nodes: nodes(1 << 40),
        heat: None,
        written: None,
    };
    let plan = plan(&map(100), known, &ask(&["p99<=20ms"]));
    assert_eq!(
        (plan.bytes_moved, plan.goals.goals.len(), plan.targets.len()),
        (0, 0, 2)
    );
    assert!(
        plan.targets
            .iter()
            .all(|fate| fate.is_met_now && fate.is_met_after)
            && plan.breaking.is_empty()
    );
}

#[test]
fn the_impossible_says_why_and_what_is_the_best() {
    let reasons = |nodes: Vec<Node>, ask: &Ask| {
        let known = Known {
            nodes,
            heat: None,
            written: None,
        };
        let impossible = plan(&map(100), known, ask).impossible.unwrap();
        (
            impossible.reasons.join("; "),
            impossible.best.first().and_then(|best| best.best_us),
        )
    };
    let hundred = ask(&["p99-read<=1ms"]);
    // Space for 30 chunks each on the near nodes.
    let (why, best) = reasons(nodes(30 << 20), &hundred);
    assert!(
        why.contains("not enough space: node n3 in site-b has 30MiB free"),
        "{why}"
    );
    assert!((best.unwrap() / 10_000.0 - 1.0).abs() < 0.05, "{best:?}");
    let mut gone = nodes(1 << 40);
    gone[2].is_alive = false;
    gone[3].is_draining = true;
    let (why, _) = reasons(gone, &hundred);
    assert!(
        why.contains("node n3 in site-b is not alive")
            || why.contains("node n4 in site-b is draining"),
        "{why}"
    );
    let (why, best) = reasons(nodes(1 << 40), &ask(&["p99-read<=100us"]));
    assert_eq!(
        why,
        "no node is near enough: the nearest to hv1 is n3 in site-b, 99 % of whose reads are done within 197us"
    );
    assert!((best.unwrap() / 200.0 - 1.0).abs() < 0.03, "{best:?}");
    let only = Ask {
        rules: Rules {
            only_sites: vec!["site-a".into()],
            ..Rules::default()
        },
        ..hundred.clone()
    };
    assert_eq!(
        reasons(nodes(1 << 40), &only).0,
        "the rule --only-sites site-a forbids it"
    );
    let part = Ask {
        range: Some(ChunkRange {
            start: ChunkIndex(0),
            count: 50,
        }),
        ..hundred
    };
    assert_eq!(
        reasons(nodes(1 << 40), &part).0,
        "chunks outside of --range would have to move too"
    );
}

#[test]
fn moves_by_rule_alone() {
    let plan_with = |rules: Rules, edit: fn(&mut Vec<Node>)| {
        let mut nodes = nodes(1 << 40);
        edit(&mut nodes);
        plan(
            &map(10),
            Known {
                nodes,
                heat: None,
                written: None,
            },
            &Ask { rules, ..ask(&[]) },
        )
    };
    let to_b = plan_with(
        Rules {
            to_site: Some("site-b".into()),
            ..Rules::default()
        },
        |_| {},
    );
    assert_eq!(
        (to_b.bytes_moved, to_b.goals.sets[0].add.clone()),
        (20 << 20, vec![id(3), id(4)])
    );
    let one = Rules {
        to_site: Some("site-b".into()),
        copies: vec![copies("site-a", 1)],
        ..Rules::default()
    };
    assert_eq!(plan_with(one, |_| {}).bytes_moved, 10 << 20);
    let off = plan_with(Rules::default(), |nodes| nodes[0].is_evacuated = true);
    assert_eq!(off.goals.sets[0].remove, [id(1)]);
    let nowhere = plan_with(Rules::default(), |nodes| {
        nodes[0].is_evacuated = true;
        nodes[2].is_draining = true;
        nodes[3].free_bytes = 3 << 20;
    });
    let impossible = nowhere.impossible.unwrap();
    assert_eq!(impossible.homeless_chunks, 7);
    assert!(
        impossible.reasons[0].contains("node n4 in site-b has 3MiB free, 10MiB would be needed"),
        "{:?}",
        impossible.reasons
    );
    let third = plan_with(
        Rules {
            copies: vec![copies("site-a", 2), copies("site-b", 1)],
            ..Rules::default()
        },
        |_| {},
    );
    assert_eq!(
        (third.goals.sets[0].remove.len(), third.goals.sets[0].copies),
        (0, 3)
    );
}

#[test]
fn stale_replicas_count_for_nothing_and_are_left_alone() {
    let stale = transition::mark_stale(&map(10), &[id(2)]).unwrap().next;
    let known = Known {
        nodes: nodes(1 << 40),
        heat: None,
        written: None,
    };
    let got = plan(&stale, known, &ask(&["p50-read<=1ms"]));
    let goal = &got.goals.sets[0];
    assert_eq!(
        (goal.add.as_slice(), goal.remove.as_slice(), goal.copies),
        ([id(3)].as_slice(), [id(1)].as_slice(), 1)
    );
}

/// Four million chunks in 1000 runs of 50 replica sets, 100 nodes, a load with a thousand levels. No time is
/// asserted; `--nocapture` prints it.
#[test]
#[allow(clippy::disallowed_methods)] // only printed
fn four_million_chunks_and_a_hundred_nodes() {
    let chunks = 4_000_000u32;
    let mut map = map(chunks);
    let base = nodes(1 << 50);
    let mut many: Vec<Node> = Vec::new();
    for n in 1u8..=100 {
        let near = n > 60;
        let mut node = base[if near { 2 } else { 0 }].clone();
        (node.id, node.name) = (id(n), format!("n{n}"));
        node.site = format!("site-{}", (n - 1) / 20);
        let read = super::super::model::Distribution::constant(
            if near { 200.0 } else { 10_000.0 } + f64::from(n) * 3.0,
        );
        node.model = Some(super::super::problem::NodeModel {
            write: read.clone(),
            read,
        });
        many.push(node);
    }
    for n in 0..1000u32 {
        let to = id(u8::try_from(3 + n % 50).unwrap());
        let range = ChunkRange {
            start: ChunkIndex(n * 4000),
            count: 2000,
        };
        let add = transition::add_location(&map, range, to).unwrap().next;
        let both = transition::promote(&add, range, to).unwrap().next;
        map = transition::remove_location(&both, range, id(1), 2)
            .unwrap()
            .next;
    }
    let codes: Vec<[u8; 2]> = (0..chunks)
        .map(|chunk| {
            let mixed = chunk.wrapping_mul(2_654_435_761);
            [
                u8::try_from(mixed >> 27).unwrap(),
                u8::try_from(mixed >> 22 & 31).unwrap(),
            ]
        })
        .collect();
    let rates: Vec<f64> = (0u8..=255)
        .map(|code| (f64::from(code) / 3.0).exp2() - 1.0)
        .collect();
    let heat = Heat {
        codes,
        rates: [rates.clone(), rates].map(|rates| rates.into_boxed_slice().try_into().unwrap()),
    };
    let began = Instant::now();
    let known = Known {
        nodes: many.clone(),
        heat: Some(&heat),
        written: None,
    };
    let got = plan(&map, known, &ask(&["p99-read<=2ms"]));
    println!(
        "p99-read<=2ms: {:?}, {} ranges, {} chunks",
        began.elapsed(),
        got.goals.goals.len(),
        got.chunks_moved
    );
    assert_eq!(got.impossible, None);
    assert!(got.goals.goals.len() <= RANGES_MAX && got.targets[0].is_met_after);
    let began = Instant::now();
    let known = Known {
        nodes: many,
        heat: Some(&heat),
        written: None,
    };
    let rules = Rules::default();
    let got = plan(
        &map,
        known,
        &Ask {
            rules,
            ..ask(&["p99-read<=2ms", "p90-write<=2ms"])
        },
    );
    println!(
        "two targets: {:?}, {} ranges, {} chunks",
        began.elapsed(),
        got.goals.goals.len(),
        got.chunks_moved
    );
    assert_eq!(got.impossible, None);
}

#[test]
fn copies_are_only_added_and_space_is_kept() {
    let mut codes = vec![0u8; 100];
    codes[40..50].fill(99);
    let heat = heat(codes);
    // Nodes 3 and 4 are near; each has room for 6 chunks.
    let known = Known {
        nodes: nodes(6 << 20),
        heat: Some(&heat),
        written: None,
    };
    let mut asked = ask(&["p99-read<=1ms"]);
    asked.rules.only_add = true;
    asked.present = Some(
        nodes(0)
            .into_iter()
            .filter_map(|node| Some((node.id, node.model?)))
            .collect(),
    );
    let plan = plan(&map(100), known.clone(), &asked);
    assert_eq!(plan.impossible, None);
    assert_eq!((plan.chunks_moved, plan.moves.len()), (10, 2), "{plan:?}");
    for one in &plan.moves {
        assert!(
            one.goal.remove.is_empty() && one.goal.add.len() == 1,
            "{one:?}"
        );
        assert!(one.chunks <= 6 && one.goal.copies == 2, "{one:?}");
    }
    let [now, after] = plan.present.unwrap();
    assert_eq!(Some(now), plan.now);
    assert_eq!(Some(after), plan.after);
    assert!(
        after.write.p50_us >= now.write.p50_us,
        "one more to wait for"
    );
    // A share in place of the target, whatever that needs.
    asked.share = Some(0.5);
    let half = super::plan(&map(100), known, &asked);
    assert_eq!((half.chunks_moved, half.margin), (5, 1.0), "{half:?}");
    assert!(!half.targets[0].is_met_after);
}
