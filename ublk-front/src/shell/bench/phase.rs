//! What a lane does, one after the other: fill, settle, warm up, measure.

use super::drive::{Phase, Step};
use super::figures::LaneFigures;
use super::{BenchRequest, FILL_SECTORS, Load, Shared};
use crate::core::api::{GuestError, GuestOp, Now};
use crate::shell::{clock, process};
use std::sync::atomic::Ordering;

/// Writes the volume from its begin to its end, together with the other lanes.
pub(super) struct Fill<'a> {
    shared: &'a Shared,
    pub(super) errors: u64,
}

impl<'a> Fill<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared, errors: 0 }
    }
}

impl Phase for Fill<'_> {
    fn next(&mut self, _now: Now) -> Option<Step> {
        if self.shared.stopped() || self.errors > 0 {
            return None;
        }
        let share = u64::from(FILL_SECTORS);
        let sector = self.shared.filled.fetch_add(share, Ordering::Relaxed);
        let left = self.shared.size_sectors.checked_sub(sector);
        let left = left.filter(|left| *left > 0)?;
        #[allow(clippy::cast_possible_truncation)] // at most FILL_SECTORS
        let sectors = left.min(share) as u32;
        let op = GuestOp::Write { fua: false };
        Some(Step {
            op,
            sector,
            sectors,
            flush: false,
        })
    }

    fn ended(&mut self, _step: Step, _begin: Now, _now: Now, result: Result<(), GuestError>) {
        self.errors += u64::from(result.is_err());
    }
}

/// One flush.
#[derive(Default)]
pub(super) struct Settle {
    begun: bool,
}

impl Phase for Settle {
    fn next(&mut self, _now: Now) -> Option<Step> {
        let begun = std::mem::replace(&mut self.begun, true);
        (!begun).then_some(Step {
            op: GuestOp::Flush,
            sector: 0,
            sectors: 0,
            flush: false,
        })
    }

    fn ended(&mut self, _step: Step, _begin: Now, _now: Now, _result: Result<(), GuestError>) {}
}

/// Reads until every lane has its configuration and its connections.
pub(super) struct Warm<'a> {
    shared: &'a Shared,
    told: bool,
}

impl<'a> Warm<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            told: false,
        }
    }
}

impl Phase for Warm<'_> {
    fn next(&mut self, _now: Now) -> Option<Step> {
        let all_warm = self.told && self.shared.warming.load(Ordering::Acquire) == 0;
        (!all_warm && !self.shared.stopped()).then_some(Step {
            op: GuestOp::Read,
            sector: 0,
            sectors: 1,
            flush: false,
        })
    }

    fn ended(&mut self, _step: Step, _begin: Now, _now: Now, _result: Result<(), GuestError>) {
        if !std::mem::replace(&mut self.told, true) {
            self.shared.warming.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The load, measured.
pub(super) struct Measure<'a, L> {
    shared: &'a Shared,
    load: L,
    deadline: Now,
    figures: LaneFigures,
}

impl<'a, L: Load> Measure<'a, L> {
    pub(super) fn new(shared: &'a Shared, load: L) -> Self {
        let begin = clock::now();
        Self {
            shared,
            load,
            deadline: begin.after(shared.options.duration),
            figures: LaneFigures::new(begin, process::cpu_time()),
        }
    }

    /// Nothing is in flight any more.
    pub(super) fn end(mut self) -> LaneFigures {
        self.figures.cpu_end = process::cpu_time();
        self.figures
    }
}

impl<L: Load> Phase for Measure<'_, L> {
    fn next(&mut self, now: Now) -> Option<Step> {
        let options = &self.shared.options;
        if now >= self.deadline || self.shared.stopped() {
            return None;
        }
        if let Some(most) = options.ios_max
            && self.shared.begun.fetch_add(1, Ordering::Relaxed) >= most
        {
            return None;
        }
        let BenchRequest { write, block } = self.load.next();
        let op = if write {
            GuestOp::Write { fua: false }
        } else {
            GuestOp::Read
        };
        Some(Step {
            op,
            sector: block * u64::from(options.block_sectors),
            sectors: options.block_sectors,
            flush: write && options.flush_writes,
        })
    }

    fn ended(&mut self, step: Step, begin: Now, now: Now, result: Result<(), GuestError>) {
        let write = matches!(step.op, GuestOp::Write { .. });
        self.figures.ended(write, begin, now, result.is_ok());
    }
}
