//! What an executor does all day: completions, turns of its shards, one kernel entry, and again.
//!
//! It waits in its own ring as long as something happened a moment ago, so that a guest's next request finds the
//! thread where the request arrives. After that the runtime's loop has the thread, until the ring or a task of the
//! runtime (a timer, an accepted connection, an order from the control thread) has something. Tasks of the
//! runtime that are ready run between two turns; those that wait for the kernel run when the ring is left, which
//! is at the latest when the runtime's timer of this queue fires (see `queues.rs`).

use super::clock::{now_ns, ns};
use super::notify::Notify;
use super::ring::{Completed, Ring};
use super::shard::Shard;
use glommio::io::BufferedFile;
use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// The ring is waited in for so long after something happened. A sleep, not a spin: it costs no CPU. Whatever
/// else wants the executor waits for it at most once.
const LINGER: Duration = Duration::from_millis(1);

/// Run until every shard has stopped and nothing of them is left in the kernel.
pub(super) async fn run(
    ring: Rc<Ring>,
    shards: Vec<Rc<Shard>>,
    wake: Rc<Notify>,
) -> io::Result<()> {
    let event = ring.event().try_clone()?;
    // Ends with the executor.
    drop(glommio::spawn_local(told(event, wake.clone())).detach());
    let mut completed = Vec::new();
    let mut busy_at = now_ns();
    loop {
        ring.reap(&mut completed);
        let mut busy = !completed.is_empty();
        for completed in completed.drain(..) {
            let shard = match &completed {
                Completed::Disk { shard, .. } => *shard,
                Completed::Receive(conn, _) | Completed::Writable(conn) => conn.shard,
            };
            shards[shard].completed(completed);
        }
        for shard in &shards {
            busy |= shard.turn();
        }
        if ring.is_idle() && shards.iter().all(|shard| shard.stopped().is_some()) {
            break;
        }
        let_others_run().await;
        if shards.iter().any(|shard| shard.has_events()) {
            continue;
        }
        let now = now_ns();
        if busy {
            busy_at = now;
        }
        if now - busy_at < ns(LINGER) {
            ring.wait(LINGER)?;
            continue;
        }
        ring.tell(true);
        // What completed before that is not told any more.
        ring.enter()?;
        ring.reap(&mut completed);
        if completed.is_empty() {
            wake.notified().await;
        }
        ring.tell(false);
        ring.enter()?;
        busy_at = now_ns();
    }
    Ok(())
}

/// Wakes the pump when the ring has something while nobody waits in it.
async fn told(event: OwnedFd, wake: Rc<Notify>) {
    // SAFETY: a descriptor that nobody else has; all that is done with it is to read it.
    let event = unsafe { BufferedFile::from_raw_fd(event.into_raw_fd()) };
    loop {
        match event.read_at(0, size_of::<u64>()).await {
            Ok(_) => wake.notify(),
            Err(error) => panic!("wait for the ring: {error}"),
        }
    }
}

/// Tasks of the runtime that are ready run first.
async fn let_others_run() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
