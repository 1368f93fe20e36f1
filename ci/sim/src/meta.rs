//! The way to the metadata store and back, and what happens to requests on it.

use crate::queue::MS;
use crate::world::{Event, FrontIndex, VOLUME, World};
use rand::RngExt;
use ublk_front::core::api::{ControlEvent, MetaId, MetaOutcome};
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::map::VolumeMap;
use ukai_meta::memory::CommitFault;
use ukai_meta::transition::MapUpdate;
use ukai_meta::{CommitError, MetaError};

/// What a front asks of the store.
#[derive(Debug)]
pub(crate) enum MetaRequest {
    Load,
    Commit(Box<MapUpdate>),
}

fn failed(error: CatalogError) -> MetaOutcome {
    match error {
        CatalogError::NoVolume(_) | CatalogError::Deleting(_) => MetaOutcome::NoVolume,
        CatalogError::Store(error) => MetaOutcome::Failed(CommitError::Store(error)),
        CatalogError::Commit(error) => MetaOutcome::Failed(error),
        other => MetaOutcome::Failed(CommitError::Store(MetaError::Backend(other.to_string()))),
    }
}

impl World {
    fn meta_delay(&mut self) -> u64 {
        MS / 5 + self.up_to(self.swarm.meta_delay_ns)
    }

    pub(crate) fn ask_meta(&mut self, front: FrontIndex, id: MetaId, request: MetaRequest) {
        let at = self.queue.now() + self.meta_delay();
        self.queue
            .push(at, Event::MetaArrive { front, id, request });
    }

    /// The servers carry it out, also if the one who asked has died meanwhile.
    pub(crate) fn meta_arrives(&mut self, front: FrontIndex, id: MetaId, request: MetaRequest) {
        let outcome = match request {
            MetaRequest::Load => {
                let store = &self.fronts[front].meta;
                let loaded = catalog::load_volume(store, VOLUME)
                    .and_then(|map| Ok((map, catalog::list_nodes(store)?)));
                match loaded {
                    Ok(loaded) => MetaOutcome::Loaded(Box::new(loaded)),
                    Err(error) => failed(error),
                }
            }
            MetaRequest::Commit(update) => self.commit(front, *update),
        };
        let at = self.queue.now() + self.meta_delay();
        self.queue
            .push(at, Event::MetaAnswer { front, id, outcome });
    }

    fn commit(&mut self, front: FrontIndex, update: MapUpdate) -> MetaOutcome {
        if self.in_256(self.swarm.meta_unknown_in_256) {
            let landed = self.rng.random_range(0..2u32) == 0;
            self.fronts[front].meta.inject(if landed {
                CommitFault::UnknownLanded
            } else {
                CommitFault::UnknownLost
            });
        }
        let result = catalog::commit_update(&self.fronts[front].meta, update);
        if matches!(result, Ok(_) | Err(CommitError::Unknown)) {
            self.head_changed();
        }
        match result {
            Ok(map) => MetaOutcome::Committed(Box::new(map)),
            Err(error) => MetaOutcome::Failed(error),
        }
    }

    /// Watches fire, sooner or later.
    pub(crate) fn head_changed(&mut self) {
        let now = self.queue.now();
        for front in 0..self.fronts.len() {
            if self.fronts[front].alive {
                let at = now + MS + self.up_to(5 * self.swarm.meta_delay_ns);
                self.queue.push(at, Event::MapChanged { front });
            }
        }
        if let Some(map) = self.load_map() {
            self.trace.mix(u64::from(map.head.generation.0));
            for node in &mut self.nodes {
                if map.health(node.id).is_some() {
                    node.suspect_since = None;
                }
            }
            self.say(|| {
                let health: Vec<String> = map
                    .head
                    .health
                    .iter()
                    .map(|(node, health)| format!("{} {health:?}", self.node_name(*node)))
                    .collect();
                format!(
                    "map: token {}, generation {}, {}",
                    map.head.token,
                    map.head.generation,
                    health.join(", ")
                )
            });
        }
        if self.is_beyond_help() {
            self.give_up("only replicas that lost power are in sync");
        }
    }

    pub(crate) fn meta_answers(&mut self, front: FrontIndex, id: MetaId, outcome: MetaOutcome) {
        self.control(front, ControlEvent::Meta(id, outcome));
    }

    pub(crate) fn map_changed(&mut self, front: FrontIndex) {
        self.control(front, ControlEvent::MapChanged);
    }

    /// The map as it is.
    pub(crate) fn load_map(&self) -> Option<VolumeMap> {
        catalog::load_volume(&self.operator, VOLUME).ok()
    }

    pub(crate) fn meta_outage(&mut self, for_ns: u64) {
        self.say(|| format!("metadata store unreachable for {} ms", for_ns / MS));
        self.meta_down = true;
        for front in &self.fronts {
            front.meta.set_unavailable(true);
        }
        let at = self.queue.now() + for_ns;
        self.queue.push(at, Event::MetaHeal);
    }

    pub(crate) fn meta_heals(&mut self) {
        self.meta_down = false;
        for front in &self.fronts {
            front.meta.set_unavailable(false);
        }
        self.head_changed();
    }
}
