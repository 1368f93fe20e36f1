//! One sector's history, split at the power cuts that count.

use crate::search::{Found, search};
use crate::violation::ViolationKind;
use crate::zone::{Access, Fault, NEVER, OP_INITIAL, Zone, Zones, name, what};
use std::collections::{BTreeMap, BTreeSet};

/// Completed flushes of a volume: what each covers.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    /// (start, earliest end of this and all later-started ones), by start.
    by_start: Vec<(u64, u64)>,
}

impl Flushes {
    pub(crate) fn new(mut intervals: Vec<(u64, u64)>) -> Self {
        intervals.sort_unstable();
        let mut earliest = NEVER;
        for interval in intervals.iter_mut().rev() {
            earliest = earliest.min(interval.1);
            interval.1 = earliest;
        }
        Self {
            by_start: intervals,
        }
    }

    /// Was a write that was acknowledged at `end` durable at `time`?
    fn covered(&self, end: u64, time: u64) -> bool {
        let index = self.by_start.partition_point(|(start, _)| *start < end);
        self.by_start
            .get(index)
            .is_some_and(|(_, done)| *done < time)
    }
}

/// What a part starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Initial {
    Value(u64),
    /// Some value that nobody read.
    Opaque,
}

/// Checks a sector. `cuts` is empty unless cuts may lose what was not flushed.
/// Returns how many parts were left undecided.
pub(crate) fn check_sector(
    accesses: &[Access],
    cuts: &[u64],
    flushes: &Flushes,
) -> Result<u64, Fault> {
    let mut candidates = BTreeSet::from([0]);
    let mut undecided = 0;
    let mut before: Option<(Zones, Vec<Access>)> = None;
    let mut maybe_done = BTreeSet::new();
    let bounds: Vec<u64> = [0]
        .into_iter()
        .chain(cuts.iter().copied())
        .chain([NEVER])
        .collect();
    for (index, bound) in bounds.windows(2).enumerate() {
        let (begin, end) = (bound[0], bound[1]);
        let mut part = cut_out(accesses, begin, end);
        let survivor = read_initial(&part, &candidates, index > 0)?;
        if let Some((zones, previous)) = &before {
            excuse_crossing(survivor, zones, previous, &mut part, &mut maybe_done);
        }
        let initial = match survivor {
            Some(value) => Initial::Value(value),
            None if candidates.contains(&0) => Initial::Value(0),
            None => Initial::Opaque,
        };
        let (zones, was_undecided) = check_part(initial, begin, &part)?;
        undecided += u64::from(was_undecided);
        if end != NEVER {
            candidates = survivors(initial, &candidates, &part, &zones, end, flushes);
            before = Some((zones, part));
        }
    }
    Ok(undecided)
}

/// The accesses of one part. A write open across a cut is unacknowledged in the part it leaves and
/// goes on in the next. A read across a cut may have seen either side; it is not used.
fn cut_out(accesses: &[Access], begin: u64, end: u64) -> Vec<Access> {
    let overlaps = |access: &&Access| access.start < end && access.end > begin;
    let piece = |access: &Access| {
        let mut piece = Access {
            start: access.start.max(begin),
            ..*access
        };
        if access.end > end {
            piece.end = end - 1;
            piece.acked = false;
        }
        piece
    };
    let is_used = |access: &&Access| access.is_write || (access.start >= begin && access.end < end);
    accesses
        .iter()
        .filter(overlaps)
        .filter(is_used)
        .map(piece)
        .collect()
}

/// A write open across a cut need not take effect after it if it can have done so before it, ordered
/// before the value that survived (whatever it is, if nobody read it).
fn excuse_crossing(
    survivor: Option<u64>,
    zones: &Zones,
    previous: &[Access],
    part: &mut [Access],
    maybe_done: &mut BTreeSet<u64>,
) {
    let crossing: Vec<&Access> = previous
        .iter()
        .filter(|old| old.is_write && part.iter().any(|new| new.is_write && new.op == old.op))
        .collect();
    let zone_of = |value: u64| {
        let zone = zones.iter().find(|zone| zone.value == value).copied();
        let write = || previous.iter().find(|a| a.is_write && a.value == value);
        zone.or_else(|| write().map(|write| Zone::of_write(*write)))
    };
    let has_zero_writes = previous.iter().any(|a| a.is_write && a.value == 0);
    for old in crossing {
        let may_precede = match survivor {
            None => true,
            // Any of them may be the one.
            Some(0) if has_zero_writes => true,
            Some(survivor) => {
                let zone = zone_of(old.value).filter(|_| old.value != 0);
                let first = zones.first(&zone.unwrap_or(Zone::of_write(*old)));
                zone_of(survivor).is_some_and(|survivor| zones.last(&survivor) >= first)
            }
        };
        if may_precede {
            maybe_done.insert(old.op);
        }
    }
    for write in part.iter_mut().filter(|a| maybe_done.contains(&a.op)) {
        write.acked = false;
    }
}

/// The value that the part starts with, if anyone read it.
fn read_initial(
    part: &[Access],
    candidates: &BTreeSet<u64>,
    after_cut: bool,
) -> Result<Option<u64>, Fault> {
    let written: BTreeSet<u64> = part
        .iter()
        .filter(|a| a.is_write)
        .map(|a| a.value)
        .collect();
    let mut found: Option<Access> = None;
    for read in part.iter().filter(|a| !a.is_write) {
        if written.contains(&read.value) {
            continue;
        }
        if !candidates.contains(&read.value) {
            let (kind, why) = if !after_cut {
                (
                    ViolationKind::UnknownValue,
                    "which nobody wrote to this sector",
                )
            } else {
                (
                    ViolationKind::LostFlush,
                    "which cannot have survived the power cut: newer data was flushed",
                )
            };
            return Err(Fault {
                kind,
                writes: vec![read.value],
                accesses: vec![*read],
                text: format!("{} saw {}, {why}", what(read), name(read.value)),
            });
        }
        match found {
            Some(first) if first.value != read.value => {
                return Err(Fault {
                    kind: ViolationKind::LostFlush,
                    writes: vec![first.value, read.value],
                    accesses: vec![first, *read],
                    text: format!(
                        "after the power cut {} and {} saw two values that were both written before it",
                        what(&first),
                        what(read)
                    ),
                });
            }
            _ => found = Some(*read),
        }
    }
    Ok(found.map(|read| read.value))
}

fn check_part(initial: Initial, begin: u64, part: &[Access]) -> Result<(Zones, bool), Fault> {
    let start = Access {
        op: OP_INITIAL,
        value: 0,
        start: begin.saturating_sub(2),
        end: begin.saturating_sub(2) + 1,
        is_write: true,
        acked: true,
        fua: true,
    };
    let mut by_value: BTreeMap<u64, Zone> = BTreeMap::new();
    let mut zero_writes = Vec::new();
    match initial {
        Initial::Value(0) => zero_writes.push(start),
        Initial::Value(value) => {
            by_value.insert(value, Zone::of_write(Access { value, ..start }));
        }
        Initial::Opaque => {}
    }
    for write in part.iter().filter(|a| a.is_write) {
        if write.value == 0 {
            zero_writes.push(*write);
        } else {
            by_value.insert(write.value, Zone::of_write(*write));
        }
    }
    let zero_reads: Vec<Access> = part
        .iter()
        .filter(|a| !a.is_write && a.value == 0)
        .copied()
        .collect();
    let is_repeated = zero_writes.len() > 1 && !zero_reads.is_empty();
    if let [only] = zero_writes.as_slice() {
        by_value.insert(0, Zone::of_write(*only));
    }
    let mut read_values = BTreeSet::new();
    for read in part
        .iter()
        .filter(|a| !a.is_write && (a.value != 0 || !is_repeated))
    {
        let Some(zone) = by_value.get_mut(&read.value) else {
            // `resolve_initial` has named every value without a write.
            unreachable!("value {} without a write", read.value)
        };
        if read.end < zone.write.start {
            return Err(Fault {
                kind: ViolationKind::ReadFromFuture,
                writes: vec![read.value],
                accesses: vec![*read, zone.write],
                text: format!("{} ended before {} started", what(read), what(&zone.write)),
            });
        }
        zone.add_read(*read);
        read_values.insert(read.value);
    }
    let counts = |zone: &Zone| zone.write.acked || read_values.contains(&zone.value);
    let mut zones: Vec<Zone> = by_value.into_values().filter(counts).collect();
    if zero_writes.len() > 1 {
        zones.extend(
            zero_writes
                .iter()
                .filter(|w| w.acked)
                .map(|w| Zone::of_write(*w)),
        );
    }
    let zones = Zones::check(zones)?;
    if !is_repeated {
        return Ok((zones, false));
    }
    for read in &zero_reads {
        check_zero_read(read, &zero_writes, &zones)?;
    }
    let required = part
        .iter()
        .filter(|a| !a.is_write || a.acked || (a.value != 0 && read_values.contains(&a.value)))
        .copied()
        .collect();
    let optional = part
        .iter()
        .filter(|a| a.is_write && a.value == 0 && !a.acked)
        .copied()
        .collect();
    let before = match initial {
        Initial::Value(value) => value,
        Initial::Opaque => NEVER, // no write has this id: nobody reads it
    };
    match search(before, required, optional) {
        Found::Order => Ok((zones, false)),
        Found::Undecided => Ok((zones, true)),
        Found::NoOrder(stuck) => Err(Fault {
            kind: ViolationKind::NoOrder,
            writes: vec![stuck.value],
            accesses: vec![stuck],
            text: format!(
                "no order of the writes (several of zero) explains {}",
                what(&stuck)
            ),
        }),
    }
}

/// Could this read of zeros have seen one of the writes of zero, taken by itself?
fn check_zero_read(read: &Access, zero_writes: &[Access], zones: &Zones) -> Result<(), Fault> {
    let mut latest: Option<&Access> = None;
    for write in zero_writes.iter().filter(|write| write.start < read.end) {
        if write.end < read.start {
            latest = latest.filter(|other| other.end > write.end).or(Some(write));
        } else {
            let (s, f) = (write.start.max(read.start), write.end.min(read.end));
            if zones.forward_around(s, f).is_none() {
                return Ok(());
            }
        }
    }
    // No acknowledged write of zero ends in between, so whatever stands there is another value.
    let obstacle = match latest {
        None => zones.forward_around(read.start, read.end),
        Some(write) => zones.against_forward(write.end, read.start),
    };
    if latest.is_some() && obstacle.is_none() {
        return Ok(());
    }
    let mut fault = Fault {
        kind: ViolationKind::StaleRead,
        writes: vec![0],
        accesses: vec![*read],
        text: format!("{} saw zero, which no write of zero explains", what(read)),
    };
    if let Some(zone) = obstacle {
        fault.writes.push(zone.value);
        fault
            .accesses
            .extend([zone.write, zone.earliest_end, zone.latest_start]);
        fault.text = format!(
            "{} saw zero although {} had taken effect since ({}; {})",
            what(read),
            name(zone.value),
            what(&zone.write),
            what(&zone.latest_start)
        );
    }
    Err(fault)
}

/// Values that the sector may hold after a cut at `cut`: everything that can be ordered after the
/// last durable write.
fn survivors(
    initial: Initial,
    candidates: &BTreeSet<u64>,
    part: &[Access],
    zones: &Zones,
    cut: u64,
    flushes: &Flushes,
) -> BTreeSet<u64> {
    let is_durable = |write: &Access| write.acked && (write.fua || flushes.covered(write.end, cut));
    // Times up to which everything older is overwritten by something durable.
    let floor = zones
        .iter()
        .filter(|zone| zone.write.op != OP_INITIAL && is_durable(&zone.write))
        .map(|zone| zones.first(zone))
        .max();
    let survives = |zone: &Zone| floor.is_none_or(|floor| zones.last(zone) >= floor);
    let mut out: BTreeSet<u64> = zones
        .iter()
        .filter(|zone| zone.write.op != OP_INITIAL && survives(zone))
        .map(|zone| zone.value)
        .collect();
    // Unacknowledged writes that nobody read have no zone; they may show up now.
    for write in part.iter().filter(|a| a.is_write && !a.acked) {
        if survives(&Zone::of_write(*write)) {
            out.insert(write.value);
        }
    }
    match (
        initial,
        zones.iter().find(|zone| zone.write.op == OP_INITIAL),
    ) {
        (Initial::Value(value), Some(zone)) if survives(zone) => {
            out.insert(value);
            // If nobody read it, it may as well have been any other candidate.
            if zone.latest_start.op == OP_INITIAL {
                out.extend(candidates);
            }
        }
        (Initial::Opaque, _) if floor.is_none() => out.extend(candidates),
        _ => {}
    }
    out
}
