//! A whole frame: header, auxiliary section, payload handle.

use crate::crc::crc32c;
use crate::header::{Flags, Header};
use crate::limits::{AUX_BYTES_MAX, WIRE_UNIT_BYTES};

/// A handle to payload bytes. Shells use DMA or guest buffers, the simulator plain vectors; cores
/// only ever look at the bytes and pass the handle on.
pub trait Buffer {
    /// The bytes.
    fn as_slice(&self) -> &[u8];
}

impl Buffer for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

/// A frame as cores see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame<B> {
    /// The header; `aux_bytes` and `aux_crc` agree with `aux`.
    pub header: Header,
    /// The auxiliary section, padded to a multiple of 64 bytes.
    pub aux: Vec<u8>,
    /// The payload: exactly `header.data_bytes()` bytes if the data flag is set, else `None`.
    pub data: Option<B>,
}

impl<B: Buffer> Frame<B> {
    /// Pads `aux`, fills in its length and checksum, and sets the data flag if there is payload.
    #[must_use]
    pub fn new(mut header: Header, mut aux: Vec<u8>, data: Option<B>) -> Self {
        aux.resize(aux.len().next_multiple_of(WIRE_UNIT_BYTES), 0);
        assert!(
            aux.len() <= AUX_BYTES_MAX,
            "auxiliary section of {} bytes",
            aux.len()
        );
        #[allow(clippy::cast_possible_truncation)] // asserted above
        {
            header.aux_bytes = aux.len() as u32;
        }
        header.aux_crc = if aux.is_empty() { 0 } else { crc32c(&aux) };
        if let Some(data) = &data {
            header.flags = header.flags.with(Flags::DATA);
            assert_eq!(
                data.as_slice().len(),
                header.data_bytes(),
                "payload against count"
            );
        }
        Self { header, aux, data }
    }

    /// A frame of a header alone.
    #[must_use]
    pub fn bare(header: Header) -> Self {
        Self::new(header, Vec::new(), None)
    }

    /// All bytes in one vector (tests, control connections; the data path gathers instead).
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.header.frame_bytes());
        out.extend_from_slice(&self.header.encode());
        out.extend_from_slice(&self.aux);
        if let Some(data) = &self.data {
            out.extend_from_slice(data.as_slice());
        }
        out
    }
}
