//! What ends a run badly.

use std::io;
use std::path::PathBuf;

/// Why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No device.
    #[error("open {path}: {source}")]
    Open {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The device is too small for the threads.
    #[error("{sectors} sectors are too few for {threads} threads")]
    TooSmall {
        /// Of the device.
        sectors: u64,
        /// Wanted.
        threads: u8,
    },
    /// An operation failed.
    #[error("{operation}: {source}")]
    Io {
        /// Which.
        operation: String,
        /// How.
        source: io::Error,
    },
    /// A sector holds what it should not.
    #[error("{operation}: sector {sector} holds {found}, expected {expected}")]
    Content {
        /// The read that found it.
        operation: String,
        /// Where.
        sector: u64,
        /// What is there.
        found: String,
        /// What the model says.
        expected: String,
    },
    /// The command of a re-attach.
    #[error("re-attach: {0}")]
    Reattach(String),
    /// The history.
    #[error("history {path}: {problem}")]
    History {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The checker does not accept what the device holds.
    #[error("the history is not legal: {0} violations")]
    Illegal(u64),
}
