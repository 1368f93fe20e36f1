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

    /// This shard with the sets of `positions` replaced by what `change` says, in canonical form;
    /// `None` if nothing is different.
    pub(crate) fn edited<E>(
        &self,
        len: u32,
        positions: Range<u32>,
        mut change: impl FnMut(SetIndex, Range<u32>) -> Result<SetIndex, E>,
    ) -> Result<Option<Self>, E> {
        let mut out = Vec::with_capacity(self.run_count() + 2);
        let mut changed = false;
        for (run, set) in self.runs(len) {
            let inside = run.start.max(positions.start)..run.end.min(positions.end);
            if inside.is_empty() {
                push(&mut out, run.start, set);
                continue;
            }
            let new = change(set, inside.clone())?;
            changed |= new != set;
            if run.start < inside.start {
                push(&mut out, run.start, set);
            }
            push(&mut out, inside.start, new);
            if inside.end < run.end {
                push(&mut out, inside.end, set);
            }
        }
        if !changed {
            return Ok(None);
        }
        Ok(Some(match out.as_slice() {
            [only] => Self::Uniform(only.set),
            _ => Self::Mixed {
                runs: Arc::new(out),
                version: match self {
                    Self::Mixed { version, .. } => *version,
                    Self::Uniform(_) => None,
                },
            },
        }))
    }
}

fn push(out: &mut Vec<Run>, start: u32, set: SetIndex) {
    if out.last().is_none_or(|last| last.set != set) {
        #[allow(clippy::cast_possible_truncation)] // positions are below SHARD_CHUNKS
        let start = start as u16;
        out.push(Run { start, set });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editing_splits_merges_and_becomes_uniform_again() {
        let shard = Shard::Uniform(SetIndex(0));
        let to =
            |n: u16| move |_: SetIndex, _: Range<u32>| -> Result<SetIndex, ()> { Ok(SetIndex(n)) };
        let mixed = shard.edited(100, 10..20, to(1)).unwrap().unwrap();
        let runs: Vec<_> = mixed.runs(100).collect();
        assert_eq!(
            runs,
            [
                (0..10, SetIndex(0)),
                (10..20, SetIndex(1)),
                (20..100, SetIndex(0))
            ]
        );
        assert_eq!(mixed.set_of(9), SetIndex(0));
        assert_eq!(mixed.set_of(10), SetIndex(1));
        assert_eq!(mixed.set_of(19), SetIndex(1));
        assert_eq!(mixed.set_of(20), SetIndex(0));
        assert_eq!(mixed.edited(100, 10..20, to(1)), Ok(None));
        assert_eq!(mixed.edited(100, 0..100, to(1)), Ok(Some(Shard::Uniform(SetIndex(1)))));
        assert_eq!(mixed.edited(100, 10..20, to(0)), Ok(Some(shard)));
    }
}
