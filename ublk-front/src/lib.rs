//! The front of UKAI: presents a volume to a hypervisor and replicates its writes.
//!
//! `core` decides (pure: no clock, socket, executor or randomness); `shell` runs it on libublk's
//! queue threads or on NBD connections, with the sockets to the nodes on the same ring.

pub mod core;
pub mod nbd;
#[cfg(feature = "shell")]
pub mod shell;
