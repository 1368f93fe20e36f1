//! The sockets that shards listen on, bound before anything is opened or registered.

use super::clock::{now_ns, ns, pause};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ukai_proto::ShardIndex;

/// The kernel closes the listening sockets of a killed process a little after the process is gone,
/// when it gets to taking its ring down.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_LOOK: Duration = Duration::from_millis(20);

/// A socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {source}")]
pub struct ListenError {
    address: String,
    source: io::Error,
}

/// The sockets of one shard.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) sockets: Vec<OwnedFd>,
    /// Best first, as in the node's record.
    pub(super) addresses: Vec<String>,
    pub(super) unix_path: Option<PathBuf>,
}

/// Bind the sockets of `shard`: TCP on the base port + shard (0: any), and a Unix socket named after
/// node and shard. Without SO_REUSEPORT: two nodes on one port would share its connections.
pub(super) fn bind(
    base: SocketAddr,
    advertise: Option<&str>,
    unix_dir: Option<&Path>,
    name: &str,
    shard: ShardIndex,
) -> Result<Listeners, ListenError> {
    let mut sockets = Vec::new();
    let mut addresses = Vec::new();
    let mut unix_path = None;
    if let Some(dir) = unix_dir {
        // Others read the address in another working directory.
        let made = fs::create_dir_all(dir).and_then(|()| dir.canonicalize());
        let dir = made.map_err(|source| ListenError {
            address: format!("unix:{}", dir.display()),
            source,
        })?;
        let path = dir.join(format!("{name}-{shard}.sock"));
        let listener = patiently(|| bind_unix(&path)).map_err(|source| ListenError {
            address: format!("unix:{}", path.display()),
            source,
        })?;
        addresses.push(format!("unix:{}", path.display()));
        sockets.push(listener.into());
        unix_path = Some(path);
    }
    let mut tcp = base;
    if base.port() != 0 {
        let port = base.port().checked_add(shard.0);
        let port = port.ok_or_else(|| ListenError {
            address: format!("tcp:{base} + {shard}"),
            source: io::ErrorKind::AddrNotAvailable.into(),
        })?;
        tcp.set_port(port);
    }
    let bound = patiently(|| {
        let listener = TcpListener::bind(tcp)?;
        Ok((listener.local_addr()?, listener))
    });
    let (address, listener) = bound.map_err(|source| ListenError {
        address: format!("tcp:{tcp}"),
        source,
    })?;
    addresses.push(match advertise {
        None => format!("tcp:{address}"),
        Some(host) => format!("tcp:{host}:{}", address.port()),
    });
    sockets.push(listener.into());
    Ok(Listeners {
        sockets,
        addresses,
        unix_path,
    })
}

/// Try again for a while if the address is in use.
fn patiently<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = now_ns() + ns(LINGER);
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && now_ns() < until => {
                pause(LINGER_LOOK);
            }
            result => return result,
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if path.exists() {
        // Left over from a run that was killed, unless somebody answers.
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    UnixListener::bind(path)
}
