//! A run: threads over disjoint parts of the device, and what they share.

use crate::device::Device;
use crate::failure::Failure;
use crate::journal::Journal;
use crate::worker::Worker;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

/// Fewer would make ranges of one length only.
const SECTORS_MIN: u64 = 16;

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) seed: u16,
    /// Of each thread.
    pub(crate) operations: u64,
    /// Its name in the history.
    pub(crate) volume: String,
    /// Its name in the stamps.
    pub(crate) volume_bytes: [u8; 16],
    pub(crate) journal: Journal,
    /// Held for reading by each operation, for writing while the device is closed. None: a re-attach
    /// failed.
    device: RwLock<Option<Device>>,
    reattach: Option<String>,
    on_flush: Option<String>,
    stop_file: Option<PathBuf>,
    failed: AtomicBool,
    reattached: AtomicU64,
    /// Flushes answered; held while the command that is told of them runs.
    flushed: Mutex<u64>,
}

/// How to make one.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) device: &'a Path,
    pub(crate) seed: u16,
    pub(crate) operations: u64,
    pub(crate) volume: String,
    pub(crate) journal: Journal,
    pub(crate) reattach: Option<String>,
    pub(crate) on_flush: Option<String>,
    pub(crate) stop_file: Option<PathBuf>,
}

/// A volume's name as it stands in the stamps: its first 16 bytes.
pub(crate) fn volume_bytes(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (out, byte) in out.iter_mut().zip(name.bytes()) {
        *out = byte;
    }
    out
}

impl Shared {
    pub(crate) fn new(options: Options<'_>) -> Result<Self, Failure> {
        let device = Device::open(options.device)?;
        Ok(Self {
            seed: options.seed,
            operations: options.operations,
            volume_bytes: volume_bytes(&options.volume),
            volume: options.volume,
            journal: options.journal,
            device: RwLock::new(Some(device)),
            reattach: options.reattach,
            on_flush: options.on_flush,
            stop_file: options.stop_file,
            failed: AtomicBool::new(false),
            reattached: AtomicU64::new(0),
            flushed: Mutex::new(0),
        })
    }

    pub(crate) fn with_device<T>(
        &self,
        act: impl FnOnce(&Device) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.device.read().as_deref() {
            Ok(Some(device)) => act(device),
            _ => Err(io::Error::other("the device is not attached")),
        }
    }

    pub(crate) fn stopping(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.stop_file.as_deref().is_some_and(Path::exists)
    }

    pub(crate) fn reattaches(&self) -> bool {
        self.reattach.is_some()
    }

    /// Closes the device, runs the command, opens what its last line says (or the same).
    pub(crate) fn reattach(&self) -> Result<(), Failure> {
        let Some(command) = &self.reattach else {
            return Ok(());
        };
        let failure = |problem: &str| Failure::Reattach(problem.to_owned());
        let mut device = self.device.write().map_err(|_| failure("a thread died"))?;
        let former = device
            .take()
            .ok_or_else(|| failure("an earlier one failed"))?;
        let path = former.path().to_owned();
        drop(former);
        let said = shell(command)?;
        let path = match said.lines().last() {
            Some(line) if line.starts_with('/') => PathBuf::from(line.trim()),
            _ => path,
        };
        *device = Some(Device::open(&path)?);
        self.reattached.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A flush was answered: its number goes to the command that wants to know, one at a time.
    pub(crate) fn flushed(&self) -> Result<(), Failure> {
        let mut flushed = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
        *flushed += 1;
        let number = *flushed;
        match &self.on_flush {
            Some(command) => shell(&format!("{command} {number}")).map(|_| ()),
            None => Ok(()),
        }
    }
}

fn shell(command: &str) -> Result<String, Failure> {
    let output = Command::new("bash").args(["-c", command]).output();
    let output = output.map_err(|error| Failure::Reattach(error.to_string()))?;
    if !output.status.success() {
        return Err(Failure::Reattach(format!(
            "{command}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Equal parts, whose borders are not those of slots or chunks.
fn parts(sectors: u64, threads: u8) -> Result<Vec<Range<u64>>, Failure> {
    let each = sectors / u64::from(threads).max(1);
    if each < SECTORS_MIN || threads == 0 {
        return Err(Failure::TooSmall { sectors, threads });
    }
    let borders = |at: u64| match at {
        0 => 0,
        at if at == u64::from(threads) => sectors,
        at => at * each + 1,
    };
    Ok((0..u64::from(threads))
        .map(|at| borders(at)..borders(at + 1))
        .collect())
}

/// Runs; tells what was done.
pub(crate) fn run(shared: &Shared, threads: u8) -> Result<String, Failure> {
    let sectors = shared
        .with_device(|device| Ok(device.sectors()))
        .map_err(|source| Failure::Io {
            operation: "size".into(),
            source,
        })?;
    let parts = parts(sectors, threads)?;
    let results: Vec<Result<u64, Failure>> = std::thread::scope(|scope| {
        let running: Vec<_> = (1..)
            .zip(parts)
            .map(|(number, part)| {
                scope.spawn(move || {
                    let mut worker = Worker::new(shared, number, part);
                    let result = worker
                        .learn()
                        .and_then(|()| worker.work())
                        .and_then(|()| worker.compare());
                    if result.is_err() && !shared.failed.swap(true, Ordering::Relaxed) {
                        eprintln!("the last operations of the thread that failed:");
                        worker.recent().for_each(|line| eprintln!("  {line}"));
                    }
                    result.map(|()| worker.done)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let mut done = 0;
    for result in results {
        done += result?;
    }
    Ok(format!(
        "{done} operations by {threads} threads on {sectors} sectors, {} flushes, {} times attached again",
        shared.flushed.lock().map_or(0, |flushed| *flushed),
        shared.reattached.load(Ordering::Relaxed)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_cover_the_device() {
        for threads in [1, 2, 3, 7] {
            let parts = parts(1000, threads).expect("fits");
            let sectors: Vec<u64> = parts.iter().cloned().flatten().collect();
            assert_eq!(sectors, (0..1000).collect::<Vec<_>>());
        }
        assert!(matches!(parts(20, 2), Err(Failure::TooSmall { .. })));
    }

    /// On a file of 1 MiB, with a re-attach that runs `command`.
    fn exercise(command: &str) -> Result<String, Failure> {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let path = dir.path().join("device");
        std::fs::write(&path, vec![0; 1 << 20]).expect("writes");
        let shared = Shared::new(Options {
            device: &path,
            seed: 1,
            operations: 300,
            volume: "v".into(),
            journal: Journal::append(None, 0, 0).expect("none"),
            reattach: Some(command.replace("DEVICE", &path.display().to_string())),
            on_flush: None,
            stop_file: None,
        })?;
        run(&shared, 2)
    }

    #[test]
    fn a_good_device_passes_and_a_lost_write_is_named() {
        let text = exercise("true").expect("a file is a good device");
        assert!(!text.contains(" 0 times attached again"), "{text}");
        let lost = "dd if=/dev/zero of=DEVICE bs=4096 count=120 conv=notrunc status=none";
        match exercise(lost) {
            Err(Failure::Content {
                found, expected, ..
            }) => {
                assert_eq!(found, "zeros");
                assert!(expected.contains("of seed 1, thread 1"), "{expected}");
            }
            other => panic!("{other:?}"),
        }
    }
}
