//! The store of one shard: layout, log, pages, recovery. See `docs/disk-format.md`.
//!
//! Everything here is pure: no clock, randomness, socket or executor. [`store::Store`] turns requests
//! and device completions into replies and device operations; [`format`](mod@format) and recovery run
//! before anything is served and use the blocking [`api::Disk`] seam; [`mem::MemDisk`] is the device of
//! tests and simulators.

pub mod api;
mod codec;
pub mod format;
mod hole;
pub mod layout;
mod log;
pub mod mem;
mod page;
mod record;
pub mod store;
mod superblock;
