//! What goes into and comes out of a shard core.

use crate::disk::api::{DiskOp, DiskResult, IoId, ReadData};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::WIRE_UNIT_BYTES;
use ukai_proto::{
    Buffer, ClusterId, Flags, Frame, Header, Incarnation, NodeId, ShardIndex, Status,
};

/// A client connection, numbered by the shell; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u64);

/// A connection to another node's shard, numbered by the core; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PeerId(pub u64);

/// Who a shard is: what HELLO compares and answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardIdentity {
    /// Cluster that the node was formatted for.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// This shard.
    pub shard: ShardIndex,
    /// Shards of the node.
    pub shard_count: u16,
    /// This run.
    pub incarnation: Incarnation,
}

/// Something happened.
#[derive(Debug)]
pub enum ShardEvent<B> {
    /// A client connected.
    ConnOpened {
        /// Its number.
        conn: ConnId,
    },
    /// A client is gone; what it asked for may still be carried out, replies are dropped.
    ConnClosed {
        /// Its number.
        conn: ConnId,
    },
    /// A client's frame, header and auxiliary section already verified by the decoder.
    Frame {
        /// From whom.
        conn: ConnId,
        /// The frame.
        frame: Frame<B>,
    },
    /// A device operation ended.
    DiskDone {
        /// Which.
        io: IoId,
        /// How.
        result: DiskResult<B>,
    },
    /// A connection asked for by [`ShardAction::PeerConnect`] stands.
    PeerOpened {
        /// Which.
        peer: PeerId,
    },
    /// A peer's frame.
    PeerFrame {
        /// From whom.
        peer: PeerId,
        /// The frame.
        frame: Frame<B>,
    },
    /// A peer could not be reached or is gone.
    PeerClosed {
        /// Which.
        peer: PeerId,
    },
    /// Time passed; send one about every second (copy timeouts, idle peers, sweeping).
    Tick,
    /// The node could not renew its membership in time: refuse everything of volumes.
    LeaseLost,
    /// It is a member (again).
    LeaseHeld,
    /// Finish what is in flight, refuse the rest, close the store, then [`ShardAction::Stopped`].
    Stop,
}

/// Payload of a reply.
#[derive(Debug)]
pub enum OutData<B> {
    /// None.
    None,
    /// As read from the device.
    Buffer(B),
    /// Assembled.
    Owned(Vec<u8>),
}

impl<B: Buffer> OutData<B> {
    /// The bytes; empty if there are none.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Buffer(buffer) => buffer.as_slice(),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<B> From<ReadData<B>> for OutData<B> {
    fn from(data: ReadData<B>) -> Self {
        match data {
            ReadData::Zeroes => Self::None,
            ReadData::Buffer(buffer) => Self::Buffer(buffer),
            ReadData::Owned(bytes) => Self::Owned(bytes),
        }
    }
}

/// A reply: like [`Frame`], but its payload may be a device buffer or assembled bytes.
#[derive(Debug)]
pub struct OutFrame<B> {
    /// Header; lengths, checksum and flags agree with the rest.
    pub header: Header,
    /// Auxiliary section, padded.
    pub aux: Vec<u8>,
    /// Payload.
    pub data: OutData<B>,
}

impl<B: Buffer> OutFrame<B> {
    /// Pads `aux`, fills in length, checksum and the data flag.
    #[must_use]
    pub fn new(mut header: Header, mut aux: Vec<u8>, data: OutData<B>) -> Self {
        aux.resize(aux.len().next_multiple_of(WIRE_UNIT_BYTES), 0);
        #[allow(clippy::cast_possible_truncation)] // Header::encode asserts the limit of 64 KiB
        {
            header.aux_bytes = aux.len() as u32;
        }
        header.aux_crc = if aux.is_empty() { 0 } else { crc32c(&aux) };
        if !matches!(data, OutData::None) {
            header.flags = header.flags.with(Flags::DATA);
        }
        assert_eq!(
            data.as_slice().len(),
            header.data_bytes(),
            "payload against count"
        );
        Self { header, aux, data }
    }

    /// A header alone.
    #[must_use]
    pub fn bare(header: Header) -> Self {
        Self::new(header, Vec::new(), OutData::None)
    }

    /// Header and auxiliary section as they go out, before the payload.
    #[must_use]
    pub fn head_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ukai_proto::limits::HEADER_BYTES + self.aux.len());
        out.extend_from_slice(&self.header.encode());
        out.extend_from_slice(&self.aux);
        out
    }

    /// As a frame with a vector payload (simulator, tests).
    #[must_use]
    pub fn into_frame(self) -> Frame<Vec<u8>> {
        let data = match &self.data {
            OutData::None => None,
            data => Some(data.as_slice().to_vec()),
        };
        Frame {
            header: self.header,
            aux: self.aux,
            data,
        }
    }
}

/// Why the core wants a client's connection closed (after what was sent before).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// HELLO failed with this status, which was sent.
    #[error("HELLO refused: {0}")]
    Hello(Status),
    /// It does not follow the protocol.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// It said nothing.
    #[error("no HELLO in time")]
    Silent,
    /// Too many connections to this shard.
    #[error("too many connections to the shard")]
    TooMany,
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
}

/// Do this.
#[derive(Debug)]
pub enum ShardAction<B> {
    /// Send to a client; order within a connection is kept.
    Send {
        /// To whom.
        conn: ConnId,
        /// What.
        frame: OutFrame<B>,
    },
    /// Close after what was sent; no [`ShardEvent::ConnClosed`] is needed, but it does no harm.
    Close {
        /// Which.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// Give to the device; answer with [`ShardEvent::DiskDone`].
    Disk(DiskOp<B>),
    /// Connect to a shard of another node: try the addresses in order, then say
    /// [`ShardEvent::PeerOpened`] or [`ShardEvent::PeerClosed`].
    PeerConnect {
        /// Its number.
        peer: PeerId,
        /// The node, for logs; HELLO verifies it.
        source: NodeId,
        /// `unix:/path` or `tcp:host:port`.
        addresses: Vec<String>,
    },
    /// Send to a peer.
    PeerSend {
        /// To whom.
        peer: PeerId,
        /// What.
        frame: Frame<B>,
    },
    /// Close a peer; no [`ShardEvent::PeerClosed`] is expected.
    PeerClose {
        /// Which.
        peer: PeerId,
    },
    /// The store is closed after [`ShardEvent::Stop`]; `clean` if everything reached the device.
    Stopped {
        /// A checkpoint was written.
        clean: bool,
    },
}
