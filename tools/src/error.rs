//! One error for the whole program, because it ends in one place: a message, what to do next, and
//! an exit code that scripts can rely on.
//!
//! | code | meaning |
//! |-|-|
//! | 0 | done |
//! | 1 | refused or failed; nothing was changed unless the message says so |
//! | 2 | the command line makes no sense (a malformed size, range or name) |
//! | 3 | the metadata store cannot be reached |
//! | 4 | no such volume, node, site or file |
//! | 5 | in use: name taken, volume attached, or someone else changed it at the same time |
//! | 6 | a scrub found faults that are not repaired |
//! | 7 | whoever looked on was interrupted; what was begun goes on |

use std::fmt;
use ukai_meta::{CommitError, MetaError};

/// The exit code, and so the kind, of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Refused = 1,
    Usage = 2,
    Unreachable = 3,
    NotFound = 4,
    Busy = 5,
    Damaged = 6,
    Left = 7,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::Unreachable => "metadata-unreachable",
            Self::NotFound => "not-found",
            Self::Busy => "busy",
            Self::Damaged => "damaged",
            Self::Left => "left",
        }
    }
}

/// What happened, and what to do next (one line each).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ToolError {
    pub(crate) kind: Kind,
    pub(crate) what: String,
    pub(crate) next: Option<String>,
}

pub(crate) type Result<T> = std::result::Result<T, ToolError>;

impl ToolError {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            next: None,
        }
    }

    pub(crate) fn refused(what: impl Into<String>) -> Self {
        Self::new(Kind::Refused, what)
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    pub(crate) fn unreachable(what: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, what)
    }

    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, what)
    }

    pub(crate) fn busy(what: impl Into<String>) -> Self {
        Self::new(Kind::Busy, what)
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::new(Kind::Damaged, what)
    }

    pub(crate) fn left(what: impl Into<String>) -> Self {
        Self::new(Kind::Left, what)
    }

    /// The advice; replaces an earlier, more general one.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Say what was being done.
    pub(crate) fn context(mut self, doing: impl fmt::Display) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }

    pub(crate) fn code(&self) -> u8 {
        self.kind as u8
    }

    /// For `--json`, on standard error.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": { "kind": self.kind.name(), "code": self.code(), "message": self.what, "next": self.next }
        })
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

impl From<MetaError> for ToolError {
    fn from(error: MetaError) -> Self {
        let text = error.to_string();
        match error {
            MetaError::Unavailable(_) => Self::new(Kind::Unreachable, text)
                .next("check that the servers named by --meta (or UKAI_META) run and answer"),
            MetaError::SessionExpired => Self::new(Kind::Unreachable, text)
                .next("run the command again; it opens a new session"),
            MetaError::Corrupt { .. } => Self::refused(text)
                .next("nothing was changed; restore this key from a backup of the metadata store"),
            MetaError::Backend(_) => Self::refused(text)
                .next("check the permissions, free space and path of the metadata store"),
        }
    }
}

impl From<CommitError> for ToolError {
    fn from(error: CommitError) -> Self {
        let text = error.to_string();
        match error {
            CommitError::Conflict { .. } => Self::busy(text)
                .next("nothing was changed; look at the volume again and repeat the command"),
            CommitError::Unknown => Self::new(Kind::Unreachable, text)
                .next("look at the volume: the change may or may not have been made; repeating the command is safe"),
            CommitError::TooLarge(_) => {
                Self::refused(text).next("nothing was changed; use smaller ranges")
            }
            CommitError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        assert_eq!(ToolError::refused("x").code(), 1);
        assert_eq!(ToolError::usage("x").code(), 2);
        assert_eq!(
            ToolError::from(MetaError::Unavailable("x".into())).code(),
            3
        );
        assert_eq!(ToolError::not_found("x").code(), 4);
        assert_eq!(ToolError::busy("x").code(), 5);
        assert_eq!(ToolError::damaged("x").code(), 6);
    }

    #[test]
    fn an_error_says_what_to_do_next() {
        let text = ToolError::from(CommitError::Conflict {
            key: "volumes/1/head".into(),
        })
        .to_string();
        assert!(text.starts_with("error: someone else changed key volumes/1/head first\n  next: "));
    }
}
