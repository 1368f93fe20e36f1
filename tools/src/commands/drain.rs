//! `node drain-check`, `drain` and `undrain`.

use crate::client::{ClientError, NodeClient, block_on, shards};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::table::{Align, table, warn};
use crate::units::ByteSize;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use ukai_meta::map::VolumeMap;
use ukai_meta::{NodeRecord, ReplicaState, catalog};
use ukai_proto::limits::SLOT_BYTES;
use ukai_proto::message::read_inventory;
use ukai_proto::{ClusterId, Flags, Header, NodeId, Opcode, VolumeId};

/// What a volume would lose with a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
struct Risk {
    volume: String,
    /// Chunks with a replica there, in any state.
    chunks: u32,
    /// Chunks that nobody could read any more: no other replica that is in sync on a living node.
    unavailable: u32,
    /// Chunks that would have fewer in-sync copies on living nodes than the volume asks for, and
    /// have one here now.
    below_copies: u32,
}

impl Risk {
    fn safe(&self) -> bool {
        self.unavailable == 0 && self.below_copies == 0
    }
}

/// Pure: a map, the node that goes, and who lives.
fn risk(map: &VolumeMap, node: NodeId, is_alive: impl Fn(NodeId) -> bool) -> Risk {
    let wanted: usize = map
        .head
        .place
        .iter()
        .map(|rule| usize::from(rule.copies))
        .sum();
    let mut risk = Risk {
        volume: map.head.name.clone(),
        ..Risk::default()
    };
    for (range, set) in map.runs() {
        let replicas = map.set(set);
        let Some(here) = replicas.iter().find(|replica| replica.node == node) else {
            continue;
        };
        risk.chunks += range.count;
        if here.state != ReplicaState::InSync {
            continue;
        }
        let left = replicas
            .iter()
            .filter(|r| r.node != node && r.state == ReplicaState::InSync && is_alive(r.node))
            .count();
        if left == 0 {
            risk.unavailable += range.count;
        } else if left < wanted {
            risk.below_copies += range.count;
        }
    }
    risk
}

/// Space that a volume takes on a node although no map says so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Leftover {
    volume: VolumeId,
    name: Option<String>,
    bytes: u64,
}

pub(super) fn check(context: &Context, name: &str) -> Result<()> {
    let node = context.node(name)?;
    let (id, name) = (node.record.node, &node.record.name);
    let names = context.names()?;
    let mut risks = Vec::new();
    let mut held: BTreeMap<VolumeId, Option<String>> = BTreeMap::new();
    for listed in catalog::list_volumes(&*context.store)? {
        let map = catalog::load_volume(&*context.store, listed.volume).map_err(|error| {
            ToolError::from(error).context(format_args!("volume {}", listed.name))
        })?;
        let risk = risk(&map, id, |node| names.is_alive(node));
        if risk.chunks > 0 {
            risks.push(risk);
        } else {
            held.insert(listed.volume, Some(listed.name));
        }
    }
    let in_use: Vec<&str> = risks.iter().map(|risk| risk.volume.as_str()).collect();
    let leftovers = match node.live {
        Some(_) => match block_on(inventory(context.cluster()?.cluster, &node.record)) {
            Ok(found) => leftovers(context, found, &held, &in_use)?,
            Err(error) => {
                warn(&format!(
                    "node {name} does not answer: {error}; only the maps were looked at"
                ));
                Vec::new()
            }
        },
        None => Vec::new(),
    };
    let safe = risks.iter().all(Risk::safe);
    let value = json!({ "node": name, "id": id, "draining": node.record.draining, "safe": safe,
                        "volumes": risks, "leftovers": leftovers });
    context.output.show(&value, || {
        let mut text = if risks.is_empty() {
            format!("no volume has a replica on node {name}")
        } else {
            risk_table(&risks)
        };
        for leftover in &leftovers {
            let whose = leftover.name.as_ref().map_or_else(
                || "an unknown volume".into(),
                |name| format!("volume {name}"),
            );
            text.push_str(&format!(
                "\nleft behind: {} of {whose} ({}), which no map mentions",
                ByteSize(leftover.bytes).about(),
                leftover.volume
            ));
        }
        if safe {
            text.push_str(&format!(
                "\nsafe: nothing would be lost if node {name} went away now"
            ));
        }
        text
    });
    if safe {
        return Ok(());
    }
    let unavailable: u32 = risks.iter().map(|risk| risk.unavailable).sum();
    let below: u32 = risks.iter().map(|risk| risk.below_copies).sum();
    Err(ToolError::refused(format!(
        "not safe: without node {name}, {unavailable} chunks could not be read and {below} would have too few copies"
    ))
    .next("add locations elsewhere (`volume add-location`), wait (`volume synchronize --wait`), then remove this one (`volume remove-location`)"))
}

fn leftovers(
    context: &Context,
    found: BTreeMap<VolumeId, u64>,
    elsewhere: &BTreeMap<VolumeId, Option<String>>,
    in_use: &[&str],
) -> Result<Vec<Leftover>> {
    let mut out = Vec::new();
    for (volume, slots) in found {
        let name = match elsewhere.get(&volume) {
            Some(name) => name.clone(),
            None => match catalog::load_head(&*context.store, volume) {
                Ok(head) if in_use.contains(&head.name.as_str()) => continue,
                Ok(head) => Some(head.name),
                Err(catalog::CatalogError::NoVolume(_)) => None,
                Err(error) => return Err(error.into()),
            },
        };
        if slots > 0 {
            out.push(Leftover {
                volume,
                name,
                bytes: slots.saturating_mul(SLOT_BYTES as u64),
            });
        }
    }
    Ok(out)
}

/// Slots per volume, as the node itself counts them.
async fn inventory(
    cluster: ClusterId,
    record: &NodeRecord,
) -> std::result::Result<BTreeMap<VolumeId, u64>, ClientError> {
    let mut out = BTreeMap::new();
    for shard in shards(record) {
        let mut client = NodeClient::connect(cluster, record, shard).await?;
        let mut after = VolumeId::NIL;
        loop {
            let request = Header {
                volume: after,
                ..Header::request(Opcode::Inventory, 0)
            };
            let reply = client.request(request, Vec::new()).await?;
            let entries = read_inventory(&reply.aux)?;
            for entry in &entries {
                *out.entry(entry.volume).or_default() += entry.slots;
            }
            match entries.last() {
                // Each page must go on after the last: a node that repeats itself is cut off.
                Some(last) if reply.header.flags.has(Flags::MORE) && last.volume > after => {
                    after = last.volume;
                }
                _ => break,
            }
        }
    }
    Ok(out)
}

fn risk_table(risks: &[Risk]) -> String {
    let count = |n: u32| if n == 0 { "-".into() } else { n.to_string() };
    let rows = risks
        .iter()
        .map(|risk| {
            vec![
                risk.volume.clone(),
                risk.chunks.to_string(),
                count(risk.unavailable),
                count(risk.below_copies),
                if risk.safe() { "safe" } else { "not safe" }.into(),
            ]
        })
        .collect();
    table(
        &[
            ("volume", Align::Left),
            ("chunks here", Align::Right),
            ("unreadable", Align::Right),
            ("too few copies", Align::Right),
            ("verdict", Align::Left),
        ],
        rows,
    )
}

pub(super) fn set(context: &Context, name: &str, draining: bool) -> Result<()> {
    let node = context.node(name)?;
    catalog::set_draining(&*context.store, node.record.node, draining)?;
    let name = &node.record.name;
    let changed = node.record.draining != draining;
    let value = json!({ "node": name, "draining": draining, "changed": changed });
    context.output.show(&value, || match (draining, changed) {
        (true, true) => format!(
            "node {name} takes no new chunks; what it holds stays until it is moved: `ukai-tools node drain-check {name}`"
        ),
        (true, false) => format!("node {name} is draining already"),
        (false, true) => format!("node {name} takes new chunks again"),
        (false, false) => format!("node {name} is not draining"),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_meta::transition::{self, NewVolume};
    use ukai_meta::{Durability, PlaceRule};
    use ukai_proto::ChunkIndex;
    use ukai_proto::message::ChunkRange;

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn map(copies: u8) -> VolumeMap {
        let new = NewVolume {
            volume: VolumeId([1; 16]),
            name: "v".into(),
            size_bytes: 10 << 20,
            chunk_bytes: 1 << 20,
            durability: Durability::Cache,
            place: vec![PlaceRule {
                site: "s".into(),
                copies,
            }],
            nodes: vec![(1..=copies).map(node).collect()],
        };
        transition::create(&new).unwrap().next
    }

    fn numbers(risk: &Risk) -> (u32, u32, u32) {
        (risk.chunks, risk.unavailable, risk.below_copies)
    }

    #[test]
    fn one_copy_would_be_unreadable() {
        assert_eq!(numbers(&risk(&map(1), node(1), |_| true)), (10, 10, 0));
    }

    #[test]
    fn of_two_copies_one_would_be_left() {
        let map = map(2);
        assert_eq!(numbers(&risk(&map, node(1), |_| true)), (10, 0, 10));
        assert_eq!(numbers(&risk(&map, node(1), |n| n != node(2))), (10, 10, 0));
        assert!(risk(&map, node(9), |_| true).safe());
    }

    #[test]
    fn a_third_copy_makes_it_safe_where_it_is_in_sync() {
        let range = ChunkRange {
            start: ChunkIndex(0),
            count: 4,
        };
        let joining = transition::add_location(&map(2), range, node(3))
            .unwrap()
            .next;
        assert_eq!(numbers(&risk(&joining, node(1), |_| true)), (10, 0, 10));
        assert!(risk(&joining, node(3), |_| true).safe());
        let half = ChunkRange {
            start: ChunkIndex(0),
            count: 2,
        };
        let promoted = transition::promote(&joining, half, node(3)).unwrap().next;
        assert_eq!(numbers(&risk(&promoted, node(1), |_| true)), (10, 0, 8));
    }

    #[test]
    fn a_stale_replica_is_no_loss() {
        let stale = transition::mark_stale(&map(2), &[node(1)]).unwrap().next;
        assert!(risk(&stale, node(1), |_| true).safe());
        assert_eq!(numbers(&risk(&stale, node(2), |_| true)), (10, 10, 0));
    }
}
