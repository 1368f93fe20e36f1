//! A bound on bytes per second, with `now` as an argument.

use std::str::FromStr;
use std::time::Duration;

use crate::units::{ByteSize, SizeError};

/// `200MiB/s`; `/s` may be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RateArg(pub(crate) ByteSize);

impl FromStr for RateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bytes: Result<ByteSize, SizeError> = text.strip_suffix("/s").unwrap_or(text).parse();
        match bytes {
            Ok(ByteSize(0)) => Err("a rate of 0 never ends".into()),
            Ok(bytes) => Ok(Self(bytes)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What was spent is paid for by waiting before the next piece. Over any time that begins with a wait
/// that was kept, no more is spent than the rate allows plus one piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    bytes_per_second: u64,
    /// When everything spent is paid for, since the start.
    paid_at: Duration,
}

impl Rate {
    pub(crate) fn new(rate: RateArg) -> Self {
        Self {
            bytes_per_second: rate.0.0,
            paid_at: Duration::ZERO,
        }
    }

    /// How long to wait before the next piece.
    pub(crate) fn wait(&self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    /// A piece was read that began at `began`.
    pub(crate) fn spend(&mut self, began: Duration, bytes: u64) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_at = self.paid_at.max(began).saturating_add(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_as_people_write_them() {
        assert_eq!("200MiB/s".parse(), Ok(RateArg(ByteSize(200 << 20))));
        assert_eq!("1GiB".parse(), Ok(RateArg(ByteSize(1 << 30))));
        for bad in ["", "/s", "0", "200MB/s", "fast"] {
            assert!(bad.parse::<RateArg>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_one_piece(
            rate in 1u64..1_000_000_000,
            steps in prop::collection::vec((0u64..10_000_000, 0u64..2_000_000_000), 1..50),
        ) {
            let mut bucket = Rate::new(RateArg(ByteSize(rate)));
            let (mut now, mut spent, mut largest) = (Duration::ZERO, 0u64, 0);
            for (bytes, took) in steps {
                now += bucket.wait(now);
                bucket.spend(now, bytes);
                spent += bytes;
                largest = largest.max(bytes);
                let allowed = now.as_secs_f64() * rate as f64 + largest as f64;
                prop_assert!(spent as f64 <= allowed * 1.000_001 + 1.0, "{} of {}", spent, allowed);
                now += Duration::from_nanos(took);
            }
        }
    }
}
