//! The seam to the metadata store: a small, versioned key-value store with conditional
//! multi-key transactions, ephemeral keys and watches. One conformance suite runs on all backends.
//!
//! Calls block (bounded by the backend's timeout); daemons call from a control thread, never from
//! the data path (I8).

use std::time::Duration;

/// Largest value a key may hold. ZooKeeper refuses 1 MiB *with a reconnect of the whole session*;
/// half of it leaves room for a transaction's other members.
pub const VALUE_BYTES_MAX: usize = 512 << 10;
/// Largest sum of values in one transaction, for the same limit.
pub const TXN_BYTES_MAX: usize = 768 << 10;
/// Writes in one transaction.
pub const TXN_WRITES_MAX: usize = 100;

/// Longest key: ours are below 100 bytes.
pub const KEY_BYTES_MAX: usize = 256;

/// Version of a key's value, for conditional writes. Grows with each write of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KvVersion(pub i64);

/// A value read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Content.
    pub bytes: Vec<u8>,
    /// For the condition of a later write.
    pub version: KvVersion,
}

/// One member of a transaction. All conditions hold and all writes happen, or none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The key must be absent. Ephemeral keys vanish with the session (ZooKeeper) or lease (others).
    Create {
        /// Key.
        key: String,
        /// Content.
        bytes: Vec<u8>,
        /// Vanishes with this store handle's session.
        ephemeral: bool,
    },
    /// The key must have this version.
    Set {
        /// Key.
        key: String,
        /// Content.
        bytes: Vec<u8>,
        /// Condition.
        expected: KvVersion,
    },
    /// The key must have this version; it is deleted.
    Delete {
        /// Key.
        key: String,
        /// Condition.
        expected: KvVersion,
    },
    /// Only a condition.
    Check {
        /// Key.
        key: String,
        /// Condition.
        expected: KvVersion,
    },
}

impl Write {
    /// The key it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Create { key, .. }
            | Self::Set { key, .. }
            | Self::Delete { key, .. }
            | Self::Check { key, .. } => key,
        }
    }

    /// The content it writes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Create { bytes, .. } | Self::Set { bytes, .. } => bytes,
            Self::Delete { .. } | Self::Check { .. } => &[],
        }
    }
}

/// Refuses what is above the limits of this module; every backend calls it before it sends anything.
pub fn check_size(writes: &[Write]) -> Result<(), CommitError> {
    let too_large = |text: String| Err(CommitError::TooLarge(text));
    if writes.is_empty() || writes.len() > TXN_WRITES_MAX {
        return too_large(format!(
            "{} writes, 1 to {TXN_WRITES_MAX} are possible",
            writes.len()
        ));
    }
    let mut sum = 0;
    for write in writes {
        let (key, bytes) = (write.key(), write.bytes().len());
        if key.len() > KEY_BYTES_MAX || !valid_key(key) {
            return too_large(format!("{key:?} is no key"));
        }
        if bytes > VALUE_BYTES_MAX {
            return too_large(format!(
                "{bytes} bytes for key {key}, {VALUE_BYTES_MAX} are possible"
            ));
        }
        sum += bytes;
    }
    if sum > TXN_BYTES_MAX {
        return too_large(format!(
            "{sum} bytes together, {TXN_BYTES_MAX} are possible"
        ));
    }
    Ok(())
}

/// No empty component, no leading or trailing slash, nothing that ZooKeeper forbids.
fn valid_key(key: &str) -> bool {
    key.split('/')
        .all(|part| !part.is_empty() && part != "." && part != ".." && part != "zookeeper")
        && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The store could not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Not reachable (in time). For reads: try again later.
    #[error("metadata store unreachable: {0}")]
    Unavailable(String),
    /// The session is over: ephemeral keys are gone; open a new store.
    #[error("metadata session expired")]
    SessionExpired,
    /// A value that cannot be what it should be.
    #[error("metadata key {key} is damaged: {problem}")]
    Corrupt {
        /// Key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The backend refused (permissions, a full disk, a file that is no database...).
    #[error("metadata store failed: {0}")]
    Backend(String),
}

/// A transaction that did not (surely) happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A condition did not hold; nothing was written.
    #[error("someone else changed key {key} first")]
    Conflict {
        /// The first member whose condition failed.
        key: String,
    },
    /// The connection was lost while waiting: it may or may not have happened. Re-read, then decide.
    #[error("outcome of the metadata transaction is unknown")]
    Unknown,
    /// Above the limits of this module; nothing was sent.
    #[error("metadata transaction too large: {0}")]
    TooLarge(String),
    /// Surely not written.
    #[error(transparent)]
    Store(#[from] MetaError),
}

/// A watch on one key. It may fire late or more often than needed, but after any change of the key
/// that followed its creation it fires at least once; after firing it goes on watching.
pub trait Watch: Send {
    /// Wait for a change (or loss and return of the connection, which counts as one).
    /// `false`: nothing happened within `timeout`.
    fn wait(&mut self, timeout: Duration) -> Result<bool, MetaError>;
}

/// The store. Keys are `/`-separated without a leading slash; parents come into being by themselves.
pub trait MetaStore: Send + Sync {
    /// Linearizable read.
    fn get(&self, key: &str) -> Result<Option<Value>, MetaError>;
    /// Names of the direct children of `key`, sorted.
    fn list(&self, key: &str) -> Result<Vec<String>, MetaError>;
    /// Commit; returns the new version of each member's key (that of a deleted key is meaningless).
    fn commit(&self, writes: &[Write]) -> Result<Vec<KvVersion>, CommitError>;
    /// Watch a key, which need not exist.
    fn watch(&self, key: &str) -> Result<Box<dyn Watch>, MetaError>;
    /// How long ephemeral keys survive a holder that stopped.
    fn lease(&self) -> Duration;
    /// Extends the lease of this handle's ephemeral keys, if the backend does not by itself; call
    /// at least three times per lease. An error means: assume the lease runs out on your own clock.
    fn renew(&self) -> Result<(), MetaError>;
}

/// Where the metadata is: the value of `--meta` and of `UKAI_META`.
///
/// `sqlite:/path/file.db`, `zk:host:port,host:port/chroot`, or `memory:` (tests).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaUrl {
    /// SQLite file.
    Sqlite(std::path::PathBuf),
    /// ZooKeeper servers with an optional chroot.
    Zookeeper(String),
    /// Private to the process.
    Memory,
}

/// Text that is no metadata URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no metadata store; use sqlite:/path/meta.db or zk:host:2181,host2:2181/chroot"
)]
pub struct MetaUrlError(String);

impl std::str::FromStr for MetaUrl {
    type Err = MetaUrlError;
    fn from_str(text: &str) -> Result<Self, MetaUrlError> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("zk", servers)) if !servers.is_empty() => Ok(Self::Zookeeper(servers.into())),
            Some(("memory", "")) => Ok(Self::Memory),
            _ => Err(MetaUrlError(text.into())),
        }
    }
}
