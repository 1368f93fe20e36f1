//! The `user_data` of every SQE this project puts on a lane's ring.
//!
//! The ring may be libublk's, which decides by bit 63 whether a completion is one of its own device
//! commands, and keeps the key of its futures in bits 16..48. So ours have bit 63 set, a magic in
//! bits 56..63, the kind in bits 48..56, zeros in 16..48, and a slot in the low 16 bits. libublk's
//! futures never carry the magic, because they use only bit 63 and the key.

const TARGET: u64 = 1 << 63;
const MAGIC: u64 = 0x2b << 56;
const MASK: u64 = 0xff00_ffff_ffff_0000;

/// What a completion is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A receive on a node's socket; slot: peer.
    PeerReceive = 1,
    /// A send on a node's socket; slot: peer.
    PeerSend = 2,
    /// A node's socket became connected (poll); slot: peer.
    PeerConnect = 3,
    /// The lane's eventfd was written.
    Wake = 4,
    /// Time passed.
    Tick = 5,
    /// A receive on the NBD client's socket.
    ClientReceive = 6,
    /// A send on the NBD client's socket.
    ClientSend = 7,
    /// The order to end the standing timeout was taken.
    TickEnd = 8,
}

/// Packs kind and slot.
#[must_use]
pub fn pack(kind: Kind, slot: u16) -> u64 {
    TARGET | MAGIC | (kind as u64) << 48 | u64::from(slot)
}

/// Reads what [`pack`] wrote; `None`: the completion belongs to someone else on the ring.
#[must_use]
pub fn unpack(user_data: u64) -> Option<(Kind, u16)> {
    if user_data & MASK != TARGET | MAGIC {
        return None;
    }
    let kind = match (user_data >> 48) & 0xff {
        1 => Kind::PeerReceive,
        2 => Kind::PeerSend,
        3 => Kind::PeerConnect,
        4 => Kind::Wake,
        5 => Kind::Tick,
        6 => Kind::ClientReceive,
        7 => Kind::ClientSend,
        8 => Kind::TickEnd,
        _ => return None,
    };
    #[allow(clippy::cast_possible_truncation)] // the mask left 16 bits
    let slot = user_data as u16;
    Some((kind, slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_leaves_the_bits_of_libublk_alone() {
        for kind in [
            Kind::PeerReceive,
            Kind::PeerSend,
            Kind::PeerConnect,
            Kind::Wake,
            Kind::Tick,
            Kind::ClientReceive,
            Kind::ClientSend,
            Kind::TickEnd,
        ] {
            for slot in [0, 1, 4095, u16::MAX] {
                let packed = pack(kind, slot);
                assert_eq!(unpack(packed), Some((kind, slot)));
                assert_eq!(packed >> 63, 1);
                assert_eq!(packed >> 16 & 0xffff_ffff, 0);
            }
        }
        assert_eq!(unpack(1 << 63 | 77 << 16), None);
        assert_eq!(unpack(5), None);
    }
}
