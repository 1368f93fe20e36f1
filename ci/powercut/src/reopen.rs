//! Starts a node's store on what a cut left, and reads a volume from it.

use chunkstore::disk::api::{OpId, ReadData, SectorRange, StoreAction, StoreReply, StoreRequest};
use chunkstore::disk::format::{NodeError, NodeSuperblock};
use chunkstore::disk::layout::BLOCK_BYTES;
use chunkstore::disk::mem::MemDisk;
use chunkstore::disk::store::{OpenError, Store, StoreLimits};
use ukai_checker::{Content, SectorValue};
use ukai_proto::limits::SLOT_SECTORS;
use ukai_proto::route::shard_of;
use ukai_proto::{BootId, ChunkIndex, Generation, SectorInChunk, ShardIndex, Token, VolumeId};

/// The store does not come back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReopenError {
    /// Its head.
    #[error("the node does not open: {0}")]
    Node(#[from] NodeError),
    /// A shard.
    #[error("shard {shard} does not open: {source}")]
    Shard {
        /// Which.
        shard: ShardIndex,
        /// Why.
        source: OpenError,
    },
    /// A fence was answered with an error, or not at all.
    #[error("shard {shard} does not fence: {problem}")]
    Fence {
        /// Which.
        shard: ShardIndex,
        /// What.
        problem: String,
    },
    /// A read was answered with an error, or not at all.
    #[error("chunk {chunk} sector {sector}: {problem}")]
    Read {
        /// Where.
        chunk: u32,
        /// Where in it.
        sector: u16,
        /// What.
        problem: String,
    },
}

/// The volume that is looked for.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    /// In the stamps.
    pub(crate) stamp: [u8; 16],
    pub(crate) sectors: u64,
    pub(crate) chunk_sectors: u64,
}

/// Recovers every shard, and reads the whole volume.
pub(crate) fn read_volume(
    disk: &mut MemDisk,
    volume: &Volume,
    boot: u8,
) -> Result<Vec<SectorValue>, ReopenError> {
    let node = NodeSuperblock::read(disk)?;
    let shards = node.shard_count;
    let mut values = Vec::new();
    let mut stores = Vec::new();
    for shard in (0..shards).map(ShardIndex) {
        let (limits, run) = (StoreLimits::default(), BootId([boot; 16]));
        let opened = Store::<Vec<u8>>::open_on(disk, &node.shard_place(shard), limits, run);
        let (store, _) = opened.map_err(|source| ReopenError::Shard { shard, source })?;
        let mut store = store;
        // As the next front does before it reads: what a recovery adopted is doubted until then. After another cut it
        // is another front, with a higher token.
        let fence = StoreRequest::Fence {
            volume: volume.id,
            token: Token(u32::MAX - 255 + u32::from(boot)),
            generation: Generation(u32::MAX),
        };
        match ask(disk, &mut store, fence) {
            Some(StoreReply::Done { .. }) => {}
            other => {
                return Err(ReopenError::Fence {
                    shard,
                    problem: format!("{other:?}"),
                });
            }
        }
        stores.push(store);
    }
    let mut sector = 0;
    while sector < volume.sectors {
        let inside = sector % volume.chunk_sectors;
        // Limits of volumes: chunks fit in u32, sectors of a chunk in u16.
        let chunk = u32::try_from(sector / volume.chunk_sectors).unwrap_or(u32::MAX);
        let first = u16::try_from(inside).unwrap_or(u16::MAX);
        let left = (SLOT_SECTORS as u64).min(volume.sectors - sector);
        let count = u16::try_from(left).unwrap_or(u16::MAX);
        let store = &mut stores[usize::from(shard_of(volume.id, ChunkIndex(chunk), shards).0)];
        let range = SectorRange {
            volume: volume.id,
            chunk: ChunkIndex(chunk),
            sector: SectorInChunk(first),
            count,
        };
        let failure = |problem: String| ReopenError::Read {
            chunk,
            sector: first,
            problem,
        };
        let bytes = match ask(disk, store, StoreRequest::Read(range)) {
            Some(StoreReply::Read { data, .. }) => match data {
                ReadData::Zeroes => vec![0; usize::from(count) * BLOCK_BYTES],
                ReadData::Buffer(bytes) | ReadData::Owned(bytes) => bytes,
            },
            Some(other) => return Err(failure(format!("{other:?}"))),
            None => return Err(failure("no answer".into())),
        };
        for (sector, bytes) in (sector..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            values.push(Content::read(bytes).value(volume.stamp, sector));
        }
        sector += left;
    }
    Ok(values)
}

/// One request to its answer.
fn ask(
    disk: &mut MemDisk,
    store: &mut Store<Vec<u8>>,
    request: StoreRequest<Vec<u8>>,
) -> Option<StoreReply<Vec<u8>>> {
    let mut answer = None;
    let mut out = Vec::new();
    store.submit(OpId(1), request, &mut out);
    loop {
        store.turn_end(&mut out);
        for action in out.drain(..) {
            match action {
                StoreAction::Disk(op) => disk.submit(op),
                StoreAction::Reply(_, reply) => answer = Some(reply),
            }
        }
        if disk.pending() == 0 {
            return answer;
        }
        let (io, result) = disk.complete(0);
        store.disk_done(io, result, &mut out);
    }
}
