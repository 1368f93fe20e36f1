//! The wire protocol of UKAI: ids, limits, the frame header, messages, and a sans-IO frame decoder.
//!
//! A leaf crate: it knows no clock, socket, executor or randomness, and depends on no other crate of
//! the project. Byte tables are in `docs/protocol.md`; this code and that page change together.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod crc;
pub mod decode;
pub mod frame;
pub mod header;
pub mod heat;
pub mod ids;
pub mod limits;
pub mod message;
pub mod route;
pub mod status;

pub use frame::{Buffer, Frame};
pub use header::{Flags, Header, Opcode};
pub use ids::{
    BootId, ChunkIndex, ClusterId, Generation, Incarnation, NodeId, SectorInChunk, Seq, ShardIndex,
    Token, Version, VolumeId,
};
pub use status::Status;
