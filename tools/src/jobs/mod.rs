//! Relocation jobs as the administrator sees them: made, steered, watched. The volume's front runs them.

pub(crate) mod args;
pub(crate) mod explicit;
pub(crate) mod follow;
pub(crate) mod surplus;
pub(crate) mod view;
pub(crate) mod watch;
