//! The keys of the store, in one place, and the names that may stand in them.

use ukai_proto::{NodeId, VolumeId};

/// The cluster record.
pub const CLUSTER: &str = "cluster";
/// Parent of the node records.
pub const NODES: &str = "nodes";
/// Parent of the nodes' leases.
pub const LIVE: &str = "live";
/// Parent of the volumes' names.
pub const NAMES: &str = "names";
/// Parent of the relocation jobs.
pub const JOBS: &str = "jobs";
/// Parent of the node names.
pub const NODE_NAMES: &str = "node-names";

/// Parent of the marks of nodes that were given up for ever.
pub const FORGOTTEN: &str = "forgotten";

/// Parent of the latencies measured from hosts.
pub const LATENCIES: &str = "latencies";

/// What [`valid_name`] asks for, for messages.
pub const NAME_RULE: &str = "1 to 64 letters, digits, dots, dashes or underscores are needed";

/// Whether a volume, node or site may be called so. Also keeps `/` out of keys, and the two names
/// that ZooKeeper forbids.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && name != "."
        && name != ".."
}

/// A node's permanent record.
#[must_use]
pub fn node(node: NodeId) -> String {
    format!("{NODES}/{node}")
}

/// A node's lease.
#[must_use]
pub fn live(node: NodeId) -> String {
    format!("{LIVE}/{node}")
}

/// The mark of a node that was given up.
#[must_use]
pub fn forgotten(node: NodeId) -> String {
    format!("{FORGOTTEN}/{node}")
}

/// The node that a name belongs to.
#[must_use]
pub fn node_name(name: &str) -> String {
    format!("{NODE_NAMES}/{name}")
}

/// What was measured from a host.
#[must_use]
pub fn latency(host: &str) -> String {
    format!("{LATENCIES}/{host}")
}

/// The volume that a name belongs to.
#[must_use]
pub fn name(name: &str) -> String {
    format!("{NAMES}/{name}")
}

/// A volume's head.
#[must_use]
pub fn head(volume: VolumeId) -> String {
    format!("volumes/{volume}/head")
}

/// A shard of a volume's map.
#[must_use]
pub fn shard(volume: VolumeId, shard: usize) -> String {
    format!("volumes/{volume}/map/{shard}")
}

/// Where an attached volume's front is.
#[must_use]
pub fn front(volume: VolumeId) -> String {
    format!("fronts/{volume}")
}

/// The volume's relocation job.
#[must_use]
pub fn job(volume: VolumeId) -> String {
    format!("{JOBS}/{volume}")
}
