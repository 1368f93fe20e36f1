//! `bench`: a load of our own on a volume. The lanes are those of the front (`ublk_front::shell::bench`); here is
//! what they are asked for, and how the result is shown.

pub(crate) mod args;
pub(crate) mod load;
pub(crate) mod outcome;
pub(crate) mod pattern;
