//! Gibbons and Korach's zones: one value's write and reads, seen as an interval.
//!
//! f is the earliest end, s the latest start of a value's operations. If f < s the value was
//! certainly current from f to s (*forward* zone); else all its operations overlap in [s, f] and may
//! take effect at one instant there (*backward* zone). A register history with distinct values is
//! linearizable if and only if no read ends before its write starts, no two forward zones overlap, and
//! no backward zone lies inside a forward one.

use crate::violation::ViolationKind;

/// One access of one sector. Times are doubled (and moved up by 2, which leaves room for the first
/// value): starts even, ends odd, so that "ended before it started" is `<` and nothing is ever equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access {
    pub(crate) op: u64,
    pub(crate) value: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) is_write: bool,
    pub(crate) acked: bool,
    pub(crate) fua: bool,
}

/// The end of an operation that never ended.
pub(crate) const NEVER: u64 = u64::MAX;
/// The operation that gave a sector its first value.
pub(crate) const OP_INITIAL: u64 = u64::MAX;
/// Set in the operation number of a direct replica read; the rest numbers the node.
pub(crate) const OP_REPLICA: u64 = 1 << 62;

/// A broken rule, before the sector's name is known.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: ViolationKind,
    pub(crate) writes: Vec<u64>,
    pub(crate) accesses: Vec<Access>,
    pub(crate) text: String,
}

/// One value's zone, with the accesses that give its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zone {
    pub(crate) value: u64,
    pub(crate) write: Access,
    pub(crate) earliest_end: Access,
    pub(crate) latest_start: Access,
}

impl Zone {
    pub(crate) fn of_write(write: Access) -> Self {
        Self {
            value: write.value,
            write,
            earliest_end: write,
            latest_start: write,
        }
    }

    pub(crate) fn add_read(&mut self, read: Access) {
        if read.end < self.earliest_end.end {
            self.earliest_end = read;
        }
        if read.start > self.latest_start.start {
            self.latest_start = read;
        }
    }

    /// f
    pub(crate) fn f(&self) -> u64 {
        self.earliest_end.end
    }

    /// s
    pub(crate) fn s(&self) -> u64 {
        self.latest_start.start
    }

    pub(crate) fn is_forward(&self) -> bool {
        self.f() < self.s()
    }

    fn is_unread(&self) -> bool {
        self.earliest_end.is_write && self.latest_start.is_write
    }
}

/// Zones of one sector that passed the check.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    /// Ascending by f, which with no overlap is ascending by s.
    pub(crate) forward: Vec<Zone>,
    /// Ascending by s.
    pub(crate) backward: Vec<Zone>,
    /// Earliest f among `backward[i..]`.
    backward_f_min: Vec<u64>,
}

impl Zones {
    /// Sorts and applies the theorem.
    pub(crate) fn check(zones: Vec<Zone>) -> Result<Self, Fault> {
        let (mut forward, mut backward): (Vec<Zone>, Vec<Zone>) =
            zones.into_iter().partition(Zone::is_forward);
        forward.sort_unstable_by_key(|zone| (zone.f(), zone.s(), zone.value));
        backward.sort_unstable_by_key(|zone| (zone.s(), zone.f(), zone.value));
        for pair in forward.windows(2) {
            if pair[1].f() < pair[0].s() {
                return Err(overlap(&pair[0], &pair[1]));
            }
        }
        let mut backward_f_min = vec![NEVER; backward.len() + 1];
        for (index, zone) in backward.iter().enumerate().rev() {
            backward_f_min[index] = backward_f_min[index + 1].min(zone.f());
        }
        let zones = Self {
            forward,
            backward,
            backward_f_min,
        };
        for zone in &zones.backward {
            if let Some(around) = zones.forward_around(zone.s(), zone.f()) {
                return Err(inside(zone, around));
            }
        }
        Ok(zones)
    }

    /// The forward zone with `start` and `end` inside it.
    pub(crate) fn forward_around(&self, start: u64, end: u64) -> Option<&Zone> {
        let index = self.forward.partition_point(|zone| zone.f() < start);
        let zone = &self.forward[index.checked_sub(1)?];
        (start < zone.s() && end < zone.s()).then_some(zone)
    }

    /// A zone that cannot stand beside a value certainly current from `f` to `s`.
    pub(crate) fn against_forward(&self, f: u64, s: u64) -> Option<&Zone> {
        let index = self.forward.partition_point(|zone| zone.s() < f);
        if let Some(zone) = self.forward.get(index).filter(|zone| zone.f() < s) {
            return Some(zone);
        }
        let index = self.backward.partition_point(|zone| zone.s() < f);
        if self.backward_f_min[index] >= s {
            return None;
        }
        self.backward[index..].iter().find(|zone| zone.f() < s)
    }

    /// The earliest time from which on the value may be current.
    pub(crate) fn first(&self, zone: &Zone) -> u64 {
        if zone.is_forward() {
            return zone.f();
        }
        match self.forward_around(zone.s(), zone.s()) {
            Some(around) => around.s() + 1,
            None => zone.s(),
        }
    }

    /// The latest time at which the value may be current.
    pub(crate) fn last(&self, zone: &Zone) -> u64 {
        if zone.is_forward() {
            return zone.s();
        }
        match self.forward_around(zone.f(), zone.f()) {
            Some(around) => around.f() - 1,
            None => zone.f(),
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Zone> {
        self.forward.iter().chain(&self.backward)
    }
}

fn overlap(first: &Zone, second: &Zone) -> Fault {
    let (a, b) = (name(first.value), name(second.value));
    Fault {
        kind: ViolationKind::OverlappingZones,
        writes: vec![first.value, second.value],
        accesses: vec![
            first.write,
            first.earliest_end,
            first.latest_start,
            second.write,
            second.earliest_end,
            second.latest_start,
        ],
        text: format!(
            "{a} was current for certain from {} to {}, and {b} from {} to {}: the sector flipped",
            at_end(&first.earliest_end),
            at_start(&first.latest_start),
            at_end(&second.earliest_end),
            at_start(&second.latest_start),
        ),
    }
}

fn inside(zone: &Zone, around: &Zone) -> Fault {
    let (a, b) = (name(zone.value), name(around.value));
    let (kind, what) = if zone.is_unread() && zone.write.acked {
        (ViolationKind::LostWrite, "an acknowledged write is lost")
    } else {
        (ViolationKind::StaleRead, "the sector flipped")
    };
    Fault {
        kind,
        writes: vec![zone.value, around.value],
        accesses: vec![
            zone.write,
            zone.latest_start,
            zone.earliest_end,
            around.write,
            around.earliest_end,
            around.latest_start,
        ],
        text: format!(
            "{a} must have been current at some time from {} to {}, but {b} was current for certain \
             from {} to {}: {what}",
            at_start(&zone.latest_start),
            at_end(&zone.earliest_end),
            at_end(&around.earliest_end),
            at_start(&around.latest_start),
        ),
    }
}

/// A value, for people.
pub(crate) fn name(value: u64) -> String {
    if value == 0 {
        "zero".into()
    } else {
        format!("write {value}")
    }
}

fn at_start(access: &Access) -> String {
    if access.op == OP_INITIAL {
        return what(access);
    }
    format!("the start of {} (t={})", what(access), access.start / 2 - 1)
}

fn at_end(access: &Access) -> String {
    if access.op == OP_INITIAL {
        return what(access);
    }
    if access.end == NEVER {
        return format!("the end of {} (never)", what(access));
    }
    format!("the end of {} (t={})", what(access), access.end / 2 - 1)
}

/// An access, for people.
pub(crate) fn what(access: &Access) -> String {
    if access.op == OP_INITIAL {
        return "the beginning (creation, or the last power cut)".into();
    }
    if access.op >= OP_REPLICA {
        return format!("the direct read of {} on a replica", name(access.value));
    }
    let verb = match (access.is_write, access.acked) {
        (true, true) => "acknowledged write",
        (true, false) => "unacknowledged write",
        (false, _) => "read",
    };
    format!("op {} ({verb} of {})", access.op, name(access.value))
}
