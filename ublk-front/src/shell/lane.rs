//! A lane on a ring: [`LaneCore`], its connections, its orders and its clock.
//!
//! The frontend owns the ring and the guest's buffers. One turn of it:
//! take all completions ([`LaneDriver::completed`] for those that [`LaneDriver::owns`]), give new
//! guest requests to [`LaneDriver::guest`], call [`LaneDriver::turn`], answer what it finished, enter
//! the kernel once.

use super::buffers::{GuestBuffers, Holds};
use super::clock;
use super::context::{LaneMail, LaneSeat};
use super::peers::{PeerEvents, PeerSockets, Peers};
use super::user_data::{Kind, pack, unpack};
use crate::core::api::{
    BufferPart, GuestError, GuestIo, GuestOp, GuestTag, LaneAction, LaneOrder, Now, PeerIndex,
};
use crate::core::window::WINDOW;
use crate::core::{LaneCore, LaneLimits};
use io_uring::{opcode, squeue, types};
use std::os::fd::AsRawFd;
use std::slice;
use std::time::Duration;
use ukai_proto::{Header, Incarnation};

/// Ticks in one window of measurements.
const WINDOW_TICKS: u32 = 2;
/// Nanoseconds between ticks: `LaneCore` measures its timeouts, in seconds, with it.
#[allow(clippy::cast_possible_truncation)] // a fraction of a second
const TICK_NANOS: u32 = WINDOW.as_nanos() as u32 / WINDOW_TICKS;

/// A guest request and how it ended.
pub type Completion = (GuestTag, Result<(), GuestError>);

/// See the module docs. `P`: how it reaches nodes; anything but sockets is for measurements.
#[derive(Debug)]
pub struct LaneDriver<P = PeerSockets> {
    core: LaneCore,
    seat: LaneSeat,
    peers: P,
    holds: Holds,
    /// The time of this turn, read with the first event of it: where the kernel offers no clock without a
    /// system call (some virtual machines), one reading per request is most of what a lane costs.
    turn_time: Option<Now>,
    actions: Vec<LaneAction>,
    /// Answered by the core, but its buffer is still referred to.
    waiting: Vec<Completion>,
    done: Vec<Completion>,
    wake_value: Box<[u8; 8]>,
    wake_in_flight: bool,
    tick_spec: Box<types::Timespec>,
    tick_in_flight: bool,
    /// When it is to run out.
    tick_due: Now,
    ticks: u32,
    tick_end: TickEnd,
    closing: bool,
}

/// The order that ends the standing timeout of a lane that closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TickEnd {
    NotYet,
    InFlight,
    Done,
}

/// The core as [`PeerSockets`] sees it.
struct Events<'a> {
    core: &'a mut LaneCore,
    actions: &'a mut Vec<LaneAction>,
    now: Now,
}

impl PeerEvents for Events<'_> {
    fn up(&mut self, peer: PeerIndex, incarnation: Incarnation) {
        self.core.peer_up(self.now, peer, incarnation, self.actions);
    }

    fn down(&mut self, peer: PeerIndex) {
        self.core.peer_down(self.now, peer, self.actions);
    }

    fn target(&mut self, peer: PeerIndex, header: &Header) -> Option<BufferPart> {
        self.core.read_target(peer, header)
    }

    fn frame(&mut self, peer: PeerIndex, header: &Header, aux: &[u8], payload: &[u8]) {
        self.core
            .peer_frame(self.now, peer, header, aux, payload, self.actions);
    }
}

impl LaneDriver {
    /// A lane that holds requests until control has installed its first configuration.
    #[must_use]
    pub fn new(seat: LaneSeat, limits: LaneLimits) -> Self {
        let peers = PeerSockets::new(seat.cluster());
        Self::with_peers(seat, limits, peers)
    }

    /// Is this completion the lane's?
    #[must_use]
    pub fn owns(user_data: u64) -> bool {
        let kind = unpack(user_data).map(|(kind, _)| kind);
        kind.is_some_and(|kind| !matches!(kind, Kind::ClientReceive | Kind::ClientSend))
    }
}

impl<P: Peers> LaneDriver<P> {
    /// The same, on other peers than sockets.
    #[must_use]
    pub fn with_peers(seat: LaneSeat, limits: LaneLimits, peers: P) -> Self {
        Self {
            core: LaneCore::new(seat.id(), seat.seq(), limits),
            peers,
            seat,
            holds: Holds::default(),
            turn_time: None,
            actions: Vec::new(),
            waiting: Vec::new(),
            done: Vec::new(),
            wake_value: Box::new([0; 8]),
            wake_in_flight: false,
            tick_spec: Box::new(types::Timespec::new().nsec(TICK_NANOS)),
            tick_in_flight: false,
            tick_due: Now(0),
            ticks: 0,
            tick_end: TickEnd::NotYet,
            closing: false,
        }
    }

    /// Guest requests that have not been answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.core.in_flight() + self.waiting.len() + self.done.len()
    }

    fn now(&mut self) -> Now {
        *self.turn_time.get_or_insert_with(clock::now)
    }

    /// A request from the guest. For writes its buffer holds the data.
    pub fn guest<B: GuestBuffers>(&mut self, io: GuestIo, buffers: &B) {
        let now = self.now();
        let data: &[u8] = match io.op {
            GuestOp::Write { .. } => {
                let bytes = io.count as usize * ukai_proto::limits::SECTOR_BYTES;
                let (start, len) = buffers.buffer(io.tag);
                assert!(
                    bytes <= len,
                    "a write of {bytes} bytes in a buffer of {len}"
                );
                // SAFETY: the buffer is valid for `len` bytes and nobody else touches it from now
                // until the request is answered (contract of `GuestBuffers`).
                unsafe { slice::from_raw_parts(start.as_ptr(), bytes) }
            }
            GuestOp::Read | GuestOp::Flush | GuestOp::Zero { .. } => &[],
        };
        self.core.guest(now, io, data, &mut self.actions);
        self.act(buffers);
    }

    /// A completion that [`LaneDriver::owns`] says is the lane's.
    pub fn completed<B: GuestBuffers>(&mut self, user_data: u64, result: i32, buffers: &B) {
        let Some((kind, slot)) = unpack(user_data) else {
            return;
        };
        let now = self.now();
        match kind {
            Kind::Wake => {
                self.wake_in_flight = false;
                while let Some(mail) = self.seat.mail() {
                    self.mail(now, mail, buffers);
                }
            }
            Kind::Tick => {
                self.tick_in_flight = false;
                if !self.closing {
                    self.core.woke(now.since(self.tick_due));
                    self.core.tick(now, &mut self.actions);
                    self.act(buffers);
                    self.ticks = self.ticks.wrapping_add(1);
                    if self.ticks.is_multiple_of(WINDOW_TICKS)
                        && let Some(window) = self.core.window(now)
                    {
                        self.seat.window(window);
                    }
                    let Self {
                        core,
                        actions,
                        peers,
                        holds,
                        ..
                    } = self;
                    peers.tick(now, holds, &mut Events { core, actions, now });
                }
            }
            Kind::TickEnd => self.tick_end = TickEnd::Done,
            Kind::PeerReceive | Kind::PeerSend | Kind::PeerConnect => {
                let Self {
                    core,
                    actions,
                    peers,
                    holds,
                    ..
                } = self;
                let mut events = Events { core, actions, now };
                peers.completed(now, kind, slot, result, buffers, holds, &mut events);
            }
            Kind::ClientReceive | Kind::ClientSend => return,
        }
        self.act(buffers);
    }

    fn mail<B: GuestBuffers>(&mut self, now: Now, mail: LaneMail, buffers: &B) {
        match mail {
            LaneMail::Stats => self.seat.stats(self.core.stats().clone(), false),
            LaneMail::Order(order) => {
                let failed = matches!(order, LaneOrder::Fail);
                if let LaneOrder::Install { config, .. } = &order {
                    let Self {
                        core,
                        actions,
                        peers,
                        ..
                    } = self;
                    peers.set_peers(now, &config.peers, &mut Events { core, actions, now });
                }
                self.core.order(now, order, &mut self.actions);
                self.act(buffers);
                if failed {
                    // Nothing more may come from the nodes: guests get their buffers back at once.
                    self.peers.close(now, &mut self.holds);
                }
            }
        }
    }

    /// Carries out what the core wants.
    fn act<B: GuestBuffers>(&mut self, buffers: &B) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                LaneAction::Send {
                    peer,
                    header,
                    aux,
                    payload,
                } => {
                    self.peers
                        .send(peer, &header, &aux, payload, &mut self.holds);
                }
                LaneAction::FillZeroes(part) => {
                    let start = buffers.part(part);
                    // SAFETY: `part` checked the bounds; the request is not answered yet, so the
                    // buffer is the lane's.
                    unsafe { start.write_bytes(0, part.bytes as usize) };
                }
                LaneAction::Complete { tag, result } => self.waiting.push((tag, result)),
                LaneAction::Disconnect { peer, why } => {
                    self.peers.disconnect(peer, why, &mut self.holds);
                }
                // Closing the connections of a lane that ends says nothing about nodes.
                LaneAction::Report(_) if self.closing => {}
                LaneAction::Report(report) => self.seat.report(report),
            }
        }
        assert!(
            self.actions.is_empty(),
            "carrying out actions makes no new ones"
        );
        self.actions = actions;
    }

    /// Ends a turn: hands out the operations that are due (`push` must take every one) and the guest
    /// requests that are finished.
    pub fn turn<B: GuestBuffers>(
        &mut self,
        buffers: &B,
        push: &mut dyn FnMut(squeue::Entry),
    ) -> std::vec::Drain<'_, Completion> {
        self.turn_time = None;
        self.peers.submit(buffers, push);
        if !self.wake_in_flight && !self.closing {
            self.wake_in_flight = true;
            let fd = types::Fd(self.seat.event().as_raw_fd());
            let read = opcode::Read::new(fd, self.wake_value.as_mut_ptr(), 8).build();
            push(read.user_data(pack(Kind::Wake, 0)));
        }
        if !self.tick_in_flight && !self.closing {
            self.tick_in_flight = true;
            let nanos = Duration::from_nanos(TICK_NANOS.into());
            self.tick_due = clock::after(clock::now(), nanos);
            let timeout = opcode::Timeout::new(&raw const *self.tick_spec).build();
            push(timeout.user_data(pack(Kind::Tick, 0)));
        }
        if self.closing && self.tick_in_flight && self.tick_end == TickEnd::NotYet {
            self.tick_end = TickEnd::InFlight;
            let end = opcode::TimeoutRemove::new(pack(Kind::Tick, 0)).build();
            push(end.user_data(pack(Kind::TickEnd, 0)));
        }
        let holds = &self.holds;
        self.done
            .extend(self.waiting.extract_if(.., |(tag, _)| holds.free(*tag)));
        self.done.drain(..)
    }

    /// End the lane: no guest request is in flight, none will come. Go on with turns until
    /// [`LaneDriver::is_quiet`], then drop it and the ring.
    pub fn close(&mut self) {
        assert_eq!(self.in_flight(), 0, "a lane ended under its guest");
        if !self.closing {
            self.closing = true;
            self.seat.stats(self.core.stats().clone(), true);
            self.peers.close(clock::now(), &mut self.holds);
            self.seat.event().wake();
        }
    }

    /// After [`LaneDriver::close`]: has the kernel returned everything that refers to this lane?
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let timer = self.tick_in_flight || self.tick_end == TickEnd::InFlight;
        self.closing && !self.wake_in_flight && !timer && self.peers.is_quiet()
    }
}
