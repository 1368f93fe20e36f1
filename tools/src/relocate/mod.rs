//! Where a volume's data should lie so that it is used fast from a host, and the least that must be
//! moved for it. The mathematics is in `model`, the search in `plan`; both are pure.

pub(crate) mod args;
pub(crate) mod breaking;
mod choice;
mod cover;
pub(crate) mod curve;
pub(crate) mod explain;
pub(crate) mod gather;
pub(crate) mod goals;
mod latency;
mod model;
pub(crate) mod outlook;
pub(crate) mod plan;
pub(crate) mod planned;
pub(crate) mod problem;
mod shrink;
pub(crate) mod target;
pub(crate) mod together;
pub mod trial;

pub(crate) use planned::{Planned, plan_for};
