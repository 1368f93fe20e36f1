//! Tests of the store on a device that forgets.

#[cfg(feature = "shell")]
mod conformance;
mod doubt;
mod faults;
mod golden;
mod memory;
mod misread;
mod model;
mod power;
mod reuse;
mod rig;
mod rules;
mod since;
mod superblocks;
mod taken_bad;
mod twin;
mod verify;
