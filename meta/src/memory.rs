//! The store in memory, for the simulator and for tests: deterministic, with faults on demand.
//!
//! A [`MemoryCluster`] is the servers; each [`MemoryStore`] is one client's session. Time does not
//! pass here: sessions end when they are dropped or told to [`MemoryStore::expire`], never by a clock.

use crate::store::{CommitError, KvVersion, MetaError, MetaStore, Value, Watch, Write, check_size};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What shall happen to a coming commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFault {
    /// Not sent: [`MetaError::Unavailable`].
    Unavailable,
    /// Done (if its conditions held), but the answer was lost: [`CommitError::Unknown`].
    UnknownLanded,
    /// Lost on the way: [`CommitError::Unknown`].
    UnknownLost,
}

#[derive(Debug)]
struct Entry {
    bytes: Vec<u8>,
    version: KvVersion,
    /// The session whose end deletes it.
    session: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    keys: BTreeMap<String, Entry>,
    /// Versions are never reused, also not by a key that was deleted and made again.
    last_version: i64,
    last_session: u64,
    /// Number of changes of each key ever, for watches.
    changes: BTreeMap<String, u64>,
    /// While held, watches do not see changes.
    held: Option<BTreeMap<String, u64>>,
    unavailable: BTreeSet<u64>,
    expired: BTreeSet<u64>,
    /// Bumped when a session's connection returns: its watches fire.
    reconnects: BTreeMap<u64, u64>,
    faults: BTreeMap<u64, VecDeque<CommitFault>>,
    /// What clients see whose server lags behind.
    lagging: BTreeMap<u64, BTreeMap<String, Value>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The servers.
#[derive(Clone, Debug, Default)]
pub struct MemoryCluster(Arc<Shared>);

impl MemoryCluster {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A new client.
    #[must_use]
    pub fn session(&self) -> MemoryStore {
        let mut state = self.0.lock();
        state.last_session += 1;
        MemoryStore {
            shared: self.0.clone(),
            session: state.last_session,
        }
    }

    /// Watches see nothing from now on.
    pub fn hold_watches(&self) {
        let mut state = self.0.lock();
        if state.held.is_none() {
            state.held = Some(state.changes.clone());
        }
    }

    /// Watches see what they missed.
    pub fn release_watches(&self) {
        self.0.lock().held = None;
        self.0.changed.notify_all();
    }

    /// Watches never see what happened since [`MemoryCluster::hold_watches`]. This breaks the
    /// contract of [`Watch`] on purpose: correctness must not depend on watches.
    pub fn lose_watches(&self) {
        let mut state = self.0.lock();
        if let Some(held) = state.held.take() {
            state.changes = held;
        }
    }

    /// Every key with its content, for checkers.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.lock();
        let entry = |(key, entry): (&String, &Entry)| (key.clone(), entry.bytes.clone());
        state.keys.iter().map(entry).collect()
    }

    /// Overwrites a key behind everyone's back (bit rot), keeping its version.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(entry) = self.0.lock().keys.get_mut(key) {
            change(&mut entry.bytes);
        }
    }
}

/// One client. Dropping it ends its session.
#[derive(Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    session: u64,
}

impl MemoryStore {
    /// Cuts this client off (or connects it again). Its session does not end by itself.
    pub fn set_unavailable(&self, unavailable: bool) {
        let mut state = self.shared.lock();
        if unavailable {
            state.unavailable.insert(self.session);
        } else if state.unavailable.remove(&self.session) {
            *state.reconnects.entry(self.session).or_default() += 1;
            self.shared.changed.notify_all();
        }
    }

    /// What shall happen to this client's next commits, in order. Commits after them are normal.
    pub fn inject(&self, fault: CommitFault) {
        let mut state = self.shared.lock();
        state
            .faults
            .entry(self.session)
            .or_default()
            .push_back(fault);
    }

    /// Its server falls behind: reads see the present state from now on, until the client learns of a
    /// commit of its own (a server answers one only after it has caught up) or [`MemoryStore::catch_up`]. A
    /// client never sees time go back.
    pub fn lag(&self) {
        let mut state = self.shared.lock();
        if state.lagging.contains_key(&self.session) {
            return;
        }
        let now = state.keys.iter().map(|(key, entry)| {
            let bytes = entry.bytes.clone();
            let version = entry.version;
            (key.clone(), Value { bytes, version })
        });
        let now = now.collect();
        state.lagging.insert(self.session, now);
    }

    /// Its server has caught up.
    pub fn catch_up(&self) {
        self.shared.lock().lagging.remove(&self.session);
    }

    /// The servers give the session up: its ephemeral keys vanish, and each of its calls fails.
    pub fn expire(&self) {
        let mut state = self.shared.lock();
        state.expired.insert(self.session);
        state.end(self.session);
        self.shared.changed.notify_all();
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.end(self.session);
        state.unavailable.remove(&self.session);
        state.faults.remove(&self.session);
        state.lagging.remove(&self.session);
        self.shared.changed.notify_all();
    }
}

impl State {
    fn end(&mut self, session: u64) {
        let gone: Vec<String> = self
            .keys
            .iter()
            .filter(|(_, entry)| entry.session == Some(session))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.keys.remove(&key);
            self.touch(&key);
        }
    }

    /// Changes of the key that watches may see.
    fn visible(&self, key: &str) -> u64 {
        let visible = self.held.as_ref().unwrap_or(&self.changes);
        visible.get(key).copied().unwrap_or(0)
    }

    fn touch(&mut self, key: &str) {
        *self.changes.entry(key.to_owned()).or_default() += 1;
    }

    fn check_session(&self, session: u64) -> Result<(), MetaError> {
        if self.unavailable.contains(&session) {
            return Err(MetaError::Unavailable("cut off".into()));
        }
        if self.expired.contains(&session) {
            return Err(MetaError::SessionExpired);
        }
        Ok(())
    }

    fn commit(&mut self, session: u64, writes: &[Write]) -> Result<Vec<KvVersion>, CommitError> {
        // Conditions see the transaction's earlier members, as in ZooKeeper; a failing one undoes
        // them. Keys are few, so the undo is a copy of the touched ones.
        let mut staged: BTreeMap<&str, Option<Entry>> = BTreeMap::new();
        let mut versions = Vec::with_capacity(writes.len());
        let mut last_version = self.last_version;
        for write in writes {
            let key = write.key();
            let now = match staged.get(key) {
                Some(staged) => staged.as_ref(),
                None => self.keys.get(key),
            }
            .map(|entry| (entry.version, entry.session));
            let holds = match write {
                Write::Create { .. } => now.is_none(),
                Write::Set { expected, .. }
                | Write::Delete { expected, .. }
                | Write::Check { expected, .. } => {
                    now.is_some_and(|(version, _)| version == *expected)
                }
            };
            if !holds {
                return Err(CommitError::Conflict {
                    key: key.to_owned(),
                });
            }
            last_version += 1;
            let next = KvVersion(last_version);
            let (bytes, session) = match write {
                Write::Create {
                    bytes, ephemeral, ..
                } => (bytes, ephemeral.then_some(session)),
                Write::Set { bytes, .. } => (bytes, now.and_then(|(_, session)| session)),
                Write::Delete { .. } => {
                    staged.insert(key, None);
                    versions.push(next);
                    continue;
                }
                Write::Check { expected, .. } => {
                    versions.push(*expected);
                    continue;
                }
            };
            let entry = Entry {
                bytes: bytes.clone(),
                version: next,
                session,
            };
            staged.insert(key, Some(entry));
            versions.push(next);
        }
        self.last_version = last_version;
        for (key, entry) in staged {
            match entry {
                Some(entry) => self.keys.insert(key.to_owned(), entry),
                None => self.keys.remove(key),
            };
            self.touch(key);
        }
        Ok(versions)
    }
}

impl MetaStore for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Value>, MetaError> {
        let state = self.shared.lock();
        state.check_session(self.session)?;
        if let Some(keys) = state.lagging.get(&self.session) {
            return Ok(keys.get(key).cloned());
        }
        Ok(state.keys.get(key).map(|entry| Value {
            bytes: entry.bytes.clone(),
            version: entry.version,
        }))
    }

    fn list(&self, key: &str) -> Result<Vec<String>, MetaError> {
        let state = self.shared.lock();
        state.check_session(self.session)?;
        let prefix = format!("{key}/");
        fn children<V>(keys: &BTreeMap<String, V>, prefix: &str) -> Vec<String> {
            let children: BTreeSet<&str> = keys
                .range(prefix.to_owned()..)
                .map_while(|(key, _)| key.strip_prefix(prefix))
                .filter_map(|rest| rest.split('/').next())
                .collect();
            children.into_iter().map(str::to_owned).collect()
        }
        Ok(match state.lagging.get(&self.session) {
            Some(keys) => children(keys, &prefix),
            None => children(&state.keys, &prefix),
        })
    }

    fn commit(&self, writes: &[Write]) -> Result<Vec<KvVersion>, CommitError> {
        check_size(writes)?;
        let mut state = self.shared.lock();
        state.check_session(self.session)?;
        let fault = state
            .faults
            .get_mut(&self.session)
            .and_then(VecDeque::pop_front);
        match fault {
            Some(CommitFault::Unavailable) => {
                return Err(MetaError::Unavailable("injected".into()).into());
            }
            Some(CommitFault::UnknownLost) => return Err(CommitError::Unknown),
            Some(CommitFault::UnknownLanded) | None => {}
        }
        let result = state.commit(self.session, writes);
        if fault.is_none() {
            state.lagging.remove(&self.session);
        }
        self.shared.changed.notify_all();
        if fault == Some(CommitFault::UnknownLanded) {
            return Err(CommitError::Unknown);
        }
        result
    }

    fn watch(&self, key: &str) -> Result<Box<dyn Watch>, MetaError> {
        let state = self.shared.lock();
        state.check_session(self.session)?;
        Ok(Box::new(MemoryWatch {
            shared: self.shared.clone(),
            session: self.session,
            key: key.to_owned(),
            // What a watch made while watches are held missed comes late, like the rest.
            seen: state.visible(key),
            reconnects: state.reconnects.get(&self.session).copied().unwrap_or(0),
        }))
    }

    fn lease(&self) -> Duration {
        Duration::from_secs(6)
    }

    fn renew(&self) -> Result<(), MetaError> {
        self.shared.lock().check_session(self.session)
    }
}

#[derive(Debug)]
struct MemoryWatch {
    shared: Arc<Shared>,
    session: u64,
    key: String,
    seen: u64,
    reconnects: u64,
}

impl Watch for MemoryWatch {
    fn wait(&mut self, timeout: Duration) -> Result<bool, MetaError> {
        let shared = self.shared.clone();
        let news = |state: &State| {
            let changes = state.visible(&self.key);
            let reconnects = state.reconnects.get(&self.session).copied().unwrap_or(0);
            (changes, reconnects)
        };
        let idle = |state: &mut State| {
            let (changes, reconnects) = news(state);
            let cut_off = state.unavailable.contains(&self.session);
            let fired = changes > self.seen || reconnects > self.reconnects;
            !state.expired.contains(&self.session) && (cut_off || !fired)
        };
        let mut state = shared.lock();
        // A zero timeout never blocks: the simulator polls like this.
        if !timeout.is_zero() {
            (state, _) = shared
                .changed
                .wait_timeout_while(state, timeout, idle)
                .unwrap_or_else(PoisonError::into_inner);
        } else if idle(&mut state) {
            return Ok(false);
        }
        if state.expired.contains(&self.session) {
            return Err(MetaError::SessionExpired);
        }
        if state.unavailable.contains(&self.session) {
            return Ok(false);
        }
        let (changes, reconnects) = news(&state);
        let fired = changes > self.seen || reconnects > self.reconnects;
        self.seen = self.seen.max(changes);
        self.reconnects = reconnects;
        Ok(fired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(store: &MemoryStore, key: &str) -> Result<Vec<KvVersion>, CommitError> {
        store.commit(&[Write::Create {
            key: key.into(),
            bytes: Vec::new(),
            ephemeral: false,
        }])
    }

    #[test]
    fn a_lagging_client_sees_the_past_until_it_learns_of_a_commit() {
        let cluster = MemoryCluster::new();
        let (one, other) = (cluster.session(), cluster.session());
        one.lag();
        assert!(create(&other, "ukai/a").is_ok());
        assert_eq!(one.get("ukai/a"), Ok(None));
        assert_eq!(one.list("ukai"), Ok(Vec::new()));
        one.inject(CommitFault::UnknownLanded);
        assert_eq!(create(&one, "ukai/b"), Err(CommitError::Unknown));
        assert_eq!(one.get("ukai/b"), Ok(None), "nobody told it");
        assert!(matches!(
            create(&one, "ukai/a"),
            Err(CommitError::Conflict { .. })
        ));
        assert!(one.get("ukai/b").is_ok_and(|value| value.is_some()));
    }
}
