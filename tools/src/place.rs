//! Which nodes a new volume's chunks go to. Pure: nodes in, choice out.

use std::fmt;
use std::str::FromStr;
use ukai_meta::{NodeState, PlaceRule};
use ukai_proto::NodeId;
use ukai_proto::limits::REPLICAS_MAX;

/// Copies of a new volume: half of what a chunk may have, so that every replica can be on the move
/// to another node at the same time.
pub(crate) const COPIES_MAX: usize = REPLICAS_MAX / 2;

/// One `site:copies` of `--place`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PlaceArg(pub(crate) PlaceRule);

impl FromStr for PlaceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is no placement; write SITE:COPIES, for example site-a:2");
        let (site, copies) = text.trim().rsplit_once(':').ok_or_else(form)?;
        let copies: u8 = copies.parse().map_err(|_| form())?;
        if site.is_empty() {
            return Err(form());
        }
        if copies == 0 {
            return Err(format!(
                "site {site:?} with 0 copies; leave it out, or give at least 1"
            ));
        }
        Ok(Self(PlaceRule {
            site: site.into(),
            copies,
        }))
    }
}

impl fmt::Display for PlaceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.site, self.0.copies)
    }
}

/// The placement as it is typed.
pub(crate) fn place_text(place: &[PlaceRule]) -> String {
    let list: Vec<String> = place
        .iter()
        .map(|rule| format!("{}:{}", rule.site, rule.copies))
        .collect();
    list.join(",")
}

/// Why no choice is possible.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("site {0} is named twice in --place")]
    SiteTwice(String),
    #[error("node {0} is named twice in --node")]
    NodeTwice(String),
    #[error("{copies} copies; at most {COPIES_MAX} are possible")]
    TooManyCopies { copies: usize },
    #[error("no node belongs to site {site:?}; sites are: {}", known.join(", "))]
    UnknownSite { site: String, known: Vec<String> },
    #[error(
        "site {site} has {usable} usable nodes, {copies} copies need {copies}{}",
        reasons(unusable)
    )]
    TooFewNodes {
        site: String,
        copies: usize,
        usable: usize,
        /// Nodes that do not count, and why.
        unusable: Vec<(String, &'static str)>,
    },
    #[error("no node is called {node:?}; nodes are: {}", known.join(", "))]
    UnknownNode { node: String, known: Vec<String> },
    #[error("node {node} is {why}")]
    Unusable { node: String, why: &'static str },
    #[error("--node names {given} nodes of site {site}, --place asks for {asked}")]
    Mismatch {
        site: String,
        given: usize,
        asked: usize,
    },
}

fn reasons(unusable: &[(String, &'static str)]) -> String {
    let list: Vec<String> = unusable
        .iter()
        .map(|(node, why)| format!("{node} is {why}"))
        .collect();
    if list.is_empty() {
        String::new()
    } else {
        format!(" ({})", list.join(", "))
    }
}

/// Nodes chosen for one rule, best first. There may be more than copies: a volume of several map
/// shards is spread over them, a smaller one lies on the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    pub(crate) rule: PlaceRule,
    pub(crate) nodes: Vec<NodeId>,
}

/// A node that may take new chunks, or why not.
fn usable(node: &NodeState) -> Result<u64, &'static str> {
    match &node.live {
        _ if node.record.draining => Err("draining"),
        None => Err("not alive"),
        Some(live) => Ok(node.record.capacity_bytes.saturating_sub(live.used_bytes)),
    }
}

/// For each site its usable nodes: most free space first, by name where they are equal.
pub(crate) fn choose(place: &[PlaceRule], nodes: &[NodeState]) -> Result<Vec<Choice>, PlaceError> {
    check_copies(place.iter().map(|rule| usize::from(rule.copies)).sum())?;
    let mut choices: Vec<Choice> = Vec::with_capacity(place.len());
    for rule in place {
        if choices.iter().any(|choice| choice.rule.site == rule.site) {
            return Err(PlaceError::SiteTwice(rule.site.clone()));
        }
        let here: Vec<&NodeState> = nodes
            .iter()
            .filter(|node| node.record.site == rule.site)
            .collect();
        if here.is_empty() {
            return Err(PlaceError::UnknownSite {
                site: rule.site.clone(),
                known: sites(nodes),
            });
        }
        let mut free = Vec::new();
        let mut unusable = Vec::new();
        for node in here {
            match usable(node) {
                Ok(bytes) => free.push((
                    std::cmp::Reverse(bytes),
                    &node.record.name,
                    node.record.node,
                )),
                Err(why) => unusable.push((node.record.name.clone(), why)),
            }
        }
        let copies = usize::from(rule.copies);
        if free.len() < copies {
            return Err(PlaceError::TooFewNodes {
                site: rule.site.clone(),
                copies,
                usable: free.len(),
                unusable,
            });
        }
        free.sort_unstable();
        choices.push(Choice {
            rule: rule.clone(),
            nodes: free.into_iter().map(|(_, _, node)| node).collect(),
        });
    }
    Ok(choices)
}

/// The nodes named by `--node`, one copy on each; they must agree with `--place` if that is given.
pub(crate) fn explicit(
    place: &[PlaceRule],
    names: &[String],
    nodes: &[NodeState],
) -> Result<Vec<Choice>, PlaceError> {
    check_copies(names.len())?;
    let mut choices: Vec<Choice> = Vec::new();
    for name in names {
        let node = nodes
            .iter()
            .find(|node| is_called(node, name))
            .ok_or_else(|| PlaceError::UnknownNode {
                node: name.clone(),
                known: nodes.iter().map(|node| node.record.name.clone()).collect(),
            })?;
        usable(node).map_err(|why| PlaceError::Unusable {
            node: node.record.name.clone(),
            why,
        })?;
        let (id, site) = (node.record.node, &node.record.site);
        if choices.iter().any(|choice| choice.nodes.contains(&id)) {
            return Err(PlaceError::NodeTwice(name.clone()));
        }
        match choices.iter_mut().find(|choice| choice.rule.site == *site) {
            Some(choice) => {
                choice.rule.copies += 1;
                choice.nodes.push(id);
            }
            None => choices.push(Choice {
                rule: PlaceRule {
                    site: site.clone(),
                    copies: 1,
                },
                nodes: vec![id],
            }),
        }
    }
    if !place.is_empty() {
        agree(place, &choices)?;
    }
    Ok(choices)
}

fn agree(place: &[PlaceRule], choices: &[Choice]) -> Result<(), PlaceError> {
    let asked = |site: &str| -> usize {
        place
            .iter()
            .filter(|rule| rule.site == site)
            .map(|rule| usize::from(rule.copies))
            .sum()
    };
    let given = |site: &str| -> usize {
        choices
            .iter()
            .filter(|choice| choice.rule.site == site)
            .map(|choice| choice.nodes.len())
            .sum()
    };
    let sites = place
        .iter()
        .map(|rule| &rule.site)
        .chain(choices.iter().map(|choice| &choice.rule.site));
    for site in sites {
        if asked(site) != given(site) {
            return Err(PlaceError::Mismatch {
                site: site.clone(),
                given: given(site),
                asked: asked(site),
            });
        }
    }
    Ok(())
}

fn check_copies(copies: usize) -> Result<(), PlaceError> {
    if copies > COPIES_MAX {
        return Err(PlaceError::TooManyCopies { copies });
    }
    Ok(())
}

/// Nodes are named by their name or their uuid.
pub(crate) fn is_called(node: &NodeState, name: &str) -> bool {
    node.record.name == name || name.parse() == Ok(node.record.node)
}

fn sites(nodes: &[NodeState]) -> Vec<String> {
    let mut sites: Vec<String> = nodes.iter().map(|node| node.record.site.clone()).collect();
    sites.sort();
    sites.dedup();
    sites
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ukai_meta::{NodeLive, NodeRecord};
    use ukai_proto::Incarnation;

    fn node(id: u8, site: u8, used: Option<u64>, draining: bool) -> NodeState {
        NodeState {
            record: NodeRecord {
                node: NodeId([id; 16]),
                name: format!("n{id}"),
                site: format!("site-{site}"),
                labels: Vec::new(),
                shard_count: 1,
                shard_addresses: vec![vec!["tcp:127.0.0.1:1".into()]],
                host: "h".into(),
                capacity_bytes: 1000,
                draining,
            },
            live: used.map(|used_bytes| NodeLive {
                incarnation: Incarnation::default(),
                used_bytes,
            }),
        }
    }

    fn rule(site: u8, copies: u8) -> PlaceRule {
        PlaceRule {
            site: format!("site-{site}"),
            copies,
        }
    }

    #[test]
    fn the_emptiest_nodes_of_each_site_are_chosen() {
        let nodes = [
            node(1, 0, Some(500), false),
            node(2, 0, Some(10), false),
            node(3, 1, Some(0), false),
            node(4, 0, Some(10), false),
        ];
        let got = choose(&[rule(0, 2), rule(1, 1)], &nodes).unwrap();
        assert_eq!(
            got[0].nodes,
            [NodeId([2; 16]), NodeId([4; 16]), NodeId([1; 16])]
        );
        assert_eq!(got[1].nodes, [NodeId([3; 16])]);
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let nodes = [
            node(1, 0, None, false),
            node(2, 0, Some(10), true),
            node(3, 1, Some(0), false),
        ];
        let text = |place: &[PlaceRule]| choose(place, &nodes).unwrap_err().to_string();
        assert_eq!(
            text(&[rule(0, 1)]),
            "site site-0 has 0 usable nodes, 1 copies need 1 (n1 is not alive, n2 is draining)"
        );
        assert!(text(&[rule(7, 1)]).contains("sites are: site-0, site-1"));
        assert!(text(&[rule(1, 1), rule(1, 1)]).contains("named twice"));
        assert!(text(&[rule(1, 9)]).contains("at most 4"));
        let by_name = |names: &[&str], place: &[PlaceRule]| {
            let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
            explicit(place, &names, &nodes).map_err(|error| error.to_string())
        };
        assert!(
            by_name(&["n9"], &[])
                .unwrap_err()
                .contains("nodes are: n1, n2, n3")
        );
        assert!(by_name(&["n3", "n3"], &[]).unwrap_err().contains("twice"));
        assert_eq!(by_name(&["n1"], &[]).unwrap_err(), "node n1 is not alive");
        assert!(
            by_name(&["n3"], &[rule(1, 2)])
                .unwrap_err()
                .contains("--place asks for 2")
        );
        assert!(
            by_name(&["n3"], &[rule(0, 1)])
                .unwrap_err()
                .contains("site site-0")
        );
        let by_uuid = by_name(&["03030303-0303-0303-0303-030303030303"], &[rule(1, 1)]).unwrap();
        assert_eq!(by_uuid[0].rule, rule(1, 1));
    }

    #[test]
    fn spellings_of_a_place() {
        assert_eq!("site-0:2".parse(), Ok(PlaceArg(rule(0, 2))));
        for bad in [
            "site-a",
            "site-a:",
            ":2",
            "site-a:0",
            "site-a:-1",
            "site-a:300",
            "",
        ] {
            assert!(bad.parse::<PlaceArg>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_choice_keeps_every_rule_and_an_error_is_never_needless(
            kinds in prop::collection::vec((0u8..3, prop::option::of(0u64..1000), any::<bool>()), 0..12),
            copies in prop::collection::vec(1u8..4, 1..3),
        ) {
            let nodes: Vec<NodeState> = (1u8..).zip(&kinds)
                .map(|(id, (site, used, draining))| node(id, *site, *used, *draining)).collect();
            let place: Vec<PlaceRule> = (0u8..).zip(&copies).map(|(site, copies)| rule(site, *copies)).collect();
            let able = |site: &str| nodes.iter().filter(|n| n.record.site == site && n.live.is_some() && !n.record.draining).count();
            let possible = place.iter().all(|rule| able(&rule.site) >= usize::from(rule.copies))
                && place.iter().map(|rule| usize::from(rule.copies)).sum::<usize>() <= COPIES_MAX;
            match choose(&place, &nodes) {
                Err(_) => prop_assert!(!possible),
                Ok(choices) => {
                    prop_assert!(possible);
                    let mut all: Vec<NodeId> = choices.iter().flat_map(|c| c.nodes.clone()).collect();
                    let total = all.len();
                    all.sort_unstable();
                    all.dedup();
                    prop_assert_eq!(all.len(), total, "a node twice");
                    for (choice, rule) in choices.iter().zip(&place) {
                        prop_assert_eq!(choice.nodes.len(), able(&rule.site));
                        let free: Vec<u64> = choice.nodes.iter().map(|id| {
                            let n = nodes.iter().find(|n| n.record.node == *id).unwrap();
                            assert!(n.record.site == rule.site && !n.record.draining);
                            1000 - n.live.as_ref().expect("alive").used_bytes
                        }).collect();
                        prop_assert!(free.is_sorted_by(|a, b| a >= b), "{:?}", free);
                    }
                }
            }
        }
    }
}
