//! What the front tells the world of itself: a report to the nodes every few seconds, and what this
//! host measured of nodes to the metadata store, seldom.

use super::meta::Announce;
use super::stats::Lately;
use super::{Control, Frontend};
use crate::core::api::{ControlEvent, Now};
use crate::core::control::guest_latency::GuestKind;
use crate::shell::clock;
use crate::shell::context::LaneMail;
use std::time::Duration;
use ukai_meta::report::{FrontReport, GuestReport, GuestReports};
use ukai_meta::{HostLatency, LatencyPoints, NodeLatency};

/// Between reports to the nodes.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Between records of this host's latencies in the metadata store.
const RECORD_EVERY: Duration = Duration::from_secs(300);

/// When what is due.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    reported_at: Now,
    recorded_at: Option<Now>,
}

impl Control {
    /// Call it at each tick.
    pub(super) fn publish(&mut self, now: Now) {
        if now.since(self.publisher.reported_at) < REPORT_EVERY {
            return;
        }
        self.publisher.reported_at = now;
        let recorded_at = *self.publisher.recorded_at.get_or_insert(now);
        if self.core.is_reconciled() || self.frontend == Frontend::Serving {
            let lately = self.counters.lately(now);
            let nodes = self.latencies(&lately);
            if now.since(recorded_at) >= RECORD_EVERY {
                self.publisher.recorded_at = Some(now);
                self.record(nodes.clone());
            }
            let report = self.report(now, nodes, lately.front()).encode();
            self.events.push(ControlEvent::Publish(report));
        }
        // For the next report: what lanes have counted by now.
        self.lanes.values().for_each(|post| {
            post.send(LaneMail::Stats);
        });
    }

    /// The last record, at the end.
    pub(super) fn record_last(&mut self) {
        let lately = self.counters.lately(clock::now());
        let nodes = self.latencies(&lately);
        self.record(nodes);
    }

    fn record(&self, nodes: Vec<NodeLatency>) {
        if nodes.is_empty() {
            return;
        }
        let latency = HostLatency {
            host: self.host.clone(),
            at_unix_s: clock::unix_s(),
            by: format!("front of {}", self.name),
            nodes,
        };
        // A store that is slow now gets the next one.
        let _ = self.announce.try_send(Announce::Latency(latency));
    }

    /// What is known of each node lately, those that are read from first.
    fn latencies(&self, lately: &Lately) -> Vec<NodeLatency> {
        let at_unix_s = clock::unix_s();
        let ranks: Vec<_> = self.core.status().nodes;
        let rank = |known: &NodeLatency| {
            let node = ranks.iter().find(|status| status.node == known.node);
            node.and_then(|status| status.read_rank)
                .unwrap_or(usize::MAX)
        };
        let of = |(slot, entry): (usize, &crate::core::config::NodeEntry)| {
            let mut known = match lately.nodes.get(slot) {
                Some(stats) => stats.latency(entry.node, at_unix_s),
                None => NodeLatency::of(entry.node),
            };
            known.at_unix_s = at_unix_s;
            // Asked for alone, as `probe` does, so that all nodes are alike.
            known.network = self.core.network(entry.node).or(known.network);
            known
        };
        let mut known: Vec<NodeLatency> = self.entries.iter().enumerate().map(of).collect();
        known.retain(NodeLatency::tells);
        known.sort_by_key(rank);
        known
    }

    fn report(
        &self,
        now: Now,
        nodes: Vec<NodeLatency>,
        [read_front, write_front, wake, write_replicated]: [Option<LatencyPoints>; 4],
    ) -> FrontReport {
        let guest = self.core.guest_latency();
        let span = guest.told_span(now);
        let of = |kind, front| {
            let Some(span) = span else {
                return GuestReport::default();
            };
            let rate = guest.rate(now, span, kind);
            GuestReport {
                latency: guest.points(now, span, kind),
                front,
                ops_per_s: rate.ops_per_s,
                bytes_per_s: rate.bytes_per_s,
            }
        };
        FrontReport {
            host: self.host.clone(),
            token: self.core.status().token,
            at_unix_s: clock::unix_s(),
            since_unix_s: Some(clock::unix_s_before(span.unwrap_or_default())),
            guest: GuestReports {
                read: of(GuestKind::Read, read_front),
                write: of(GuestKind::Write, write_front),
                flush: of(GuestKind::Flush, None),
            },
            wake,
            write_replicated,
            nodes,
            job: self.core.job_progress(),
        }
    }
}
