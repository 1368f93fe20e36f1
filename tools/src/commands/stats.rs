//! `stats`: what the front counts, and what the nodes of the volume count.

use crate::client::{ClientError, NodeClient, block_on, shards};
use crate::context::Context;
use crate::error::Result;
use crate::front;
use crate::report;
use crate::table::{Align, fields, table, warn};
use crate::units::ByteSize;
use serde::Serialize;
use serde_json::{Value, json};
use ukai_meta::map::VolumeMap;
use ukai_meta::record::FrontRecord;
use ukai_meta::{LatencyPoints, NodeLatency, NodeRecord};
use ukai_proto::limits::SLOT_BYTES;
use ukai_proto::message::ShardStats;
use ukai_proto::{ClusterId, Header, Opcode};

/// Counters of a node: of all its volumes together, since it started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct NodeCounters {
    node: String,
    site: String,
    #[serde(flatten)]
    sum: ShardStats,
}

/// The sum over the shards of a node.
pub(super) fn node_counters(
    cluster: ClusterId,
    record: &NodeRecord,
) -> std::result::Result<NodeCounters, ClientError> {
    let mut sum = ShardStats::default();
    block_on(async {
        for shard in shards(record) {
            let mut client = NodeClient::connect(cluster, record, shard).await?;
            let reply = client
                .request(Header::request(Opcode::Stats, 0), Vec::new())
                .await?;
            sum.add(&ShardStats::decode(&reply.aux));
        }
        Ok(())
    })
    .map(|()| NodeCounters {
        node: record.name.clone(),
        site: record.site.clone(),
        sum,
    })
}

pub(super) fn counters_table(counters: &[NodeCounters]) -> String {
    let slots = |n: u64| ByteSize(n.saturating_mul(SLOT_BYTES as u64)).about();
    let rows = counters
        .iter()
        .map(|node| {
            let sum = &node.sum;
            vec![
                node.node.clone(),
                sum.reads.to_string(),
                ByteSize(sum.read_bytes).about(),
                sum.writes.to_string(),
                ByteSize(sum.write_bytes).about(),
                sum.zeroes.to_string(),
                sum.flushes.to_string(),
                sum.pulled_sectors.to_string(),
                sum.refused.to_string(),
                sum.bad_sectors.to_string(),
                sum.intents_open.to_string(),
                format!("{} of {}", slots(sum.slots_used), slots(sum.slots_total)),
            ]
        })
        .collect();
    table(
        &[
            ("node", Align::Left),
            ("reads", Align::Right),
            ("read", Align::Right),
            ("writes", Align::Right),
            ("written", Align::Right),
            ("zeroes", Align::Right),
            ("flushes", Align::Right),
            ("pulled", Align::Right),
            ("refused", Align::Right),
            ("bad", Align::Right),
            ("intents", Align::Right),
            ("space", Align::Left),
        ],
        rows,
    )
}

pub(super) fn stats(context: &Context, name: &str) -> Result<()> {
    let map = context.volume(name)?;
    let names = context.names()?;
    let cluster = context.cluster()?.cluster;
    let front = match context.front(&map.head)? {
        Some(front) => Some(ask_or_read(context, &map, &front)?),
        None => None,
    };
    let mut nodes = Vec::new();
    for node in map.nodes() {
        match names
            .state(node)
            .map(|state| node_counters(cluster, &state.record))
        {
            Some(Ok(counters)) => nodes.push(counters),
            Some(Err(error)) => warn(&format!(
                "node {} does not answer: {error}",
                names.name(node)
            )),
            None => warn(&format!(
                "the record of node {node} is gone from the metadata store"
            )),
        }
    }
    nodes.sort_by(|a, b| (&a.site, &a.node).cmp(&(&b.site, &b.node)));
    let value = json!({ "volume": name, "front": front, "nodes": nodes });
    context.output.show(&value, || {
        let front = front
            .as_ref()
            .map_or_else(|| "not attached: no front to ask".into(), front_text);
        format!(
            "{front}\n\nnodes, all their volumes together, since their start:\n{}",
            counters_table(&nodes)
        )
    });
    Ok(())
}

/// The front itself, or, where its control socket is not reached (another host), what it last told the
/// nodes.
fn ask_or_read(context: &Context, map: &VolumeMap, front: &FrontRecord) -> Result<Value> {
    let error = match front::ask(front, &json!({ "cmd": "stats" })) {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    let names = context.names()?;
    let Some(report) = report::front(context.cluster()?.cluster, &names, map) else {
        return Err(error);
    };
    let summary = |points: Option<LatencyPoints>| {
        points.map_or(Value::Null, |points| {
            json!({ "count": points.count, "mean_us": null, "p50_us": points.quantile(0.5),
                    "p99_us": points.quantile(0.99), "p99_9_us": points.quantile(0.999),
                    "max_us": points.quantile(1.0) })
        })
    };
    let node = |known: &NodeLatency| {
        json!({ "node": known.node, "name": names.name(known.node), "read": summary(known.read),
                "write": summary(known.write), "read_large": summary(known.read_large),
                "write_large": summary(known.write_large), "network": summary(known.network),
                "read_service": summary(known.read_service),
                "write_service": summary(known.write_service) })
    };
    let guest = &report.guest;
    Ok(json!({
        "of": format!("the last minute, as host {} told the nodes", report.host),
        "told_unix_s": report.at_unix_s,
        "read": summary(guest.read.latency), "write": summary(guest.write.latency),
        "flush": summary(guest.flush.latency),
        "reads_per_s": guest.read.ops_per_s, "writes_per_s": guest.write.ops_per_s,
        "nodes": report.nodes.iter().map(node).collect::<Vec<_>>(),
    }))
}

/// Columns of a latency summary, in the front's words.
const LATENCY: [(&str, &str); 6] = [
    ("count", "count"),
    ("mean us", "mean_us"),
    ("p50 us", "p50_us"),
    ("p99 us", "p99_us"),
    ("p99.9 us", "p99_9_us"),
    ("max us", "max_us"),
];

/// What a front measures per node: its name in the answer, and how a row of it is called.
const PER_NODE: [(&str, &str); 7] = [
    ("read", "read from"),
    ("write", "write to"),
    ("read_large", "read > 32 KiB from"),
    ("write_large", "write > 32 KiB to"),
    ("network", "network to"),
    ("read_service", "read inside"),
    ("write_service", "write inside"),
];

/// The front's answer: latency summaries as a table, everything else as lines. Its counters grow with
/// its releases; all are shown.
fn front_text(answer: &Value) -> String {
    let mut rows = Vec::new();
    let mut nodes = Vec::new();
    let mut rest = Vec::new();
    for (name, value) in answer.as_object().into_iter().flatten() {
        match value {
            // Nothing of it was measured.
            Value::Null => {}
            // Said by the caller, or not worth saying.
            _ if name == "ok" || name == "volume" => {}
            Value::Array(list) => {
                for item in list {
                    let Some(node) = item["name"].as_str() else {
                        flatten(name, item, &mut rest);
                        continue;
                    };
                    let of_node = PER_NODE.iter().filter_map(|(field, title)| {
                        latency_row(&format!("{title} {node}"), &item[*field])
                    });
                    nodes.extend(of_node);
                }
            }
            value => match latency_row(name, value) {
                Some(row) => rows.push(row),
                None => flatten(name, value, &mut rest),
            },
        }
    }
    // The guest's operations first.
    rows.sort();
    rows.append(&mut nodes);
    let mut columns = vec![("what", Align::Left)];
    columns.extend(LATENCY.iter().map(|(title, _)| (*title, Align::Right)));
    let rest: Vec<(&str, String)> = rest
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    format!("{}\n\n{}", table(&columns, rows), fields(&rest))
}

/// A row of the table, if the value is a latency summary.
fn latency_row(name: &str, value: &Value) -> Option<Vec<String>> {
    let mut row = vec![name.to_owned()];
    for (_, field) in LATENCY {
        let number = value.get(field)?;
        row.push(match number.as_u64() {
            Some(count) => count.to_string(),
            None if number.is_null() => "-".into(),
            None => format!("{:.1}", number.as_f64()?),
        });
    }
    Some(row)
}

/// Nested values as `a.b.c` lines. The front's counters grow with its releases; all are shown.
fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    let under = |name: &str| {
        if prefix.is_empty() {
            name.into()
        } else {
            format!("{prefix}.{name}")
        }
    };
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(name, value)| flatten(&under(name), value, out)),
        Value::Array(list) if list.iter().any(|item| item.is_object() || item.is_array()) => {
            for (index, item) in list.iter().enumerate() {
                flatten(&under(&index.to_string()), item, out);
            }
        }
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(plain).collect();
            out.push((prefix.into(), items.join(" ")));
        }
        value => out.push((prefix.into(), plain(value))),
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_become_a_table_and_the_rest_lines() {
        let summary = json!({ "count": 2, "mean_us": 1.25, "p50_us": 1.0, "p99_us": 2.0,
                              "p99_9_us": 2.0, "max_us": 2.5 });
        let text = front_text(&json!({ "ok": true, "read": summary, "errors": 3,
                                       "nodes": [{ "name": "n1", "node": "x", "read": summary, "network": summary }] }));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("WHAT"), "{text}");
        assert!(
            text.contains("read from n1")
                && text.contains("network to n1")
                && text.contains("errors  3"),
            "{text}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("read") && line.ends_with("2.5")),
            "{text}"
        );
        assert!(!text.contains("ok"), "{text}");
    }

    #[test]
    fn nested_counters_become_lines() {
        let mut lines = Vec::new();
        flatten(
            "",
            &json!({ "a": { "b": 1, "c": [1, 2] }, "lanes": [{ "n": "x" }] }),
            &mut lines,
        );
        let lines: Vec<String> = lines
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(lines, ["a.b=1", "a.c=1 2", "lanes.0.n=x"]);
    }
}
