//! The core of one shard: decides what a request may do and answers it.
//!
//! ```text
//! connections --Frame--> session (HELLO, limits) -> gate (fence) -> Storage (disk) --Reply--> Send
//!                                                      PULL -> copy <--PeerFrame--> other node
//! ```
//!
//! Pure: no clock, socket, executor or randomness. Shells and the simulator feed [`ShardEvent`]s,
//! call [`ShardCore::turn_end`] once after each batch, and carry out the [`ShardAction`]s in order.

mod answer;
mod copy;
mod event;
mod gate;
mod reports;
mod request;
mod service;
mod session;
mod shard;
mod stats;
mod storage;

#[cfg(test)]
mod tests;

pub use copy::{COPY_PIECES_MAX, COPY_STALL_NS, PEER_IDLE_NS, PEERS_MAX, PULLS_MAX};
pub use event::{
    CloseReason, ConnId, OutData, OutFrame, PeerId, ShardAction, ShardEvent, ShardIdentity,
};
pub use gate::{Gate, Rule};
pub use reports::REPORTS_BYTES_MAX;
pub use session::{CONNS_MAX, HELLO_TIMEOUT_NS};
pub use shard::ShardCore;
pub use storage::Storage;
