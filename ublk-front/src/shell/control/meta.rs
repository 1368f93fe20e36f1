//! The metadata store's threads: its calls block, control must not.
//!
//! One worker does control's loads and commits in order, one watches the volume, one its job, one keeps the
//! front's announcement (an ephemeral record) alive. A session that has expired is replaced by a new
//! one, which all of them use from then on.

#[cfg(test)]
mod announce_test;

use crate::core::api::{MetaId, MetaOutcome};
use crate::shell::clock;
use crate::shell::context::{ControlInput, ControlPort};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use ukai_meta::catalog::{self, CatalogError, JobGuard};
use ukai_meta::transition::MapUpdate;
use ukai_meta::{
    CommitError, FrontRecord, HostLatency, JobRecord, MetaError, MetaStore, MetaUrl, Watch, key,
};
use ukai_proto::{Generation, Token, VolumeId};

/// Requests that may wait: control has one under way.
const WORK_MAX: usize = 16;
/// Pause before a store that failed is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a thread that waits looks whether the front still lives, and whether the watch slept.
const WATCH_SLICE: Duration = Duration::from_secs(2);

/// The store, replaceable when its session has expired.
#[derive(Clone)]
pub struct MetaHandle {
    url: MetaUrl,
    store: Arc<Mutex<Arc<dyn MetaStore>>>,
}

impl std::fmt::Debug for MetaHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MetaHandle({:?})", self.url)
    }
}

impl MetaHandle {
    /// Opens the store.
    pub fn open(url: MetaUrl) -> Result<Self, MetaError> {
        let store = Arc::from(ukai_meta::open(&url)?);
        Ok(Self {
            url,
            store: Arc::new(Mutex::new(store)),
        })
    }

    /// The store of the moment.
    #[must_use]
    pub fn get(&self) -> Arc<dyn MetaStore> {
        Arc::clone(&self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces a store whose session has expired, unless another thread has done so already.
    fn renew(&self, expired: &Arc<dyn MetaStore>) -> Result<(), MetaError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&store, expired) {
            *store = Arc::from(ukai_meta::open(&self.url)?);
        }
        Ok(())
    }

    /// Does something with the store; once more with a new session if the old one has expired.
    fn with<T, E: AsMeta>(&self, act: impl Fn(&dyn MetaStore) -> Result<T, E>) -> Result<T, E> {
        let store = self.get();
        match act(&*store) {
            Err(error) if error.as_meta() == Some(&MetaError::SessionExpired) => {
                if self.renew(&store).is_err() {
                    return Err(error);
                }
                act(&*self.get())
            }
            other => other,
        }
    }
}

/// Errors that may be an expired session.
trait AsMeta {
    fn as_meta(&self) -> Option<&MetaError>;
}

impl AsMeta for MetaError {
    fn as_meta(&self) -> Option<&MetaError> {
        Some(self)
    }
}

impl AsMeta for CatalogError {
    fn as_meta(&self) -> Option<&MetaError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// Work for the store.
#[derive(Debug)]
pub(super) enum Work {
    Load(MetaId),
    Commit(MetaId, Box<MapUpdate>),
    JobLoad(MetaId),
    JobStore(MetaId, Box<JobRecord>, JobGuard),
}

/// Orders to the thread that announces the front.
#[derive(Debug)]
pub(super) enum Announce {
    Set(FrontRecord),
    /// What this host measured of nodes, for planners.
    Latency(HostLatency),
    /// Take it back; the sender is dropped when that is done.
    Clear(flume::Sender<()>),
}

/// Starts the worker; it ends when the returned sender is dropped.
pub(super) fn worker(
    meta: MetaHandle,
    volume: VolumeId,
    port: ControlPort,
) -> std::io::Result<flume::Sender<Work>> {
    let (sender, works) = flume::bounded(WORK_MAX);
    let body = move || {
        for work in works {
            let (id, outcome) = match work {
                Work::Load(id) => (id, load(&meta, volume)),
                Work::Commit(id, update) => (id, commit(&meta, *update)),
                Work::JobLoad(id) => (id, load_job(&meta, volume)),
                Work::JobStore(id, job, guard) => (id, store_job(&meta, &job, guard)),
            };
            port.post(ControlInput::Meta(id, outcome));
        }
    };
    std::thread::Builder::new()
        .name("meta".into())
        .spawn(body)?;
    Ok(sender)
}

fn load(meta: &MetaHandle, volume: VolumeId) -> MetaOutcome {
    let loaded = meta.with(|store| {
        let map = catalog::load_volume(store, volume)?;
        Ok((map, catalog::list_nodes(store)?))
    });
    match loaded {
        Ok(loaded) => MetaOutcome::Loaded(Box::new(loaded)),
        Err(CatalogError::NoVolume(_) | CatalogError::Deleting(_)) => MetaOutcome::NoVolume,
        Err(CatalogError::Store(error)) => MetaOutcome::Failed(CommitError::Store(error)),
        Err(CatalogError::Commit(error)) => MetaOutcome::Failed(error),
        Err(other) => {
            MetaOutcome::Failed(CommitError::Store(MetaError::Backend(other.to_string())))
        }
    }
}

fn commit(meta: &MetaHandle, update: MapUpdate) -> MetaOutcome {
    let store = meta.get();
    match catalog::commit_update(&*store, update) {
        Ok(map) => MetaOutcome::Committed(Box::new(map)),
        Err(error) => uncommitted(meta, &store, error),
    }
}

fn uncommitted(meta: &MetaHandle, store: &Arc<dyn MetaStore>, error: CommitError) -> MetaOutcome {
    if error == CommitError::Store(MetaError::SessionExpired) {
        // The next request finds the new session, or expires again.
        let _ = meta.renew(store);
    }
    MetaOutcome::Failed(error)
}

fn load_job(meta: &MetaHandle, volume: VolumeId) -> MetaOutcome {
    match meta.with(|store| catalog::job(store, volume)) {
        Ok(job) => MetaOutcome::Job {
            job: job.map(Box::new),
            unix_s: clock::unix_s(),
        },
        Err(CatalogError::Store(error)) => MetaOutcome::Failed(CommitError::Store(error)),
        Err(other) => {
            MetaOutcome::Failed(CommitError::Store(MetaError::Backend(other.to_string())))
        }
    }
}

fn store_job(meta: &MetaHandle, job: &JobRecord, guard: JobGuard) -> MetaOutcome {
    let store = meta.get();
    match catalog::store_job(&*store, job, guard) {
        Ok(version) => MetaOutcome::JobStored(version),
        Err(error) => uncommitted(meta, &store, error),
    }
}

/// What every change of a volume changes; `None`: the volume is gone.
fn head_state(
    store: &dyn MetaStore,
    volume: VolumeId,
) -> Result<Option<(Token, Generation)>, MetaError> {
    match catalog::load_head(store, volume) {
        Ok(head) => Ok(Some((head.token, head.generation))),
        Err(CatalogError::Store(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Starts the watchers of the volume's head and of its job; they end within seconds after the returned
/// sender is dropped.
pub(super) fn watchers(
    meta: &MetaHandle,
    volume: VolumeId,
    port: &ControlPort,
) -> std::io::Result<flume::Sender<()>> {
    let (alive, ended) = flume::bounded::<()>(1);
    let head = Watched {
        what: "map",
        watch: catalog::watch_volume,
        state: head_state,
        told: || ControlInput::MapChanged,
    };
    let job = Watched {
        what: "job",
        watch: catalog::watch_job,
        state: |store, volume| store.get(&key::job(volume)).map(|v| v.map(|v| v.version)),
        told: || ControlInput::JobChanged,
    };
    head.start("watch", meta, volume, port, ended.clone())?;
    job.start("watch-job", meta, volume, port, ended)?;
    Ok(alive)
}

type Watcher = fn(&dyn MetaStore, VolumeId) -> Result<Box<dyn Watch>, MetaError>;

/// A key of the volume, and what control is told when it has changed.
struct Watched<S> {
    what: &'static str,
    watch: Watcher,
    /// What every change changes. The watch alone is not trusted, so it is read every [`WATCH_SLICE`].
    state: fn(&dyn MetaStore, VolumeId) -> Result<S, MetaError>,
    told: fn() -> ControlInput,
}

impl<S: PartialEq + 'static> Watched<S> {
    fn start(
        self,
        name: &str,
        meta: &MetaHandle,
        volume: VolumeId,
        port: &ControlPort,
        ended: flume::Receiver<()>,
    ) -> std::io::Result<()> {
        let (meta, port) = (meta.clone(), port.clone());
        let body = move || {
            while !ended.is_disconnected() {
                if let Err(error) = meta.with(|store| self.watch(store, volume, &port, &ended)) {
                    let what = self.what;
                    port.post(ControlInput::Note(format!(
                        "watching the volume's {what}: {error}"
                    )));
                    // Returns early when the front ends.
                    let _ = ended.recv_timeout(RETRY);
                }
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(body)?;
        Ok(())
    }

    fn watch(
        &self,
        store: &dyn MetaStore,
        volume: VolumeId,
        port: &ControlPort,
        ended: &flume::Receiver<()>,
    ) -> Result<(), MetaError> {
        let mut watch = (self.watch)(store, volume)?;
        let mut seen = (self.state)(store, volume)?;
        // Control loads once by itself at the start; a new watch may have missed changes.
        port.post((self.told)());
        while !ended.is_disconnected() {
            let fired = watch.wait(WATCH_SLICE)?;
            let now = (self.state)(store, volume)?;
            if fired || now != seen {
                port.post((self.told)());
            }
            let missed = !fired && now != seen;
            seen = now;
            if missed {
                break; // the watch is lost or late (a server change can do that): a new one
            }
        }
        Ok(())
    }
}

/// Starts the thread that announces the front.
pub(super) fn announcer(
    meta: MetaHandle,
    volume: VolumeId,
    port: ControlPort,
) -> std::io::Result<flume::Sender<Announce>> {
    let (sender, orders) = flume::bounded(4);
    let body = move || {
        Announcer {
            meta,
            volume,
            port,
            current: None,
            announced: false,
            troubled: false,
        }
        .run(&orders);
    };
    std::thread::Builder::new()
        .name("announce".into())
        .spawn(body)?;
    Ok(sender)
}

struct Announcer {
    meta: MetaHandle,
    volume: VolumeId,
    port: ControlPort,
    /// What is announced, and whether the store has it.
    current: Option<(FrontRecord, bool)>,
    /// The store had it once.
    announced: bool,
    troubled: bool,
}

impl Announcer {
    fn run(mut self, orders: &flume::Receiver<Announce>) {
        loop {
            let pause = if self.troubled {
                RETRY
            } else {
                self.meta.get().lease() / 4
            };
            match orders.recv_timeout(pause) {
                Ok(Announce::Set(record)) => {
                    self.current = Some((record, false));
                    self.announced = false;
                    self.keep();
                    self.port.post(ControlInput::Announced);
                }
                Ok(Announce::Latency(latency)) => {
                    let put = |store: &dyn MetaStore| catalog::put_host_latency(store, &latency);
                    if let Err(error) = self.meta.with(put) {
                        tracing::debug!("latencies of host {}: {error}", latency.host);
                    }
                }
                Ok(Announce::Clear(_done)) => {
                    if let Some((record, _)) = self.current.take() {
                        // If it fails the record ends with its lease.
                        let _ = self
                            .meta
                            .with(|store| catalog::clear_front(store, self.volume, &record));
                    }
                }
                Err(flume::RecvTimeoutError::Timeout) => self.keep(),
                Err(flume::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Announces or renews. Losing the announcement endangers nothing: it only tells tools where
    /// the front is; the token says who owns the volume.
    fn keep(&mut self) {
        let Some((record, stored)) = &mut self.current else {
            return;
        };
        let store = self.meta.get();
        let mut result = Ok(());
        let mut there = Ok(None);
        if *stored || self.announced {
            // The session that answers need not be the one that announced: an expired one is replaced, and
            // its record is gone. A predecessor that did not know yet may have replaced ours, and ended.
            result = store.renew().map_err(CatalogError::from);
            there = self.meta.with(|store| catalog::front(store, self.volume));
            *stored = result.is_ok() && matches!(&there, Ok(Some(now)) if now == record);
        }
        // Only the first announcement replaces another front's: from then on, whoever is there came later.
        let free = !self.announced || matches!(there, Ok(None));
        if !*stored && free {
            result = self
                .meta
                .with(|store| catalog::set_front(store, self.volume, record));
            *stored = result.is_ok();
            self.announced |= *stored;
        }
        match result {
            Err(error) if !self.troubled => {
                self.troubled = true;
                let text = format!(
                    "cannot renew this front's record: {error}; I/O goes on, changes of the \
                     configuration wait"
                );
                self.port.post(ControlInput::Note(text));
            }
            Ok(()) if self.troubled => {
                self.troubled = false;
                self.port.post(ControlInput::Note(
                    "the metadata store answers again".into(),
                ));
            }
            _ => {}
        }
    }
}
