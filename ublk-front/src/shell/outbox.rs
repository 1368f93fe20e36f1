//! The send side of a stream socket on a ring: what is queued in a turn leaves in one SENDMSG.

use super::buffers::{GuestBuffers, Holds};
use crate::core::api::BufferPart;
use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;

/// Pieces gathered by one SENDMSG: 64 writes with payload. More adds nothing per byte.
const GATHER_MAX: usize = 128;

#[derive(Clone, Copy, Debug)]
enum Segment {
    /// So many bytes of the batch's heads.
    Head(usize),
    /// Part of a guest buffer; held until it is sent or dropped.
    Payload(BufferPart),
}

#[derive(Debug, Default)]
struct Batch {
    heads: Vec<u8>,
    segments: Vec<Segment>,
}

impl Batch {
    fn release(&mut self, from: usize, holds: &mut Holds) {
        for segment in self.segments.drain(..).skip(from) {
            if let Segment::Payload(part) = segment {
                holds.release(part.tag);
            }
        }
        self.heads.clear();
    }
}

/// Frames queued and frames in flight. At most one SENDMSG is in flight; the batch it refers to is
/// not touched until it has completed.
pub struct Outbox {
    queued: Batch,
    sending: Batch,
    /// First segment of `sending` not wholly sent, and how much of it is.
    at: usize,
    sent: usize,
    /// Offset in `sending.heads` of segment `at`'s head bytes.
    head_at: usize,
    in_flight: bool,
    iovecs: Box<[libc::iovec; GATHER_MAX]>,
    message: Box<libc::msghdr>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (queued, sending) = (self.queued.segments.len(), self.sending.segments.len());
        write!(
            f,
            "Outbox {{ queued: {queued}, sending: {sending}, in_flight: {} }}",
            self.in_flight
        )
    }
}

impl Default for Outbox {
    fn default() -> Self {
        // SAFETY: a msghdr of zeros is valid: null pointers with zero lengths.
        let message = unsafe { std::mem::zeroed() };
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            queued: Batch::default(),
            sending: Batch::default(),
            at: 0,
            sent: 0,
            head_at: 0,
            in_flight: false,
            iovecs: Box::new([empty; GATHER_MAX]),
            message: Box::new(message),
        }
    }
}

impl Outbox {
    /// Queue bytes that are copied.
    pub fn head(&mut self, bytes: &[u8]) {
        self.queued.heads.extend_from_slice(bytes);
        match self.queued.segments.last_mut() {
            Some(Segment::Head(len)) => *len += bytes.len(),
            _ => self.queued.segments.push(Segment::Head(bytes.len())),
        }
    }

    /// Queue part of a guest buffer, which is held until it has been sent.
    pub fn payload(&mut self, part: BufferPart, holds: &mut Holds) {
        holds.take(part.tag);
        self.queued.segments.push(Segment::Payload(part));
    }

    /// Is a SENDMSG in flight?
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Is nothing queued and nothing in flight?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.in_flight && self.queued.segments.is_empty() && self.at == self.sending.segments.len()
    }

    /// The next SENDMSG, if one is due. The caller submits it, keeps `self` alive and in place on
    /// the heap side until the completion is passed to [`Outbox::completed`].
    pub fn send<B: GuestBuffers>(&mut self, fd: RawFd, buffers: &B) -> Option<squeue::Entry> {
        if self.in_flight {
            return None;
        }
        if self.at == self.sending.segments.len() {
            if self.queued.segments.is_empty() {
                return None;
            }
            self.sending.heads.clear();
            self.sending.segments.clear();
            (self.at, self.sent, self.head_at) = (0, 0, 0);
            std::mem::swap(&mut self.queued, &mut self.sending);
        }
        let mut skip = self.sent;
        let mut head_at = self.head_at;
        let mut count = 0;
        for segment in self.sending.segments[self.at..].iter().take(GATHER_MAX) {
            let (start, len) = match *segment {
                Segment::Head(len) => {
                    let start = self.sending.heads[head_at..head_at + len]
                        .as_ptr()
                        .cast_mut();
                    head_at += len;
                    (start, len)
                }
                Segment::Payload(part) => (buffers.part(part).as_ptr(), part.bytes as usize),
            };
            let base = start.wrapping_add(skip).cast();
            self.iovecs[count] = libc::iovec {
                iov_base: base,
                iov_len: len - skip,
            };
            count += 1;
            skip = 0;
        }
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = count as _;
        self.in_flight = true;
        #[allow(clippy::cast_sign_loss)] // flag bits
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        Some(
            opcode::SendMsg::new(types::Fd(fd), &raw const *self.message)
                .flags(flags)
                .build(),
        )
    }

    /// The SENDMSG has ended with `n` bytes sent (0: none, or an error).
    pub fn completed(&mut self, n: usize, holds: &mut Holds) {
        assert!(self.in_flight, "completion of a send that was not made");
        self.in_flight = false;
        let mut left = n + self.sent;
        self.sent = 0;
        while let Some(segment) = self.sending.segments.get(self.at) {
            let len = match *segment {
                Segment::Head(len) => len,
                Segment::Payload(part) => part.bytes as usize,
            };
            if left < len {
                self.sent = left;
                return;
            }
            left -= len;
            match *segment {
                Segment::Head(len) => self.head_at += len,
                Segment::Payload(part) => holds.release(part.tag),
            }
            self.at += 1;
        }
        assert_eq!(left, 0, "the kernel sent more than it was given");
    }

    /// Drop everything: the connection is gone. No send may be in flight.
    pub fn clear(&mut self, holds: &mut Holds) {
        assert!(
            !self.in_flight,
            "dropped a batch that the kernel still reads"
        );
        self.sending.release(self.at, holds);
        self.queued.release(0, holds);
        (self.at, self.sent, self.head_at) = (0, 0, 0);
    }

    /// Drop what has not been handed to the kernel yet (the connection is closing).
    pub fn drop_queued(&mut self, holds: &mut Holds) {
        self.queued.release(0, holds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::api::GuestTag;
    use crate::shell::buffers::AlignedBuffer;
    use io_uring::IoUring;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::ptr::NonNull;

    struct Buffers(Vec<AlignedBuffer>);

    // SAFETY: the buffers live as long as the test.
    unsafe impl GuestBuffers for Buffers {
        fn buffer(&self, tag: GuestTag) -> (NonNull<u8>, usize) {
            self.0[tag.0 as usize].raw()
        }
    }

    const BUFFER_BYTES: u32 = 64 << 10;

    fn buffers() -> Buffers {
        let buffers = Buffers(
            (0..4)
                .map(|_| AlignedBuffer::new(BUFFER_BYTES as usize))
                .collect(),
        );
        for (tag, buffer) in (1u8..).zip(&buffers.0) {
            // SAFETY: inside the buffer, which nobody else uses.
            unsafe { buffer.raw().0.write_bytes(tag, buffer.raw().1) };
        }
        buffers
    }

    /// Sends everything on one end of a socket while another thread reads the other end.
    fn drive(outbox: &mut Outbox, buffers: &Buffers, holds: &mut Holds) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).expect("read");
            got
        });
        let mut ring = IoUring::new(4).expect("ring");
        while let Some(entry) = outbox.send(ours.as_raw_fd(), buffers) {
            // SAFETY: outbox and buffers live until the completion below.
            unsafe { ring.submission().push(&entry).expect("room") };
            ring.submit_and_wait(1).expect("enter");
            let sent = ring.completion().next().expect("a completion").result();
            outbox.completed(usize::try_from(sent).expect("sent"), holds);
        }
        drop(ours);
        reader.join().expect("reader")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_queued_arrives_in_order_and_releases_the_buffers(
            frames in prop::collection::vec((0usize..3000, prop::option::of((0u32..4, 0u32..BUFFER_BYTES, 1u32..BUFFER_BYTES))), 0..300),
        ) {
            let (buffers, mut holds, mut outbox) = (buffers(), Holds::default(), Outbox::default());
            let mut want = Vec::new();
            for (index, (head, payload)) in frames.iter().enumerate() {
                #[allow(clippy::cast_possible_truncation)] // any byte will do
                let head = vec![index as u8; *head];
                outbox.head(&head);
                want.extend(head);
                if let Some((tag, offset_bytes, bytes)) = *payload {
                    let bytes = bytes.min(BUFFER_BYTES - offset_bytes);
                    outbox.payload(BufferPart { tag: GuestTag(tag), offset_bytes, bytes }, &mut holds);
                    want.resize(want.len() + bytes as usize, u8::try_from(tag).expect("small") + 1);
                }
            }
            prop_assert!(drive(&mut outbox, &buffers, &mut holds) == want);
            prop_assert!(outbox.is_empty());
            prop_assert!((0..4).all(|tag| holds.free(GuestTag(tag))));
        }

        #[test]
        fn short_sends_are_continued_where_they_ended(
            sizes in prop::collection::vec((0usize..50, 1u32..50), 1..40),
            steps in prop::collection::vec(0usize..120, 1..200),
        ) {
            let (buffers, mut holds, mut outbox) = (buffers(), Holds::default(), Outbox::default());
            let mut total = 0;
            for (head, bytes) in &sizes {
                outbox.head(&vec![0; *head]);
                outbox.payload(BufferPart { tag: GuestTag(1), offset_bytes: 0, bytes: *bytes }, &mut holds);
                total += head + *bytes as usize;
            }
            for step in steps.iter().cycle().take(100_000) {
                if outbox.send(0, &buffers).is_none() {
                    break;
                }
                let offered: usize = outbox.iovecs[..outbox.message.msg_iovlen].iter().map(|v| v.iov_len).sum();
                prop_assert!(offered <= total && offered > 0 || total == 0);
                let sent = (*step).min(offered).max(usize::from(steps.iter().all(|s| *s == 0)));
                outbox.completed(sent, &mut holds);
                total -= sent;
            }
            prop_assert_eq!(total, 0);
            prop_assert!(outbox.is_empty() && holds.free(GuestTag(1)));
        }
    }

    #[test]
    fn what_a_broken_connection_leaves_is_released() {
        let (buffers, mut holds, mut outbox) = (buffers(), Holds::default(), Outbox::default());
        let part = |tag| BufferPart {
            tag: GuestTag(tag),
            offset_bytes: 0,
            bytes: 10,
        };
        outbox.payload(part(0), &mut holds);
        outbox.payload(part(1), &mut holds);
        assert!(outbox.send(0, &buffers).is_some());
        outbox.payload(part(2), &mut holds);
        outbox.drop_queued(&mut holds);
        assert!(holds.free(GuestTag(2)) && !holds.free(GuestTag(1)));
        outbox.completed(15, &mut holds);
        assert!(holds.free(GuestTag(0)) && !holds.free(GuestTag(1)));
        outbox.clear(&mut holds);
        assert!(holds.free(GuestTag(1)) && outbox.is_empty());
    }
}
