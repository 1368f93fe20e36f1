//! Sizes as people write them: `10GiB`, `1.5TiB`, `4096`.
//!
//! Only binary units: `10GB` may mean either, and a disk that is 7 % smaller than its owner thinks
//! is found out late.

use std::fmt;
use std::str::FromStr;

const UNITS: [(&str, u64); 6] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
];

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ByteSize(pub(crate) u64);

/// Text that is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("{0:?} is no size; write for example 10GiB, 512MiB or 4096 (bytes)")]
    Malformed(String),
    #[error(
        "unit {unit:?} is ambiguous; write {number}{binary} (units are B, KiB, MiB, GiB, TiB, PiB)"
    )]
    DecimalUnit {
        number: String,
        unit: String,
        binary: &'static str,
    },
    #[error("unknown unit {0:?}; units are B, KiB, MiB, GiB, TiB, PiB")]
    Unit(String),
    #[error("{0:?} is not a whole number of bytes")]
    Fraction(String),
    #[error("{0:?} is larger than any size can be (16 EiB)")]
    Overflow(String),
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let malformed = || SizeError::Malformed(text.into());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..split], trimmed[split..].trim());
        let unit_bytes = unit_bytes(number, unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(malformed());
        }
        let overflow = || SizeError::Overflow(text.into());
        let whole: u64 = whole.parse().map_err(|_| overflow())?;
        let whole = whole.checked_mul(unit_bytes).ok_or_else(overflow)?;
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() {
            return Ok(Self(whole));
        }
        // 2^50 in units of 10^-18 fits 128 bits; more digits are never whole bytes of a sane size.
        if fraction.len() > 18 {
            return Err(SizeError::Fraction(text.into()));
        }
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| malformed())?);
        let part: u128 = fraction.parse().map_err(|_| malformed())?;
        let part = part * u128::from(unit_bytes);
        if !part.is_multiple_of(scale) {
            return Err(SizeError::Fraction(text.into()));
        }
        let part = u64::try_from(part / scale).map_err(|_| overflow())?;
        whole.checked_add(part).map(Self).ok_or_else(overflow)
    }
}

fn unit_bytes(number: &str, unit: &str) -> Result<u64, SizeError> {
    if number.is_empty() {
        return Err(SizeError::Malformed(format!("{number}{unit}")));
    }
    if unit.is_empty() {
        return Ok(1);
    }
    if let Some((_, bytes)) = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
    {
        return Ok(*bytes);
    }
    // K, KB, k, kB ... : tell which unit is probably meant.
    let binary = UNITS[1..].iter().find(|(name, _)| {
        let initial = &name[..1];
        unit[..].eq_ignore_ascii_case(initial)
            || (unit.len() == 2
                && unit.is_char_boundary(1)
                && unit[..1].eq_ignore_ascii_case(initial)
                && unit[1..].eq_ignore_ascii_case("b"))
    });
    Err(match binary {
        Some((name, _)) => SizeError::DecimalUnit {
            number: number.into(),
            unit: unit.into(),
            binary: name,
        },
        None => SizeError::Unit(unit.into()),
    })
}

/// Exact: the largest unit of which it is a whole number, so that what is printed can be typed.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes) = UNITS
            .iter()
            .rev()
            .find(|(_, bytes)| self.0.is_multiple_of(*bytes) && self.0 >= *bytes)
            .copied()
            .unwrap_or(("B", 1));
        f.pad(&format!("{}{name}", self.0 / bytes))
    }
}

impl ByteSize {
    /// At most one decimal, for counters and progress, where the magnitude matters.
    pub(crate) fn about(self) -> String {
        let (name, bytes) = UNITS
            .iter()
            .rev()
            .find(|(_, bytes)| self.0 >= *bytes)
            .copied()
            .unwrap_or(("B", 1));
        // In tenths, by integers: never prints "1024.0KiB" for something below a MiB.
        let tenths = u128::from(self.0) * 10 / u128::from(bytes);
        if tenths.is_multiple_of(10) {
            format!("{}{name}", tenths / 10)
        } else {
            format!("{}.{}{name}", tenths / 10, tenths % 10)
        }
    }

    /// Checks that the size is a positive multiple of `unit`, at most `max`; the message names the
    /// nearest sizes that are.
    pub(crate) fn check(self, what: &str, unit: ByteSize, max: ByteSize) -> Result<(), String> {
        if self.0 == 0 {
            return Err(format!("{what} is 0; the smallest is {unit}"));
        }
        if self.0 > max.0 {
            return Err(format!("{what} {self} is above the largest, {max}"));
        }
        if self.0.is_multiple_of(unit.0) {
            return Ok(());
        }
        let (down, up) = nearest(self.0, unit.0);
        Err(format!(
            "{what} {self} is not a multiple of {unit}; the nearest are {}",
            join_nearest(down.filter(|n| *n > 0), up.filter(|n| *n <= max.0))
        ))
    }
}

/// The multiples of `unit` around `value`.
pub(crate) fn nearest(value: u64, unit: u64) -> (Option<u64>, Option<u64>) {
    let down = value - value % unit;
    (Some(down), down.checked_add(unit))
}

/// "8GiB and 12GiB", or the only one there is.
pub(crate) fn join_nearest(down: Option<u64>, up: Option<u64>) -> String {
    let list: Vec<String> = [down, up]
        .into_iter()
        .flatten()
        .map(|n| ByteSize(n).to_string())
        .collect();
    list.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_spellings() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4KiB", 4096),
            ("4 kib", 4096),
            (" 1.5TiB ", 3 << 39),
            ("0.5MiB", 512 << 10),
            ("10GiB", 10 << 30),
            ("0", 0),
            ("7B", 7),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refused_spellings_say_what_to_write() {
        let message = |text: &str| text.parse::<ByteSize>().unwrap_err().to_string();
        assert!(
            message("10GB").contains("write 10GiB"),
            "{}",
            message("10GB")
        );
        assert!(message("10g").contains("write 10GiB"));
        assert!(message("10parsec").contains("unknown unit"));
        assert!(message("").contains("no size"));
        assert!(message("GiB").contains("no size"));
        assert!(message("-1GiB").contains("no size"));
        assert!(message("1..5GiB").contains("no size"));
        assert!(message(".5GiB").contains("no size"));
        assert!(message("1.3KiB").contains("whole number"));
        assert!(message("16384PiB").contains("larger"));
        assert!(message("99999999999999999999").contains("larger"));
        assert!(message("5µB").contains("unknown unit"));
    }

    #[test]
    fn multiples_are_checked_with_the_nearest_valid_ones() {
        let unit = ByteSize(4096);
        let max = ByteSize(1 << 50);
        assert_eq!(ByteSize(8192).check("size", unit, max), Ok(()));
        assert_eq!(
            ByteSize(10_000).check("size", unit, max).unwrap_err(),
            "size 10000B is not a multiple of 4KiB; the nearest are 8KiB and 12KiB"
        );
        assert!(
            ByteSize(1)
                .check("size", unit, max)
                .unwrap_err()
                .ends_with("nearest are 4KiB")
        );
        assert!(
            ByteSize(0)
                .check("size", unit, max)
                .unwrap_err()
                .contains("smallest")
        );
        assert!(
            ByteSize(u64::MAX)
                .check("size", unit, max)
                .unwrap_err()
                .contains("largest")
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_typed(bytes in any::<u64>(), shift in 0u32..64) {
            let size = ByteSize(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn about_is_never_above_and_within_a_tenth(bytes in 1u64..1 << 60) {
            let text = ByteSize(bytes).about();
            let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
            let unit = UNITS.iter().find(|(name, _)| *name == &text[digits.len()..]).unwrap().1;
            #[allow(clippy::cast_precision_loss)]
            let (value, exact) = (digits.parse::<f64>().unwrap() * unit as f64, bytes as f64);
            prop_assert!(value <= exact * 1.000_001 && value >= exact * 0.9, "{} {}", text, bytes);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,24}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
