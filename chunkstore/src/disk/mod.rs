//! The store of one shard: layout, log, pages, recovery. See `docs/disk-format.md`.
//!
//! Everything here is pure: no clock, randomness, socket or executor. [`store::Store`] turns requests
//! and device completions into replies and device operations; [`format`](mod@format) and recovery run
//! before anything is served and use the blocking [`api::Disk`] seam; [`mem::MemDisk`] is the device of
//! tests and simulators.

mod account;
pub mod api;
mod cache;
mod change;
mod checkpoint;
mod codec;
mod commit;
mod control;
mod directory;
mod doubt;
pub mod format;
mod hole;
mod intent;
pub mod layout;
mod load;
mod log;
mod marker;
pub mod mem;
mod op;
mod order;
mod page;
#[cfg(feature = "probe")]
pub mod probe;
mod progress;
mod put;
mod read;
mod record;
mod recovery;
mod replay;
mod report;
mod room;
mod scan;
mod settle;
pub(crate) mod slab;
mod space;
pub mod store;
mod superblock;
mod sweep;
mod view;
mod write;
mod zero;

#[cfg(test)]
mod tests;
