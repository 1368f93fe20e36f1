//! What an executor does all day: completions, turns of its shards, one kernel entry, and again.
//!
//! It waits in its own ring, so that a guest's next request finds the thread where the request arrives. Tasks of the
//! runtime (timers, accepted connections, orders from the control thread) that are ready run between two waits; those
//! that wait for the kernel become ready when the runtime looks at its own rings, which it does when its timer of this
//! queue has fired (see `queues.rs`). So what the runtime has to do is late by that much and one wait; it has nothing
//! that is in a hurry.
//!
//! The thread is never left to the runtime's own wait, with an eventfd that tells of the ring: where system calls are slow,
//! the runtime parks with that task ready, and requests were seen to wait for the next tick of 250 ms.

use super::clock::now_ns;
use super::ring::{Completed, Ring};
use super::shard::Shard;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// The first wait after something happened. A sleep, not a spin: it costs no CPU.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// Each wait in which nothing happens is followed by one twice as long, up to this: an idle executor wakes a hundred times a
/// second.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// Run until every shard has stopped and nothing of them is left in the kernel. For `poll` after something
/// happened it does not wait: its next request comes soon, and finds it awake.
pub(super) async fn run(ring: Rc<Ring>, shards: Vec<Rc<Shard>>, poll: Duration) -> io::Result<()> {
    let poll_ns = u64::try_from(poll.as_nanos()).unwrap_or(u64::MAX);
    let mut completed = Vec::new();
    let mut wait = WAIT_MIN;
    let mut awake_until = 0;
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
        let now = now_ns();
        for shard in &shards {
            shard.wake(now);
            busy |= shard.turn();
        }
        if ring.is_idle() && shards.iter().all(|shard| shard.stopped().is_some()) {
            break;
        }
        let_others_run().await;
        if shards.iter().any(|shard| shard.has_events()) {
            continue;
        }
        if busy {
            awake_until = now + poll_ns;
        }
        if now < awake_until {
            ring.look()?;
            continue;
        }
        wait = if busy {
            WAIT_MIN
        } else {
            (wait * 2).min(WAIT_MAX)
        };
        let wakes_at = shards.iter().filter_map(|shard| shard.wakes_at()).min();
        let until_then = wakes_at.map(|at| Duration::from_nanos(at.saturating_sub(now_ns())));
        ring.wait(until_then.map_or(wait, |until_then| until_then.min(wait)))?;
    }
    Ok(())
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
