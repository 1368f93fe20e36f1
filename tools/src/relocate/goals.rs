//! A search's result as the goals of a job: ranges of chunks, the hottest first, few enough for one
//! record.

use super::cover::Cover;
use super::problem::NodeIndex;
use std::collections::HashMap;
use ukai_meta::job::{GOAL_SETS_MAX, GOALS_MAX, GoalSet};
use ukai_meta::map::VolumeMap;
use ukai_proto::ChunkIndex;
use ukai_proto::message::ChunkRange;

/// Shares of the moving load at which ranges are cut, so that hot chunks go before cold ones next to them.
/// The most cuts that leave few enough ranges are made.
const BANDS: [f64; 6] = [0.5, 0.75, 0.9, 0.97, 0.99, 0.999];

/// What a job is told.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Goals {
    pub(crate) sets: Vec<GoalSet>,
    /// (first chunk, chunks, index into `sets`), hottest first.
    pub(crate) goals: Vec<(u32, u32, u16)>,
    /// Chunks that move only because they lie between two that do: a job has so many ranges at most.
    pub(crate) filled_chunks: u64,
    pub(crate) filled_bytes: u64,
    /// Chunks that this job leaves out although they should move, for the same reason; the coldest.
    pub(crate) left_out_chunks: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Range {
    start: u32,
    count: u32,
    goal: u16,
    band: u8,
    /// Load of all its chunks.
    heat: f32,
}

impl Range {
    fn end(&self) -> u32 {
        self.start + self.count
    }

    /// Is the other the neighbour after it, and alike?
    fn joins(&self, next: &Self) -> bool {
        self.end() == next.start && self.goal == next.goal && self.band == next.band
    }

    fn join(&mut self, next: &Self) {
        self.count += next.count;
        self.heat += next.heat;
    }

    fn heat_per_chunk(&self) -> f64 {
        f64::from(self.heat) / f64::from(self.count)
    }
}

/// Turns what `cover` moves into goals for `map`, on which it was made; at most `ranges_max`.
pub(crate) fn goals(cover: &Cover<'_>, map: &VolumeMap, ranges_max: usize) -> Goals {
    let mut out = Goals::default();
    let mut pieces = Vec::new();
    let mut number: HashMap<(Vec<NodeIndex>, Vec<NodeIndex>, u8), u16> = HashMap::new();
    let mut moving: Vec<usize> = (0..cover.pieces.len())
        .filter(|at| !cover.choices[cover.pieces[*at].choice].moves_nothing())
        .collect();
    let heat = |at: &usize| cover.problem.classes[cover.pieces[*at].class].heat();
    moving.sort_by(|a, b| heat(b).total_cmp(&heat(a)));
    for at in moving {
        let piece = &cover.pieces[at];
        let choice = &cover.choices[piece.choice];
        let set = &cover.problem.sets[cover.problem.classes[piece.class].set as usize];
        let copies = u8::try_from(cover.problem.copies_min(set)).expect("copies are few");
        let key = (choice.add.clone(), choice.remove.clone(), copies);
        let id = |nodes: &[NodeIndex]| {
            nodes
                .iter()
                .map(|node| cover.problem.node(*node).id)
                .collect()
        };
        let next = out.sets.len();
        let goal = match number.get(&key) {
            Some(goal) => *goal,
            None if next == GOAL_SETS_MAX => {
                out.left_out_chunks += piece.chunks;
                continue;
            }
            None => {
                out.sets.push(GoalSet {
                    add: id(&choice.add),
                    remove: id(&choice.remove),
                    copies,
                });
                let next = u16::try_from(next).expect("GOAL_SETS_MAX fits");
                number.insert(key, next);
                next
            }
        };
        pieces.push((at, goal));
    }
    let mut ranges = ranges_of(cover, &pieces);
    for bands in (0..BANDS.len()).rev() {
        if ranges.len() <= ranges_max {
            break;
        }
        #[allow(clippy::cast_possible_truncation)] // a handful
        for range in &mut ranges {
            range.band = range.band.min(bands as u8);
        }
        join(&mut ranges);
    }
    if ranges.len() > ranges_max {
        fill_gaps(&mut ranges, &mut out, cover, map, ranges_max);
    }
    ranges.sort_unstable_by(|a, b| {
        b.heat_per_chunk()
            .total_cmp(&a.heat_per_chunk())
            .then(a.start.cmp(&b.start))
    });
    let left_out = ranges.split_off(ranges_max.min(ranges.len()));
    out.left_out_chunks += left_out
        .iter()
        .map(|range| u64::from(range.count))
        .sum::<u64>();
    out.goals = ranges
        .iter()
        .map(|range| (range.start, range.count, range.goal))
        .collect();
    out
}

/// What moves as maximal ranges of one goal and one band, by place. `pieces` has the hottest first.
fn ranges_of(cover: &Cover<'_>, pieces: &[(usize, u16)]) -> Vec<Range> {
    let piece_heat = |at: usize| {
        let piece = &cover.pieces[at];
        #[allow(clippy::cast_precision_loss)] // chunks are counted in u32
        let chunks = piece.chunks as f64;
        cover.problem.classes[piece.class].heat() * chunks
    };
    let total: f64 = pieces.iter().map(|(at, _)| piece_heat(*at)).sum();
    let mut sum = 0.0;
    let mut kinds = Vec::with_capacity(pieces.len());
    // By chunk: 1 + the place of its piece in `pieces`; 0: it stays. Scattered pieces are put in order so in one pass.
    let mut moving: Vec<u32> = Vec::new();
    for (number, (at, goal)) in (1..).zip(pieces) {
        let piece = &cover.pieces[*at];
        let class = &cover.problem.classes[piece.class];
        #[allow(clippy::cast_possible_truncation)] // a handful
        let band = BANDS.iter().filter(|share| sum >= **share * total).count() as u8;
        sum += piece_heat(*at);
        kinds.push((*goal, band, class.heat()));
        for (start, count) in part_of(&class.runs, piece.offset, piece.chunks) {
            let (start, end) = (start as usize, start as usize + count as usize);
            if moving.len() < end {
                // In one go to where the volume ends, as far as is seen.
                let last = class.runs.last().map_or(0, |last| last.0 + last.1);
                moving.resize(end.max(last as usize), 0);
            }
            for chunk in &mut moving[start..end] {
                assert!(*chunk == 0, "chunk twice in {start}..{end}");
                *chunk = number;
            }
        }
    }
    let mut ranges: Vec<Range> = Vec::new();
    let mut start = 0;
    for alike in moving.chunk_by(|a, b| a == b) {
        let count = u32::try_from(alike.len()).expect("chunks are counted in u32");
        if let Some(kind) = (alike[0] as usize).checked_sub(1) {
            let (goal, band, heat) = kinds[kind];
            let next = Range {
                start,
                count,
                goal,
                band,
                heat: f64_to_f32(heat * f64::from(count)),
            };
            match ranges.last_mut() {
                Some(last) if last.joins(&next) => last.join(&next),
                _ => ranges.push(next),
            }
        }
        start += count;
    }
    ranges
}

/// Joins neighbours that are alike.
fn join(ranges: &mut Vec<Range>) {
    ranges.dedup_by(|next, range| {
        assert!(range.end() <= next.start, "chunk {} twice", next.start);
        let joins = range.joins(next);
        if joins {
            range.join(next);
        }
        joins
    });
}

/// `chunks` of the chunks in `runs`, those before `offset` left out.
fn part_of(runs: &[(u32, u32)], offset: u64, chunks: u64) -> impl Iterator<Item = (u32, u32)> + '_ {
    let (mut skip, mut left) = (offset, chunks);
    runs.iter().filter_map(move |&(start, count)| {
        let skipped = u32::try_from(skip.min(count.into())).expect("at most count");
        skip -= u64::from(skipped);
        let taken = u32::try_from(left.min((count - skipped).into())).expect("at most count");
        left -= u64::from(taken);
        (taken > 0).then_some((start + skipped, taken))
    })
}

/// Joins neighbours of one goal over the shortest gaps, where the chunks between may have the same goal and
/// its nodes have room.
fn fill_gaps(
    ranges: &mut Vec<Range>,
    out: &mut Goals,
    cover: &Cover<'_>,
    map: &VolumeMap,
    ranges_max: usize,
) {
    let mut gaps: Vec<(u32, usize)> = ranges
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[0].goal == pair[1].goal && pair[0].end() < pair[1].start)
        .map(|(at, pair)| (pair[1].start - pair[0].end(), at))
        .collect();
    gaps.sort_unstable();
    let mut free: HashMap<_, u64> = HashMap::new();
    for (node, free_bytes) in cover.problem.nodes.iter().zip(&cover.free) {
        free.insert(node.id, *free_bytes);
    }
    let mut joined = vec![false; ranges.len()];
    let mut left = ranges.len();
    for (gap, at) in gaps {
        if left <= ranges_max {
            break;
        }
        let (from, to) = (ranges[at].end(), ranges[at + 1].start);
        let set = map.set_of(ChunkIndex(from - 1));
        let between = ChunkRange {
            start: ChunkIndex(from),
            count: to - from,
        };
        let alike = if gap <= 4 {
            (from..to).all(|chunk| map.set_of(ChunkIndex(chunk)) == set)
        } else {
            map.runs_in(between).all(|(_, other)| other == set)
        };
        let bytes = u64::from(gap) * cover.problem.chunk_bytes;
        let add = &out.sets[usize::from(ranges[at].goal)].add;
        if !alike
            || add
                .iter()
                .any(|node| free.get(node).is_none_or(|free| *free < bytes))
        {
            continue;
        }
        for node in add {
            *free.get_mut(node).expect("looked up above") -= bytes;
        }
        out.filled_chunks += u64::from(gap);
        out.filled_bytes += bytes * add.len() as u64;
        joined[at + 1] = true;
        left -= 1;
    }
    let mut at = 0;
    ranges.dedup_by(|next, range| {
        at += 1;
        let joins = joined[at];
        if joins {
            range.count = next.end() - range.start;
            range.heat += next.heat;
        }
        joins
    });
}

/// Only an order is made of it; four million ranges are to stay small.
fn f64_to_f32(heat: f64) -> f32 {
    #[allow(clippy::cast_possible_truncation)]
    let heat = heat as f32;
    heat
}

/// As many ranges as a job may have.
pub(crate) const RANGES_MAX: usize = GOALS_MAX;

#[cfg(test)]
pub(crate) mod tests;
