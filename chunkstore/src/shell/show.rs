//! `chunkstore show`: what a file or device is.

use super::blocking::{Access, FileDisk};
use super::medium::{MediumError, io_error};
use crate::disk::api::Disk;
use crate::disk::format::{NodeError, NodeSuperblock};
use std::path::Path;

/// It cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// It cannot be opened.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// It is no node.
    #[error("{0}")]
    Node(#[from] NodeError),
}

/// As a table of `key value` lines, or JSON.
pub fn show(path: &Path, json: bool) -> Result<String, ShowError> {
    let mut disk = FileDisk::open(path, Access::Read).map_err(io_error("open", path))?;
    let block = NodeSuperblock::read(&mut disk)?;
    if json {
        let value = serde_json::json!({
            "node": block.node,
            "cluster": block.cluster,
            "name": block.name,
            "site": block.site,
            "labels": block.labels,
            "shards": block.shard_count,
            "size_bytes": disk.size(),
            "capacity_bytes": block.capacity_bytes(),
            "starts": block.start,
        });
        return Ok(value.to_string());
    }
    Ok(format!(
        "node      {}\ncluster   {}\nname      {}\nsite      {}\nlabels    {}\nshards    {}\n\
         size      {}\ncapacity  {}\nstarts    {}",
        block.node,
        block.cluster,
        block.name,
        block.site,
        block.labels.join(" "),
        block.shard_count,
        disk.size(),
        block.capacity_bytes(),
        block.start,
    ))
}
