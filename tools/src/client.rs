//! A small client of storage nodes: HELLO, then one request at a time with its reply. For commands
//! that ask and order; guest data never passes here.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;
use tokio_uring::net::{TcpStream, UnixStream};
use ukai_meta::NodeRecord;
use ukai_proto::decode::{DecodeError, VecDecoder};
use ukai_proto::message::{Hello, MessageError, Role};
use ukai_proto::{
    BootId, ClusterId, Flags, Frame, Header, Incarnation, NodeId, Opcode, ShardIndex, Status,
};

/// One connect or one reply may take so long. A node drains the disk writes of a fenced front
/// before it answers; a device that stalls longer than this is one to look at, not to wait for.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes on other continents answer in a third of a second; a dead address costs this much.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Replies of the tools' requests are a header and at most a 64 KiB list.
const RECEIVE_BYTES: usize = 128 << 10;
/// How often a node may answer Busy before the command gives up; it says so when its queues are full.
const BUSY_TRIES: u32 = 5;

/// Why a node gave no answer, or no good one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no address answers ({0})")]
    Connect(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the node closed the connection")]
    Closed,
    #[error("the node's answer is damaged: {0}")]
    Decode(#[from] DecodeError),
    #[error("the node's answer is damaged: {0}")]
    Message(#[from] MessageError),
    #[error("the node answered something else than was asked")]
    Mismatch,
    #[error("{0}")]
    Refused(Status),
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// `unix:/path` or `tcp:ip:port`.
    async fn connect(address: &str) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidInput, "malformed address");
        match address.split_once(':') {
            Some(("unix", path)) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            Some(("tcp", at)) => {
                let at: SocketAddr = at.parse().map_err(|_| malformed())?;
                let stream = TcpStream::connect(at).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            _ => Err(malformed()),
        }
    }

    async fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes).await.0,
            Self::Tcp(stream) => stream.write_all(bytes).await.0,
        }
    }

    async fn receive(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Unix(stream) => stream.read(buffer).await,
            Self::Tcp(stream) => stream.read(buffer).await,
        }
    }
}

/// A connection to one shard of one node.
pub(crate) struct NodeClient {
    stream: Stream,
    decoder: VecDecoder,
    frames: VecDeque<Frame<Vec<u8>>>,
    buffer: Vec<u8>,
    next_tag: u64,
    /// Boot of the node's machine, as it said.
    pub(crate) boot: BootId,
}

impl NodeClient {
    /// Connects to the first address that answers and proves to be this node of this cluster.
    /// `unix:` addresses of another host fail at once, or meet another node and are passed over.
    pub(crate) async fn connect(
        cluster: ClusterId,
        record: &NodeRecord,
        shard: ShardIndex,
    ) -> Result<Self, ClientError> {
        let mut tried = Vec::new();
        let mut refusal = None;
        let addresses = record.shard_addresses.get(usize::from(shard.0));
        for address in addresses.into_iter().flatten() {
            let stream = match timeout(CONNECT_TIMEOUT, Stream::connect(address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tried.push(format!("{address}: {error}"));
                    continue;
                }
                Err(_) => {
                    tried.push(format!(
                        "{address}: no connection within {CONNECT_TIMEOUT:?}"
                    ));
                    continue;
                }
            };
            let mut client = Self {
                stream,
                decoder: VecDecoder::default(),
                frames: VecDeque::new(),
                buffer: vec![0; RECEIVE_BYTES],
                next_tag: 1,
                boot: BootId::NIL,
            };
            match client.hello(cluster, record.node, shard).await {
                Ok(()) => return Ok(client),
                Err(ClientError::Refused(status)) => refusal = Some(status),
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        if let Some(status) = refusal {
            return Err(ClientError::Refused(status));
        }
        if tried.is_empty() {
            tried.push("the node has registered none for this shard".into());
        }
        Err(ClientError::Connect(tried.join("; ")))
    }

    async fn hello(
        &mut self,
        cluster: ClusterId,
        node: NodeId,
        shard: ShardIndex,
    ) -> Result<(), ClientError> {
        let hello = Hello {
            cluster,
            node,
            role: Role::Tools,
            shard,
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        let reply = self
            .request(Header::request(Opcode::Hello, 0), hello.encode())
            .await?;
        let answer = Hello::decode(&reply.aux)?;
        if answer.cluster != cluster {
            return Err(ClientError::Refused(Status::WrongCluster));
        }
        if answer.node != node {
            return Err(ClientError::Refused(Status::WrongNode));
        }
        if answer.shard != shard {
            return Err(ClientError::Refused(Status::WrongShard));
        }
        self.boot = answer.incarnation.boot;
        Ok(())
    }

    /// Sends a request and waits for its reply; the tag is filled in. Any status but Ok is an
    /// error; Busy is asked again a few times first, which is safe: the node did nothing.
    pub(crate) async fn request(
        &mut self,
        header: Header,
        aux: Vec<u8>,
    ) -> Result<Frame<Vec<u8>>, ClientError> {
        let mut tries = 0;
        loop {
            let reply = self.request_once(header, aux.clone()).await?;
            tries += 1;
            match reply.header.status {
                Status::Ok => return Ok(reply),
                // The reply itself is what tells when to ask again: room came free in between.
                Status::Busy if tries < BUSY_TRIES => {}
                status => return Err(ClientError::Refused(status)),
            }
        }
    }

    async fn request_once(
        &mut self,
        mut header: Header,
        aux: Vec<u8>,
    ) -> Result<Frame<Vec<u8>>, ClientError> {
        header.tag = self.next_tag;
        self.next_tag += 1;
        let bytes = Frame::<Vec<u8>>::new(header, aux, None).to_bytes();
        let exchange = async {
            self.stream.send(bytes).await?;
            loop {
                while let Some(frame) = self.frames.pop_front() {
                    let reply = &frame.header;
                    if !reply.flags.has(Flags::REPLY) || reply.opcode != header.opcode {
                        return Err(ClientError::Mismatch);
                    }
                    if reply.tag == header.tag {
                        return Ok(frame);
                    }
                }
                let (result, buffer) = self.stream.receive(std::mem::take(&mut self.buffer)).await;
                self.buffer = buffer;
                let received = result?;
                if received == 0 {
                    return Err(ClientError::Closed);
                }
                let mut frames = Vec::new();
                self.decoder.feed(&self.buffer[..received], &mut frames)?;
                self.frames.extend(frames);
            }
        };
        timeout(REPLY_TIMEOUT, exchange)
            .await
            .map_err(|_| ClientError::Timeout(REPLY_TIMEOUT))?
    }
}

/// Every shard of a node, in order.
pub(crate) fn shards(record: &NodeRecord) -> impl Iterator<Item = ShardIndex> {
    (0..record.shard_count).map(ShardIndex)
}

/// Runs a conversation with nodes on a runtime of its own.
pub(crate) fn block_on<F: Future>(conversation: F) -> F::Output {
    tokio_uring::start(conversation)
}
