//! What a lane measures: guest latency by operation, round trips by node.

use super::api::{GuestError, GuestIo, GuestOp};
use super::config::NodeSlot;
use hdrhistogram::Histogram;
use std::time::Duration;

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
    /// Round trip to each node, by node slot.
    pub nodes: Vec<Histogram<u64>>,
    /// Bytes the guest read.
    pub read_bytes: u64,
    /// Bytes the guest wrote.
    pub write_bytes: u64,
    /// Guest requests that ended in an error.
    pub errors: u64,
    /// Reads tried again on another replica.
    pub read_retries: u64,
}

/// An empty histogram of latencies in nanoseconds; all have the same bounds and precision.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 2)
        .unwrap_or_else(|error| panic!("constant bounds: {error}"))
}

fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX));
}

impl Default for LaneStats {
    fn default() -> Self {
        Self {
            read: histogram(),
            write: histogram(),
            flush: histogram(),
            zero: histogram(),
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

    pub(super) fn round_trip(&mut self, slot: NodeSlot, latency: Duration) {
        let index = usize::from(slot.0);
        if self.nodes.len() <= index {
            self.nodes.resize_with(index + 1, histogram);
        }
        record(&mut self.nodes[index], latency);
    }

    /// Adds another lane's.
    pub fn add(&mut self, other: &Self) {
        // Same bounds and precision everywhere, so adding cannot fail.
        let _ = self.read.add(&other.read);
        let _ = self.write.add(&other.write);
        let _ = self.flush.add(&other.flush);
        let _ = self.zero.add(&other.zero);
        if self.nodes.len() < other.nodes.len() {
            self.nodes.resize_with(other.nodes.len(), histogram);
        }
        for (mine, theirs) in self.nodes.iter_mut().zip(&other.nodes) {
            let _ = mine.add(theirs);
        }
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.errors += other.errors;
        self.read_retries += other.read_retries;
    }
}
