//! `cluster init` and `cluster show`.

use crate::context::Context;
use crate::error::Result;
use crate::table::{Align, fields, table};
use crate::units::ByteSize;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use ukai_meta::catalog;
use ukai_proto::ClusterId;

/// Idempotent: scripts may call it each time.
pub(super) fn init(context: &Context) -> Result<()> {
    let id = ClusterId(context.random_id()?);
    let record = catalog::init_cluster(&*context.store, id)?;
    let created = record.cluster == id;
    let value = json!({ "cluster": record.cluster, "format": record.format, "created": created });
    context.output.show(&value, || {
        if created {
            format!("made cluster {} in {}", record.cluster, context.meta)
        } else {
            format!(
                "{} holds cluster {} already; nothing changed",
                context.meta, record.cluster
            )
        }
    });
    Ok(())
}

#[derive(Default, Serialize)]
struct Site {
    nodes: u32,
    alive: u32,
    capacity_bytes: u64,
    used_bytes: u64,
}

pub(super) fn show(context: &Context) -> Result<()> {
    let record = context.cluster()?;
    let nodes = context.nodes()?;
    let volumes = catalog::list_volumes(&*context.store)?.len();
    let mut sites: BTreeMap<String, Site> = BTreeMap::new();
    for node in &nodes {
        let site = sites.entry(node.record.site.clone()).or_default();
        site.nodes += 1;
        site.capacity_bytes += node.record.capacity_bytes;
        if let Some(live) = &node.live {
            site.alive += 1;
            site.used_bytes += live.used_bytes;
        }
    }
    let value = json!({ "cluster": record.cluster, "format": record.format, "meta": context.meta,
                        "nodes": nodes.len(), "volumes": volumes, "sites": sites });
    context.output.show(&value, || {
        let head = fields(&[
            ("cluster", record.cluster.to_string()),
            ("metadata", context.meta.clone()),
            ("nodes", nodes.len().to_string()),
            ("volumes", volumes.to_string()),
        ]);
        if sites.is_empty() {
            return format!(
                "{head}\n\nno nodes yet; make one with `chunkstore format` and `chunkstore run`"
            );
        }
        let rows = sites
            .iter()
            .map(|(name, site)| {
                vec![
                    name.clone(),
                    format!("{} of {}", site.alive, site.nodes),
                    ByteSize(site.capacity_bytes).about(),
                    ByteSize(site.used_bytes).about(),
                ]
            })
            .collect();
        let columns = [
            ("site", Align::Left),
            ("nodes alive", Align::Left),
            ("capacity", Align::Right),
            ("used", Align::Right),
        ];
        format!("{head}\n\n{}", table(&columns, rows))
    });
    Ok(())
}
