//! Conversations with all replicas of a chunk at a time, on one connection per shard.

use crate::client::{ClientError, NodeClient};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use ukai_meta::NodeRecord;
use ukai_proto::message::{Pull, PullMode, Pulled, SectorState, read_sector_states};
use ukai_proto::route::shard_of;
use ukai_proto::{
    ChunkIndex, ClusterId, Flags, Frame, Generation, Header, NodeId, Opcode, SectorInChunk, Seq,
    ShardIndex, Status, Token, Version, VolumeId,
};

/// What all requests of a round carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) volume: VolumeId,
    pub(super) token: Token,
    pub(super) generation: Generation,
}

impl Stamp {
    pub(super) fn header(&self, opcode: Opcode) -> Header {
        Header {
            volume: self.volume,
            token: self.token,
            generation: self.generation,
            ..Header::request(opcode, 0)
        }
    }
}

/// What a node told of a range: states, and up to where it knows writes to be everywhere.
pub(super) type Listed = (Vec<SectorState>, Version);

/// Connections by shard, made when they are first needed.
pub(super) struct Clients {
    cluster: ClusterId,
    open: BTreeMap<(NodeId, ShardIndex), NodeClient>,
}

impl Clients {
    pub(super) fn new(cluster: ClusterId) -> Self {
        Self {
            cluster,
            open: BTreeMap::new(),
        }
    }

    pub(super) async fn get(
        &mut self,
        record: &NodeRecord,
        shard: ShardIndex,
    ) -> Result<&mut NodeClient, ClientError> {
        let key = (record.node, shard);
        if !self.open.contains_key(&key) {
            let client = NodeClient::connect(self.cluster, record, shard).await?;
            self.open.insert(key, client);
        }
        self.open.get_mut(&key).ok_or(ClientError::Closed)
    }

    /// A connection that failed is not used again.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.open.retain(|(of, _), _| *of != node);
    }

    pub(super) async fn ask(
        &mut self,
        record: &NodeRecord,
        shard: ShardIndex,
        header: Header,
        aux: Vec<u8>,
    ) -> Result<Frame<Vec<u8>>, ClientError> {
        let asked = self.get(record, shard).await?.request(header, aux).await;
        // The answer may still come: the connection is of no use any more.
        if !matches!(asked, Ok(_) | Err(ClientError::Refused(_))) {
            self.forget(record.node);
        }
        asked
    }

    /// LIST at all of these nodes at once.
    pub(super) async fn list(
        &mut self,
        nodes: &[&NodeRecord],
        stamp: &Stamp,
        chunk: ChunkIndex,
        (sector, count): (SectorInChunk, u16),
        verify: bool,
    ) -> Result<Vec<Listed>, (NodeId, ClientError)> {
        let header = Header {
            chunk,
            sector,
            count,
            flags: if verify { Flags::VERIFY } else { Flags::NONE },
            ..stamp.header(Opcode::List)
        };
        let mut taken = Vec::new();
        for record in nodes {
            let shard = shard_of(stamp.volume, chunk, record.shard_count);
            let node = record.node;
            self.get(record, shard).await.map_err(|e| (node, e))?;
            let key = (node, shard);
            let client = self.open.remove(&key).ok_or((node, ClientError::Closed))?;
            taken.push((key, client));
        }
        let asked = taken
            .iter_mut()
            .map(|(_, client)| client.request(header, Vec::new()));
        let answers = all(asked.collect()).await;
        let mut out = Vec::new();
        let mut failed = None;
        for ((key, client), answer) in taken.into_iter().zip(answers) {
            match answer.and_then(|reply| listed(&reply, stamp.token, count)) {
                Ok(listed) => {
                    out.push(listed);
                    self.open.insert(key, client);
                }
                Err(error) => {
                    if matches!(error, ClientError::Refused(_)) {
                        self.open.insert(key, client);
                    }
                    failed.get_or_insert((key.0, error));
                }
            }
        }
        failed.map_or(Ok(out), Err)
    }

    /// Orders `target` to take sectors from `source` where that is right.
    pub(super) async fn repair(
        &mut self,
        (source, target): (&NodeRecord, &NodeRecord),
        stamp: &Stamp,
        chunk: ChunkIndex,
        (sector, count): (SectorInChunk, u16),
    ) -> Result<Pulled, ClientError> {
        let from = shard_of(stamp.volume, chunk, source.shard_count);
        let addresses = source.shard_addresses.get(usize::from(from.0));
        let pull = Pull {
            source: source.node,
            source_boot: self.get(source, from).await?.boot,
            source_shard_count: source.shard_count,
            mode: PullMode::Repair,
            ceiling: Version::ZERO,
            addresses: addresses.into_iter().flatten().take(4).cloned().collect(),
        };
        let header = Header {
            chunk,
            sector,
            count,
            ..stamp.header(Opcode::Pull)
        };
        let shard = shard_of(stamp.volume, chunk, target.shard_count);
        let reply = self.ask(target, shard, header, pull.encode()).await?;
        Ok(Pulled::decode(&reply.aux)?)
    }
}

fn listed(reply: &Frame<Vec<u8>>, token: Token, count: u16) -> Result<Listed, ClientError> {
    let (_, states) = read_sector_states(&reply.aux, count)?;
    let settled = match reply.header.seq {
        Seq(0) => Version::ZERO,
        seq => Version::new(token, seq),
    };
    Ok((states.collect(), settled))
}

/// The configuration moved on: read it again. Anything else is the node's own trouble.
pub(super) fn is_stale(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Refused(Status::StaleMap | Status::StaleToken)
    )
}

/// All of them, at the same time; results in their order.
async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<T>> = running.iter().map(|_| None).collect();
    poll_fn(move |context| {
        let mut waiting = false;
        for (future, result) in running.iter_mut().zip(&mut results) {
            if result.is_none() {
                match Pin::as_mut(future).poll(context) {
                    Poll::Ready(value) => *result = Some(value),
                    Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            Poll::Pending
        } else {
            Poll::Ready(results.drain(..).flatten().collect())
        }
    })
    .await
}
