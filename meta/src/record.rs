//! The records kept in the metadata store, as the rest of the project sees them.
//!
//! Keys (all under the store's root):
//!
//! | key | content |
//! |-|-|
//! | `cluster` | [`ClusterRecord`] |
//! | `nodes/<node>` | [`NodeRecord`] and the highest start count seen, JSON, permanent |
//! | `live/<node>` | [`NodeLive`], JSON, ephemeral: gone when the node's lease is |
//! | `forgotten/<node>` | the node's name, text: given up for ever, may not register again |
//! | `node-names/<node name>` | the node's id, text: keeps names unique |
//! | `names/<volume name>` | the volume's id, text |
//! | `volumes/<volume>/head` | [`VolumeHead`] without its map shards; watched |
//! | `volumes/<volume>/map/<shard>` | runs of 64 Ki chunks; absent while all of them have one set, which the head then names |
//! | `latencies/<host>` | [`crate::latency::HostLatency`], JSON: round trips and service times of nodes, as measured from there |
//! | `jobs/<volume>` | [`crate::JobRecord`], JSON: the relocation of the volume that is under way, or the last one; watched |
//! | `fronts/<volume>` | [`FrontRecord`], JSON, ephemeral: where the front's control socket is |
//!
//! Small, rarely read records are JSON so that an administrator can read them with the store's own
//! shell; heads and map shards are rkyv archives in the envelope of `archive`.

use serde::{Deserialize, Serialize};
use ukai_proto::{BootId, ClusterId, Generation, Incarnation, NodeId, Token, VolumeId};

/// The cluster, written once by the first `ukai-tools cluster init` or node format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Names the cluster in every HELLO and superblock.
    pub cluster: ClusterId,
    /// Version of the record formats; 1.
    pub format: u32,
}

/// What a node is and where it is reached. Written by the node at each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Durable identity, from the superblock.
    pub node: NodeId,
    /// A short name people use (`n0`), unique in the cluster.
    pub name: String,
    /// The data centre.
    pub site: String,
    /// Free labels (`rack=3`).
    pub labels: Vec<String>,
    /// Number of shards.
    pub shard_count: u16,
    /// Addresses of each shard, best first: `unix:/path` (same host only), `tcp:ip:port`.
    pub shard_addresses: Vec<Vec<String>>,
    /// Which machine it runs on (`/etc/machine-id` or given): `unix:` addresses are usable there.
    pub host: String,
    /// Usable space.
    pub capacity_bytes: u64,
    /// Set by an administrator: take no new chunks.
    #[serde(default)]
    pub draining: bool,
}

/// A node's lease: the key exists while the node renews it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLive {
    /// The run that serves.
    pub incarnation: Incarnation,
    /// Bytes in use when last reported (coarse: at each start and once a minute).
    pub used_bytes: u64,
}

/// A node with its liveness, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeState {
    /// The permanent record.
    pub record: NodeRecord,
    /// Present while it lives.
    pub live: Option<NodeLive>,
}

/// Where the front of an attached volume answers `stats`, `status` and orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontRecord {
    /// The host it runs on.
    pub host: String,
    /// Its control socket on that host.
    pub control: String,
    /// The device or export it presents (`/dev/ublkb0`, `nbd+unix:///?socket=...`).
    pub device: String,
    /// Process id on that host.
    pub pid: u32,
}

/// When a write may be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Volatile write cache: durable after FLUSH or with FUA.
    Cache,
    /// Every write is durable on every in-sync replica before its acknowledgement.
    Through,
}

/// How many copies a site holds; the placement of new chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRule {
    /// The site.
    pub site: String,
    /// Copies there.
    pub copies: u8,
}

/// Who has the volume attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The hypervisor.
    pub host: String,
    /// Its boot.
    pub boot: BootId,
    /// Random per front process: tells a front's own write from another's after an unknown outcome.
    pub front: [u8; 16],
}

/// State of one replica of a chunk, after the node's health is taken into account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// Has every acknowledged write; may be read; must acknowledge writes.
    InSync,
    /// Takes writes, is being filled, is never read.
    Joining,
    /// Missed writes; gets none, is never read.
    Stale,
    /// No longer part of the set; to be deleted once its node has recorded a newer generation.
    Leaving,
}

/// One replica of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Replica {
    /// Where.
    pub node: NodeId,
    /// Effective state.
    pub state: ReplicaState,
}

/// Health of a node *for one volume*: a single record per (volume, node), whatever the number of
/// chunks. It turns every in-sync replica on that node into stale or joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum NodeHealth {
    /// Missed writes made in `since` or later.
    Stale {
        /// First generation whose writes it may lack.
        since: Generation,
    },
    /// Back, takes writes, is being resynchronised from what was written since.
    Rejoining {
        /// First generation whose writes it may lack.
        since: Generation,
    },
}

/// Everything about a volume except its map shards. Small; rewritten by every change of the volume,
/// so that its store version guards each transaction (I5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeHead {
    /// Identity.
    pub volume: VolumeId,
    /// Name, unique.
    pub name: String,
    /// Size; a multiple of 4 KiB.
    pub size_bytes: u64,
    /// Chunk size; a power of two, 1 to 64 MiB.
    pub chunk_bytes: u64,
    /// When writes are acknowledged.
    pub durability: Durability,
    /// The placement asked for.
    pub place: Vec<PlaceRule>,
    /// Fencing number of the latest attach.
    pub token: Token,
    /// Number of this configuration.
    pub generation: Generation,
    /// Who has it attached, if anyone.
    pub attach: Option<Attach>,
    /// Being deleted: no attach is possible any more.
    pub deleting: bool,
    /// Nodes that missed writes.
    pub health: Vec<(NodeId, NodeHealth)>,
}
