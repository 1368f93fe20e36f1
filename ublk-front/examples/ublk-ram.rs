//! A RAM disk served by the queue loop of the ublk frontend: tries the device's whole life without
//! nodes or a metadata store. For kernels and for the guest tests.
//!
//! ```text
//! ublk-ram serve  VOLUME FILE MIB [QUEUES [DEPTH [through | broken]]]
//!                                                      until SIGTERM; prints `attached ...`
//! ublk-ram find   VOLUME                               what a front that died left behind
//! ublk-ram remove VOLUME                               clear that away
//! ublk-ram users  NUMBER                               who uses /dev/ublkbNUMBER
//! ```
//!
//! SIGUSR1 doubles the size. `broken`: the last queue cannot be set up, so that the start must fail
//! and leave nothing behind. `VOLUME` is a uuid, `FILE` holds the disk (on a tmpfs: it is the RAM,
//! and survives a kill).

use io_uring::{opcode, squeue, types};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::collections::VecDeque;
use std::error::Error;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use ublk_front::core::api::{GuestError, GuestIo, GuestOp, Presented};
use ublk_front::shell::buffers::GuestBuffers;
use ublk_front::shell::lane::Completion;
use ublk_front::shell::ublk::{
    Device, DeviceShape, Lane, QueueBuffers, find, remove_leftover, users,
};
use ublk_front::shell::user_data::{Kind, pack, unpack};
use ukai_meta::Durability;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::{Generation, Token};

/// A shared mapping of a file.
struct Disk {
    start: NonNull<u8>,
    sectors: u64,
}

// SAFETY: plain memory; the guest orders its own overlapping requests, and bytes have no invariant.
unsafe impl Send for Disk {}
// SAFETY: as above.
unsafe impl Sync for Disk {}

impl Disk {
    fn open(path: &str, bytes: u64) -> Result<Self, Box<dyn Error>> {
        let options = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let file = options?;
        file.set_len(bytes)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let len = usize::try_from(bytes)?;
        // SAFETY: a new mapping; the result is checked. It is never unmapped.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let start = NonNull::new(start.cast()).ok_or("mapped at zero")?;
        Ok(Self {
            start,
            sectors: bytes / SECTOR_BYTES as u64,
        })
    }

    /// Start and length of a range of sectors.
    fn range(&self, sector: u64, count: u32) -> Result<(*mut u8, usize), GuestError> {
        if sector + u64::from(count) > self.sectors {
            return Err(GuestError::Invalid);
        }
        let offset = usize::try_from(sector).unwrap_or(usize::MAX) * SECTOR_BYTES;
        // SAFETY: inside the mapping, as was just checked.
        let start = unsafe { self.start.as_ptr().add(offset) };
        Ok((start, count as usize * SECTOR_BYTES))
    }

    fn serve(&self, io: GuestIo, buffer: NonNull<u8>) -> Result<(), GuestError> {
        let (disk, bytes) = self.range(io.sector, io.count)?;
        // SAFETY: both ranges are valid for `bytes` and do not overlap.
        unsafe {
            match io.op {
                GuestOp::Read => {
                    buffer.copy_from_nonoverlapping(NonNull::new_unchecked(disk), bytes);
                }
                GuestOp::Write { .. } => disk.copy_from_nonoverlapping(buffer.as_ptr(), bytes),
                GuestOp::Zero { .. } => disk.write_bytes(0, bytes),
                GuestOp::Flush => {}
            }
        }
        Ok(())
    }
}

/// Answers each request after a no-op has gone through the ring, as if a node had been asked, and
/// keeps a timer there as a lane does.
struct RamLane {
    disk: Arc<Disk>,
    asked: VecDeque<GuestIo>,
    requests: Vec<Option<GuestIo>>,
    answers: Vec<Completion>,
    on_ring: u32,
    tick: Box<types::Timespec>,
    ticking: bool,
    closing: bool,
}

impl RamLane {
    fn new(disk: Arc<Disk>, depth: u16) -> Self {
        Self {
            disk,
            asked: VecDeque::new(),
            requests: vec![None; usize::from(depth)],
            answers: Vec::new(),
            on_ring: 0,
            tick: Box::new(types::Timespec::new().nsec(100_000_000)),
            ticking: false,
            closing: false,
        }
    }
}

impl Lane for RamLane {
    fn guest(&mut self, io: GuestIo, _buffers: &QueueBuffers) {
        self.asked.push_back(io);
    }

    fn completed(&mut self, user_data: u64, _result: i32, buffers: &QueueBuffers) {
        match unpack(user_data) {
            Some((Kind::Tick, _)) => self.ticking = false,
            Some((Kind::PeerSend, slot)) => {
                self.on_ring -= 1;
                let io = self.requests[usize::from(slot)]
                    .take()
                    .expect("a request waits for this");
                let (buffer, _) = buffers.buffer(io.tag);
                self.answers.push((io.tag, self.disk.serve(io, buffer)));
            }
            other => panic!("completion {other:?} of nobody"),
        }
    }

    fn turn(
        &mut self,
        _buffers: &QueueBuffers,
        push: &mut dyn FnMut(squeue::Entry),
        answers: &mut Vec<Completion>,
    ) {
        while let Some(io) = self.asked.pop_front() {
            let slot = u16::try_from(io.tag.0).expect("tags of a queue are 16 bits");
            self.requests[usize::from(slot)] = Some(io);
            self.on_ring += 1;
            push(
                opcode::Nop::new()
                    .build()
                    .user_data(pack(Kind::PeerSend, slot)),
            );
        }
        if !self.ticking && !self.closing {
            self.ticking = true;
            let timeout = opcode::Timeout::new(&raw const *self.tick).build();
            push(timeout.user_data(pack(Kind::Tick, 0)));
        }
        answers.append(&mut self.answers);
    }

    fn close(&mut self) {
        self.closing = true;
    }

    fn is_quiet(&self) -> bool {
        self.closing && !self.ticking && self.on_ring == 0
    }
}

fn serve(words: &[String]) -> Result<(), Box<dyn Error>> {
    let [volume, file, mib, rest @ ..] = words else {
        return Err("serve VOLUME FILE MIB".into());
    };
    let number =
        |index: usize, default: u16| rest.get(index).map_or(Ok(default), |word| word.parse());
    let (queues, depth) = (number(0, 1)?, number(1, 64)?);
    let through = rest.get(2).is_some_and(|word| word == "through");
    let presented = Presented {
        volume: volume.parse()?,
        name: "ram".into(),
        size_bytes: mib.parse::<u64>()? << 20,
        chunk_bytes: 4 << 20,
        durability: if through {
            Durability::Through
        } else {
            Durability::Cache
        },
        token: Token(1),
        generation: Generation(1),
    };
    let disk = Arc::new(Disk::open(file, presented.size_bytes)?);
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    let shape = DeviceShape::new(&presented, queues, depth);
    let lanes = disk.clone();
    let broken = rest.get(2).is_some_and(|word| word == "broken");
    let device = Device::start(presented.volume, &presented.name, &shape, move |queue| {
        if broken && queue + 1 == queues {
            return Err("as asked for".to_owned());
        }
        // As deep as any queue may be: one that is taken over has the depth it was made with.
        Ok(RamLane::new(lanes.clone(), 4096))
    })?;
    println!("attached {} {:?}", device.path(), device.origin());
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            let doubled = 2 * presented.size_bytes;
            println!(
                "resize: {:?}",
                device.resize(doubled).map_err(|error| error.to_string())
            );
            continue;
        }
        device.remove()?;
        println!("detached");
        break;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    const USAGE: &str = "serve VOLUME FILE MIB [QUEUES [DEPTH [through | broken]]] \
        | find VOLUME | remove VOLUME | users NUMBER";
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = words.split_first().ok_or(USAGE)?;
    let first = rest.first().ok_or(USAGE)?;
    match command.as_str() {
        "serve" => return serve(rest),
        "find" => println!("{:?}", find(first.parse()?)?),
        "remove" => println!("{:?}", remove_leftover(first.parse()?)?),
        "users" => println!("{:?}", users(first.parse()?)),
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
