//! Histories made by a real register are accepted; on tiny ones the verdict equals that of a search
//! through every order.
#![allow(clippy::unwrap_used)] // in a test a panic is the report

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use ukai_checker::{Event, History, Kind, Mode, SectorValue};

const VOLUME: &str = "v";

/// One operation on one sector. `end` is the acknowledgement, or the end of the interval.
#[derive(Clone, Copy, Debug)]
struct Op {
    verb: Verb,
    value: u64,
    start: u64,
    end: u64,
    acked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Read,
    Write,
    Flush,
}

fn events(ops: &[Op], cuts: &[u64]) -> Vec<Event> {
    let mut out: Vec<(u64, u8, Event)> = Vec::new();
    for (op, o) in (1..).zip(ops) {
        let volume = VOLUME.to_owned();
        let kind = match (o.verb, o.value) {
            (Verb::Read, _) => Kind::Read {
                volume,
                sector: 5,
                count: 1,
            },
            (Verb::Flush, _) => Kind::Flush { volume },
            (Verb::Write, 0) => Kind::Zero {
                volume,
                sector: 5,
                count: 1,
                token: 1,
                fua: false,
            },
            (Verb::Write, write) => Kind::Write {
                volume,
                sector: 5,
                count: 1,
                write,
                token: 1,
                fua: false,
            },
        };
        out.push((
            o.start,
            1,
            Event::Invoke {
                t: o.start,
                op,
                kind,
            },
        ));
        let values = match o.verb {
            Verb::Read => vec![SectorValue::Write(o.value)],
            _ => vec![],
        };
        let end = match (o.acked, o.end) {
            (true, t) => Event::Ok { t, op, values },
            (false, u64::MAX) => continue,
            (false, t) => Event::Fail { t, op },
        };
        out.push((o.end, 2, end));
    }
    out.extend(cuts.iter().map(|t| (*t, 0, Event::PowerCut { t: *t })));
    out.sort_by_key(|(t, order, _)| (*t, *order));
    out.into_iter().map(|(_, _, event)| event).collect()
}

fn verdict(mode: Mode, ops: &[Op], cuts: &[u64]) -> bool {
    let mut history = History::new(mode);
    for event in events(ops, cuts) {
        history.push(event).unwrap();
    }
    let report = history.check();
    assert_eq!(report.undecided, 0);
    report.is_good()
}

/// Tries every order, effect by effect. A write open across a cut may take effect before it (and be
/// lost) and again after.
struct Oracle<'a> {
    ops: &'a [Op],
    cuts: &'a [u64],
}

/// A value that a later durable one has replaced for good.
const GONE: u64 = u64::MAX - 1;

#[derive(Clone)]
struct World {
    done: Vec<bool>,
    /// Took effect before the coming cut, at this place among the survivors; if what survives is
    /// older, it must again.
    early: Vec<Option<usize>>,
    current: u64,
    /// What a cut may leave: the values since the last durable one.
    survivors: Vec<u64>,
    cut: usize,
}

impl Oracle<'_> {
    fn accepts(&self) -> bool {
        self.step(&World {
            done: self.ops.iter().map(|op| op.verb == Verb::Flush).collect(),
            early: vec![None; self.ops.len()],
            current: 0,
            survivors: vec![0],
            cut: 0,
        })
    }

    fn is_durable(&self, op: &Op, cut: u64) -> bool {
        op.acked
            && self
                .ops
                .iter()
                .any(|f| f.verb == Verb::Flush && f.acked && f.start > op.end && f.end < cut)
    }

    fn step(&self, world: &World) -> bool {
        let open = |i: &usize| !world.done[*i];
        let must = |i: &usize| self.ops[*i].acked;
        let indices = || 0..self.ops.len();
        if world.cut == self.cuts.len() && !indices().filter(must).any(|i| open(&i)) {
            return true;
        }
        let cut = self.cuts.get(world.cut).copied();
        // The next event in real time that must not be passed.
        let bound = indices()
            .filter(must)
            .filter(open)
            .map(|i| self.ops[i].end)
            .chain(cut)
            .min()
            .unwrap_or(u64::MAX);
        for i in indices().filter(open) {
            let op = self.ops[i];
            let previous_cut = world.cut.checked_sub(1).map_or(0, |c| self.cuts[c]);
            let too_late =
                !op.acked && (op.end < previous_cut || self.ended_before_a_done(world, i));
            // A write that ends after the cut may take effect before it, without being done.
            if op.start > bound || too_late {
                continue;
            }
            match op.verb {
                Verb::Read => {
                    if op.value == world.current {
                        let mut next = world.clone();
                        next.done[i] = true;
                        if self.step(&next) {
                            return true;
                        }
                    }
                }
                Verb::Write => {
                    let mut next = world.clone();
                    next.current = op.value;
                    let crosses = cut.is_some_and(|cut| op.end > cut);
                    if cut.is_some_and(|cut| !crosses && self.is_durable(&op, cut)) {
                        // Everything older is out; places stay.
                        next.survivors.iter_mut().for_each(|value| *value = GONE);
                    }
                    next.survivors.push(op.value);
                    next.done[i] = true;
                    if crosses {
                        next.early[i] = Some(next.survivors.len() - 1);
                    }
                    if self.step(&next) {
                        return true;
                    }
                }
                Verb::Flush => unreachable!("flushes are done from the start"),
            }
        }
        if let Some(cut) = cut
            && !indices()
                .filter(must)
                .filter(open)
                .any(|i| self.ops[i].end < cut)
        {
            return world.survivors.iter().enumerate().any(|(place, value)| {
                let mut next = world.clone();
                for (done, early) in next.done.iter_mut().zip(&mut next.early) {
                    if early.take().is_some_and(|at| at > place) {
                        *done = false;
                    }
                }
                next.current = *value;
                next.survivors = vec![*value];
                next.cut += 1;
                *value != GONE && self.step(&next)
            });
        }
        false
    }

    /// An unacknowledged write whose interval ended before something done started comes too late.
    fn ended_before_a_done(&self, world: &World, i: usize) -> bool {
        self.ops.iter().enumerate().any(|(j, other)| {
            world.done[j] && other.verb != Verb::Flush && other.start > self.ops[i].end
        })
    }
}

/// Distinct times for the ends of up to 8 operations and the cuts, from a shuffle.
fn tiny_history() -> impl Strategy<Value = (Vec<Op>, Vec<u64>)> {
    let op = (0..10u8, 0..4u64, 0..4u8);
    (
        prop::collection::vec(op, 1..7),
        0..3usize,
        Just((1..=16u64).collect::<Vec<_>>()).prop_shuffle(),
    )
        .prop_map(|(raw, cut_count, times)| {
            let mut ops = Vec::new();
            let mut ids = 100;
            for (i, (verb, value, end)) in raw.iter().enumerate() {
                let (a, b) = (times[2 * i], times[2 * i + 1]);
                let (start, end_time) = (a.min(b), a.max(b));
                let (verb, value) = match verb {
                    0..=4 => (Verb::Read, *value),
                    5..=7 => {
                        ids += 1;
                        (Verb::Write, ids)
                    }
                    8 => (Verb::Write, 0),
                    _ => (Verb::Flush, 0),
                };
                let acked = verb != Verb::Write || *end != 0;
                let end = if !acked && value % 2 == 0 {
                    u64::MAX
                } else {
                    end_time
                };
                ops.push(Op {
                    verb,
                    value,
                    start,
                    end,
                    acked,
                });
            }
            // Reads name a write of the history or zero.
            let written: Vec<u64> = ops
                .iter()
                .filter(|o| o.verb == Verb::Write)
                .map(|o| o.value)
                .collect();
            for op in ops.iter_mut().filter(|o| o.verb == Verb::Read) {
                op.value = match op.value {
                    0 => 0,
                    n => written
                        .get(usize::try_from(n).unwrap() % written.len().max(1))
                        .copied()
                        .unwrap_or(0),
                };
            }
            let cuts = (0..cut_count)
                .map(|i| times[14 + i.min(1)])
                .collect::<Vec<_>>();
            let mut cuts = cuts;
            cuts.sort_unstable();
            cuts.dedup();
            (ops, cuts)
        })
}

/// A register served in real time: each operation takes effect once, between start and end; cuts
/// take what was not flushed, and what was open and lost takes effect again.
struct Register {
    now: u64,
    ops: Vec<Op>,
    /// (operation, number of its effect).
    running: Vec<(usize, Option<usize>)>,
    current: u64,
    /// (number of the effect, value): what a cut may leave.
    survivors: Vec<(usize, u64)>,
    effects: usize,
    /// (end, number of the effect) of acknowledged writes.
    acked: Vec<(u64, usize)>,
    cuts: Vec<u64>,
}

fn real_history(rng: &mut ChaCha8Rng, len: usize, with_cuts: bool) -> (Vec<Op>, Vec<u64>) {
    let mut register = Register {
        now: 0,
        ops: Vec::new(),
        running: Vec::new(),
        current: 0,
        survivors: vec![(0, 0)],
        effects: 0,
        acked: Vec::new(),
        cuts: Vec::new(),
    };
    while register.ops.len() < len || !register.running.is_empty() {
        register.now += 1;
        let roll = rng.random_range(0..100u32);
        if roll < 40 && register.ops.len() < len && register.running.len() < 5 {
            register.start(rng);
        } else if with_cuts && roll == 99 {
            register.cut(rng);
        } else if !register.running.is_empty() {
            register.advance(rng);
        }
    }
    (register.ops, register.cuts)
}

impl Register {
    fn start(&mut self, rng: &mut ChaCha8Rng) {
        let verb = match rng.random_range(0..10u32) {
            0..=4 => Verb::Read,
            5..=8 => Verb::Write,
            _ => Verb::Flush,
        };
        let is_value = verb == Verb::Write && rng.random_range(0..5u32) > 0;
        let value = if is_value {
            100 + self.ops.len() as u64
        } else {
            0
        };
        self.running.push((self.ops.len(), None));
        self.ops.push(Op {
            verb,
            value,
            start: self.now,
            end: u64::MAX,
            acked: false,
        });
    }

    fn cut(&mut self, rng: &mut ChaCha8Rng) {
        self.cuts.push(self.now);
        let (survivor, value) = self.survivors[rng.random_range(0..self.survivors.len())];
        self.current = value;
        self.survivors = vec![(survivor, value)];
        self.acked.clear();
        for (_, effect) in &mut self.running {
            *effect = effect.filter(|effect| *effect <= survivor);
        }
    }

    fn advance(&mut self, rng: &mut ChaCha8Rng) {
        let slot = rng.random_range(0..self.running.len());
        let (index, effect) = self.running[slot];
        let op = &mut self.ops[index];
        let Some(effect) = effect else {
            self.effects += 1;
            self.running[slot].1 = Some(self.effects);
            match op.verb {
                Verb::Read => op.value = self.current,
                Verb::Write => {
                    self.current = op.value;
                    self.survivors.push((self.effects, op.value));
                }
                Verb::Flush => {}
            }
            return;
        };
        self.running.swap_remove(slot);
        op.end = self.now;
        op.acked = op.verb != Verb::Write || rng.random_range(0..10u32) > 0;
        if op.verb == Verb::Write && op.acked {
            self.acked.push((self.now, effect));
        }
        if op.verb == Verb::Flush {
            let start = op.start;
            let covered = self.acked.iter().filter(|(end, _)| *end < start);
            if let Some(oldest) = covered.map(|(_, effect)| *effect).max() {
                self.survivors.retain(|(effect, _)| *effect >= oldest);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_search_through_every_order((ops, _) in tiny_history()) {
        let oracle = Oracle { ops: &ops, cuts: &[] }.accepts();
        prop_assert_eq!(verdict(Mode::Strict, &ops, &[]), oracle);
    }

    #[test]
    fn never_rejects_what_an_order_with_cuts_explains((ops, cuts) in tiny_history()) {
        let oracle = Oracle { ops: &ops, cuts: &cuts }.accepts();
        let checked = verdict(Mode::Flush, &ops, &cuts);
        prop_assert!(checked || !oracle);
        // Exact where zero is not ambiguous and nothing lies across a cut.
        let has_zero_writes = ops.iter().any(|o| o.verb == Verb::Write && o.value == 0);
        let crosses = |o: &Op| cuts.iter().any(|c| o.start < *c && o.end > *c);
        if !has_zero_writes && !ops.iter().any(crosses) {
            prop_assert_eq!(checked, oracle);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn real_registers_are_accepted(seed in any::<u64>(), len in 1..300usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (ops, _) = real_history(&mut rng, len, false);
        prop_assert!(verdict(Mode::Strict, &ops, &[]));
    }

    #[test]
    fn real_registers_with_a_cache_are_accepted(seed in any::<u64>(), len in 1..300usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (ops, cuts) = real_history(&mut rng, len, true);
        prop_assert!(verdict(Mode::Flush, &ops, &cuts));
    }
}
