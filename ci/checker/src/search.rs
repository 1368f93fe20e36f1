//! Exhaustive search for an order, for sectors where zero is written more than once.
//!
//! States are (operations done, current value). Reads of the current value are done eagerly, so
//! branches are only the writes that overlap; a value whose reads are not all done is never left, since
//! it cannot come back. Unacknowledged writes of zero may be left out; of those that could be used now,
//! the one whose interval ends first is as good as any. A read that started after such a write ended
//! rules it out from then on: only there, reading is a branch too.

use crate::zone::Access;
use std::collections::{HashMap, HashSet};

/// States visited per search. Real histories need about one per operation; the budget is for
/// adversarial ones.
const STATES_MAX: usize = 1 << 17;

/// Outcome of a search.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is an order.
    Order,
    /// There is none; the access at which the longest attempt stuck.
    NoOrder(Access),
    /// Too many states.
    Undecided,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// All required accesses before this one are done.
    frontier: usize,
    /// Done ones behind the frontier, ascending.
    beyond: Vec<usize>,
    /// Optional ones used, ascending.
    used: Vec<usize>,
    current: u64,
    /// Latest start of any done access: an optional write that ended before may not follow.
    clock: u64,
}

struct Search<'a> {
    /// By start.
    required: &'a [Access],
    /// By end.
    optional: &'a [Access],
    reads_of: HashMap<u64, Vec<usize>>,
}

/// Is there an order? `required` must all take effect, `optional` (writes of zero) may.
pub(crate) fn search(initial: u64, mut required: Vec<Access>, mut optional: Vec<Access>) -> Found {
    required.sort_unstable_by_key(|access| (access.start, access.end, access.op));
    optional.sort_unstable_by_key(|access| (access.end, access.start, access.op));
    let mut reads_of: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, access) in required
        .iter()
        .enumerate()
        .filter(|(_, access)| !access.is_write)
    {
        reads_of.entry(access.value).or_default().push(index);
    }
    let search = Search {
        required: &required,
        optional: &optional,
        reads_of,
    };
    search.run(initial)
}

impl Search<'_> {
    fn run(&self, initial: u64) -> Found {
        let mut stack = vec![State {
            frontier: 0,
            beyond: Vec::new(),
            used: Vec::new(),
            current: initial,
            clock: 0,
        }];
        let mut seen = HashSet::new();
        let mut furthest = (0, 0);
        while let Some(mut state) = stack.pop() {
            self.do_reads(&mut state);
            if state.frontier == self.required.len() {
                return Found::Order;
            }
            furthest = furthest.max((state.frontier + state.beyond.len(), state.frontier));
            if !seen.insert(state.clone()) {
                continue;
            }
            if seen.len() > STATES_MAX {
                return Found::Undecided;
            }
            self.branch(&state, &mut stack);
        }
        Found::NoOrder(self.required[furthest.1])
    }

    fn is_done(state: &State, index: usize) -> bool {
        index < state.frontier || state.beyond.binary_search(&index).is_ok()
    }

    fn do_required(&self, state: &mut State, index: usize) {
        let Err(place) = state.beyond.binary_search(&index) else {
            unreachable!("access {index} done twice")
        };
        state.beyond.insert(place, index);
        state.clock = state.clock.max(self.required[index].start);
        let reached = (state.frontier..)
            .zip(&state.beyond)
            .take_while(|(expected, done)| expected == *done)
            .count();
        state.beyond.drain(..reached);
        state.frontier += reached;
    }

    /// Accesses that may be next: not done, and started before any that is not done has ended.
    fn window(&self, state: &State) -> (Vec<usize>, u64) {
        let mut bound = u64::MAX;
        let mut open = Vec::new();
        for index in state.frontier..self.required.len() {
            let access = &self.required[index];
            if access.start > bound {
                break;
            }
            if !Self::is_done(state, index) {
                open.push(index);
                bound = bound.min(access.end);
            }
        }
        open.retain(|index| self.required[*index].start < bound);
        (open, bound)
    }

    fn do_reads(&self, state: &mut State) {
        loop {
            let (open, _) = self.window(state);
            let mut any = false;
            for index in open {
                let access = &self.required[index];
                let rules_out = self.rules_out_optional(state, access);
                if !access.is_write && access.value == state.current && !rules_out {
                    self.do_required(state, index);
                    any = true;
                }
            }
            if !any {
                return;
            }
        }
    }

    /// Would doing it make an optional write unusable that still is?
    fn rules_out_optional(&self, state: &State, access: &Access) -> bool {
        let from = self
            .optional
            .partition_point(|optional| optional.end < state.clock);
        let to = self
            .optional
            .partition_point(|optional| optional.end < access.start);
        (from..to).any(|index| state.used.binary_search(&index).is_err())
    }

    fn branch(&self, state: &State, stack: &mut Vec<State>) {
        let (open, bound) = self.window(state);
        let reads_left = |value| {
            let reads = self.reads_of.get(value);
            reads.is_some_and(|reads| reads.iter().any(|index| !Self::is_done(state, *index)))
        };
        let may_leave = state.current == 0 || !reads_left(&state.current);
        if state.current != 0 && may_leave {
            let usable = |(index, access): &(usize, &Access)| {
                access.start < bound
                    && access.end > state.clock
                    && state.used.binary_search(index).is_err()
            };
            if let Some((index, access)) = self.optional.iter().enumerate().find(usable) {
                let mut next = state.clone();
                let place = next.used.partition_point(|used| *used < index);
                next.used.insert(place, index);
                next.current = 0;
                next.clock = next.clock.max(access.start);
                stack.push(next);
            }
        }
        // Pushed in reverse: the oldest access is tried first, which is nearly always right.
        for index in open.into_iter().rev() {
            let access = &self.required[index];
            if (access.is_write && may_leave) || access.value == state.current {
                let mut next = state.clone();
                self.do_required(&mut next, index);
                next.current = access.value;
                stack.push(next);
            }
        }
    }
}
