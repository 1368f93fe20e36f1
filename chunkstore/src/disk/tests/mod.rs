//! Tests of the store on a device that forgets.

mod faults;
mod memory;
mod model;
mod power;
mod rig;
mod rules;
mod superblocks;
mod verify;
