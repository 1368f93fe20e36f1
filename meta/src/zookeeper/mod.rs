//! The store in ZooKeeper: production, an ensemble of three or five servers.
//!
//! One session per handle, on a thread of its own with its own small runtime; calls block on it. The
//! client waits as long as it takes for a connection, so every call has a deadline. An answer lost
//! with the connection is [`CommitError::Unknown`]. A session that the servers gave up is over: each
//! call says so, and nothing is re-created behind the caller's back, because whoever held a lease must
//! know that it was without one.
//!
//! A parent of keys is a node of its own here, with a content that marks it as no key.

mod watch;

use crate::store::{CommitError, KvVersion, MetaError, MetaStore, Value, Watch, Write, check_size};
use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use zookeeper_client as zk;

/// How long the servers keep a silent client's session. They clamp it to 2 to 20 of their ticks.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// Longer than an election of a new leader (about a second), so that one does not look like an outage.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a dropped handle waits for the servers to confirm the end of its session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Content of nodes that are there only to have children.
const PARENT: &[u8] = b"\0ukai:parent";
/// Tries of a transaction whose parents another client's cleaning up removes again.
const PARENT_TRIES_MAX: usize = 8;

/// A session.
#[derive(Debug)]
pub struct ZookeeperStore {
    /// Taken in `drop`: the session ends when the last clone of the client is gone.
    client: Option<zk::Client>,
    runtime: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    servers: String,
}

/// `host:port,host:port/chroot` in two; the chroot with its slash, or empty.
fn split_chroot(servers: &str) -> Result<(&str, &str), MetaError> {
    let (hosts, chroot) = match servers.find('/') {
        Some(at) => servers.split_at(at),
        None => (servers, ""),
    };
    let chroot = chroot.trim_end_matches('/');
    let good_host = |host: &str| {
        host.rsplit_once(':')
            .is_none_or(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok())
            && !host.is_empty()
    };
    if !hosts.split(',').all(good_host) || chroot.contains("//") {
        return Err(MetaError::Backend(format!(
            "{servers:?} names no ZooKeeper servers; \
             use zk:host:2181,host2:2181,host3:2181/chroot"
        )));
    }
    Ok((hosts, chroot))
}

fn unreachable_servers(hosts: &str, error: &dyn std::fmt::Display) -> MetaError {
    MetaError::Unavailable(format!(
        "no ZooKeeper server of {hosts} answered within {} s ({error}); check that they run and have a \
         quorum (`echo srvr | nc HOST 2181`), and that host and client port are right",
        CALL_TIMEOUT.as_secs()
    ))
}

impl ZookeeperStore {
    /// Connects, waiting for a server until the call timeout, and makes the chroot if it is not there.
    pub fn connect(servers: &str) -> Result<Self, MetaError> {
        Self::connect_with_session(servers, SESSION_TIMEOUT)
    }

    /// Connects with another session timeout than the default, for tests of expiry.
    pub fn connect_with_session(servers: &str, session: Duration) -> Result<Self, MetaError> {
        let (hosts, chroot) = split_chroot(servers)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| MetaError::Backend(error.to_string()))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (connected, connection) = sync_channel(1);
        let connect = connect(hosts.to_owned(), chroot.to_owned(), session);
        let thread = std::thread::Builder::new()
            .name("ukai-zookeeper".into())
            .spawn(move || {
                runtime.block_on(async move {
                    let deadline = tokio::time::timeout(CALL_TIMEOUT, connect).await;
                    let state = match &deadline {
                        Ok(Ok(client)) => Some(client.state_watcher()),
                        _ => None,
                    };
                    // The receiver waits longer than this, or is gone: then nobody wants it.
                    let _ = connected.send(deadline);
                    if let Some(state) = state {
                        // An error means that the handle is gone, too.
                        let _ = stopped.await;
                        let _ = tokio::time::timeout(CLOSE_TIMEOUT, terminated(state)).await;
                    }
                });
            })
            .map_err(|error| MetaError::Backend(error.to_string()))?;
        let client = match connection.recv() {
            Ok(Ok(Ok(client))) => client,
            Ok(Ok(Err(zk::Error::NoAuth))) => {
                return Err(MetaError::Backend(format!(
                    "ZooKeeper at {hosts} does not allow the use of {chroot}/; check its ACLs"
                )));
            }
            Ok(Ok(Err(error))) => return Err(unreachable_servers(hosts, &error)),
            Ok(Err(_)) => return Err(unreachable_servers(hosts, &"no session in time")),
            Err(error) => return Err(MetaError::Backend(error.to_string())),
        };
        Ok(Self {
            client: Some(client),
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
            servers: hosts.to_owned(),
        })
    }

    fn client(&self) -> &zk::Client {
        self.client.as_ref().expect("taken by drop only")
    }

    fn unreachable(&self) -> MetaError {
        MetaError::Unavailable(format!(
            "no ZooKeeper server of {} answered within {} s",
            self.servers,
            CALL_TIMEOUT.as_secs()
        ))
    }

    /// Runs one operation on the session's thread. `None`: no answer in time.
    fn call<T, F>(&self, operation: impl FnOnce(zk::Client) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (answer, answered) = sync_channel(1);
        let operation = operation(self.client().clone());
        let task = self.runtime.spawn(async move {
            if let Ok(result) = tokio::time::timeout(CALL_TIMEOUT, operation).await {
                // The caller has given up only if this runtime stood still for long.
                let _ = answer.send(result);
            }
        });
        let result = answered.recv_timeout(CALL_TIMEOUT + Duration::from_secs(1));
        if let Err(RecvTimeoutError::Timeout) = result {
            task.abort();
        }
        result.ok()
    }

    fn read<T, F>(&self, operation: impl FnOnce(zk::Client) -> F) -> Result<T, MetaError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, zk::Error>> + Send + 'static,
    {
        match self.call(operation) {
            Some(Ok(result)) => Ok(result),
            Some(Err(error)) => Err(read_error(&error)),
            None => Err(self.unreachable()),
        }
    }
}

impl Drop for ZookeeperStore {
    fn drop(&mut self) {
        self.client = None;
        if let Some(stop) = self.stop.take() {
            // The thread may have ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the ZooKeeper thread panicked");
        }
    }
}

async fn connect(
    hosts: String,
    chroot: String,
    session: Duration,
) -> Result<zk::Client, zk::Error> {
    let client = zk::Client::connector()
        .with_session_timeout(session)
        .connect(&hosts)
        .await?;
    if chroot.is_empty() {
        return Ok(client);
    }
    make_parents(&client, &format!("{chroot}/x")).await?;
    client
        .chroot(chroot)
        .map_err(|_| zk::Error::BadArguments(&"chroot"))
}

async fn terminated(mut state: zk::StateWatcher) {
    while !state.changed().await.is_terminated() {}
}

/// Makes the nodes above `path`.
async fn make_parents(client: &zk::Client, path: &str) -> Result<(), zk::Error> {
    let options = zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all());
    for (at, _) in path.match_indices('/').skip(1) {
        match client.create(&path[..at], PARENT, &options).await {
            Ok(_) | Err(zk::Error::NodeExists) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_error(error: &zk::Error) -> MetaError {
    match error {
        zk::Error::SessionExpired | zk::Error::ClientClosed => MetaError::SessionExpired,
        // Custom: an error of the socket (a reset), or a server that was silent for too long; the client connects again.
        // NoHosts: none took the connection, and it has given up; the next call says that the session is over.
        zk::Error::ConnectionLoss
        | zk::Error::Timeout
        | zk::Error::SessionMoved
        | zk::Error::NoHosts
        | zk::Error::Custom(_) => MetaError::Unavailable(error.to_string()),
        _ => MetaError::Backend(format!("ZooKeeper: {error}")),
    }
}

/// For a transaction that may have been sent.
fn commit_error(error: &zk::Error) -> CommitError {
    match error {
        zk::Error::NoAuth
        | zk::Error::AuthFailed
        | zk::Error::InvalidAcl
        | zk::Error::QuotaExceeded
        | zk::Error::Throttled
        | zk::Error::NotReadOnly
        | zk::Error::SessionMoved
        | zk::Error::Unimplemented
        | zk::Error::BadArguments(_) => CommitError::Store(read_error(error)),
        // Also an expired session: what was in flight when it was lost may have been done before.
        _ => CommitError::Unknown,
    }
}

fn path(key: &str) -> String {
    format!("/{key}")
}

/// ZooKeeper's versions are `i32`, and -1 means "any".
fn zk_version(version: KvVersion) -> Option<i32> {
    i32::try_from(version.0)
        .ok()
        .filter(|version| *version >= 0)
}

/// Versions after the commit: a new node has 0, each write adds one.
fn versions(writes: &[Write]) -> Vec<KvVersion> {
    let version = |write: &Write| match write {
        Write::Create { .. } => KvVersion(0),
        Write::Set { expected, .. } => KvVersion(expected.0 + 1),
        Write::Delete { expected, .. } | Write::Check { expected, .. } => *expected,
    };
    writes.iter().map(version).collect()
}

fn add(writer: &mut zk::MultiWriter<'_>, write: &Write) -> Result<(), zk::Error> {
    let path = path(write.key());
    match write {
        Write::Create {
            bytes, ephemeral, ..
        } => {
            let mode = if *ephemeral {
                zk::CreateMode::Ephemeral
            } else {
                zk::CreateMode::Persistent
            };
            writer.add_create(&path, bytes, &mode.with_acls(zk::Acls::anyone_all()))
        }
        Write::Set {
            bytes, expected, ..
        } => writer.add_set_data(&path, bytes, zk_version(*expected)),
        Write::Delete { expected, .. } => writer.add_delete(&path, zk_version(*expected)),
        Write::Check { expected, .. } => {
            writer.add_check_version(&path, zk_version(*expected).unwrap_or(i32::MAX))
        }
    }
}

async fn commit(client: zk::Client, writes: Vec<Write>) -> Result<Vec<KvVersion>, CommitError> {
    for _ in 0..PARENT_TRIES_MAX {
        let result = {
            let mut writer = client.new_multi_writer();
            for write in &writes {
                add(&mut writer, write).map_err(|error| CommitError::Store(read_error(&error)))?;
            }
            writer.commit().await
        };
        let (index, source) = match result {
            Ok(_) => {
                prune(&client, &writes).await;
                return Ok(versions(&writes));
            }
            Err(zk::MultiWriteError::RequestFailed { source }) => {
                return Err(commit_error(&source));
            }
            Err(zk::MultiWriteError::OperationFailed { index, source }) => (index, source),
        };
        let write = &writes[index.min(writes.len() - 1)];
        match (source, write) {
            (zk::Error::NoNode, Write::Create { key, .. }) => {
                // Nothing of the transaction was done; making parents is harmless.
                make_parents(&client, &path(key))
                    .await
                    .map_err(|error| CommitError::Store(read_error(&error)))?;
            }
            (zk::Error::NoNode | zk::Error::NodeExists | zk::Error::BadVersion, write) => {
                return Err(CommitError::Conflict {
                    key: write.key().to_owned(),
                });
            }
            (source, _) => return Err(CommitError::Store(read_error(&source))),
        }
    }
    Err(MetaError::Unavailable("parents of a key vanish again and again".into()).into())
}

/// Removes the parents of deleted keys that have no other children. Not part of the transaction; a
/// left-over is harmless.
async fn prune(client: &zk::Client, writes: &[Write]) {
    for write in writes {
        let Write::Delete { key, .. } = write else {
            continue;
        };
        let path = path(key);
        let mut parents: Vec<usize> = path.match_indices('/').map(|(at, _)| at).skip(2).collect();
        while let Some(at) = parents.pop() {
            // Parents are never written, so their version is 0.
            if client.delete(&path[..at], Some(0)).await.is_err() {
                break;
            }
        }
    }
}

impl MetaStore for ZookeeperStore {
    fn get(&self, key: &str) -> Result<Option<Value>, MetaError> {
        let path = path(key);
        self.read(|client| async move {
            // Requests are sent when they are made: both are on their way before the first answer.
            // The sync makes a lagging server catch up, for a read that sees every commit before it.
            let sync = client.sync(&path);
            let data = client.get_data(&path);
            sync.await?;
            match data.await {
                Ok((bytes, _)) if bytes == PARENT => Ok(None),
                Ok((bytes, stat)) => Ok(Some(Value {
                    bytes,
                    version: KvVersion(i64::from(stat.version)),
                })),
                Err(zk::Error::NoNode) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn list(&self, key: &str) -> Result<Vec<String>, MetaError> {
        let path = path(key);
        self.read(|client| async move {
            let sync = client.sync(&path);
            let children = client.list_children(&path);
            sync.await?;
            match children.await {
                Ok(mut children) => {
                    children.sort_unstable();
                    Ok(children)
                }
                Err(zk::Error::NoNode) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        })
    }

    fn commit(&self, writes: &[Write]) -> Result<Vec<KvVersion>, CommitError> {
        check_size(writes)?;
        for write in writes {
            if let Write::Set { key, expected, .. }
            | Write::Delete { key, expected, .. }
            | Write::Check { key, expected } = write
                && zk_version(*expected).is_none()
            {
                // No node ever has such a version.
                return Err(CommitError::Conflict { key: key.clone() });
            }
        }
        if self.client().state().is_terminated() {
            return Err(MetaError::SessionExpired.into());
        }
        let writes = writes.to_vec();
        self.call(|client| commit(client, writes))
            .unwrap_or(Err(CommitError::Unknown))
    }

    fn watch(&self, key: &str) -> Result<Box<dyn Watch>, MetaError> {
        let path = path(key);
        let watcher =
            self.read(
                |client| async move { client.watch(&path, zk::AddWatchMode::Persistent).await },
            )?;
        Ok(Box::new(watch::ZookeeperWatch::new(&self.runtime, watcher)))
    }

    fn lease(&self) -> Duration {
        self.client().session_timeout()
    }

    /// A round trip: if it is answered, the session was alive after this call began. The client keeps
    /// the session alive by itself; this is how its owner knows, by its own clock, that it does. An
    /// error does not say that the session is over, only that nobody could tell.
    fn renew(&self) -> Result<(), MetaError> {
        match self.client().state() {
            state if state.is_terminated() => Err(MetaError::SessionExpired),
            zk::SessionState::Disconnected => Err(MetaError::Unavailable(format!(
                "not connected to any ZooKeeper server of {}",
                self.servers
            ))),
            _ => {
                // Well before the lease ends, so that the caller can still act on the answer.
                let patience = self.lease() / 4;
                let answer = self.read(move |client| async move {
                    let sync = client.sync("/");
                    match tokio::time::timeout(patience, sync).await {
                        Ok(answer) => answer,
                        Err(_) => Err(zk::Error::Timeout),
                    }
                });
                answer.map(|_| ())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_lists_are_checked_before_anything_is_connected() {
        assert_eq!(split_chroot("a:1,b:2/x/y/").unwrap(), ("a:1,b:2", "/x/y"));
        assert_eq!(split_chroot("a").unwrap(), ("a", ""));
        for bad in ["", "a:1,", ":1", "a:port", "a:99999", "a:1/x//y"] {
            assert!(split_chroot(bad).is_err(), "{bad}");
        }
    }
}
