//! Goals that take away copies a volume has beyond those it was made with. Pure.

use super::explicit::Goals;
use std::collections::BTreeMap;
use ukai_meta::ReplicaState;
use ukai_meta::job::GoalSet;
use ukai_meta::map::VolumeMap;
use ukai_meta::record::PlaceRule;
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

/// What is known of a node that holds a copy.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Holder {
    pub(crate) site: String,
    /// From where the volume is used; infinite if unknown.
    pub(crate) read_us: f64,
    /// Alive: what is away is no copy to keep in place of one that is there.
    pub(crate) is_alive: bool,
}

/// Of each chunk of `range` with more in-sync copies than `place` asks for, the surplus goes: those on nodes that
/// are away, then the slowest to read, but copies stay in as many sites as `place` has.
pub(crate) fn surplus(
    map: &VolumeMap,
    range: ChunkRange,
    place: &[PlaceRule],
    holders: &BTreeMap<NodeId, Holder>,
) -> Goals {
    let copies = place.iter().map(|rule| usize::from(rule.copies)).sum();
    let sites = place.iter().filter(|rule| rule.copies > 0).count();
    let mut out = Goals::default();
    let mut known: BTreeMap<Vec<NodeId>, Option<u16>> = BTreeMap::new();
    for (run, set) in map.runs_in(range) {
        let replicas = map.set(set);
        let in_sync: Vec<NodeId> = replicas
            .iter()
            .filter(|replica| replica.state == ReplicaState::InSync)
            .map(|replica| replica.node)
            .collect();
        let number = *known.entry(in_sync.clone()).or_insert_with(|| {
            let remove = too_many(in_sync, copies, sites, holders);
            if remove.is_empty() {
                return None;
            }
            let number = u16::try_from(out.sets.len()).unwrap_or(u16::MAX);
            out.sets.push(GoalSet {
                add: Vec::new(),
                remove,
                copies: u8::try_from(copies).unwrap_or(u8::MAX),
            });
            Some(number)
        });
        let Some(number) = number else { continue };
        match out.goals.last_mut() {
            Some((start, count, last)) if *start + *count == run.start.0 && *last == number => {
                *count += run.count;
            }
            _ => out.goals.push((run.start.0, run.count, number)),
        }
    }
    out
}

fn too_many(
    mut kept: Vec<NodeId>,
    copies: usize,
    sites: usize,
    holders: &BTreeMap<NodeId, Holder>,
) -> Vec<NodeId> {
    let mut remove = Vec::new();
    // A volume without rules keeps what it has.
    while copies > 0 && kept.len() > copies {
        let count = |kept: &[NodeId]| {
            let of = |node: &NodeId| holders.get(node).map(|holder| holder.site.as_str());
            let mut sites: Vec<_> = kept.iter().map(of).collect();
            sites.sort_unstable();
            sites.dedup();
            sites.len()
        };
        let now = count(&kept);
        let worst = (0..kept.len())
            .filter(|at| {
                let mut without = kept.clone();
                without.remove(*at);
                count(&without) >= sites.min(now)
            })
            .max_by(|a, b| {
                let key = |at: usize| {
                    let holder = holders.get(&kept[at]);
                    let is_away = holder.is_none_or(|holder| !holder.is_alive);
                    let us = holder.map_or(f64::INFINITY, |holder| holder.read_us);
                    (is_away, us)
                };
                let (a, b) = (key(*a), key(*b));
                a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
            });
        // With a copy more than there are sites to keep, one of them can go.
        let Some(worst) = worst else { break };
        remove.push(kept.remove(worst));
    }
    remove
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders() -> BTreeMap<NodeId, Holder> {
        let of = |n: u8, site: &str, read_us: f64, is_alive: bool| {
            let holder = Holder {
                site: site.into(),
                read_us,
                is_alive,
            };
            (NodeId([n; 16]), holder)
        };
        [
            of(1, "a", 10_000.0, true),
            of(2, "a", 11_000.0, true),
            of(3, "b", 200.0, true),
            of(4, "b", 300.0, true),
            of(5, "b", 100.0, false),
        ]
        .into()
    }

    fn removed(nodes: &[u8], copies: usize, sites: usize) -> Vec<u8> {
        let kept = nodes.iter().map(|n| NodeId([*n; 16])).collect();
        let removed = too_many(kept, copies, sites, &holders());
        removed.iter().map(|node| node.0[0]).collect()
    }

    #[test]
    fn the_slowest_go_first_and_sites_stay() {
        assert_eq!(removed(&[1, 2, 3], 2, 1), [2]);
        assert_eq!(removed(&[1, 2, 3, 4], 2, 1), [2, 1]);
        assert_eq!(removed(&[1, 2, 3, 4], 2, 2), [2, 4]);
        assert_eq!(removed(&[1, 3, 4], 2, 2), [4], "the only one in a stays");
        assert_eq!(removed(&[1, 2], 2, 2), Vec::<u8>::new());
        assert_eq!(removed(&[1, 2, 3], 0, 0), Vec::<u8>::new());
        assert_eq!(removed(&[3, 5, 1], 2, 1), [5], "away before slow");
        assert_eq!(removed(&[9, 3, 4], 2, 1), [9], "unknown before known");
    }
}
