//! Reports that fronts and nodes tell of themselves, kept in the memory of nodes (`PUT_REPORT`,
//! `GET_REPORT`; `docs/protocol.md`), as JSON.

use crate::job::JobProgress;
use crate::latency::{LatencyPoints, NodeLatency};
use serde::{Deserialize, Serialize};
use ukai_proto::Token;
use ukai_proto::message::REPORT_BYTES_MAX;

/// Latency and amount of one kind of guest request, of any size, since [`FrontReport::since_unix_s`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// As the guest saw it; absent if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyPoints>,
    /// What of it the front itself took, over the last minute: all but the round trips to nodes. Of requests of at most
    /// [`crate::latency::SMALL_SECTORS_MAX`] within one chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<LatencyPoints>,
    /// Requests per second.
    pub ops_per_s: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
}

/// All kinds of guest requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestReports {
    /// Reads.
    pub read: GuestReport,
    /// Writes.
    pub write: GuestReport,
    /// Flushes.
    pub flush: GuestReport,
}

/// What a front tells of its volume every few seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontReport {
    /// The host it runs on.
    pub host: String,
    /// Token of its attach: which of two reports is the newer one, with the time.
    pub token: Token,
    /// When, seconds since 1970.
    pub at_unix_s: u64,
    /// Since when `guest` was measured, seconds since 1970: for a minute, or since the end of the last relocation, so
    /// that nothing of before it is in what is said after. Absent: for a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_s: Option<u64>,
    /// What the guest saw.
    pub guest: GuestReports,
    /// How late the front's threads wake, over the last minute: after a timer, when they have nothing else to do or while
    /// others keep the processors busy, as it is. The guest's requests wake threads alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<LatencyPoints>,
    /// Of the writes of `guest.write.front` those that several replicas answered: what they took whole, in the front, over the
    /// last minute. With what each node took it tells how much nodes are slow together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_replicated: Option<LatencyPoints>,
    /// What it knows of the nodes, those it reads from first.
    pub nodes: Vec<NodeLatency>,
    /// How far the relocation job is that it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobProgress>,
}

impl FrontReport {
    /// As JSON of at most [`REPORT_BYTES_MAX`]; what does not fit of the nodes is left out, the last ones
    /// first.
    #[must_use]
    pub fn encode(mut self) -> Vec<u8> {
        loop {
            let bytes = serde_json::to_vec(&self).expect("plain fields serialise");
            if bytes.len() <= REPORT_BYTES_MAX || self.nodes.is_empty() {
                return bytes;
            }
            let kept = self.nodes.len() * REPORT_BYTES_MAX / bytes.len();
            self.nodes.truncate(kept.min(self.nodes.len() - 1));
        }
    }

    /// From JSON.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// What a shard of a node tells of itself: time that requests of at most [`crate::latency::SMALL_SECTORS_MAX`] took inside
/// the node, over the last minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// READ requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<LatencyPoints>,
    /// WRITE requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<LatencyPoints>,
}

impl ServiceReport {
    /// As JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields serialise")
    }

    /// From JSON.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_proto::NodeId;

    fn report(nodes: u8) -> FrontReport {
        let points = LatencyPoints::from_quantiles(9, |quantile| 100.0 + quantile);
        let guest = GuestReport {
            latency: points,
            front: points,
            ops_per_s: 1.5,
            bytes_per_s: 6144.0,
        };
        let node = |n| NodeLatency {
            network: points,
            read: points,
            write: points,
            ..NodeLatency::of(NodeId([n; 16]))
        };
        FrontReport {
            host: "hv1".into(),
            token: Token(3),
            at_unix_s: 1_790_000_000,
            since_unix_s: Some(1_789_999_940),
            guest: GuestReports {
                read: guest.clone(),
                write: guest,
                flush: GuestReport::default(),
            },
            wake: points,
            write_replicated: points,
            nodes: (0..nodes).map(node).collect(),
            job: None,
        }
    }

    #[test]
    fn reports_round_trip_and_damage_is_an_error() {
        let bytes = report(2).encode();
        assert_eq!(FrontReport::decode(&bytes).expect("read"), report(2));
        for len in 0..bytes.len() {
            assert!(FrontReport::decode(&bytes[..len]).is_err());
        }
        let service = ServiceReport {
            read: report(1).nodes[0].read,
            write: None,
        };
        assert_eq!(
            ServiceReport::decode(&service.encode()).expect("read"),
            service
        );
        assert_eq!(
            ServiceReport::decode(b"{}").expect("read"),
            ServiceReport::default()
        );
    }

    #[test]
    fn more_nodes_than_fit_are_left_out() {
        let bytes = report(u8::MAX).encode();
        assert!(bytes.len() <= REPORT_BYTES_MAX, "{}", bytes.len());
        let kept = FrontReport::decode(&bytes).expect("read").nodes;
        assert!(kept.len() > 50, "{}", kept.len());
        assert_eq!(kept, report(u8::MAX).nodes[..kept.len()]);
    }

    /// A report of a newer front, with a field that is not known here, is read.
    #[test]
    fn fields_that_are_not_known_are_passed_over() {
        let text = String::from_utf8(report(1).encode()).expect("text");
        let newer = text.replacen('{', "{\"new\":[1],", 1);
        assert_eq!(
            FrontReport::decode(newer.as_bytes()).expect("read"),
            report(1)
        );
    }
}
