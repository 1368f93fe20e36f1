//! Watching a key of a SQLite file: there is no notification between processes, so it is polled.

use super::{Found, connect, find};
use crate::sqlite::owner::Owner;
use crate::store::{KvVersion, MetaError, Watch};
use rusqlite::Connection;
use std::path::Path;
use std::time::{Duration, Instant};

/// One indexed row twenty times a second costs nothing, and is soon enough for what watches are for.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct SqliteWatch {
    /// Its own, so that it waits without holding up the handle.
    db: Connection,
    key: String,
    here: Owner,
    seen: Option<KvVersion>,
}

impl SqliteWatch {
    pub(super) fn new(path: &Path, key: &str, here: Owner) -> Result<Self, MetaError> {
        let mut watch = Self {
            db: connect(path)?,
            key: key.to_owned(),
            here,
            seen: None,
        };
        watch.seen = watch.version()?;
        Ok(watch)
    }

    fn version(&self) -> Result<Option<KvVersion>, MetaError> {
        Ok(match find(&self.db, &self.key, &self.here)? {
            Found::Row(row) => Some(row.version),
            Found::Absent | Found::Dead => None,
        })
    }
}

impl Watch for SqliteWatch {
    // A shell that owns its clock: it polls in real time.
    #[allow(clippy::disallowed_methods)]
    fn wait(&mut self, timeout: Duration) -> Result<bool, MetaError> {
        let begun = Instant::now();
        loop {
            let now = self.version()?;
            // Versions are never reused, so a key deleted and made again is a change as well.
            if now != self.seen {
                self.seen = now;
                return Ok(true);
            }
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(left.min(POLL));
        }
    }
}
