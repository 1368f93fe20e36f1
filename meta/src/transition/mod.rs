//! The legal changes of a volume's configuration, as pure functions from a map to the next one.
//!
//! Each gives a [`MapUpdate`]: the next map and the transaction that makes it true, conditional on
//! the version of the head (I5). Every one makes a new generation; [`attach`], [`renew`] and
//! [`begin_delete`] also a new token. What is not in these tables is an error and changes nothing.
//!
//! **Replica of one chunk on one node** (stored state). "=": stays as it is. An operation on a range
//! applies to the chunks where it means something; if there is none, it is
//! [`TransitionError::NoChange`].
//!
//! | | absent | joining | in-sync | leaving |
//! |-|-|-|-|-|
//! | [`add_location`] | joining | = | = | error `StillLeaving` |
//! | [`promote`] | = | in-sync (error `WrongHealth` unless the node is whole) | = | = |
//! | [`cancel_join`] | = | leaving | = | = |
//! | [`remove_location`] | = | leaving | leaving (error `LastInSync`, `TooFewCopies`) | = |
//! | [`drop_leaving`] | = | = | = | absent |
//!
//! **Health of one node for the volume.** *Effective* states are what [`VolumeMap`] shows: on a stale
//! node every joining or in-sync replica is stale; on a rejoining one it is joining; leaving stays
//! leaving.
//!
//! | | whole | stale since g | rejoining since g |
//! |-|-|-|-|
//! | [`mark_stale`] | stale since now (error `LastInSync`) | = | stale since g |
//! | [`begin_rejoin`] | error | rejoining since g | error |
//! | [`finish_rejoin`] | error | error | whole |
//! | [`fail_rejoin`] | error | error | stale since g |
//! | [`drop_health`] | error | whole, if no replica is left there (else `StillHolds`) | same |
//!
//! A replica added on a stale node is stored as joining, so finishing the node's rejoin does not make
//! it in-sync: it is then filled like any other.
//!
//! **Volume.**
//!
//! | | detached | attached | deleting |
//! |-|-|-|-|
//! | [`attach`] | attached | by another: error unless forced or its host has rebooted | error |
//! | [`detach`] | error | detached | error |
//! | [`renew`] | error | attached, next token | error |
//! | [`resize`] | larger | larger | error |
//! | [`begin_delete`] | deleting | error | = |
//! | [`add_location`] | ok | ok | error |
//!
//! Invariant kept by all: every chunk has at least one replica that is effectively in-sync.

mod change;
mod create;
mod error;

pub use change::{
    Change, add_location, apply, cancel_join, drop_leaving, one_chunk, promote, remove_location,
};
pub use create::{NewVolume, STRIPES_MAX, create};
pub use error::TransitionError;

use crate::archive;
use crate::key;
use crate::map::{VolumeMap, chunk_count, shard_count};
use crate::record::{Attach, NodeHealth};
use crate::sets::VOLUME_NODES_MAX;
use crate::shard::Shard;
use crate::store::{KvVersion, TXN_BYTES_MAX, TXN_WRITES_MAX, Write};
use ukai_proto::{Generation, NodeId, Token};

/// Largest head: what the tables' limits add up to (sets 136 KiB, nodes 32 KiB, shards 64 KiB),
/// rounded up, so that two of the largest shards still fit into its transaction.
pub const HEAD_BYTES_MAX: usize = 256 << 10;
/// Map shards that one transaction may write, leaving room for the head.
pub const SHARDS_PER_UPDATE_MAX: usize = TXN_WRITES_MAX - 2;
/// Bytes of map shards that one transaction may write, leaving room for the largest head.
pub const SHARD_BYTES_PER_UPDATE_MAX: usize = TXN_BYTES_MAX - HEAD_BYTES_MAX;

/// A transition: what the map will be, and the transaction that makes it so.
#[derive(Clone, Debug)]
pub struct MapUpdate {
    /// The map after the commit. Its store versions are still the old ones: use what
    /// [`MapUpdate::committed`] returns.
    pub next: VolumeMap,
    /// To be committed as one transaction.
    pub writes: Vec<Write>,
    /// What each member of `writes` writes.
    targets: Vec<Target>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Head,
    Shard(usize),
    Other,
}

impl MapUpdate {
    /// The map as committed, given the versions that the store returned for `writes`.
    #[must_use]
    pub fn committed(self, versions: &[KvVersion]) -> VolumeMap {
        assert_eq!(
            versions.len(),
            self.targets.len(),
            "a version for each member of the transaction"
        );
        let mut map = self.next;
        for (target, committed) in self.targets.iter().zip(versions) {
            match target {
                Target::Head => map.head_version = *committed,
                Target::Shard(shard) => {
                    if let Shard::Mixed { version, .. } = &mut map.shards[*shard] {
                        *version = Some(*committed);
                    }
                }
                Target::Other => {}
            }
        }
        map
    }
}

/// Next generation, and everything derived from sets and health.
fn bump(map: &mut VolumeMap) -> Result<(), TransitionError> {
    let generation = map.head.generation.0.checked_add(1);
    map.head.generation = Generation(generation.ok_or(TransitionError::Exhausted)?);
    map.sets.collect_garbage();
    map.refresh();
    if map.nodes().len() > VOLUME_NODES_MAX {
        return Err(TransitionError::TooManyNodes);
    }
    for set in map.sets.live() {
        assert!(
            map.set(set)
                .iter()
                .any(|r| r.state == crate::record::ReplicaState::InSync),
            "I1: replica set {} of volume {} would have no in-sync replica: {:?}",
            set.0,
            map.head.volume,
            map.set(set)
        );
    }
    Ok(())
}

fn encoded_head(map: &VolumeMap) -> Result<Vec<u8>, TransitionError> {
    let bytes = archive::encode_head(map);
    if bytes.len() > HEAD_BYTES_MAX {
        return Err(TransitionError::TooLarge(format!(
            "a head of {} bytes, {HEAD_BYTES_MAX} are allowed",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// The update from `old` to `next`: the head, and each shard whose runs differ.
fn finish(old: &VolumeMap, mut next: VolumeMap) -> Result<MapUpdate, TransitionError> {
    bump(&mut next)?;
    let volume = next.head.volume;
    let mut writes = vec![Write::Set {
        key: key::head(volume),
        bytes: encoded_head(&next)?,
        expected: old.head_version,
    }];
    let mut targets = vec![Target::Head];
    let mut shard_bytes = 0;
    for (index, shard) in next.shards.iter().enumerate() {
        let before = old.shards.get(index);
        let old_version = match before {
            Some(Shard::Mixed { version, .. }) => *version,
            _ => None,
        };
        let write = match shard {
            _ if before == Some(shard) => continue,
            Shard::Uniform(_) => match old_version {
                Some(expected) => Write::Delete {
                    key: key::shard(volume, index),
                    expected,
                },
                None => continue,
            },
            Shard::Mixed { runs, .. } => {
                let key = key::shard(volume, index);
                let bytes = archive::encode_shard(volume, index, runs);
                shard_bytes += bytes.len();
                match old_version {
                    Some(expected) => Write::Set {
                        key,
                        bytes,
                        expected,
                    },
                    None => Write::Create {
                        key,
                        bytes,
                        ephemeral: false,
                    },
                }
            }
        };
        writes.push(write);
        targets.push(Target::Shard(index));
    }
    if writes.len() - 1 > SHARDS_PER_UPDATE_MAX || shard_bytes > SHARD_BYTES_PER_UPDATE_MAX {
        return Err(TransitionError::TooLarge(format!(
            "{} map shards of {shard_bytes} bytes together",
            writes.len() - 1
        )));
    }
    Ok(MapUpdate {
        next,
        writes,
        targets,
    })
}

fn next_token(map: &mut VolumeMap) -> Result<(), TransitionError> {
    let token = map.head.token.0.checked_add(1);
    map.head.token = Token(token.ok_or(TransitionError::Exhausted)?);
    Ok(())
}

/// Takes the volume for a front: the next token. Another holder is an error unless `force` (the
/// caller knows that front to be dead or is told to fence it) or the holder's host is this one and
/// has been rebooted since. The same front again is `NoChange`: its first attempt went through.
pub fn attach(map: &VolumeMap, by: Attach, force: bool) -> Result<MapUpdate, TransitionError> {
    if map.head.deleting {
        return Err(TransitionError::Deleting);
    }
    if let Some(holder) = &map.head.attach {
        if *holder == by {
            return Err(TransitionError::NoChange);
        }
        let former_boot = holder.host == by.host && holder.boot != by.boot;
        if !force && !former_boot {
            return Err(TransitionError::Attached {
                host: holder.host.clone(),
            });
        }
    }
    if !key::valid_name(&by.host) {
        return Err(TransitionError::Invalid(format!(
            "{:?} is no host name: {}",
            by.host,
            key::NAME_RULE
        )));
    }
    let mut next = map.clone();
    next.head.attach = Some(by);
    next_token(&mut next)?;
    finish(map, next)
}

/// The holder takes a new token: nodes then refuse whatever it sent under the old one.
pub fn renew(map: &VolumeMap) -> Result<MapUpdate, TransitionError> {
    if map.head.attach.is_none() {
        return Err(TransitionError::NotAttached);
    }
    let mut next = map.clone();
    next_token(&mut next)?;
    finish(map, next)
}

/// Gives the volume back. The token stays; the next attach makes a new one.
pub fn detach(map: &VolumeMap) -> Result<MapUpdate, TransitionError> {
    if map.head.attach.is_none() {
        return Err(TransitionError::NotAttached);
    }
    let mut next = map.clone();
    next.head.attach = None;
    finish(map, next)
}

/// Nodes that may have missed writes made under the *current* generation, and none of an earlier one:
/// a front that lost a node completes or repeats all earlier requests under the current generation
/// first, or uses [`mark_stale_since`].
pub fn mark_stale(map: &VolumeMap, nodes: &[NodeId]) -> Result<MapUpdate, TransitionError> {
    let since = map.head.generation;
    let nodes: Vec<_> = nodes.iter().map(|node| (*node, since)).collect();
    mark_stale_since(map, &nodes)
}

/// Nodes that may have missed writes made in the given generations or later: a node that was
/// restarted with its machine lacks what came after its last completed flush (I10).
pub fn mark_stale_since(
    map: &VolumeMap,
    nodes: &[(NodeId, Generation)],
) -> Result<MapUpdate, TransitionError> {
    let holders = map.nodes();
    let mut next = map.clone();
    for (node, since) in nodes {
        if holders.binary_search(node).is_err() {
            return Err(TransitionError::NoReplica { node: *node });
        }
        let earlier = map
            .health(*node)
            .map_or(map.head.generation, NodeHealth::since);
        set_health(
            &mut next,
            *node,
            Some(NodeHealth::Stale {
                since: earlier.min(*since),
            }),
        );
    }
    if next.head.health == map.head.health {
        return Err(TransitionError::NoChange);
    }
    for set in map.sets.live() {
        let after = map.sets.get(set).with_health(&next.head.health);
        if after.in_sync_count() == 0 {
            let lost = map.effective[usize::from(set.0)]
                .in_sync()
                .find(|node| nodes.iter().any(|(n, _)| n == node));
            return Err(TransitionError::LastInSync {
                range: map.first_run_of(set),
                node: lost.expect("the set had an in-sync replica before"),
            });
        }
    }
    finish(map, next)
}

fn set_health(map: &mut VolumeMap, node: NodeId, health: Option<NodeHealth>) {
    map.head.health.retain(|(n, _)| *n != node);
    if let Some(health) = health {
        map.head.health.push((node, health));
        map.head.health.sort_unstable_by_key(|(n, _)| *n);
    }
}

/// A stale node is back and fenced: its replicas take writes again and are resynchronised.
pub fn begin_rejoin(map: &VolumeMap, node: NodeId) -> Result<MapUpdate, TransitionError> {
    match map.health(node) {
        Some(NodeHealth::Stale { since }) => {
            let mut next = map.clone();
            set_health(&mut next, node, Some(NodeHealth::Rejoining { since }));
            finish(map, next)
        }
        actual => Err(TransitionError::WrongHealth { node, actual }),
    }
}

/// A rejoining node's replicas were proven equal (I3): it is whole again.
pub fn finish_rejoin(map: &VolumeMap, node: NodeId) -> Result<MapUpdate, TransitionError> {
    match map.health(node) {
        Some(NodeHealth::Rejoining { .. }) => {
            let mut next = map.clone();
            set_health(&mut next, node, None);
            finish(map, next)
        }
        actual => Err(TransitionError::WrongHealth { node, actual }),
    }
}

/// A rejoining node was lost again: what it lacked before, it still lacks.
pub fn fail_rejoin(map: &VolumeMap, node: NodeId) -> Result<MapUpdate, TransitionError> {
    match map.health(node) {
        Some(NodeHealth::Rejoining { since }) => {
            let mut next = map.clone();
            set_health(&mut next, node, Some(NodeHealth::Stale { since }));
            finish(map, next)
        }
        actual => Err(TransitionError::WrongHealth { node, actual }),
    }
}

/// Forgets the health of a node that holds nothing of the volume any more.
pub fn drop_health(map: &VolumeMap, node: NodeId) -> Result<MapUpdate, TransitionError> {
    if map.health(node).is_none() {
        return Err(TransitionError::WrongHealth { node, actual: None });
    }
    if map.nodes().binary_search(&node).is_ok() {
        return Err(TransitionError::StillHolds { node });
    }
    let mut next = map.clone();
    set_health(&mut next, node, None);
    finish(map, next)
}

/// Makes the volume larger. New chunks lie where its last chunk lies.
pub fn resize(map: &VolumeMap, size_bytes: u64) -> Result<MapUpdate, TransitionError> {
    if map.head.deleting {
        return Err(TransitionError::Deleting);
    }
    create::check_size(size_bytes)?;
    let from = map.head.size_bytes;
    if size_bytes == from {
        return Err(TransitionError::NoChange);
    }
    if size_bytes < from {
        return Err(TransitionError::Shrink {
            from,
            to: size_bytes,
        });
    }
    let last = map.set_of(ukai_proto::ChunkIndex(map.chunk_count() - 1));
    let mut next = map.clone();
    next.head.size_bytes = size_bytes;
    // The last shard's last run simply reaches further; whole new shards are uniform.
    let shards = shard_count(chunk_count(size_bytes, map.head.chunk_bytes));
    while next.shards.len() < shards {
        next.shards.push(Shard::Uniform(last));
        next.sets.add(last);
    }
    finish(map, next)
}

/// No attach is possible from now on. The new token fences whoever may still think to have it, and
/// is the one to delete the chunks with.
pub fn begin_delete(map: &VolumeMap) -> Result<MapUpdate, TransitionError> {
    if map.head.deleting {
        return Err(TransitionError::NoChange);
    }
    if let Some(holder) = &map.head.attach {
        return Err(TransitionError::Attached {
            host: holder.host.clone(),
        });
    }
    let mut next = map.clone();
    next.head.deleting = true;
    next_token(&mut next)?;
    finish(map, next)
}
