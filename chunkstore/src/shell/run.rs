//! `chunkstore run`: from a formatted path to a serving node, and back.

use super::backing::BackingKind;
use super::blocking::{Access, FileDisk};
use super::control::{Control, Isolation, MembershipError, check};
use super::executor::{self, Plan, Setting, SpawnError};
use super::listen::{self, ListenError, Listeners};
use super::medium::{MediumError, check_file_system, io_error};
use super::shard::{Command, Shared};
use super::systemd;
use crate::core::ShardIdentity;
use crate::disk::format::{NodeError, NodeSuperblock};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use ukai_meta::{MetaUrl, NodeRecord};
use ukai_proto::{BootId, Incarnation, ShardIndex};

/// A clean stop takes one checkpoint; a device that takes longer is stuck.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The formatted file or device.
    pub path: PathBuf,
    /// Metadata store.
    pub meta: MetaUrl,
    /// Address of shard 0; shard i adds i to the port; port 0: any.
    pub listen: SocketAddr,
    /// What fronts on other hosts use instead of the address listened on.
    pub advertise: Option<String>,
    /// Directory of Unix sockets.
    pub unix_dir: Option<PathBuf>,
    /// CPUs; none: one for each shard, from 0 on, as far as there are.
    pub cores: Vec<usize>,
    /// Allow plaintext beyond this host.
    pub insecure_plaintext: bool,
    /// Name of this machine.
    pub host: Option<String>,
    /// While the membership cannot be renewed.
    pub isolation: Isolation,
    /// What mirrors may fetch from other nodes, and other nodes from here: bytes per second each.
    pub copy_rate: Option<u64>,
    /// How long an executor looks for more to do before it sleeps.
    pub poll: Duration,
}

/// What the parts of the process tell the main thread.
#[derive(Debug)]
pub(super) enum Event {
    /// A shard is open and listens.
    Opened,
    /// An executor cannot go on.
    Failed(String),
    /// A shard stopped.
    Stopped {
        /// Which.
        shard: ShardIndex,
        /// Everything reached the device.
        clean: bool,
    },
    /// The node is a member.
    Registered,
    /// The node must not run (any more).
    Expelled(MembershipError),
    /// Stop, please.
    Signal,
}

/// It does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is no good.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// It is no node.
    #[error("{path}: {source}")]
    Node {
        /// The path.
        path: PathBuf,
        /// Why.
        source: NodeError,
    },
    /// Plaintext beyond this host was not allowed.
    #[error(
        "{0} is reachable from other machines, and the protocol is neither encrypted nor \
         authenticated: listen on a loopback address, or say --insecure-plaintext"
    )]
    Plaintext(SocketAddr),
    /// An unspecified address cannot be told to others.
    #[error("{0} is no address that others can use: say --advertise HOST")]
    Unspecified(SocketAddr),
    /// Membership.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// An executor.
    #[error("{0}")]
    Executor(String),
    /// What was unwritten may be lost, as after a crash; nothing acknowledged durable is.
    #[error("the stop was not clean: {0}")]
    Unclean(String),
}

impl Error {
    /// Refused because of what is there, not broken: tells exit codes apart.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Plaintext(_) | Self::Unspecified(_) => true,
            Self::Medium(error) => !matches!(error, MediumError::Io { .. }),
            Self::Node { source, .. } => !matches!(source, NodeError::Device(_)),
            Self::Membership(error) => error.is_refusal(),
            Self::Listen(_) | Self::Executor(_) | Self::Unclean(_) => false,
        }
    }
}

impl From<SpawnError> for Error {
    fn from(error: SpawnError) -> Self {
        Self::Executor(error.to_string())
    }
}

/// Run until stopped.
pub fn run(options: &Options) -> Result<(), Error> {
    run_on(options, BackingKind::Device)
}

/// The same on a copy of the path in memory: what a node takes without its disk, for measurements. Everything written
/// is lost when it ends, so the path must be a scratch file that no other run will open.
pub fn run_without_disk(options: &Options) -> Result<(), Error> {
    run_on(options, BackingKind::Memory)
}

fn run_on(options: &Options, backing: BackingKind) -> Result<(), Error> {
    if !options.listen.ip().is_loopback() {
        if !options.insecure_plaintext {
            return Err(Error::Plaintext(options.listen));
        }
        if options.listen.ip().is_unspecified() && options.advertise.is_none() {
            return Err(Error::Unspecified(options.listen));
        }
        tracing::warn!(
            "INSECURE: serving in plaintext on {}: anybody who reaches it can read and change every \
             volume on this node",
            options.listen
        );
    }
    let path = &options.path;
    check_file_system(path)?;
    // Held to the end: its lock keeps a second daemon off this file.
    let mut disk = open_exclusive(path)?;
    disk.wait_for_former_run()
        .map_err(io_error("wait for the former run on", path))?;
    let node_error = |source| Error::Node {
        path: path.clone(),
        source,
    };
    let mut block = NodeSuperblock::read(&mut disk).map_err(node_error)?;
    let host = options.host.clone().map_or_else(host_name, Ok);
    let host = host.map_err(io_error("read", Path::new(MACHINE_ID)))?;
    let store = ukai_meta::open(&options.meta).map_err(MembershipError::Meta)?;
    check(
        store.as_ref(),
        block.cluster,
        block.node,
        block.start,
        &host,
    )?;

    let mut listeners = Vec::new();
    for shard in 0..block.shard_count {
        listeners.push(listen::bind(
            options.listen,
            options.advertise.as_deref(),
            options.unix_dir.as_deref(),
            &block.name,
            ShardIndex(shard),
        )?);
    }
    let boot = boot_id().map_err(io_error("read", Path::new(BOOT_ID)))?;
    block.bump_start(&mut disk).map_err(node_error)?;
    let incarnation = Incarnation {
        boot,
        start: block.start,
    };
    let record = NodeRecord {
        node: block.node,
        name: block.name.clone(),
        site: block.site.clone(),
        labels: block.labels.clone(),
        shard_count: block.shard_count,
        shard_addresses: listeners.iter().map(|l| l.addresses.clone()).collect(),
        host,
        capacity_bytes: block.capacity_bytes(),
        draining: false,
    };
    let leftovers: Vec<PathBuf> = listeners
        .iter()
        .filter_map(|l| l.unix_path.clone())
        .collect();

    let shared = Arc::new(Shared {
        lease_until: AtomicU64::new(0),
        used_bytes: (0..block.shard_count).map(|_| AtomicU64::new(0)).collect(),
    });
    // Bounded by its senders: a handful of events per shard in a run.
    let (events_in, events) = flume::unbounded();
    let setting = Setting {
        path: path.clone(),
        backing,
        // Volumes spread evenly over shards, which share nothing.
        copy_rate: options
            .copy_rate
            .map(|rate| (rate / u64::from(block.shard_count)).max(1)),
        poll: options.poll,
        shared: shared.clone(),
        events: events_in.clone(),
    };
    watch_signals(events_in.clone()).map_err(io_error("handle signals for", path))?;
    let commands = start_executors(options, &block, incarnation, listeners, &setting)?;

    let mut opened = 0;
    while opened < block.shard_count {
        match events.recv() {
            Ok(Event::Opened) => opened += 1,
            Ok(Event::Failed(problem)) => return Err(Error::Executor(problem)),
            // Recovery is not interrupted half-way: it is repeated from the start next time.
            Ok(Event::Signal) => return Err(Error::Unclean("stopped while opening".into())),
            Ok(other) => tracing::debug!(?other, "while opening"),
            Err(_) => return Err(Error::Executor("all executors ended".into())),
        }
    }
    let url = options.meta.clone();
    let control = Control {
        reopen: Box::new(move || ukai_meta::open(&url)),
        store,
        record: record.clone(),
        incarnation,
        isolation: options.isolation,
        shared,
        commands: commands.clone(),
        events: events_in,
        registered: false,
    };
    let (stop_control, stop) = flume::bounded::<u64>(1);
    let control = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || control.run(&stop))
        .map_err(io_error("start the control thread for", path))?;

    let result = serve(&events, &commands, &record);
    // What was copied from the file while it ran must not pass for the node from now on.
    let counted = result.is_ok().then(|| block.bump_start(&mut disk));
    match counted {
        Some(Ok(())) => drop(stop_control.send(block.start)),
        Some(Err(error)) => tracing::warn!(%error, "count the stop"),
        None => {}
    }
    drop(stop_control);
    let _ = control.join();
    for path in leftovers {
        let _ = fs::remove_file(path);
    }
    drop(disk);
    result
}

/// From registration to the last shard's stop.
fn serve(
    events: &flume::Receiver<Event>,
    commands: &[flume::Sender<Command>],
    record: &NodeRecord,
) -> Result<(), Error> {
    let mut why: Result<(), Error> = Ok(());
    loop {
        match events.recv() {
            Ok(Event::Registered) => announce(record),
            Ok(Event::Signal) => break,
            Ok(Event::Expelled(error)) => {
                why = Err(error.into());
                break;
            }
            Ok(Event::Failed(problem)) => return Err(Error::Executor(problem)),
            Ok(Event::Stopped { shard, .. }) => {
                return Err(Error::Executor(format!("shard {shard} ended by itself")));
            }
            Ok(Event::Opened) => {}
            Err(_) => return Err(Error::Executor("all executors ended".into())),
        }
    }
    systemd::notify("STOPPING=1");
    tracing::info!("stopping");
    for shard in commands {
        let _ = shard.send(Command::Stop);
    }
    let mut running = commands.len();
    let mut unclean = Vec::new();
    while running > 0 {
        match events.recv_timeout(STOP_TIMEOUT) {
            Ok(Event::Stopped { shard, clean }) => {
                running -= 1;
                if !clean {
                    unclean.push(format!("shard {shard} could not write its last checkpoint"));
                }
            }
            Ok(Event::Signal) => unclean.push("stopped twice".into()),
            Ok(Event::Failed(problem)) => unclean.push(problem),
            Ok(_) => {}
            Err(_) => unclean.push(format!("{running} shards did not stop in time")),
        }
        if !unclean.is_empty() {
            break;
        }
    }
    why?;
    if unclean.is_empty() {
        tracing::info!("stopped cleanly");
        Ok(())
    } else {
        Err(Error::Unclean(unclean.join("; ")))
    }
}

/// The one line on standard output that scripts wait for.
fn announce(record: &NodeRecord) {
    let mut line = format!("ready node={} name={}", record.node, record.name);
    for (shard, addresses) in record.shard_addresses.iter().enumerate() {
        let mut addresses = addresses.clone();
        addresses.sort(); // tcp before unix
        line.push_str(&format!(" shard {shard} {}", addresses.join(" ")));
    }
    println!("{line}");
    systemd::notify("READY=1");
    tracing::info!(node = %record.node, name = %record.name, "serving");
}

fn open_exclusive(path: &Path) -> Result<FileDisk, MediumError> {
    FileDisk::open(path, Access::Exclusive).map_err(|error| {
        if error.raw_os_error() == Some(libc::EBUSY) {
            MediumError::InUse {
                path: path.to_owned(),
                by: "another chunkstore runs on it, or it is mounted".into(),
            }
        } else {
            io_error("open", path)(error)
        }
    })
}

/// Spread the shards over the cores and start an executor on each core that got one.
fn start_executors(
    options: &Options,
    block: &NodeSuperblock,
    incarnation: Incarnation,
    listeners: Vec<Listeners>,
    setting: &Setting,
) -> Result<Vec<flume::Sender<Command>>, Error> {
    let mut commands = Vec::new();
    let cores = if options.cores.is_empty() {
        let there = std::thread::available_parallelism().map_or(1, usize::from);
        (0..usize::from(block.shard_count).min(there)).collect()
    } else {
        options.cores.clone()
    };
    let mut plans: Vec<Vec<Plan>> = cores.iter().map(|_| Vec::new()).collect();
    for (index, listeners) in (0u16..).zip(listeners) {
        // Bounded by its sender: the control thread tells each change of the lease, rarely.
        let (sender, receiver) = flume::unbounded();
        commands.push(sender);
        let shard = ShardIndex(index);
        let core = usize::from(index) % plans.len();
        plans[core].push(Plan {
            identity: ShardIdentity {
                cluster: block.cluster,
                node: block.node,
                shard,
                shard_count: block.shard_count,
                incarnation,
            },
            place: block.shard_place(shard),
            listeners: listeners.sockets,
            commands: receiver,
        });
    }
    for (core, plans) in cores.into_iter().zip(plans) {
        if plans.is_empty() {
            continue;
        }
        let executor = executor::spawn(core, plans, setting.clone())?;
        let events = setting.events.clone();
        let watch = move || {
            if let Err(error) = executor.join() {
                let _ = events.send(Event::Failed(format!("executor on CPU {core}: {error}")));
            }
        };
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(watch)
            .map_err(|error| Error::Executor(error.to_string()))?;
    }
    Ok(commands)
}

fn watch_signals(events: flume::Sender<Event>) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let watch = move || {
        for _ in signals.forever() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .map(drop)
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";

fn boot_id() -> io::Result<BootId> {
    let text = fs::read_to_string(BOOT_ID)?;
    text.trim().parse().map_err(io::Error::other)
}

/// The machine: its durable id, or its host name where it has none.
fn host_name() -> io::Result<String> {
    match fs::read_to_string(MACHINE_ID) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        _ => Ok(fs::read_to_string("/proc/sys/kernel/hostname")?
            .trim()
            .to_owned()),
    }
}
