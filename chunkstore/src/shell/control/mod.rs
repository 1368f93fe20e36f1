//! The node's membership: its record, its lease, and who else claims to be it.
//!
//! Runs on a thread of its own, because the metadata store blocks. Shards never wait for it: they
//! look at the deadline that it moves on with each renewal that succeeded.

#[cfg(test)]
mod tests;

use crate::shell::clock::{now_ns, ns, pause};
use crate::shell::hello::{self, Found};
use crate::shell::run::Event;
use crate::shell::shard::{Command, Shared};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::{MetaError, MetaStore, NodeLive, NodeRecord};
use ukai_proto::Incarnation;

/// Between reports of the space in use.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// Between looks at a lease that should run out.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Of a former run's lease, beyond its length, before it is believed to be renewed by somebody.
const LEASE_SLACK: Duration = Duration::from_secs(2);

/// What happens to volumes while the membership cannot be renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// Refuse with NoLease: no front that lost its volume to another can read old data here.
    Refuse,
    /// Go on serving: virtual machines outlive a metadata store that is down altogether.
    Serve,
}

/// The node must not (or no longer) run.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The metadata store cannot be opened or asked.
    #[error("{0}")]
    Meta(#[from] MetaError),
    /// A catalog operation failed.
    #[error("{0}")]
    Catalog(CatalogError),
    /// Formatted for another cluster.
    #[error(
        "this node was formatted for cluster {own}, but the metadata store is of cluster {found}; \
         check --meta, or format the node again"
    )]
    WrongCluster {
        /// In the superblock.
        own: ukai_proto::ClusterId,
        /// In the store.
        found: ukai_proto::ClusterId,
    },
    /// Somebody else is this node.
    #[error(
        "node {node} ({name}) is already running at {at} (boot {}, start {}): two files or devices \
         have the same uuid. Stop one of them; a copy of a node's file must be formatted with \
         --force before it can serve", .other.boot, .other.start
    )]
    Twin {
        /// The uuid.
        node: ukai_proto::NodeId,
        /// Its name.
        name: String,
        /// Where the other is.
        at: String,
        /// The other's run.
        other: Incarnation,
    },
}

impl MembershipError {
    /// Refused because of what is there, not broken.
    pub(in crate::shell) fn is_refusal(&self) -> bool {
        match self {
            Self::Meta(_) => false,
            Self::Catalog(error) => !matches!(error, CatalogError::Store(_)),
            Self::WrongCluster { .. } | Self::Twin { .. } => true,
        }
    }
}

/// Before anything is opened: is the cluster right, is this the node itself and not an older copy (its
/// superblock has counted `start` runs), and is nobody else this node?
///
/// The lease of a run of this node that was killed may still stand. On this host its addresses tell
/// whether it is dead: then the lease is taken away. A run on another host is given its time.
pub(in crate::shell) fn check(
    store: &dyn MetaStore,
    cluster: ukai_proto::ClusterId,
    node: ukai_proto::NodeId,
    start: u64,
    host: &str,
) -> Result<(), MembershipError> {
    let found = catalog::cluster(store)
        .map_err(MembershipError::Catalog)?
        .cluster;
    if found != cluster {
        let own = cluster;
        return Err(MembershipError::WrongCluster { own, found });
    }
    catalog::check_start(store, node, start).map_err(MembershipError::Catalog)?;
    let deadline = now_ns() + ns(store.lease() + LEASE_SLACK);
    let mut waiting = false;
    loop {
        let state = catalog::node(store, node).map_err(MembershipError::Catalog)?;
        let Some((record, live)) = state.and_then(|s| Some((s.record, s.live?))) else {
            return Ok(());
        };
        let addresses: Vec<&String> = record.shard_addresses.iter().flatten().collect();
        let same_host = record.host == host;
        let mut all_dead = same_host;
        for address in addresses {
            match hello::probe(address, cluster, node) {
                Found::Node => {
                    return Err(MembershipError::Twin {
                        node,
                        name: record.name,
                        at: address.clone(),
                        other: live.incarnation,
                    });
                }
                Found::Nobody => {}
                Found::Unknown => all_dead = false,
            }
        }
        if all_dead {
            tracing::info!(former = ?live.incarnation, "taking over the lease of a dead run");
            return catalog::deregister_live(store, node, &live).map_err(MembershipError::Catalog);
        }
        if now_ns() > deadline {
            return Err(MembershipError::Twin {
                node,
                name: record.name,
                at: format!("host {}", record.host),
                other: live.incarnation,
            });
        }
        if !std::mem::replace(&mut waiting, true) {
            tracing::warn!(host = %record.host, "a former run's lease stands; waiting for its end");
        }
        pause(LOOK_EVERY);
    }
}

/// Makes a new session at the metadata store.
pub(in crate::shell) type Reopen = Box<dyn Fn() -> Result<Box<dyn MetaStore>, MetaError> + Send>;

/// The thread.
pub(in crate::shell) struct Control {
    /// Opens a new session when this one has ended.
    pub(in crate::shell) reopen: Reopen,
    pub(in crate::shell) store: Box<dyn MetaStore>,
    pub(in crate::shell) record: NodeRecord,
    pub(in crate::shell) incarnation: Incarnation,
    pub(in crate::shell) isolation: Isolation,
    pub(in crate::shell) shared: Arc<Shared>,
    pub(in crate::shell) commands: Vec<flume::Sender<Command>>,
    pub(in crate::shell) events: flume::Sender<Event>,
    /// The lease is this session's; without it a renewal says nothing.
    pub(in crate::shell) registered: bool,
}

impl Control {
    /// Register, then renew until told to stop; then give the lease back. After a clean stop the start
    /// count that the superblock has by then is told: copies made while the node ran are old.
    pub(in crate::shell) fn run(mut self, stop: &flume::Receiver<u64>) {
        match self.register() {
            Ok(()) => drop(self.events.send(Event::Registered)),
            Err(error) => {
                drop(self.events.send(Event::Expelled(error)));
                return;
            }
        }
        let lease = self.store.lease();
        let mut reported = now_ns();
        // Four renewals per lease: three may fail.
        let counted = loop {
            match stop.recv_timeout(lease / 4) {
                Ok(start) => break Some(start),
                Err(flume::RecvTimeoutError::Disconnected) => break None,
                Err(flume::RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = self.renew() {
                drop(self.events.send(Event::Expelled(error)));
                return;
            }
            if now_ns() - reported >= ns(REPORT_EVERY) {
                reported = now_ns();
                if let Err(error) = self.report() {
                    drop(self.events.send(Event::Expelled(error)));
                    return;
                }
            }
        };
        let live = self.live();
        if let Err(error) = catalog::deregister_live(self.store.as_ref(), self.record.node, &live) {
            tracing::warn!(%error, "give the lease back; it will run out by itself");
        }
        if let Some(start) = counted
            && let Err(error) = catalog::raise_start(self.store.as_ref(), self.record.node, start)
        {
            tracing::warn!(%error, "tell the number of starts");
        }
    }

    fn live(&self) -> NodeLive {
        let used = self.shared.used_bytes.iter();
        NodeLive {
            incarnation: self.incarnation,
            used_bytes: used.map(|shard| shard.load(Ordering::Relaxed)).sum(),
        }
    }

    /// The lease was held at `since`: serve until it could have run out.
    fn held_since(&self, since: u64) {
        let until = match self.isolation {
            Isolation::Refuse => since.saturating_add(ns(self.store.lease())),
            Isolation::Serve => u64::MAX,
        };
        self.set_until(until);
    }

    fn set_until(&self, until: u64) {
        self.shared.lease_until.store(until, Ordering::Release);
        for shard in &self.commands {
            let _ = shard.send(Command::Lease);
        }
    }

    /// The lease is surely gone, whatever the clock says.
    fn lost(&mut self) {
        self.registered = false;
        match self.isolation {
            Isolation::Refuse => {
                tracing::warn!("the metadata session ended: not serving until registered again");
                self.set_until(0);
            }
            Isolation::Serve => tracing::warn!("the metadata session ended: registering again"),
        }
    }

    fn register(&mut self) -> Result<(), MembershipError> {
        let asked = now_ns();
        match catalog::register_node(self.store.as_ref(), &self.record, &self.live()) {
            Ok(()) => {
                self.registered = true;
                self.held_since(asked);
                Ok(())
            }
            Err(CatalogError::AlreadyLive { node, incarnation }) => Err(MembershipError::Twin {
                node,
                name: self.record.name.clone(),
                at: "another place".into(),
                other: incarnation,
            }),
            Err(error) => Err(MembershipError::Catalog(error)),
        }
    }

    /// One renewal. An error means that this process must end; an unreachable store is waited for.
    fn renew(&mut self) -> Result<(), MembershipError> {
        if !self.registered {
            return self.again();
        }
        let asked = now_ns();
        match self.store.renew() {
            Ok(()) => {
                // A lease that ended before (shards stopped by their own clock) begins again.
                self.held_since(asked);
                Ok(())
            }
            Err(MetaError::SessionExpired) => {
                self.lost();
                self.again()
            }
            Err(error) => {
                tracing::warn!(%error, "cannot renew the membership");
                Ok(())
            }
        }
    }

    /// A new session and a new registration, if the store can be reached.
    fn again(&mut self) -> Result<(), MembershipError> {
        let store = match (self.reopen)() {
            Ok(store) => store,
            Err(error) => {
                tracing::warn!(%error, "cannot open a new metadata session");
                return Ok(());
            }
        };
        self.store = store;
        match self.register() {
            Ok(()) => {
                tracing::info!("registered again");
                Ok(())
            }
            Err(MembershipError::Catalog(CatalogError::Store(error))) => {
                tracing::warn!(%error, "cannot register again yet");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Space in use; also notices a lease that is gone or somebody else's.
    fn report(&mut self) -> Result<(), MembershipError> {
        let live = self.live();
        match catalog::update_live(self.store.as_ref(), self.record.node, &live) {
            Ok(()) => Ok(()),
            Err(CatalogError::AlreadyLive { node, incarnation }) => Err(MembershipError::Twin {
                node,
                name: self.record.name.clone(),
                at: "another place".into(),
                other: incarnation,
            }),
            Err(CatalogError::Store(MetaError::SessionExpired)) => {
                self.lost();
                self.again()
            }
            Err(error) => {
                tracing::warn!(%error, "report the space in use");
                Ok(())
            }
        }
    }
}
