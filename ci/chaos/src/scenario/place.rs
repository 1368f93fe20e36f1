//! Data moves under load, and nodes run full.

use crate::fault::{Fault, draw_time};
use crate::guest::{broken, send, settle};
use crate::nbd::{Client, ENOSPC};
use crate::recorder::{Ask, Verb};
use crate::wait::{Failure, Outcome, last};
use crate::world::{GROUP_CHUNKS, SLOT, VOLUME_MIB, World};
use rand::RngExt;
use ukai_meta::ReplicaState;
use ukai_proto::ChunkIndex;

/// A group of chunks gets a replica on a node that has none of it, then loses one elsewhere; half of the
/// time with a fault while the copy runs.
pub(super) fn move_chunks(world: &mut World) -> Outcome {
    world.begins("chunks moved");
    let map = world
        .meta
        .map(world.volume)
        .map_err(broken("load the map"))?;
    let nodes = world.meta.nodes().map_err(broken("load the nodes"))?;
    let groups = u64::from(map.chunk_count()) / GROUP_CHUNKS;
    let group = world.rng.random_range(0..groups);
    let first = ChunkIndex(u32::try_from(group * GROUP_CHUNKS).unwrap_or(u32::MAX));
    // Groups are only ever moved whole, so their first chunk speaks for them.
    let replicas = map.replicas(first);
    let (mut holders, mut others) = (Vec::new(), Vec::new());
    for node in &nodes {
        match replicas.on(node.node) {
            Some(ReplicaState::InSync) => holders.push(node.name.clone()),
            None => others.push(node.name.clone()),
            Some(state) => {
                let text = format!("{} is {state:?} for {first:?}", node.name);
                return Err(Failure::Broken(text));
            }
        }
    }
    let (Some(target), Some(source)) = (pick(world, &others), pick(world, &holders)) else {
        return Err(Failure::Broken(format!(
            "replicas of chunk {first} are on {holders:?}, not on {others:?}"
        )));
    };
    let end = group * GROUP_CHUNKS + GROUP_CHUNKS - 1;
    let range = format!("chunks:{}-{end}", group * GROUP_CHUNKS);
    let name = world.name.clone();
    world.tell(&format!("{range} go from {source} to {target}"));
    let to = ["--node", &target, "--range", &range];
    world.tools(&[&["volume", "add-location", &name], &to[..]].concat())?;
    if world.rng.random_range(0..2u32) == 0 {
        let fault = Fault::draw(world)?;
        fault.begin(world)?;
        let time = draw_time(world);
        last(time)?;
        fault.heal(world)?;
        fault.recovered(world)?;
    }
    world.wait_whole()?;
    let from = ["--node", &source, "--range", &range];
    world.tools(&[&["volume", "remove-location", &name], &from[..]].concat())?;
    world.wait_whole()
}

fn pick(world: &mut World, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let index = world.rng.random_range(0..names.len());
    Some(names[index].clone())
}

/// Every slot that guests do not use is written until the nodes have no space left, then given back.
pub(super) fn disk_full(world: &mut World) -> Outcome {
    world.begins("disks full");
    let used: Vec<u64> = world
        .profile
        .ranges
        .iter()
        .flat_map(|range| range.start / SLOT..range.end.div_ceil(SLOT))
        .collect();
    let free = (0..VOLUME_MIB).filter(|slot| !used.contains(slot));
    let slots: Vec<u64> = free.collect();
    world.expect_full(true);
    let front = world.front()?;
    let token = front.token;
    let mut client = Client::connect(&front.socket).map_err(broken("connect to the NBD export"))?;
    let mut refused = 0;
    for slot in &slots {
        let sectors = slot * SLOT + 3..slot * SLOT + 7;
        world.touched.push(sectors.clone());
        if request(world, &mut client, token, Verb::Write, sectors)? {
            refused += 1;
        }
    }
    world.tally.no_space += refused;
    world.tell(&format!("{refused} writes found no space"));
    if refused == 0 {
        let text = format!("{} slots were written and no node was full", slots.len());
        return Err(Failure::Setup(text));
    }
    world.expect_progress(100, "with full disks")?;
    for slot in &slots {
        let sectors = slot * SLOT..(slot + 1) * SLOT;
        if request(world, &mut client, token, Verb::Trim, sectors)? {
            return Err(Failure::Broken("a discard found no space".to_owned()));
        }
    }
    client.disconnect();
    world.wait_whole()?;
    world.expect_full(false);
    world.touched.sort_by_key(|range| range.start);
    world.touched.dedup();
    Ok(())
}

/// One request and its answer; was it refused for want of space?
fn request(
    world: &World,
    client: &mut Client,
    token: u32,
    verb: Verb,
    sectors: std::ops::Range<u64>,
) -> Outcome<bool> {
    let ask = Ask {
        verb,
        sectors,
        fua: false,
    };
    let open = send(client, &world.recorder, token, &ask).map_err(broken("fill the disks"))?;
    let (_, reply) = client.receive().map_err(broken("fill the disks"))?;
    match settle(&world.recorder, &open, reply) {
        Ok(()) => Ok(false),
        Err(ENOSPC) => Ok(true),
        Err(error) => Err(Failure::Broken(format!(
            "{verb:?} on full disks failed with error {error}"
        ))),
    }
}
