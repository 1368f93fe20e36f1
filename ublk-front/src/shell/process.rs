//! What a front asks of the operating system for itself.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use ukai_proto::BootId;

/// `linux/prctl.h`; the libc crate lacks it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Prints a line on standard output, for scripts. A reader that has gone is no reason to stop.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Tells systemd (or whoever set `NOTIFY_SOCKET`) that the device is there.
pub fn notify_ready(status: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let text = format!("READY=1\nSTATUS={status}\n");
    let sent = UnixDatagram::unbound().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt;
        match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                socket.send_to_addr(text.as_bytes(), &address)
            }
            None => socket.send_to(text.as_bytes(), &path),
        }
    });
    if let Err(error) = sent {
        tracing::warn!("notify {}: {error}", path.display());
    }
}

/// Must be called first, while there is one thread. All of it is best effort: a front works without,
/// under less memory pressure and with more care by the administrator.
pub fn prepare() {
    // A thread that panics would leave guests waiting, or the kernel writing into freed buffers.
    let inherited = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        inherited(info);
        std::process::abort();
    }));
    // SAFETY: no pointers but constant strings and null.
    unsafe {
        // A front that saw its own device mounted would keep it open when it has to let it go.
        if libc::unshare(libc::CLONE_NEWNS) == 0 {
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let root = c"/".as_ptr();
            if libc::mount(
                std::ptr::null(),
                root,
                std::ptr::null(),
                flags,
                std::ptr::null(),
            ) < 0
            {
                tracing::debug!("private mounts: {}", io::Error::last_os_error());
            } else {
                super::ublk::forget_mounts();
            }
        } else {
            tracing::debug!("own mount namespace: {}", io::Error::last_os_error());
        }
        // Memory it needs must not be freed by writing to the device that it serves.
        if libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0 {
            tracing::debug!("PR_SET_IO_FLUSHER: {}", io::Error::last_os_error());
        }
        // Only root has no limit that later allocations could run into.
        if libc::geteuid() == 0 {
            let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
            if libc::mlockall(flags) < 0 {
                tracing::debug!("mlockall: {}", io::Error::last_os_error());
            }
        }
    }
}

/// CPU time of this process so far, all its threads, user and kernel.
#[must_use]
pub fn cpu_time() -> std::time::Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for one rusage, for which all zeros is a value; the call cannot fail with these arguments.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |time: libc::timeval| {
        let micros = time.tv_sec * 1_000_000 + time.tv_usec;
        std::time::Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// This boot of the machine.
pub fn boot_id() -> io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let parsed = text.trim().parse();
    parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Sixteen random bytes that name this process.
pub fn random_id() -> io::Result<[u8; 16]> {
    use std::io::Read;
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

/// The machine's name, if nobody gave another.
pub fn host_name() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(text.trim().to_owned())
}

/// One front per name on this machine (strictly: per network namespace), whatever its run directory:
/// held until the process ends, however it ends. `None`: another process holds it.
pub fn lock_name(name: &str) -> io::Result<Option<UnixListener>> {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

/// One front per volume and directory: held until the process ends, however it ends. `None`:
/// another process holds it.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
