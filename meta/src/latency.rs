//! Latency distributions as they are kept and published: a few points each, measured between one host
//! and one node.
//!
//! Whoever measures keeps a histogram of its own; this crate only knows the points. They are JSON in
//! `latencies/<host>` and in the reports of fronts and nodes:
//! `{"count":3,"us":[12.5,...19 numbers, ascending]}`.

use serde::{Deserialize, Serialize};
use ukai_proto::NodeId;

/// Probabilities at which a latency distribution is told.
pub const QUANTILES: [f64; 19] = [
    0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998,
    0.999, 1.0,
];

/// What a node's reads and writes took is not worth more than its network round trip and service time of now, once it
/// is so much older than these.
pub const STALE_S: u64 = 600;

/// Nodes in one host's record: with five distributions of 19 numbers each it stays far below the
/// store's limit of a value.
pub const HOST_NODES_MAX: usize = 256;

/// Per node only requests of at most so many sectors (32 KiB) are in [`NodeLatency::read`] and its like: what
/// carries more measures the bandwidth of network and disk, and one bulk reader would make a node look as slow for
/// everybody. Predictions speak of requests of that size.
pub const SMALL_SECTORS_MAX: u16 = 8;

/// A latency distribution: values at [`QUANTILES`], microseconds, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct LatencyPoints {
    /// Samples that it was made from; at least 1.
    pub count: u64,
    /// Microseconds at each of [`QUANTILES`]: the least, ..., the median, ..., the greatest.
    #[serde(serialize_with = "tenths")]
    pub us: [f32; 19],
}

/// A tenth of a microsecond is told, whatever the serializer makes of single precision.
fn tenths<S: serde::Serializer>(us: &[f32; 19], serializer: S) -> Result<S::Ok, S::Error> {
    us.map(|us| (f64::from(us) * 10.0).round() / 10.0)
        .serialize(serializer)
}

/// As it may be found in damaged or foreign JSON.
#[derive(Deserialize)]
struct Unchecked {
    count: u64,
    us: [f32; 19],
}

/// Numbers that are no distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these are no points of a latency distribution: {0}")]
pub struct PointsError(&'static str);

impl TryFrom<Unchecked> for LatencyPoints {
    type Error = PointsError;
    fn try_from(raw: Unchecked) -> Result<Self, PointsError> {
        if raw.count == 0 {
            return Err(PointsError("no samples"));
        }
        if !raw.us.iter().all(|us| us.is_finite() && *us >= 0.0) {
            return Err(PointsError("a negative or infinite latency"));
        }
        if !raw.us.is_sorted() {
            return Err(PointsError("they do not ascend"));
        }
        Ok(Self {
            count: raw.count,
            us: raw.us,
        })
    }
}

impl LatencyPoints {
    /// From `count` samples, given their value in microseconds at a probability; `None` if there are
    /// none. Values are kept to a tenth of a microsecond, and made ascending.
    pub fn from_quantiles(count: u64, mut us_at: impl FnMut(f64) -> f64) -> Option<Self> {
        if count == 0 {
            return None;
        }
        let mut least = 0.0f64;
        let us = QUANTILES.map(|quantile| {
            let us = us_at(quantile);
            assert!(us.is_finite(), "quantile {quantile} is {us}");
            least = least.max((us * 10.0).round() / 10.0);
            #[allow(clippy::cast_possible_truncation)] // microseconds need no more precision
            let us = least as f32;
            us
        });
        Some(Self { count, us })
    }

    /// The latency below which a share `probability` (0 to 1) of the samples lies, microseconds;
    /// between two points on the line through them.
    #[must_use]
    pub fn quantile(&self, probability: f64) -> f64 {
        let above = QUANTILES.partition_point(|quantile| *quantile < probability);
        let last = QUANTILES.len() - 1;
        if above == 0 || above > last {
            return self.us[above.min(last)].into();
        }
        let (low, high) = (QUANTILES[above - 1], QUANTILES[above]);
        let (from, to) = (f64::from(self.us[above - 1]), f64::from(self.us[above]));
        // Kept between them also when the last bit is rounded, so that it ascends everywhere.
        (from + (to - from) * (probability - low) / (high - low)).clamp(from, to)
    }
}

impl LatencyPoints {
    /// The distribution of samples that came from several, each as often as it counts; `None` if there
    /// are none.
    #[must_use]
    pub fn mixture(parts: &[Self]) -> Option<Self> {
        let total = parts.iter().map(|part| part.count).sum::<u64>();
        let last = QUANTILES.len() - 1;
        let least = parts.iter().map(|p| p.us[0]).fold(f32::MAX, f32::min);
        let greatest = parts.iter().map(|p| p.us[last]).fold(0.0, f32::max);
        #[allow(clippy::cast_precision_loss)] // shares
        let below = |us: f64| -> f64 {
            let shares = parts.iter().map(|p| p.share_below(us) * p.count as f64);
            shares.sum::<f64>() / total as f64
        };
        Self::from_quantiles(total, |probability| {
            if probability >= 1.0 {
                return greatest.into();
            }
            // The share below grows with the latency: halve the span until it is closed.
            let (mut low, mut high) = (f64::from(least), f64::from(greatest));
            for _ in 0..60 {
                let middle = f64::midpoint(low, high);
                if below(middle) < probability {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            high
        })
    }

    /// Share of the samples at or below a latency.
    fn share_below(&self, us: f64) -> f64 {
        let above = self.us.partition_point(|at| f64::from(*at) <= us);
        let Some(high) = self.us.get(above) else {
            return 1.0;
        };
        let Some(index) = above.checked_sub(1) else {
            return 0.0;
        };
        let (from, to) = (f64::from(self.us[index]), f64::from(*high));
        let (low, high) = (QUANTILES[index], QUANTILES[above]);
        low + (high - low) * (us - from) / (to - from)
    }
}

/// What one host knows of one node, of requests of at most [`SMALL_SECTORS_MAX`] where nothing else is said. What
/// was never measured is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeLatency {
    /// The node.
    pub node: NodeId,
    /// When it was measured, seconds since 1970; 0: not told.
    #[serde(default, skip_serializing_if = "is_untold")]
    pub at_unix_s: u64,
    /// Round trip without the node's service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<LatencyPoints>,
    /// A guest read that this node served: the whole round trip that the front's lane saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<LatencyPoints>,
    /// The same for one replica's part of a guest write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<LatencyPoints>,
    /// Reads of more sectors, told only where there is no `read`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_large: Option<LatencyPoints>,
    /// Writes of more sectors, told only where there is no `write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_large: Option<LatencyPoints>,
    /// Reads inside the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_service: Option<LatencyPoints>,
    /// Writes inside the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_service: Option<LatencyPoints>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_untold(at_unix_s: &u64) -> bool {
    *at_unix_s == 0
}

impl NodeLatency {
    /// Nothing known yet.
    #[must_use]
    pub fn of(node: NodeId) -> Self {
        Self {
            node,
            ..Self::default()
        }
    }

    /// Adds what was known at another, earlier time: service times and network, if none are known now; reads and
    /// writes only if they are not more than [`STALE_S`] older, or if nothing is known now that could stand for them.
    pub fn fill_in(&mut self, older: &Self) {
        let recent = older.at_unix_s.saturating_add(STALE_S) >= self.at_unix_s;
        if recent || self.network.is_none() {
            let untold = |kind: &Option<_>, large: &Option<_>| kind.is_none() && large.is_none();
            if self.read.is_none() && (older.read.is_some() || untold(&self.read, &self.read_large))
            {
                (self.read, self.read_large) = (older.read, older.read_large);
            }
            if self.write.is_none()
                && (older.write.is_some() || untold(&self.write, &self.write_large))
            {
                (self.write, self.write_large) = (older.write, older.write_large);
            }
        }
        self.network = self.network.or(older.network);
        self.keep_service_of(older);
    }

    fn keep_service_of(&mut self, older: &Self) {
        self.read_service = self.read_service.or(older.read_service);
        self.write_service = self.write_service.or(older.write_service);
    }

    /// Is anything known?
    #[must_use]
    pub fn tells(&self) -> bool {
        let Self {
            node, at_unix_s, ..
        } = *self;
        *self
            != Self {
                at_unix_s,
                ..Self::of(node)
            }
    }
}

/// `latencies/<host>`: permanent, written by `ukai-tools probe` and, every few minutes, by fronts.
/// Nodes that were forgotten since may still be named: readers leave them out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostLatency {
    /// The host.
    pub host: String,
    /// When it was last written, seconds since 1970.
    pub at_unix_s: u64,
    /// Who wrote it last: `probe` or `front of VOLUME`.
    pub by: String,
    /// What is known, latest told first.
    pub nodes: Vec<NodeLatency>,
}

impl HostLatency {
    /// What the host knows of a node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&NodeLatency> {
        self.nodes.iter().find(|known| known.node == node)
    }

    /// Adds what an earlier record knew of nodes that this one does not tell of, and service times, which are the
    /// node's own, where it tells none; what was told longest ago goes first if there are too many.
    pub(crate) fn keep_of(&mut self, old: Self) {
        for known in &mut self.nodes {
            if let Some(older) = old.node(known.node) {
                known.keep_service_of(older);
            }
        }
        let untold = |known: &NodeLatency| self.node(known.node).is_none();
        let kept: Vec<NodeLatency> = old.nodes.into_iter().filter(untold).collect();
        self.nodes.extend(kept);
        self.nodes.truncate(HOST_NODES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ramp() -> LatencyPoints {
        LatencyPoints::from_quantiles(1000, |quantile| 100.0 + quantile * 1000.0).unwrap_or_else(
            || {
                panic!("there are samples");
            },
        )
    }

    #[test]
    fn quantiles_are_on_the_line_between_points() {
        let points = ramp();
        for (probability, us) in [
            (0.0, 100.0),
            (0.5, 600.0),
            (0.55, 650.0),
            (0.75, 850.0),
            (1.0, 1100.0),
        ] {
            assert!(
                (points.quantile(probability) - us).abs() < 0.1,
                "{probability}"
            );
        }
        assert_eq!(points.quantile(-1.0), points.quantile(0.0));
        assert_eq!(points.quantile(2.0), points.quantile(1.0));
        assert_eq!(LatencyPoints::from_quantiles(0, |_| 1.0), None);
    }

    #[test]
    fn a_mixture_lies_between_its_parts_by_their_weight() {
        let flat = |count, us| LatencyPoints::from_quantiles(count, |_| us).expect("samples");
        assert_eq!(LatencyPoints::mixture(&[]), None);
        assert_eq!(
            LatencyPoints::mixture(&[ramp()]).map(|m| m.us),
            Some(ramp().us)
        );
        let mixed = LatencyPoints::mixture(&[flat(900, 100.0), flat(100, 5000.0)]).expect("some");
        assert_eq!(mixed.count, 1000);
        assert!((mixed.quantile(0.5) - 100.0).abs() < 1.0, "{mixed:?}");
        assert!((mixed.quantile(0.95) - 5000.0).abs() < 1.0, "{mixed:?}");
        let both = LatencyPoints::mixture(&[ramp(), ramp()]).expect("some");
        for (one, other) in both.us.iter().zip(ramp().us) {
            assert!((one - other).abs() < 0.2, "{both:?}");
        }
    }

    #[test]
    fn json_that_is_no_distribution_is_refused() {
        let good = serde_json::to_string(&ramp()).expect("serialises");
        assert_eq!(
            serde_json::from_str::<LatencyPoints>(&good).ok(),
            Some(ramp())
        );
        let damages = [
            ("\"count\":1000", "\"count\":0"),
            ("[100.0,", "[-1.0,"),
            ("[100.0,", "[2000.0,"),
            ("[100.0,", "["),
            ("[100.0,", "[1e39,"),
            ("[100.0,", "[null,"),
        ];
        for (from, to) in damages {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            assert!(
                serde_json::from_str::<LatencyPoints>(&bad).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_record_keeps_what_others_told_up_to_its_bound() {
        let id = |n: u16| {
            let mut id = NodeId::NIL;
            id.0[..2].copy_from_slice(&n.to_le_bytes());
            NodeLatency::of(id)
        };
        let host = |nodes| HostLatency {
            host: "h".into(),
            at_unix_s: 1,
            by: "probe".into(),
            nodes,
        };
        let mut told = id(5);
        told.read = Some(ramp());
        let mut new = host(vec![told.clone()]);
        new.keep_of(host((0..600).map(id).collect()));
        assert_eq!(new.nodes.len(), HOST_NODES_MAX);
        assert_eq!(new.nodes[0], told);
        assert_eq!(new.nodes.iter().filter(|n| n.node == told.node).count(), 1);
    }

    proptest! {
        #[test]
        fn any_samples_make_points_that_are_read_back(
            samples in prop::collection::vec(0.0f64..1e9, 1..50),
        ) {
            let mut sorted = samples;
            sorted.sort_by(f64::total_cmp);
            let at = |quantile: f64| {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                let index = (quantile * (sorted.len() - 1) as f64).round() as usize;
                sorted[index]
            };
            let points = LatencyPoints::from_quantiles(sorted.len() as u64, at).expect("samples");
            let text = serde_json::to_string(&points).expect("serialises");
            prop_assert_eq!(serde_json::from_str::<LatencyPoints>(&text).expect("read"), points);
            for pair in QUANTILES.windows(2) {
                let middle = points.quantile(f64::midpoint(pair[0], pair[1]));
                prop_assert!(points.quantile(pair[0]) <= middle && middle <= points.quantile(pair[1]));
            }
        }
    }
}
