//! The metadata store is away from some or all. Whatever is healthy goes on (I8); changes wait.

use crate::net::{Member, between};
use crate::wait::{Failure, Look, Outcome};
use crate::world::World;
use rand::RngExt;
use std::time::Duration;

/// A session of ZooKeeper lasts six seconds; its end is noticed with the servers' next ticks.
const EXPIRY_MAX: Duration = Duration::from_secs(40);
/// A front or node that lost its session makes another when it can.
const RETURN_MAX: Duration = Duration::from_secs(60);
/// Requests that must be answered while something is away: more than are in flight when it goes.
const REQUESTS: u64 = 200;

/// Two of three servers die: nobody can change anything, guests go on. Sometimes a node dies
/// meanwhile: then writes to its chunks wait, and the configuration must not change.
pub(super) fn quorum_loss(world: &mut World) -> Outcome {
    world.begins("quorum of ZooKeeper lost");
    let leader = world.zk.leader().unwrap_or(0);
    let other = (leader + 1) % world.zk.len();
    world.zk.kill(leader)?;
    world.zk.kill(other)?;
    world.expect_progress(REQUESTS, "without a quorum")?;
    // Longer than the sessions of fronts and nodes would last if the servers still counted.
    world.meta_is_away()?;
    world.expect_progress(REQUESTS, "long after the quorum was lost")?;
    if world.rng.random_range(0..2u32) == 0 {
        let before = world.front()?.generation()?;
        let node = world.rng.random_range(0..2);
        world.begins("node killed without a quorum");
        world.nodes[node].kill()?;
        // Longer than a node may be away before it is recorded stale, by far.
        crate::wait::last(Duration::from_secs(3))?;
        let after = world.front()?.generation()?;
        if after != before {
            return Err(Failure::Broken(format!(
                "the configuration changed from {before} to {after} without a quorum"
            )));
        }
        world.nodes[node].launch(&world.net, &world.stable)?;
        bring_back(world, &[leader, other])?;
        return world.nodes[node].wait_ready();
    }
    bring_back(world, &[leader, other])
}

fn bring_back(world: &mut World, servers: &[usize]) -> Outcome {
    for server in servers {
        world.zk.run(&world.net, *server)?;
    }
    world.zk.wait_serving()
}

/// The front is cut off from ZooKeeper alone until its session has ended: guests go on.
pub(super) fn front_expiry(world: &mut World) -> Outcome {
    world.begins("session of the front expires");
    let host = world.front()?.host;
    let pairs = between(&[host], &servers(world));
    world.net.cut(pairs.iter().copied())?;
    world.expect_progress(REQUESTS, "while the front is cut off from ZooKeeper")?;
    front_is_announced(world, false, EXPIRY_MAX)?;
    world.expect_progress(REQUESTS, "after the front's session has ended")?;
    world.net.mend(pairs)?;
    front_is_announced(world, true, RETURN_MAX)
}

/// A node is cut off from ZooKeeper alone until its session has ended: it goes on serving, and nobody
/// records it stale.
pub(super) fn node_expiry(world: &mut World) -> Outcome {
    world.begins("session of a node expires");
    let node = world.rng.random_range(0..2);
    let before = world.front()?.generation()?;
    let pairs = between(&[world.nodes[node].member], &servers(world));
    world.net.cut(pairs.iter().copied())?;
    world.expect_progress(REQUESTS, "while a node is cut off from ZooKeeper")?;
    node_lives(world, node, false, EXPIRY_MAX)?;
    world.expect_progress(REQUESTS, "after the node's session has ended")?;
    let after = world.front()?.generation()?;
    if after != before {
        return Err(Failure::Broken(format!(
            "the configuration changed from {before} to {after} although all replicas answer"
        )));
    }
    world.net.mend(pairs)?;
    node_lives(world, node, true, RETURN_MAX)
}

/// A node is stopped until its session has ended, then goes on.
pub(super) fn node_stopped_long(world: &mut World) -> Outcome {
    world.begins("node stopped beyond its lease");
    let node = world.rng.random_range(0..world.nodes.len());
    world.nodes[node].running()?.stop()?;
    node_lives(world, node, false, EXPIRY_MAX)?;
    world.expect_progress(REQUESTS, "without the node")?;
    world.nodes[node].running()?.go_on()?;
    node_lives(world, node, true, RETURN_MAX)
}

/// The front is stopped until its session has ended, then goes on; nobody has taken its volume.
pub(super) fn front_stopped_long(world: &mut World) -> Outcome {
    world.begins("front stopped beyond its lease");
    world.front()?.process.stop()?;
    front_is_announced(world, false, EXPIRY_MAX)?;
    world.front()?.process.go_on()?;
    world.expect_progress(REQUESTS, "after a long stop")?;
    front_is_announced(world, true, RETURN_MAX)
}

fn servers(world: &World) -> Vec<Member> {
    (0..world.zk.len()).map(|n| world.zk.member(n)).collect()
}

fn front_is_announced(world: &mut World, wanted: bool, limit: Duration) -> Outcome {
    let what = if wanted {
        "the front is announced again"
    } else {
        "the front's session ends"
    };
    let volume = world.volume;
    world.until(limit, what, |world| {
        Ok(match world.meta.front_lives(volume) {
            Ok(lives) if lives == wanted => Look::Found(()),
            Ok(lives) => Look::NotYet(format!("announced: {lives}")),
            Err(error) => Look::NotYet(error.to_string()),
        })
    })
}

fn node_lives(world: &mut World, node: usize, wanted: bool, limit: Duration) -> Outcome {
    let name = world.nodes[node].name.clone();
    let what = if wanted {
        format!("node {name} is registered again")
    } else {
        format!("the session of node {name} ends")
    };
    world.until(limit, &what, |world| {
        Ok(match world.meta.node_lives(&name) {
            Ok(lives) if lives == wanted => Look::Found(()),
            Ok(lives) => Look::NotYet(format!("registered: {lives}")),
            Err(error) => Look::NotYet(error.to_string()),
        })
    })
}
