//! What a lane measures: guest latency by operation; by node, round trips and what of them was the
//! node's service.

use super::api::{GuestError, GuestIo, GuestOp};
use super::config::NodeSlot;
use hdrhistogram::{Counter, Histogram};
use std::time::Duration;
use ukai_meta::latency::SMALL_SECTORS_MAX;
use ukai_meta::{LatencyPoints, NodeLatency};
use ukai_proto::NodeId;

/// Longest latency told apart: beyond it a sample counts as this.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// Counters and latency histograms (nanoseconds, 2 significant digits, about 10 KiB each).
#[derive(Clone, Debug)]
pub struct LaneStats {
    /// Guest reads.
    pub read: Histogram<u64>,
    /// Guest writes.
    pub write: Histogram<u64>,
    /// Guest flushes.
    pub flush: Histogram<u64>,
    /// Guest discards and write-zeroes.
    pub zero: Histogram<u64>,
    /// What the front itself took of guest reads of one piece of at most [`SMALL_SECTORS_MAX`]: all but the round trips.
    pub read_front: Histogram<u64>,
    /// The same of writes.
    pub write_front: Histogram<u64>,
    /// Guest writes that `write_front` counts too, if several replicas answered: the whole latency.
    pub write_replicated: Histogram<u64>,
    /// How late the lane wakes after a timer.
    pub wake: Histogram<u64>,
    /// By node slot.
    pub nodes: Vec<NodeStats>,
    /// Bytes the guest read.
    pub read_bytes: u64,
    /// Bytes the guest wrote.
    pub write_bytes: u64,
    /// Guest requests that ended in an error.
    pub errors: u64,
    /// Reads tried again on another replica.
    pub read_retries: u64,
}

/// What a lane knows of one node: nanoseconds, 2 significant digits, about 80 KiB together. Of requests of at most
/// [`SMALL_SECTORS_MAX`] where nothing else is said: predictions speak of these.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeStats {
    /// Reads that it served: the whole round trip.
    pub read: Histogram<u32>,
    /// Its part of writes: the whole round trip.
    pub write: Histogram<u32>,
    /// Reads of more sectors.
    pub read_large: Histogram<u32>,
    /// Writes of more sectors.
    pub write_large: Histogram<u32>,
    /// Round trips of reads and writes of at most [`NETWORK_SECTORS_MAX`], without its service.
    pub network: Histogram<u32>,
    /// Reads inside the node.
    pub read_service: Histogram<u32>,
    /// Writes inside the node.
    pub write_service: Histogram<u32>,
}

/// What carries more than 16 KiB measures the bandwidth of the network, not its round trip.
pub const NETWORK_SECTORS_MAX: u16 = 4;

impl Default for NodeStats {
    fn default() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 2)
                .unwrap_or_else(|error| panic!("constant bounds: {error}"))
        };
        Self {
            read: histogram(),
            write: histogram(),
            read_large: histogram(),
            write_large: histogram(),
            network: histogram(),
            read_service: histogram(),
            write_service: histogram(),
        }
    }
}

impl NodeStats {
    /// With their names, for people.
    #[must_use]
    pub fn named(&self) -> [(&'static str, &Histogram<u32>); 7] {
        [
            ("read", &self.read),
            ("write", &self.write),
            ("read_large", &self.read_large),
            ("write_large", &self.write_large),
            ("network", &self.network),
            ("read_service", &self.read_service),
            ("write_service", &self.write_service),
        ]
    }

    /// As distributions, as of this moment.
    #[must_use]
    pub fn latency(&self, node: NodeId, at_unix_s: u64) -> NodeLatency {
        let (read, write) = (points(&self.read), points(&self.write));
        // Only for want of others.
        let large =
            |small: Option<_>, large| small.map_or_else(|| points(large), |_: LatencyPoints| None);
        NodeLatency {
            at_unix_s,
            network: points(&self.network),
            read,
            write,
            read_large: large(read, &self.read_large),
            write_large: large(write, &self.write_large),
            read_service: points(&self.read_service),
            write_service: points(&self.write_service),
            ..NodeLatency::of(node)
        }
    }

    /// Without what was there `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut new = self.clone();
        // They only grow, and have the same bounds.
        let _ = new.read.subtract(&before.read);
        let _ = new.write.subtract(&before.write);
        let _ = new.read_large.subtract(&before.read_large);
        let _ = new.write_large.subtract(&before.write_large);
        let _ = new.network.subtract(&before.network);
        let _ = new.read_service.subtract(&before.read_service);
        let _ = new.write_service.subtract(&before.write_service);
        new
    }

    fn add(&mut self, other: &Self) {
        let _ = self.read.add(&other.read);
        let _ = self.write.add(&other.write);
        let _ = self.read_large.add(&other.read_large);
        let _ = self.write_large.add(&other.write_large);
        let _ = self.network.add(&other.network);
        let _ = self.read_service.add(&other.read_service);
        let _ = self.write_service.add(&other.write_service);
    }
}

/// As a distribution in microseconds; `None`: no samples.
#[must_use]
pub fn points<C: Counter>(histogram: &Histogram<C>) -> Option<LatencyPoints> {
    #[allow(clippy::cast_precision_loss)] // at most minutes
    LatencyPoints::from_quantiles(histogram.len(), |quantile| {
        histogram.value_at_quantile(quantile) as f64 / 1000.0
    })
}

/// An empty histogram of latencies in nanoseconds; all have the same bounds and precision.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 2)
        .unwrap_or_else(|error| panic!("constant bounds: {error}"))
}

fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(nanos(latency));
}

fn nanos(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX)
}

impl Default for LaneStats {
    fn default() -> Self {
        Self {
            read: histogram(),
            write: histogram(),
            flush: histogram(),
            zero: histogram(),
            read_front: histogram(),
            write_front: histogram(),
            write_replicated: histogram(),
            wake: histogram(),
            nodes: Vec::new(),
            read_bytes: 0,
            write_bytes: 0,
            errors: 0,
            read_retries: 0,
        }
    }
}

impl LaneStats {
    pub(super) fn guest(
        &mut self,
        io: &GuestIo,
        latency: Duration,
        result: Result<(), GuestError>,
    ) {
        if result.is_err() {
            self.errors += 1;
            return;
        }
        let bytes = u64::from(io.count) * ukai_proto::limits::SECTOR_BYTES as u64;
        match io.op {
            GuestOp::Read => {
                record(&mut self.read, latency);
                self.read_bytes += bytes;
            }
            GuestOp::Write { .. } => {
                record(&mut self.write, latency);
                self.write_bytes += bytes;
            }
            GuestOp::Flush => record(&mut self.flush, latency),
            GuestOp::Zero { .. } => record(&mut self.zero, latency),
        }
    }

    /// A timer of the lane ended so late.
    pub(super) fn woke(&mut self, late: Duration) {
        record(&mut self.wake, late);
    }

    /// What the front took of a request that was one piece.
    pub(super) fn front(&mut self, io: &GuestIo, took: Duration) {
        if io.count > SMALL_SECTORS_MAX.into() {
            return;
        }
        match io.op {
            GuestOp::Read => record(&mut self.read_front, took),
            GuestOp::Write { .. } => record(&mut self.write_front, took),
            GuestOp::Flush | GuestOp::Zero { .. } => {}
        }
    }

    /// Several replicas answered a request that was one piece.
    pub(super) fn replicated(&mut self, io: &GuestIo, latency: Duration) {
        if io.count <= SMALL_SECTORS_MAX.into() && matches!(io.op, GuestOp::Write { .. }) {
            record(&mut self.write_replicated, latency);
        }
    }

    pub(super) fn node_read(
        &mut self,
        slot: NodeSlot,
        sectors: u16,
        round_trip: Duration,
        service_ns: Option<u64>,
    ) {
        let node = self.node(slot);
        let round_trip = nanos(round_trip);
        if sectors > SMALL_SECTORS_MAX {
            node.read_large.saturating_record(round_trip);
            return;
        }
        node.read.saturating_record(round_trip);
        if let Some(service_ns) = service_ns {
            node.read_service.saturating_record(service_ns);
            if sectors <= NETWORK_SECTORS_MAX {
                let network = round_trip.saturating_sub(service_ns);
                node.network.saturating_record(network);
            }
        }
    }

    pub(super) fn node_write(
        &mut self,
        slot: NodeSlot,
        sectors: u16,
        round_trip: Duration,
        service_ns: Option<u64>,
    ) {
        let node = self.node(slot);
        let round_trip = nanos(round_trip);
        if sectors > SMALL_SECTORS_MAX {
            node.write_large.saturating_record(round_trip);
            return;
        }
        node.write.saturating_record(round_trip);
        if let Some(service_ns) = service_ns {
            node.write_service.saturating_record(service_ns);
            if sectors <= NETWORK_SECTORS_MAX {
                let network = round_trip.saturating_sub(service_ns);
                node.network.saturating_record(network);
            }
        }
    }

    fn node(&mut self, slot: NodeSlot) -> &mut NodeStats {
        let index = usize::from(slot.0);
        if self.nodes.len() <= index {
            self.nodes.resize_with(index + 1, NodeStats::default);
        }
        &mut self.nodes[index]
    }

    /// Adds another lane's.
    pub fn add(&mut self, other: &Self) {
        // Same bounds and precision everywhere, so adding cannot fail.
        let _ = self.read.add(&other.read);
        let _ = self.write.add(&other.write);
        let _ = self.flush.add(&other.flush);
        let _ = self.zero.add(&other.zero);
        let _ = self.read_front.add(&other.read_front);
        let _ = self.write_front.add(&other.write_front);
        let _ = self.write_replicated.add(&other.write_replicated);
        let _ = self.wake.add(&other.wake);
        if self.nodes.len() < other.nodes.len() {
            self.nodes
                .resize_with(other.nodes.len(), NodeStats::default);
        }
        for (mine, theirs) in self.nodes.iter_mut().zip(&other.nodes) {
            mine.add(theirs);
        }
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.errors += other.errors;
        self.read_retries += other.read_retries;
    }
}
