//! `node forget`: gives up a node that never comes back. Its replicas leave the maps without being
//! deleted on it, and its uuid may never register again.

use super::volume_show::Condition;
use crate::cli::Forget;
use crate::context::{Context, Names};
use crate::error::{Result, ToolError};
use crate::table::{Align, table};
use serde::Serialize;
use serde_json::json;
use ukai_meta::map::VolumeMap;
use ukai_meta::transition::{self, Change, MapUpdate, TransitionError};
use ukai_meta::{ReplicaState, catalog};
use ukai_proto::NodeId;
use ukai_proto::message::ChunkRange;

/// What a volume gives up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Loss {
    volume: String,
    in_sync: u32,
    joining: u32,
    stale: u32,
    leaving: u32,
    /// Chunks that have fewer in-sync copies afterwards than the volume asks for.
    below_copies: u32,
}

impl Loss {
    fn of(map: &VolumeMap, node: NodeId) -> Self {
        let count = |state| {
            map.ranges_of(node, state)
                .iter()
                .map(|range| range.count)
                .sum()
        };
        let place = map.head.place.iter();
        let wanted: usize = place.map(|rule| usize::from(rule.copies)).sum();
        let mut below_copies = 0;
        for (range, set) in map.runs() {
            let replicas = map.set(set);
            let others = replicas
                .iter()
                .filter(|r| r.node != node && r.state == ReplicaState::InSync);
            if replicas.iter().any(|r| r.node == node) && others.count() < wanted {
                below_copies += range.count;
            }
        }
        Self {
            volume: map.head.name.clone(),
            in_sync: count(ReplicaState::InSync),
            joining: count(ReplicaState::Joining),
            stale: count(ReplicaState::Stale),
            leaving: count(ReplicaState::Leaving),
            below_copies,
        }
    }
}

/// One transaction: the node's replicas in the range leave and are forgotten. The last in-sync one of a
/// chunk is refused.
fn give_up(
    map: &VolumeMap,
    range: ChunkRange,
    node: NodeId,
) -> std::result::Result<MapUpdate, TransitionError> {
    let leave = Change::RemoveLocation {
        range,
        node,
        min_copies: 1,
    };
    let drop = Change::DropLeaving { range, node };
    transition::apply(map, &[leave, drop])
}

pub(super) fn forget(context: &Context, args: &Forget) -> Result<()> {
    let node = context.node(&args.name.node)?;
    let (id, name) = (node.record.node, &node.record.name);
    if let Some(live) = &node.live {
        return Err(ToolError::refused(format!(
            "node {name} is alive (start {}): a node that can be reached is emptied, not forgotten",
            live.incarnation.start
        ))
        .next(format!(
            "`ukai-tools node drain {name}` and move its copies away; or stop it, if it is to be given up"
        )));
    }
    let names = context.names()?;
    // Everything is tried in memory first: what is refused changes nothing at all.
    let mut plan = Vec::new();
    for listed in catalog::list_volumes(&*context.store)? {
        let map = catalog::load_volume(&*context.store, listed.volume).map_err(|error| {
            ToolError::from(error).context(format_args!("volume {}", listed.name))
        })?;
        if map.nodes().contains(&id) {
            let after =
                try_on(context, &map, id).map_err(|error| refused(error, &map.head.name, name))?;
            plan.push((map, after));
        }
    }
    let losses: Vec<Loss> = plan.iter().map(|(map, _)| Loss::of(map, id)).collect();
    if !args.dry_run {
        for (map, _) in &plan {
            carry_out(context, map, id)?;
        }
        catalog::forget_node(&*context.store, id)?;
    }
    report(context, args, name, id, &losses, &plan, &names);
    Ok(())
}

fn refused(error: ToolError, volume: &str, node: &str) -> ToolError {
    error.context(format_args!("volume {volume}")).next(format!(
        "node {node} has the only copy: bring it back, or delete the volume (`ukai-tools volume delete {volume} --abandon-unreachable`)"
    ))
}

fn try_on(context: &Context, map: &VolumeMap, node: NodeId) -> Result<VolumeMap> {
    let mut tried = map.clone();
    for range in map.batches(map.all()) {
        if let Some(next) = context.preview(&tried, |map| give_up(map, range, node))? {
            tried = next;
        }
    }
    Ok(tried)
}

fn carry_out(context: &Context, map: &VolumeMap, node: NodeId) -> Result<()> {
    let mut now = map.clone();
    for range in map.batches(map.all()) {
        if let Some(next) = context.change(now.clone(), |map| give_up(map, range, node))? {
            now = next;
        }
    }
    // An attached front does the same; whoever is first.
    let forget_health = |map: &VolumeMap| match transition::drop_health(map, node) {
        Err(TransitionError::WrongHealth { actual: None, .. }) => Err(TransitionError::NoChange),
        other => other,
    };
    context.change(now, forget_health)?;
    Ok(())
}

fn report(
    context: &Context,
    args: &Forget,
    name: &str,
    id: NodeId,
    losses: &[Loss],
    plan: &[(VolumeMap, VolumeMap)],
    names: &Names,
) {
    let dry_run = args.dry_run;
    let value = json!({ "node": name, "id": id, "dry_run": dry_run, "volumes": losses });
    context.output.show(&value, || {
        let mut text = String::new();
        if !losses.is_empty() {
            text = losses_table(losses);
        }
        for (_, after) in plan.iter().filter(|(_, after)| !Condition::of(after).settled()) {
            let others: Vec<String> = after.nodes().into_iter().map(|n| names.name(n)).collect();
            text.push_str(&format!(
                "\nvolume {} still has copies that are not in sync on {}",
                after.head.name,
                others.join(", ")
            ));
        }
        for loss in losses.iter().filter(|loss| loss.below_copies > 0) {
            text.push_str(&format!(
                "\n{} chunks of {} have too few copies {}: `ukai-tools volume add-location {} --node ...`",
                loss.below_copies,
                loss.volume,
                if dry_run { "then" } else { "now" },
                loss.volume
            ));
        }
        let end = if dry_run {
            format!("node {name} would be forgotten")
        } else {
            format!("node {name} is forgotten: its name is free, its uuid ({id}) may not come back")
        };
        format!("{text}\n{end}").trim_start().to_owned()
    });
}

fn losses_table(losses: &[Loss]) -> String {
    let count = |n: u32| if n == 0 { "-".into() } else { n.to_string() };
    let rows = losses
        .iter()
        .map(|loss| {
            vec![
                loss.volume.clone(),
                count(loss.in_sync),
                count(loss.joining),
                count(loss.stale),
                count(loss.leaving),
                count(loss.below_copies),
            ]
        })
        .collect();
    let columns = [
        ("volume", Align::Left),
        ("in-sync", Align::Right),
        ("joining", Align::Right),
        ("stale", Align::Right),
        ("leaving", Align::Right),
        ("then too few copies", Align::Right),
    ];
    table(&columns, rows)
}
