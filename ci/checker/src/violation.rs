//! What a check found.

use core::fmt;
use serde::Serialize;

/// Which rule was broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ViolationKind {
    /// A sector that is neither zeros nor one write.
    TornSector,
    /// A value that nobody wrote there.
    UnknownValue,
    /// A read ended before the write it saw began.
    ReadFromFuture,
    /// Two values were certainly current at the same time.
    OverlappingZones,
    /// An operation had to take effect while another value was certainly current.
    LostWrite,
    /// A read saw a value (zeros or older) that had been overwritten for certain.
    StaleRead,
    /// No order of the operations explains what was read.
    NoOrder,
    /// After a power cut: a value older than one that was flushed, or two at once.
    LostFlush,
    /// Replicas differ when nothing is in flight.
    ReplicasDiffer,
}

/// One broken rule, with all names needed to find it in the history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Violation {
    /// Which rule.
    pub kind: ViolationKind,
    /// Where.
    pub volume: String,
    /// Where.
    pub sector: u64,
    /// Ids of the values concerned (0: zeros).
    pub writes: Vec<u64>,
    /// Operations concerned.
    pub ops: Vec<u64>,
    /// For people.
    pub explanation: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "volume {} sector {}: {}",
            self.volume, self.sector, self.explanation
        )
    }
}

/// Outcome of a check.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// Sectors looked at.
    pub sectors: u64,
    /// Sector reads.
    pub reads: u64,
    /// Sector writes (zeroes included).
    pub writes: u64,
    /// Sector parts with repeated zeros that the search gave up on.
    pub undecided: u64,
    /// Violations found; [`Report::violations`] holds the first of them.
    pub violation_count: u64,
    /// At most [`VIOLATIONS_MAX`], one per sector.
    pub violations: Vec<Violation>,
}

/// Violations kept: the first few tell the story, a broken disk would give millions.
pub const VIOLATIONS_MAX: usize = 64;

impl Report {
    /// Nothing was found.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violation_count == 0
    }

    pub(crate) fn add(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(violation);
        }
    }
}
