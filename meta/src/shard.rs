//! One shard of a map: which replica set each of its (at most) 64 Ki chunks has.

use crate::sets::SetIndex;
use crate::store::KvVersion;
use std::ops::Range;
use std::sync::Arc;

/// Chunks in one map shard: positions fit 16 bits, and the worst case (every chunk a run of its own,
/// 4 bytes each) is 256 KiB, half of what a key may hold.
pub const SHARD_CHUNKS: u32 = 1 << 16;

/// A run starts here and ends where the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u16,
    pub(crate) set: SetIndex,
}

/// A shard. Canonical: a shard whose chunks all have one set is `Uniform` and has no key of its own;
/// `Mixed` has at least two runs, neighbours differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shard {
    Uniform(SetIndex),
    Mixed {
        runs: Arc<Vec<Run>>,
        /// Of its key when it was loaded or committed; `None` before the first commit.
        version: Option<KvVersion>,
    },
}

impl Shard {
    pub(crate) fn set_of(&self, at: u16) -> SetIndex {
        match self {
            Self::Uniform(set) => *set,
            Self::Mixed { runs, .. } => {
                // The first run starts at 0, so there is always one at or before `at`.
                runs[runs.partition_point(|run| run.start <= at) - 1].set
            }
        }
    }

    /// Runs as (positions, set), ending at `len`.
    pub(crate) fn runs(&self, len: u32) -> impl Iterator<Item = (Range<u32>, SetIndex)> + '_ {
        let (uniform, mixed): (Option<SetIndex>, &[Run]) = match self {
            Self::Uniform(set) => (Some(*set), &[]),
            Self::Mixed { runs, .. } => (None, runs),
        };
        let ends = mixed
            .iter()
            .skip(1)
            .map(|run| u32::from(run.start))
            .chain([len]);
        let mixed = mixed
            .iter()
            .zip(ends)
            .map(|(run, end)| (u32::from(run.start)..end, run.set));
        uniform.map(|set| (0..len, set)).into_iter().chain(mixed)
    }

    /// Each reference to a set that this shard holds, for the table's counts.
    pub(crate) fn references(&self) -> impl Iterator<Item = SetIndex> + '_ {
        // The length does not matter for the sets alone.
        self.runs(SHARD_CHUNKS).map(|(_, set)| set)
    }

    /// Number of runs.
    pub(crate) fn run_count(&self) -> usize {
        match self {
            Self::Uniform(_) => 1,
            Self::Mixed { runs, .. } => runs.len(),
        }
    }

    /// Replaces the sets of `positions` by what `change` says, and keeps the form canonical. Tells
    /// `count` of each reference that came (`true`) or went. `false`: nothing is different. On an
    /// error nothing is changed.
    pub(crate) fn edit<E>(
        &mut self,
        len: u32,
        positions: Range<u32>,
        mut change: impl FnMut(SetIndex, Range<u32>) -> Result<SetIndex, E>,
        mut count: impl FnMut(SetIndex, bool),
    ) -> Result<bool, E> {
        let whole: [Run; 1];
        let runs: &[Run] = match self {
            Self::Mixed { runs, .. } => runs,
            Self::Uniform(set) => {
                whole = [Run {
                    start: 0,
                    set: *set,
                }];
                &whole
            }
        };
        // The runs that the positions touch, and one more on the right if it merges.
        let first = runs.partition_point(|run| u32::from(run.start) <= positions.start) - 1;
        let mut last = runs.partition_point(|run| u32::from(run.start) < positions.end);
        let left = first.checked_sub(1).map(|at| runs[at].set);
        let mut new = Vec::with_capacity(last - first + 2);
        let mut changed = false;
        for (at, run) in runs.iter().enumerate().take(last).skip(first) {
            let start = u32::from(run.start);
            let end = runs.get(at + 1).map_or(len, |next| u32::from(next.start));
            let inside = start.max(positions.start)..end.min(positions.end);
            let set = change(run.set, inside.clone())?;
            changed |= set != run.set;
            if start < inside.start {
                push(&mut new, left, start, run.set);
            }
            push(&mut new, left, inside.start, set);
            if inside.end < end {
                push(&mut new, left, inside.end, run.set);
            }
        }
        if !changed {
            return Ok(false);
        }
        let end = new.last().map(|run| run.set).or(left);
        if runs.get(last).is_some_and(|run| Some(run.set) == end) {
            last += 1;
        }
        for run in &new {
            count(run.set, true);
        }
        for run in &runs[first..last] {
            count(run.set, false);
        }
        match self {
            Self::Uniform(_) => {
                *self = Self::Mixed {
                    runs: Arc::new(new),
                    version: None,
                };
            }
            Self::Mixed { runs, .. } => {
                Arc::make_mut(runs).splice(first..last, new);
            }
        }
        if let Self::Mixed { runs, .. } = self
            && let [only] = runs.as_slice()
        {
            *self = Self::Uniform(only.set);
        }
        Ok(true)
    }
}

/// Adds a run, unless it continues the last one (or, if there is none yet, the one on the left).
fn push(out: &mut Vec<Run>, left: Option<SetIndex>, start: u32, set: SetIndex) {
    if out.last().map(|last| last.set).or(left) != Some(set) {
        #[allow(clippy::cast_possible_truncation)] // positions are below SHARD_CHUNKS
        let start = start as u16;
        out.push(Run { start, set });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets every position of the range; returns whether anything changed. Checks the counts.
    fn put(shard: &mut Shard, positions: Range<u32>, set: u16) -> bool {
        let mut counts = std::collections::BTreeMap::<SetIndex, i32>::new();
        for set in shard.references() {
            *counts.entry(set).or_default() += 1;
        }
        let change = |_: SetIndex, _: Range<u32>| -> Result<SetIndex, ()> { Ok(SetIndex(set)) };
        let changed = shard
            .edit(100, positions, change, |set, came| {
                *counts.entry(set).or_default() += if came { 1 } else { -1 };
            })
            .unwrap();
        for set in shard.references() {
            *counts.entry(set).or_default() -= 1;
        }
        assert!(counts.values().all(|count| *count == 0), "{counts:?}");
        changed
    }

    #[test]
    fn editing_splits_merges_and_becomes_uniform_again() {
        let mut shard = Shard::Uniform(SetIndex(0));
        assert!(put(&mut shard, 10..20, 1));
        let runs: Vec<_> = shard.runs(100).collect();
        assert_eq!(
            runs,
            [
                (0..10, SetIndex(0)),
                (10..20, SetIndex(1)),
                (20..100, SetIndex(0))
            ]
        );
        assert!(!put(&mut shard, 10..20, 1));
        assert!(put(&mut shard.clone(), 0..100, 1));
        assert!(put(&mut shard, 10..20, 0));
        assert_eq!(shard, Shard::Uniform(SetIndex(0)));
    }

    #[test]
    fn edits_agree_with_a_plain_array() {
        let mut shard = Shard::Uniform(SetIndex(0));
        let mut plain = [0u16; 100];
        let mut seed = 1u32;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (a, b) = (seed >> 8 & 127, seed >> 16 & 127);
            let set = u16::from(seed.to_be_bytes()[0] & 3);
            let (start, end) = (a.min(b).min(99), a.max(b).clamp(1, 100));
            if start >= end {
                continue;
            }
            put(&mut shard, start..end, set);
            plain[start as usize..end as usize].fill(set);
            for (at, set) in (0u16..).zip(plain) {
                assert_eq!(shard.set_of(at), SetIndex(set));
            }
            let runs: Vec<_> = shard.runs(100).collect();
            assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1));
        }
    }
}
