//! The sockets that shards listen on, bound before anything is opened or registered.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use ukai_proto::ShardIndex;

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
        let path = dir.join(format!("{name}-{shard}.sock"));
        let listener = bind_unix(&path).map_err(|source| ListenError {
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
    let bound = TcpListener::bind(tcp).and_then(|listener| Ok((listener.local_addr()?, listener)));
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

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
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
