//! CRC-32C (Castagnoli), the one checksum of the wire and of the disk.

use crate::limits::SECTOR_BYTES;
use crc_fast::{CrcAlgorithm, checksum};

/// CRC-32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[allow(clippy::cast_possible_truncation)] // a 32-bit algorithm in a 64-bit return type
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    crc
}

/// CRC-32C of one sector of zeros: what a never written sector reads as.
pub const ZERO_SECTOR_CRC: u32 = 0x98f9_4189;

/// Checksums of each sector of `data`, whose length is a multiple of the sector size.
pub fn sector_crcs(data: &[u8]) -> impl Iterator<Item = u32> + '_ {
    assert!(
        data.len().is_multiple_of(SECTOR_BYTES),
        "{} bytes is no whole sector",
        data.len()
    );
    data.chunks_exact(SECTOR_BYTES).map(crc32c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283); // RFC 3720 appendix B.4's polynomial
        assert_eq!(crc32c(&[0u8; SECTOR_BYTES]), ZERO_SECTOR_CRC);
    }
}
