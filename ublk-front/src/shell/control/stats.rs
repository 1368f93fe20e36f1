//! Counters of all lanes together, those that have ended included.

use crate::core::api::LaneId;
use crate::core::config::NodeEntry;
use crate::core::stats::LaneStats;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// See the module docs.
#[derive(Debug, Default)]
pub(super) struct Counters {
    ended: LaneStats,
    running: BTreeMap<LaneId, LaneStats>,
}

impl Counters {
    /// A lane has told its counters.
    pub(super) fn told(&mut self, lane: LaneId, stats: LaneStats, last: bool) {
        if last {
            self.running.remove(&lane);
            self.ended.add(&stats);
        } else {
            self.running.insert(lane, stats);
        }
    }

    /// Everything, as JSON.
    pub(super) fn json(&self, nodes: &[NodeEntry], name: impl Fn(usize) -> String) -> Value {
        let mut total = self.ended.clone();
        self.running.values().for_each(|stats| total.add(stats));
        let round_trips: Vec<Value> = total
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(slot, histogram)| {
                let node = nodes.get(slot).map(|entry| entry.node.to_string());
                json!({ "node": node, "name": name(slot), "round_trip": latency(histogram) })
            })
            .collect();
        json!({
            "ok": true,
            "read": latency(&total.read),
            "write": latency(&total.write),
            "flush": latency(&total.flush),
            "zero": latency(&total.zero),
            "read_bytes": total.read_bytes,
            "write_bytes": total.write_bytes,
            "errors": total.errors,
            "read_retries": total.read_retries,
            "nodes": round_trips,
        })
    }
}

/// Microseconds.
fn latency(histogram: &Histogram<u64>) -> Value {
    #[allow(clippy::cast_precision_loss)] // microseconds for people
    let us = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
    json!({
        "count": histogram.len(),
        "mean_us": (histogram.mean() / 100.0).round() / 10.0,
        "p50_us": us(histogram.value_at_quantile(0.5)),
        "p99_us": us(histogram.value_at_quantile(0.99)),
        "p99_9_us": us(histogram.value_at_quantile(0.999)),
        "max_us": us(histogram.max()),
    })
}
