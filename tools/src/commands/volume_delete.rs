//! `volume delete`: mark, fence and delete on every node, then forget. Each step may be repeated, so
//! an interrupted deletion is finished by the same command.

use crate::cli::Delete;
use crate::client::{ClientError, NodeClient, block_on, shards};
use crate::context::{Context, Names};
use crate::error::{Result, ToolError};
use crate::table::warn;
use crate::units::ByteSize;
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::map::VolumeMap;
use ukai_meta::{NodeRecord, VolumeHead, transition};
use ukai_proto::{ClusterId, Header, NodeId, Opcode};

pub(super) fn delete(context: &Context, args: &Delete) -> Result<()> {
    let name = &args.name.volume;
    let id = context.volume_id(name)?;
    let map = match catalog::load_volume(&*context.store, id) {
        Ok(map) => map,
        // The nodes were done with; only records are left.
        Err(CatalogError::Deleting(_)) => {
            if !args.dry_run {
                catalog::delete_volume(&*context.store, id)?;
            }
            return report(context, args, &[], &[]);
        }
        Err(error) => return Err(ToolError::from(error).context(format_args!("volume {name}"))),
    };
    // Refused while attached, before anybody is asked or any node is spoken to.
    context.preview(&map, transition::begin_delete)?;
    let names = context.names()?;
    let cluster = context.cluster()?.cluster;
    let (nodes, unreachable) = reachable(cluster, &map, &names);
    if !unreachable.is_empty() && !args.abandon_unreachable {
        return Err(ToolError::refused(format!(
            "volume {name} has data on nodes that do not answer: {}",
            unreachable.join("; ")
        ))
        .next("nothing was changed; start them, or give --abandon-unreachable if they never come back"));
    }
    let mut on: Vec<String> = map
        .nodes()
        .into_iter()
        .map(|node| names.name(node))
        .collect();
    on.sort();
    if args.dry_run {
        return report(context, args, &on, &unreachable);
    }
    if !args.yes {
        confirm(&map.head, &on)?;
    }
    let map = match context.change(map.clone(), transition::begin_delete)? {
        Some(marked) => marked,
        None => map,
    };
    for record in &nodes {
        block_on(delete_on(cluster, record, &map.head)).map_err(|error| {
            ToolError::refused(format!("delete {name} on node {}: {error}", record.name)).next(
                "the volume is marked as deleting and can no longer be attached; repeat the command to finish",
            )
        })?;
    }
    for node in &unreachable {
        warn(&format!("data of {name} stays behind on {node}"));
    }
    catalog::delete_volume(&*context.store, id)?;
    report(context, args, &on, &unreachable)
}

/// Nodes of the volume that answer on every shard, and what is wrong with the others.
fn reachable(cluster: ClusterId, map: &VolumeMap, names: &Names) -> (Vec<NodeRecord>, Vec<String>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for node in map.nodes() {
        match names.state(node) {
            None => bad.push(unknown(node)),
            Some(state) => match block_on(probe(cluster, &state.record)) {
                Ok(()) => good.push(state.record.clone()),
                Err(error) => bad.push(format!("{}: {error}", state.record.name)),
            },
        }
    }
    (good, bad)
}

fn unknown(node: NodeId) -> String {
    format!("{node}: its record is gone from the metadata store")
}

async fn probe(cluster: ClusterId, record: &NodeRecord) -> std::result::Result<(), ClientError> {
    for shard in shards(record) {
        NodeClient::connect(cluster, record, shard).await?;
    }
    Ok(())
}

/// The token made by the deletion fences a front that still thinks it has the volume: nothing can be
/// written after the chunks are gone.
async fn delete_on(
    cluster: ClusterId,
    record: &NodeRecord,
    head: &VolumeHead,
) -> std::result::Result<(), ClientError> {
    for shard in shards(record) {
        let mut client = NodeClient::connect(cluster, record, shard).await?;
        for opcode in [Opcode::Fence, Opcode::DeleteVolume] {
            let request = Header {
                volume: head.volume,
                token: head.token,
                generation: head.generation,
                ..Header::request(opcode, 0)
            };
            client.request(request, Vec::new()).await?;
        }
    }
    Ok(())
}

fn confirm(head: &VolumeHead, on: &[String]) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(ToolError::usage(
            "deleting needs --yes when nobody can be asked",
        ));
    }
    eprint!(
        "delete volume {} ({}) and its data on {}? Type its name: ",
        head.name,
        ByteSize(head.size_bytes),
        on.join(", ")
    );
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    if answer.trim() == head.name {
        return Ok(());
    }
    Err(ToolError::refused("not confirmed; nothing was changed"))
}

fn report(context: &Context, args: &Delete, on: &[String], left: &[String]) -> Result<()> {
    let name = &args.name.volume;
    let value =
        json!({ "volume": name, "dry_run": args.dry_run, "nodes": on, "left_behind": left });
    context
        .output
        .show(&value, || match (args.dry_run, on.is_empty()) {
            (true, true) => format!("would remove the records of volume {name}"),
            (true, false) => format!(
                "would delete volume {name} and its data on {}",
                on.join(", ")
            ),
            (false, _) => format!("deleted volume {name}"),
        });
    Ok(())
}
