//! What a node answers, one byte in the header.

/// Outcome of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum Status {
    /// Done.
    #[error("done")]
    Ok = 0,
    /// A higher token is fenced here: the sender is a zombie and must stop.
    #[error("another front has attached the volume since (token too old)")]
    StaleToken = 1,
    /// This shard has never been fenced for the sender's token; FENCE first.
    #[error("this node has not been fenced for the token yet")]
    NotFenced = 2,
    /// A newer generation is recorded here: re-read the map, then retry.
    #[error("the map is older than the one the node knows")]
    StaleMap = 3,
    /// The node belongs to another cluster.
    #[error("the node belongs to another cluster")]
    WrongCluster = 4,
    /// Another node answers at this address.
    #[error("another node answers at this address")]
    WrongNode = 5,
    /// The chunk belongs to another shard of this node.
    #[error("the chunk belongs to another shard of the node")]
    WrongShard = 6,
    /// No free slot.
    #[error("the node is full")]
    NoSpace = 7,
    /// The device failed the I/O.
    #[error("the node's device failed")]
    IoError = 8,
    /// A sector's content does not match its checksum (the header's sector names the first).
    #[error("a sector does not match its checksum")]
    BadCrc = 9,
    /// The request makes no sense (a length, a range, an unknown operation).
    #[error("the request is malformed")]
    BadRequest = 10,
    /// Too much in flight on this connection; send again when replies came.
    #[error("too much in flight")]
    Busy = 11,
    /// No common protocol version.
    #[error("no common protocol version")]
    BadProtocol = 12,
    /// A flush failed earlier; the shard refuses writes until it is restarted.
    #[error("a flush failed earlier, the shard refuses writes")]
    Poisoned = 13,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping = 14,
    /// The other node needed for a copy cannot be reached or refused.
    #[error("the other node of a copy cannot be reached")]
    PeerFailed = 15,
    /// The node could not renew its membership in time and does not serve.
    #[error("the node lost its membership lease")]
    NoLease = 16,
    /// There is no such report here.
    #[error("there is no such report on the node")]
    NotFound = 17,
}

impl Status {
    /// The node will likely answer otherwise before long, or another run of it will.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Self::NoLease | Self::Stopping | Self::NotFenced)
    }

    /// From the wire; an unknown byte is `None`.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        use Status::*;
        const ALL: [Status; 18] = [
            Ok,
            StaleToken,
            NotFenced,
            StaleMap,
            WrongCluster,
            WrongNode,
            WrongShard,
            NoSpace,
            IoError,
            BadCrc,
            BadRequest,
            Busy,
            BadProtocol,
            Poisoned,
            Stopping,
            PeerFailed,
            NoLease,
            NotFound,
        ];
        ALL.get(usize::from(byte)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        for byte in 0..=255u8 {
            if let Some(status) = Status::from_byte(byte) {
                assert_eq!(status as u8, byte);
            } else {
                assert!(byte > 17);
            }
        }
    }
}
