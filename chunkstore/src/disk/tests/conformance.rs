//! The conformance arm: bodies of the other tests on the shell's own device as well, over a preallocated file and
//! over a loop device, both O_DIRECT. The fake must allow everything that the real device does.

use super::twin::{Backend, with_twins};
use super::{model, power, rules};
use crate::disk::api::{Disk, DiskOp, DiskResult, IoId};
use crate::shell::blocking::{Access, FileDisk};
use crate::shell::buffer::NodeBuf;
use crate::shell::device::Device;
use crate::shell::ring::{Completed, Ring};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use ukai_proto::Buffer;

/// The shell's device on an executor of its own.
struct Real {
    requests: Option<flume::Sender<DiskOp<Vec<u8>>>>,
    done: flume::Receiver<(IoId, DiskResult<Vec<u8>>)>,
    ready: BTreeMap<IoId, DiskResult<Vec<u8>>>,
    executor: Option<ExecutorJoinHandle<()>>,
    loop_device: Option<PathBuf>,
    _dir: TempDir,
}

impl Backend for Real {
    fn submit(&mut self, op: DiskOp<Vec<u8>>) {
        let requests = self.requests.as_ref().expect("open");
        requests.send(op).expect("the executor runs");
    }

    fn wait(&mut self, io: IoId) -> DiskResult<Vec<u8>> {
        loop {
            if let Some(result) = self.ready.remove(&io) {
                return result;
            }
            let (io, result) = self.done.recv().expect("the executor runs");
            self.ready.insert(io, result);
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(executor) = self.executor.take() {
            let _ = executor.join();
        }
        if let Some(device) = &self.loop_device {
            losetup(&[Path::new("-d"), device]);
        }
    }
}

fn losetup(arguments: &[&Path]) -> String {
    let output = Command::new("losetup").args(arguments).output();
    let output = output.expect("losetup");
    assert!(output.status.success(), "losetup {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("a path")
}

fn plain(op: DiskOp<Vec<u8>>) -> DiskOp<NodeBuf> {
    use crate::disk::api::WriteData;
    match op {
        DiskOp::Read {
            io,
            position,
            bytes,
        } => DiskOp::Read {
            io,
            position,
            bytes,
        },
        DiskOp::Write {
            io,
            position,
            data: WriteData::Payload(bytes) | WriteData::Owned(bytes),
            dsync,
        } => DiskOp::Write {
            io,
            position,
            data: WriteData::Owned(bytes),
            dsync,
        },
        DiskOp::Sync { io } => DiskOp::Sync { io },
        DiskOp::Punch {
            io,
            position,
            bytes,
        } => DiskOp::Punch {
            io,
            position,
            bytes,
        },
    }
}

async fn serve(
    path: PathBuf,
    requests: flume::Receiver<DiskOp<Vec<u8>>>,
    done: flume::Sender<(IoId, DiskResult<Vec<u8>>)>,
) {
    let device = Device::open(&path).expect("opens");
    let ring = Ring::create().expect("a ring");
    let mut completed = Vec::new();
    loop {
        if ring.is_idle() {
            match requests.recv_async().await {
                Ok(op) => device.begin(&ring, 0, plain(op)),
                Err(_) => return,
            }
        }
        while let Ok(op) = requests.try_recv() {
            device.begin(&ring, 0, plain(op));
        }
        ring.wait(Duration::from_millis(1)).expect("enters");
        ring.reap(&mut completed);
        for completed in completed.drain(..) {
            let Completed::Disk { io, result, .. } = completed else {
                panic!("there are no connections");
            };
            let result = match result {
                DiskResult::Read(buffer) => DiskResult::Read(buffer.as_slice().to_vec()),
                DiskResult::Done => DiskResult::Done,
                DiskResult::Failed(errno) => DiskResult::Failed(errno),
            };
            let _ = done.send((io, result));
        }
    }
}

fn make(bytes: u64, as_loop: bool) -> (Box<dyn Backend>, Box<dyn Disk>) {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder on a disk");
    let file = dir.path().join("node");
    // Written, not only reserved: the content is zeros from the beginning, as the fake's.
    std::fs::write(&file, vec![0; usize::try_from(bytes).expect("small")]).expect("writes");
    let (path, loop_device) = if as_loop {
        let said = losetup(&[Path::new("-f"), Path::new("--show"), &file]);
        let device = PathBuf::from(said.trim());
        (device.clone(), Some(device))
    } else {
        (file, None)
    };
    let blocking = FileDisk::open(&path, Access::Write).expect("opens");
    let (requests, inbox) = flume::unbounded();
    let (outbox, done) = flume::unbounded();
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .spawn(move || serve(path, inbox, outbox))
        .expect("an executor");
    let real = Real {
        requests: Some(requests),
        done,
        ready: BTreeMap::new(),
        executor: Some(executor),
        loop_device,
        _dir: dir,
    };
    (Box::new(real), Box::new(blocking))
}

macro_rules! on_real_devices {
    ($($module:ident::$body:ident,)*) => {
        mod on_a_file {
            use super::*;
            $(#[test]
            fn $body() {
                with_twins(Box::new(|bytes| make(bytes, false)), $module::$body);
            })*
        }
        mod on_a_loop_device {
            use super::*;
            $(#[test]
            fn $body() {
                with_twins(Box::new(|bytes| make(bytes, true)), $module::$body);
            })*
        }
    };
}

on_real_devices! {
    rules::writes_are_read_back_and_unwritten_sectors_are_zeros_without_io,
    rules::older_and_equal_versions_change_nothing,
    rules::discards_free_the_slot_and_late_older_writes_do_not_come_back,
    rules::copies_obey_their_rule_at_the_moment_they_are_applied,
    rules::fences_and_generations_survive_and_never_sink,
    rules::a_fence_waits_for_the_writes_before_it,
    rules::released_chunks_are_gone_for_good_and_others_stay,
    rules::intents_open_durably_before_data_and_close_when_all_is_known,
    rules::all_intents_of_a_volume_at_rest_close,
    rules::one_write_after_the_other_opens_each_chunk_once,
    model::random_requests_against_the_oracle_with_clean_stops,
    power::random_cuts,
    power::random_process_crashes_lose_nothing_that_was_answered,
}
