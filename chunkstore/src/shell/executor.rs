//! Executors: one thread per chosen core, each with its device descriptors and some shards.

use super::backing::{Backing, BackingKind};
use super::clock::now_ns;
use super::pulse::Pulse;
use super::pump;
use super::queues::Queues;
use super::ring::Ring;
use super::run::Event;
use super::shard::{Command, Executor, Shard, Shared};
use crate::core::{ShardCore, ShardIdentity};
use crate::disk::layout::ShardPlace;
use crate::disk::store::{Store, StoreLimits};
use glommio::{CpuSet, ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Memory registered with the ring per executor, for device buffers: 16 transfers of 1 MiB and the
/// small ones around them; what does not fit is allocated, only a little slower.
const IO_MEMORY_BYTES: usize = 32 << 20;

/// A shard to open.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) identity: ShardIdentity,
    pub(super) place: ShardPlace,
    pub(super) listeners: Vec<OwnedFd>,
    pub(super) commands: flume::Receiver<Command>,
}

/// What an executor needs besides its shards.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) path: PathBuf,
    pub(super) backing: BackingKind,
    /// Of one shard, bytes per second.
    pub(super) copy_rate: Option<u64>,
    /// How long an executor looks for more to do before it sleeps.
    pub(super) poll: Duration,
    pub(super) shared: Arc<Shared>,
    pub(super) events: flume::Sender<Event>,
}

/// A core that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    /// It does not exist.
    #[error("there is no CPU {core}; online are {online:?}")]
    NoCore {
        /// Asked for.
        core: usize,
        /// There are.
        online: Vec<usize>,
    },
    /// The runtime refused.
    #[error("start an executor on CPU {core}: {problem}")]
    Runtime {
        /// Where.
        core: usize,
        /// Why not.
        problem: String,
    },
}

/// Start an executor on `core` (if its topology can be read, pinned by the runtime; else by us) and
/// open its shards. Progress is told as events.
pub(super) fn spawn(
    core: usize,
    plans: Vec<Plan>,
    setting: Setting,
) -> Result<ExecutorJoinHandle<()>, SpawnError> {
    let (placement, pin) = match CpuSet::online() {
        Ok(online) => {
            let mut online: Vec<usize> = online.iter().map(|cpu| cpu.cpu).collect();
            online.sort_unstable();
            if !online.contains(&core) {
                return Err(SpawnError::NoCore { core, online });
            }
            (Placement::Fixed(core), None)
        }
        // Small virtual machines and containers do not always tell.
        Err(_) => (Placement::Unbound, Some(core)),
    };
    LocalExecutorBuilder::new(placement)
        .name("shards")
        .io_memory(IO_MEMORY_BYTES)
        .spawn(move || async move {
            if let Some(core) = pin
                && let Err(error) = pin_to(core)
            {
                tracing::warn!(core, %error, "cannot pin the executor; it runs on any CPU");
            }
            let events = setting.events.clone();
            if let Err(problem) = serve(plans, setting).await {
                // The receiver is gone only when the process ends anyway.
                let _ = events.send(Event::Failed(problem));
            }
        })
        .map_err(|error: GlommioError<()>| SpawnError::Runtime {
            core,
            problem: error.to_string(),
        })
}

fn pin_to(core: usize) -> std::io::Result<()> {
    // SAFETY: all-zero is the empty set; CPU_SET checks its bound; the set outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

async fn serve(plans: Vec<Plan>, setting: Setting) -> Result<(), String> {
    let _pulse = Pulse::start()
        .await
        .map_err(|error| format!("start a thread: {error}"))?;
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        format!("{what} {}: {error}", setting.path.display())
    };
    let backing =
        Backing::open(setting.backing, &setting.path).map_err(|error| failed("open", &error))?;
    let executor = Executor {
        ring: Rc::new(Ring::create().map_err(|error| format!("make a ring: {error}"))?),
        backing: Rc::new(backing),
        queues: Queues::create(),
    };
    let mut shards = Vec::new();
    for (place, plan) in plans.into_iter().enumerate() {
        let index = plan.identity.shard;
        let disk = executor.backing.blocking(&setting.path);
        let mut disk = disk.map_err(|error| failed("open", &error))?;
        let (limits, boot) = (StoreLimits::default(), plan.identity.incarnation.boot);
        let (store, report) = Store::open_on(disk.as_mut(), &plan.place, limits, boot)
            .map_err(|error| format!("shard {index}: {error}"))?;
        tracing::info!(shard = index.0, ?report, "shard opened");
        let mut core = ShardCore::new(plan.identity, store);
        core.set_copy_rate(now_ns(), setting.copy_rate);
        let shard = Shard::new(place, core, executor.clone(), setting.shared.clone());
        shard.serve(plan.listeners, plan.commands);
        shards.push(shard);
        let _ = setting.events.send(Event::Opened);
    }
    let pump = pump::run(executor.ring.clone(), shards.clone(), setting.poll);
    let pump = glommio::spawn_local_into(pump, executor.queues.data)
        .map_err(|error| format!("spawn a task: {error}"))?;
    pump.await.map_err(|error| format!("the ring: {error}"))?;
    for shard in shards {
        let (shard, clean) = (shard.id(), shard.stopped().unwrap_or(false));
        let _ = setting.events.send(Event::Stopped { shard, clean });
    }
    Ok(())
}
