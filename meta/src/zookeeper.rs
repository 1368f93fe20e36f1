//! ZooKeeper.
use crate::store::*;
use std::time::Duration;
/// x
pub struct ZookeeperStore;
impl ZookeeperStore {
    /// x
    pub fn connect(_servers: &str) -> Result<Self, MetaError> { Err(MetaError::Backend("no".into())) }
}
impl MetaStore for ZookeeperStore {
    fn get(&self, _key: &str) -> Result<Option<Value>, MetaError> { Ok(None) }
    fn list(&self, _key: &str) -> Result<Vec<String>, MetaError> { Ok(vec![]) }
    fn commit(&self, _writes: &[Write]) -> Result<Vec<KvVersion>, CommitError> { Ok(vec![]) }
    fn watch(&self, _key: &str) -> Result<Box<dyn Watch>, MetaError> { Err(MetaError::SessionExpired) }
    fn lease(&self) -> Duration { Duration::from_secs(6) }
    fn renew(&self) -> Result<(), MetaError> { Ok(()) }
}
