//! Orders of blocks.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Zipf};
use std::fmt;
use std::str::FromStr;

const THETA_DEFAULT: f64 = 0.99;
/// With a larger one more than 99.9 % of the requests would go to one block.
const THETA_MAX: f64 = 10.0;

/// As asked for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Pattern {
    /// Every block is as likely as every other.
    Random,
    /// One after the other, then from the begin again.
    Sequential,
    /// The block of rank k is asked for in proportion to k to the power of minus theta.
    Zipf { theta: f64 },
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is no pattern; write random, sequential, zipf or zipf:1.2");
        let theta = match text {
            "random" => return Ok(Self::Random),
            "sequential" => return Ok(Self::Sequential),
            "zipf" => THETA_DEFAULT,
            other => {
                let number = other.strip_prefix("zipf:").ok_or_else(form)?;
                number.parse().map_err(|_| form())?
            }
        };
        if theta > 0.0 && theta <= THETA_MAX {
            Ok(Self::Zipf { theta })
        } else {
            Err(format!(
                "theta is {theta}; it is above 0 and at most {THETA_MAX}"
            ))
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Sequential => f.write_str("sequential"),
            Self::Zipf { theta } => write!(f, "zipf:{theta}"),
        }
    }
}

/// The blocks of one lane in their order.
#[derive(Clone, Debug)]
pub(crate) enum Blocks {
    Random { count: u64 },
    Sequential { count: u64, next: u64 },
    Zipf { zipf: Zipf<f64>, scatter: Scatter },
}

impl Blocks {
    /// `count`: blocks of the volume, at least 1. Lanes go through it from places as far from each other as possible.
    pub(crate) fn new(pattern: Pattern, count: u64, lane: u16, lanes: u16) -> Self {
        assert!(
            count > 0 && lane < lanes,
            "lane {lane} of {lanes} on {count} blocks"
        );
        match pattern {
            Pattern::Random => Self::Random { count },
            Pattern::Sequential => {
                let next = u128::from(count) * u128::from(lane) / u128::from(lanes);
                #[allow(clippy::cast_possible_truncation)] // below `count`
                let next = next as u64;
                Self::Sequential { count, next }
            }
            Pattern::Zipf { theta } => Self::Zipf {
                #[allow(clippy::cast_precision_loss)] // a volume has at most 2^38 sectors
                zipf: Zipf::new(count as f64, theta).expect("a rank, and a theta above 0"),
                scatter: Scatter::new(count),
            },
        }
    }

    pub(crate) fn next(&mut self, rng: &mut ChaCha8Rng) -> u64 {
        match self {
            Self::Random { count } => rng.random_range(0..*count),
            Self::Sequential { count, next } => {
                let block = *next;
                *next = (block + 1) % *count;
                block
            }
            Self::Zipf { zipf, scatter } => {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                // a whole number from 1 to `count`
                let rank = zipf.sample(rng) as u64;
                scatter.place(rank - 1)
            }
        }
    }
}

/// Ranks to blocks, one to one, so that the busy ones do not lie together in one chunk of one node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter {
    count: u64,
    factor: u64,
}

impl Scatter {
    fn new(count: u64) -> Self {
        // About the golden section: consecutive multiples of it are spread most evenly.
        #[allow(clippy::cast_possible_truncation)] // at most `count`
        let golden = (u128::from(count) * 618_033_989 / 1_000_000_000) as u64;
        let factor = (golden.max(1)..).find(|factor| greatest_divisor(*factor, count) == 1);
        // Sooner or later a prime comes.
        let factor = factor.unwrap_or(1);
        Self { count, factor }
    }

    fn place(self, rank: u64) -> u64 {
        #[allow(clippy::cast_possible_truncation)] // below `count`
        let place = (u128::from(rank) * u128::from(self.factor) % u128::from(self.count)) as u64;
        place
    }
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    #[test]
    fn patterns_as_written() {
        assert_eq!("random".parse(), Ok(Pattern::Random));
        assert_eq!("sequential".parse(), Ok(Pattern::Sequential));
        assert_eq!("zipf".parse(), Ok(Pattern::Zipf { theta: 0.99 }));
        assert_eq!("zipf:1.2".parse(), Ok(Pattern::Zipf { theta: 1.2 }));
        for bad in [
            "", "Random", "zipf:", "zipf:x", "zipf:0", "zipf:-1", "zipf:11", "zipf:nan", "zipf:inf",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lanes_begin_apart_and_go_round() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut blocks = Blocks::new(Pattern::Sequential, 10, 1, 2);
        let seen: Vec<u64> = (0..7).map(|_| blocks.next(&mut rng)).collect();
        assert_eq!(seen, [5, 6, 7, 8, 9, 0, 1]);
    }

    proptest! {
        #[test]
        fn every_block_lies_inside_the_volume(
            count in 1u64..=1 << 50, theta in 0.01f64..10.0, seed in any::<u64>(),
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for pattern in [Pattern::Random, Pattern::Sequential, Pattern::Zipf { theta }] {
                let mut blocks = Blocks::new(pattern, count, 2, 3);
                for _ in 0..50 {
                    prop_assert!(blocks.next(&mut rng) < count);
                }
            }
        }

        #[test]
        fn scattering_is_one_to_one(count in 1u64..2000) {
            let scatter = Scatter::new(count);
            let places: BTreeSet<u64> = (0..count).map(|rank| scatter.place(rank)).collect();
            prop_assert_eq!(places.len() as u64, count);
            prop_assert!(places.last().is_some_and(|last| *last < count));
        }
    }
}
