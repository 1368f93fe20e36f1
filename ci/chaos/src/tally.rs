//! What a run did, for the table at its end.

use crate::guest::Watch;
use crate::recorder::Sums;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Sums over all volumes of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    faults: BTreeMap<String, u64>,
    /// Faults healed, everything whole, replicas compared.
    pub(crate) rounds: u64,
    /// Attaches that took the volume from another front.
    pub(crate) forced: u64,
    /// Histories judged.
    pub(crate) histories: u64,
    writes_refused: u64,
    reads_refused: u64,
    writes_cut: u64,
    /// Writes that found the nodes full.
    pub(crate) no_space: u64,
    sums: Sums,
    checked_reads: u64,
    checked_writes: u64,
    undecided: u64,
}

impl Tally {
    /// One more of this kind.
    pub(crate) fn fault(&mut self, kind: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
    }

    /// Guests have ended.
    pub(crate) fn guests(&mut self, watch: &Watch) {
        self.writes_refused += watch.writes_refused.load(Ordering::Relaxed);
        self.reads_refused += watch.reads_refused.load(Ordering::Relaxed);
        self.writes_cut += watch.writes_cut.load(Ordering::Relaxed);
        self.no_space += watch.no_space.load(Ordering::Relaxed);
    }

    /// A history has ended and was found good.
    pub(crate) fn history(&mut self, sums: &Sums, report: &ukai_checker::Report) {
        self.histories += 1;
        self.unfinished(sums);
        self.checked_reads += report.reads;
        self.checked_writes += report.writes;
        self.undecided += report.undecided;
    }

    /// A history that was not judged.
    pub(crate) fn unfinished(&mut self, sums: &Sums) {
        self.sums.operations += sums.operations;
        self.sums.acked += sums.acked;
        self.sums.sectors_read += sums.sectors_read;
        self.sums.replica_sectors += sums.replica_sectors;
        self.sums.stall_max = self.sums.stall_max.max(sums.stall_max);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<44} {value:>12}");
        for (kind, count) in &self.faults {
            row(kind, count.to_string())?;
        }
        let Sums {
            operations,
            acked,
            sectors_read,
            replica_sectors,
            stall_max,
        } = &self.sums;
        row("-- rounds", self.rounds.to_string())?;
        row("-- histories judged", self.histories.to_string())?;
        row("operations", operations.to_string())?;
        row("writes acknowledged", acked.to_string())?;
        row("sector writes checked", self.checked_writes.to_string())?;
        row("sector reads checked", self.checked_reads.to_string())?;
        row("  of those by guests", sectors_read.to_string())?;
        row("  of those on single replicas", replica_sectors.to_string())?;
        row(
            "parts the checker left undecided",
            self.undecided.to_string(),
        )?;
        row("forced attaches", self.forced.to_string())?;
        row(
            "writes and flushes refused",
            self.writes_refused.to_string(),
        )?;
        row("reads refused", self.reads_refused.to_string())?;
        row(
            "writes that lost their connection",
            self.writes_cut.to_string(),
        )?;
        row("writes that found no space", self.no_space.to_string())?;
        row("longest guest stall", seconds(*stall_max))
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
