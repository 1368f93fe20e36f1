//! Events and actions of the two front cores: what shells and the simulator must do.

use std::sync::Arc;
use std::time::Duration;
use ukai_meta::{Durability, Replica};
use ukai_proto::{
    ChunkIndex, Generation, Header, Incarnation, NodeId, SectorInChunk, ShardIndex, Token, VolumeId,
};

use super::config::LaneConfig;
use super::window::LaneWindow;

/// Nanoseconds on a clock that only grows; its zero is the shell's choice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now(pub u64);

impl Now {
    /// Time since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Now) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// A later reading.
    #[must_use]
    pub fn after(self, pause: Duration) -> Now {
        Now(self
            .0
            .saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// One shard of one node, as lanes and control address it: the index into [`LaneConfig::peers`]
/// stays the same for the life of a front (new peers are appended).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PeerIndex(pub u32);

/// Where a peer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// Its shard.
    pub shard: ShardIndex,
    /// Shards of the node.
    pub shard_count: u16,
    /// Best first: `unix:/path`, `tcp:ip:port`.
    pub addresses: Vec<String>,
}

/// The shell's slot for a guest request: ublk tag or NBD slot. Its buffer stays put until
/// [`LaneAction::Complete`] has been carried out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GuestTag(pub u32);

/// What the guest wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestOp {
    /// Read.
    Read,
    /// Write; `fua`: durable when it completes.
    Write {
        /// Durable when it completes.
        fua: bool,
    },
    /// Everything completed before becomes durable.
    Flush,
    /// Zeros; `unmap`: space may be given back (discard, or write-zeroes without NO_HOLE).
    Zero {
        /// Give the space back.
        unmap: bool,
        /// Durable when it completes.
        fua: bool,
    },
}

/// A guest request, in sectors of 4 KiB. `count` is 0 for Flush; at most
/// [`GUEST_SECTORS_MAX`] for reads and writes, any length for Zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestIo {
    /// The shell's slot.
    pub tag: GuestTag,
    /// What.
    pub op: GuestOp,
    /// First sector of the volume.
    pub sector: u64,
    /// Sectors.
    pub count: u32,
}

/// Sectors of one guest read or write: 1 MiB, two pieces at most if unaligned to slots.
pub const GUEST_SECTORS_MAX: u32 = 256;
/// Guest requests in flight on one lane: the deepest ublk queue we offer.
pub const LANE_DEPTH_MAX: u32 = 256;
/// Lanes of one front (ublk queues, or NBD connections).
pub const LANES_MAX: usize = 64;

/// How a guest request ended, mapped to errno at the edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestError {
    /// Out of range or malformed: EINVAL.
    #[error("request outside the volume")]
    Invalid,
    /// No replica could serve it: EIO.
    #[error("no replica could serve the request")]
    Io,
    /// All replicas are full: ENOSPC.
    #[error("the storage nodes are full")]
    NoSpace,
    /// This front is no longer the volume's owner: EIO, for good.
    #[error("the volume was attached by another front")]
    Fenced,
}

/// Part of a guest buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferPart {
    /// Whose buffer.
    pub tag: GuestTag,
    /// From here.
    pub offset_bytes: u32,
    /// So much.
    pub bytes: u32,
}

/// What a lane wants done, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LaneAction {
    /// Send a frame: header (lengths and crcs filled in), auxiliary section, then the part of the
    /// guest's buffer. If the peer's connection is down when it comes to sending, drop it: the lane
    /// sends again after [`super::lane::LaneCore::peer_up`].
    Send {
        /// To whom.
        peer: PeerIndex,
        /// Encoded by the shell.
        header: Header,
        /// A multiple of 64 bytes.
        aux: Vec<u8>,
        /// Payload.
        payload: Option<BufferPart>,
    },
    /// Fill part of a guest's buffer with zeros (a replica said the range is all zeros).
    FillZeroes(BufferPart),
    /// Answer the guest. The buffer may be reused once no send refers to it any more.
    Complete {
        /// Which.
        tag: GuestTag,
        /// How.
        result: Result<(), GuestError>,
    },
    /// Break the connection (protocol error, silence) and connect again.
    Disconnect {
        /// Whom.
        peer: PeerIndex,
        /// For the log.
        why: &'static str,
    },
    /// Tell the control core.
    Report(LaneReport),
}

/// From a lane to control. The channel keeps their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LaneReport {
    /// The connection broke or could not be made.
    PeerDown {
        /// Whom.
        peer: PeerIndex,
    },
    /// Connected (again).
    PeerUp {
        /// Whom.
        peer: PeerIndex,
        /// The node's run.
        incarnation: Incarnation,
    },
    /// A replica cannot take writes (full, device error, poisoned): it must be recorded stale.
    ReplicaFailed {
        /// The node.
        node: NodeId,
        /// What it said.
        status: ukai_proto::Status,
    },
    /// A sector did not match its checksum on this node, another replica served it: repair.
    BadSector {
        /// The node.
        node: NodeId,
        /// Where.
        chunk: ChunkIndex,
        /// Where in the chunk.
        sector: SectorInChunk,
    },
    /// No replica can serve a read, but one would if a new token said that the chunk is to be reconciled: what it
    /// has was adopted after the death of its process.
    Doubted {
        /// Where.
        chunk: ChunkIndex,
    },
    /// A write failed although some replica may have it: the token is to be renewed.
    Abandoned {
        /// Of what it was a part.
        chunk: ChunkIndex,
    },
    /// The guest wants a chunk that is not reconciled yet.
    Touched {
        /// Which.
        chunk: ChunkIndex,
    },
    /// A node knows a newer generation: re-read the map.
    StaleMap,
    /// A node knows a higher token: stop for good.
    Fenced,
    /// Everything in flight has ended, or waits for lost nodes or for the installation.
    Prepared {
        /// Of which barrier.
        epoch: u64,
        /// Nodes that do not have every write of this lane.
        behind: Vec<NodeId>,
    },
    /// The new configuration is in force on this lane.
    Installed {
        /// Of which barrier.
        epoch: u64,
    },
}

/// From control to every lane.
#[derive(Clone, Debug)]
pub enum LaneOrder {
    /// Admit nothing new; report [`LaneReport::Prepared`] when drained. Sent again with a longer
    /// list if more nodes are lost meanwhile.
    Prepare {
        /// Barrier number.
        epoch: u64,
        /// Nodes whose answers are not waited for.
        lost: Vec<NodeId>,
    },
    /// Take the configuration, send what is unfinished, admit again.
    Install {
        /// Barrier number.
        epoch: u64,
        /// The configuration.
        config: Arc<LaneConfig>,
    },
    /// Replicas of these chunks are equal: they may be touched.
    Reconciled {
        /// Which.
        chunks: Vec<ChunkIndex>,
    },
    /// Fail everything, now and later: the front was fenced or gives up.
    Fail,
}

/// A lane, as control names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LaneId(pub u32);

/// Names a metadata request of control.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MetaId(pub u64);

/// How a metadata request ended.
#[derive(Debug)]
pub enum MetaOutcome {
    /// The map (boxed: large) and the nodes as registered.
    Loaded(Box<(ukai_meta::map::VolumeMap, Vec<ukai_meta::NodeState>)>),
    /// Committed: the map with its new store versions.
    Committed(Box<ukai_meta::map::VolumeMap>),
    /// The volume's relocation job, if it has one, and the time of day.
    Job {
        /// The record and its version.
        job: Option<Box<(ukai_meta::JobRecord, ukai_meta::KvVersion)>>,
        /// Seconds since 1970.
        unix_s: u64,
    },
    /// The job's record is written.
    JobStored(ukai_meta::KvVersion),
    /// It was not done, or that is not known.
    Failed(ukai_meta::CommitError),
    /// The volume does not exist (any more).
    NoVolume,
}

/// What happened, for control.
#[derive(Debug)]
pub enum ControlEvent {
    /// Begin.
    Start,
    /// A metadata request ended.
    Meta(MetaId, MetaOutcome),
    /// Control's own connection to a peer is up.
    PeerUp {
        /// Whom.
        peer: PeerIndex,
        /// The node's run.
        incarnation: Incarnation,
    },
    /// It broke or could not be made.
    PeerDown {
        /// Whom.
        peer: PeerIndex,
    },
    /// A reply came on control's connection.
    PeerFrame {
        /// From whom.
        peer: PeerIndex,
        /// Header.
        header: Header,
        /// Auxiliary section.
        aux: Vec<u8>,
    },
    /// A lane has come into being (it starts paused and gets an Install).
    LaneAdded(LaneId),
    /// A lane is gone (its guest requests have ended).
    LaneRemoved(LaneId),
    /// A lane reports.
    Lane(LaneId, LaneReport),
    /// What a lane measured lately.
    Window(LaneId, Box<LaneWindow>),
    /// A report for the nodes, of kind `FRONT`; more than a report may have is dropped.
    Publish(Vec<u8>),
    /// The volume's head may have changed.
    MapChanged,
    /// The volume's relocation job may have changed.
    JobChanged,
    /// Time passes; call at least every 100 ms.
    Tick,
    /// Detach cleanly: lanes have no guest any more.
    Detach,
}

/// What control wants done, in order.
#[derive(Debug)]
pub enum ControlAction {
    /// Keep control connections (and let lanes keep theirs) to these peers: new ones are at the end.
    Peers(Vec<Peer>),
    /// Load map and nodes; answer with [`MetaOutcome::Loaded`].
    MetaLoad(MetaId),
    /// Commit; answer Committed or Failed.
    MetaCommit(MetaId, Box<ukai_meta::transition::MapUpdate>),
    /// Load the relocation job; answer with [`MetaOutcome::Job`].
    JobLoad(MetaId),
    /// Write its record if it and the map are still these; answer JobStored or Failed.
    JobStore(
        MetaId,
        Box<ukai_meta::JobRecord>,
        ukai_meta::catalog::JobGuard,
    ),
    /// Send on control's connection. Dropped if it is down.
    Send {
        /// To whom.
        peer: PeerIndex,
        /// Header; lengths and crcs filled in.
        header: Header,
        /// Auxiliary section.
        aux: Vec<u8>,
    },
    /// Give an order to a lane.
    Order(LaneId, LaneOrder),
    /// Attached, reconciled: the device may be presented with these properties.
    Ready(Presented),
    /// The volume's size changed.
    Resized {
        /// New size.
        size_bytes: u64,
    },
    /// It is over: cleanly detached, or why not.
    Ended(Result<(), ControlError>),
    /// For the log of the operator: a sentence.
    Note(String),
}

/// What the device looks like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Presented {
    /// Volume.
    pub volume: VolumeId,
    /// Name.
    pub name: String,
    /// Size; a multiple of 4096.
    pub size_bytes: u64,
    /// Chunk size: discard granularity hint.
    pub chunk_bytes: u64,
    /// When writes are acknowledged.
    pub durability: Durability,
    /// Token of this attach.
    pub token: Token,
    /// Generation at this moment.
    pub generation: Generation,
}

/// Why a front stops or never starts.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    /// No such volume.
    #[error("there is no such volume (deleted meanwhile?)")]
    NoVolume,
    /// Attached elsewhere, being deleted...
    #[error("{0}")]
    Refused(String),
    /// Another front has attached it.
    #[error("another front has attached the volume; this one stops")]
    Fenced,
    /// Nodes that are needed do not answer.
    #[error("chunks have no reachable in-sync replica; nodes that do not answer: {0}")]
    Unreachable(String),
    /// The metadata store does not answer.
    #[error("{0}")]
    Meta(String),
    /// In-sync replicas cannot be made equal.
    #[error("reconcile failed: {0}")]
    Reconcile(String),
}

/// Replicas of one chunk as lanes use them: write to all in-sync and joining, read from the first
/// reachable in-sync one in the preference order.
pub type Replicas<'a> = &'a [Replica];
