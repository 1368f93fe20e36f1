//! The first map of a volume.

use super::{MapUpdate, Target, TransitionError, bump, encoded_head};
use crate::key;
use crate::map::{VolumeMap, chunk_count, shard_count};
use crate::record::{Durability, PlaceRule, ReplicaState, VolumeHead};
use crate::sets::{Interner, ReplicaList, SetTable};
use crate::shard::Shard;
use crate::store::{KvVersion, Write};
use ukai_proto::limits::{
    CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, REPLICAS_MAX, SECTOR_BYTES, VOLUME_BYTES_MAX,
};
use ukai_proto::{Generation, NodeId, Token, VolumeId};

/// Different replica sets of a fresh map. A volume of more than 64 Ki chunks whose sites have more
/// nodes than copies is cut into so many parts at most, one after the other on the nodes in turn:
/// enough to spread it, few enough to keep a fresh map below 1 KiB.
pub const STRIPES_MAX: usize = 8;

/// What a volume shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Random id.
    pub volume: VolumeId,
    /// Unique name.
    pub name: String,
    /// Size; a multiple of 4 KiB.
    pub size_bytes: u64,
    /// Chunk size; a power of two, 1 to 64 MiB.
    pub chunk_bytes: u64,
    /// When writes are acknowledged.
    pub durability: Durability,
    /// Copies per site.
    pub place: Vec<PlaceRule>,
    /// For each rule of `place` the nodes that may be used, best first, at least as many as copies.
    pub nodes: Vec<Vec<NodeId>>,
}

/// Checks a size.
pub(super) fn check_size(size_bytes: u64) -> Result<(), TransitionError> {
    let sector = SECTOR_BYTES as u64;
    if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(sector) {
        return Err(TransitionError::Invalid(format!(
            "a volume of {size_bytes} bytes is not possible: a multiple of {sector}, \
             at most {VOLUME_BYTES_MAX}, is needed"
        )));
    }
    Ok(())
}

/// Checks a chunk size.
fn check_chunk(chunk_bytes: u64) -> Result<(), TransitionError> {
    if !chunk_bytes.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes)
    {
        return Err(TransitionError::Invalid(format!(
            "a chunk of {chunk_bytes} bytes is not possible: a power of two from \
             {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} is needed"
        )));
    }
    Ok(())
}

fn check_place(new: &NewVolume) -> Result<(), TransitionError> {
    let invalid = |text: String| Err(TransitionError::Invalid(text));
    if new.place.len() != new.nodes.len() {
        return invalid(format!(
            "{} placement rules but {} lists of nodes",
            new.place.len(),
            new.nodes.len()
        ));
    }
    let copies: usize = new.place.iter().map(|rule| usize::from(rule.copies)).sum();
    // Half of a chunk's replicas stays free for the ones that move.
    let copies_max = REPLICAS_MAX / 2;
    if copies == 0 || copies > copies_max {
        return invalid(format!(
            "{copies} copies asked for; 1 to {copies_max} are possible"
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (rule, nodes) in new.place.iter().zip(&new.nodes) {
        if !key::valid_name(&rule.site) {
            return invalid(format!("{:?} is no site name", rule.site));
        }
        if rule.copies == 0 {
            return invalid(format!("0 copies asked for in site {}", rule.site));
        }
        if nodes.len() < usize::from(rule.copies) {
            return invalid(format!(
                "site {} has {} usable nodes, but {} copies are asked for there",
                rule.site,
                nodes.len(),
                rule.copies
            ));
        }
        if let Some(twice) = nodes.iter().find(|node| !seen.insert(**node)) {
            return invalid(format!("node {twice} is given twice"));
        }
    }
    Ok(())
}

/// Replicas of stripe `stripe`: each site's nodes are taken in turn.
fn stripe_set(new: &NewVolume, stripe: usize) -> ReplicaList {
    let mut list = ReplicaList::EMPTY;
    for (rule, nodes) in new.place.iter().zip(&new.nodes) {
        let copies = usize::from(rule.copies);
        for copy in 0..copies {
            let node = nodes[(stripe * copies + copy) % nodes.len()];
            assert!(list.put(node, ReplicaState::InSync), "copies were checked");
        }
    }
    list
}

/// The first map of a volume, generation 1, and the transaction that creates it. Fails with a
/// conflict on `names/<name>` if the name is taken.
pub fn create(new: &NewVolume) -> Result<MapUpdate, TransitionError> {
    if !key::valid_name(&new.name) {
        return Err(TransitionError::Invalid(format!(
            "{:?} is no volume name: {}",
            new.name,
            key::NAME_RULE
        )));
    }
    check_size(new.size_bytes)?;
    check_chunk(new.chunk_bytes)?;
    check_place(new)?;
    let shards_total = shard_count(chunk_count(new.size_bytes, new.chunk_bytes));
    let stripes = new
        .place
        .iter()
        .zip(&new.nodes)
        .map(|(rule, nodes)| nodes.len().div_ceil(usize::from(rule.copies)))
        .max()
        .unwrap_or(1)
        .min(STRIPES_MAX)
        .min(shards_total);
    let mut sets = SetTable::default();
    let mut interner = Interner::new(&sets);
    let mut shards = Vec::with_capacity(shards_total);
    for shard in 0..shards_total {
        let list = stripe_set(new, shard * stripes / shards_total);
        let set = interner
            .intern(&mut sets, list)
            .map_err(|_| TransitionError::TooManySets)?;
        sets.add(set);
        shards.push(Shard::Uniform(set));
    }
    let mut next = VolumeMap {
        head: VolumeHead {
            volume: new.volume,
            name: new.name.clone(),
            size_bytes: new.size_bytes,
            chunk_bytes: new.chunk_bytes,
            durability: new.durability,
            place: new.place.clone(),
            token: Token(0),
            generation: Generation(0),
            attach: None,
            deleting: false,
            health: Vec::new(),
        },
        head_version: KvVersion::default(),
        sets,
        effective: Vec::new(),
        shards,
    };
    bump(&mut next)?;
    let writes = vec![
        Write::Create {
            key: key::name(&new.name),
            bytes: new.volume.to_string().into_bytes(),
            ephemeral: false,
        },
        Write::Create {
            key: key::head(new.volume),
            bytes: encoded_head(&next)?,
            ephemeral: false,
        },
    ];
    Ok(MapUpdate {
        next,
        writes,
        targets: vec![Target::Other, Target::Head],
    })
}
