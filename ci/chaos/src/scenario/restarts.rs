//! Nodes end and begin, in every way.

use crate::fault::draw_time;
use crate::wait::{Outcome, last};
use crate::world::World;
use rand::RngExt;
use std::time::Duration;

pub(super) fn all_nodes_kill(world: &mut World) -> Outcome {
    world.begins("all nodes killed at once");
    for node in &mut world.nodes {
        node.kill()?;
    }
    let time = draw_time(world);
    last(time)?;
    for node in &mut world.nodes {
        node.launch(&world.net, &world.stable)?;
    }
    for node in &mut world.nodes {
        node.wait_ready()?;
    }
    Ok(())
}

pub(super) fn restart_storm(world: &mut World) -> Outcome {
    let node = world.rng.random_range(0..world.nodes.len());
    world.begins("restart storm");
    for _ in 0..world.rng.random_range(3..7) {
        world.tell(&format!("storm: {} killed", world.nodes[node].name));
        world.nodes[node].kill()?;
        world.nodes[node].launch(&world.net, &world.stable)?;
        // Some are killed before they serve.
        if world.rng.random_range(0..2u32) == 0 {
            world.nodes[node].wait_ready()?;
        }
        let time = Duration::from_millis(world.rng.random_range(10..800));
        last(time)?;
    }
    world.nodes[node].wait_ready()
}

pub(super) fn rolling_restart(world: &mut World) -> Outcome {
    world.begins("rolling restart");
    for node in 0..world.nodes.len() {
        world.tell(&format!("rolling: {} restarts", world.nodes[node].name));
        world.nodes[node].terminate()?;
        world.nodes[node].start(&world.net, &world.stable)?;
        world.wait_whole()?;
        world.expect_progress(50, "in a rolling restart")?;
    }
    Ok(())
}
