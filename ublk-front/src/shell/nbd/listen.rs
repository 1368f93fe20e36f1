//! Where NBD clients connect: a Unix socket, TCP, or both.

use crate::shell::address::set_nodelay;
use crate::shell::context::{FrontSettings, FrontendError};
use crate::shell::wake::EventFd;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The sockets; the Unix one's file is removed on drop.
#[derive(Debug)]
pub(super) struct Listeners {
    unix: Option<(UnixListener, PathBuf)>,
    tcp: Option<TcpListener>,
}

/// What woke the listener.
#[derive(Debug)]
pub(super) enum Ready {
    /// A client has connected.
    Client(OwnedFd),
    /// An order has come, or time has passed.
    Order,
}

impl Listeners {
    /// Listens where the settings say; on `RUN_DIR/VOLUME.nbd` if they say nothing.
    pub(super) fn bind(settings: &FrontSettings) -> Result<Self, FrontendError> {
        let mut listeners = Self {
            unix: None,
            tcp: None,
        };
        if let Some(address) = settings.nbd_tcp {
            if !address.ip().is_loopback() && !settings.insecure_plaintext {
                return Err(FrontendError::Failed(format!(
                    "NBD on {address} would be open to the network without encryption; \
                     use a loopback address, or say --insecure-plaintext"
                )));
            }
            if !address.ip().is_loopback() {
                tracing::warn!("NBD on {address} is neither encrypted nor authenticated");
            }
            let doing = format!("listen on {address}");
            let tcp = TcpListener::bind(address).map_err(FrontendError::io(doing))?;
            tcp.set_nonblocking(true)
                .map_err(FrontendError::io("set up the listener"))?;
            listeners.tcp = Some(tcp);
        }
        let default = || settings.run_dir.join(format!("{}.nbd", settings.volume));
        let path = match &settings.nbd_unix {
            Some(path) => Some(path.clone()),
            None => listeners.tcp.is_none().then(default),
        };
        if let Some(path) = path {
            let doing = format!("listen on {}", path.display());
            let unix = bind_unix(&path).map_err(FrontendError::io(doing))?;
            listeners.unix = Some((unix, path));
        }
        Ok(listeners)
    }

    /// How clients name them, Unix first.
    pub(super) fn uris(&self, volume: &str) -> impl Iterator<Item = String> {
        let unix = self.unix.as_ref().map(|(_, path)| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("nbd+unix:///{volume}?socket={}", path.display())
        });
        let address = self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
        unix.into_iter()
            .chain(address.map(|address| format!("nbd://{address}/{volume}")))
    }

    /// Waits for a client or an order.
    pub(super) fn wait(&self, orders: &EventFd, timeout: Option<Duration>) -> io::Result<Ready> {
        loop {
            let mut fds = vec![poll_in(orders.as_raw_fd())];
            fds.extend(self.unix.iter().map(|(unix, _)| poll_in(unix.as_raw_fd())));
            fds.extend(self.tcp.iter().map(|tcp| poll_in(tcp.as_raw_fd())));
            let woken = poll(&mut fds, timeout)?;
            if fds[0].revents != 0 || !woken {
                return Ok(Ready::Order);
            }
            if let Some(socket) = self.accept()? {
                return Ok(Ready::Client(socket));
            }
        }
    }

    /// Lets time pass.
    #[allow(clippy::unused_self)] // belongs to the listener's loop
    pub(super) fn pause(&self, time: Duration) -> io::Result<()> {
        poll(&mut [], Some(time)).map(|_| ())
    }

    fn accept(&self) -> io::Result<Option<OwnedFd>> {
        if let Some((unix, _)) = &self.unix
            && let Some((socket, _)) = passing(unix.accept())?
        {
            return Ok(Some(socket.into()));
        }
        if let Some(tcp) = &self.tcp
            && let Some((socket, from)) = passing(tcp.accept())?
        {
            tracing::info!("NBD client from {from}");
            set_nodelay(socket.as_raw_fd())?;
            return Ok(Some(socket.into()));
        }
        Ok(None)
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.unix {
            // Somebody may have tidied up before us.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Errors of accept that concern only one client, or pass: not a reason to stop listening.
fn passing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                tracing::warn!("accept: {error}");
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

/// Binds, replacing the socket file of a process that is gone.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)?;
    }
    if UnixStream::connect(path).is_ok() {
        let text = "another process listens there";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            let text = "a file that is no socket is there";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn poll_in(fd: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

/// `false`: time is up.
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<bool> {
    let millis = timeout.map_or(-1, |time| {
        i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
    });
    // SAFETY: the slice is valid for its length.
    let rc = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
    if rc >= 0 {
        return Ok(rc > 0);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINTR) {
        Ok(false)
    } else {
        Err(error)
    }
}
