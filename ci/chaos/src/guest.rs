//! Guests: threads with an NBD connection each, several requests in flight, every sector stamped.

use crate::nbd::{Client, Command, ENOSPC, FUA, Reply};
use crate::recorder::{Ask, Open, Recorder, SECTOR, Verb};
use crate::wait::{Failure, Look, Outcome, nap, setup, until};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// After every fault is healed, what is in flight must end in this time.
const DRAIN_MAX: Duration = Duration::from_secs(90);
/// Think time of a guest, at most: keeps two cores from being the bottleneck.
const THINK_US_MAX: u64 = 8000;
/// After an error that was to be expected.
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// What guests share with those who watch them.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    stop: AtomicBool,
    /// The front will be fenced, killed or detached under them: errors and the end of the connection
    /// are no news.
    doomed: AtomicBool,
    /// Nodes are full: writes may say so.
    full: AtomicBool,
    /// Requests answered well.
    pub(crate) done: AtomicU64,
    /// Of those, writes.
    pub(crate) writes_done: AtomicU64,
    /// Writes refused with an error.
    pub(crate) writes_refused: AtomicU64,
    /// Reads refused with an error.
    pub(crate) reads_refused: AtomicU64,
    /// Writes whose connection ended before they were answered.
    pub(crate) writes_cut: AtomicU64,
    /// Writes that said "no space".
    pub(crate) no_space: AtomicU64,
}

/// The guests of one attach.
pub(crate) struct Guests {
    /// Counters and orders.
    pub(crate) watch: Arc<Watch>,
    threads: Vec<JoinHandle<()>>,
    handles: Vec<UnixStream>,
}

/// What guests do.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    /// Connections.
    pub(crate) guests: usize,
    /// Requests in flight on each.
    pub(crate) depth: usize,
    /// Where.
    pub(crate) ranges: Vec<Range<u64>>,
}

impl Guests {
    /// Connects all and starts.
    pub(crate) fn start(
        path: &Path,
        token: u32,
        recorder: &Arc<Recorder>,
        profile: &Profile,
        seed: u64,
    ) -> Outcome<Self> {
        let mut guests = Self {
            watch: Arc::default(),
            threads: Vec::new(),
            handles: Vec::new(),
        };
        for number in 0..profile.guests {
            let client = Client::connect(path).map_err(broken("connect to the NBD export"))?;
            guests
                .handles
                .push(client.handle().map_err(setup("copy a socket"))?);
            let guest = Guest {
                client,
                token,
                recorder: Arc::clone(recorder),
                watch: Arc::clone(&guests.watch),
                profile: profile.clone(),
                rng: ChaCha8Rng::seed_from_u64(seed ^ (number as u64) << 48),
                open: BTreeMap::new(),
            };
            let thread = std::thread::Builder::new().name(format!("guest{number}"));
            let thread = thread.spawn(move || guest.run());
            guests
                .threads
                .push(thread.map_err(setup("start a guest's thread"))?);
        }
        Ok(guests)
    }

    /// From now on errors and the end of the connection are expected.
    pub(crate) fn doom(&self) {
        self.watch.doomed.store(true, Ordering::Relaxed);
    }

    /// "No space" is expected, or not.
    pub(crate) fn expect_full(&self, full: bool) {
        self.watch.full.store(full, Ordering::Relaxed);
    }

    /// Have all connections ended?
    #[must_use]
    pub(crate) fn all_gone(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// No more requests; waits for the answers to those in flight.
    pub(crate) fn drain(self) -> Outcome {
        self.watch.stop.store(true, Ordering::Relaxed);
        until(DRAIN_MAX, "all requests in flight end", || {
            Ok(if self.all_gone() {
                Look::Found(())
            } else {
                let left = self.threads.iter().filter(|t| !t.is_finished()).count();
                Look::NotYet(format!("those of {left} guests do not"))
            })
        })?;
        self.join()
    }

    /// Their front is dead: breaks what is left of the connections.
    pub(crate) fn abandon(self) -> Outcome {
        self.doom();
        self.watch.stop.store(true, Ordering::Relaxed);
        for handle in &self.handles {
            // It may be broken already.
            let _ = handle.shutdown(Shutdown::Both);
        }
        self.join()
    }

    fn join(self) -> Outcome {
        for thread in self.threads {
            let panicked = |_| Failure::Broken("a guest's thread panicked".to_owned());
            thread.join().map_err(panicked)?;
        }
        Ok(())
    }
}

/// For `map_err` where only the product can be at fault.
pub(crate) fn broken<E: std::fmt::Display>(doing: &str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Broken(format!("{doing}: {error}"))
}

struct Guest {
    client: Client,
    token: u32,
    recorder: Arc<Recorder>,
    watch: Arc<Watch>,
    profile: Profile,
    rng: ChaCha8Rng,
    open: BTreeMap<u64, Open>,
}

impl Guest {
    fn run(mut self) {
        loop {
            let stop = self.watch.stop.load(Ordering::Relaxed);
            while !stop && self.open.len() < self.profile.depth {
                let ask = choose(&mut self.rng, &self.profile.ranges);
                match send(&mut self.client, &self.recorder, self.token, &ask) {
                    Ok(open) => drop(self.open.insert(open.op, open)),
                    Err(error) => return self.lost(&error),
                }
            }
            if self.open.is_empty() {
                if stop {
                    return self.client.disconnect();
                }
                continue;
            }
            match self.client.receive() {
                Ok((cookie, reply)) => self.answered(cookie, reply),
                Err(error) => return self.lost(&error),
            }
        }
    }

    fn think(&mut self) {
        let time = self.rng.random_range(0..THINK_US_MAX);
        nap(Duration::from_micros(time));
    }

    fn answered(&mut self, cookie: u64, reply: Reply) {
        let Some(open) = self.open.remove(&cookie) else {
            return self
                .recorder
                .complain(format!("a reply to {cookie}, which is not open"));
        };
        let changes = open.ask.verb.changes();
        match settle(&self.recorder, &open, reply) {
            Ok(()) => {
                self.watch.done.fetch_add(1, Ordering::Relaxed);
                if changes {
                    self.watch.writes_done.fetch_add(1, Ordering::Relaxed);
                }
                self.think();
            }
            Err(error) => {
                let full = error == ENOSPC && changes && self.watch.full.load(Ordering::Relaxed);
                if full {
                    self.watch.no_space.fetch_add(1, Ordering::Relaxed);
                } else if !self.watch.doomed.load(Ordering::Relaxed) {
                    let text = format!("op {}: the guest saw error {error}", open.op);
                    self.recorder.complain(text);
                }
                let refused = match open.ask.verb {
                    Verb::Read => &self.watch.reads_refused,
                    _ => &self.watch.writes_refused,
                };
                refused.fetch_add(1, Ordering::Relaxed);
                nap(AFTER_ERROR);
            }
        }
    }

    /// The connection has ended. What was in flight stays open: it may have happened.
    fn lost(self, error: &std::io::Error) {
        let writes = self.open.values().filter(|open| open.ask.verb.changes());
        let writes = writes.count() as u64;
        self.watch.writes_cut.fetch_add(writes, Ordering::Relaxed);
        if !self.watch.doomed.load(Ordering::Relaxed) {
            self.recorder
                .complain(format!("a guest lost its connection: {error}"));
        }
    }
}

/// Sends a request.
pub(crate) fn send(
    client: &mut Client,
    recorder: &Recorder,
    token: u32,
    ask: &Ask,
) -> std::io::Result<Open> {
    let mut data = Vec::new();
    let open = recorder.begin(token, ask, &mut data);
    let command = match ask.verb {
        Verb::Read => Command::Read,
        Verb::Write => Command::Write,
        Verb::Trim => Command::Trim,
        Verb::Zero => Command::WriteZeroes,
        Verb::Flush => Command::Flush,
    };
    let flags = if ask.fua { FUA } else { 0 };
    let offset = ask.sectors.start * SECTOR;
    let length = (ask.sectors.end - ask.sectors.start) * SECTOR;
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    client.send(command, flags, open.op, offset, length, &data)?;
    Ok(open)
}

/// Records an answer; returns the error number, if it was one.
pub(crate) fn settle(recorder: &Recorder, open: &Open, reply: Reply) -> Result<(), u32> {
    match reply {
        Ok(_) if open.fenced && open.ask.verb.changes() => {
            recorder.succeeded(open, &[]);
            recorder.complain(format!(
                "op {}: a fenced front acknowledged a write that began after the fence",
                open.op
            ));
            Ok(())
        }
        Ok(data) => {
            recorder.succeeded(open, &data);
            if open.stale && open.ask.verb == Verb::Read {
                recorder.complain(format!(
                    "op {}: a fenced front answered a read that began after everything was overwritten",
                    open.op
                ));
            }
            Ok(())
        }
        Err(error) => {
            recorder.failed(open);
            Err(error)
        }
    }
}

fn choose(rng: &mut ChaCha8Rng, ranges: &[Range<u64>]) -> Ask {
    let range = &ranges[rng.random_range(0..ranges.len())];
    let start = rng.random_range(range.start..range.end);
    let most = (range.end - start).min(if rng.random_range(0..8u32) == 0 {
        64
    } else {
        8
    });
    let sectors = start..start + rng.random_range(1..=most);
    let fua = rng.random_range(0..5u32) == 0;
    let verb = match rng.random_range(0..100u32) {
        0..45 => Verb::Read,
        45..91 => Verb::Write,
        91..93 => Verb::Zero,
        93..95 => Verb::Trim,
        _ => Verb::Flush,
    };
    let (sectors, fua) = match verb {
        Verb::Flush => (0..0, false),
        Verb::Read => (sectors, false),
        _ => (sectors, fua),
    };
    Ask { verb, sectors, fua }
}
