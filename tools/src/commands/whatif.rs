//! `whatif --lose`: what each volume would lose with sites or nodes.

use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::range::bytes_of;
use crate::relocate::args::PlanArgs;
use crate::relocate::gather::{Gathered, gather};
use crate::relocate::outlook::Outlook;
use crate::relocate::problem::{Problem, Rules};
use crate::relocate::target::latency_text;
use crate::table::{Align, table};
use crate::units::ByteSize;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use ukai_meta::job::Percentiles;
use ukai_meta::map::VolumeMap;
use ukai_meta::{NodeState, ReplicaState, catalog};
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

/// Ranges listed per volume.
const RANGES_MAX: usize = 1000;

/// What one volume would lose.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
struct Loss {
    volume: String,
    chunks: u32,
    /// Chunks of which no in-sync copy on a living node would be left.
    unreadable: u32,
    /// Chunks that would have fewer copies than now, or than asked for, and more than none.
    fewer_copies: u32,
    /// Of the chunks that can still be read, in-sync copies on living nodes: the fewest now and then.
    copies_now: usize,
    copies_after: usize,
    /// Bytes that could not be read, [start, end).
    ranges: Vec<(u64, u64)>,
    /// Where it is used, and its latency there now and then.
    host: Option<String>,
    now: Option<Percentiles>,
    after: Option<Percentiles>,
}

impl Loss {
    fn is_nothing(&self) -> bool {
        self.unreadable == 0 && self.fewer_copies == 0
    }
}

/// Pure: a map, the nodes that go, and who lives now.
fn loss(map: &VolumeMap, lost: &BTreeSet<NodeId>, is_alive: impl Fn(NodeId) -> bool) -> Loss {
    let mut loss = Loss {
        volume: map.head.name.clone(),
        chunks: map.chunk_count(),
        ..Loss::default()
    };
    let (mut least_now, mut least_after) = (usize::MAX, usize::MAX);
    let mut last: Option<ChunkRange> = None;
    for (range, set) in map.runs() {
        let alive = map
            .set(set)
            .iter()
            .filter(|r| r.state == ReplicaState::InSync && is_alive(r.node));
        let (mut now, mut after) = (0, 0);
        for replica in alive {
            now += 1;
            after += usize::from(!lost.contains(&replica.node));
        }
        least_now = least_now.min(now);
        if after > 0 {
            least_after = least_after.min(after);
        }
        // What cannot be read already is not lost by this.
        if now > 0 && after == 0 {
            loss.unreadable += range.count;
            match &mut last {
                Some(last) if last.start.0 + last.count == range.start.0 => {
                    last.count += range.count;
                }
                _ => {
                    push(&mut loss, map, last.take());
                    last = Some(range);
                }
            }
        } else if after < now {
            loss.fewer_copies += range.count;
        }
    }
    push(&mut loss, map, last);
    loss.copies_now = if least_now == usize::MAX {
        0
    } else {
        least_now
    };
    loss.copies_after = if least_after == usize::MAX {
        0
    } else {
        least_after
    };
    loss
}

fn push(loss: &mut Loss, map: &VolumeMap, range: Option<ChunkRange>) {
    if let Some(range) = range.filter(|_| loss.ranges.len() < RANGES_MAX) {
        loss.ranges
            .push(bytes_of(range, map.head.size_bytes, map.head.chunk_bytes));
    }
}

/// Latency now and then, from the host that has the volume attached, as far as it is known.
fn predict(loss: &mut Loss, map: &VolumeMap, gathered: &Gathered, lost: &BTreeSet<NodeId>) {
    loss.host.clone_from(&gathered.host);
    let problem = Problem::new(
        map,
        gathered.known(),
        map.all(),
        Rules::default(),
        Vec::new(),
    )
    .depending(gathered.measured.as_ref());
    let mut in_use = problem.sets.iter().flat_map(|set| &set.in_sync);
    if in_use.any(|node| problem.node(*node).model.is_none()) {
        return;
    }
    loss.now = Some(Outlook::now(&problem).percentiles());
    let mut then = problem.clone();
    for set in &mut then.sets {
        set.in_sync
            .retain(|node| !lost.contains(&problem.node(*node).id));
    }
    // What cannot be read has no latency.
    then.classes
        .retain(|class| !then.sets[class.set as usize].in_sync.is_empty());
    then.normalise();
    if !then.classes.is_empty() {
        loss.after = Some(Outlook::now(&then).percentiles());
    }
}

/// The nodes meant by names of sites and nodes.
fn lost_nodes(nodes: &[NodeState], lose: &[String]) -> Result<BTreeSet<NodeId>> {
    let mut out = BTreeSet::new();
    for name in lose {
        let meant = nodes
            .iter()
            .filter(|node| node.record.site == *name || crate::place::is_called(node, name));
        let meant: Vec<NodeId> = meant.map(|node| node.record.node).collect();
        if meant.is_empty() {
            let mut known: Vec<&str> = nodes
                .iter()
                .flat_map(|node| [node.record.site.as_str(), node.record.name.as_str()])
                .collect();
            known.sort_unstable();
            known.dedup();
            return Err(
                ToolError::not_found(format!("no site and no node is called {name:?}"))
                    .next(format!("there are: {}", known.join(", "))),
            );
        }
        out.extend(meant);
    }
    Ok(out)
}

pub(super) fn whatif(context: &Context, lose: &[String]) -> Result<()> {
    let nodes = context.nodes()?;
    let names = context.names_of(&nodes);
    let lost = lost_nodes(&nodes, lose)?;
    let mut losses = Vec::new();
    for listed in catalog::list_volumes(&*context.store)? {
        let map = context.volume(&listed.name)?;
        let mut loss = loss(&map, &lost, |node| names.is_alive(node));
        if map.nodes().iter().any(|node| lost.contains(node)) {
            let gathered = gather(context, &map, &PlanArgs::default())?;
            predict(&mut loss, &map, &gathered, &lost);
        }
        losses.push(loss);
    }
    let gone: Vec<String> = lost.iter().map(|node| names.name_and_site(*node)).collect();
    let value = json!({ "lost": gone, "volumes": losses });
    context.output.show(&value, || text(&gone, &losses));
    let unreadable = losses.iter().filter(|loss| loss.unreadable > 0).count();
    let fewer = losses
        .iter()
        .filter(|loss| loss.unreadable == 0 && loss.fewer_copies > 0)
        .count();
    if unreadable + fewer == 0 {
        return Ok(());
    }
    Err(ToolError::refused(format!(
        "without {}, {unreadable} volumes could not be read in whole or in part, and {fewer} would have fewer copies",
        lose.join(", ")
    ))
    .next("`ukai-tools relocate VOLUME --copies SITE:1,OTHER:1` spreads copies over sites; `--evacuate NODE` empties a node"))
}

fn text(gone: &[String], losses: &[Loss]) -> String {
    let count = |n: u32| if n == 0 { "-".into() } else { n.to_string() };
    let row = |loss: &Loss| {
        let p99 = |latency: &Option<Percentiles>| {
            latency.map_or_else(
                || "?".into(),
                |l| {
                    format!(
                        "{} / {}",
                        latency_text(l.read.p99_us),
                        latency_text(l.write.p99_us)
                    )
                },
            )
        };
        vec![
            loss.volume.clone(),
            loss.chunks.to_string(),
            count(loss.unreadable),
            count(loss.fewer_copies),
            format!("{} -> {}", loss.copies_now, loss.copies_after),
            loss.host.clone().unwrap_or_else(|| "-".into()),
            p99(&loss.now),
            p99(&loss.after),
        ]
    };
    let columns = [
        ("volume", Align::Left),
        ("chunks", Align::Right),
        ("unreadable", Align::Right),
        ("fewer copies", Align::Right),
        ("copies", Align::Left),
        ("used from", Align::Left),
        ("p99 read/write now", Align::Left),
        ("then", Align::Left),
    ];
    let mut out = format!(
        "lost: {}\n\n{}",
        gone.join(", "),
        table(&columns, losses.iter().map(row).collect())
    );
    for loss in losses.iter().filter(|loss| !loss.ranges.is_empty()) {
        let list: Vec<String> = loss
            .ranges
            .iter()
            .take(20)
            .map(|(start, end)| format!("{}-{}", ByteSize(*start), ByteSize(*end)))
            .collect();
        let more = if loss.ranges.len() > 20 { ", ..." } else { "" };
        out.push_str(&format!(
            "\nunreadable of {}: {}{more}",
            loss.volume,
            list.join(", ")
        ));
    }
    if losses.iter().all(Loss::is_nothing) {
        out.push_str("\nnothing would be lost");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_meta::transition::{self, NewVolume};
    use ukai_meta::{Durability, PlaceRule};
    use ukai_proto::{ChunkIndex, VolumeId};

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    /// Ten chunks of 1 MiB on nodes 1 and 2; the first four also on 3.
    fn map() -> VolumeMap {
        let new = NewVolume {
            volume: VolumeId([1; 16]),
            name: "v".into(),
            size_bytes: 10 << 20,
            chunk_bytes: 1 << 20,
            durability: Durability::Cache,
            place: vec![PlaceRule {
                site: "s".into(),
                copies: 2,
            }],
            nodes: vec![vec![id(1), id(2)]],
        };
        let map = transition::create(&new).unwrap().next;
        let range = ChunkRange {
            start: ChunkIndex(0),
            count: 4,
        };
        let add = transition::add_location(&map, range, id(3)).unwrap().next;
        transition::promote(&add, range, id(3)).unwrap().next
    }

    fn numbers(lost: &[u8], dead: u8) -> (u32, u32, usize, usize, Vec<(u64, u64)>) {
        let lost = lost.iter().map(|n| id(*n)).collect();
        let loss = loss(&map(), &lost, |node| node != id(dead));
        (
            loss.unreadable,
            loss.fewer_copies,
            loss.copies_now,
            loss.copies_after,
            loss.ranges,
        )
    }

    #[test]
    fn losses_are_counted() {
        assert_eq!(numbers(&[1], 9), (0, 10, 2, 1, vec![]));
        assert_eq!(numbers(&[1, 2], 9), (6, 4, 2, 1, vec![(4 << 20, 10 << 20)]));
        assert_eq!(numbers(&[1, 2, 3], 9), (10, 0, 2, 0, vec![(0, 10 << 20)]));
        assert_eq!(numbers(&[7], 9), (0, 0, 2, 2, vec![]));
        // Node 2 is dead already: with node 1 the last copies of the rest go.
        assert_eq!(numbers(&[1], 2), (6, 4, 1, 1, vec![(4 << 20, 10 << 20)]));
        // What nobody can read any more is not lost by this.
        assert_eq!(numbers(&[2], 1).0, 6);
    }
}
