//! The volume goes from one front to another: cleanly, after a death, by force, and from a front that
//! does not know that it was replaced.

use crate::front::Front;
use crate::guest::{Guests, broken, send, settle};
use crate::nbd::Client;
use crate::net::between;
use crate::recorder::{Ask, Verb};
use crate::wait::{Failure, Look, Outcome, last};
use crate::world::World;
use rand::RngExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A session of ZooKeeper lasts six seconds; its end is noticed with the servers' next ticks.
const EXPIRY_MAX: Duration = Duration::from_secs(40);
/// How long a zombie is alone with one node.
const ALONE: Duration = Duration::from_secs(4);
/// A zombie is refused by the first node that it reaches.
const REFUSAL_MAX: Duration = Duration::from_secs(60);

pub(super) fn front_kill(world: &mut World) -> Outcome {
    let (here, other) = world.hosts()?;
    let elsewhere = world.rng.random_range(0..3u32) == 0;
    world.begins("front killed");
    world.doom_guests();
    let guests = world.guests.take();
    if let Some(front) = world.front.take() {
        front.process.kill()?;
    }
    world.abandon_guests(guests)?;
    if elsewhere {
        world.attach(other, true)?;
    } else {
        world.attach(here, false)?;
    }
    world.start_guests()
}

pub(super) fn hand_over(world: &mut World) -> Outcome {
    let (_, other) = world.hosts()?;
    world.begins("clean hand-over");
    world.drain_guests()?;
    world.detach()?;
    world.attach(other, false)?;
    world.start_guests()
}

pub(super) fn detach_under_load(world: &mut World) -> Outcome {
    let (here, _) = world.hosts()?;
    world.begins("detach under load");
    world.doom_guests();
    let guests = world.guests.take();
    let detached = world.detach();
    world.abandon_guests(guests)?;
    detached?;
    world.attach(here, false)?;
    world.start_guests()
}

/// The old front runs, and serves until the moment it is fenced.
pub(super) fn forced_attach(world: &mut World) -> Outcome {
    let (_, other) = world.hosts()?;
    world.begins("forced attach elsewhere");
    let (old, guests) = leave_behind(world)?;
    world.attach(other, true)?;
    world.start_guests()?;
    old.expect_fenced()?;
    world.abandon_guests(Some(guests))
}

/// The must-have: a front stopped for longer than its lease wakes up when another has the volume. Isolated,
/// it wakes up alone with one node, which nobody could tell.
pub(super) fn zombie(world: &mut World, isolated: bool) -> Outcome {
    let (here, other) = world.hosts()?;
    world.begins(if isolated {
        "zombie front, alone with a node"
    } else {
        "zombie front"
    });
    let (old, guests) = leave_behind(world)?;
    old.process.stop()?;
    let volume = world.volume;
    world.until(EXPIRY_MAX, "the stopped front's session ends", |world| {
        Ok(match world.meta.front_lives(volume) {
            Ok(false) => Look::Found(()),
            Ok(true) => Look::NotYet("it is announced".to_owned()),
            Err(error) => Look::NotYet(error.to_string()),
        })
    })?;
    let mut pairs = Vec::new();
    if isolated {
        // The first two nodes hold the volume unless it was moved; the others are no use to the zombie.
        let node = world.nodes[world.rng.random_range(0..2)].member;
        let inside = [here, node];
        let outside: Vec<_> = world
            .net
            .members()
            .filter(|member| !inside.contains(member))
            .collect();
        pairs = between(&inside, &outside);
        world.net.cut(pairs.iter().copied())?;
    }
    world.attach(other, true)?;
    overwrite(world)?;
    world.start_guests()?;
    world.expect_progress(50, "under the new front")?;
    world.tell("the zombie wakes up");
    old.process.go_on()?;
    if isolated {
        last(ALONE)?;
        world.check_problem()?;
        world.tell("the zombie meets the others");
        world.net.mend(pairs)?;
    }
    let watch = std::sync::Arc::clone(&guests.watch);
    world.until(REFUSAL_MAX, "the zombie's writes are refused", |_| {
        let refused = watch.writes_refused.load(Ordering::Relaxed);
        // It may notice what it is, and end, before it has looked at its guests' requests; or, alone with a node, hear of its
        // successor from the metadata store before it has reached a node again.
        let cut = watch.writes_cut.load(Ordering::Relaxed);
        let gone = guests.all_gone();
        Ok(if refused > 0 || cut > 0 && (gone || !isolated) {
            Look::Found(())
        } else if gone {
            return Err(Failure::Broken(
                "the zombie ended without refusing a write".to_owned(),
            ));
        } else {
            Look::NotYet("none was".to_owned())
        })
    })?;
    old.expect_fenced()?;
    world.abandon_guests(Some(guests))
}

/// The current front and its guests, who now expect its end, are no longer the world's.
fn leave_behind(world: &mut World) -> Outcome<(Front, Guests)> {
    world.doom_guests();
    match (world.front.take(), world.guests.take()) {
        (Some(front), Some(guests)) => Ok((front, guests)),
        _ => Err(Failure::Setup("nothing is attached".to_owned())),
    }
}

/// Writes every sector that guests use through the current front. From here on whatever a fenced front
/// answers to a read is old.
fn overwrite(world: &mut World) -> Outcome {
    let front = world.front()?;
    let token = front.token;
    let mut client = Client::connect(&front.socket).map_err(broken("connect to the NBD export"))?;
    for range in &world.profile.ranges {
        let ask = Ask {
            verb: Verb::Write,
            sectors: range.clone(),
            fua: false,
        };
        let sent = send(&mut client, &world.recorder, token, &ask);
        let open = sent.map_err(broken("write"))?;
        let (_, reply) = client.receive().map_err(broken("write"))?;
        if let Err(error) = settle(&world.recorder, &open, reply) {
            let text = format!("a write through the new front failed with error {error}");
            return Err(Failure::Broken(text));
        }
    }
    client.disconnect();
    world.recorder.overwritten();
    Ok(())
}
