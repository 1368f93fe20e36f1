//! Payload memory: aligned buffers that go through the device and sockets.

use crate::disk::api::WriteData;
use glommio::io::DmaBuffer;
use ukai_proto::Buffer;

/// A payload handle of the shell.
#[derive(Debug)]
pub(crate) struct NodeBuf(pub(super) DmaBuffer);

impl Buffer for NodeBuf {
    fn as_slice(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What a device write needs: the payload as it is, anything else copied into aligned memory.
pub(super) fn for_device(data: WriteData<NodeBuf>) -> DmaBuffer {
    match data {
        WriteData::Payload(NodeBuf(buffer)) => buffer,
        WriteData::Owned(bytes) => {
            let mut buffer = glommio::allocate_dma_buffer(bytes.len());
            buffer.as_bytes_mut().copy_from_slice(&bytes);
            buffer
        }
    }
}
