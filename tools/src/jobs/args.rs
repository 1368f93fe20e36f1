//! What only `relocate` and `job` are told: protection of the guest, and spans of time.

use crate::scrub::rate::RateArg;
use std::fmt;
use std::str::FromStr;
use ukai_meta::job::Protect;

/// `p99<=3ms`, `+20%`, or both with `|` between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProtectArg(pub(crate) Protect);

impl FromStr for ProtectArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!("{text:?} is no protection; write \"p99<=3ms\", \"+20%\" or \"p99<=3ms|+20%\"")
        };
        let mut protect = Protect::default();
        for part in text.split('|').map(str::trim) {
            if let Some(percent) = part.strip_prefix('+').and_then(|p| p.strip_suffix('%')) {
                let percent: u32 = percent.trim().parse().map_err(|_| form())?;
                let twice = protect.over_base_percent.replace(percent).is_some();
                if twice || percent > 10_000 {
                    return Err(form());
                }
                continue;
            }
            let limit = part
                .strip_prefix("p99")
                .and_then(|rest| rest.trim_start().strip_prefix("<="))
                .ok_or_else(form)?;
            let latency: crate::relocate::target::LatencyArg = limit
                .trim()
                .parse()
                .map_err(|error| format!("{}: {error}", form()))?;
            if protect.p99_us_max.replace(latency.us).is_some() {
                return Err(form());
            }
        }
        Ok(Self(protect))
    }
}

impl fmt::Display for ProtectArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = self
            .0
            .p99_us_max
            .map(|us| format!("p99<={}", crate::jobs::view::us_text(us)));
        let over = self
            .0
            .over_base_percent
            .map(|percent| format!("+{percent}%"));
        let parts: Vec<String> = max.into_iter().chain(over).collect();
        f.write_str(&parts.join("|"))
    }
}

/// `90`, `90s`, `10m`, `2h`, `1d`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SpanArg {
    pub(crate) seconds: u64,
}

impl FromStr for SpanArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is no span of time; write 90s, 10m, 2h or 1d");
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match text[digits.len()..].trim() {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(form()),
        };
        let number: u64 = digits.trim().parse().map_err(|_| form())?;
        let seconds = number.checked_mul(factor).ok_or_else(form)?;
        Ok(Self { seconds })
    }
}

/// A part of a whole: 0.9 or 90%.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct ShareArg(pub(crate) f64);

impl FromStr for ShareArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is no share; write 0.9 or 90%");
        let (number, unit) = match text.trim().strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text.trim(), 1.0),
        };
        let share: f64 = number.trim().parse().map_err(|_| form())?;
        let share = share / unit;
        (share > 0.0 && share <= 1.0)
            .then_some(Self(share))
            .ok_or_else(form)
    }
}

/// A rate, or `none`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RateOrNone(pub(crate) Option<u64>);

impl FromStr for RateOrNone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let rate: RateArg = text.parse()?;
        Ok(Self(Some(rate.0.0)))
    }
}

/// A protection, or `none`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProtectOrNone(pub(crate) Option<Protect>);

impl FromStr for ProtectOrNone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let protect: ProtectArg = text.parse()?;
        Ok(Self(Some(protect.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections() {
        let protect: ProtectArg = "p99<=3ms|+20%".parse().unwrap();
        assert_eq!(protect.0.p99_us_max, Some(3000));
        assert_eq!(protect.0.over_base_percent, Some(20));
        assert_eq!(protect.to_string(), "p99<=3ms|+20%");
        assert_eq!(
            "p99 <= 500us".parse::<ProtectArg>().unwrap().0.p99_us_max,
            Some(500)
        );
        assert_eq!("+5%".parse::<ProtectArg>().unwrap().to_string(), "+5%");
        for bad in [
            "",
            "p99",
            "p98<=3ms",
            "20%",
            "+x%",
            "+5%|+6%",
            "p99<=fast",
            "p99<=1ms|p99<=2ms",
        ] {
            assert!(bad.parse::<ProtectArg>().is_err(), "{bad}");
        }
        assert_eq!("none".parse::<ProtectOrNone>().unwrap().0, None);
        assert_eq!("none".parse::<RateOrNone>().unwrap().0, None);
        assert_eq!("1MiB/s".parse::<RateOrNone>().unwrap().0, Some(1 << 20));
    }

    #[test]
    fn shares() {
        for text in ["0.9", "90%", " 90 % "] {
            assert_eq!(text.parse(), Ok(ShareArg(0.9)), "{text}");
        }
        for bad in ["", "0", "1.1", "101%", "-1", "nan", "much"] {
            assert!(bad.parse::<ShareArg>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("10m", 600),
            ("2h", 7200),
            ("1d", 86_400),
        ] {
            assert_eq!(text.parse(), Ok(SpanArg { seconds }));
        }
        for bad in ["", "h", "-1s", "1w", "99999999999999999999d", "1.5h"] {
            assert!(bad.parse::<SpanArg>().is_err(), "{bad}");
        }
    }
}
