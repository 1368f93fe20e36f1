//! Payload memory: aligned buffers that went through the device or came from a socket.

use crate::disk::api::WriteData;
use glommio::io::{DmaBuffer, ReadResult};
use ukai_proto::Buffer;

/// A payload handle of the shell.
#[derive(Debug)]
pub(crate) enum NodeBuf {
    /// Received from a connection, or assembled for the device.
    Dma(DmaBuffer),
    /// Read from the device.
    Read(ReadResult),
}

impl Buffer for NodeBuf {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Dma(buffer) => buffer.as_bytes(),
            Self::Read(result) => result,
        }
    }
}

/// What a device write needs: the payload as it is, anything else copied into aligned memory.
pub(super) fn for_device(data: WriteData<NodeBuf>) -> DmaBuffer {
    match data {
        WriteData::Payload(NodeBuf::Dma(buffer)) => buffer,
        WriteData::Payload(NodeBuf::Read(result)) => copied(&result),
        WriteData::Owned(bytes) => copied(&bytes),
    }
}

fn copied(bytes: &[u8]) -> DmaBuffer {
    let mut buffer = glommio::allocate_dma_buffer(bytes.len());
    buffer.as_bytes_mut().copy_from_slice(bytes);
    buffer
}
