//! Receiving on one node connection: frames out of the inbox, large payloads straight into place.

use super::PeerEvents;
use crate::core::api::{BufferPart, PeerIndex};
use crate::shell::buffers::{GuestBuffers, Holds};
use crate::shell::inbox::Inbox;
use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;
use std::slice;
use ukai_proto::Header;
use ukai_proto::crc::crc32c;
use ukai_proto::decode::DecodeError;
use ukai_proto::limits::HEADER_BYTES;

/// A payload with at least this much missing is received straight into the guest's buffer; less is
/// copied from the inbox (a 32 KiB copy costs about a microsecond, an own receive more).
const DIRECT_BYTES_MIN: usize = 32 << 10;

/// A frame whose payload has not wholly arrived.
#[derive(Debug)]
struct Partial {
    header: Header,
    /// Where the payload goes (held); `None`: it is thrown away.
    target: Option<BufferPart>,
    total: usize,
    done: usize,
}

/// The receiving half of a connection.
#[derive(Debug, Default)]
pub(super) struct Receive {
    inbox: Inbox,
    partial: Option<Partial>,
    /// Auxiliary section of `partial`.
    aux: Vec<u8>,
    /// The receive in flight goes into the guest's buffer.
    direct: bool,
}

impl Receive {
    /// The next RECV; the caller keeps `self` alive until its completion.
    pub(super) fn next<B: GuestBuffers>(&mut self, fd: RawFd, buffers: &B) -> squeue::Entry {
        if let Some(partial) = &self.partial
            && let Some(target) = partial.target
            && partial.total - partial.done >= DIRECT_BYTES_MIN
        {
            assert!(
                self.inbox.bytes().is_empty(),
                "payload bytes left in the inbox"
            );
            self.direct = true;
            let at = buffers.part(target).as_ptr().wrapping_add(partial.done);
            #[allow(clippy::cast_possible_truncation)] // payloads are at most 1 MiB
            let len = (partial.total - partial.done) as u32;
            return opcode::Recv::new(types::Fd(fd), at, len)
                .flags(libc::MSG_WAITALL)
                .build();
        }
        self.direct = false;
        self.inbox.receive(fd)
    }

    /// The receive brought `n` bytes: hands out the frames that are complete now.
    pub(super) fn arrived<B: GuestBuffers>(
        &mut self,
        n: usize,
        peer: PeerIndex,
        buffers: &B,
        holds: &mut Holds,
        events: &mut impl PeerEvents,
    ) -> Result<(), DecodeError> {
        if self.direct {
            self.direct = false;
            if let Some(partial) = &mut self.partial {
                partial.done += n;
                self.finish(peer, buffers, holds, events);
            }
        } else {
            self.inbox.filled(n);
        }
        loop {
            if self.partial.is_some() {
                if !self.copy_payload(peer, buffers, holds, events) {
                    return Ok(());
                }
            } else if !self.head(holds, peer, events)? {
                return Ok(());
            }
        }
    }

    /// Takes a head; `false`: it is not all there yet.
    fn head(
        &mut self,
        holds: &mut Holds,
        peer: PeerIndex,
        events: &mut impl PeerEvents,
    ) -> Result<bool, DecodeError> {
        let bytes = self.inbox.bytes();
        let Some(raw) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(false);
        };
        let header = Header::decode(raw)?;
        let head_bytes = HEADER_BYTES + header.aux_bytes as usize;
        if bytes.len() < head_bytes {
            return Ok(false);
        }
        let aux = &bytes[HEADER_BYTES..head_bytes];
        if !aux.is_empty() {
            let computed = crc32c(aux);
            if computed != header.aux_crc {
                return Err(DecodeError::AuxCrc {
                    actual: header.aux_crc,
                    computed,
                });
            }
        }
        let total = header.data_bytes();
        if total == 0 {
            events.frame(peer, &header, aux, &[]);
        } else {
            let target = events.target(peer, &header);
            // Only a place of the very size is one; else the payload is thrown away.
            let target = target.filter(|part| part.bytes as usize == total);
            if let Some(part) = target {
                holds.take(part.tag);
            }
            self.aux.clear();
            self.aux.extend_from_slice(aux);
            self.partial = Some(Partial {
                header,
                target,
                total,
                done: 0,
            });
        }
        self.inbox.consume(head_bytes);
        Ok(true)
    }

    /// Takes what the inbox has of the payload; `false`: more must be received.
    fn copy_payload<B: GuestBuffers>(
        &mut self,
        peer: PeerIndex,
        buffers: &B,
        holds: &mut Holds,
        events: &mut impl PeerEvents,
    ) -> bool {
        let Some(partial) = &mut self.partial else {
            return true;
        };
        let bytes = self.inbox.bytes();
        let n = bytes.len().min(partial.total - partial.done);
        if let Some(target) = partial.target {
            let to = buffers.part(target).as_ptr().wrapping_add(partial.done);
            // SAFETY: `part` checked that the whole payload lies inside the guest's buffer, which
            // is held; `n` bytes are there in the inbox, another allocation.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, n) };
        }
        partial.done += n;
        self.inbox.consume(n);
        self.finish(peer, buffers, holds, events)
    }

    /// Hands the frame out if its payload is complete.
    fn finish<B: GuestBuffers>(
        &mut self,
        peer: PeerIndex,
        buffers: &B,
        holds: &mut Holds,
        events: &mut impl PeerEvents,
    ) -> bool {
        let Some(partial) = self
            .partial
            .take_if(|partial| partial.done == partial.total)
        else {
            return false;
        };
        let payload: &[u8] = match partial.target {
            // SAFETY: inside the guest's buffer, held, and nobody writes it now: no receive into
            // it is in flight, and one frame at a time is assembled per connection.
            Some(part) => unsafe {
                slice::from_raw_parts(buffers.part(part).as_ptr(), partial.total)
            },
            None => &[],
        };
        events.frame(peer, &partial.header, &self.aux, payload);
        if let Some(part) = partial.target {
            holds.release(part.tag);
        }
        true
    }

    /// The connection is gone. No receive may be in flight.
    pub(super) fn clear(&mut self, holds: &mut Holds) {
        if let Some(part) = self.partial.take().and_then(|partial| partial.target) {
            holds.release(part.tag);
        }
        self.inbox.clear();
        self.direct = false;
    }
}
