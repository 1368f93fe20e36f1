//! What a front decides.
//!
//! Two state machines: [`lane::LaneCore`], one per queue thread (guest requests in, node frames out),
//! and [`control::ControlCore`], one per volume (attach, fence, lost and returning nodes, copies,
//! configuration changes). They talk by [`api::LaneOrder`] and [`api::LaneReport`]; every
//! configuration change passes a barrier over all lanes (`docs/protocol.md`).

pub mod api;
pub mod config;
pub mod control;
#[cfg(test)]
mod control_test;
#[cfg(test)]
mod fixture;
pub mod heat;
pub mod lane;
#[cfg(test)]
mod lane_test;
mod piece;
#[cfg(test)]
mod regression_test;
#[cfg(test)]
mod relocate_test;
pub mod seq;
mod split;
pub mod stats;
pub mod window;

pub use control::{ControlConfig, ControlCore, ControlStatus};
pub use lane::{LaneCore, LaneLimits};
pub use seq::SharedSeq;
