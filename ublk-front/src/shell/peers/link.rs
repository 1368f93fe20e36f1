//! One connection to a node shard: its states, from connect to close.

use super::PeerEvents;
use super::receive::Receive;
use crate::core::api::{BufferPart, Now, Peer, PeerIndex};
use crate::shell::address::{self, Address};
use crate::shell::buffers::{GuestBuffers, Holds};
use crate::shell::clock;
use crate::shell::outbox::Outbox;
use io_uring::{opcode, squeue, types};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use ukai_proto::message::{Hello, Role};
use ukai_proto::{ClusterId, Frame, Header, Incarnation, Opcode, Status};

/// Connect and HELLO together may take so long: beyond any round trip a disk is used over.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Pause after the first failed round of addresses; doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// A node that comes back is noticed within this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum State {
    /// No socket; connect at this time.
    Idle { retry_at: Now },
    /// Waiting for the socket to become writable.
    Connecting { since: Now },
    /// Waiting for the answer to HELLO.
    Hello { since: Now },
    /// In use.
    Up,
    /// Shut down; waiting for the kernel to return its operations.
    Closing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    /// Not needed.
    Idle,
    /// To be submitted.
    Due,
    /// In the kernel.
    InFlight,
}

/// See the module docs.
#[derive(Debug)]
pub(super) struct Link {
    state: State,
    socket: Option<OwnedFd>,
    connect: Op,
    receiving: Op,
    receive: Option<Box<Receive>>,
    outbox: Outbox,
    /// Address to try next.
    address: usize,
    /// Attempts failed in a row.
    failures: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            state: State::Idle { retry_at: Now(0) },
            socket: None,
            connect: Op::Idle,
            receiving: Op::Idle,
            receive: None,
            outbox: Outbox::default(),
            address: 0,
            failures: 0,
        }
    }
}

impl Link {
    /// Is it time to connect?
    pub(super) fn due(&self, now: Now) -> bool {
        matches!(self.state, State::Idle { retry_at } if now >= retry_at)
    }

    /// Has connecting taken too long?
    pub(super) fn overdue(&self, now: Now) -> bool {
        match self.state {
            State::Connecting { since } | State::Hello { since } => now.since(since) > CONNECT_MAX,
            State::Idle { .. } | State::Up | State::Closing => false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. })
    }

    /// Begin to connect to the next address; `false`: all failed at once.
    pub(super) fn connect(&mut self, now: Now, peer: &Peer) -> bool {
        // An address that fails at once (a Unix socket of another host) costs nothing: go on.
        for _ in 0..peer.addresses.len() {
            let text = &peer.addresses[self.address % peer.addresses.len()];
            self.address = self.address.wrapping_add(1);
            let result = text
                .parse::<Address>()
                .map_err(|error| error.to_string())
                .and_then(|address| address.connect().map_err(|error| error.to_string()));
            match result {
                Ok(connecting) => {
                    self.socket = Some(connecting.socket);
                    self.connect = Op::Due;
                    self.state = State::Connecting { since: now };
                    return true;
                }
                Err(error) => {
                    let (shard, node) = (peer.shard, peer.node);
                    tracing::debug!("shard {shard} of node {node} at {text}: {error}");
                }
            }
        }
        self.fail(now);
        false
    }

    fn fail(&mut self, now: Now) {
        let pause = BACKOFF_MIN
            .saturating_mul(1 << self.failures.min(10))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Idle {
            retry_at: clock::after(now, pause),
        };
    }

    /// The socket became writable, or failed to.
    pub(super) fn connected(
        &mut self,
        index: PeerIndex,
        peer: &Peer,
        cluster: ClusterId,
        result: i32,
        holds: &mut Holds,
    ) {
        self.connect = Op::Idle;
        let (State::Connecting { since }, Some(socket)) = (&self.state, &self.socket) else {
            return;
        };
        let since = *since;
        let outcome = if result < 0 {
            Err(std::io::Error::from_raw_os_error(-result))
        } else {
            address::finish(socket.as_raw_fd(), true)
        };
        if let Err(error) = outcome {
            self.shut(index, &error.to_string(), holds);
            return;
        }
        let hello = Hello {
            cluster,
            node: peer.node,
            role: Role::Lane,
            shard: peer.shard,
            shard_count: peer.shard_count,
            incarnation: Incarnation::default(),
        };
        let header = Header::request(Opcode::Hello, 0);
        let frame = Frame::<Vec<u8>>::new(header, hello.encode(), None);
        self.outbox.head(&frame.header.encode());
        self.outbox.head(&frame.aux);
        self.receive.get_or_insert_default();
        self.receiving = Op::Due;
        self.state = State::Hello { since };
    }

    /// Queue a frame; `false`: not up.
    pub(super) fn queue(
        &mut self,
        header: &Header,
        aux: &[u8],
        payload: Option<BufferPart>,
        holds: &mut Holds,
    ) -> bool {
        if !matches!(self.state, State::Up) {
            return false;
        }
        self.outbox.head(&header.encode());
        if !aux.is_empty() {
            self.outbox.head(aux);
        }
        if let Some(part) = payload {
            self.outbox.payload(part, holds);
        }
        true
    }

    /// A SENDMSG has ended.
    pub(super) fn sent(&mut self, index: PeerIndex, result: i32, holds: &mut Holds) {
        self.outbox
            .completed(usize::try_from(result).unwrap_or(0), holds);
        if result < 0 && result != -libc::EINTR && result != -libc::EAGAIN {
            self.shut(
                index,
                &std::io::Error::from_raw_os_error(-result).to_string(),
                holds,
            );
        }
    }

    /// A RECV has ended.
    pub(super) fn received<B: GuestBuffers>(
        &mut self,
        index: PeerIndex,
        peer: &Peer,
        result: i32,
        buffers: &B,
        holds: &mut Holds,
        events: &mut impl PeerEvents,
    ) {
        self.receiving = Op::Due;
        let bytes = match usize::try_from(result) {
            Ok(0) => return self.shut(index, "the node closed the connection", holds),
            Ok(bytes) => bytes,
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => return,
            Err(_) => {
                let error = std::io::Error::from_raw_os_error(-result);
                return self.shut(index, &error.to_string(), holds);
            }
        };
        if matches!(self.state, State::Closing) {
            return; // the rest of a connection given up
        }
        let Some(receive) = &mut self.receive else {
            return;
        };
        let mut greeting = Greeting {
            peer,
            state: &mut self.state,
            wrong: None,
            inner: events,
        };
        let outcome = receive.arrived(bytes, index, buffers, holds, &mut greeting);
        let wrong = greeting.wrong;
        if let Err(error) = outcome {
            self.shut(index, &error.to_string(), holds);
        } else if let Some(wrong) = wrong {
            self.shut(index, &wrong, holds);
        } else if matches!(self.state, State::Up) {
            (self.failures, self.address) = (0, 0);
        }
    }

    /// Stop using the connection.
    pub(super) fn shut(&mut self, index: PeerIndex, why: &str, holds: &mut Holds) {
        if matches!(self.state, State::Idle { .. } | State::Closing) {
            return;
        }
        // The operator hears of it from control, whose connection to the same shard breaks too.
        tracing::debug!("connection to peer {}: {why}", index.0);
        self.state = State::Closing;
        self.outbox.drop_queued(holds);
        if let Some(socket) = &self.socket {
            address::shutdown(socket.as_raw_fd());
        }
    }

    /// Closes the socket once nothing of it is in the kernel; `true`: that happened now.
    pub(super) fn finish_closing(&mut self, now: Now, holds: &mut Holds) -> bool {
        let busy = self.connect == Op::InFlight
            || self.receiving == Op::InFlight
            || self.outbox.in_flight();
        if busy || !matches!(self.state, State::Closing) {
            return false;
        }
        (self.connect, self.receiving) = (Op::Idle, Op::Idle);
        self.outbox.clear(holds);
        if let Some(receive) = &mut self.receive {
            receive.clear(holds);
        }
        self.socket = None;
        self.fail(now);
        true
    }

    pub(super) fn next_connect(&mut self) -> Option<squeue::Entry> {
        let socket = self.socket.as_ref().filter(|_| self.connect == Op::Due)?;
        self.connect = Op::InFlight;
        #[allow(clippy::cast_sign_loss)] // event bits
        let events = libc::POLLOUT as u32;
        Some(opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), events).build())
    }

    pub(super) fn next_receive<B: GuestBuffers>(&mut self, buffers: &B) -> Option<squeue::Entry> {
        let socket = self.socket.as_ref().filter(|_| self.receiving == Op::Due)?;
        if !matches!(self.state, State::Hello { .. } | State::Up) {
            return None;
        }
        let entry = self.receive.as_mut()?.next(socket.as_raw_fd(), buffers);
        self.receiving = Op::InFlight;
        Some(entry)
    }

    pub(super) fn next_send<B: GuestBuffers>(&mut self, buffers: &B) -> Option<squeue::Entry> {
        let socket = self.socket.as_ref()?;
        if !matches!(self.state, State::Hello { .. } | State::Up) {
            return None;
        }
        self.outbox.send(socket.as_raw_fd(), buffers)
    }
}

/// Answers to HELLO are taken here; everything else goes on to the lane.
struct Greeting<'a, E> {
    peer: &'a Peer,
    state: &'a mut State,
    /// Not the shard that was meant: why.
    wrong: Option<String>,
    inner: &'a mut E,
}

impl<E: PeerEvents> PeerEvents for Greeting<'_, E> {
    fn up(&mut self, peer: PeerIndex, incarnation: Incarnation) {
        self.inner.up(peer, incarnation);
    }

    fn down(&mut self, peer: PeerIndex) {
        self.inner.down(peer);
    }

    fn target(&mut self, peer: PeerIndex, header: &Header) -> Option<BufferPart> {
        if matches!(self.state, State::Up) {
            self.inner.target(peer, header)
        } else {
            None
        }
    }

    fn frame(&mut self, index: PeerIndex, header: &Header, aux: &[u8], payload: &[u8]) {
        match self.state {
            State::Up => self.inner.frame(index, header, aux, payload),
            State::Hello { .. } if self.wrong.is_none() => match greet(self.peer, header, aux) {
                Ok(incarnation) => {
                    *self.state = State::Up;
                    self.inner.up(index, incarnation);
                }
                Err(why) => self.wrong = Some(why),
            },
            _ => {}
        }
    }
}

/// Checks the answer to HELLO.
pub(crate) fn greet(peer: &Peer, header: &Header, aux: &[u8]) -> Result<Incarnation, String> {
    if header.opcode != Opcode::Hello {
        return Err("the node's first frame is not its HELLO".to_owned());
    }
    if header.status != Status::Ok {
        return Err(header.status.to_string());
    }
    let hello = Hello::decode(aux).map_err(|error| error.to_string())?;
    if hello.node != peer.node || hello.shard != peer.shard || hello.shard_count != peer.shard_count
    {
        return Err(format!(
            "shard {} of {} of node {} answers where shard {} of {} of node {} was expected",
            hello.shard, hello.shard_count, hello.node, peer.shard, peer.shard_count, peer.node
        ));
    }
    Ok(hello.incarnation)
}
