use super::super::cover::cover;
use super::super::model::Distribution;
use super::super::problem::{Demand, Heat, Known, Node, NodeModel, Problem, Rules};
use super::super::target::Kind;
use super::*;
use proptest::prelude::*;
use ukai_meta::transition::{self, NewVolume};
use ukai_meta::{Durability, PlaceRule};
use ukai_proto::{NodeId, VolumeId};

pub(crate) fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

/// A volume of so many chunks of 1 MiB on nodes 1 and 2.
pub(crate) fn map(chunks: u32) -> VolumeMap {
    let new = NewVolume {
        volume: VolumeId([1; 16]),
        name: "v".into(),
        size_bytes: u64::from(chunks) << 20,
        chunk_bytes: 1 << 20,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "site-a".into(),
            copies: 2,
        }],
        nodes: vec![vec![id(1), id(2)]],
    };
    transition::create(&new).unwrap().next
}

/// Nodes 1 and 2 far away in site-a, 3 and 4 near in site-b.
pub(crate) fn nodes(free_bytes: u64) -> Vec<Node> {
    [
        (1, "site-a", 10_000.0),
        (2, "site-a", 10_100.0),
        (3, "site-b", 200.0),
        (4, "site-b", 210.0),
    ]
    .into_iter()
    .map(|(n, site, us)| {
        let read = Distribution::constant(us);
        Node {
            id: id(n),
            name: format!("n{n}"),
            site: site.into(),
            is_alive: true,
            is_draining: false,
            is_evacuated: false,
            free_bytes,
            model: Some(NodeModel {
                write: read.clone(),
                read,
            }),
        }
    })
    .collect()
}

pub(crate) fn heat(codes: Vec<u8>) -> Heat {
    let rates: Vec<f64> = (0u8..=255).map(f64::from).collect();
    Heat {
        codes: codes.into_iter().map(|code| [code, code]).collect(),
        rates: [rates.clone(), rates].map(|rates| rates.into_boxed_slice().try_into().unwrap()),
    }
}

pub(crate) fn reads_within(probability: f64) -> Demand {
    Demand {
        kind: Kind::Read,
        probability,
        limit_us: 1000.0,
    }
}

proptest! {
    #[test]
    fn goals_are_what_the_search_moves(
        codes in prop::collection::vec(0u8..20, 20..200),
        probability in 0.1f64..1.0,
        ranges_max in 1usize..40,
        split in any::<bool>(),
        free_chunks in 0u64..300,
    ) {
        let chunks = u32::try_from(codes.len()).unwrap();
        let mut map = map(chunks);
        if split {
            // A part of the volume lies elsewhere.
            let range = ChunkRange { start: ChunkIndex(5), count: 7 };
            let add = transition::add_location(&map, range, id(4)).unwrap().next;
            let both = transition::promote(&add, range, id(4)).unwrap().next;
            map = transition::remove_location(&both, range, id(1), 2).unwrap().next;
        }
        let heat = heat(codes.clone());
        let known = Known { nodes: nodes((u64::from(chunks) + free_chunks) << 20), heat: Some(&heat), written: None };
        let problem = Problem::new(&map, known, map.all(), Rules::default(), vec![reads_within(probability)]);
        // The classes are a partition, and their loads the whole.
        let total: f64 = problem.classes.iter().map(|class| class.read * class.chunks as f64).sum();
        prop_assert!((total - 1.0).abs() < 1e-9, "{total}");
        let mut all: Vec<u32> = problem.classes.iter().flat_map(|class| class.runs.iter().flat_map(|(s, n)| *s..s + n)).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..chunks).collect::<Vec<_>>());
        let Ok(found) = cover(&problem) else { return Ok(()) };

        let whole = goals(&found, &map, usize::MAX);
        let moved: u64 = whole.goals.iter().map(|(_, count, _)| u64::from(*count)).sum();
        prop_assert_eq!(moved << 20, found.bytes);
        let few = goals(&found, &map, ranges_max);
        prop_assert!(few.goals.len() <= ranges_max);
        let mut seen = vec![false; codes.len()];
        for (start, count, set) in &few.goals {
            for chunk in *start..start + count {
                prop_assert!(!std::mem::replace(&mut seen[chunk as usize], true), "chunk {} twice", chunk);
                let goal = &few.sets[usize::from(*set)];
                let replicas = map.replicas(ChunkIndex(chunk));
                prop_assert!(goal.remove.iter().all(|node| replicas.on(*node).is_some()));
                prop_assert!(goal.add.iter().all(|node| replicas.on(*node).is_none()));
                prop_assert_eq!(replicas.in_sync_count() + goal.add.len() - goal.remove.len(), usize::from(goal.copies));
            }
        }
        let moved_few: u64 = few.goals.iter().map(|(_, count, _)| u64::from(*count)).sum();
        prop_assert_eq!(moved_few + few.left_out_chunks, moved + few.filled_chunks);
        prop_assert!(found.bytes + few.filled_bytes <= ((u64::from(chunks) + free_chunks) * 2) << 20);
        if whole.goals.len() <= ranges_max {
            prop_assert_eq!((few.filled_chunks, few.left_out_chunks), (0, 0));
        }
        // Hottest first, chunk by chunk within what bands tell apart: the first range has the hottest chunk.
        if let Some((start, count, _)) = whole.goals.first() {
            let hottest = |of: std::ops::Range<u32>| of.map(|chunk| codes[chunk as usize]).max();
            let moved_max = whole.goals.iter().filter_map(|(s, n, _)| hottest(*s..s + n)).max();
            prop_assert!(hottest(*start..start + count) >= moved_max.map(|max| max / 2));
        }
    }
}

#[test]
fn gaps_are_filled_shortest_first() {
    // Hot chunks 0, 2, 3, 8, 9; two ranges allowed: 1 is filled, 4 to 7 are not.
    let codes = vec![9, 0, 9, 9, 0, 0, 0, 0, 9, 9, 0, 0];
    let map = map(12);
    let heat = heat(codes);
    let known = Known {
        nodes: nodes(1 << 40),
        heat: Some(&heat),
        written: None,
    };
    let problem = Problem::new(
        &map,
        known,
        map.all(),
        Rules::default(),
        vec![reads_within(1.0)],
    );
    let found = cover(&problem).unwrap();
    assert_eq!(found.bytes, 5 << 20);
    let few = goals(&found, &map, 2);
    let mut ranges: Vec<(u32, u32)> = few.goals.iter().map(|goal| (goal.0, goal.1)).collect();
    ranges.sort_unstable();
    assert_eq!(ranges, [(0, 4), (8, 2)]);
    assert_eq!(
        (few.filled_chunks, few.filled_bytes, few.left_out_chunks),
        (1, 1 << 20, 0)
    );
    assert_eq!(
        few.sets,
        [GoalSet {
            add: vec![id(3)],
            remove: vec![few.sets[0].remove[0]],
            copies: 2
        }]
    );
}
