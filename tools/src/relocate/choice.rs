//! What can be done with the chunks of one replica set: nothing, or other nodes for some of its copies.
//! Only choices that keep the rules are made.

use super::problem::{Node, NodeIndex, Problem, Set};
use super::target::Kind;
use ukai_proto::limits::REPLICAS_MAX;

/// Copies that one goal may add: half of what a chunk may have.
const ADD_MAX: usize = REPLICAS_MAX / 2;
/// Shares within a limit that differ by less are as good as equal: far below what can be measured, and
/// then fewer bytes over the WAN, or more free space, decide.
const SHARE_EQUAL: f64 = 5e-4;

/// One of them.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Choice {
    /// Nodes that get a copy, ascending.
    pub(crate) add: Vec<NodeIndex>,
    /// Nodes that lose theirs, ascending.
    pub(crate) remove: Vec<NodeIndex>,
    /// Nodes in sync afterwards, ascending.
    pub(crate) in_sync: Vec<NodeIndex>,
    /// Copies that come from another site.
    pub(crate) wan: u32,
    /// For each demand: the share of requests within its limit.
    pub(crate) within: Vec<f64>,
}

impl Choice {
    /// Copies to be made.
    pub(crate) fn copies(&self) -> u64 {
        self.add.len() as u64
    }

    pub(crate) fn moves_nothing(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// Choices for the chunks of a set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choices {
    /// Whether the set may stay as it is.
    pub(crate) may_stay: bool,
    /// None of them has both more copies to make and no better share than another. Fewest copies first.
    pub(crate) list: Vec<Choice>,
}

impl Problem {
    /// The set as it is.
    pub(crate) fn stay(&self, set: &Set) -> Choice {
        self.choice(set, Vec::new(), Vec::new())
    }

    fn choice(&self, set: &Set, add: Vec<NodeIndex>, remove: Vec<NodeIndex>) -> Choice {
        let stays = set.in_sync.iter().filter(|node| !remove.contains(node));
        let mut in_sync: Vec<NodeIndex> = stays.chain(&add).copied().collect();
        in_sync.sort_unstable();
        let near = |node: NodeIndex| {
            set.in_sync
                .iter()
                .any(|from| self.site(*from) == self.site(node))
        };
        let wan = add.iter().filter(|node| !near(**node)).count();
        let within = self
            .demands
            .iter()
            .map(|demand| self.share_within(&in_sync, demand.kind, demand.limit_us));
        Choice {
            wan: u32::try_from(wan).unwrap_or(u32::MAX),
            within: within.collect(),
            add,
            remove,
            in_sync,
        }
    }

    /// Copies that a chunk of the set must have afterwards: as many as now, and what the rules ask for.
    pub(crate) fn copies_min(&self, set: &Set) -> usize {
        let asked: usize = self
            .rules
            .copies
            .iter()
            .map(|rule| usize::from(rule.copies))
            .sum();
        set.in_sync.len().max(asked)
    }

    /// Whether these replicas keep the rules, in a chunk that is now on `set`.
    pub(crate) fn keeps_rules(&self, set: &Set, in_sync: &[NodeIndex]) -> bool {
        let rules = &self.rules;
        let count = |site: &str| {
            in_sync
                .iter()
                .filter(|node| self.site(**node) == site)
                .count()
        };
        let asked = |site: &str| -> usize {
            rules
                .copies
                .iter()
                .filter(|rule| rule.site == site)
                .map(|rule| usize::from(rule.copies))
                .sum()
        };
        let elsewhere = |site: &str| -> usize {
            rules
                .copies
                .iter()
                .filter(|rule| rule.site != site)
                .map(|rule| usize::from(rule.copies))
                .sum()
        };
        in_sync.len() >= self.copies_min(set)
            && rules
                .copies
                .iter()
                .all(|rule| count(&rule.site) >= asked(&rule.site))
            && in_sync.iter().all(|node| !self.node(*node).is_evacuated)
            && (rules.only_sites.is_empty()
                || in_sync
                    .iter()
                    .all(|node| rules.only_sites.iter().any(|site| site == self.site(*node))))
            && rules
                .to_site
                .as_ref()
                .is_none_or(|site| count(site) + elsewhere(site) >= in_sync.len())
            && (!rules.keep_sites || self.sites_of(in_sync) >= self.sites_of(&set.in_sync))
    }

    fn sites_of(&self, nodes: &[NodeIndex]) -> usize {
        let mut sites: Vec<&str> = nodes.iter().map(|node| self.site(*node)).collect();
        sites.sort_unstable();
        sites.dedup();
        sites.len()
    }

    /// All choices worth a thought for the chunks of `set`. `has_space` says of which nodes a chunk more
    /// may be put on.
    pub(crate) fn choices(&self, set: &Set, has_space: impl Fn(NodeIndex) -> bool) -> Choices {
        let extra = self.copies_min(set) - set.in_sync.len() + set.forced_out.len();
        let may_stay =
            set.forced_out.is_empty() && extra == 0 && self.keeps_rules(set, &set.in_sync);
        let mut list = Vec::new();
        if may_stay {
            list.push(self.stay(set));
        }
        let candidates = self.candidates(set, set.in_sync.len() + extra, has_space);
        let (removals, more) = if self.rules.only_add {
            // One that is near is enough for reads; for writes each is one more to wait for.
            (vec![Vec::new()], usize::from(extra == 0))
        } else {
            (subsets(&set.in_sync, ADD_MAX.min(set.in_sync.len())), 0)
        };
        for removed in removals {
            let size = removed.len() + extra + more;
            if size == 0 || size > ADD_MAX {
                continue;
            }
            for add in subsets_of(&candidates, size) {
                let fresh = add
                    .iter()
                    .filter(|node| !set.joining.contains(node))
                    .count();
                if set.replicas() + fresh > REPLICAS_MAX {
                    continue;
                }
                let mut remove = removed.clone();
                remove.extend(set.forced_out.iter().filter(|node| !add.contains(node)));
                remove.sort_unstable();
                let choice = self.choice(set, add, remove);
                if self.keeps_rules(set, &choice.in_sync) {
                    list.push(choice);
                }
            }
        }
        Choices {
            may_stay,
            list: self.worth(list),
        }
    }

    /// Nodes that a copy may be put on: for each way to look at them the best few, as many as could be
    /// wanted at once.
    fn candidates(
        &self,
        set: &Set,
        wanted: usize,
        has_space: impl Fn(NodeIndex) -> bool,
    ) -> Vec<NodeIndex> {
        let mut usable: Vec<NodeIndex> = (0..)
            .zip(&self.nodes)
            .filter(|(at, node): &(NodeIndex, &Node)| {
                node.unusable().is_none()
                    && (self.demands.is_empty() || node.model.is_some())
                    && (self.rules.only_sites.is_empty()
                        || self.rules.only_sites.contains(&node.site))
                    && !set.in_sync.contains(at)
                    && !set.busy.contains(at)
                    && has_space(*at)
            })
            .map(|(at, _)| at)
            .collect();
        // Most free space first among equals; the sorts below are stable.
        usable.sort_by_key(|at| std::cmp::Reverse(self.node(*at).free_bytes));
        let mut chosen: Vec<NodeIndex> = Vec::new();
        let mut take = |from: &[NodeIndex]| chosen.extend(from.iter().take(wanted.min(ADD_MAX)));
        take(
            &set.joining
                .iter()
                .filter(|at| usable.contains(at))
                .copied()
                .collect::<Vec<_>>(),
        );
        let mut ranked = usable.clone();
        for demand in &self.demands {
            let share = |at: &NodeIndex| {
                let model = self.node(*at).model.as_ref();
                model.map_or(0.0, |model| {
                    model.of(demand.kind).share_within(demand.limit_us)
                })
            };
            ranked.sort_by(|a, b| share(b).total_cmp(&share(a)));
            take(&ranked);
        }
        ranked.sort_by(|a, b| {
            self.node(*a)
                .read_median_us()
                .total_cmp(&self.node(*b).read_median_us())
        });
        if self.demands.iter().any(|demand| demand.kind == Kind::Read) {
            take(&ranked);
        }
        let mut sites: Vec<&str> = set.in_sync.iter().map(|at| self.site(*at)).collect();
        sites.extend(self.rules.copies.iter().map(|rule| rule.site.as_str()));
        sites.extend(self.rules.to_site.as_deref());
        if self.demands.is_empty() || !self.rules.only_sites.is_empty() || self.rules.keep_sites {
            sites.extend(self.nodes.iter().map(|node| node.site.as_str()));
        }
        sites.sort_unstable();
        sites.dedup();
        for site in sites {
            let here = ranked.iter().filter(|at| self.site(**at) == site);
            take(&here.copied().collect::<Vec<_>>());
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    /// Leaves out what is never better than another.
    fn worth(&self, mut list: Vec<Choice>) -> Vec<Choice> {
        let free = |choice: &Choice| -> u64 {
            choice
                .add
                .iter()
                .map(|node| self.node(*node).free_bytes)
                .min()
                .unwrap_or(u64::MAX)
        };
        let median = |choice: &Choice| self.node(self.reader(&choice.in_sync)).read_median_us();
        list.sort_by(|a, b| {
            let sum = |choice: &Choice| choice.within.iter().sum::<f64>();
            let steps = |choice: &Choice| (sum(choice) / SHARE_EQUAL).round();
            (a.copies(), steps(b))
                .partial_cmp(&(b.copies(), steps(a)))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then(a.wan.cmp(&b.wan))
                .then_with(|| median(a).total_cmp(&median(b)))
                .then_with(|| free(b).cmp(&free(a)))
        });
        let mut kept: Vec<Choice> = Vec::new();
        for choice in list {
            let beaten = kept.iter().any(|other| {
                other
                    .within
                    .iter()
                    .zip(&choice.within)
                    .all(|(better, share)| *better >= share - SHARE_EQUAL)
            });
            if !beaten {
                kept.push(choice);
            }
        }
        kept
    }
}

/// All subsets of up to `size_max`, the empty one too.
fn subsets(of: &[NodeIndex], size_max: usize) -> Vec<Vec<NodeIndex>> {
    (0..=size_max)
        .flat_map(|size| subsets_of(of, size))
        .collect()
}

/// All subsets of `size`, each in the order of `of`.
fn subsets_of(of: &[NodeIndex], size: usize) -> Vec<Vec<NodeIndex>> {
    let mut out = Vec::new();
    let mut at: Vec<usize> = (0..size).collect();
    if size > of.len() {
        return out;
    }
    loop {
        out.push(at.iter().map(|at| of[*at]).collect());
        let Some(place) = (0..size)
            .rev()
            .find(|place| at[*place] < of.len() - size + place)
        else {
            return out;
        };
        at[place] += 1;
        for later in place + 1..size {
            at[later] = at[later - 1] + 1;
        }
    }
}
