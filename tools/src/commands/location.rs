//! `volume add-location` and `volume remove-location`: transactions on the map. The copying and
//! deleting that follows is the work of the volume's front.

use crate::cli::{Location, RemoveLocation};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::range::bytes_of;
use crate::units::ByteSize;
use serde_json::json;
use ukai_meta::map::VolumeMap;
use ukai_meta::{MapUpdate, NodeState, ReplicaState, TransitionError, transition};
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

pub(super) fn add(context: &Context, args: &Location) -> Result<()> {
    let map = context.volume(&args.name.volume)?;
    let node = context.node(&args.node)?;
    let range = args
        .range
        .resolve(map.head.size_bytes, map.head.chunk_bytes)?;
    able_to_take(&node)?;
    let id = node.record.node;
    let decide = |map: &VolumeMap, range| transition::add_location(map, range, id);
    let next = change_range(context, &map, range, args.dry_run, decide)?;
    let (chunks, bytes) = newly(&map, &next, id, ReplicaState::Joining);
    report(context, args, &map, &node, "join", chunks, bytes);
    Ok(())
}

pub(super) fn remove(context: &Context, args: &RemoveLocation) -> Result<()> {
    let location = &args.location;
    let map = context.volume(&location.name.volume)?;
    let node = context.node(&location.node)?;
    let range = location
        .range
        .resolve(map.head.size_bytes, map.head.chunk_bytes)?;
    let id = node.record.node;
    if !map.nodes().contains(&id) {
        return Err(ToolError::not_found(format!(
            "node {} holds nothing of volume {}",
            node.record.name, map.head.name
        ))
        .next("`ukai-tools volume map` shows where it lies"));
    }
    let min_copies = if args.force_below_copies {
        1
    } else {
        map.head
            .place
            .iter()
            .fold(0, |sum: u8, rule| sum.saturating_add(rule.copies))
    };
    let decide = |map: &VolumeMap, range| transition::remove_location(map, range, id, min_copies);
    let next = change_range(context, &map, range, location.dry_run, decide)?;
    let (chunks, bytes) = newly(&map, &next, id, ReplicaState::Leaving);
    report(context, location, &map, &node, "leave", chunks, bytes);
    Ok(())
}

/// A dead or draining node would only hold chunks that nothing can fill.
fn able_to_take(node: &NodeState) -> Result<()> {
    let name = &node.record.name;
    if node.record.draining {
        return Err(
            ToolError::refused(format!("node {name} is draining: it takes no new chunks")).next(
                format!("choose another node, or `ukai-tools node undrain {name}`"),
            ),
        );
    }
    if node.live.is_none() {
        return Err(ToolError::refused(format!("node {name} is not alive"))
            .next("start it, or choose another node: `ukai-tools node list`"));
    }
    Ok(())
}

/// Makes a change over a range in as many transactions as its size needs. The whole of it is tried
/// on the map in memory first, so that what is refused changes nothing at all.
fn change_range(
    context: &Context,
    map: &VolumeMap,
    range: ChunkRange,
    dry_run: bool,
    decide: impl Fn(&VolumeMap, ChunkRange) -> std::result::Result<MapUpdate, TransitionError>,
) -> Result<VolumeMap> {
    let batches = map.batches(range);
    let mut tried = map.clone();
    for batch in &batches {
        if let Some(next) = context.preview(&tried, |map| decide(map, *batch))? {
            tried = next;
        }
    }
    if dry_run {
        return Ok(tried);
    }
    let mut now = map.clone();
    for batch in batches {
        if let Some(next) = context.change(now.clone(), |map| decide(map, batch))? {
            now = next;
        }
    }
    Ok(now)
}

/// Chunks and bytes whose replica on `node` is in `state` after, and was not before.
fn newly(before: &VolumeMap, after: &VolumeMap, node: NodeId, state: ReplicaState) -> (u32, u64) {
    let sum = |map: &VolumeMap| -> (u32, u64) {
        let (size, chunk) = (map.head.size_bytes, map.head.chunk_bytes);
        map.stored_ranges_of(node, state)
            .into_iter()
            .fold((0, 0), |(chunks, bytes), range| {
                let (start, end) = bytes_of(range, size, chunk);
                (chunks + range.count, bytes + (end - start))
            })
    };
    let (before, after) = (sum(before), sum(after));
    (
        after.0.saturating_sub(before.0),
        after.1.saturating_sub(before.1),
    )
}

fn report(
    context: &Context,
    args: &Location,
    map: &VolumeMap,
    node: &NodeState,
    verb: &str,
    chunks: u32,
    bytes: u64,
) {
    let (volume, name) = (&map.head.name, &node.record.name);
    let value = json!({
        "volume": volume, "node": name, "id": node.record.node, "range": args.range.to_string(),
        "verb": verb, "dry_run": args.dry_run, "chunks": chunks, "bytes_at_most": bytes,
        "attached": map.head.attach.as_ref().map(|attach| &attach.host),
    });
    context.output.show(&value, || {
        if chunks == 0 {
            return format!("nothing to do: node {name} is as asked in range {} of {volume}", args.range);
        }
        let what = match (args.dry_run, verb) {
            (true, verb) => format!("would {verb}"),
            (false, "join") => "join now".into(),
            (false, _) => "are leaving".into(),
        };
        let data = match verb {
            "join" => format!("at most {} to copy", ByteSize(bytes).about()),
            _ => format!("at most {} to free", ByteSize(bytes).about()),
        };
        let line = format!("{chunks} chunks of {volume} {what} on node {name} ({data})");
        if args.dry_run {
            return line;
        }
        match &map.head.attach {
            Some(attach) => format!(
                "{line}\nthe front on {} carries it out; to wait for it: ukai-tools volume synchronize {volume} --wait",
                attach.host
            ),
            None => format!(
                "{line}\nthe volume is detached; to carry it out now: ukai-tools volume synchronize {volume}"
            ),
        }
    });
}
