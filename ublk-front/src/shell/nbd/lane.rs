//! The thread of one NBD connection: a ring, the client, a lane.

use super::client::Client;
use super::slots::Slots;
use crate::core::LaneLimits;
use crate::shell::context::LaneSeat;
use crate::shell::lane::{Completion, LaneDriver};
use crate::shell::ring::LaneRing;
use crate::shell::user_data::{Kind, unpack};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Serves the client until it goes or is told to.
pub(super) fn run(
    socket: Arc<OwnedFd>,
    name: &str,
    size_bytes: Arc<AtomicU64>,
    seat: LaneSeat,
    poll: Duration,
) -> io::Result<()> {
    let mut slots = Slots::new();
    let mut lane = LaneDriver::new(seat, LaneLimits::default());
    let mut client = Client::new(socket, name, size_bytes);
    // Declared last, so that it is dropped first should anything fail.
    let mut ring = LaneRing::new(poll)?;
    let mut arrived: Vec<(u64, i32)> = Vec::new();
    let mut finished: Vec<Completion> = Vec::new();
    loop {
        loop {
            client.parse(&mut lane, &mut slots);
            finished.extend(lane.turn(&slots, &mut |entry| ring.push(&entry)));
            if finished.is_empty() {
                break;
            }
            for (tag, result) in finished.drain(..) {
                client.answered(tag, result, &mut slots);
            }
            if !client.is_stalled() {
                break;
            }
        }
        client.submit(&mut slots, &mut |entry| ring.push(&entry));
        if client.is_done() && lane.in_flight() == 0 {
            lane.close();
            if lane.is_quiet() {
                return Ok(());
            }
        }
        ring.enter(1, &mut arrived);
        for (user_data, result) in arrived.drain(..) {
            match unpack(user_data) {
                Some((kind @ (Kind::ClientReceive | Kind::ClientSend), _)) => {
                    client.completed(kind, result, &mut slots);
                }
                Some(_) => lane.completed(user_data, result, &slots),
                None => tracing::error!("completion {user_data:#x} belongs to nobody"),
            }
        }
    }
}
