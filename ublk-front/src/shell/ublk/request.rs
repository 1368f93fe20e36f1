//! Reading the driver's I/O descriptors, and answering them.

use crate::core::api::{GuestError, GuestIo, GuestOp, GuestTag};
use libublk::sys;
use ukai_proto::limits::SECTOR_BYTES;

/// The driver counts in units of 512 bytes, whatever the logical block size.
const UNITS_PER_SECTOR: u64 = SECTOR_BYTES as u64 / 512;

/// A descriptor, copied out of the memory that the driver writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptor {
    /// Operation in the low byte, flags above.
    pub(super) op_flags: u32,
    /// Length in units of 512 bytes.
    pub(super) units: u32,
    /// First unit.
    pub(super) first_unit: u64,
}

impl From<&sys::ublksrv_io_desc> for Descriptor {
    fn from(raw: &sys::ublksrv_io_desc) -> Self {
        Self {
            op_flags: raw.op_flags,
            units: raw.nr_sectors,
            first_unit: raw.start_sector,
        }
    }
}

impl Descriptor {
    /// The request it describes. An operation we did not offer, or one that is not made of whole
    /// sectors (the block layer keeps to our logical block size), is [`GuestError::Invalid`].
    pub(super) fn request(self, tag: GuestTag) -> Result<GuestIo, GuestError> {
        let fua = self.op_flags & sys::UBLK_IO_F_FUA != 0;
        let op = match self.op_flags & 0xff {
            sys::UBLK_IO_OP_READ => GuestOp::Read,
            sys::UBLK_IO_OP_WRITE => GuestOp::Write { fua },
            // A flush has no range; its descriptor holds whatever was there before.
            sys::UBLK_IO_OP_FLUSH => {
                return Ok(GuestIo {
                    tag,
                    op: GuestOp::Flush,
                    sector: 0,
                    count: 0,
                });
            }
            sys::UBLK_IO_OP_DISCARD => GuestOp::Zero { unmap: true, fua },
            sys::UBLK_IO_OP_WRITE_ZEROES => GuestOp::Zero {
                unmap: self.op_flags & sys::UBLK_IO_F_NOUNMAP == 0,
                fua,
            },
            _ => return Err(GuestError::Invalid),
        };
        let whole = self.first_unit.is_multiple_of(UNITS_PER_SECTOR)
            && u64::from(self.units).is_multiple_of(UNITS_PER_SECTOR);
        if !whole || self.units == 0 {
            return Err(GuestError::Invalid);
        }
        #[allow(clippy::cast_possible_truncation)] // an eighth of a u32
        let count = (u64::from(self.units) / UNITS_PER_SECTOR) as u32;
        Ok(GuestIo {
            tag,
            op,
            sector: self.first_unit / UNITS_PER_SECTOR,
            count,
        })
    }

    /// The result field of the answer: bytes of a read or write, 0 for the rest, or a negative
    /// errno.
    pub(super) fn answer(self, result: Result<(), GuestError>) -> i32 {
        match result {
            Ok(()) => match self.op_flags & 0xff {
                sys::UBLK_IO_OP_READ | sys::UBLK_IO_OP_WRITE => {
                    i32::try_from(u64::from(self.units) * 512).unwrap_or(-libc::EIO)
                }
                _ => 0,
            },
            Err(GuestError::Invalid) => -libc::EINVAL,
            Err(GuestError::NoSpace) => -libc::ENOSPC,
            Err(GuestError::Io | GuestError::Fenced) => -libc::EIO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(op_flags: u32, first_unit: u64, units: u32) -> Descriptor {
        Descriptor {
            op_flags,
            units,
            first_unit,
        }
    }

    #[test]
    fn operations_and_flags_become_guest_requests() {
        let tag = GuestTag(3);
        let cases = [
            (sys::UBLK_IO_OP_READ, GuestOp::Read),
            (sys::UBLK_IO_OP_WRITE, GuestOp::Write { fua: false }),
            (
                sys::UBLK_IO_OP_WRITE | sys::UBLK_IO_F_FUA,
                GuestOp::Write { fua: true },
            ),
            (
                sys::UBLK_IO_OP_DISCARD,
                GuestOp::Zero {
                    unmap: true,
                    fua: false,
                },
            ),
            (
                sys::UBLK_IO_OP_WRITE_ZEROES,
                GuestOp::Zero {
                    unmap: true,
                    fua: false,
                },
            ),
            (
                sys::UBLK_IO_OP_WRITE_ZEROES | sys::UBLK_IO_F_NOUNMAP | sys::UBLK_IO_F_FUA,
                GuestOp::Zero {
                    unmap: false,
                    fua: true,
                },
            ),
        ];
        for (op_flags, op) in cases {
            let io = descriptor(op_flags | sys::UBLK_IO_F_META, 16, 24).request(tag);
            assert_eq!(
                io,
                Ok(GuestIo {
                    tag,
                    op,
                    sector: 2,
                    count: 3
                })
            );
        }
    }

    #[test]
    fn a_flush_ignores_the_stale_range() {
        let io = descriptor(sys::UBLK_IO_OP_FLUSH, 7, 1).request(GuestTag(0));
        assert_eq!(
            io,
            Ok(GuestIo {
                tag: GuestTag(0),
                op: GuestOp::Flush,
                sector: 0,
                count: 0
            })
        );
    }

    #[test]
    fn partial_sectors_and_unknown_operations_are_refused() {
        for (op, first, units) in [
            (sys::UBLK_IO_OP_READ, 1, 8),
            (sys::UBLK_IO_OP_READ, 8, 9),
            (sys::UBLK_IO_OP_WRITE, 8, 0),
            (sys::UBLK_IO_OP_ZONE_APPEND, 8, 8),
            (sys::UBLK_IO_OP_WRITE_SAME, 8, 8),
        ] {
            let io = descriptor(op, first, units).request(GuestTag(0));
            assert_eq!(
                io,
                Err(GuestError::Invalid),
                "operation {op} at {first}+{units}"
            );
        }
    }

    #[test]
    fn answers_are_bytes_or_errno() {
        assert_eq!(
            descriptor(sys::UBLK_IO_OP_READ, 0, 1024).answer(Ok(())),
            512 << 10
        );
        assert_eq!(
            descriptor(sys::UBLK_IO_OP_DISCARD, 0, u32::MAX).answer(Ok(())),
            0
        );
        let read = descriptor(sys::UBLK_IO_OP_READ, 0, 8);
        assert_eq!(read.answer(Err(GuestError::NoSpace)), -libc::ENOSPC);
        assert_eq!(read.answer(Err(GuestError::Fenced)), -libc::EIO);
        assert_eq!(read.answer(Err(GuestError::Invalid)), -libc::EINVAL);
    }
}
