//! What every command works with: the metadata store, the form of the output, and the names of
//! nodes. Turns the errors of `ukai_meta` into messages with advice.

use crate::error::{Result, ToolError};
use crate::place::is_called;
use crate::table::Output;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::job::JobError;
use ukai_meta::key;
use ukai_meta::map::VolumeMap;
use ukai_meta::record::{ClusterRecord, FrontRecord};
use ukai_meta::transition::NewVolume;
use ukai_meta::{
    CommitError, MapUpdate, MetaStore, MetaUrl, NodeState, TransitionError, VolumeHead,
};
use ukai_proto::{NodeId, VolumeId};

/// How often a change is decided anew because someone else (the front, another administrator)
/// changed the volume in between. A front makes a few changes per second at the worst.
const TRIES_MAX: u32 = 8;

pub(crate) struct Context {
    pub(crate) store: Box<dyn MetaStore>,
    /// As given, for children.
    pub(crate) meta: String,
    pub(crate) output: Output,
}

impl Context {
    /// Opens the store of `--meta` or `UKAI_META`. Only `cluster init` may bring a new SQLite file
    /// into being: a mistyped path must not look like an empty cluster.
    pub(crate) fn open(meta: Option<String>, json: bool, create: bool) -> Result<Self> {
        let meta = meta
            .or_else(|| std::env::var("UKAI_META").ok())
            .filter(|meta| !meta.is_empty())
            .ok_or_else(|| {
                ToolError::usage("it is not said where the metadata store is").next(
                    "give --meta sqlite:/path/meta.db or --meta zk:host:2181, or set UKAI_META",
                )
            })?;
        let url: MetaUrl = meta
            .parse()
            .map_err(|error| ToolError::usage(format!("{error}")))?;
        if let MetaUrl::Sqlite(path) = &url
            && !create
            && !path.exists()
        {
            return Err(ToolError::unreachable(format!(
                "there is no metadata store {}",
                path.display()
            ))
            .next("check the path, or make a new one with `ukai-tools cluster init`"));
        }
        Ok(Self {
            store: ukai_meta::open(&url)?,
            meta,
            output: Output { json },
        })
    }

    pub(crate) fn cluster(&self) -> Result<ClusterRecord> {
        Ok(catalog::cluster(&*self.store)?)
    }

    /// All nodes, by name.
    pub(crate) fn nodes(&self) -> Result<Vec<NodeState>> {
        self.cluster()?;
        Ok(catalog::list_nodes(&*self.store)?)
    }

    /// The node of this name or uuid.
    pub(crate) fn node(&self, name: &str) -> Result<NodeState> {
        let nodes = self.nodes()?;
        if let Some(node) = nodes.iter().find(|node| is_called(node, name)) {
            return Ok(node.clone());
        }
        let known: Vec<&str> = nodes.iter().map(|node| node.record.name.as_str()).collect();
        let error = ToolError::not_found(format!("there is no node {name:?}"));
        Err(if known.is_empty() {
            error.next("no node has registered yet; start one with `chunkstore run`")
        } else {
            error.next(format!("nodes are: {}", known.join(", ")))
        })
    }

    pub(crate) fn names(&self) -> Result<Names> {
        Ok(self.names_of(&self.nodes()?))
    }

    pub(crate) fn names_of(&self, nodes: &[NodeState]) -> Names {
        Names(
            nodes
                .iter()
                .map(|node| (node.record.node, node.clone()))
                .collect(),
        )
    }

    pub(crate) fn find_volume(&self, name: &str) -> Result<Option<VolumeId>> {
        self.cluster()?;
        if !key::valid_name(name) {
            return Err(ToolError::usage(format!("{name:?} is no volume name"))
                .next(key::NAME_RULE.to_owned()));
        }
        Ok(catalog::volume_id(&*self.store, name)?)
    }

    pub(crate) fn volume_id(&self, name: &str) -> Result<VolumeId> {
        self.find_volume(name)?.ok_or_else(|| {
            ToolError::not_found(format!("there is no volume {name}"))
                .next("`ukai-tools volume list` shows all")
        })
    }

    /// The whole map of the volume of this name.
    pub(crate) fn volume(&self, name: &str) -> Result<VolumeMap> {
        let id = self.volume_id(name)?;
        catalog::load_volume(&*self.store, id)
            .map_err(|error| ToolError::from(error).context(format_args!("volume {name}")))
    }

    pub(crate) fn front(&self, head: &VolumeHead) -> Result<Option<FrontRecord>> {
        Ok(catalog::front(&*self.store, head.volume)?)
    }

    pub(crate) fn create_volume(&self, new: &NewVolume) -> Result<VolumeMap> {
        Ok(catalog::create_volume(&*self.store, new)?)
    }

    /// What a change would make of the map; `None`: nothing, it is so already.
    pub(crate) fn preview(
        &self,
        map: &VolumeMap,
        decide: impl Fn(&VolumeMap) -> std::result::Result<MapUpdate, TransitionError>,
    ) -> Result<Option<VolumeMap>> {
        match decide(map) {
            Ok(update) => Ok(Some(update.next)),
            Err(TransitionError::NoChange) => Ok(None),
            Err(error) => Err(self.explain(map, error)),
        }
    }

    /// Makes a change true; decides anew from what is there when someone else was faster. `None`:
    /// nothing to change.
    pub(crate) fn change(
        &self,
        mut map: VolumeMap,
        decide: impl Fn(&VolumeMap) -> std::result::Result<MapUpdate, TransitionError>,
    ) -> Result<Option<VolumeMap>> {
        let volume = map.head.volume;
        // After an unknown outcome, "nothing to change" may be this call's own work.
        let mut maybe_done = false;
        for _ in 0..TRIES_MAX {
            let update = match decide(&map) {
                Ok(update) => update,
                Err(TransitionError::NoChange) => return Ok(maybe_done.then_some(map)),
                Err(error) => return Err(self.explain(&map, error)),
            };
            match catalog::commit_update(&*self.store, update) {
                Ok(next) => return Ok(Some(next)),
                Err(CommitError::Conflict { .. }) => {}
                Err(CommitError::Unknown) => maybe_done = true,
                Err(error) => return Err(error.into()),
            }
            map = catalog::load_volume(&*self.store, volume)?;
        }
        Err(
            ToolError::busy(format!("volume {} keeps changing", map.head.name))
                .next("nothing of this step was changed; try again in a moment"),
        )
    }

    /// A refused transition, with the names of volume and nodes.
    fn explain(&self, map: &VolumeMap, error: TransitionError) -> ToolError {
        let mut error = ToolError::from(error);
        let name = &map.head.name;
        error.what = error.what.replace("the volume", &format!("volume {name}"));
        error.next = error.next.map(|next| next.replace("VOLUME", name));
        for node in self.nodes().unwrap_or_default() {
            error.what = error
                .what
                .replace(&node.record.node.to_string(), &node.record.name);
        }
        error
    }

    /// 16 random bytes, for new ids.
    pub(crate) fn random_id(&self) -> Result<[u8; 16]> {
        let mut id = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut id))
            .map_err(|error| ToolError::refused(format!("read /dev/urandom: {error}")))?;
        Ok(id)
    }
}

/// What people call the nodes.
pub(crate) struct Names(HashMap<NodeId, NodeState>);

impl Names {
    /// Its name, or its uuid if its record is gone.
    pub(crate) fn name(&self, node: NodeId) -> String {
        self.0
            .get(&node)
            .map_or_else(|| node.to_string(), |node| node.record.name.clone())
    }

    pub(crate) fn site(&self, node: NodeId) -> String {
        self.0
            .get(&node)
            .map_or_else(|| "?".into(), |node| node.record.site.clone())
    }

    pub(crate) fn name_and_site(&self, node: NodeId) -> String {
        format!("{}@{}", self.name(node), self.site(node))
    }

    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        self.state(node).is_some_and(|node| node.live.is_some())
    }

    pub(crate) fn state(&self, node: NodeId) -> Option<&NodeState> {
        self.0.get(&node)
    }
}

impl From<CatalogError> for ToolError {
    fn from(error: CatalogError) -> Self {
        let text = error.to_string();
        match error {
            CatalogError::Store(error) => error.into(),
            CatalogError::Commit(error) => error.into(),
            CatalogError::Transition(error) => error.into(),
            CatalogError::NoCluster => Self::not_found("this metadata store holds no cluster yet")
                .next("check --meta, or run `ukai-tools cluster init`"),
            CatalogError::NoVolume(_) => {
                Self::not_found(text).next("`ukai-tools volume list` shows all")
            }
            CatalogError::NoNode(_) => {
                Self::not_found(text).next("`ukai-tools node list` shows all")
            }
            CatalogError::NameTaken(_) | CatalogError::NodeNameTaken { .. } => {
                Self::busy(text).next("choose another name")
            }
            CatalogError::BadName { .. } => Self::usage(text),
            CatalogError::AlreadyLive { .. } => Self::busy(text),
            CatalogError::OlderCopy { .. } | CatalogError::Forgotten { .. } => Self::refused(text),
            CatalogError::Deleting(_) => Self::busy("the volume is being deleted")
                .next("finish it with `ukai-tools volume delete`"),
            CatalogError::NotDeleting(_) => Self::refused(text),
            CatalogError::JobExists { .. } => Self::busy(text),
            CatalogError::NoJob(_) => Self::not_found(text),
            CatalogError::Job(error) => error.into(),
            CatalogError::Contended(_) => Self::busy(text).next("try again in a moment"),
        }
    }
}

impl From<JobError> for ToolError {
    fn from(error: JobError) -> Self {
        let text = error.to_string();
        match error {
            JobError::Invalid(_) => Self::refused(text),
            JobError::State { .. } => {
                Self::refused(text).next("`ukai-tools job show VOLUME` tells how it is")
            }
        }
    }
}

impl From<TransitionError> for ToolError {
    fn from(error: TransitionError) -> Self {
        let text = error.to_string();
        match error {
            TransitionError::Attached { host } => Self::busy(format!("the volume is attached on host {host}"))
                .next(format!("detach it first: `ublk-front detach VOLUME` on {host}")),
            TransitionError::Deleting => Self::busy(text)
                .next("finish it with `ukai-tools volume delete`"),
            TransitionError::StillLeaving { .. } => Self::busy(text)
                .next("`ukai-tools volume synchronize` finishes it"),
            TransitionError::Invalid(_) | TransitionError::OutOfRange { .. } => Self::usage(text),
            TransitionError::Shrink { .. } => Self::refused(text)
                .next("make a smaller volume and copy the data inside the guest"),
            TransitionError::TooFewCopies { .. } => Self::refused(text)
                .next("--force-below-copies allows it, down to one copy"),
            TransitionError::LastInSync { .. } => Self::refused(text)
                .next("add a location and wait until it is in sync: `volume add-location`, `volume synchronize --wait`"),
            TransitionError::TooManyReplicas { .. }
            | TransitionError::TooManySets
            | TransitionError::TooManyNodes
            | TransitionError::TooLarge(_)
            | TransitionError::NoChange
            | TransitionError::NotAttached
            | TransitionError::NoReplica { .. }
            | TransitionError::WrongHealth { .. }
            | TransitionError::StillHolds { .. }
            | TransitionError::Exhausted => Self::refused(text),
        }
    }
}
