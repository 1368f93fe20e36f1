//! One connection: a receiver that decodes frames, and an outbox sent once per turn.

use super::buffer::NodeBuf;
use super::gather::{Body, Outbox, shutdown};
use super::notify::Notify;
use futures_io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use ukai_proto::decode::{DecodeError, Decoder, Need};
use ukai_proto::{Buffer, Frame};

/// Receive buffer: several requests of 4 KiB in one system call; the payload of large ones goes
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

/// Both directions of a connection, on one executor.
#[derive(Debug)]
pub(super) struct Conn {
    stream: RefCell<TcpStream>,
    fd: RawFd,
    outbox: RefCell<Outbox>,
    /// The socket did not take everything: the writer task owns sending until it has.
    blocked: Cell<bool>,
    /// Close once the outbox is empty.
    closing: Cell<bool>,
    /// No more can be sent.
    broken: Cell<bool>,
    wake_writer: Notify,
    /// The outbox shrank.
    room: Notify,
}

impl Conn {
    pub(super) fn new(stream: TcpStream) -> Rc<Self> {
        Rc::new(Self {
            fd: stream.as_raw_fd(),
            stream: RefCell::new(stream),
            outbox: RefCell::default(),
            blocked: Cell::default(),
            closing: Cell::default(),
            broken: Cell::default(),
            wake_writer: Notify::default(),
            room: Notify::default(),
        })
    }

    /// Put a frame into the outbox; [`Conn::flush`] sends.
    pub(super) fn push(&self, head: Vec<u8>, data: Body) {
        if !self.broken.get() && !self.closing.get() {
            self.outbox.borrow_mut().push(head, data);
        }
    }

    /// Send what the socket takes; the writer task sends the rest.
    pub(super) fn flush(&self) {
        if self.blocked.get() || self.broken.get() {
            return;
        }
        let sent = self.outbox.borrow_mut().send(self.fd);
        match sent {
            Ok(true) if self.closing.get() => self.cut(),
            Ok(true) => {}
            Ok(false) => {
                self.blocked.set(true);
                self.wake_writer.notify();
            }
            Err(_) => self.cut(),
        }
    }

    /// Close after what is in the outbox.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.flush();
    }

    /// Close now; the receiver sees the end of the stream.
    pub(super) fn cut(&self) {
        if !self.broken.replace(true) {
            *self.outbox.borrow_mut() = Outbox::default();
            shutdown(self.fd);
            self.wake_writer.notify();
            self.room.notify();
        }
    }

    /// The writer task: sends what [`Conn::flush`] could not. Ends when the connection is cut.
    pub(super) async fn write_blocked(self: Rc<Self>) {
        while !self.broken.get() {
            self.wake_writer.notified().await;
            while self.blocked.get() && !self.broken.get() {
                // One plain write waits for the socket to become writable.
                let written = poll_fn(|cx| {
                    let outbox = self.outbox.borrow();
                    let first = outbox.first();
                    if first.is_empty() {
                        return std::task::Poll::Ready(Ok(0));
                    }
                    Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, first)
                })
                .await;
                match written {
                    Ok(n) => {
                        self.outbox.borrow_mut().advance(n);
                        self.blocked.set(false);
                        self.flush();
                        self.room.notify();
                    }
                    Err(_) => self.cut(),
                }
            }
        }
    }

    async fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, out)).await
    }

    /// Receive frames until the peer closes, something fails, or the connection is cut. `deliver`
    /// takes each frame; `pause` waits until the shard wants more.
    pub(super) async fn receive<P: Future<Output = ()>>(
        &self,
        mut deliver: impl FnMut(Frame<NodeBuf>),
        pause: impl Fn() -> P,
    ) -> Result<(), ReceiveError> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            pause().await;
            let has_room = || self.broken.get() || self.outbox.borrow().bytes() < OUTBOX_BYTES_MAX;
            self.room.until(has_room).await;
            let received = self.read(&mut buffer).await?;
            if received == 0 || self.broken.get() {
                return Ok(());
            }
            let mut bytes = &buffer[..received];
            while !bytes.is_empty() {
                let taken = decoder.feed_head(bytes)?;
                bytes = &bytes[taken..];
                let Need::Data(total) = decoder.need() else {
                    continue;
                };
                let data = if total == 0 {
                    None
                } else {
                    let mut payload = glommio::allocate_dma_buffer(total);
                    let out = payload.as_bytes_mut();
                    let here = total.min(bytes.len());
                    out[..here].copy_from_slice(&bytes[..here]);
                    bytes = &bytes[here..];
                    let mut filled = here;
                    while filled < total {
                        let received = self.read(&mut out[filled..]).await?;
                        if received == 0 {
                            return Ok(());
                        }
                        filled += received;
                    }
                    Some(NodeBuf::Dma(payload))
                };
                if let Some(frame) = decoder.finish(data) {
                    assert_eq!(
                        frame.data.as_ref().map_or(0, |data| data.as_slice().len()),
                        frame.header.data_bytes(),
                        "payload against header"
                    );
                    deliver(frame);
                }
            }
        }
    }
}
