//! The storage node of UKAI.
//!
//! `disk` is the store of one shard (pure), `core` decides what a request may do (pure), `shell`
//! runs both on glommio. The cores know no clock, socket, executor or randomness.

pub mod core;
pub mod disk;
#[cfg(feature = "shell")]
pub mod shell;
