//! Little-endian bytes to values and back, bounds-checked: arbitrary input ends in `None`.

use ukai_proto::limits::SEQ_MAX;
use ukai_proto::message::SectorState;
use ukai_proto::{ChunkIndex, Generation, Seq, Token, Version, VolumeId};

/// Bytes of one sector state on disk: token u32, seq u48, crc u32, flags u8.
pub(super) const STATE_BYTES: usize = 15;

/// Flags of a sector state that the disk keeps.
const FLAGS_KEPT: u16 = SectorState::ZERO | SectorState::BAD | SectorState::ADOPTED;

/// Takes values off the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn volume(&mut self) -> Option<VolumeId> {
        Some(VolumeId(self.array()?))
    }

    pub(super) fn chunk(&mut self) -> Option<ChunkIndex> {
        Some(ChunkIndex(self.u32()?))
    }

    pub(super) fn generation(&mut self) -> Option<Generation> {
        Some(Generation(self.u32()?))
    }

    pub(super) fn version(&mut self) -> Option<Version> {
        let token = Token(self.u32()?);
        let mut seq = [0u8; 8];
        seq[..6].copy_from_slice(&self.array::<6>()?);
        Some(Version {
            token,
            seq: Seq(u64::from_le_bytes(seq)),
        })
    }

    pub(super) fn state(&mut self) -> Option<SectorState> {
        let version = self.version()?;
        let crc = self.u32()?;
        let flags = u16::from(self.u8()?) & FLAGS_KEPT;
        Some(SectorState {
            version,
            crc,
            flags,
        })
    }
}

/// Appends values to a vector.
pub(super) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn put_version(&mut self, version: Version) {
        assert!(
            version.seq.0 <= SEQ_MAX,
            "sequence {} above 48 bits",
            version.seq
        );
        self.put_u32(version.token.0);
        self.put(&version.seq.0.to_le_bytes()[..6]);
    }

    fn put_state(&mut self, state: &SectorState) {
        self.put(&state_bytes(state));
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// One sector state as kept on disk.
pub(super) fn state_bytes(state: &SectorState) -> [u8; STATE_BYTES] {
    assert!(
        state.version.seq.0 <= SEQ_MAX,
        "sequence {} above 48 bits",
        state.version.seq
    );
    let mut out = [0u8; STATE_BYTES];
    out[..4].copy_from_slice(&state.version.token.0.to_le_bytes());
    out[4..10].copy_from_slice(&state.version.seq.0.to_le_bytes()[..6]);
    out[10..14].copy_from_slice(&state.crc.to_le_bytes());
    out[14] = (state.flags & FLAGS_KEPT).to_le_bytes()[0];
    out
}

/// Reads what [`state_bytes`] wrote.
pub(super) fn state_from(bytes: &[u8; STATE_BYTES]) -> SectorState {
    let mut seq = [0u8; 8];
    seq[..6].copy_from_slice(&bytes[4..10]);
    SectorState {
        version: Version {
            token: Token(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            seq: Seq(u64::from_le_bytes(seq)),
        },
        crc: u32::from_le_bytes([bytes[10], bytes[11], bytes[12], bytes[13]]),
        flags: u16::from(bytes[14]) & FLAGS_KEPT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_round_trip() {
        let state = SectorState {
            version: Version::new(Token(7), Seq(SEQ_MAX)),
            crc: 0xdead_beef,
            flags: SectorState::ADOPTED,
        };
        assert_eq!(state_from(&state_bytes(&state)), state);
        assert_eq!(Reader(&state_bytes(&state)).state(), Some(state));
        assert_eq!(Reader(&state_bytes(&state)[1..]).state(), None);
    }
}
