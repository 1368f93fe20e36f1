//! `volume list` and `volume show`.

use crate::context::{Context, Names};
use crate::error::{Result, ToolError};
use crate::place::place_text;
use crate::table::{Align, fields, table};
use crate::units::ByteSize;
use serde::Serialize;
use serde_json::json;
use ukai_meta::catalog::{self, CatalogError, VolumeName};
use ukai_meta::map::VolumeMap;
use ukai_meta::{Durability, ReplicaState, VolumeHead};

/// Chunks by how far they are from what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Condition {
    pub(super) chunks: u32,
    /// Fewer in-sync copies than the placement asks for.
    pub(super) degraded: u32,
    /// Some replica is being filled or resynchronised.
    pub(super) joining: u32,
    /// Some replica missed writes.
    pub(super) stale: u32,
    /// Some replica waits to be deleted.
    pub(super) leaving: u32,
}

impl Condition {
    pub(super) fn of(map: &VolumeMap) -> Self {
        let wanted: usize = map
            .head
            .place
            .iter()
            .map(|rule| usize::from(rule.copies))
            .sum();
        let mut out = Self::default();
        for (range, set) in map.runs() {
            let has = |state| map.set(set).iter().any(|replica| replica.state == state);
            let in_sync = map
                .set(set)
                .iter()
                .filter(|r| r.state == ReplicaState::InSync)
                .count();
            let add = |to: &mut u32, yes: bool| *to += if yes { range.count } else { 0 };
            add(&mut out.chunks, true);
            add(&mut out.degraded, in_sync < wanted);
            add(&mut out.joining, has(ReplicaState::Joining));
            add(&mut out.stale, has(ReplicaState::Stale));
            add(&mut out.leaving, has(ReplicaState::Leaving));
        }
        out
    }

    /// Nothing to do for anyone.
    pub(super) fn settled(&self) -> bool {
        self.joining == 0 && self.stale == 0 && self.leaving == 0
    }

    /// One word for lists, most urgent first.
    fn word(&self) -> &'static str {
        match self {
            Self { stale: 1.., .. } => "stale copies",
            Self { joining: 1.., .. } => "joining",
            Self { degraded: 1.., .. } => "few copies",
            Self { leaving: 1.., .. } => "leaving",
            _ => "in sync",
        }
    }
}

fn state_word(map: &VolumeMap) -> &'static str {
    if map.head.deleting {
        "deleting"
    } else {
        Condition::of(map).word()
    }
}

fn durability_word(durability: Durability) -> &'static str {
    match durability {
        Durability::Cache => "cache",
        Durability::Through => "through",
    }
}

/// A volume in a list: one that is damaged must not hide the others.
struct Listed {
    name: String,
    head: Option<VolumeHead>,
    state: &'static str,
}

fn listed(context: &Context, name: &VolumeName) -> (Listed, Option<ToolError>) {
    let store = &*context.store;
    let (head, state, error) = match catalog::load_volume(store, name.volume) {
        Ok(map) => {
            let state = state_word(&map);
            (Some(map.head), state, None)
        }
        // Its chunks are gone, some of its records are not.
        Err(CatalogError::Deleting(_)) => (
            catalog::load_head(store, name.volume).ok(),
            "deleting",
            None,
        ),
        Err(error) => {
            let error = ToolError::from(error).context(format_args!("volume {}", name.name));
            (None, "unreadable", Some(error))
        }
    };
    let name = name.name.clone();
    (Listed { name, head, state }, error)
}

pub(super) fn list(context: &Context) -> Result<()> {
    context.cluster()?;
    let names = catalog::list_volumes(&*context.store)?;
    let (volumes, errors): (Vec<_>, Vec<_>) =
        names.iter().map(|name| listed(context, name)).unzip();
    let value: Vec<_> = volumes
        .iter()
        .map(|listed| {
            let head = listed.head.as_ref();
            json!({ "name": listed.name, "id": head.map(|head| head.volume),
                    "size_bytes": head.map(|head| head.size_bytes),
                    "chunk_bytes": head.map(|head| head.chunk_bytes),
                    "place": head.map(|head| &head.place),
                    "attached": head.and_then(|head| head.attach.as_ref()).map(|attach| &attach.host),
                    "state": listed.state })
        })
        .collect();
    context.output.show(&value, || {
        if volumes.is_empty() {
            return "no volumes; make one with `ukai-tools volume create`".into();
        }
        let row = |listed: &Listed| {
            let show = |cell: fn(&VolumeHead) -> String| {
                listed.head.as_ref().map_or_else(|| "?".into(), cell)
            };
            vec![
                listed.name.clone(),
                show(|head| ByteSize(head.size_bytes).to_string()),
                show(|head| ByteSize(head.chunk_bytes).to_string()),
                show(|head| place_text(&head.place)),
                show(|head| {
                    head.attach
                        .as_ref()
                        .map_or("-".into(), |attach| attach.host.clone())
                }),
                listed.state.into(),
            ]
        };
        table(
            &[
                ("name", Align::Left),
                ("size", Align::Right),
                ("chunk", Align::Right),
                ("place", Align::Left),
                ("attached on", Align::Left),
                ("state", Align::Left),
            ],
            volumes.iter().map(row).collect(),
        )
    });
    errors.into_iter().flatten().next().map_or(Ok(()), Err)
}

pub(super) fn show(context: &Context, name: &str) -> Result<()> {
    let map = context.volume(name)?;
    let names = context.names()?;
    let front = context.front(&map.head)?;
    let head = &map.head;
    let condition = Condition::of(&map);
    let per_node = per_node(&map, &names);
    let health: Vec<_> = head
        .health
        .iter()
        .map(|(node, health)| json!({ "node": names.name(*node), "id": node, "health": health }))
        .collect();
    let value = json!({
        "name": head.name, "id": head.volume, "size_bytes": head.size_bytes,
        "chunk_bytes": head.chunk_bytes, "durability": head.durability, "place": head.place,
        "token": head.token, "generation": head.generation, "attach": head.attach,
        "front": front, "deleting": head.deleting, "health": health,
        "state": state_word(&map), "chunks": condition, "nodes": per_node,
    });
    context.output.show(&value, || {
        let attached = match (&head.attach, &front) {
            (None, _) => "no".into(),
            (Some(attach), Some(front)) => {
                format!(
                    "on {} as {} (process {})",
                    attach.host, front.device, front.pid
                )
            }
            (Some(attach), None) => {
                format!(
                    "on {}, but its front does not answer (stopped, or cut off)",
                    attach.host
                )
            }
        };
        let mut lines = vec![
            ("name", head.name.clone()),
            ("id", head.volume.to_string()),
            (
                "size",
                format!("{} ({} bytes)", ByteSize(head.size_bytes), head.size_bytes),
            ),
            (
                "chunks",
                format!("{} of {}", condition.chunks, ByteSize(head.chunk_bytes)),
            ),
            ("durability", durability_word(head.durability).into()),
            ("place", place_text(&head.place)),
            ("attached", attached),
            ("state", state_word(&map).into()),
            ("token", head.token.to_string()),
            ("generation", head.generation.to_string()),
        ];
        for (label, count) in [
            ("  few copies", condition.degraded),
            ("  joining", condition.joining),
            ("  stale", condition.stale),
            ("  leaving", condition.leaving),
        ] {
            if count > 0 {
                lines.push((label, format!("{count} of {} chunks", condition.chunks)));
            }
        }
        format!("{}\n\n{}", fields(&lines), per_node_table(&per_node))
    });
    Ok(())
}

/// What one node holds of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
struct Share {
    node: String,
    site: String,
    alive: bool,
    in_sync: u32,
    joining: u32,
    stale: u32,
    leaving: u32,
    /// First generation whose writes it may lack.
    missed_since: Option<u32>,
}

fn per_node(map: &VolumeMap, names: &Names) -> Vec<Share> {
    let share = |node| {
        let mut share = Share {
            node: names.name(node),
            site: names.site(node),
            alive: names.is_alive(node),
            missed_since: map.health(node).map(|health| health.since().0),
            ..Share::default()
        };
        for (range, set) in map.runs() {
            let state = map
                .set(set)
                .iter()
                .find(|r| r.node == node)
                .map(|r| r.state);
            match state {
                Some(ReplicaState::InSync) => share.in_sync += range.count,
                Some(ReplicaState::Joining) => share.joining += range.count,
                Some(ReplicaState::Stale) => share.stale += range.count,
                Some(ReplicaState::Leaving) => share.leaving += range.count,
                None => {}
            }
        }
        share
    };
    let mut shares: Vec<Share> = map.nodes().into_iter().map(share).collect();
    shares.sort_by(|a, b| (&a.site, &a.node).cmp(&(&b.site, &b.node)));
    shares
}

fn per_node_table(shares: &[Share]) -> String {
    let count = |n: u32| if n == 0 { "-".into() } else { n.to_string() };
    let rows = shares
        .iter()
        .map(|share| {
            vec![
                share.node.clone(),
                share.site.clone(),
                if share.alive { "yes" } else { "no" }.into(),
                count(share.in_sync),
                count(share.joining),
                count(share.stale),
                count(share.leaving),
                share
                    .missed_since
                    .map_or("-".into(), |g| format!("generation {g}")),
            ]
        })
        .collect();
    table(
        &[
            ("node", Align::Left),
            ("site", Align::Left),
            ("alive", Align::Left),
            ("in-sync", Align::Right),
            ("joining", Align::Right),
            ("stale", Align::Right),
            ("leaving", Align::Right),
            ("missed since", Align::Left),
        ],
        rows,
    )
}
