//! Where a volume's data should lie so that it is used fast from a host, and the least that must be
//! moved for it. The mathematics is in `model`, the search in `plan`; both are pure.

pub(crate) mod args;
pub(crate) mod target;
