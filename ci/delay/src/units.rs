//! Times and sizes on the command line: `5ms`, `200us`; `32MiB`, `1500`.

use std::time::Duration;

/// A time with its unit.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "s" => number,
        "ms" => number / 1e3,
        "us" => number / 1e6,
        "" if number == 0.0 => 0.0,
        _ => return Err("a time has a unit: s, ms or us".into()),
    };
    // A minute of delay is a mistake, and would make the queue's bound meaningless.
    if seconds > 60.0 {
        return Err("at most 60s".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Bytes, with a binary unit or none.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text.strip_suffix("/s").unwrap_or(text))?;
    let factor = match unit {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err("units are B, KiB, MiB, GiB".into()),
    };
    let value = number * factor;
    // Exact in an f64, and more than any link or queue has.
    if !(1.0..=1e15).contains(&value) {
        return Err("from 1 to 10^15 bytes".into());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked above
    let whole = value.round() as u64;
    Ok(whole)
}

fn split(text: &str) -> Result<(f64, &str), String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number = text[..end].parse::<f64>();
    let number = number.map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_as_people_write_them() {
        assert_eq!(time("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(time("0.2 ms"), Ok(Duration::from_micros(200)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert_eq!(bytes("32MiB"), Ok(32 << 20));
        assert_eq!(bytes("1.5KiB/s"), Ok(1536));
        for bad in ["", "ms", "5", "-1ms", "61s", "1.2.3ms"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "10GB", "-1", "1e300", "9999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
