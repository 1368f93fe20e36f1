//! One connection: receives that decode frames, and an outbox sent once per turn.

use super::buffer::NodeBuf;
use super::gather::{Body, Outbox, shutdown};
use crate::core::{ConnId, PeerId};
use glommio::io::DmaBuffer;
use io_uring::{opcode, squeue, types};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use ukai_proto::decode::{DecodeError, Decoder, Need};
use ukai_proto::{Buffer, Frame};

/// Receive buffer: several requests of 4 KiB in one operation; the payload of large ones goes
/// straight into device memory.
const RECEIVE_BYTES: usize = 64 << 10;
/// A client that does not take its replies is not read from above this: what it may still be owed
/// on top is bounded by the admission limit of the core.
const OUTBOX_BYTES_MAX: usize = 8 << 20;

/// Why receiving ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    /// The socket failed.
    #[error("receive: {0}")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error("bad frame: {0}")]
    Decode(#[from] DecodeError),
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Line {
    /// A front, a tool, or a node that copies from here.
    Client(ConnId),
    /// A node that is copied from.
    Peer(PeerId),
}

/// Is one of its kind in the kernel?
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Flight {
    #[default]
    No,
    Yes,
}

#[derive(Debug)]
struct Receive {
    decoder: Decoder,
    /// Allocated once: the kernel may be filling it.
    buffer: Box<[u8]>,
    /// A payload that has not wholly arrived, and how much of it has.
    payload: Option<(DmaBuffer, usize)>,
}

/// Both directions of a connection, on one executor.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Shard, by its place on the executor.
    pub(super) shard: usize,
    pub(super) line: Line,
    socket: OwnedFd,
    receive: RefCell<Receive>,
    receiving: Cell<Flight>,
    polling: Cell<Flight>,
    outbox: RefCell<Outbox>,
    /// The socket did not take everything.
    blocked: Cell<bool>,
    /// Close once the outbox is empty.
    closing: Cell<bool>,
    /// No more can be sent.
    broken: Cell<bool>,
}

impl Conn {
    /// `socket`: a connected stream, in blocking mode (the ring would answer at once otherwise).
    pub(super) fn new(shard: usize, line: Line, socket: OwnedFd) -> Rc<Self> {
        Rc::new(Self {
            shard,
            line,
            socket,
            receive: RefCell::new(Receive {
                decoder: Decoder::new(),
                buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
                payload: None,
            }),
            receiving: Cell::default(),
            polling: Cell::default(),
            outbox: RefCell::default(),
            blocked: Cell::default(),
            closing: Cell::default(),
            broken: Cell::default(),
        })
    }

    /// Put a frame into the outbox; [`Conn::flush`] sends.
    pub(super) fn push(&self, head: Vec<u8>, data: Body) {
        if !self.broken.get() && !self.closing.get() {
            self.outbox.borrow_mut().push(head, data);
        }
    }

    /// Send what the socket takes. `false`: it wants to be waited for.
    pub(super) fn flush(&self) -> bool {
        if self.blocked.get() {
            return false;
        }
        if self.broken.get() {
            return true;
        }
        let sent = self.outbox.borrow_mut().send(self.socket.as_raw_fd());
        match sent {
            Ok(true) if self.closing.get() => self.cut(),
            Ok(true) => {}
            Ok(false) => self.blocked.set(true),
            Err(_) => self.cut(),
        }
        !self.blocked.get()
    }

    /// Close after what is in the outbox. `false`: see [`Conn::flush`].
    pub(super) fn close(&self) -> bool {
        self.closing.set(true);
        self.flush()
    }

    /// Close now: what is in the kernel ends.
    pub(super) fn cut(&self) {
        if !self.broken.replace(true) {
            *self.outbox.borrow_mut() = Outbox::default();
            self.blocked.set(false);
            shutdown(self.socket.as_raw_fd());
        }
    }

    /// Has it ended, with nothing of it in the kernel?
    pub(super) fn is_over(&self) -> bool {
        self.broken.get() && self.receiving.get() == Flight::No
    }

    /// May the peer be read from, by what it is still owed?
    pub(super) fn has_room(&self) -> bool {
        self.outbox.borrow().bytes() < OUTBOX_BYTES_MAX
    }

    /// The next receive, unless one is under way. Its memory lives as long as `self`, and is not touched before
    /// [`Conn::received`].
    pub(super) fn next_receive(&self) -> Option<squeue::Entry> {
        if self.broken.get() || self.receiving.replace(Flight::Yes) == Flight::Yes {
            return None;
        }
        let fd = types::Fd(self.socket.as_raw_fd());
        let mut receive = self.receive.borrow_mut();
        let (out, flags) = match &mut receive.payload {
            Some((payload, filled)) => (&mut payload.as_bytes_mut()[*filled..], libc::MSG_WAITALL),
            None => (&mut receive.buffer[..], 0),
        };
        let bytes = u32::try_from(out.len()).expect("payloads are 1 MiB at most");
        Some(
            opcode::Recv::new(fd, out.as_mut_ptr(), bytes)
                .flags(flags)
                .build(),
        )
    }

    /// Wait until a blocked socket takes bytes, unless that is under way.
    pub(super) fn next_poll(&self) -> Option<squeue::Entry> {
        if !self.blocked.get() || self.polling.replace(Flight::Yes) == Flight::Yes {
            return None;
        }
        #[allow(clippy::cast_sign_loss)] // event bits
        let events = libc::POLLOUT as u32;
        let fd = types::Fd(self.socket.as_raw_fd());
        Some(opcode::PollAdd::new(fd, events).build())
    }

    /// The wait of [`Conn::next_poll`] is over. `false`: see [`Conn::flush`].
    pub(super) fn polled(&self) -> bool {
        self.polling.set(Flight::No);
        self.blocked.set(false);
        self.flush()
    }

    /// The receive has ended with so many bytes, or an errno: hands out the frames that are complete now.
    /// `false`: there will be no more.
    pub(super) fn received(
        &self,
        result: i32,
        mut deliver: impl FnMut(Frame<NodeBuf>),
    ) -> Result<bool, ReceiveError> {
        assert_eq!(
            self.receiving.replace(Flight::No),
            Flight::Yes,
            "a receive ended that was not made"
        );
        let received = match usize::try_from(result) {
            Ok(received) => received,
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => return Ok(true),
            Err(_) if self.broken.get() => return Ok(false),
            Err(_) => return Err(io::Error::from_raw_os_error(-result).into()),
        };
        if received == 0 || self.broken.get() {
            return Ok(false);
        }
        let receive = &mut *self.receive.borrow_mut();
        if let Some((payload, filled)) = &mut receive.payload {
            *filled += received;
            if *filled == payload.len() {
                let whole = receive.payload.take().map(|(payload, _)| NodeBuf(payload));
                finish(&mut receive.decoder, whole, &mut deliver);
            }
            return Ok(true);
        }
        let mut bytes = &receive.buffer[..received];
        while !bytes.is_empty() {
            let taken = receive.decoder.feed_head(bytes)?;
            bytes = &bytes[taken..];
            let Need::Data(total) = receive.decoder.need() else {
                continue;
            };
            if total == 0 {
                finish(&mut receive.decoder, None, &mut deliver);
                continue;
            }
            let mut payload = glommio::allocate_dma_buffer(total);
            let here = total.min(bytes.len());
            payload.as_bytes_mut()[..here].copy_from_slice(&bytes[..here]);
            bytes = &bytes[here..];
            if here < total {
                receive.payload = Some((payload, here));
            } else {
                finish(&mut receive.decoder, Some(NodeBuf(payload)), &mut deliver);
            }
        }
        Ok(true)
    }
}

fn finish(decoder: &mut Decoder, data: Option<NodeBuf>, deliver: &mut impl FnMut(Frame<NodeBuf>)) {
    if let Some(frame) = decoder.finish(data) {
        assert_eq!(
            frame.data.as_ref().map_or(0, |data| data.as_slice().len()),
            frame.header.data_bytes(),
            "payload against header"
        );
        deliver(frame);
    }
}
