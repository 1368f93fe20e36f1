//! One system call for many frames: a gathered, non-blocking send.

use super::buffer::NodeBuf;
use crate::core::OutData;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use ukai_proto::Buffer;

/// Slices per call: 32 frames of head and payload. More does not make a send cheaper, and the
/// kernel refuses more than 1024.
const SLICES_MAX: usize = 64;

/// A frame on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    head: Vec<u8>,
    data: Body,
}

/// Payload on its way out.
#[derive(Debug)]
pub(super) enum Body {
    /// A reply's.
    Reply(OutData<NodeBuf>),
    /// A request's to a peer.
    Request(Option<NodeBuf>),
}

impl Body {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Reply(data) => data.as_slice(),
            Self::Request(data) => data.as_ref().map_or(&[], Buffer::as_slice),
        }
    }
}

/// Frames of one connection that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Outgoing>,
    /// Bytes of the first frame that are gone already.
    sent: usize,
    bytes: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, head: Vec<u8>, data: Body) {
        self.bytes += head.len() + data.as_slice().len();
        self.frames.push_back(Outgoing { head, data });
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Up to [`SLICES_MAX`] slices of what comes next.
    fn slices(&self) -> Vec<&[u8]> {
        let mut skip = self.sent;
        let mut slices = Vec::with_capacity(SLICES_MAX.min(self.frames.len() * 2));
        for frame in &self.frames {
            for part in [frame.head.as_slice(), frame.data.as_slice()] {
                let gone = skip.min(part.len());
                skip -= gone;
                let part = &part[gone..];
                if !part.is_empty() {
                    slices.push(part);
                }
            }
            if slices.len() + 2 > SLICES_MAX {
                break;
            }
        }
        slices
    }

    /// So many bytes went out.
    pub(super) fn advance(&mut self, mut sent: usize) {
        assert!(sent <= self.bytes, "sent {sent} of {} bytes", self.bytes);
        self.bytes -= sent;
        while let Some(frame) = self.frames.front() {
            let left = frame.head.len() + frame.data.as_slice().len() - self.sent;
            if sent < left {
                self.sent += sent;
                return;
            }
            sent -= left;
            self.sent = 0;
            self.frames.pop_front();
        }
    }

    /// Send as much as the socket takes now. `true`: everything is gone.
    pub(super) fn send(&mut self, fd: RawFd) -> io::Result<bool> {
        while !self.is_empty() {
            match send_slices(fd, &self.slices()) {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// `sendmsg` without blocking and without a signal.
fn send_slices(fd: RawFd, slices: &[&[u8]]) -> io::Result<usize> {
    let iovecs: Vec<libc::iovec> = slices
        .iter()
        .map(|slice| libc::iovec {
            iov_base: slice.as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        })
        .collect();
    // SAFETY: all-zero is a valid msghdr (no name, no control data).
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len() as _;
    // SAFETY: the iovecs point into `slices`, which outlive the call; sendmsg only reads them. A
    // closed descriptor gives an error, and the caller's connection keeps it open.
    let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Make both directions of a socket end: its receiver sees the end, its peer too.
pub(super) fn shutdown(fd: RawFd) {
    // SAFETY: no memory is passed; the caller's connection keeps the descriptor open.
    let _ = unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is small
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    proptest! {
        #[test]
        fn what_goes_out_is_what_was_put_in(
            frames in prop::collection::vec((1usize..300, 0usize..5000), 1..80),
            cuts in prop::collection::vec(1usize..4000, 1..20),
        ) {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for (index, (head, data)) in frames.iter().enumerate() {
                let head = vec![index as u8; *head];
                let data = vec![index as u8 ^ 0xff; *data];
                expected.extend_from_slice(&head);
                expected.extend_from_slice(&data);
                let data = if data.is_empty() { OutData::None } else { OutData::Owned(data) };
                outbox.push(head, Body::Reply(data));
            }
            prop_assert_eq!(outbox.bytes(), expected.len());
            let mut got = Vec::new();
            for cut in cuts.iter().cycle() {
                let flat: Vec<u8> = outbox.slices().concat();
                if flat.is_empty() { break; }
                let n = (*cut).min(flat.len());
                got.extend_from_slice(&flat[..n]);
                outbox.advance(n);
            }
            prop_assert_eq!(got, expected);
            prop_assert!(outbox.is_empty() && outbox.bytes() == 0);
        }
    }

    #[test]
    fn a_full_socket_takes_a_part_and_the_rest_later() {
        let (near, mut far) = UnixStream::pair().expect("socket pair");
        let mut outbox = Outbox::default();
        for byte in 0..200u8 {
            outbox.push(
                vec![byte; 64],
                Body::Reply(OutData::Owned(vec![byte; 8192])),
            );
        }
        let total = outbox.bytes();
        assert!(
            !outbox.send(near.as_raw_fd()).expect("send"),
            "1.6 MB fit no socket buffer"
        );
        let mut got = vec![0; total];
        let mut at = 0;
        while at < total {
            at += far.read(&mut got[at..]).expect("read");
            outbox.send(near.as_raw_fd()).expect("send");
        }
        for (index, frame) in got.chunks(64 + 8192).enumerate() {
            assert!(frame.iter().all(|byte| usize::from(*byte) == index));
        }
    }
}
