//! Why a transition is not legal.

use crate::record::NodeHealth;
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

/// A transition that is not legal from this map. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// The map is already as asked: done by an earlier attempt, or nothing in the range applies.
    #[error("nothing to change: the map is already so")]
    NoChange,
    /// The volume is being deleted.
    #[error("the volume is being deleted")]
    Deleting,
    /// Another front has it.
    #[error(
        "the volume is attached on host {host}; detach it there, or use --force if that front is dead"
    )]
    Attached {
        /// Where.
        host: String,
    },
    /// No front has it.
    #[error("the volume is not attached")]
    NotAttached,
    /// These chunks would have no replica left that has every acknowledged write.
    #[error("{} would lose their last in-sync replica, on node {node}", show(.range))]
    LastInSync {
        /// The first such run of chunks.
        range: ChunkRange,
        /// The node whose replica is the last (or one of the last, if several were given).
        node: NodeId,
    },
    /// Fewer copies than asked for would be left.
    #[error(
        "{} would have {left} in-sync copies without node {node}, and {min_copies} are asked for; \
         add a location and wait until it is in sync first", show(.range)
    )]
    TooFewCopies {
        /// The first such run of chunks.
        range: ChunkRange,
        /// The node to be removed.
        node: NodeId,
        /// In-sync replicas left.
        left: usize,
        /// Wanted.
        min_copies: u8,
    },
    /// The node holds nothing of this volume.
    #[error("node {node} holds no replica of this volume")]
    NoReplica {
        /// The node.
        node: NodeId,
    },
    /// The node's health does not allow it.
    #[error("node {node} is {} for this volume", health_name(.actual))]
    WrongHealth {
        /// The node.
        node: NodeId,
        /// What it is.
        actual: Option<NodeHealth>,
    },
    /// The node still has replicas, so its health must be kept.
    #[error("node {node} still holds replicas of this volume")]
    StillHolds {
        /// The node.
        node: NodeId,
    },
    /// A replica there is still waiting to be deleted.
    #[error(
        "the former replica of {} on node {node} is not deleted yet; \
         try again when it is (an attached front does it, or `ublk-front settle`)", show(.range)
    )]
    StillLeaving {
        /// The first such run of chunks.
        range: ChunkRange,
        /// The node.
        node: NodeId,
    },
    /// A chunk would have more replicas than a set may.
    #[error("{} already have as many replicas as a chunk may have", show(.range))]
    TooManyReplicas {
        /// The first such run of chunks.
        range: ChunkRange,
    },
    /// The table of replica sets is full.
    #[error(
        "the volume would have more than {} different replica sets; place larger ranges alike",
        crate::sets::SETS_MAX
    )]
    TooManySets,
    /// The table of nodes is full.
    #[error(
        "the volume would lie on more than {} nodes",
        crate::sets::VOLUME_NODES_MAX
    )]
    TooManyNodes,
    /// Chunks beyond the end, or none.
    #[error("{} are not all on the volume, which has {chunk_count} chunks", show(.range))]
    OutOfRange {
        /// Asked for.
        range: ChunkRange,
        /// There are.
        chunk_count: u32,
    },
    /// The change does not fit into one transaction; split it (`VolumeMap::batches`).
    #[error("the change is too large for one transaction ({0}); make it in smaller ranges")]
    TooLarge(String),
    /// Volumes only grow: what lay beyond the end would show up again after a later growth.
    #[error("a volume cannot shrink (it has {from} bytes, {to} are asked for)")]
    Shrink {
        /// Now.
        from: u64,
        /// Asked for.
        to: u64,
    },
    /// A size, name, chunk size or placement that no volume may have.
    #[error("{0}")]
    Invalid(String),
    /// 2^32 configurations or attaches.
    #[error("the volume's generation or token counter is exhausted")]
    Exhausted,
}

fn show(range: &ChunkRange) -> String {
    match range.count {
        1 => format!("chunk {}", range.start),
        count => format!(
            "chunks {}..={}",
            range.start,
            u64::from(range.start.0) + u64::from(count.max(1)) - 1
        ),
    }
}

fn health_name(health: &Option<NodeHealth>) -> String {
    match health {
        None => "in sync".into(),
        Some(NodeHealth::Stale { since }) => format!("stale since generation {since}"),
        Some(NodeHealth::Rejoining { since }) => format!("rejoining, stale since {since}"),
    }
}
