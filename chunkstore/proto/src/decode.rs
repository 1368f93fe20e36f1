//! Sans-IO frame decoder: bytes in, frames out, whatever the cuts of the stream.

use crate::crc::crc32c;
use crate::frame::Frame;
use crate::header::{Header, HeaderError};
use crate::limits::HEADER_BYTES;

/// The stream cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Bad header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Auxiliary section damaged.
    #[error("auxiliary section checksum {actual:#010x}, computed {computed:#010x}")]
    AuxCrc {
        /// As received.
        actual: u32,
        /// Of the received bytes.
        computed: u32,
    },
}

/// What the stream needs next. Shells that receive straight into place ask this before each receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// So many bytes of header or auxiliary section.
    Head(usize),
    /// So many bytes of payload, for the header given by [`Decoder::header`].
    Data(usize),
}

/// Collects one frame at a time. Allocates the auxiliary section only after the header checksum and
/// its limits passed; payload memory is the caller's.
#[derive(Default, Debug)]
pub struct Decoder {
    head: Vec<u8>,
    header: Option<Header>,
    data_left: usize,
}

impl Decoder {
    /// At the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The header of the frame in progress, once it has arrived.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// What comes next.
    #[must_use]
    pub fn need(&self) -> Need {
        match &self.header {
            None => Need::Head(HEADER_BYTES - self.head.len()),
            Some(header) => {
                let head_bytes = HEADER_BYTES + header.aux_bytes as usize;
                if self.head.len() < head_bytes {
                    Need::Head(head_bytes - self.head.len())
                } else {
                    Need::Data(self.data_left)
                }
            }
        }
    }

    /// Take head bytes from the front of `bytes`; returns how many were taken. After it, if
    /// [`Decoder::need`] says `Data(n)` the head is complete: take `n` payload bytes (0 is
    /// possible) from the stream, then call [`Decoder::finish`].
    pub fn feed_head(&mut self, bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut taken = 0;
        while let Need::Head(want) = self.need() {
            let n = want.min(bytes.len() - taken);
            if n == 0 {
                break;
            }
            self.head.extend_from_slice(&bytes[taken..taken + n]);
            taken += n;
            if self.header.is_none() && self.head.len() == HEADER_BYTES {
                let mut raw = [0; HEADER_BYTES];
                raw.copy_from_slice(&self.head);
                let header = Header::decode(&raw)?;
                self.data_left = header.data_bytes();
                self.header = Some(header);
            }
            if let (Some(header), Need::Data(_)) = (&self.header, self.need())
                && header.aux_bytes > 0
            {
                let computed = crc32c(&self.head[HEADER_BYTES..]);
                if computed != header.aux_crc {
                    return Err(DecodeError::AuxCrc {
                        actual: header.aux_crc,
                        computed,
                    });
                }
            }
        }
        Ok(taken)
    }

    /// The frame, payload as given; resets for the next one. `None` while the head is incomplete.
    pub fn finish<B>(&mut self, data: Option<B>) -> Option<Frame<B>> {
        if !matches!(self.need(), Need::Data(_)) {
            return None;
        }
        let header = self.header.take()?;
        let aux = self.head.split_off(HEADER_BYTES);
        self.head.clear();
        self.data_left = 0;
        Some(Frame { header, aux, data })
    }
}

/// Decoder that also collects the payload into vectors: control connections, tools, simulator.
#[derive(Default, Debug)]
pub struct VecDecoder {
    inner: Decoder,
    data: Vec<u8>,
}

impl VecDecoder {
    /// Feed any bytes; complete frames are appended to `out`.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<Frame<Vec<u8>>>,
    ) -> Result<(), DecodeError> {
        loop {
            let taken = self.inner.feed_head(bytes)?;
            bytes = &bytes[taken..];
            let Need::Data(total) = self.inner.need() else {
                return Ok(());
            };
            let n = (total - self.data.len()).min(bytes.len());
            self.data.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.data.len() < total {
                return Ok(());
            }
            let data = (total > 0).then(|| std::mem::take(&mut self.data));
            out.extend(self.inner.finish(data));
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers of a test
mod tests {
    use super::*;
    use crate::header::{Flags, Opcode};
    use crate::ids::*;
    use crate::limits::SECTOR_BYTES;
    use proptest::prelude::*;

    fn write_frame(tag: u64, count: u16, aux_len: usize) -> Frame<Vec<u8>> {
        let header = Header {
            volume: VolumeId([7; 16]),
            chunk: ChunkIndex(3),
            sector: SectorInChunk(5),
            count,
            token: Token(2),
            seq: Seq(99),
            ..Header::request(Opcode::Write, tag)
        };
        let data = (count > 0).then(|| vec![tag as u8; usize::from(count) * SECTOR_BYTES]);
        Frame::new(header, vec![1; aux_len], data)
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_frames(
            shapes in prop::collection::vec((0u16..4, 0usize..300), 1..6),
            cuts in prop::collection::vec(1usize..5000, 1..50),
        ) {
            let frames: Vec<_> = shapes.iter().enumerate()
                .map(|(tag, (count, aux))| write_frame(tag as u64, *count, *aux)).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
            let (mut decoder, mut got, mut at) = (VecDecoder::default(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == bytes.len() { break; }
                let end = (at + cut).min(bytes.len());
                decoder.feed(&bytes[at..end], &mut got).unwrap();
                at = end;
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = VecDecoder::default().feed(&bytes, &mut Vec::new());
        }

        #[test]
        fn a_flipped_bit_in_the_head_is_found(bit in 0usize..(HEADER_BYTES + 64) * 8) {
            let mut bytes = write_frame(1, 1, 64).to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut got = Vec::new();
            let result = VecDecoder::default().feed(&bytes, &mut got);
            prop_assert!(result.is_err() && got.is_empty());
        }
    }

    #[test]
    fn data_on_an_opcode_without_data_is_refused() {
        let header = Header {
            count: 1,
            flags: Flags::DATA,
            ..Header::request(Opcode::Read, 1)
        };
        let result = VecDecoder::default().feed(&header.encode(), &mut Vec::new());
        assert!(matches!(
            result,
            Err(DecodeError::Header(HeaderError::Bits { .. }))
        ));
    }

    #[test]
    fn oversized_lengths_are_refused_before_allocation() {
        let header = Header {
            count: 257,
            flags: Flags::DATA,
            ..Header::request(Opcode::Write, 1)
        };
        let result = VecDecoder::default().feed(&header.encode(), &mut Vec::new());
        assert!(matches!(
            result,
            Err(DecodeError::Header(HeaderError::Length { .. }))
        ));
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let bytes = write_frame(0x0102_0304_0506_0708, 0, 0).header.encode();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            &hex[..120],
            "554b01050000000008070605040302010707070707070707070707070707070703000000050000000200\
             0000000000006300000000000000000000000000"[..120]
                .to_owned()
        );
    }
}
