//! `volume create` and `volume resize`.

use crate::cli::{Create, DurabilityArg, Placement, Resize};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::place::{self, Choice, PlaceError, place_text};
use crate::table::warn;
use crate::units::ByteSize;
use serde_json::json;
use ukai_meta::map::VolumeMap;
use ukai_meta::transition::{self, NewVolume};
use ukai_meta::{Durability, NodeState, PlaceRule};
use ukai_proto::VolumeId;
use ukai_proto::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, SECTOR_BYTES, VOLUME_BYTES_MAX};

const SECTOR: ByteSize = ByteSize(SECTOR_BYTES as u64);

pub(super) fn create(context: &Context, args: &Create) -> Result<()> {
    let plan = plan(context, &args.name.volume, args.size, &args.placement)?;
    if args.dry_run {
        return report(context, &plan.preview()?, &plan.all_nodes, "would create");
    }
    let map = plan.commit(context)?;
    report(context, &map, &plan.all_nodes, "created")
}

/// A volume that can be made.
pub(super) struct Plan {
    new: NewVolume,
    all_nodes: Vec<NodeState>,
}

/// Checks everything that can be checked without changing anything.
pub(super) fn plan(
    context: &Context,
    name: &str,
    size: ByteSize,
    placement: &Placement,
) -> Result<Plan> {
    check_size(size)?;
    check_chunk(placement.chunk)?;
    let place: Vec<PlaceRule> = placement.place.iter().map(|arg| arg.0.clone()).collect();
    if place.is_empty() && placement.node.is_empty() {
        return Err(ToolError::usage("it is not said where the volume's copies go")
            .next("give --place SITE:COPIES,... or --node NODE,...; `ukai-tools node list` shows both"));
    }
    let all_nodes = context.nodes()?;
    let choices = if placement.node.is_empty() {
        place::choose(&place, &all_nodes)
    } else {
        place::explicit(&place, &placement.node, &all_nodes)
    }
    .map_err(place_error)?;
    if context.find_volume(name)?.is_some() {
        return Err(ToolError::busy(format!("volume {name} exists already"))
            .next("choose another name, or delete it first: `ukai-tools volume delete`"));
    }
    warn_if_full(size, &choices, &all_nodes);
    let (place, nodes) = choices
        .into_iter()
        .map(|choice| (choice.rule, choice.nodes))
        .unzip();
    Ok(Plan {
        new: NewVolume {
            volume: VolumeId(context.random_id()?),
            name: name.into(),
            size_bytes: size.0,
            chunk_bytes: placement.chunk.0,
            durability: match placement.durability {
                DurabilityArg::Cache => Durability::Cache,
                DurabilityArg::Through => Durability::Through,
            },
            place,
            nodes,
        },
        all_nodes,
    })
}

impl Plan {
    /// The map as it would be.
    pub(super) fn preview(&self) -> Result<VolumeMap> {
        Ok(transition::create(&self.new)?.next)
    }

    pub(super) fn commit(&self, context: &Context) -> Result<VolumeMap> {
        context.create_volume(&self.new)
    }
}

fn check_size(size: ByteSize) -> Result<()> {
    size.check("size", SECTOR, ByteSize(VOLUME_BYTES_MAX))
        .map_err(ToolError::usage)
}

fn check_chunk(chunk: ByteSize) -> Result<()> {
    let (min, max) = (CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
    if chunk.0.is_power_of_two() && (min..=max).contains(&chunk.0) {
        return Ok(());
    }
    let up = chunk.0.clamp(min, max).next_power_of_two();
    let down = if up > min && up > chunk.0 { up / 2 } else { up };
    let nearest = if down == up {
        format!("the nearest is {}", ByteSize(up))
    } else {
        format!("the nearest are {} and {}", ByteSize(down), ByteSize(up))
    };
    Err(ToolError::usage(format!(
        "chunk size {chunk} is not a power of two from {} to {}; {nearest}",
        ByteSize(min),
        ByteSize(max)
    )))
}

fn place_error(error: PlaceError) -> ToolError {
    let text = error.to_string();
    match error {
        PlaceError::SiteTwice(_)
        | PlaceError::NodeTwice(_)
        | PlaceError::TooManyCopies { .. }
        | PlaceError::Mismatch { .. } => ToolError::usage(text),
        PlaceError::UnknownSite { .. } | PlaceError::UnknownNode { .. } => {
            ToolError::not_found(text).next("`ukai-tools node list` shows nodes and sites")
        }
        PlaceError::TooFewNodes { .. } => ToolError::refused(text).next(
            "start or undrain nodes of this site, format one more, or ask for fewer copies there",
        ),
        PlaceError::Unusable { .. } => {
            ToolError::refused(text).next("start or undrain it, or choose another node")
        }
    }
}

/// Space is thin, so this is no error; but the administrator should know.
fn warn_if_full(size: ByteSize, choices: &[Choice], nodes: &[NodeState]) {
    for choice in choices {
        for id in choice.nodes.iter().take(choice.rule.copies.into()) {
            let node = nodes.iter().find(|node| node.record.node == *id);
            let Some((node, live)) = node.and_then(|node| Some((node, node.live.as_ref()?))) else {
                continue;
            };
            let free = node.record.capacity_bytes.saturating_sub(live.used_bytes);
            if free < size.0 {
                warn(&format!(
                    "node {} has {} free, less than the volume's {size}: it cannot be filled to the end there",
                    node.record.name,
                    ByteSize(free).about()
                ));
            }
        }
    }
}

fn report(context: &Context, map: &VolumeMap, nodes: &[NodeState], done: &str) -> Result<()> {
    let names = context.names_of(nodes);
    let mut on: Vec<String> = map
        .nodes()
        .into_iter()
        .map(|node| names.name_and_site(node))
        .collect();
    on.sort();
    let head = &map.head;
    let value = json!({
        "done": done,
        "volume": { "name": head.name, "id": head.volume, "size_bytes": head.size_bytes,
                    "chunk_bytes": head.chunk_bytes, "chunks": map.chunk_count(),
                    "durability": head.durability, "place": head.place,
                    "nodes": map.nodes().into_iter().map(|node| names.name(node)).collect::<Vec<_>>() }
    });
    context.output.show(&value, || {
        format!(
            "{done} volume {}: {}, chunks of {}, place {}, on {}",
            head.name,
            ByteSize(head.size_bytes),
            ByteSize(head.chunk_bytes),
            place_text(&head.place),
            on.join(", ")
        )
    });
    Ok(())
}

pub(super) fn resize(context: &Context, args: &Resize) -> Result<()> {
    check_size(args.size)?;
    let map = context.volume(&args.name.volume)?;
    let from = ByteSize(map.head.size_bytes);
    let change = |map: &VolumeMap| transition::resize(map, args.size.0);
    let next = if args.dry_run {
        context.preview(&map, change)?
    } else {
        context.change(map, change)?
    };
    let done = match (&next, args.dry_run) {
        (None, _) => "unchanged",
        (Some(_), true) => "would-resize",
        (Some(_), false) => "resized",
    };
    let value = json!({ "done": done, "volume": args.name.volume,
                        "from_bytes": from.0, "size_bytes": args.size.0 });
    context.output.show(&value, || match &next {
        None => format!("volume {} has {} already", args.name.volume, args.size),
        Some(_) if args.dry_run => {
            format!(
                "would resize volume {} from {from} to {}",
                args.name.volume, args.size
            )
        }
        Some(_) => format!(
            "resized volume {} from {from} to {}",
            args.name.volume, args.size
        ),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_powers_of_two_in_bounds() {
        let message = |text: &str| check_chunk(text.parse().unwrap()).unwrap_err().what;
        assert!(message("3MiB").ends_with("the nearest are 2MiB and 4MiB"));
        assert!(message("512KiB").ends_with("the nearest is 1MiB"));
        assert!(message("1GiB").ends_with("the nearest is 64MiB"));
        assert!(message("0").ends_with("the nearest is 1MiB"));
        for good in ["1MiB", "4MiB", "64MiB"] {
            assert_eq!(check_chunk(good.parse().unwrap()), Ok(()), "{good}");
        }
    }
}
