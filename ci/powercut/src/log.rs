//! Reads the log of the device mapper's log-writes target, entry by entry.
//!
//! Units are the sectors of the log's head, all integers little-endian (`drivers/md/dm-log-writes.c`):
//!
//! ```text
//! sector 0: magic u64, version u64, number of entries u64, bytes of a sector u32
//! entry:    first sector u64, sectors u64, flags u64, bytes of inline data u64, [inline data of a mark]
//!           padded to one sector; then the data, except for discards
//! ```
//!
//! Order: a write that is neither FLUSH nor FUA is logged when the next FLUSH completes, before it; FUA
//! writes are logged when they complete. So the entries up to a FLUSH are what was durable then, and of
//! those between two FLUSHes the ones without FUA may be missing in any subset at a cut before the second.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// One I/O of the block layer is far smaller; a larger length is damage.
const ENTRY_BYTES_MAX: u64 = 64 << 20;

/// What happened to the device.
#[derive(Debug)]
pub(crate) enum Action {
    /// Bytes at a position; with `fua` durable on completion.
    Write { data: Vec<u8>, fua: bool },
    /// Nobody may rely on the content any more.
    Discard { bytes: u64 },
    /// A text that the test put there.
    Mark(String),
    /// A flush without data.
    Nothing,
}

/// One entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    /// Everything logged before was durable before this (but not its own data).
    pub(crate) flush: bool,
    pub(crate) action: Action,
}

impl Entry {
    /// Something is durable after it that was not before.
    pub(crate) fn hardens(&self) -> bool {
        self.flush || matches!(self.action, Action::Write { fua: true, .. })
    }
}

/// It is no log, or a damaged one.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub(crate) struct LogError {
    path: PathBuf,
    problem: String,
}

/// A log being read.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    sector_bytes: u64,
    entries: u64,
    next: u64,
    position: u64,
}

impl Log {
    pub(crate) fn open(path: &Path) -> Result<Self, LogError> {
        let failure = |problem: String| LogError {
            path: path.to_owned(),
            problem,
        };
        let file = File::open(path).map_err(|error| failure(error.to_string()))?;
        let mut head = [0; 28];
        file.read_exact_at(&mut head, 0)
            .map_err(|error| failure(error.to_string()))?;
        if (word(&head, 0), word(&head, 1)) != (MAGIC, VERSION) {
            return Err(failure("no log of version 1 begins here".into()));
        }
        let sector_bytes = word(&head, 3) & 0xffff_ffff;
        if ![512, 4096].contains(&sector_bytes) {
            return Err(failure(format!("sectors of {sector_bytes} bytes")));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            sector_bytes,
            entries: word(&head, 2),
            next: 0,
            position: sector_bytes,
        })
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// The next entry; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LogError> {
        if self.next == self.entries {
            return Ok(None);
        }
        let entry = self.read();
        entry.map(Some).map_err(|error| LogError {
            path: self.path.clone(),
            problem: format!("entry {} of {}: {error}", self.next, self.entries),
        })
    }

    fn read(&mut self) -> io::Result<Entry> {
        let mut head = vec![0; usize::try_from(self.sector_bytes).unwrap_or(512)];
        self.file.read_exact_at(&mut head, self.position)?;
        self.position += self.sector_bytes;
        self.next += 1;
        let (sector, sectors, flags, inline) = (
            word(&head, 0),
            word(&head, 1),
            word(&head, 2),
            word(&head, 3),
        );
        let bytes = sectors.saturating_mul(self.sector_bytes);
        let action = if flags & MARK != 0 {
            let text = usize::try_from(inline)
                .ok()
                .and_then(|bytes| head.get(32..32 + bytes));
            let text = text.ok_or_else(|| io::Error::other("a mark of too many bytes"))?;
            Action::Mark(
                String::from_utf8_lossy(text)
                    .trim_end_matches('\0')
                    .to_owned(),
            )
        } else if flags & DISCARD != 0 {
            Action::Discard { bytes }
        } else if bytes == 0 {
            Action::Nothing
        } else if bytes > ENTRY_BYTES_MAX {
            return Err(io::Error::other(format!("a write of {bytes} bytes")));
        } else {
            let mut data = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut data, self.position)?;
            self.position += bytes;
            let fua = flags & FUA != 0;
            Action::Write { data, fua }
        };
        Ok(Entry {
            position: sector * self.sector_bytes,
            flush: flags & FLUSH != 0,
            action,
        })
    }
}

fn word(bytes: &[u8], index: usize) -> u64 {
    let mut out = [0; 8];
    for (out, byte) in out.iter_mut().zip(&bytes[index * 8..]) {
        *out = *byte;
    }
    u64::from_le_bytes(out)
}
