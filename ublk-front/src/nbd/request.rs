//! Requests of the transmission phase: decoding, and what each asks for.

use super::{BLOCK_BYTES, NbdError, PAYLOAD_BYTES_MAX};

/// Size of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
const REQUEST_MAGIC: u32 = 0x2560_9513;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_CACHE: u16 = 5;
const CMD_WRITE_ZEROES: u16 = 6;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
const FLAG_DF: u16 = 4;

/// A request as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Command.
    pub command: u16,
    /// Echoed in the reply.
    pub cookie: u64,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u32,
}

/// What a request asks for. Offsets and lengths are whole blocks, except for READ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Read; the range need not be aligned.
    Read,
    /// Write; the payload follows.
    Write {
        /// Durable when answered.
        fua: bool,
    },
    /// Zero the range `offset`, `length` (which may be smaller than the request's for trims).
    Zero {
        /// From here.
        offset: u64,
        /// So much.
        length: u32,
        /// Space may be given back.
        unmap: bool,
        /// Durable when answered.
        fua: bool,
    },
    /// Everything answered before becomes durable.
    Flush,
    /// Nothing to do: answer at once.
    Nothing,
    /// The client goes; no answer.
    Disconnect,
}

impl Request {
    /// From the wire; `None`: wrong magic, the stream cannot be followed any more.
    #[must_use]
    pub fn decode(raw: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let field = |from: usize, len: usize| {
            let bytes = &raw[from..from + len];
            bytes
                .iter()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        #[allow(clippy::cast_possible_truncation)] // field widths
        let request = Self {
            flags: field(4, 2) as u16,
            command: field(6, 2) as u16,
            cookie: field(8, 8),
            offset: field(16, 8),
            length: field(24, 4) as u32,
        };
        (field(0, 4) == u64::from(REQUEST_MAGIC)).then_some(request)
    }

    /// Is it a READ (answered by a structured reply if that was agreed)?
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.command == CMD_READ
    }

    /// Bytes that follow the request; they follow also if it is refused.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.command == CMD_WRITE {
            self.length
        } else {
            0
        }
    }

    /// Checks it against the protocol and the size of the export.
    pub fn work(&self, size_bytes: u64) -> Result<Work, NbdError> {
        let allowed = FLAG_FUA
            | match self.command {
                CMD_READ => FLAG_DF,
                CMD_WRITE_ZEROES => FLAG_NO_HOLE,
                _ => 0,
            };
        if self.command == CMD_DISC {
            return Ok(Work::Disconnect);
        }
        if self.flags & !allowed != 0 {
            return Err(NbdError::Invalid);
        }
        let fua = self.flags & FLAG_FUA != 0;
        match self.command {
            CMD_FLUSH if self.offset == 0 && self.length == 0 => return Ok(Work::Flush),
            CMD_READ | CMD_WRITE | CMD_TRIM | CMD_CACHE | CMD_WRITE_ZEROES => {}
            CMD_FLUSH => return Err(NbdError::Invalid),
            _ => return Err(NbdError::Unsupported),
        }
        let end = self.offset.checked_add(self.length.into());
        if self.length == 0 {
            return Err(NbdError::Invalid);
        }
        if end.is_none_or(|end| end > size_bytes) {
            // Writers past the end learn that there is no space, as from a block device.
            let write = matches!(self.command, CMD_WRITE | CMD_WRITE_ZEROES);
            return Err(if write {
                NbdError::NoSpace
            } else {
                NbdError::Invalid
            });
        }
        let block = u64::from(BLOCK_BYTES);
        let aligned = self.offset.is_multiple_of(block) && self.length.is_multiple_of(BLOCK_BYTES);
        match self.command {
            CMD_READ if self.length <= PAYLOAD_BYTES_MAX => Ok(Work::Read),
            CMD_WRITE if self.length <= PAYLOAD_BYTES_MAX && aligned => Ok(Work::Write { fua }),
            CMD_CACHE => Ok(Work::Nothing),
            CMD_TRIM => Ok(self.trim(fua)),
            CMD_WRITE_ZEROES if aligned => {
                let unmap = self.flags & FLAG_NO_HOLE == 0;
                Ok(Work::Zero {
                    offset: self.offset,
                    length: self.length,
                    unmap,
                    fua,
                })
            }
            _ => Err(NbdError::Invalid),
        }
    }

    /// Whole blocks inside the range: a trim is a hint and may be rounded inwards.
    fn trim(&self, fua: bool) -> Work {
        let block = u64::from(BLOCK_BYTES);
        let start = self.offset.next_multiple_of(block);
        let end = (self.offset + u64::from(self.length)) / block * block;
        #[allow(clippy::cast_possible_truncation)] // not longer than the request
        match end.checked_sub(start) {
            None | Some(0) => Work::Nothing,
            Some(length) => Work::Zero {
                offset: start,
                length: length as u32,
                unmap: true,
                fua,
            },
        }
    }

    /// To the wire (tests and clients of tests).
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut raw = [0; REQUEST_BYTES];
        raw[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        raw[4..6].copy_from_slice(&self.flags.to_be_bytes());
        raw[6..8].copy_from_slice(&self.command.to_be_bytes());
        raw[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        raw[16..24].copy_from_slice(&self.offset.to_be_bytes());
        raw[24..].copy_from_slice(&self.length.to_be_bytes());
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 30;

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        Request {
            flags,
            command,
            cookie: 7,
            offset,
            length,
        }
    }

    #[test]
    fn flags_ranges_and_alignment_are_checked() {
        let ok =
            |command, flags, offset, length| request(command, flags, offset, length).work(SIZE);
        assert_eq!(ok(CMD_READ, FLAG_DF, 0, 4096), Ok(Work::Read));
        assert_eq!(ok(CMD_READ, 0, 513, 100), Ok(Work::Read));
        assert_eq!(ok(CMD_READ, FLAG_NO_HOLE, 0, 4096), Err(NbdError::Invalid));
        assert_eq!(ok(CMD_READ, 0, SIZE, 1), Err(NbdError::Invalid));
        assert_eq!(ok(CMD_READ, 0, u64::MAX, 1), Err(NbdError::Invalid));
        assert_eq!(ok(CMD_READ, 0, 0, 0), Err(NbdError::Invalid));
        assert_eq!(
            ok(CMD_WRITE, FLAG_FUA, 4096, 8192),
            Ok(Work::Write { fua: true })
        );
        assert_eq!(ok(CMD_WRITE, 0, 512, 4096), Err(NbdError::Invalid));
        assert_eq!(ok(CMD_WRITE, 0, SIZE - 4096, 8192), Err(NbdError::NoSpace));
        assert_eq!(
            ok(CMD_WRITE, 0, 0, PAYLOAD_BYTES_MAX + 4096),
            Err(NbdError::Invalid)
        );
        assert_eq!(ok(CMD_FLUSH, 0, 0, 0), Ok(Work::Flush));
        assert_eq!(ok(CMD_FLUSH, 0, 0, 1), Err(NbdError::Invalid));
        assert_eq!(ok(CMD_CACHE, 0, 0, 4096), Ok(Work::Nothing));
        assert_eq!(ok(7, 0, 0, 4096), Err(NbdError::Unsupported));
        assert_eq!(ok(CMD_DISC, 0, 0, 0), Ok(Work::Disconnect));
        // FAST_ZERO was not offered.
        assert_eq!(ok(CMD_WRITE_ZEROES, 16, 0, 4096), Err(NbdError::Invalid));
    }

    #[test]
    fn zeroes_keep_space_with_no_hole_and_trims_are_rounded_inwards() {
        let zero = |offset, length, unmap| {
            Ok(Work::Zero {
                offset,
                length,
                unmap,
                fua: false,
            })
        };
        assert_eq!(
            request(CMD_WRITE_ZEROES, 0, 0, 4096).work(SIZE),
            zero(0, 4096, true)
        );
        let no_hole = request(CMD_WRITE_ZEROES, FLAG_NO_HOLE, 0, 4096);
        assert_eq!(no_hole.work(SIZE), zero(0, 4096, false));
        assert_eq!(
            request(CMD_TRIM, 0, 1, 12_000).work(SIZE),
            zero(4096, 4096, true)
        );
        assert_eq!(request(CMD_TRIM, 0, 1, 4096).work(SIZE), Ok(Work::Nothing));
        assert_eq!(
            request(CMD_TRIM, 0, 4097, 100).work(SIZE),
            Ok(Work::Nothing)
        );
    }

    proptest! {
        #[test]
        fn round_trips_and_never_leaves_the_export(
            flags in 0u16..32, command in 0u16..10, cookie: u64, offset: u64, length: u32, size: u64,
        ) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::decode(&request.encode()), Some(request));
            if let Ok(Work::Zero { offset, length, .. }) = request.work(size) {
                prop_assert!(offset + u64::from(length) <= size && length > 0);
                prop_assert!(offset % 4096 == 0 && length % 4096 == 0);
            }
            if let Ok(Work::Read | Work::Write { .. }) = request.work(size) {
                prop_assert!(offset + u64::from(length) <= size && length <= PAYLOAD_BYTES_MAX);
            }
        }
    }
}
