//! What a frontend (libublk or NBD) gets from the process around it, and what it gives back.
//!
//! A frontend is one function, `serve(FrontContext) -> Result<(), FrontendError>`, that runs on the
//! main thread. It presents the volume, makes lanes by [`ControlPort::add_lane`] on threads of its
//! own, calls [`FrontContext::attached`] once the device is there, and returns after
//! [`FrontendOrder::Stop`] when nothing refers to the device any more.

use super::control::Question;
use super::wake::{EventFd, Mailbox, Post};
use crate::core::api::{LANES_MAX, LaneId, LaneOrder, LaneReport, MetaId, MetaOutcome, Presented};
use crate::core::seq::SharedSeq;
use crate::core::stats::LaneStats;
use crate::core::window::LaneWindow;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use ukai_proto::ClusterId;

/// Reports and other inputs that may wait for the control thread. It drains them each turn; above
/// this a sender waits, which slows a lane that floods it (control itself never waits for a lane).
const CONTROL_INPUTS_MAX: usize = 16 << 10;

/// Microseconds that a lane may be told to look before it sleeps. A sleeping thread is back within a fraction of this.
pub const POLL_US_MAX: u64 = 1000;

/// Choices of the operator that frontends look at.
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// The volume's name.
    pub volume: String,
    /// ublk queues.
    pub queues: u16,
    /// Requests in flight per ublk queue.
    pub depth: u16,
    /// Directory of control sockets and state files.
    pub run_dir: PathBuf,
    /// Unix socket of the NBD frontend.
    pub nbd_unix: Option<PathBuf>,
    /// TCP address of the NBD frontend.
    pub nbd_tcp: Option<std::net::SocketAddr>,
    /// Allow a TCP address that is not loopback although NBD is not encrypted here.
    pub insecure_plaintext: bool,
    /// How long a lane on a ring of its own (NBD, bench) looks for more to do before it sleeps.
    pub poll: Duration,
}

/// Orders to the frontend as a whole (lanes get theirs by [`LaneSeat`]).
#[derive(Debug)]
pub enum FrontendOrder {
    /// Remove the device and return. If it is in use and not `force`, send the reason to `refused`
    /// and go on serving; drop `refused` when the stop is accepted.
    Stop {
        /// Stop although the device is in use.
        force: bool,
        /// Where to say why not.
        refused: flume::Sender<String>,
    },
    /// The volume has a new size.
    Resized {
        /// New size; a multiple of 4096.
        size_bytes: u64,
    },
}

/// Why a frontend ended otherwise than by an order.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The kernel or a library refused.
    #[error("{doing}: {source}")]
    Io {
        /// A verb phrase.
        doing: String,
        /// What was answered.
        source: io::Error,
    },
    /// Something else, in a sentence.
    #[error("{0}")]
    Failed(String),
}

impl FrontendError {
    /// For `map_err`: what was being done when it failed.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Everything a frontend needs.
#[derive(Debug)]
pub struct FrontContext {
    /// What the device looks like.
    pub presented: Presented,
    /// Choices of the operator.
    pub settings: FrontSettings,
    /// To make lanes.
    pub control: ControlPort,
    /// Orders to the frontend. Its event is nonblocking (for poll and epoll); `recv` blocks.
    pub orders: Mailbox<FrontendOrder>,
}

impl FrontContext {
    /// The device is there: prints the line that scripts wait for, registers the front, tells
    /// systemd. `device`: `/dev/ublkb0` or an NBD URI.
    pub fn attached(&self, device: &str) {
        self.announce(device, true);
    }

    /// Registers the front, and prints nothing: standard output belongs to somebody else.
    pub fn attached_silently(&self, device: &str) {
        self.announce(device, false);
    }

    fn announce(&self, device: &str, tell: bool) {
        self.control.post(ControlInput::Attached {
            device: device.to_owned(),
            tell,
        });
    }
}

/// From control to one lane.
#[derive(Clone, Debug)]
pub enum LaneMail {
    /// For the lane's core.
    Order(LaneOrder),
    /// Send [`ControlInput::Stats`].
    Stats,
}

/// Input of the control thread.
#[derive(Debug)]
pub enum ControlInput {
    /// A lane came into being.
    LaneAdded(LaneId, Post<LaneMail>),
    /// It is gone.
    LaneRemoved(LaneId),
    /// It reports.
    Lane(LaneId, LaneReport),
    /// What it measured lately.
    Window(LaneId, Box<LaneWindow>),
    /// Its counters, asked for by [`LaneMail::Stats`] or sent when it ends.
    Stats {
        /// Which lane.
        lane: LaneId,
        /// So far.
        stats: Box<LaneStats>,
        /// The lane ends: keep them.
        last: bool,
    },
    /// The frontend presents the device.
    Attached {
        /// Its name.
        device: String,
        /// Print it for scripts, and tell systemd.
        tell: bool,
    },
    /// The store knows of the device now, or does not answer: scripts may be told.
    Announced,
    /// The frontend returned: detach.
    FrontendEnded,
    /// A metadata request ended.
    Meta(MetaId, MetaOutcome),
    /// The volume's head may have changed.
    MapChanged,
    /// The volume's relocation job may have changed.
    JobChanged,
    /// For the operator, from another thread.
    Note(String),
    /// Detach (signal or control socket).
    Detach {
        /// Also if the device is in use.
        force: bool,
        /// Where to say why not; dropped when the detach is on its way.
        refused: flume::Sender<String>,
        /// Gets the outcome.
        done: Option<flume::Sender<Result<(), String>>>,
    },
    /// Somebody asks.
    Ask(Question, flume::Sender<serde_json::Value>),
}

/// A handle on the control thread.
#[derive(Clone, Debug)]
pub struct ControlPort {
    inputs: Post<ControlInput>,
    lanes: Arc<Mutex<[bool; LANES_MAX]>>,
    seq: Arc<SharedSeq>,
    cluster: ClusterId,
}

/// All lanes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the front already has its {LANES_MAX} lanes")]
pub struct NoLaneLeft;

impl ControlPort {
    /// The port and the mailbox that the control thread empties.
    pub fn new(
        seq: Arc<SharedSeq>,
        cluster: ClusterId,
    ) -> io::Result<(Self, Mailbox<ControlInput>)> {
        let (inputs, mailbox) = Mailbox::new(false, Some(CONTROL_INPUTS_MAX))?;
        let lanes = Arc::new(Mutex::new([false; LANES_MAX]));
        Ok((
            Self {
                inputs,
                lanes,
                seq,
                cluster,
            },
            mailbox,
        ))
    }

    /// Give an input to the control thread; `false`: it has ended.
    pub fn post(&self, input: ControlInput) -> bool {
        self.inputs.send(input)
    }

    /// A new lane. It starts paused; control sends it an Install.
    pub fn add_lane(&self) -> Result<LaneSeat, FrontendError> {
        // Blocking eventfd: the lane's ring waits for it by a standing READ. Orders are unbounded
        // by type, but control has at most one barrier under way.
        let (post, orders) =
            Mailbox::new(true, None).map_err(FrontendError::io("create an eventfd for a lane"))?;
        let lane = {
            let mut taken = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            let free = taken.iter().position(|taken| !taken);
            let free = free.ok_or_else(|| FrontendError::Failed(NoLaneLeft.to_string()))?;
            taken[free] = true;
            #[allow(clippy::cast_possible_truncation)] // below LANES_MAX
            LaneId(free as u32)
        };
        self.post(ControlInput::LaneAdded(lane, post));
        Ok(LaneSeat {
            lane,
            orders,
            port: self.clone(),
        })
    }
}

/// A lane's link to control. Dropping it removes the lane: do so only when its guest requests have
/// ended.
#[derive(Debug)]
pub struct LaneSeat {
    lane: LaneId,
    orders: Mailbox<LaneMail>,
    port: ControlPort,
}

impl LaneSeat {
    /// The lane's number.
    #[must_use]
    pub fn id(&self) -> LaneId {
        self.lane
    }

    /// The cluster, for HELLO.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.port.cluster
    }

    /// The shared write counter.
    #[must_use]
    pub fn seq(&self) -> Arc<SharedSeq> {
        self.port.seq.clone()
    }

    /// The next mail, if some is there.
    #[must_use]
    pub fn mail(&self) -> Option<LaneMail> {
        self.orders.try_recv()
    }

    /// Fires when an order has come; blocking reads.
    #[must_use]
    pub fn event(&self) -> &Arc<EventFd> {
        self.orders.event()
    }

    /// Tell control.
    pub fn report(&self, report: LaneReport) {
        self.port.post(ControlInput::Lane(self.lane, report));
    }

    /// Tell control what the lane measured lately.
    pub fn window(&self, window: Box<LaneWindow>) {
        self.port.post(ControlInput::Window(self.lane, window));
    }

    /// Tell control the lane's counters.
    pub fn stats(&self, stats: LaneStats, last: bool) {
        self.port.post(ControlInput::Stats {
            lane: self.lane,
            stats: Box::new(stats),
            last,
        });
    }
}

impl Drop for LaneSeat {
    fn drop(&mut self) {
        self.port.post(ControlInput::LaneRemoved(self.lane));
        let mut taken = self
            .port
            .lanes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken[self.lane.0 as usize] = false;
    }
}
