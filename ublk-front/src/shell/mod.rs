//! The front's shell: sockets, rings, clocks, threads. It decides nothing; the cores do.
//!
//! `lane` runs a [`crate::core::LaneCore`] on any io_uring ring together with the connections to the
//! nodes (`peers`); frontends (`nbd`, `ublk`, `bench`) own the ring and the guest's buffers. `control` runs the
//! [`crate::core::control::ControlCore`] on a thread of its own.

pub mod address;
pub mod attach;
pub mod bench;
pub mod buffers;
pub mod clock;
pub mod context;
pub mod control;
pub mod inbox;
pub mod lane;
pub mod nbd;
pub mod outbox;
pub mod peers;
pub mod process;
mod ring;
mod settle;
pub mod ublk;
pub mod user_data;
pub mod wake;
