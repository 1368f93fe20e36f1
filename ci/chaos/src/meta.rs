//! The metadata as this program sees it, from a place that no fault cuts off.

use crate::wait::{Failure, Outcome};
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::{MetaStore, MetaUrl, NodeRecord, ReplicaState, VolumeMap};
use ukai_proto::{ClusterId, NodeId, VolumeId};

/// A session, opened again when it is lost.
pub(crate) struct Meta {
    url: MetaUrl,
    store: Option<Box<dyn MetaStore>>,
}

impl Meta {
    /// Nothing is opened yet.
    pub(crate) fn new(url: &str) -> Outcome<Self> {
        let bad = |error| Failure::Setup(format!("metadata URL {url}: {error}"));
        Ok(Self {
            url: url.parse().map_err(bad)?,
            store: None,
        })
    }

    /// Asks. After an error of the store the next question opens a new session.
    pub(crate) fn ask<T>(
        &mut self,
        question: impl Fn(&dyn MetaStore) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        if self.store.is_none() {
            self.store = Some(ukai_meta::open(&self.url)?);
        }
        let answer = match &self.store {
            Some(store) => question(&**store),
            None => unreachable!("opened above"),
        };
        if let Err(CatalogError::Store(_)) = &answer {
            self.store = None;
        }
        answer
    }

    /// The cluster's id.
    pub(crate) fn cluster(&mut self) -> Result<ClusterId, CatalogError> {
        self.ask(|store| Ok(catalog::cluster(store)?.cluster))
    }

    /// The map of a volume.
    pub(crate) fn map(&mut self, volume: VolumeId) -> Result<VolumeMap, CatalogError> {
        self.ask(|store| catalog::load_volume(store, volume))
    }

    /// All nodes.
    pub(crate) fn nodes(&mut self) -> Result<Vec<NodeRecord>, CatalogError> {
        let nodes = self.ask(catalog::list_nodes)?;
        Ok(nodes.into_iter().map(|node| node.record).collect())
    }

    /// Does a node hold its lease?
    pub(crate) fn node_lives(&mut self, name: &str) -> Result<bool, CatalogError> {
        let state = self.ask(|store| catalog::node_by_name(store, name))?;
        Ok(state.is_some_and(|state| state.live.is_some()))
    }

    /// Has the volume's front announced itself, and not lost its session?
    pub(crate) fn front_lives(&mut self, volume: VolumeId) -> Result<bool, CatalogError> {
        Ok(self.ask(|store| catalog::front(store, volume))?.is_some())
    }
}

/// What of a volume is not as it should be, if anything.
#[must_use]
pub(crate) fn not_whole(map: &VolumeMap, name: impl Fn(NodeId) -> String) -> Option<String> {
    if let Some((node, health)) = map.head.health.first() {
        return Some(format!("node {} is {health:?}", name(*node)));
    }
    for (range, set) in map.runs() {
        for replica in map.set(set) {
            if replica.state != ReplicaState::InSync {
                return Some(format!(
                    "chunks from {} on {} are {:?}",
                    range.start,
                    name(replica.node),
                    replica.state
                ));
            }
        }
    }
    None
}
