//! What client and node say to each other: a header of 64 bytes, as UKAI's, and a payload.

use crate::block::{ALIGN, BLOCK_BYTES_MAX, Block};
use crate::stream::Stream;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

pub(crate) const HEADER_BYTES: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    /// The answer has the size in its position.
    Size,
}

/// Of a request or its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// Echoed in the answer.
    pub(crate) key: u64,
    pub(crate) position: u64,
    /// Of the range.
    pub(crate) bytes: u32,
    /// What follows.
    pub(crate) payload_bytes: u32,
    /// An answer's errno, or 0.
    pub(crate) error: u32,
}

impl Header {
    pub(crate) fn request(kind: Kind, key: usize, position: u64, bytes: usize) -> Self {
        #[allow(clippy::cast_possible_truncation)] // at most BLOCK_BYTES_MAX
        let bytes = bytes as u32;
        let payload_bytes = if kind == Kind::Write { bytes } else { 0 };
        Self {
            kind,
            key: key as u64,
            position,
            bytes,
            payload_bytes,
            error: 0,
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = self.kind as u8;
        out[4..8].copy_from_slice(&self.error.to_le_bytes());
        out[8..16].copy_from_slice(&self.key.to_le_bytes());
        out[16..24].copy_from_slice(&self.position.to_le_bytes());
        out[24..28].copy_from_slice(&self.bytes.to_le_bytes());
        out[28..32].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out
    }

    pub(crate) fn decode(raw: &[u8; HEADER_BYTES]) -> io::Result<Self> {
        let field = |from: usize, len: usize| {
            let bytes = raw[from..from + len].iter().rev();
            bytes.fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let kind = [Kind::Read, Kind::Write, Kind::Flush, Kind::Size].get(usize::from(raw[0]));
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let payload_bytes = field(28, 4);
        if payload_bytes > BLOCK_BYTES_MAX as u64 {
            return Err(invalid("a payload of more than 1 MiB"));
        }
        #[allow(clippy::cast_possible_truncation)] // field widths
        Ok(Self {
            kind: *kind.ok_or_else(|| invalid("a frame of unknown kind"))?,
            key: field(8, 8),
            position: field(16, 8),
            bytes: field(24, 4) as u32,
            payload_bytes: payload_bytes as u32,
            error: field(4, 4) as u32,
        })
    }

    /// Is it a range of whole blocks inside so many bytes, with the payload that its kind has?
    pub(crate) fn is_valid_request(&self, size_bytes: u64) -> bool {
        let bytes = u64::from(self.bytes);
        let aligned = (self.position | bytes).is_multiple_of(ALIGN as u64);
        let inside = self
            .position
            .checked_add(bytes)
            .is_some_and(|end| end <= size_bytes);
        let payload = if self.kind == Kind::Write {
            self.bytes
        } else {
            0
        };
        let range = match self.kind {
            Kind::Read | Kind::Write => bytes > 0 && bytes <= BLOCK_BYTES_MAX as u64,
            Kind::Flush | Kind::Size => true,
        };
        aligned && inside && range && payload == self.payload_bytes
    }
}

/// A stream of frames.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) stream: Stream,
    /// Its payload has not wholly come.
    open: Option<Header>,
}

impl Line {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, open: None }
    }

    /// The next frame that has wholly come.
    pub(crate) fn next(&mut self) -> io::Result<Option<(Header, Option<Block>)>> {
        if self.open.is_none() {
            let Some(raw) = self.stream.bytes().first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let header = Header::decode(raw)?;
            self.stream.consume(HEADER_BYTES);
            if header.payload_bytes == 0 {
                return Ok(Some((header, None)));
            }
            self.stream.expect(header.payload_bytes as usize);
            self.open = Some(header);
        }
        let Some(block) = self.stream.take_payload() else {
            return Ok(None);
        };
        Ok(self.open.take().map(|header| (header, Some(block))))
    }

    pub(crate) fn put(&mut self, header: &Header, payload: Option<Block>) {
        self.stream.put(&header.encode(), payload);
    }
}

/// Connects to a node and asks how large it is.
pub(crate) fn connect(path: &str) -> io::Result<(Line, u64)> {
    let mut socket = UnixStream::connect(path)?;
    socket.write_all(&Header::request(Kind::Size, 0, 0, 0).encode())?;
    let mut raw = [0; HEADER_BYTES];
    socket.read_exact(&mut raw)?;
    let size = Header::decode(&raw)?.position;
    Ok((Line::new(Stream::new(socket.into())), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_bad_ones_are_errors() {
        let header = Header::request(Kind::Write, 7, 1 << 40, 8192);
        let mut raw = header.encode();
        assert_eq!(Header::decode(&raw).expect("valid"), header);
        assert!(header.is_valid_request(1 << 41) && !header.is_valid_request(1 << 40));
        assert!(
            !Header {
                bytes: 4096,
                ..header
            }
            .is_valid_request(1 << 41)
        );
        assert!(
            !Header {
                position: 512,
                ..header
            }
            .is_valid_request(1 << 41)
        );
        assert!(
            !Header {
                position: u64::MAX - 4095,
                ..header
            }
            .is_valid_request(u64::MAX)
        );
        raw[0] = 9;
        assert!(Header::decode(&raw).is_err(), "unknown kind");
        raw[0] = 1;
        raw[31] = 1;
        assert!(Header::decode(&raw).is_err(), "16 MiB of payload");
    }
}
