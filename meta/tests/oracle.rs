//! Every sequence of transitions against a slow, obvious model: per chunk a map from node to state.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

use proptest::prelude::*;
use std::collections::BTreeMap;
use ukai_meta::catalog;
use ukai_meta::memory::MemoryCluster;
use ukai_meta::transition::{self as tr, Change, NewVolume, TransitionError};
use ukai_meta::{Attach, Durability, NodeHealth, PlaceRule, ReplicaState, VolumeMap};
use ukai_proto::message::ChunkRange;
use ukai_proto::{BootId, ChunkIndex, Generation, NodeId, Token, VolumeId};

use ReplicaState::{InSync, Joining, Leaving, Stale};

fn node(n: u8) -> NodeId {
    NodeId([n + 1; 16])
}

/// Chunks between two neighbouring borders always have the same history, because all ranges begin and
/// end at borders: one cell of the model stands for all of them. Borders crowd at a shard border.
#[derive(Clone, Debug)]
struct Model {
    borders: Vec<u32>,
    cells: Vec<BTreeMap<NodeId, ReplicaState>>,
    health: BTreeMap<NodeId, NodeHealth>,
    generation: u32,
    token: u32,
    attached: Option<u8>,
    deleting: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Add(usize, usize, u8),
    Promote(usize, usize, u8),
    Cancel(usize, usize, u8),
    Remove(usize, usize, u8, u8),
    Drop(usize, usize, u8),
    /// Promote the first node, remove the second, in one step.
    Move(usize, usize, u8, u8),
    MarkStale(Vec<u8>),
    BeginRejoin(u8),
    FinishRejoin(u8),
    FailRejoin(u8),
    DropHealth(u8),
    Attach(u8, bool),
    Detach,
    Delete,
}

fn ops() -> impl Strategy<Value = Op> {
    let place = || (0usize..12, 0usize..12, 0u8..5);
    prop_oneof![
        6 => place().prop_map(|(a, b, n)| Op::Add(a, b, n)),
        6 => place().prop_map(|(a, b, n)| Op::Promote(a, b, n)),
        2 => place().prop_map(|(a, b, n)| Op::Cancel(a, b, n)),
        5 => (place(), 0u8..3).prop_map(|((a, b, n), min)| Op::Remove(a, b, n, min)),
        4 => place().prop_map(|(a, b, n)| Op::Drop(a, b, n)),
        3 => (place(), 0u8..5).prop_map(|((a, b, n), m)| Op::Move(a, b, n, m)),
        3 => prop::collection::vec(0u8..5, 1..3).prop_map(Op::MarkStale),
        3 => (0u8..5).prop_map(Op::BeginRejoin),
        3 => (0u8..5).prop_map(Op::FinishRejoin),
        1 => (0u8..5).prop_map(Op::FailRejoin),
        1 => (0u8..5).prop_map(Op::DropHealth),
        1 => (0u8..3, any::<bool>()).prop_map(|(host, force)| Op::Attach(host, force)),
        1 => Just(Op::Detach),
        1 => prop::bool::weighted(0.1).prop_map(|really| if really { Op::Delete } else { Op::Detach }),
    ]
}

type Outcome = Result<(), &'static str>;

impl Model {
    fn effective(&self, cell: &BTreeMap<NodeId, ReplicaState>) -> BTreeMap<NodeId, ReplicaState> {
        cell.iter()
            .map(|(node, state)| {
                let state = match (state, self.health.get(node)) {
                    (Leaving, _) => Leaving,
                    (_, Some(NodeHealth::Stale { .. })) => Stale,
                    (_, Some(NodeHealth::Rejoining { .. })) => Joining,
                    (state, None) => *state,
                };
                (*node, state)
            })
            .collect()
    }

    fn in_sync(&self, cell: &BTreeMap<NodeId, ReplicaState>) -> usize {
        let effective = self.effective(cell);
        effective.values().filter(|state| **state == InSync).count()
    }

    fn holds(&self, node: NodeId) -> bool {
        self.cells.iter().any(|cell| cell.contains_key(&node))
    }

    fn cells_between(&self, a: usize, b: usize) -> std::ops::Range<usize> {
        let (a, b) = (a % self.cells.len(), b % self.cells.len());
        a.min(b)..a.max(b) + 1
    }

    fn change(&mut self, cell: usize, change: &Change) -> Result<bool, &'static str> {
        let node = change.node();
        let whole = !self.health.contains_key(&node);
        let mut next = self.cells[cell].clone();
        let state = next.get(&node).copied();
        match (change, state) {
            (Change::AddLocation { .. }, Some(Leaving)) => return Err("StillLeaving"),
            (Change::AddLocation { .. }, None) => {
                next.insert(node, Joining);
            }
            (Change::Promote { .. }, Some(Joining)) if !whole => return Err("WrongHealth"),
            (Change::Promote { .. }, Some(Joining)) => {
                next.insert(node, InSync);
            }
            (Change::CancelJoin { .. }, Some(Joining)) => {
                next.insert(node, Leaving);
            }
            (Change::RemoveLocation { min_copies, .. }, Some(InSync | Joining)) => {
                next.insert(node, Leaving);
                let left = self.in_sync(&next);
                if left == 0 {
                    return Err("LastInSync");
                }
                if left < usize::from(*min_copies) {
                    return Err("TooFewCopies");
                }
            }
            (Change::DropLeaving { .. }, Some(Leaving)) => {
                next.remove(&node);
            }
            _ => return Ok(false),
        }
        self.cells[cell] = next;
        Ok(true)
    }

    fn changes(&mut self, cells: std::ops::Range<usize>, changes: &[Change]) -> Outcome {
        let mut any = false;
        for change in changes {
            if self.deleting && matches!(change, Change::AddLocation { .. }) {
                return Err("Deleting");
            }
            for cell in cells.clone() {
                any |= self.change(cell, change)?;
            }
        }
        if any { Ok(()) } else { Err("NoChange") }
    }

    fn health_op(&mut self, op: &Op) -> Outcome {
        let (n, next): (u8, fn(Generation) -> Option<NodeHealth>) = match op {
            Op::BeginRejoin(n) => (*n, |since| Some(NodeHealth::Rejoining { since })),
            Op::FinishRejoin(n) => (*n, |_| None),
            Op::FailRejoin(n) => (*n, |since| Some(NodeHealth::Stale { since })),
            _ => unreachable!(),
        };
        let wants_stale = matches!(op, Op::BeginRejoin(_));
        let since = match self.health.get(&node(n)) {
            Some(NodeHealth::Stale { since }) if wants_stale => *since,
            Some(NodeHealth::Rejoining { since }) if !wants_stale => *since,
            _ => return Err("WrongHealth"),
        };
        match next(since) {
            Some(health) => self.health.insert(node(n), health),
            None => self.health.remove(&node(n)),
        };
        Ok(())
    }

    fn apply(&mut self, op: &Op, changes: &[Change]) -> Outcome {
        match op {
            Op::Add(a, b, _)
            | Op::Promote(a, b, _)
            | Op::Cancel(a, b, _)
            | Op::Remove(a, b, _, _)
            | Op::Drop(a, b, _)
            | Op::Move(a, b, _, _) => self.changes(self.cells_between(*a, *b), changes),
            Op::MarkStale(nodes) => {
                let before = self.health.clone();
                for n in nodes {
                    if !self.holds(node(*n)) {
                        return Err("NoReplica");
                    }
                    let since = self
                        .health
                        .get(&node(*n))
                        .map_or(Generation(self.generation), |health| health.since());
                    self.health.insert(node(*n), NodeHealth::Stale { since });
                }
                if self.health == before {
                    return Err("NoChange");
                }
                if self.cells.iter().any(|cell| self.in_sync(cell) == 0) {
                    return Err("LastInSync");
                }
                Ok(())
            }
            Op::BeginRejoin(_) | Op::FinishRejoin(_) | Op::FailRejoin(_) => self.health_op(op),
            Op::DropHealth(n) => {
                if !self.health.contains_key(&node(*n)) {
                    return Err("WrongHealth");
                }
                if self.holds(node(*n)) {
                    return Err("StillHolds");
                }
                self.health.remove(&node(*n));
                Ok(())
            }
            Op::Attach(host, force) => {
                if self.deleting {
                    return Err("Deleting");
                }
                match self.attached {
                    Some(holder) if holder == *host => return Err("NoChange"),
                    Some(_) if !force => return Err("Attached"),
                    _ => {}
                }
                self.attached = Some(*host);
                self.token += 1;
                Ok(())
            }
            Op::Detach => self.attached.take().map(|_| ()).ok_or("NotAttached"),
            Op::Delete => {
                if self.deleting {
                    return Err("NoChange");
                }
                if self.attached.is_some() {
                    return Err("Attached");
                }
                self.deleting = true;
                self.token += 1;
                Ok(())
            }
        }
    }

    fn range(&self, cells: std::ops::Range<usize>) -> ChunkRange {
        ChunkRange {
            start: ChunkIndex(self.borders[cells.start]),
            count: self.borders[cells.end] - self.borders[cells.start],
        }
    }

    fn agrees_with(&self, map: &VolumeMap) {
        assert_eq!(map.head.generation, Generation(self.generation));
        assert_eq!(map.head.token, Token(self.token));
        assert_eq!(map.head.deleting, self.deleting);
        assert_eq!(map.head.attach.is_some(), self.attached.is_some());
        let health: BTreeMap<_, _> = map.head.health.iter().copied().collect();
        assert_eq!(health, self.health);
        for (cell, borders) in self.cells.iter().zip(self.borders.windows(2)) {
            for chunk in [borders[0], borders[1] - 1] {
                let list = map.replicas(ChunkIndex(chunk));
                let got: BTreeMap<_, _> = list.iter().map(|r| (r.node, r.state)).collect();
                assert_eq!(got, self.effective(cell), "chunk {chunk}");
                assert!(list.windows(2).all(|pair| pair[0].node < pair[1].node));
                assert_eq!(list.as_slice(), map.set(map.set_of(ChunkIndex(chunk))));
                assert!(
                    list.in_sync_count() > 0,
                    "chunk {chunk} has no in-sync replica"
                );
            }
        }
        // Runs cover the volume without gaps, and neighbours differ.
        let mut at = 0;
        let mut last = None;
        for (run, set) in map.runs() {
            assert_eq!(run.start.0, at);
            assert_ne!(Some(set), last);
            at += run.count;
            last = Some(set);
        }
        assert_eq!(at, map.chunk_count());
        let nodes: Vec<_> = (0..5).map(node).filter(|n| self.holds(*n)).collect();
        assert_eq!(map.nodes(), nodes);
        for n in (0..5).map(node) {
            for state in [InSync, Joining, Stale, Leaving] {
                let count: u32 = map.ranges_of(n, state).iter().map(|r| r.count).sum();
                let cells = self.cells.iter().zip(self.borders.windows(2));
                let expected: u32 = cells
                    .filter(|(cell, _)| self.effective(cell).get(&n) == Some(&state))
                    .map(|(_, borders)| borders[1] - borders[0])
                    .sum();
                assert_eq!(count, expected, "{n} {state:?}");
            }
        }
    }
}

fn name_of(error: &TransitionError) -> &'static str {
    match error {
        TransitionError::NoChange => "NoChange",
        TransitionError::Deleting => "Deleting",
        TransitionError::Attached { .. } => "Attached",
        TransitionError::NotAttached => "NotAttached",
        TransitionError::LastInSync { .. } => "LastInSync",
        TransitionError::TooFewCopies { .. } => "TooFewCopies",
        TransitionError::NoReplica { .. } => "NoReplica",
        TransitionError::WrongHealth { .. } => "WrongHealth",
        TransitionError::StillHolds { .. } => "StillHolds",
        TransitionError::StillLeaving { .. } => "StillLeaving",
        _ => "another",
    }
}

fn changes_of(op: &Op, model: &Model) -> Vec<Change> {
    let range = |a: usize, b: usize| model.range(model.cells_between(a, b));
    match *op {
        Op::Add(a, b, n) => vec![Change::AddLocation {
            range: range(a, b),
            node: node(n),
        }],
        Op::Promote(a, b, n) => vec![Change::Promote {
            range: range(a, b),
            node: node(n),
        }],
        Op::Cancel(a, b, n) => vec![Change::CancelJoin {
            range: range(a, b),
            node: node(n),
        }],
        Op::Remove(a, b, n, min_copies) => vec![Change::RemoveLocation {
            range: range(a, b),
            node: node(n),
            min_copies,
        }],
        Op::Drop(a, b, n) => vec![Change::DropLeaving {
            range: range(a, b),
            node: node(n),
        }],
        Op::Move(a, b, to, from) => vec![
            Change::Promote {
                range: range(a, b),
                node: node(to),
            },
            Change::RemoveLocation {
                range: range(a, b),
                node: node(from),
                min_copies: 1,
            },
        ],
        _ => Vec::new(),
    }
}

fn transition(
    map: &VolumeMap,
    op: &Op,
    changes: &[Change],
) -> Result<ukai_meta::MapUpdate, TransitionError> {
    match op {
        Op::MarkStale(nodes) => {
            let nodes: Vec<_> = nodes.iter().map(|n| node(*n)).collect();
            tr::mark_stale(map, &nodes)
        }
        Op::BeginRejoin(n) => tr::begin_rejoin(map, node(*n)),
        Op::FinishRejoin(n) => tr::finish_rejoin(map, node(*n)),
        Op::FailRejoin(n) => tr::fail_rejoin(map, node(*n)),
        Op::DropHealth(n) => tr::drop_health(map, node(*n)),
        Op::Attach(host, force) => {
            let by = Attach {
                host: format!("host{host}"),
                boot: BootId([*host; 16]),
                front: [*host; 16],
            };
            tr::attach(map, by, *force)
        }
        Op::Detach => tr::detach(map),
        Op::Delete => tr::begin_delete(map),
        _ => tr::apply(map, changes),
    }
}

fn run(borders: Vec<u32>, copies: u8, ops: &[Op]) {
    let chunks = borders[borders.len() - 1];
    let new = NewVolume {
        volume: VolumeId([7; 16]),
        name: "v".into(),
        size_bytes: u64::from(chunks) << 20,
        chunk_bytes: 1 << 20,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "a".into(),
            copies,
        }],
        nodes: vec![(0..copies).map(node).collect()],
    };
    let first: BTreeMap<_, _> = (0..copies).map(|n| (node(n), InSync)).collect();
    let mut model = Model {
        cells: vec![first; borders.len() - 1],
        borders,
        health: BTreeMap::new(),
        generation: 1,
        token: 0,
        attached: None,
        deleting: false,
    };
    let store = MemoryCluster::new().session();
    let mut map = catalog::create_volume(&store, &new).unwrap();
    for op in ops {
        let changes = changes_of(op, &model);
        let mut next = model.clone();
        let expected = next.apply(op, &changes);
        let result = transition(&map, op, &changes);
        assert_eq!(
            result.as_ref().map(|_| ()).map_err(name_of),
            expected,
            "{op:?}"
        );
        let Ok(update) = result else {
            continue;
        };
        next.generation += 1;
        model = next;
        map = catalog::commit_update(&store, update).unwrap();
        model.agrees_with(&map);
        let loaded = catalog::load_volume(&store, map.head.volume).unwrap();
        assert_eq!(loaded, map, "what was stored is not what was meant: {op:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn small_volumes_follow_the_model(copies in 1u8..4, ops in prop::collection::vec(ops(), 1..60)) {
        run((0..=12).collect(), copies, &ops);
    }

    #[test]
    fn shard_borders_follow_the_model(copies in 1u8..4, ops in prop::collection::vec(ops(), 1..60)) {
        let s = 1 << 16;
        run(
            vec![0, 1, 9, s - 2, s - 1, s, s + 1, s + 7, 2 * s, 2 * s + 1, 3 * s - 1, 3 * s, 3 * s + 5],
            copies,
            &ops,
        );
    }
}
