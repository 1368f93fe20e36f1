//! Volumes: maps, names, and where their fronts are.

use super::{CatalogError, Step, TRIES_MAX, decide, get_id, get_json, json};
use crate::archive::{self, HeadParts};
use crate::key;
use crate::map::VolumeMap;
use crate::record::{FrontRecord, VolumeHead};
use crate::store::{CommitError, KvVersion, MetaError, MetaStore, TXN_WRITES_MAX, Watch, Write};
use crate::transition::{self, MapUpdate, NewVolume};
use std::collections::HashMap;
use ukai_proto::VolumeId;

/// A volume as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeName {
    /// What people call it.
    pub name: String,
    /// Its id.
    pub volume: VolumeId,
}

/// Creates a volume.
pub fn create_volume(store: &dyn MetaStore, new: &NewVolume) -> Result<VolumeMap, CatalogError> {
    let update = transition::create(new)?;
    match store.commit(&update.writes) {
        Ok(versions) => Ok(update.committed(&versions)),
        Err(CommitError::Conflict { .. }) => Err(CatalogError::NameTaken(new.name.clone())),
        // The id is random, so if it is there, this call put it there.
        Err(CommitError::Unknown) => match volume_id(store, &new.name)? {
            Some(volume) if volume == new.volume => load_volume(store, volume),
            Some(_) => Err(CatalogError::NameTaken(new.name.clone())),
            None => Err(CommitError::Unknown.into()),
        },
        Err(other) => Err(other.into()),
    }
}

/// The volume of this name.
pub fn volume_id(store: &dyn MetaStore, name: &str) -> Result<Option<VolumeId>, CatalogError> {
    if !key::valid_name(name) {
        return Ok(None);
    }
    Ok(get_id(store, &key::name(name))?.map(|(id, _)| id))
}

/// All volumes, sorted by name.
pub fn list_volumes(store: &dyn MetaStore) -> Result<Vec<VolumeName>, CatalogError> {
    let mut volumes = Vec::new();
    for name in store.list(key::NAMES)? {
        // Deleted between the list and this read: not listed.
        if let Some(volume) = volume_id(store, &name)? {
            volumes.push(VolumeName { name, volume });
        }
    }
    Ok(volumes)
}

fn read_head(
    store: &dyn MetaStore,
    volume: VolumeId,
) -> Result<(HeadParts, KvVersion), CatalogError> {
    let value = store
        .get(&key::head(volume))?
        .ok_or_else(|| CatalogError::NoVolume(volume.to_string()))?;
    Ok((archive::decode_head(volume, &value.bytes)?, value.version))
}

/// The head alone: for lists, and to see whether anything changed.
pub fn load_head(store: &dyn MetaStore, volume: VolumeId) -> Result<VolumeHead, CatalogError> {
    Ok(read_head(store, volume)?.0.head)
}

/// The whole map, all of it from one configuration: if the head changed while the shards were read,
/// they are read again.
pub fn load_volume(store: &dyn MetaStore, volume: VolumeId) -> Result<VolumeMap, CatalogError> {
    for _ in 0..TRIES_MAX {
        let (parts, version) = read_head(store, volume)?;
        let mut raw = Vec::new();
        for shard in parts.mixed_shards() {
            raw.push((shard, store.get(&key::shard(volume, shard))?));
        }
        if !raw.is_empty() {
            let again = store.get(&key::head(volume))?.map(|value| value.version);
            if again != Some(version) {
                continue;
            }
        }
        // Only now: what was read of two configurations may look damaged and is not.
        let mut shards = HashMap::new();
        for (shard, value) in raw {
            match value {
                Some(value) => {
                    let parts = archive::decode_shard(volume, shard, &value.bytes, value.version)?;
                    shards.insert(shard, parts);
                }
                None if parts.head.deleting => return Err(CatalogError::Deleting(volume)),
                None => {}
            }
        }
        return Ok(archive::assemble(parts, version, shards)?);
    }
    Err(CatalogError::Contended(key::head(volume)))
}

/// Makes a transition true. [`CommitError::Unknown`]: see [`settle_unknown`]; a conflict: load the
/// map again and decide anew.
pub fn commit_update(store: &dyn MetaStore, update: MapUpdate) -> Result<VolumeMap, CommitError> {
    let versions = store.commit(&update.writes)?;
    Ok(update.committed(&versions))
}

/// What became of a transaction whose outcome was unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is in force: this is the map.
    Landed(Box<VolumeMap>),
    /// Something else is in force (the former map, or a later one that may or may not be built on
    /// it): decide anew from this map.
    Other(Box<VolumeMap>),
}

/// Reads again after [`CommitError::Unknown`]. A late arrival of the lost transaction after an
/// `Other` is harmless: any transition made from the map given here conflicts with it, and one of the
/// two is then reported as a conflict.
pub fn settle_unknown(
    store: &dyn MetaStore,
    attempted: &VolumeMap,
) -> Result<Settled, CatalogError> {
    let now = Box::new(load_volume(store, attempted.head.volume)?);
    Ok(if now.same_configuration(attempted) {
        Settled::Landed(now)
    } else {
        Settled::Other(now)
    })
}

/// Removes the records of a volume whose deletion was begun and whose chunks are deleted. May be
/// called again after it was interrupted.
pub fn delete_volume(store: &dyn MetaStore, volume: VolumeId) -> Result<(), CatalogError> {
    let (head, version) = match read_head(store, volume) {
        Ok((parts, version)) => (parts.head, version),
        Err(CatalogError::NoVolume(_)) => return Ok(()),
        Err(other) => return Err(other),
    };
    if !head.deleting {
        return Err(CatalogError::NotDeleting(volume));
    }
    // Shards first: a head without them still says what is going on, shards without a head do not.
    let guard = || Write::Check {
        key: key::head(volume),
        expected: version,
    };
    let parent = format!("volumes/{volume}/map");
    let names = store.list(&parent)?;
    for names in names.chunks(TXN_WRITES_MAX - 1) {
        let mut writes = vec![guard()];
        for name in names {
            let key = format!("{parent}/{name}");
            if let Some(value) = store.get(&key)? {
                writes.push(Write::Delete {
                    key,
                    expected: value.version,
                });
            }
        }
        store.commit(&writes)?;
    }
    let mut writes = vec![Write::Delete {
        key: key::head(volume),
        expected: version,
    }];
    if let Some(job) = store.get(&key::job(volume))? {
        writes.push(Write::Delete {
            key: key::job(volume),
            expected: job.version,
        });
    }
    if let Some((owner, value)) = get_id::<VolumeId>(store, &key::name(&head.name))?
        && owner == volume
    {
        writes.push(Write::Delete {
            key: key::name(&head.name),
            expected: value.version,
        });
    }
    store.commit(&writes)?;
    Ok(())
}

/// Announces where the volume's front is, for as long as this store's session lives. What a former
/// front announced is replaced: the token says who the front is, this only where.
pub fn set_front(
    store: &dyn MetaStore,
    volume: VolumeId,
    front: &FrontRecord,
) -> Result<(), CatalogError> {
    decide(store, || {
        let key = key::front(volume);
        let mut writes = Vec::new();
        if let Some(value) = store.get(&key)? {
            writes.push(Write::Delete {
                key: key.clone(),
                expected: value.version,
            });
        }
        writes.push(Write::Create {
            key,
            bytes: json(front),
            ephemeral: true,
        });
        Ok(Step::Commit(writes, ()))
    })
}

/// Takes the announcement back, if it is still this one.
pub fn clear_front(
    store: &dyn MetaStore,
    volume: VolumeId,
    front: &FrontRecord,
) -> Result<(), CatalogError> {
    decide(store, || {
        let key = key::front(volume);
        match get_json::<FrontRecord>(store, &key)? {
            Some((now, value)) if now == *front => {
                let write = Write::Delete {
                    key,
                    expected: value.version,
                };
                Ok(Step::Commit(vec![write], ()))
            }
            _ => Ok(Step::Done(())),
        }
    })
}

/// Where the volume's front is, if one lives.
pub fn front(store: &dyn MetaStore, volume: VolumeId) -> Result<Option<FrontRecord>, CatalogError> {
    Ok(get_json(store, &key::front(volume))?.map(|(front, _)| front))
}

/// Fires when the volume's configuration changes.
pub fn watch_volume(store: &dyn MetaStore, volume: VolumeId) -> Result<Box<dyn Watch>, MetaError> {
    store.watch(&key::head(volume))
}
