//! The hottest parts of a volume: neighbouring chunks that are used about alike, as one range.

use ukai_proto::ChunkIndex;
use ukai_proto::heat::ChunkHeat;
use ukai_proto::message::ChunkRange;

/// Chunks whose use differs by no more than this belong to one range.
const ALIKE: f64 = 2.0;

/// Neighbouring chunks, used about alike.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct HotRange {
    pub(crate) range: ChunkRange,
    pub(crate) reads_per_s: f64,
    pub(crate) writes_per_s: f64,
    pub(crate) bytes_per_s: f64,
}

impl HotRange {
    /// Requests per second.
    pub(crate) fn ops_per_s(&self) -> f64 {
        self.reads_per_s + self.writes_per_s
    }

    fn ops_per_chunk(&self) -> f64 {
        self.ops_per_s() / f64::from(self.range.count)
    }
}

/// All used ranges, most requests per chunk first. `chunks`: use of each, from chunk 0 on.
pub(crate) fn hot_ranges(chunks: &[ChunkHeat]) -> Vec<HotRange> {
    let mut ranges: Vec<HotRange> = Vec::new();
    let numbered = (0..).map(ChunkIndex).zip(chunks);
    for (chunk, heat) in numbered.filter(|(_, heat)| !heat.is_zero()) {
        let one = HotRange {
            range: ChunkRange {
                start: chunk,
                count: 1,
            },
            reads_per_s: heat.reads_per_s(),
            writes_per_s: heat.writes_per_s(),
            bytes_per_s: heat.bytes_per_s(),
        };
        match ranges.last_mut() {
            Some(last) if last.range.start.0 + last.range.count == chunk.0 && alike(last, &one) => {
                last.range.count += 1;
                last.reads_per_s += one.reads_per_s;
                last.writes_per_s += one.writes_per_s;
                last.bytes_per_s += one.bytes_per_s;
            }
            _ => ranges.push(one),
        }
    }
    ranges.sort_by(|a, b| {
        let order = b.ops_per_chunk().total_cmp(&a.ops_per_chunk());
        order.then(a.range.start.cmp(&b.range.start))
    });
    ranges
}

fn alike(a: &HotRange, b: &HotRange) -> bool {
    let (a, b) = (a.ops_per_chunk(), b.ops_per_chunk());
    a <= b * ALIKE && b <= a * ALIKE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heat(reads: &[f64]) -> Vec<ChunkHeat> {
        reads
            .iter()
            .map(|reads| ChunkHeat::from_rates(*reads, 0.0, reads * 4096.0))
            .collect()
    }

    #[test]
    fn neighbours_that_are_used_alike_are_one_range_hottest_first() {
        let ranges = hot_ranges(&heat(&[1.0, 1.2, 0.0, 100.0, 130.0, 110.0, 1.0]));
        let found: Vec<(u32, u32)> = ranges
            .iter()
            .map(|hot| (hot.range.start.0, hot.range.count))
            .collect();
        assert_eq!(found, [(3, 3), (0, 2), (6, 1)]);
        assert!((ranges[0].ops_per_s() / 340.0 - 1.0).abs() < 0.07);
        assert!(hot_ranges(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn ranges_have_every_used_chunk_once_and_all_the_load(
            reads in prop::collection::vec(prop_oneof![Just(0.0), 0.01f64..1e6], 0..200),
        ) {
            let heat = heat(&reads);
            let mut ranges = hot_ranges(&heat);
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].ops_per_chunk() >= pair[1].ops_per_chunk());
            }
            let sum: f64 = ranges.iter().map(HotRange::ops_per_s).sum();
            let all: f64 = heat.iter().map(|heat| heat.reads_per_s()).sum();
            prop_assert!((sum - all).abs() <= all * 1e-9);
            ranges.sort_by_key(|hot| hot.range.start);
            let chunks = ranges.iter().flat_map(|hot| hot.range.start.0..hot.range.start.0 + hot.range.count);
            let chunks: Vec<u32> = chunks.collect();
            let used = (0u32..).zip(&heat).filter(|(_, heat)| !heat.is_zero());
            let used: Vec<u32> = used.map(|(chunk, _)| chunk).collect();
            prop_assert_eq!(chunks, used);
        }
    }
}
