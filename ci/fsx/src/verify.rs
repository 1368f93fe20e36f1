//! Judges what a device holds after a reset against the history of the runs before.

use crate::device::{Buffer, Device};
use crate::failure::Failure;
use crate::worker::values;
use std::fs;
use std::path::Path;
use ukai_checker::{Event, History, Kind, Mode, Report};

/// Sectors read at once.
const READ_SECTORS: u32 = 256;

/// A history read back.
#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(crate) events: Vec<Event>,
    pub(crate) t: u64,
    pub(crate) op: u64,
}

/// Reads a history. A last line without its end was being written at the reset: it is cut off, from the
/// file as well, so that it can be continued.
pub(crate) fn read(path: &Path) -> Result<Past, Failure> {
    let failure = |problem: String| Failure::History {
        path: path.to_owned(),
        problem,
    };
    let mut text = fs::read(path).map_err(|error| failure(error.to_string()))?;
    let whole = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    if whole < text.len() {
        text.truncate(whole);
        fs::write(path, &text).map_err(|error| failure(error.to_string()))?;
    }
    let mut past = Past::default();
    for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let event: Event = serde_json::from_slice(line)
            .map_err(|error| failure(format!("line {}: {error}", number + 1)))?;
        past.t = past.t.max(event.time());
        if let Event::Invoke { op, .. } = event {
            past.op = past.op.max(op);
        }
        past.events.push(event);
    }
    Ok(past)
}

/// Adds a power cut and a read of the whole device to the history, and checks it.
///
/// What was read is appended to the file: values that it told may not change later.
pub(crate) fn verify(device: &Path, volume: &str, path: &Path) -> Result<Report, Failure> {
    let mut past = read(path)?;
    let device = Device::open(device)?;
    let mut added = vec![Event::PowerCut { t: past.t + 1 }];
    let (mut t, mut op) = (past.t + 1, past.op);
    let mut buffer = Buffer::new(READ_SECTORS);
    let mut sector = 0;
    while sector < device.sectors() {
        let left = device.sectors() - sector;
        let count = u32::try_from(left).map_or(READ_SECTORS, |left| left.min(READ_SECTORS));
        let data = buffer.sectors(count);
        device.read(sector, data).map_err(|source| Failure::Io {
            operation: format!("read sector {sector} count {count}"),
            source,
        })?;
        t += 2;
        op += 1;
        let kind = Kind::Read {
            volume: volume.to_owned(),
            sector,
            count,
        };
        let values = values(data, crate::run::volume_bytes(volume), sector);
        added.push(Event::Invoke { t: t - 1, op, kind });
        added.push(Event::Ok { t, op, values });
        sector += u64::from(count);
    }
    let mut lines = fs::read_to_string(path).unwrap_or_default();
    for event in &added {
        lines += &serde_json::to_string(event).unwrap_or_default();
        lines.push('\n');
    }
    let failure = |problem: String| Failure::History {
        path: path.to_owned(),
        problem,
    };
    fs::write(path, lines).map_err(|error| failure(error.to_string()))?;
    past.events.extend(added);
    check(past.events).map_err(failure)
}

fn check(events: Vec<Event>) -> Result<Report, String> {
    let mut history = History::new(Mode::Flush);
    for event in events {
        history.push(event).map_err(|error| error.to_string())?;
    }
    Ok(history.check())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_checker::Stamp;
    use ukai_checker::stamp::SECTOR_BYTES;

    /// Two sectors, each written twice, the first write of both flushed; then a reset.
    fn verdict(contents: [u64; 2]) -> Report {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let (device, history) = (dir.path().join("device"), dir.path().join("history"));
        let mut bytes = vec![0; 2 * SECTOR_BYTES];
        for (sector, (write_id, out)) in (0..).zip(
            contents
                .into_iter()
                .zip(bytes.chunks_exact_mut(SECTOR_BYTES)),
        ) {
            let volume = crate::run::volume_bytes("v");
            if write_id != 0 {
                Stamp {
                    volume,
                    sector,
                    write_id,
                }
                .write_to(out);
            }
        }
        fs::write(&device, bytes).expect("writes");
        let lines = [
            r#"{"event":"invoke","t":1,"op":1,"kind":"write","volume":"v","sector":0,"count":2,"write":1}"#,
            r#"{"event":"ok","t":2,"op":1}"#,
            r#"{"event":"invoke","t":3,"op":2,"kind":"flush","volume":"v"}"#,
            r#"{"event":"ok","t":4,"op":2}"#,
            r#"{"event":"invoke","t":5,"op":3,"kind":"write","volume":"v","sector":0,"count":2,"write":2}"#,
            r#"{"event":"ok","t":6,"op":3}"#,
            r#"{"event":"invoke","t":7,"op":4,"ki"#,
        ];
        fs::write(&history, lines.join("\n")).expect("writes");
        verify(&device, "v", &history).expect("is a history")
    }

    #[test]
    fn what_was_flushed_must_be_there_and_what_was_not_may_be() {
        assert!(verdict([1, 1]).is_good());
        assert!(verdict([1, 2]).is_good());
        assert!(!verdict([1, 0]).is_good());
        assert!(!verdict([3, 1]).is_good());
    }
}
