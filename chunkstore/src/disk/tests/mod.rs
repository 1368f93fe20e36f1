//! Tests of the store on a device that forgets.

mod faults;
mod memory;
mod model;
mod power;
mod reuse;
mod rig;
mod rules;
mod since;
mod superblocks;
mod verify;
