//! Reads replicas straight from their nodes, past every front.

use crate::guest::broken;
use crate::recorder::{Recorder, SECTOR};
use crate::wait::{Failure, Outcome};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;
use ukai_checker::SectorValue;
use ukai_meta::{NodeRecord, VolumeMap};
use ukai_proto::decode::VecDecoder;
use ukai_proto::limits::SLOT_SECTORS;
use ukai_proto::message::{Hello, Role};
use ukai_proto::route::shard_of;
use ukai_proto::{
    ChunkIndex, ClusterId, Flags, Frame, Header, Incarnation, NodeId, Opcode, SectorInChunk,
    ShardIndex, Status,
};

/// Nothing else is going on when replicas are read.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A connection to one shard of one node.
struct Peer {
    stream: TcpStream,
    decoder: VecDecoder,
    frames: Vec<Frame<Vec<u8>>>,
    tag: u64,
}

impl Peer {
    fn connect(cluster: ClusterId, record: &NodeRecord, shard: ShardIndex) -> Outcome<Self> {
        let doing = format!("connect to node {}", record.name);
        let addresses = record.shard_addresses.get(usize::from(shard.0));
        let address = addresses
            .into_iter()
            .flatten()
            .find_map(|address| address.strip_prefix("tcp:"))
            .ok_or_else(|| Failure::Broken(format!("{doing}: it has no TCP address")))?;
        let stream = TcpStream::connect(address).map_err(broken(&doing))?;
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .map_err(broken(&doing))?;
        let mut peer = Self {
            stream,
            decoder: VecDecoder::default(),
            frames: Vec::new(),
            tag: 0,
        };
        let hello = Hello {
            cluster,
            node: record.node,
            role: Role::Tools,
            shard,
            shard_count: 0,
            incarnation: Incarnation::default(),
        };
        let request = Frame::new(Header::request(Opcode::Hello, 0), hello.encode(), None);
        match peer.ask(request)?.header.status {
            Status::Ok => Ok(peer),
            status => Err(Failure::Broken(format!("{doing}: {status}"))),
        }
    }

    fn ask(&mut self, mut request: Frame<Vec<u8>>) -> Outcome<Frame<Vec<u8>>> {
        self.tag += 1;
        request.header.tag = self.tag;
        let doing = "ask a node";
        self.stream
            .write_all(&request.to_bytes())
            .map_err(broken(doing))?;
        let mut buffer = vec![0; 1 << 18];
        while self.frames.is_empty() {
            let n = self.stream.read(&mut buffer).map_err(broken(doing))?;
            if n == 0 {
                return Err(Failure::Broken(
                    "a node closed the connection of an inspection".to_owned(),
                ));
            }
            self.decoder
                .feed(&buffer[..n], &mut self.frames)
                .map_err(broken(doing))?;
        }
        Ok(self.frames.remove(0))
    }
}

/// Reads these sectors from every in-sync replica, records what they hold, compares them.
pub(crate) fn compare(
    recorder: &Recorder,
    cluster: ClusterId,
    map: &VolumeMap,
    nodes: &BTreeMap<NodeId, NodeRecord>,
    ranges: &[Range<u64>],
) -> Outcome {
    let mut peers: BTreeMap<(NodeId, ShardIndex), Peer> = BTreeMap::new();
    for range in ranges.iter().flat_map(pieces) {
        let chunk_sectors = u64::from(map.chunk_sectors());
        let chunk = u32::try_from(range.start / chunk_sectors).unwrap_or(u32::MAX);
        let chunk = ChunkIndex(chunk);
        let mut first: Option<(String, Vec<SectorValue>)> = None;
        for id in map.in_sync(chunk) {
            let record = nodes
                .get(&id)
                .ok_or_else(|| Failure::Broken(format!("node {id} has no record")))?;
            let shard = shard_of(map.head.volume, chunk, record.shard_count);
            let peer = match peers.entry((id, shard)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Peer::connect(cluster, record, shard)?),
            };
            let header = Header {
                volume: map.head.volume,
                chunk,
                sector: SectorInChunk(
                    u16::try_from(range.start % chunk_sectors).unwrap_or(u16::MAX),
                ),
                count: u16::try_from(range.end - range.start).unwrap_or(u16::MAX),
                token: map.head.token,
                generation: map.head.generation,
                ..Header::request(Opcode::Read, 0)
            };
            let reply = peer.ask(Frame::bare(header))?;
            let name = &record.name;
            if reply.header.status != Status::Ok {
                return Err(Failure::Broken(format!(
                    "sectors {range:?} of the replica on {name} cannot be read: {}",
                    reply.header.status
                )));
            }
            let bytes = usize::try_from((range.end - range.start) * SECTOR).unwrap_or(usize::MAX);
            let data = match reply.data {
                Some(data) if !reply.header.flags.has(Flags::ZEROES) => data,
                _ => vec![0; bytes],
            };
            let values = recorder.replica(name, range.start, &data);
            match &first {
                None => first = Some((name.clone(), values)),
                Some((other, held)) => same(other, held, name, &values, range.start)?,
            }
        }
    }
    Ok(())
}

fn same(
    one: &str,
    held: &[SectorValue],
    other: &str,
    values: &[SectorValue],
    start: u64,
) -> Outcome {
    for (sector, (a, b)) in (start..).zip(held.iter().zip(values)) {
        if a != b {
            return Err(Failure::Broken(format!(
                "replicas differ in sector {sector}: {one} holds {a:?}, {other} holds {b:?}"
            )));
        }
    }
    Ok(())
}

/// Cut at slots: no read crosses one.
fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let slot = SLOT_SECTORS as u64;
    let (start, end) = (range.start, range.end);
    (start / slot..end.div_ceil(slot))
        .map(move |n| (n * slot).max(start)..((n + 1) * slot).min(end))
        .filter(|piece| !piece.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_and_cross_no_slot() {
        for range in [0..1, 250..260, 255..256, 256..512, 200..900, 5..5] {
            let all: Vec<u64> = pieces(&range).flatten().collect();
            assert_eq!(all, range.clone().collect::<Vec<_>>(), "{range:?}");
            for piece in pieces(&range) {
                assert_eq!(piece.start / 256, (piece.end - 1) / 256, "{piece:?}");
            }
        }
    }
}
