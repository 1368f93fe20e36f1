//! Connections to other nodes, for copies.

use super::stream::adopt_stream;
use glommio::net::TcpStream;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Of one address: a WAN handshake takes a few round trips at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// No address answered.
#[derive(Debug, thiserror::Error)]
#[error("{}", if .0.is_empty() { "no usable address".to_owned() } else { .0.join("; ") })]
pub(super) struct ConnectError(Vec<String>);

/// Try the addresses in order.
pub(super) async fn connect(addresses: &[String]) -> Result<TcpStream, ConnectError> {
    let mut failures = Vec::new();
    for address in addresses {
        let attempt = match address.split_once(':') {
            Some(("unix", path)) => connect_unix(path.to_owned()).await,
            Some(("tcp", host)) => connect_tcp(host.to_owned()).await,
            _ => Err("neither tcp:host:port nor unix:/path".to_owned()),
        };
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    Err(ConnectError(failures))
}

/// Off the executor: connecting to a Unix socket waits while its backlog is full.
async fn connect_unix(path: String) -> Result<TcpStream, String> {
    let connected = glommio::executor().spawn_blocking(move || UnixStream::connect(path));
    connected
        .await
        .map(adopt_stream)
        .map_err(|error| error.to_string())
}

async fn connect_tcp(host: String) -> Result<TcpStream, String> {
    let address = match host.parse::<SocketAddr>() {
        Ok(address) => address,
        // Off the executor: name resolution blocks.
        Err(_) => glommio::executor()
            .spawn_blocking(move || host.to_socket_addrs().map(|mut found| found.next()))
            .await
            .map_err(|error| error.to_string())?
            .ok_or_else(|| "the name has no address".to_owned())?,
    };
    TcpStream::connect_timeout(address, CONNECT_TIMEOUT)
        .await
        .map_err(|error| error.to_string())
}
