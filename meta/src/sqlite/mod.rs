//! The store in a SQLite file: the embedded default for one machine with many processes.
//!
//! Write-ahead log with full synchronisation: a committed transaction survives power loss. Each
//! handle is one connection; a transaction takes the write lock at its start, so its conditions
//! hold until it commits. Ephemeral keys belong to a session row with a lease, see `owner`.

mod owner;
mod watch;

use crate::store::{CommitError, KvVersion, MetaError, MetaStore, Value, Watch, Write, check_size};
use owner::{Owner, uptime_ms};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a stopped process keeps its ephemeral keys. Well above the pauses of a busy machine.
const LEASE: Duration = Duration::from_secs(6);
/// How long a transaction waits for other processes' transactions, which take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Each try fails only if yet another process opens the new file in the same moment.
const WAL_TRIES_MAX: usize = 32;
/// Marks the file as ours in its header: "UKAI".
const APPLICATION_ID: i64 = 0x554b_4149;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS kv (
    key TEXT PRIMARY KEY, bytes BLOB NOT NULL, version INTEGER NOT NULL, session INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS session (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, namespace TEXT NOT NULL,
    pid INTEGER NOT NULL, started INTEGER NOT NULL, deadline_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL);
INSERT OR IGNORE INTO counter VALUES (1, 0);
";

/// A handle: one client of the file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    owner: Owner,
    lease: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: Connection,
    /// Made with the first ephemeral key.
    session: Option<i64>,
    expired: bool,
}

impl SqliteStore {
    /// Opens the file, and makes it if it is not there.
    pub fn open(path: &Path) -> Result<Self, MetaError> {
        Self::open_with_lease(path, LEASE)
    }

    /// Opens the file with another lease than the default, for tests of expiry.
    pub fn open_with_lease(path: &Path, lease: Duration) -> Result<Self, MetaError> {
        let said = |error: &dyn std::fmt::Display| {
            MetaError::Backend(format!("{}: {error}", path.display()))
        };
        Ok(Self {
            path: path.to_owned(),
            owner: Owner::this_process().map_err(|error| said(&error))?,
            lease,
            inner: Mutex::new(Inner {
                db: connect(path)?,
                session: None,
                expired: false,
            }),
        })
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, MetaError> {
        // A panic in the middle of a transaction rolls it back; the connection stays good.
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.expired {
            return Err(MetaError::SessionExpired);
        }
        Ok(inner)
    }
}

/// A connection to a file that is surely ours.
fn connect(path: &Path) -> Result<Connection, MetaError> {
    let said = |error: &dyn std::fmt::Display, advice: &str| {
        MetaError::Backend(format!("{}: {error}{advice}", path.display()))
    };
    let db = Connection::open(path)
        .map_err(|error| said(&error, "; its directory must exist and be writable"))?;
    match prepare(&db) {
        Ok(true) => Ok(db),
        Ok(false) => Err(said(
            &"a SQLite file of another program",
            "; give another path",
        )),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => Err(said(
            &error,
            "; give the path of a UKAI metadata file or of a new one",
        )),
        Err(error) => Err(said(&error, "")),
    }
}

/// Settings of the connection, and the tables if the file is new. `false`: it is not ours, and was not
/// touched.
fn prepare(db: &Connection) -> rusqlite::Result<bool> {
    db.busy_timeout(BUSY_TIMEOUT)?;
    let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
    // The mark is written in the same transaction as the tables, so without it the file is either
    // new (no tables) or someone else's; or another process makes it between the two questions.
    let marked = || Ok::<_, rusqlite::Error>(number("PRAGMA application_id")? == APPLICATION_ID);
    let new = !marked()?;
    if new && number("SELECT count(*) FROM sqlite_schema")? > 0 && !marked()? {
        return Ok(false);
    }
    set_write_ahead_log(db)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    if new {
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
        ))?;
    }
    Ok(true)
}

/// Several processes that open a new file at once hinder each other here, without the usual waiting.
fn set_write_ahead_log(db: &Connection) -> rusqlite::Result<()> {
    let set = || {
        db.query_row("PRAGMA journal_mode = WAL", [], |row| {
            row.get::<_, String>(0)
        })
    };
    let mut mode = set();
    for _ in 0..WAL_TRIES_MAX {
        match &mode {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                // Waits for whoever holds the file.
                db.execute_batch("BEGIN IMMEDIATE; COMMIT;")?;
                mode = set();
            }
            _ => break,
        }
    }
    let mode = mode?;
    if mode != "wal" {
        log::warn!("metadata file without write-ahead log ({mode}): processes wait for each other");
    }
    Ok(())
}

fn backend(error: rusqlite::Error) -> MetaError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            MetaError::Unavailable(format!("other processes keep the file locked ({error})"))
        }
        _ => MetaError::Backend(error.to_string()),
    }
}

fn clock() -> Result<i64, MetaError> {
    uptime_ms().map_err(|error| MetaError::Backend(error.to_string()))
}

/// A key's row, if it is there and its session lives.
struct Row {
    version: KvVersion,
    bytes: Vec<u8>,
}

enum Found {
    Absent,
    /// Still in the table, but its session is over.
    Dead,
    Row(Row),
}

fn find(db: &Connection, key: &str, here: &Owner) -> Result<Found, MetaError> {
    let mut statement = db
        .prepare_cached("SELECT version, bytes, session FROM kv WHERE key = ?1")
        .map_err(backend)?;
    let row: Option<(i64, Vec<u8>, Option<i64>)> = statement
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()
        .map_err(backend)?;
    let Some((version, bytes, session)) = row else {
        return Ok(Found::Absent);
    };
    if let Some(session) = session
        && !session_lives(db, session, here)?
    {
        return Ok(Found::Dead);
    }
    Ok(Found::Row(Row {
        version: KvVersion(version),
        bytes,
    }))
}

fn session_lives(db: &Connection, session: i64, here: &Owner) -> Result<bool, MetaError> {
    let mut statement = db
        .prepare_cached(
            "SELECT boot, namespace, pid, started, deadline_ms FROM session WHERE id = ?1",
        )
        .map_err(backend)?;
    let row = statement
        .query_row([session], |row| {
            let owner = Owner {
                boot: row.get(0)?,
                namespace: row.get(1)?,
                pid: row.get(2)?,
                started: row.get(3)?,
            };
            Ok((owner, row.get::<_, i64>(4)?))
        })
        .optional()
        .map_err(backend)?;
    Ok(match row {
        Some((owner, deadline_ms)) => !owner.is_gone(here) && clock()? < deadline_ms,
        None => false,
    })
}

impl Inner {
    /// Extends the lease of this handle's session, or makes the session. An own session that ran out
    /// is over for good, because others may have seen its keys vanish.
    fn hold_session(&mut self, owner: &Owner, lease: Duration) -> Result<i64, MetaError> {
        let now = clock()?;
        let deadline = now + i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        if let Some(session) = self.session {
            let renewed = self
                .db
                .prepare_cached(
                    "UPDATE session SET deadline_ms = ?1 WHERE id = ?2 AND deadline_ms > ?3",
                )
                .and_then(|mut statement| statement.execute([deadline, session, now]))
                .map_err(backend)?;
            if renewed == 0 {
                self.expired = true;
                return Err(MetaError::SessionExpired);
            }
            return Ok(session);
        }
        self.bury_dead_sessions(owner)?;
        self.db
            .execute(
                "INSERT INTO session (boot, namespace, pid, started, deadline_ms) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                rusqlite::params![
                    owner.boot,
                    owner.namespace,
                    owner.pid,
                    owner.started,
                    deadline
                ],
            )
            .map_err(backend)?;
        let session = self.db.last_insert_rowid();
        self.session = Some(session);
        Ok(session)
    }

    /// Removes what sessions that are over have left, so that it does not pile up.
    fn bury_dead_sessions(&mut self, here: &Owner) -> Result<(), MetaError> {
        let txn = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(backend)?;
        let sessions: Vec<i64> = txn
            .prepare_cached("SELECT id FROM session")
            .and_then(|mut statement| {
                let ids = statement.query_map([], |row| row.get(0))?;
                ids.collect()
            })
            .map_err(backend)?;
        for session in sessions {
            if !session_lives(&txn, session, here)? {
                run(&txn, "DELETE FROM kv WHERE session = ?1", &[&session])?;
                run(&txn, "DELETE FROM session WHERE id = ?1", &[&session])?;
            }
        }
        txn.commit().map_err(backend)
    }

    /// Like [`Inner::hold_session`], if there is a session; it keeps a handle whose session ended
    /// from acting as if nothing had happened.
    fn check_session(&mut self) -> Result<(), MetaError> {
        let Some(session) = self.session else {
            return Ok(());
        };
        let now = clock()?;
        let lives: Option<i64> = self
            .db
            .prepare_cached("SELECT id FROM session WHERE id = ?1 AND deadline_ms > ?2")
            .and_then(|mut statement| {
                statement
                    .query_row([session, now], |row| row.get(0))
                    .optional()
            })
            .map_err(backend)?;
        if lives.is_none() {
            self.expired = true;
            return Err(MetaError::SessionExpired);
        }
        Ok(())
    }
}

/// Applies the members inside the transaction; a condition that does not hold ends it.
fn apply(
    txn: &Transaction<'_>,
    writes: &[Write],
    session: Option<i64>,
    here: &Owner,
) -> Result<Vec<KvVersion>, CommitError> {
    let mut versions = Vec::with_capacity(writes.len());
    for write in writes {
        let key = write.key();
        let conflict = || CommitError::Conflict {
            key: key.to_owned(),
        };
        let found = match find(txn, key, here)? {
            Found::Absent => None,
            Found::Dead => {
                run(txn, "DELETE FROM kv WHERE key = ?1", &[&key])?;
                None
            }
            Found::Row(row) => Some(row.version),
        };
        match write {
            Write::Create { .. } if found.is_some() => return Err(conflict()),
            Write::Create { .. } => {}
            Write::Set { expected, .. }
            | Write::Delete { expected, .. }
            | Write::Check { expected, .. } => {
                if found != Some(*expected) {
                    return Err(conflict());
                }
            }
        }
        if let Write::Check { expected, .. } = write {
            versions.push(*expected);
            continue;
        }
        let next: i64 = txn
            .prepare_cached("UPDATE counter SET version = version + 1 RETURNING version")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(backend)?;
        match write {
            Write::Create {
                bytes, ephemeral, ..
            } => {
                let session = if *ephemeral { session } else { None };
                run(
                    txn,
                    "INSERT INTO kv (key, bytes, version, session) VALUES (?1, ?2, ?3, ?4)",
                    &[&key, bytes, &next, &session],
                )?;
            }
            Write::Set { bytes, .. } => run(
                txn,
                "UPDATE kv SET bytes = ?2, version = ?3 WHERE key = ?1",
                &[&key, bytes, &next],
            )?,
            Write::Delete { .. } => run(txn, "DELETE FROM kv WHERE key = ?1", &[&key])?,
            Write::Check { .. } => {}
        }
        versions.push(KvVersion(next));
    }
    Ok(versions)
}

fn run(txn: &Transaction<'_>, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<(), MetaError> {
    txn.prepare_cached(sql)
        .and_then(|mut statement| statement.execute(values))
        .map(|_| ())
        .map_err(backend)
}

impl MetaStore for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Value>, MetaError> {
        let inner = self.lock()?;
        Ok(match find(&inner.db, key, &self.owner)? {
            Found::Row(row) => Some(Value {
                bytes: row.bytes,
                version: row.version,
            }),
            Found::Absent | Found::Dead => None,
        })
    }

    fn list(&self, key: &str) -> Result<Vec<String>, MetaError> {
        let inner = self.lock()?;
        let prefix = format!("{key}/");
        let mut statement = inner
            .db
            // '0' follows '/' in ASCII, so this is exactly what begins with the prefix.
            .prepare_cached("SELECT key, session FROM kv WHERE key > ?1 || '/' AND key < ?1 || '0'")
            .map_err(backend)?;
        let rows = statement
            .query_map([key], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?))
            })
            .map_err(backend)?;
        let mut children = std::collections::BTreeSet::new();
        for row in rows {
            let (key, session) = row.map_err(backend)?;
            let lives = match session {
                Some(session) => session_lives(&inner.db, session, &self.owner)?,
                None => true,
            };
            if let (true, Some(rest)) = (lives, key.strip_prefix(&prefix)) {
                children.extend(rest.split('/').next().map(str::to_owned));
            }
        }
        Ok(children.into_iter().collect())
    }

    fn commit(&self, writes: &[Write]) -> Result<Vec<KvVersion>, CommitError> {
        check_size(writes)?;
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        let ephemeral = |write: &Write| {
            matches!(
                write,
                Write::Create {
                    ephemeral: true,
                    ..
                }
            )
        };
        // The session row is committed before the keys that need it; without them it does nothing.
        let session = if writes.iter().any(ephemeral) {
            Some(inner.hold_session(&self.owner, self.lease)?)
        } else {
            inner.check_session()?;
            inner.session
        };
        let txn = inner
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(backend)?;
        let versions = apply(&txn, writes, session, &self.owner)?;
        txn.commit()
            .map_err(|error| match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DiskFull) => {
                    CommitError::Store(backend(error))
                }
                // It may have reached the log before the error.
                _ => {
                    log::error!("commit to {}: {error}", self.path.display());
                    CommitError::Unknown
                }
            })?;
        Ok(versions)
    }

    fn watch(&self, key: &str) -> Result<Box<dyn Watch>, MetaError> {
        drop(self.lock()?);
        Ok(Box::new(watch::SqliteWatch::new(
            &self.path,
            key,
            self.owner.clone(),
        )?))
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    fn renew(&self) -> Result<(), MetaError> {
        let mut inner = self.lock()?;
        if inner.session.is_some() {
            inner.hold_session(&self.owner, self.lease)?;
        }
        Ok(())
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(session) = inner.session else {
            return;
        };
        // If this fails the process's end, or the lease's, does the same.
        let ended = inner.db.execute_batch(&format!(
            "BEGIN IMMEDIATE; DELETE FROM kv WHERE session = {session}; \
             DELETE FROM session WHERE id = {session}; COMMIT;"
        ));
        if let Err(error) = ended {
            log::warn!("ending a session of {}: {error}", self.path.display());
        }
    }
}
