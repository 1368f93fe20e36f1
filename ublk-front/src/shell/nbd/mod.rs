//! The NBD frontend: listeners on the main thread, one lane thread per client.

mod client;
mod lane;
mod listen;
mod requests;
mod slots;

use super::address;
use super::context::{FrontContext, FrontendError, FrontendOrder};
use listen::{Listeners, Ready};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Clients at a time: each has up to 66 MiB of buffers and a connection to every node shard.
const CLIENTS_MAX: usize = 16;
/// A client that has just said goodbye may need this long to be gone when a detach comes.
const GOODBYE: Duration = Duration::from_secs(2);

struct Served {
    socket: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// Serves the volume to NBD clients until it is told to stop.
pub fn serve(ctx: FrontContext) -> Result<(), FrontendError> {
    let listeners = Listeners::bind(&ctx.settings)?;
    for uri in listeners.uris(&ctx.presented.name).skip(1) {
        tracing::info!("also at {uri}");
    }
    if let Some(uri) = listeners.uris(&ctx.presented.name).next() {
        ctx.attached(&uri);
    }
    let size_bytes = Arc::new(AtomicU64::new(ctx.presented.size_bytes));
    let mut clients: Vec<Served> = Vec::new();
    loop {
        let ready = listeners
            .wait(ctx.orders.event(), None)
            .map_err(FrontendError::io("poll"))?;
        reap(&mut clients);
        if let Ready::Client(socket) = ready {
            if clients.len() >= CLIENTS_MAX {
                // Some may be on their way out.
                await_goodbyes(&listeners, &mut clients, CLIENTS_MAX - 1)
                    .map_err(FrontendError::io("poll"))?;
            }
            if clients.len() < CLIENTS_MAX {
                match start(&ctx, socket, &size_bytes) {
                    Ok(client) => clients.push(client),
                    Err(error) => tracing::warn!("NBD client refused: {error}"),
                }
            } else {
                tracing::warn!("NBD client refused: {CLIENTS_MAX} are connected already");
            }
            continue;
        }
        ctx.orders.event().clear();
        while let Some(order) = ctx.orders.try_recv() {
            match order {
                FrontendOrder::Resized { size_bytes: new } => {
                    // Connected clients keep the size they were told, but may use the new one.
                    size_bytes.store(new, Ordering::Relaxed);
                }
                FrontendOrder::Stop { force, refused } => {
                    if !force {
                        await_goodbyes(&listeners, &mut clients, 0)
                            .map_err(FrontendError::io("poll"))?;
                    }
                    if force || clients.is_empty() {
                        drop(refused);
                        return stop(&listeners, clients).map_err(FrontendError::io("poll"));
                    }
                    let count = clients.len();
                    let text = format!(
                        "{count} NBD client(s) are connected; disconnect them, or use --force"
                    );
                    // Whoever asked may be gone already.
                    let _ = refused.send(text);
                }
            }
        }
    }
}

fn reap(clients: &mut Vec<Served>) {
    for client in clients.extract_if(.., |client| client.thread.is_finished()) {
        // A panic ends the whole process (see `process`), so there is nothing to learn here.
        let _ = client.thread.join();
    }
}

/// Gives clients that are about to leave the time to do so, until so many are left.
fn await_goodbyes(listeners: &Listeners, clients: &mut Vec<Served>, left: usize) -> io::Result<()> {
    let begin = super::clock::now();
    reap(clients);
    while clients.len() > left && super::clock::now().since(begin) < GOODBYE {
        // Nothing wakes us when a thread ends, so look every few milliseconds.
        listeners.pause(Duration::from_millis(10))?;
        reap(clients);
    }
    Ok(())
}

/// Ends all clients: what they have in flight is finished and answered first, unless they do not take
/// their answers.
fn stop(listeners: &Listeners, mut clients: Vec<Served>) -> io::Result<()> {
    for client in &clients {
        // SAFETY: no pointers; the socket is owned by `client`.
        let _ = unsafe { libc::shutdown(client.socket.as_raw_fd(), libc::SHUT_RD) };
    }
    await_goodbyes(listeners, &mut clients, 0)?;
    for client in &clients {
        address::shutdown(client.socket.as_raw_fd());
    }
    for client in clients {
        let _ = client.thread.join();
    }
    Ok(())
}

fn start(
    ctx: &FrontContext,
    socket: OwnedFd,
    size_bytes: &Arc<AtomicU64>,
) -> Result<Served, FrontendError> {
    let seat = ctx.control.add_lane()?;
    let socket = Arc::new(socket);
    address::set_blocking(socket.as_raw_fd()).map_err(FrontendError::io("set up the socket"))?;
    let (theirs, name) = (Arc::clone(&socket), ctx.presented.name.clone());
    let ours = Arc::clone(&socket);
    let size_bytes = Arc::clone(size_bytes);
    let (id, poll) = (seat.id(), ctx.settings.poll);
    let body = move || {
        if let Err(error) = lane::run(theirs, &name, size_bytes, seat, poll) {
            tracing::error!("NBD client: {error}");
        }
        // The client waits for it, and the listener may keep the descriptor for a while.
        address::shutdown(ours.as_raw_fd());
    };
    let thread = std::thread::Builder::new()
        .name(format!("nbd{}", id.0))
        .spawn(body);
    let thread = thread.map_err(FrontendError::io("start a thread for the client"))?;
    Ok(Served { socket, thread })
}
