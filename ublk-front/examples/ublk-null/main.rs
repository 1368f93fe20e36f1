//! ublk devices without a disk, for `perf/guest`: what the driver costs, and what the front adds.
//!
//! ```text
//! ublk-null plain MIB QUEUES DEPTH    libublk's own loop answers each request at once
//! ublk-null queue MIB QUEUES DEPTH    the front's queue loop does, without a lane behind it
//! ublk-null front MIB QUEUES DEPTH    the front's lanes as in production, on a volume of one copy whose
//!                                     replica is in this process and answers at once
//! ```
//!
//! Each prints `attached PATH` and ends, with its device, on SIGTERM.

mod cluster;
mod plain;
mod replica;

use io_uring::squeue;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::error::Error;
use ublk_front::core::api::{GuestIo, Presented};
use ublk_front::shell::lane::Completion;
use ublk_front::shell::ublk::{Device, DeviceShape, Lane, QueueBuffers};
use ukai_meta::Durability;
use ukai_proto::{Generation, Token, VolumeId};

const USAGE: &str = "plain | queue | front, MIB QUEUES DEPTH";

/// The same for every kind of device.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    size_bytes: u64,
    queues: u16,
    depth: u16,
}

/// Answers whatever it is asked with the next turn.
#[derive(Default)]
struct NullLane {
    answers: Vec<Completion>,
    closing: bool,
}

impl Lane for NullLane {
    fn guest(&mut self, io: GuestIo, _buffers: &QueueBuffers) {
        self.answers.push((io.tag, Ok(())));
    }

    fn completed(&mut self, user_data: u64, _result: i32, _buffers: &QueueBuffers) {
        unreachable!("nothing of this lane's is on the ring, but {user_data:#x} completed");
    }

    fn turn(
        &mut self,
        _buffers: &QueueBuffers,
        _push: &mut dyn FnMut(squeue::Entry),
        answers: &mut Vec<Completion>,
    ) {
        answers.append(&mut self.answers);
    }

    fn close(&mut self) {
        self.closing = true;
    }

    fn is_quiet(&self) -> bool {
        self.closing
    }
}

/// Until a signal.
fn present<L, M>(volume: u8, shape: Shape, make_lane: M) -> Result<(), Box<dyn Error>>
where
    L: Lane + 'static,
    M: Fn() -> Result<L, String> + Send + Sync + 'static,
{
    // Devices are told apart by a sum of the bytes in which sixteen equal ones vanish.
    let mut id = [0; 16];
    id[0] = volume;
    let presented = Presented {
        volume: VolumeId(id),
        name: "null".into(),
        size_bytes: shape.size_bytes,
        chunk_bytes: cluster::CHUNK_BYTES,
        durability: Durability::Cache,
        token: Token(1),
        generation: Generation(1),
    };
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let device_shape = DeviceShape::new(&presented, shape.queues, shape.depth);
    let name = &presented.name;
    let device = Device::start(presented.volume, name, &device_shape, move |_queue| {
        make_lane()
    })?;
    println!("attached {}", device.path());
    signals.forever().next();
    Ok(device.remove()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kind, mib, queues, depth] = words.as_slice() else {
        return Err(USAGE.into());
    };
    let shape = Shape {
        size_bytes: mib.parse::<u64>()? << 20,
        queues: queues.parse()?,
        depth: depth.parse()?,
    };
    match kind.as_str() {
        "plain" => plain::present(shape),
        "queue" => present(1, shape, || Ok(NullLane::default())),
        "front" => {
            let control = cluster::Control::start(shape.size_bytes)?;
            present(2, shape, move || {
                let seat = control.add_lane().map_err(|error| error.to_string())?;
                Ok(replica::FrontLane::new(seat))
            })
        }
        _ => Err(USAGE.into()),
    }
}
