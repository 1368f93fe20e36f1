//! Goals without a planner: exactly these nodes. Pure.

use crate::error::{Result, ToolError};
use std::collections::BTreeMap;
use ukai_meta::ReplicaState;
use ukai_meta::job::GoalSet;
use ukai_meta::map::VolumeMap;
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

/// Goals of a job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Goals {
    pub(crate) sets: Vec<GoalSet>,
    pub(crate) goals: Vec<(u32, u32, u16)>,
    /// Replicas to be made, in chunks.
    pub(crate) copies_made: u64,
}

/// Every chunk of `range` in sync on `nodes` and nowhere else, with as many copies as it has now at least.
pub(crate) fn exactly(map: &VolumeMap, range: ChunkRange, nodes: &[NodeId]) -> Result<Goals> {
    let mut out = Goals::default();
    let mut known: BTreeMap<Vec<(NodeId, ReplicaState)>, Option<u16>> = BTreeMap::new();
    for (run, set) in map.runs_in(range) {
        let replicas = map.set(set);
        let key: Vec<_> = replicas.iter().map(|r| (r.node, r.state)).collect();
        let copies = replicas
            .iter()
            .filter(|r| r.state == ReplicaState::InSync)
            .count();
        if nodes.len() < copies {
            return Err(ToolError::refused(format!(
                "chunks {}..{} have {copies} copies, {} nodes hold fewer",
                run.start,
                run.start.0 + run.count,
                nodes.len()
            ))
            .next("name as many nodes as there are copies; `ukai-tools volume remove-location` makes fewer"));
        }
        let holds = |node: &NodeId| {
            replicas
                .iter()
                .any(|r| r.node == *node && r.state != ReplicaState::Leaving)
        };
        let missing = nodes.iter().filter(|node| !holds(node)).count();
        let number = *known.entry(key).or_insert_with(|| {
            let here = replicas.iter().filter(|r| r.state != ReplicaState::Leaving);
            let remove: Vec<NodeId> = here
                .map(|r| r.node)
                .filter(|n| !nodes.contains(n))
                .collect();
            if missing == 0 && remove.is_empty() {
                return None;
            }
            let number = u16::try_from(out.sets.len()).unwrap_or(u16::MAX);
            out.sets.push(GoalSet {
                add: nodes.to_vec(),
                remove,
                copies: u8::try_from(copies).unwrap_or(u8::MAX).max(1),
            });
            Some(number)
        });
        if let Some(number) = number {
            out.goals.push((run.start.0, run.count, number));
            out.copies_made += missing as u64 * u64::from(run.count);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_meta::transition::{self, NewVolume};
    use ukai_meta::{Durability, PlaceRule};
    use ukai_proto::{ChunkIndex, VolumeId};

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn map() -> VolumeMap {
        let new = NewVolume {
            volume: VolumeId([7; 16]),
            name: "v".into(),
            size_bytes: 8 << 20,
            chunk_bytes: 1 << 20,
            durability: Durability::Cache,
            place: vec![PlaceRule {
                site: "a".into(),
                copies: 2,
            }],
            nodes: vec![vec![node(1), node(2)]],
        };
        let map = transition::create(&new).unwrap().next;
        let range = ChunkRange {
            start: ChunkIndex(4),
            count: 2,
        };
        let map = transition::add_location(&map, range, node(3)).unwrap().next;
        transition::promote(&map, range, node(3)).unwrap().next
    }

    #[test]
    fn what_is_there_stays_and_the_rest_goes() {
        let map = map();
        let all = map.all();
        let refused = exactly(&map, all, &[node(1), node(3)]).unwrap_err();
        assert!(refused.what.contains("3 copies"), "{}", refused.what);
        let first = ChunkRange {
            start: ChunkIndex(0),
            count: 4,
        };
        let goals = exactly(&map, first, &[node(1), node(3)]).unwrap();
        assert_eq!(goals.goals, [(0, 4, 0)]);
        assert_eq!(goals.copies_made, 4);
        let set = GoalSet {
            add: vec![node(1), node(3)],
            remove: vec![node(2)],
            copies: 2,
        };
        assert_eq!(goals.sets, [set]);
        assert_eq!(
            exactly(&map, first, &[node(2), node(1)]).unwrap(),
            Goals::default()
        );
        let goals = exactly(&map, all, &[node(1), node(2), node(4)]).unwrap();
        assert_eq!((goals.sets.len(), goals.copies_made), (2, 8));
        assert_eq!(goals.goals, [(0, 4, 0), (4, 2, 1), (6, 2, 0)]);
    }
}
