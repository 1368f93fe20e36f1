//! Counters of all lanes together, those that have ended included.

use crate::core::api::LaneId;
use crate::core::api::Now;
use crate::core::config::NodeEntry;
use crate::core::stats::{LaneStats, NodeStats, points};
use hdrhistogram::{Counter, Histogram};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use ukai_meta::LatencyPoints;

/// What is told was measured in the last one to two such spans: older samples are forgotten.
const SPAN: Duration = Duration::from_secs(30);

/// See the module docs.
#[derive(Debug, Default)]
pub(super) struct Counters {
    ended: LaneStats,
    running: BTreeMap<LaneId, LaneStats>,
    /// What had been counted at the beginning of the span before this one, and of this one.
    marks: [Lately; 2],
    marked_at: Now,
}

/// What plans are made from.
#[derive(Debug, Default)]
pub(super) struct Lately {
    /// By slot.
    pub(super) nodes: Vec<NodeStats>,
    /// The front's own time, of reads and writes; how late lanes wake; writes that several replicas answered.
    pub(super) front: Option<[Histogram<u64>; 4]>,
}

impl Lately {
    fn of(total: &LaneStats) -> Self {
        Self {
            nodes: total.nodes.clone(),
            front: Some(
                [
                    &total.read_front,
                    &total.write_front,
                    &total.wake,
                    &total.write_replicated,
                ]
                .map(Clone::clone),
            ),
        }
    }

    /// Without what had been counted `before`.
    fn since(mut self, before: &Self) -> Self {
        for (node, before) in self.nodes.iter_mut().zip(&before.nodes) {
            *node = node.since(before);
        }
        for (front, before) in self
            .front
            .iter_mut()
            .flatten()
            .zip(before.front.iter().flatten())
        {
            // They only grow, and have the same bounds.
            let _ = front.subtract(before);
        }
        self
    }

    /// The front's own time of reads and of writes; how late lanes wake; writes that several replicas answered.
    pub(super) fn front(&self) -> [Option<LatencyPoints>; 4] {
        let of = |kind: usize| points(&self.front.as_ref()?[kind]);
        [of(0), of(1), of(2), of(3)]
    }
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
        let total = self.total();
        let told = |(slot, stats): (usize, &NodeStats)| {
            let node = nodes.get(slot).map(|entry| entry.node.to_string());
            let mut told = json!({ "node": node, "name": name(slot) });
            for (name, histogram) in stats.named() {
                if !histogram.is_empty() {
                    told[name] = latency(histogram);
                }
            }
            told
        };
        let nodes: Vec<Value> = total.nodes.iter().enumerate().map(told).collect();
        json!({
            "ok": true,
            "read": latency(&total.read),
            "write": latency(&total.write),
            "flush": latency(&total.flush),
            "zero": latency(&total.zero),
            "read_front": latency(&total.read_front),
            "write_front": latency(&total.write_front),
            "write_replicated": latency(&total.write_replicated),
            "wake": latency(&total.wake),
            "read_bytes": total.read_bytes,
            "write_bytes": total.write_bytes,
            "errors": total.errors,
            "read_retries": total.read_retries,
            "nodes": nodes,
        })
    }

    fn total(&self) -> LaneStats {
        let mut total = self.ended.clone();
        self.running.values().for_each(|stats| total.add(stats));
        total
    }

    /// What was measured lately.
    pub(super) fn lately(&mut self, now: Now) -> Lately {
        let total = self.total();
        let lately = Lately::of(&total).since(&self.marks[0]);
        if now.since(self.marked_at) >= SPAN {
            self.marked_at = now;
            self.marks.swap(0, 1);
            self.marks[1] = Lately::of(&total);
        }
        lately
    }
}

/// Microseconds.
fn latency<C: Counter>(histogram: &Histogram<C>) -> Value {
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
