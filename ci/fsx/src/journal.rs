//! Writes the history of a run, one JSON line for each event, as `ukai-check` reads it.
//!
//! The machine may be reset at any moment, so a write's line must be out of this machine before the
//! write is: the file then lies on a file system of the host (hostfs, 9p), and each line is pushed through
//! the page cache. A lost "ok" only makes a check weaker; a lost "invoke" would make it wrong.

use crate::failure::Failure;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use ukai_checker::{Event, Kind};

/// Shared by all threads; without a path it keeps nothing.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    inner: Option<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    t: u64,
    op: u64,
}

/// An operation begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun(u64);

impl Journal {
    /// Appends to the history at `path`, after the time and operation given by [`super::verify::read`].
    pub(crate) fn append(path: Option<&Path>, t: u64, op: u64) -> Result<Self, Failure> {
        let Some(path) = path else {
            let path = PathBuf::new();
            return Ok(Self { path, inner: None });
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| Failure::Open {
                path: path.to_owned(),
                source,
            })?;
        let inner = Some(Mutex::new(Inner { file, t, op }));
        let path = path.to_owned();
        Ok(Self { path, inner })
    }

    /// Writes down what begins now.
    pub(crate) fn begin(&self, kind: impl FnOnce() -> Kind) -> Result<Begun, Failure> {
        self.with(|inner| {
            inner.op += 1;
            let (op, kind) = (inner.op, kind());
            inner.put(|t| Event::Invoke { t, op, kind })?;
            Ok(Begun(op))
        })
        .map(|begun| begun.unwrap_or(Begun(0)))
    }

    /// It succeeded.
    pub(crate) fn ok(&self, begun: Begun) -> Result<(), Failure> {
        let (op, values) = (begun.0, Vec::new());
        self.with(|inner| inner.put(|t| Event::Ok { t, op, values }))
            .map(|_| ())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> Result<Option<T>, Failure> {
        let Some(inner) = &self.inner else {
            return Ok(None);
        };
        // A thread that failed inside has written at most a part of a line, and ends the run.
        let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut inner)
            .map(Some)
            .map_err(|source| Failure::History {
                path: self.path.clone(),
                problem: source.to_string(),
            })
    }
}

impl Inner {
    fn put(&mut self, event: impl FnOnce(u64) -> Event) -> io::Result<()> {
        self.t += 1;
        let mut line = serde_json::to_vec(&event(self.t))?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: passes no memory; the descriptor is this file's.
        let result = unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, flags) };
        // Pipes have no page cache to push through.
        if result != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ESPIPE) {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
