//! The shell: runs shard cores on glommio, one executor per chosen core.
//!
//! Per shard, on its executor, single-threaded:
//!
//! ```text
//! listener -> connection tasks -> queue -> turn: ShardCore::handle*, turn_end -> actions
//!                                   ^                                              |
//!                                   +---- one task per device operation <----------+--> gathered sends
//! ```
//!
//! The metadata store is spoken to by a control thread; shards only ever look at a lease deadline.

pub mod blocking;
mod buffer;
mod clock;
mod conn;
mod control;
mod device;
mod executor;
pub mod format;
mod gather;
pub mod medium;
mod notify;
mod peer;
mod queues;
pub mod run;
mod shard;
pub mod show;
mod stream;
mod systemd;
