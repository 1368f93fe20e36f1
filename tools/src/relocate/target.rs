//! What is asked of a volume's latency: `p99-read<=2ms`, `p50-write<=800us`, `p99.9<=20ms` (reads and
//! writes alike).

use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// Highest percentile that can be asked for: above it, distributions are told by their maximum alone.
const PERCENT_MAX: u32 = 99_900;

/// Reads or writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Read,
    Write,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Read, Self::Write];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// A percentile, in thousandths of a percent so that p99.9 is exact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Percentile(u32);

impl Percentile {
    pub(crate) const P50: Self = Self(50_000);
    pub(crate) const P99: Self = Self(99_000);
    pub(crate) const P999: Self = Self(99_900);
    /// Those that every report shows.
    pub(crate) const SHOWN: [Self; 3] = [Self::P50, Self::P99, Self::P999];

    /// The share of requests at or below it.
    pub(crate) fn probability(self) -> f64 {
        f64::from(self.0) / 100_000.0
    }
}

impl fmt::Display for Percentile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", f64::from(self.0) / 1000.0)
    }
}

/// A time as people write it: `2ms`, `1.5ms`, `800us`, `1s`. Whole microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct LatencyArg {
    pub(crate) us: u64,
}

impl FromStr for LatencyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is no latency; write for example 800us, 2ms, 1.5ms or 1s");
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(form)?;
        let (number, unit) = trimmed.split_at(split);
        let unit_us = match unit.trim() {
            "us" | "µs" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            _ => return Err(form()),
        };
        let value: f64 = number.parse().map_err(|_| form())?;
        let us = value * unit_us;
        if !(1.0..=1e8).contains(&us) {
            return Err(format!("latency {text:?} is not between 1us and 100s"));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked above
        let us = us.round() as u64;
        Ok(Self { us })
    }
}

impl fmt::Display for LatencyArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.us;
        match us {
            _ if us.is_multiple_of(1_000_000) => write!(f, "{}s", us / 1_000_000),
            _ if us.is_multiple_of(1000) => write!(f, "{}ms", us / 1000),
            _ => write!(f, "{us}us"),
        }
    }
}

/// One demand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Target {
    pub(crate) percentile: Percentile,
    /// Absent: reads and writes, each.
    pub(crate) kind: Option<Kind>,
    pub(crate) limit: LatencyArg,
}

impl Target {
    /// The kinds it is about.
    pub(crate) fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::BOTH
            .into_iter()
            .filter(move |kind| self.kind.is_none_or(|only| only == *kind))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "{text:?} is no target; write for example p99-read<=2ms, p50-write<=800us or p99<=3ms \
                 (in quotes: the shell reads < itself)"
            )
        };
        let (left, limit) = text.split_once("<=").ok_or_else(form)?;
        let limit = limit
            .parse()
            .map_err(|error| format!("in target {text:?}: {error}"))?;
        let left = left.trim();
        let (percent, kind) = match left.split_once('-') {
            None => (left, None),
            Some((percent, "read" | "reads")) => (percent, Some(Kind::Read)),
            Some((percent, "write" | "writes")) => (percent, Some(Kind::Write)),
            Some(_) => return Err(form()),
        };
        let percent = percent.strip_prefix('p').ok_or_else(form)?;
        let percent: f64 = percent.parse().map_err(|_| form())?;
        let thousandths = (percent * 1000.0).round();
        if !(1000.0..=f64::from(PERCENT_MAX)).contains(&thousandths) {
            return Err(format!(
                "target {text:?}: percentiles from p1 to p99.9 can be asked for"
            ));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked above
        let percentile = Percentile(thousandths as u32);
        Ok(Self {
            percentile,
            kind,
            limit,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.percentile)?;
        if let Some(kind) = self.kind {
            write!(f, "-{}", kind.name())?;
        }
        write!(f, "<={}", self.limit)
    }
}

/// Microseconds for people: three digits, in the unit that fits.
pub(crate) fn latency_text(us: f64) -> String {
    let (value, unit) = match us {
        _ if us >= 999_500.0 => (us / 1e6, "s"),
        _ if us >= 999.5 => (us / 1e3, "ms"),
        _ => (us, "us"),
    };
    match value {
        _ if value >= 99.95 => format!("{value:.0}{unit}"),
        _ if value >= 9.995 => format!("{value:.1}{unit}"),
        _ => format!("{value:.2}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_spellings() {
        let target: Target = "p99-read<=2ms".parse().unwrap();
        assert_eq!(target.percentile, Percentile::P99);
        assert_eq!(target.kind, Some(Kind::Read));
        assert_eq!(target.limit, LatencyArg { us: 2000 });
        assert!((target.percentile.probability() - 0.99).abs() < 1e-12);
        let both: Target = " p99.9 <= 1.5ms".parse().unwrap();
        assert_eq!(both.kinds().count(), 2);
        assert_eq!(both.to_string(), "p99.9<=1500us");
        assert_eq!(
            "p50-write<=1s".parse::<Target>().unwrap().to_string(),
            "p50-write<=1s"
        );
    }

    #[test]
    fn others_are_refused_with_an_example() {
        for bad in [
            "",
            "p99",
            "99<=2ms",
            "p99-read<2ms",
            "p99-read<=2",
            "p99-flush<=2ms",
            "p<=2ms",
        ] {
            let error = bad.parse::<Target>().unwrap_err();
            assert!(error.contains("example"), "{bad}: {error}");
        }
        for (bad, why) in [
            ("p100<=2ms", "p99.9"),
            ("pNaN<=2ms", "p99.9"),
            ("p99.95<=2ms", "p99.9"),
            ("p0.5<=2ms", "p1"),
            ("p99<=0ms", "1us"),
            ("p99<=200s", "100s"),
        ] {
            let error = bad.parse::<Target>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn latencies_for_people() {
        for (us, text) in [
            (0.4, "0.40us"),
            (87.3, "87.3us"),
            (999.7, "1.00ms"),
            (20_456.0, "20.5ms"),
            (1.5e6, "1.50s"),
        ] {
            assert_eq!(latency_text(us), text);
        }
    }

    proptest! {
        #[test]
        fn printed_targets_can_be_typed(percent in 1000u32..=PERCENT_MAX, kind in 0u8..3, us in 1u64..100_000_000) {
            let kind = [None, Some(Kind::Read), Some(Kind::Write)][usize::from(kind)];
            let target = Target { percentile: Percentile(percent), kind, limit: LatencyArg { us } };
            prop_assert_eq!(target.to_string().parse(), Ok(target));
        }
    }
}
