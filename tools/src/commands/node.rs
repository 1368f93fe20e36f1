//! `node list` and `node show`.

use super::stats::{NodeCounters, counters_table, node_counters};
use crate::context::Context;
use crate::error::Result;
use crate::table::{Align, fields, table};
use crate::units::ByteSize;
use serde_json::json;
use ukai_meta::{NodeState, ReplicaState, catalog};
use ukai_proto::NodeId;

fn state_word(node: &NodeState) -> &'static str {
    match (&node.live, node.record.draining) {
        (Some(_), false) => "alive",
        (Some(_), true) => "draining",
        (None, false) => "not alive",
        (None, true) => "not alive, draining",
    }
}

pub(super) fn list(context: &Context) -> Result<()> {
    let nodes = context.nodes()?;
    context.output.show(&nodes, || {
        if nodes.is_empty() {
            return "no nodes; make one with `chunkstore format` and `chunkstore run`".into();
        }
        let rows = nodes
            .iter()
            .map(|node| {
                let used = node.live.as_ref().map(|live| live.used_bytes);
                vec![
                    node.record.name.clone(),
                    node.record.site.clone(),
                    state_word(node).into(),
                    node.record.shard_count.to_string(),
                    ByteSize(node.record.capacity_bytes).about(),
                    used.map_or("?".into(), |used| ByteSize(used).about()),
                    node.record.host.clone(),
                    node.record.labels.join(" "),
                ]
            })
            .collect();
        table(
            &[
                ("name", Align::Left),
                ("site", Align::Left),
                ("state", Align::Left),
                ("shards", Align::Right),
                ("capacity", Align::Right),
                ("used", Align::Right),
                ("host", Align::Left),
                ("labels", Align::Left),
            ],
            rows,
        )
    });
    Ok(())
}

/// What a node holds of one volume, by the maps.
struct Holding {
    volume: String,
    chunks: [u32; 4],
}

const STATES: [ReplicaState; 4] = [
    ReplicaState::InSync,
    ReplicaState::Joining,
    ReplicaState::Stale,
    ReplicaState::Leaving,
];

fn holdings(context: &Context, node: NodeId) -> Result<Vec<Holding>> {
    let mut out = Vec::new();
    for name in catalog::list_volumes(&*context.store)? {
        let map = catalog::load_volume(&*context.store, name.volume)?;
        let count = |state| {
            map.ranges_of(node, state)
                .iter()
                .map(|range| range.count)
                .sum()
        };
        let chunks = STATES.map(count);
        if chunks != [0; 4] {
            out.push(Holding {
                volume: name.name,
                chunks,
            });
        }
    }
    Ok(out)
}

pub(super) fn show(context: &Context, name: &str) -> Result<()> {
    let node = context.node(name)?;
    let record = &node.record;
    let holdings = holdings(context, record.node)?;
    let counters = match &node.live {
        Some(_) => Some(node_counters(context.cluster()?.cluster, record)),
        None => None,
    };
    let (counters, problem) = match counters {
        Some(Ok(counters)) => (Some(counters), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, None),
    };
    let value = json!({
        "record": record, "live": node.live, "state": state_word(&node),
        "volumes": holdings.iter().map(|h| json!({
            "volume": h.volume, "in_sync": h.chunks[0], "joining": h.chunks[1],
            "stale": h.chunks[2], "leaving": h.chunks[3] })).collect::<Vec<_>>(),
        "counters": counters, "problem": problem,
    });
    context.output.show(&value, || {
        let none = || "-".to_owned();
        let mut lines = vec![
            ("name", record.name.clone()),
            ("id", record.node.to_string()),
            ("site", record.site.clone()),
            (
                "labels",
                if record.labels.is_empty() {
                    none()
                } else {
                    record.labels.join(" ")
                },
            ),
            ("state", state_word(&node).into()),
            ("host", record.host.clone()),
            ("capacity", ByteSize(record.capacity_bytes).about()),
            (
                "used",
                node.live
                    .as_ref()
                    .map_or_else(none, |live| ByteSize(live.used_bytes).about()),
            ),
        ];
        if let Some(live) = &node.live {
            lines.push((
                "run",
                format!(
                    "start {} in boot {}",
                    live.incarnation.start, live.incarnation.boot
                ),
            ));
        }
        let shards: Vec<(String, String)> = record
            .shard_addresses
            .iter()
            .enumerate()
            .map(|(shard, addresses)| (format!("shard {shard}"), addresses.join(" ")))
            .collect();
        lines.extend(
            shards
                .iter()
                .map(|(name, text)| (name.as_str(), text.clone())),
        );
        if let Some(problem) = &problem {
            lines.push(("does not answer", problem.clone()));
        }
        let mut text = fields(&lines);
        if !holdings.is_empty() {
            text = format!("{text}\n\n{}", holdings_table(&holdings));
        }
        if let Some(counters) = &counters {
            let list: &[NodeCounters] = std::slice::from_ref(counters);
            text = format!("{text}\n\n{}", counters_table(list));
        }
        text
    });
    Ok(())
}

fn holdings_table(holdings: &[Holding]) -> String {
    let rows = holdings
        .iter()
        .map(|holding| {
            let counts = holding
                .chunks
                .iter()
                .map(|n| if *n == 0 { "-".into() } else { n.to_string() });
            std::iter::once(holding.volume.clone())
                .chain(counts)
                .collect()
        })
        .collect();
    table(
        &[
            ("volume", Align::Left),
            ("in-sync", Align::Right),
            ("joining", Align::Right),
            ("stale", Align::Right),
            ("leaving", Align::Right),
        ],
        rows,
    )
}
