//! Asks an address whether a certain node answers there.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use ukai_proto::decode::VecDecoder;
use ukai_proto::message::{Hello, Role};
use ukai_proto::{ClusterId, Frame, Header, Incarnation, NodeId, Opcode, ShardIndex};

/// A node on the same host answers in a millisecond.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Who is at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// The node asked for.
    Node,
    /// Surely not that node: nothing listens, or something else answers.
    Nobody,
    /// No answer in time.
    Unknown,
}

/// Ask.
pub(super) fn probe(address: &str, cluster: ClusterId, node: NodeId) -> Found {
    let answer = match address.split_once(':') {
        Some(("unix", path)) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            ask(stream, cluster, node)
        }),
        Some(("tcp", host)) => connect(host).and_then(|stream| {
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            ask(stream, cluster, node)
        }),
        _ => return Found::Unknown,
    };
    use std::io::ErrorKind as Kind;
    match answer {
        Ok(true) => Found::Node,
        Ok(false) => Found::Nobody,
        Err(error) => match error.kind() {
            Kind::ConnectionRefused | Kind::NotFound => Found::Nobody,
            _ => Found::Unknown,
        },
    }
}

fn connect(host: &str) -> std::io::Result<TcpStream> {
    let address = host.to_socket_addrs()?.next();
    let address = address.ok_or(std::io::ErrorKind::NotFound)?;
    TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)
}

/// Whatever shard is meant, a node answers HELLO with its own identity.
fn ask(mut stream: impl Read + Write, cluster: ClusterId, node: NodeId) -> std::io::Result<bool> {
    let hello = Hello {
        cluster,
        node,
        role: Role::Tools,
        shard: ShardIndex(0),
        shard_count: 0,
        incarnation: Incarnation::default(),
    };
    let header = Header::request(Opcode::Hello, 1);
    stream.write_all(&Frame::<Vec<u8>>::new(header, hello.encode(), None).to_bytes())?;
    let (mut decoder, mut frames) = (VecDecoder::default(), Vec::new());
    let mut buffer = [0; 512];
    while frames.is_empty() {
        let received = stream.read(&mut buffer)?;
        if received == 0 {
            // A process that is going away, or one that has too many connections.
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if decoder.feed(&buffer[..received], &mut frames).is_err() {
            return Ok(false);
        }
    }
    let answer = frames.first().map(|frame| Hello::decode(&frame.aux));
    Ok(matches!(answer, Some(Ok(found)) if found.node == node && found.cluster == cluster))
}
