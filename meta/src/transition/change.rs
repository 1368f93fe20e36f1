//! Changes of where chunks lie: the replica part of the transition table in `transition`.

use super::{MapUpdate, TransitionError, finish};
use crate::map::{VolumeMap, chunk_range, shard_base, shard_pieces};
use crate::record::{NodeHealth, ReplicaState};
use crate::sets::{Interner, ReplicaList, SetIndex};
use crate::shard::Shard;
use std::collections::HashMap;
use std::ops::Range;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, NodeId};

/// One step of a batch; see the table in [`crate::transition`] for what each does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new replica, joining.
    AddLocation {
        /// Chunks.
        range: ChunkRange,
        /// Where.
        node: NodeId,
    },
    /// Joining replicas that were proven equal become in-sync (I3).
    Promote {
        /// Chunks.
        range: ChunkRange,
        /// Where.
        node: NodeId,
    },
    /// Joining replicas are given up: they become leaving, because they may already hold data.
    CancelJoin {
        /// Chunks.
        range: ChunkRange,
        /// Where.
        node: NodeId,
    },
    /// Replicas become leaving.
    RemoveLocation {
        /// Chunks.
        range: ChunkRange,
        /// Where.
        node: NodeId,
        /// In-sync copies that each chunk must keep; at least 1 whatever is given.
        min_copies: u8,
    },
    /// Leaving replicas whose data is deleted (I4) are forgotten.
    DropLeaving {
        /// Chunks.
        range: ChunkRange,
        /// Where.
        node: NodeId,
    },
}

impl Change {
    /// The chunks it is about.
    #[must_use]
    pub fn range(&self) -> ChunkRange {
        match *self {
            Self::AddLocation { range, .. }
            | Self::Promote { range, .. }
            | Self::CancelJoin { range, .. }
            | Self::RemoveLocation { range, .. }
            | Self::DropLeaving { range, .. } => range,
        }
    }

    /// The node it is about.
    #[must_use]
    pub fn node(&self) -> NodeId {
        match *self {
            Self::AddLocation { node, .. }
            | Self::Promote { node, .. }
            | Self::CancelJoin { node, .. }
            | Self::RemoveLocation { node, .. }
            | Self::DropLeaving { node, .. } => node,
        }
    }

    /// What becomes of a chunk with these stored replicas. Chunks to which the change does not
    /// apply stay as they are: ranges span chunks with different histories.
    fn applied(
        &self,
        stored: &ReplicaList,
        health: &[(NodeId, NodeHealth)],
        range: ChunkRange,
    ) -> Result<ReplicaList, TransitionError> {
        use ReplicaState::{InSync, Joining, Leaving, Stale};
        let node = self.node();
        let node_health = health.iter().find(|(n, _)| *n == node).map(|(_, h)| *h);
        let mut next = *stored;
        match (self, stored.on(node)) {
            (_, Some(Stale)) => unreachable!("stale is a node's health, never stored in a set"),

            (Self::AddLocation { .. }, None) => {
                if !next.put(node, Joining) {
                    return Err(TransitionError::TooManyReplicas { range });
                }
            }
            // What the node still holds may be deleted at any moment: no base to fill.
            (Self::AddLocation { .. }, Some(Leaving)) => {
                return Err(TransitionError::StillLeaving { range, node });
            }
            (Self::AddLocation { .. }, Some(InSync | Joining)) => {}

            (Self::Promote { .. }, Some(Joining)) => {
                // A node that missed writes, or is being resynchronised, was not proven equal.
                if node_health.is_some() {
                    return Err(TransitionError::WrongHealth {
                        node,
                        actual: node_health,
                    });
                }
                next.put(node, InSync);
            }
            (Self::Promote { .. }, None | Some(InSync | Leaving)) => {}

            (Self::CancelJoin { .. }, Some(Joining)) => {
                next.put(node, Leaving);
            }
            (Self::CancelJoin { .. }, None | Some(InSync | Leaving)) => {}

            (Self::RemoveLocation { min_copies, .. }, Some(InSync | Joining)) => {
                next.put(node, Leaving);
                let left = next.with_health(health).in_sync_count();
                if left == 0 {
                    return Err(TransitionError::LastInSync { range, node });
                }
                if left < usize::from(*min_copies) {
                    return Err(TransitionError::TooFewCopies {
                        range,
                        node,
                        left,
                        min_copies: *min_copies,
                    });
                }
            }
            (Self::RemoveLocation { .. }, None | Some(Leaving)) => {}

            (Self::DropLeaving { .. }, Some(Leaving)) => next.remove(node),
            (Self::DropLeaving { .. }, None | Some(InSync | Joining)) => {}
        }
        Ok(next)
    }
}

/// Makes all changes, in order, in one transaction and one generation. Legal if each is.
///
/// A relocation promotes the target and removes the source in one step with this; a batch of
/// scattered chunks costs one generation. What does not fit one transaction is
/// [`TransitionError::TooLarge`].
pub fn apply(map: &VolumeMap, changes: &[Change]) -> Result<MapUpdate, TransitionError> {
    let mut next = map.clone();
    let mut interner = Interner::new(&next.sets);
    let mut changed = false;
    for change in changes {
        if map.head.deleting && matches!(change, Change::AddLocation { .. }) {
            return Err(TransitionError::Deleting);
        }
        let mut result = apply_one(&mut next, &mut interner, change);
        if result == Err(TransitionError::TooManySets) && next.sets.collect_garbage() {
            // Earlier changes of this batch left sets behind. Every change passes over chunks where
            // it was already made, so it may simply be made again.
            interner = Interner::new(&next.sets);
            result = apply_one(&mut next, &mut interner, change);
            changed = true;
        }
        changed |= result?;
    }
    if !changed {
        return Err(TransitionError::NoChange);
    }
    finish(map, next)
}

fn apply_one(
    map: &mut VolumeMap,
    interner: &mut Interner,
    change: &Change,
) -> Result<bool, TransitionError> {
    let range = change.range();
    let end = range.start.0.checked_add(range.count);
    let Some(end) = end.filter(|end| range.count > 0 && *end <= map.chunk_count()) else {
        return Err(TransitionError::OutOfRange {
            range,
            chunk_count: map.chunk_count(),
        });
    };
    let mut known: HashMap<SetIndex, SetIndex> = HashMap::new();
    let mut changed = false;
    for (shard, positions) in shard_pieces(range.start.0..end) {
        let len = map.shard_len(shard);
        let base = shard_base(shard);
        let VolumeMap {
            head, sets, shards, ..
        } = &mut *map;
        let mut counts: Vec<(SetIndex, bool)> = Vec::new();
        let decide = |set: SetIndex, run: Range<u32>| {
            if let Some(new) = known.get(&set) {
                return Ok(*new);
            }
            let at = chunk_range(base + run.start..base + run.end);
            let list = change.applied(sets.get(set), &head.health, at)?;
            let new = interner
                .intern(sets, list)
                .map_err(|_| TransitionError::TooManySets)?;
            known.insert(set, new);
            Ok(new)
        };
        changed |= shards[shard].edit(len, positions, decide, |set, came| {
            counts.push((set, came));
        })?;
        for (set, came) in counts {
            if came {
                map.sets.add(set);
            } else {
                map.sets.release(set);
            }
        }
    }
    Ok(changed)
}

impl VolumeMap {
    /// Cuts a range into parts of which each, changed by a call of its own, surely fits into one
    /// transaction.
    #[must_use]
    pub fn batches(&self, range: ChunkRange) -> Vec<ChunkRange> {
        let end = self
            .chunk_count()
            .min(range.start.0.saturating_add(range.count));
        let mut out: Vec<ChunkRange> = Vec::new();
        let (mut keys, mut bytes) = (0, 0);
        for (shard, positions) in shard_pieces(range.start.0..end) {
            // A shard that stays uniform costs nothing; one cut by the range gets two more runs.
            let mixed = matches!(self.shards[shard], Shard::Mixed { .. });
            let cut = positions.start > 0 || positions.end < self.shard_len(shard);
            let (key, size) = if mixed || cut {
                (1, (self.shards[shard].run_count() + 2) * 4 + 128)
            } else {
                (0, 0)
            };
            let base = shard_base(shard);
            let piece = chunk_range(base + positions.start..base + positions.end);
            let fits = keys + key <= super::SHARDS_PER_UPDATE_MAX
                && bytes + size <= super::SHARD_BYTES_PER_UPDATE_MAX;
            match out.last_mut() {
                Some(last) if fits => last.count += piece.count,
                _ => {
                    (keys, bytes) = (0, 0);
                    out.push(piece);
                }
            }
            keys += key;
            bytes += size;
        }
        out
    }
}

/// [`Change::AddLocation`] alone.
pub fn add_location(
    map: &VolumeMap,
    range: ChunkRange,
    node: NodeId,
) -> Result<MapUpdate, TransitionError> {
    apply(map, &[Change::AddLocation { range, node }])
}

/// [`Change::Promote`] alone.
pub fn promote(
    map: &VolumeMap,
    range: ChunkRange,
    node: NodeId,
) -> Result<MapUpdate, TransitionError> {
    apply(map, &[Change::Promote { range, node }])
}

/// [`Change::CancelJoin`] alone.
pub fn cancel_join(
    map: &VolumeMap,
    range: ChunkRange,
    node: NodeId,
) -> Result<MapUpdate, TransitionError> {
    apply(map, &[Change::CancelJoin { range, node }])
}

/// [`Change::RemoveLocation`] alone.
pub fn remove_location(
    map: &VolumeMap,
    range: ChunkRange,
    node: NodeId,
    min_copies: u8,
) -> Result<MapUpdate, TransitionError> {
    apply(
        map,
        &[Change::RemoveLocation {
            range,
            node,
            min_copies,
        }],
    )
}

/// [`Change::DropLeaving`] alone.
pub fn drop_leaving(
    map: &VolumeMap,
    range: ChunkRange,
    node: NodeId,
) -> Result<MapUpdate, TransitionError> {
    apply(map, &[Change::DropLeaving { range, node }])
}

/// One chunk as a range.
#[must_use]
pub fn one_chunk(chunk: ChunkIndex) -> ChunkRange {
    ChunkRange {
        start: chunk,
        count: 1,
    }
}
