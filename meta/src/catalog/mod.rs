//! The typed layer over a [`MetaStore`]: cluster, nodes, volumes and fronts, as daemons and tools use
//! them. Every change is one conditional transaction; an unknown outcome is resolved by reading again
//! (I5), here wherever that is possible, else by the caller with [`settle_unknown`].

mod job;
mod latency;
mod node;
mod volume;

pub use job::{JobGuard, create_job, job, list_jobs, store_job, update_job, watch_job};
pub use latency::{host_latencies, host_latency, put_host_latency};
pub use node::{
    check_start, deregister_live, forget_node, list_nodes, node, node_by_name, raise_start,
    register_node, set_draining, update_live,
};
pub use volume::{
    Settled, VolumeName, clear_front, commit_update, create_volume, delete_volume, front,
    list_volumes, load_head, load_volume, set_front, settle_unknown, volume_id, watch_volume,
};

use crate::job::JobError;
use crate::key;
use crate::record::ClusterRecord;
use crate::store::{CommitError, MetaError, MetaStore, Value, Write};
use crate::transition::TransitionError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ukai_proto::{ClusterId, Incarnation, NodeId, VolumeId};

/// Tries of a read-then-commit loop. Someone else's change makes one try fail; more than a few in a
/// row means that something is wrong.
const TRIES_MAX: usize = 16;

/// A catalog operation that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] MetaError),
    /// A transaction failed.
    #[error(transparent)]
    Commit(CommitError),
    /// What is asked for is not legal.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The store is empty.
    #[error("this metadata store holds no cluster yet; run `ukai-tools cluster init`")]
    NoCluster,
    /// No such volume.
    #[error("there is no volume {0}")]
    NoVolume(String),
    /// No such node.
    #[error("there is no node {0}")]
    NoNode(String),
    /// Another volume has the name.
    #[error("a volume named {0} already exists")]
    NameTaken(String),
    /// A name that no node may have.
    #[error("{name:?} is no {what} name: {}", key::NAME_RULE)]
    BadName {
        /// Of what.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// Another node has the name.
    #[error("the node name {name} belongs to node {by}; format this one with another name")]
    NodeNameTaken {
        /// The name.
        name: String,
        /// Its owner.
        by: NodeId,
    },
    /// The node is alive elsewhere, or its former run's lease has not ended yet.
    #[error(
        "node {node} is already running (start {}, boot {}): a second daemon with the same uuid, or \
         a former run whose lease has not ended yet", .incarnation.start, .incarnation.boot
    )]
    AlreadyLive {
        /// The node.
        node: NodeId,
        /// The run that holds the lease.
        incarnation: Incarnation,
    },
    /// A file or device that is older than the node it claims to be.
    #[error(
        "node {name} ({node}) has counted {known} starts and stops, but this file or device only {start}: it is an \
         older copy of the node, restored from a backup or a snapshot, and lacks writes that were \
         acknowledged. It must not serve. If the real one is lost: `ukai-tools node forget {name}`, then \
         `chunkstore format --force` makes a new, empty node of this, to be filled by \
         `ukai-tools volume add-location`"
    )]
    OlderCopy {
        /// The node.
        node: NodeId,
        /// Its name.
        name: String,
        /// Highest count seen of the node.
        known: u64,
        /// Count of this copy.
        start: u64,
    },
    /// An administrator gave the node up for ever.
    #[error(
        "node {name} ({node}) was given up with `ukai-tools node forget`: no volume counts on what it \
         holds any more. `chunkstore format --force` makes a new, empty node of it"
    )]
    Forgotten {
        /// The node.
        node: NodeId,
        /// The name it had.
        name: String,
    },
    /// Not marked as deleting, or partly deleted.
    #[error("volume {0} is being deleted; finish it with `ukai-tools volume delete`")]
    Deleting(VolumeId),
    /// Deletion was not begun.
    #[error("volume {0} is not marked as deleting")]
    NotDeleting(VolumeId),
    /// A relocation of the volume has not ended.
    #[error(
        "volume {name} has a relocation job already, it is {state}: wait for it (`ukai-tools job watch \
         {name}`) or end it (`ukai-tools job cancel {name}`)"
    )]
    JobExists {
        /// The volume.
        name: String,
        /// The job's state.
        state: &'static str,
    },
    /// The volume has no job.
    #[error("volume {0} has no relocation job; `ukai-tools relocate` makes one")]
    NoJob(String),
    /// The job cannot be changed so.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Others changed the same keys again and again.
    #[error("key {0} keeps changing; try again")]
    Contended(String),
}

impl From<CommitError> for CatalogError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Store(error) => Self::Store(error),
            other => Self::Commit(other),
        }
    }
}

/// Reads a JSON record.
fn get_json<T: DeserializeOwned>(
    store: &dyn MetaStore,
    key: &str,
) -> Result<Option<(T, Value)>, MetaError> {
    let Some(value) = store.get(key)? else {
        return Ok(None);
    };
    let record = serde_json::from_slice(&value.bytes).map_err(|error| MetaError::Corrupt {
        key: key.to_owned(),
        problem: format!("{error}; correct or delete it with the metadata store's own shell"),
    })?;
    Ok(Some((record, value)))
}

fn json<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records of plain fields serialise")
}

/// Reads a text key that holds an id.
fn get_id<T: std::str::FromStr>(
    store: &dyn MetaStore,
    key: &str,
) -> Result<Option<(T, Value)>, MetaError> {
    let Some(value) = store.get(key)? else {
        return Ok(None);
    };
    let id = std::str::from_utf8(&value.bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| MetaError::Corrupt {
            key: key.to_owned(),
            problem: "it holds no uuid".into(),
        })?;
    Ok(Some((id, value)))
}

/// Runs read-then-commit until it is decided. `attempt` reads and says what to commit, or, if
/// there is nothing (more) to do, the result. A conflict or an unknown outcome asks it again.
fn decide<T>(
    store: &dyn MetaStore,
    mut attempt: impl FnMut() -> Result<Step<T>, CatalogError>,
) -> Result<T, CatalogError> {
    let mut contended = String::new();
    for _ in 0..TRIES_MAX {
        let (writes, result) = match attempt()? {
            Step::Done(result) => return Ok(result),
            Step::Commit(writes, result) => (writes, result),
        };
        match store.commit(&writes) {
            Ok(_) => return Ok(result),
            Err(CommitError::Conflict { key }) => contended = key,
            Err(CommitError::Unknown) => contended = "(connection lost)".into(),
            Err(other) => return Err(other.into()),
        }
    }
    Err(CatalogError::Contended(contended))
}

enum Step<T> {
    Done(T),
    Commit(Vec<Write>, T),
}

/// The cluster's record; creates it, with this id, if there is none.
pub fn init_cluster(
    store: &dyn MetaStore,
    cluster: ClusterId,
) -> Result<ClusterRecord, CatalogError> {
    decide(store, || {
        if let Some((record, _)) = get_json(store, key::CLUSTER)? {
            return Ok(Step::Done(record));
        }
        let record = ClusterRecord { cluster, format: 1 };
        let write = Write::Create {
            key: key::CLUSTER.into(),
            bytes: json(&record),
            ephemeral: false,
        };
        Ok(Step::Commit(vec![write], record))
    })
}

/// The cluster's record.
pub fn cluster(store: &dyn MetaStore) -> Result<ClusterRecord, CatalogError> {
    let (record, _): (ClusterRecord, _) =
        get_json(store, key::CLUSTER)?.ok_or(CatalogError::NoCluster)?;
    if record.format != 1 {
        return Err(MetaError::Backend(format!(
            "the cluster's records have format {}, this program reads 1; use a newer release",
            record.format
        ))
        .into());
    }
    Ok(record)
}
