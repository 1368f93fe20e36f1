//! The whole life of a front: find the volume, take it, serve it, give it back.

use super::context::{ControlInput, ControlPort, FrontContext, FrontSettings, FrontendError};
use super::control::{self, ControlFailure, ControlSetup, ControlSocket, MetaHandle};
use super::wake::Mailbox;
use super::{clock, nbd, process, settle, ublk};
use crate::core::SharedSeq;
use crate::core::api::ControlError;
use crate::core::control::ControlConfig;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::{Attach, MetaError, MetaStore, MetaUrl};
use ukai_proto::{ClusterId, VolumeId};

/// How the volume is presented.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presentation {
    /// `/dev/ublkbN` if the kernel has the driver, else NBD.
    Auto,
    /// `/dev/ublkbN`.
    Ublk,
    /// NBD.
    Nbd,
    /// Not at all: until every replica is in sync (`settle`).
    Settle,
    /// Not at all: take it and give it back at once (after a front that died).
    Release,
}

/// What to attach, and how.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// The metadata store.
    pub meta: MetaUrl,
    /// This host's name; the machine's own if not given.
    pub host: Option<String>,
    /// Take the volume from a front that holds it.
    pub force: bool,
    /// Everything that frontends look at.
    pub settings: FrontSettings,
}

/// Why there is no front (any more). Each variant has an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The metadata store does not answer.
    #[error("{0}")]
    Meta(String),
    /// No such volume.
    #[error("there is no volume {0}; `ukai-tools volume list` shows all")]
    NoVolume(String),
    /// The command line lacks something.
    #[error("{0}")]
    Usage(String),
    /// Nothing to show or to detach.
    #[error("not attached here: {0}")]
    NotAttached(String),
    /// Attached elsewhere, being deleted, in use.
    #[error("{0}")]
    Refused(String),
    /// Another front has taken the volume.
    #[error("another front has attached the volume; this one has stopped")]
    Fenced,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl AttachError {
    /// What the process exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Meta(_) => 3,
            Self::NoVolume(_) | Self::NotAttached(_) => 4,
            Self::Refused(_) => 5,
            Self::Fenced => 6,
        }
    }

    fn doing(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Failed(format!("{doing}: {error}"))
    }
}

impl From<CatalogError> for AttachError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Store(error) => error.into(),
            CatalogError::NoVolume(name) => Self::NoVolume(name),
            CatalogError::Deleting(_) => Self::Refused(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<MetaError> for AttachError {
    fn from(error: MetaError) -> Self {
        Self::Meta(error.to_string())
    }
}

impl From<FrontendError> for AttachError {
    fn from(error: FrontendError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<ControlFailure> for AttachError {
    fn from(error: ControlFailure) -> Self {
        match error {
            ControlFailure::Core(ControlError::Fenced) => Self::Fenced,
            ControlFailure::Core(error @ ControlError::Meta(_)) => Self::Meta(error.to_string()),
            ControlFailure::Core(error @ (ControlError::Refused(_) | ControlError::NoVolume)) => {
                Self::Refused(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Where the control socket of a volume's front is.
#[must_use]
pub fn control_path(run_dir: &Path, volume: &str) -> PathBuf {
    run_dir.join(format!("{volume}.sock"))
}

/// Attaches, serves until told to stop (or, for [`Presentation::Settle`] and
/// [`Presentation::Release`], until there is nothing left to do), detaches.
pub fn attach(options: &AttachOptions, presentation: Presentation) -> Result<(), AttachError> {
    let (presentation, why) = choose(presentation)?;
    if !why.is_empty() {
        eprintln!("ublk-front: {why}"); // whatever the log's level
    }
    // A device in use stays at the first signal. NBD clients are told that the server goes.
    let insist = presentation != Presentation::Ublk;
    attach_with(options, insist, |context| serve(presentation, context))
}

/// As [`attach`], with a frontend of the caller's. `insist`: the first SIGTERM or SIGINT stops it also if it
/// is in use.
pub fn attach_with(
    options: &AttachOptions,
    insist: bool,
    serve: impl FnOnce(FrontContext) -> Result<(), FrontendError>,
) -> Result<(), AttachError> {
    let settings = &options.settings;
    let run_dir = std::path::absolute(&settings.run_dir)
        .map_err(AttachError::doing("find the run directory"))?;
    std::fs::create_dir_all(&run_dir)
        .map_err(AttachError::doing(format!("create {}", run_dir.display())))?;
    let _lock = lock(&run_dir, &settings.volume)?;
    let meta = MetaHandle::open(options.meta.clone())?;
    let store = meta.get();
    let cluster = catalog::cluster(&*store)?.cluster;
    let volume = catalog::volume_id(&*store, &settings.volume)?;
    let volume = volume.ok_or_else(|| AttachError::NoVolume(settings.volume.clone()))?;
    let host = match &options.host {
        Some(host) => host.clone(),
        None => process::host_name().map_err(AttachError::doing("learn this host's name"))?,
    };
    let who = Attach {
        host: host.clone(),
        boot: process::boot_id().map_err(AttachError::doing("read the boot id"))?,
        front: process::random_id().map_err(AttachError::doing("read random bytes"))?,
    };
    let mut config = ControlConfig::new(volume, who);
    let name = process::lock_name(&format!("ukai-front/{cluster}/{volume}/{host}"));
    let name_lock = name.map_err(AttachError::doing("lock the volume on this host"))?;
    if name_lock.is_none() && !options.force {
        return Err(AttachError::Refused(format!(
            "volume {} is attached by another front of this host, with another run directory; \
             detach it there, or take it over with --force",
            settings.volume
        )));
    }
    config.former_is_dead = match succeeds_dead_front(&*store, volume, &config.attach) {
        Err(_) if options.force => false,
        dead => name_lock.is_some() && dead?,
    };
    config.force = options.force || config.former_is_dead;
    let control_path = control_path(&run_dir, &settings.volume);
    let (listener, socket) = ControlSocket::bind(&control_path).map_err(AttachError::doing(
        format!("listen on {}", control_path.display()),
    ))?;
    let seq = Arc::new(SharedSeq::default());
    let (port, mailbox) = ControlPort::new(Arc::clone(&seq), cluster)
        .map_err(AttachError::doing("create an eventfd"))?;
    socket
        .serve(listener, port.clone())
        .map_err(AttachError::doing("start the control socket's thread"))?;
    watch_signals(port.clone(), insist)?;
    let (frontend, orders) =
        Mailbox::new(false, None).map_err(AttachError::doing("create an eventfd"))?;
    let (ready, presented) = flume::bounded(1);
    let setup = ControlSetup {
        config,
        name: settings.volume.clone(),
        cluster,
        meta,
        seq,
        port: port.clone(),
        mailbox,
        ready,
        frontend,
        control_path,
        host,
    };
    let control = std::thread::Builder::new().name("control".into());
    let control = control
        .spawn(move || control::run(setup))
        .map_err(AttachError::doing("start the control thread"))?;
    let mut served = Ok(());
    if let Ok(presented) = presented.recv() {
        let settings = FrontSettings {
            run_dir,
            ..settings.clone()
        };
        let context = FrontContext {
            presented,
            settings,
            control: port.clone(),
            orders,
        };
        served = serve(context);
        port.post(ControlInput::FrontendEnded);
    }
    // A panic ends the process (see `process::prepare`).
    let ended = control
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    await_answers(&socket);
    drop(name_lock);
    served?;
    Ok(ended?)
}

fn serve(presentation: Presentation, context: FrontContext) -> Result<(), FrontendError> {
    match presentation {
        Presentation::Ublk => ublk::serve(context),
        Presentation::Nbd => nbd::serve(context),
        Presentation::Settle => settle::serve(&context),
        Presentation::Release => Ok(()),
        Presentation::Auto => unreachable!("`choose` has decided"),
    }
}

/// Decides between frontends; says what and why.
fn choose(presentation: Presentation) -> Result<(Presentation, String), AttachError> {
    match presentation {
        Presentation::Auto => Ok(match ublk::available() {
            Ok(()) => {
                let why = "picked the ublk frontend: this kernel has the driver";
                (Presentation::Ublk, why.to_owned())
            }
            Err(why) => (Presentation::Nbd, format!("picked the NBD frontend: {why}")),
        }),
        Presentation::Ublk => match ublk::available() {
            Ok(()) => Ok((Presentation::Ublk, String::new())),
            Err(why) => Err(AttachError::Failed(why.to_string())),
        },
        other => Ok((other, String::new())),
    }
}

/// One front per volume in a run directory.
fn lock(run_dir: &Path, volume: &str) -> Result<File, AttachError> {
    let path = run_dir.join(format!("{volume}.lock"));
    let lock = process::lock(&path);
    let lock = lock.map_err(AttachError::doing(format!("lock {}", path.display())))?;
    lock.ok_or_else(|| {
        let text = format!("volume {volume} is attached by another front here already");
        AttachError::Refused(format!("{text}; `ublk-front status {volume}` shows it"))
    })
}

/// Is the volume held by a front of this host and boot that lives no more? Then it may be taken
/// without `--force`: nothing of that front can be on its way but what the fence refuses.
fn succeeds_dead_front(
    store: &dyn MetaStore,
    volume: VolumeId,
    who: &Attach,
) -> Result<bool, AttachError> {
    let head = catalog::load_head(store, volume)?;
    let Some(holder) = head.attach.filter(|holder| holder.host == who.host) else {
        return Ok(false);
    };
    if holder.boot != who.boot {
        return Ok(false); // the core knows that this one is dead
    }
    let Some(front) = catalog::front(store, volume)? else {
        // It never got so far as to announce itself, or its lease has ended. It is dead: we hold the
        // lock of the volume on this host.
        return Ok(true);
    };
    let answers = std::os::unix::net::UnixStream::connect(&front.control).is_ok();
    if front.host == who.host && answers {
        let text = format!(
            "volume {} is attached on this host by process {} as {}; detach it there, or take it \
             over with --force",
            head.name, front.pid, front.device
        );
        return Err(AttachError::Refused(text));
    }
    Ok(front.host == who.host)
}

/// SIGTERM and SIGINT detach. What is in use stays, with the reason in the log, unless the signal insists, as
/// a second one always does.
fn watch_signals(port: ControlPort, insist: bool) -> Result<(), AttachError> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(AttachError::doing("watch signals"))?;
    let body = move || {
        let mut force = insist;
        for _ in signals.forever() {
            tracing::info!("signal: detaching");
            let (refused, why) = flume::bounded(1);
            port.post(ControlInput::Detach {
                force,
                refused,
                done: None,
            });
            if let Ok(why) = why.recv() {
                tracing::warn!("not detached: {why}");
            }
            force = true;
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(body)
        .map_err(AttachError::doing("start the signal thread"))?;
    Ok(())
}

/// Lets the threads of the control socket write their last answers.
fn await_answers(socket: &ControlSocket) {
    let begin = clock::now();
    while socket.clients() > 0 && clock::now().since(begin) < Duration::from_secs(1) {
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The cluster and volume of a name, for commands that do not attach.
pub fn find_volume(
    meta: &MetaUrl,
    name: &str,
) -> Result<(Arc<dyn MetaStore>, ClusterId, VolumeId), AttachError> {
    let store: Arc<dyn MetaStore> = Arc::from(ukai_meta::open(meta)?);
    let cluster = catalog::cluster(&*store)?.cluster;
    let volume = catalog::volume_id(&*store, name)?;
    let volume = volume.ok_or_else(|| AttachError::NoVolume(name.to_owned()))?;
    Ok((store, cluster, volume))
}
