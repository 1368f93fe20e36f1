//! Pointer maps of volumes, relocation jobs, and the store that keeps them.
//!
//! `map`, `transition` and `job` are pure: they know no store, clock or runtime. `store` is the small
//! key-value seam with three backends (`zookeeper`, `sqlite`, `memory`) and one conformance suite;
//! `catalog` is the typed layer on top of it that daemons and tools use.
#![forbid(unsafe_code)]

pub mod archive;
pub mod catalog;
pub mod job;
pub mod key;
pub mod latency;
pub mod map;
pub mod memory;
pub mod record;
pub mod report;
pub mod sets;
pub mod shard;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod store;
pub mod transition;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

pub use job::{JobRecord, JobState};
pub use latency::{HostLatency, LatencyPoints, NodeLatency};
pub use map::VolumeMap;
pub use record::{
    Attach, Durability, FrontRecord, NodeHealth, NodeLive, NodeRecord, NodeState, PlaceRule,
    Replica, ReplicaState, VolumeHead,
};
pub use sets::{ReplicaList, SetIndex};
pub use store::{CommitError, KvVersion, MetaError, MetaStore, MetaUrl, Value, Watch, Write};
pub use transition::{Change, MapUpdate, TransitionError};

/// Opens the store that a metadata URL names.
///
/// A SQLite file is created if it is not there; for ZooKeeper, waits until a server answers (or
/// says which did not). `memory:` is one store per process.
pub fn open(url: &MetaUrl) -> Result<Box<dyn MetaStore>, MetaError> {
    match url {
        #[cfg(feature = "sqlite")]
        MetaUrl::Sqlite(path) => Ok(Box::new(sqlite::SqliteStore::open(path)?)),
        #[cfg(feature = "zookeeper")]
        MetaUrl::Zookeeper(servers) => Ok(Box::new(zookeeper::ZookeeperStore::connect(servers)?)),
        MetaUrl::Memory => {
            static PROCESS: std::sync::OnceLock<memory::MemoryCluster> = std::sync::OnceLock::new();
            Ok(Box::new(PROCESS.get_or_init(Default::default).session()))
        }
        #[cfg(not(all(feature = "sqlite", feature = "zookeeper")))]
        other => Err(MetaError::Backend(format!(
            "this program was built without the backend for {other:?}"
        ))),
    }
}
