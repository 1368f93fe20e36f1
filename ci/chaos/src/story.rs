//! The log of a run: what was done when, on standard error and in a file.

use crate::wait::{Outcome, now, setup_at};
use std::cell::RefCell;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// Written by one thread.
pub(crate) struct Story {
    begun: Instant,
    file: RefCell<File>,
}

impl Story {
    /// In a new file.
    pub(crate) fn new(path: &Path) -> Outcome<Self> {
        let file = File::create(path).map_err(setup_at("create", path))?;
        Ok(Self {
            begun: now(),
            file: RefCell::new(file),
        })
    }

    /// One line. A log that cannot be written stops nothing.
    pub(crate) fn tell(&self, text: &str) {
        let line = format!("{:8.3} {text}", self.begun.elapsed().as_secs_f64());
        eprintln!("{line}");
        let _ = writeln!(self.file.borrow_mut(), "{line}");
    }
}
