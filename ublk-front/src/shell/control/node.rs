//! Control's connections to node shards: few, small messages, so plain nonblocking sockets do.

use super::poller::Poller;
use crate::core::api::{ControlEvent, Now, Peer, PeerIndex};
use crate::shell::address::{self, Address};
use crate::shell::clock;
use crate::shell::peers::greet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;
use ukai_proto::decode::VecDecoder;
use ukai_proto::limits::HEADER_BYTES;
use ukai_proto::message::{Hello, Role};
use ukai_proto::{ClusterId, Flags, Frame, Header, Incarnation, Opcode};

/// Connect and HELLO together may take so long.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Pause before the first attempt to connect again, doubled by each: what was only a broken connection is one again
/// long before its node counts as lost.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest: a node that comes back is noticed within this.
const RETRY_MAX: Duration = Duration::from_millis(300);
/// Requests not yet taken by the kernel; control has a bounded number of them under way, so a peer
/// that lets this much pile up has stopped reading.
const UNSENT_MAX: usize = 16 << 20;
/// Frames are mostly small; long lists come in several reads.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
enum State {
    Idle { retry_at: Now },
    Connecting { since: Now },
    Hello { since: Now },
    Up,
}

/// One connection. The socket is used as a byte stream only, so the type does for Unix ones too.
#[derive(Debug)]
struct Connection {
    peer: Peer,
    state: State,
    socket: Option<TcpStream>,
    decoder: VecDecoder,
    unsent: Vec<u8>,
    /// The poller was told to watch for room to write.
    watching_write: bool,
    /// Pause before the next attempt, if this one fails.
    retry: Duration,
    address: usize,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Nodes {
    cluster: ClusterId,
    connections: Vec<Connection>,
    /// Token of the first connection in the poller.
    base: u64,
    buffer: Vec<u8>,
}

impl Nodes {
    pub(super) fn new(cluster: ClusterId, base: u64) -> Self {
        Self {
            cluster,
            connections: Vec::new(),
            base,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// The connection that a token of the poller names.
    pub(super) fn of_token(&self, token: u64) -> Option<PeerIndex> {
        let index = token.checked_sub(self.base)?;
        let known = index < self.connections.len() as u64;
        u32::try_from(index).ok().filter(|_| known).map(PeerIndex)
    }

    /// Connect to these; known ones take new addresses at the next attempt.
    pub(super) fn set_peers(&mut self, peers: Vec<Peer>) {
        for (index, peer) in peers.into_iter().enumerate() {
            if let Some(connection) = self.connections.get_mut(index) {
                if connection.peer != peer {
                    connection.peer = peer;
                    connection.address = 0;
                }
            } else {
                self.connections.push(Connection {
                    peer,
                    state: State::Idle { retry_at: Now(0) },
                    socket: None,
                    decoder: VecDecoder::default(),
                    unsent: Vec::new(),
                    watching_write: false,
                    retry: RETRY_MIN,
                    address: 0,
                });
            }
        }
    }

    /// Sends what is due to be connected on its way, gives up what takes too long.
    pub(super) fn tick(&mut self, now: Now, poller: &Poller, out: &mut Vec<ControlEvent>) {
        for (index, connection) in self.connections.iter_mut().enumerate() {
            let peer = index_of(index);
            match connection.state {
                State::Idle { retry_at } if now >= retry_at => {
                    let token = self.base + index as u64;
                    if let Err(error) = connection.connect(now, poller, token) {
                        connection.close(now, &error);
                        out.push(ControlEvent::PeerDown { peer });
                    }
                }
                State::Connecting { since } | State::Hello { since }
                    if now.since(since) > CONNECT_MAX =>
                {
                    connection.close(now, &"no answer to connect or HELLO in time");
                    out.push(ControlEvent::PeerDown { peer });
                }
                _ => {}
            }
        }
    }

    /// Sends; dropped if the connection is not up.
    pub(super) fn send(&mut self, peer: PeerIndex, header: &Header, aux: &[u8]) {
        if let Some(connection) = self.connections.get_mut(peer.0 as usize)
            && matches!(connection.state, State::Up)
        {
            connection.unsent.extend_from_slice(&header.encode());
            connection.unsent.extend_from_slice(aux);
        }
    }

    /// Hands everything queued to the kernel.
    pub(super) fn flush(&mut self, now: Now, poller: &Poller, out: &mut Vec<ControlEvent>) {
        for index in 0..self.connections.len() {
            if !self.connections[index].unsent.is_empty() {
                self.ready(now, index_of(index), (false, true), poller, out);
            }
        }
    }

    /// A socket is ready for (reading, writing).
    pub(super) fn ready(
        &mut self,
        now: Now,
        peer: PeerIndex,
        (read, write): (bool, bool),
        poller: &Poller,
        out: &mut Vec<ControlEvent>,
    ) {
        let index = peer.0 as usize;
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if connection.socket.is_none() {
            return;
        }
        let token = self.base + u64::from(peer.0);
        let mut step = || -> Result<(), String> {
            if matches!(connection.state, State::Connecting { .. }) {
                if !write {
                    return Ok(());
                }
                connection.greet(self.cluster)?;
            }
            if read {
                connection.read(peer, &mut self.buffer, out)?;
            }
            connection.write(poller, token)
        };
        if let Err(error) = step() {
            connection.close(now, &error);
            out.push(ControlEvent::PeerDown { peer });
        }
    }
}

fn index_of(index: usize) -> PeerIndex {
    #[allow(clippy::cast_possible_truncation)] // peers are numbered by u32
    PeerIndex(index as u32)
}

fn text(error: io::Error) -> String {
    error.to_string()
}

impl Connection {
    fn connect(&mut self, now: Now, poller: &Poller, token: u64) -> Result<(), String> {
        let mut last = "the node has no address".to_owned();
        // An address that fails at once (a Unix socket of another host) costs nothing: go on.
        for _ in 0..self.peer.addresses.len() {
            let address = &self.peer.addresses[self.address % self.peer.addresses.len()];
            self.address = self.address.wrapping_add(1);
            let parsed: Result<Address, _> = address.parse();
            match parsed
                .map_err(|error| error.to_string())
                .and_then(|a| a.connect().map_err(text))
            {
                Ok(connecting) => {
                    let socket = TcpStream::from(connecting.socket);
                    poller.add(socket.as_raw_fd(), token).map_err(text)?;
                    poller.set(socket.as_raw_fd(), token, true).map_err(text)?;
                    self.watching_write = true;
                    self.socket = Some(socket);
                    self.decoder = VecDecoder::default();
                    self.state = State::Connecting { since: now };
                    return Ok(());
                }
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(last)
    }

    fn greet(&mut self, cluster: ClusterId) -> Result<(), String> {
        let (State::Connecting { since }, Some(socket)) = (&self.state, &self.socket) else {
            return Ok(());
        };
        address::finish(socket.as_raw_fd(), false).map_err(text)?;
        let hello = Hello {
            cluster,
            node: self.peer.node,
            role: Role::Control,
            shard: self.peer.shard,
            shard_count: self.peer.shard_count,
            incarnation: Incarnation::default(),
        };
        let header = Header::request(Opcode::Hello, 0);
        self.unsent = Frame::<Vec<u8>>::new(header, hello.encode(), None).to_bytes();
        self.state = State::Hello { since: *since };
        Ok(())
    }

    fn read(
        &mut self,
        peer: PeerIndex,
        buffer: &mut [u8],
        out: &mut Vec<ControlEvent>,
    ) -> Result<(), String> {
        let mut frames = Vec::new();
        loop {
            let Some(socket) = &mut self.socket else {
                return Ok(());
            };
            match socket.read(buffer) {
                Ok(0) => return Err("the node closed the connection".to_owned()),
                Ok(n) => {
                    self.decoder
                        .feed(&buffer[..n], &mut frames)
                        .map_err(|e| e.to_string())?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(text(error)),
            }
            for Frame { header, aux, .. } in frames.drain(..) {
                if matches!(self.state, State::Hello { .. }) {
                    let incarnation = greet(&self.peer, &header, &aux)?;
                    self.state = State::Up;
                    self.retry = RETRY_MIN;
                    self.address = 0;
                    out.push(ControlEvent::PeerUp { peer, incarnation });
                } else if header.flags.has(Flags::REPLY) {
                    out.push(ControlEvent::PeerFrame { peer, header, aux });
                } else {
                    return Err("a node sent a request".to_owned());
                }
            }
        }
    }

    fn write(&mut self, poller: &Poller, token: u64) -> Result<(), String> {
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        let mut sent = 0;
        while sent < self.unsent.len() {
            match socket.write(&self.unsent[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(text(error)),
            }
        }
        self.unsent.drain(..sent);
        if self.unsent.len() > UNSENT_MAX {
            return Err(format!("{} bytes wait to be sent", self.unsent.len()));
        }
        let watch = !self.unsent.is_empty();
        if watch != self.watching_write {
            self.watching_write = watch;
            poller.set(socket.as_raw_fd(), token, watch).map_err(text)?;
        }
        Ok(())
    }

    fn close(&mut self, now: Now, why: &dyn std::fmt::Display) {
        let (shard, node) = (self.peer.shard, self.peer.node);
        if matches!(self.state, State::Up) {
            tracing::info!("control connection to shard {shard} of node {node}: {why}");
        } else {
            tracing::debug!("control connection to shard {shard} of node {node}: {why}");
        }
        // Closing takes it out of the poller.
        self.socket = None;
        self.unsent.clear();
        self.state = State::Idle {
            retry_at: clock::after(now, self.retry),
        };
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }
}

const _: () = assert!(READ_BYTES > HEADER_BYTES);
