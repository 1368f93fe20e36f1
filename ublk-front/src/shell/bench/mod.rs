//! A frontend that is its own guest: it presents the volume to nobody, and keeps requests of a load in flight on
//! lanes of its own. What it measures is what a lane and the nodes take, without ublk and without NBD.

mod buffers;
mod drive;
mod figures;
mod phase;

pub use figures::{BenchFigures, BenchSide};

use super::context::{FrontContext, FrontendError, FrontendOrder, LaneSeat};
use buffers::BenchBuffers;
use drive::Driver;
use figures::LaneFigures;
use phase::{Fill, Measure, Settle, Warm};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use ukai_proto::limits::SECTOR_BYTES;

/// Orders, and lanes that have ended, are looked for this often.
const LOOK: Duration = Duration::from_millis(50);
/// Sectors of one write of a fill: the largest that a guest may ask for.
const FILL_SECTORS: u32 = crate::core::api::GUEST_SECTORS_MAX;
/// Writes of a fill in flight per lane: enough for any device, and 8 MiB.
const FILL_DEPTH: u32 = 8;

/// What is done to the volume.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Lanes, a thread each; at least 1.
    pub lanes: usize,
    /// Requests in flight on each; 1..=[`crate::core::api::LANE_DEPTH_MAX`].
    pub depth: u32,
    /// Sectors of a request; 1..=[`crate::core::api::GUEST_SECTORS_MAX`].
    pub block_sectors: u32,
    /// A flush after each write; its time is the write's.
    pub flush_writes: bool,
    /// How long requests are begun.
    pub duration: Duration,
    /// Not more of them than this, on all lanes together.
    pub ios_max: Option<u64>,
    /// Write every sector once before, which is not measured.
    pub fill: bool,
}

/// The next request of a load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BenchRequest {
    /// Or else a read.
    pub write: bool,
    /// Which block of the volume, counted in blocks; it must lie inside.
    pub block: u64,
}

/// Makes the requests of one lane, on the lane's thread.
pub trait Load: Send + 'static {
    /// The next one.
    fn next(&mut self) -> BenchRequest;
}

/// What the lanes share.
#[derive(Debug)]
struct Shared {
    options: BenchOptions,
    size_sectors: u64,
    poll: Duration,
    /// Begin nothing new.
    stop: AtomicBool,
    /// Lanes that are not ready to be measured yet.
    warming: AtomicUsize,
    /// Requests begun, counted only against a limit.
    begun: AtomicU64,
    /// Next sector of the fill.
    filled: AtomicU64,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Loads the volume with one of `loads` per lane until the time is over or somebody stops it.
///
/// # Errors
/// Lanes that cannot be made. Requests that fail are counted.
pub fn serve<L: Load>(
    ctx: &FrontContext,
    options: &BenchOptions,
    loads: Vec<L>,
) -> Result<BenchFigures, FrontendError> {
    assert_eq!(loads.len(), options.lanes, "a load for each lane");
    ctx.attached_silently("bench");
    let shared = Arc::new(Shared {
        options: options.clone(),
        poll: ctx.settings.poll,
        size_sectors: ctx.presented.size_bytes / SECTOR_BYTES as u64,
        stop: AtomicBool::new(false),
        warming: AtomicUsize::new(options.lanes),
        begun: AtomicU64::new(0),
        filled: AtomicU64::new(0),
    });
    let (mut threads, mut failed) = (Vec::new(), None);
    for load in loads {
        match start(ctx, &shared, load) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                shared.stop.store(true, Ordering::Relaxed);
                failed = Some(error);
                break;
            }
        }
    }
    let mut interrupted = false;
    while threads.iter().any(|thread| !thread.is_finished()) {
        // Sizes only grow, and the load keeps to what it was told.
        if let Some(FrontendOrder::Stop { .. }) = ctx.orders.recv_timeout(LOOK) {
            interrupted = true;
            shared.stop.store(true, Ordering::Relaxed);
        }
    }
    let mut figures = BenchFigures::new(interrupted);
    for thread in threads {
        // A panic ends the process (see `process::prepare`).
        let ended = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match ended {
            Ok(lane) => figures.add(&lane),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(figures), Err)
}

type LaneThread = JoinHandle<Result<LaneFigures, FrontendError>>;

fn start<L: Load>(
    ctx: &FrontContext,
    shared: &Arc<Shared>,
    load: L,
) -> Result<LaneThread, FrontendError> {
    let seat = ctx.control.add_lane()?;
    let (name, shared) = (format!("bench{}", seat.id().0), Arc::clone(shared));
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let ended = run(seat, &shared, load);
        if ended.is_err() {
            // The others wait for this lane.
            shared.stop.store(true, Ordering::Relaxed);
        }
        ended
    });
    thread.map_err(FrontendError::io("start a thread for a lane"))
}

fn run<L: Load>(seat: LaneSeat, shared: &Shared, load: L) -> Result<LaneFigures, FrontendError> {
    let options = &shared.options;
    // All before there is a lane: once it is there, it has to answer control at any time.
    let random = || FrontendError::io("read /dev/urandom");
    let for_fill = if options.fill {
        let buffers = BenchBuffers::new(FILL_DEPTH, FILL_SECTORS);
        Some(buffers.map_err(random())?)
    } else {
        None
    };
    let buffers = BenchBuffers::new(options.depth, options.block_sectors).map_err(random())?;
    let driver = Driver::new(seat, shared.poll);
    let mut driver = driver.map_err(FrontendError::io("make the ring of a lane"))?;
    if let Some(buffers) = &for_fill {
        let mut fill = Fill::new(shared);
        driver.drive(buffers, FILL_DEPTH, &mut fill);
        // What the nodes write behind must not fall into the measurement.
        driver.drive(buffers, 1, &mut Settle::default());
        if fill.errors > 0 {
            driver.close(buffers);
            let text = "a write of the fill failed; nothing was measured";
            return Err(FrontendError::Failed(text.to_owned()));
        }
    }
    driver.drive(&buffers, 1, &mut Warm::new(shared));
    let mut measure = Measure::new(shared, load);
    driver.drive(&buffers, options.depth, &mut measure);
    let figures = measure.end();
    driver.close(&buffers);
    Ok(figures)
}
