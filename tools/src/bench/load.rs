//! The requests of one lane.

use super::pattern::{Blocks, Pattern};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ublk_front::shell::bench::{BenchRequest, Load};

/// A mix of reads and writes over a pattern, the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    rng: ChaCha8Rng,
    blocks: Blocks,
    read_percent: u8,
}

impl Mix {
    /// One per lane; `block_count`: blocks of the volume.
    pub(crate) fn of_lanes(
        seed: u64,
        pattern: Pattern,
        read_percent: u8,
        block_count: u64,
        lanes: u16,
    ) -> Vec<Self> {
        let of_lane = |lane| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(u64::from(lane));
            Self {
                rng,
                blocks: Blocks::new(pattern, block_count, lane, lanes),
                read_percent,
            }
        };
        (0..lanes).map(of_lane).collect()
    }
}

impl Load for Mix {
    fn next(&mut self) -> BenchRequest {
        BenchRequest {
            write: self.rng.random_range(0..100) >= self.read_percent,
            block: self.blocks.next(&mut self.rng),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seed: u64, read_percent: u8, lane: usize) -> Vec<BenchRequest> {
        let mut lanes = Mix::of_lanes(seed, Pattern::Random, read_percent, 1000, 2);
        (0..2000).map(|_| lanes[lane].next()).collect()
    }

    #[test]
    fn the_seed_decides_and_lanes_differ() {
        assert_eq!(first(3, 50, 0), first(3, 50, 0));
        assert_ne!(first(3, 50, 0), first(4, 50, 0));
        assert_ne!(first(3, 50, 0), first(3, 50, 1));
    }

    #[test]
    fn the_mix_is_what_was_asked_for() {
        let writes = |percent| first(5, percent, 0).iter().filter(|io| io.write).count();
        assert_eq!((writes(100), writes(0)), (0, 2000));
        assert!((500..700).contains(&writes(70)), "{}", writes(70));
    }
}
