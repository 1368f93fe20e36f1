//! The shell: runs shard cores on glommio, one executor per chosen core.
//!
//! Per shard, on its executor, single-threaded:
//!
//! ```text
//! ring: receives, device operations -> queue -> turn: ShardCore::handle*, turn_end -> actions
//!   ^                                                                               |
//!   +-------------------------------------------------------------------------------+--> gathered sends
//! ```
//!
//! The ring is the executor's own ([`ring`]); who waits in it, and for how long, says [`pump`]. Everything that is not
//! asked for per request (accepting and making connections, timers, orders) is a task of the runtime.
//!
//! The metadata store is spoken to by a control thread; shards only ever look at a lease deadline.

mod backing;
pub mod blocking;
pub(crate) mod buffer;
mod clock;
mod conn;
pub mod control;
pub(crate) mod device;
mod executor;
mod fence;
pub mod format;
mod gather;
mod hello;
mod listen;
pub mod medium;
mod peer;
mod pulse;
mod pump;
mod queues;
pub(crate) mod ring;
pub mod run;
mod shard;
pub mod show;
mod stream;
mod systemd;

/// First thing in the process, before any thread exists.
///
/// Registers for the memory barriers that the runtime uses when it goes to sleep: made later, with
/// threads running, the registration takes tens of milliseconds of the first request. And makes any
/// panic end the process at once: a task that died alone would leave its shard answering nothing,
/// while a process that is gone is recovered from.
pub fn prepare_process() {
    // From linux/membarrier.h; the libc crate does not name it on every target.
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    // SAFETY: passes no memory. A kernel without the call refuses, and the runtime does without.
    let _ = unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0) };
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
}
