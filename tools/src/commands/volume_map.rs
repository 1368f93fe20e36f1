//! `volume map`: where every chunk range lies.

use crate::cli::Map;
use crate::context::{Context, Names};
use crate::error::Result;
use crate::picture::{Cell, picture};
use crate::range::bytes_of;
use crate::report::told;
use crate::table::{Align, table};
use crate::units::ByteSize;
use serde_json::json;
use std::io::IsTerminal as _;
use ukai_meta::map::VolumeMap;
use ukai_meta::{Replica, ReplicaState};
use ukai_proto::message::ChunkRange;

/// One row: neighbouring chunks with equal replicas.
struct Run {
    first: u32,
    count: u32,
    start: u64,
    end: u64,
    replicas: Vec<Replica>,
}

pub(super) fn map(context: &Context, args: &Map) -> Result<()> {
    let map = context.volume(&args.name.volume)?;
    let names = context.names()?;
    let (size, chunk) = (map.head.size_bytes, map.head.chunk_bytes);
    let wanted = args.range.resolve(size, chunk)?;
    let mut runs: Vec<Run> = Vec::new();
    for (range, set) in map.runs_in(wanted) {
        let (start, end) = bytes_of(range, size, chunk);
        match runs.last_mut() {
            // Different stored sets may look alike once the nodes' health is taken into account.
            Some(last) if last.replicas == map.set(set) => {
                last.count += range.count;
                last.end = end;
            }
            _ => runs.push(Run {
                first: range.start.0,
                count: range.count,
                start,
                end,
                replicas: map.set(set).to_vec(),
            }),
        }
    }
    let heat = if args.picture || args.heat {
        uses_per_s(context, &names, &map, wanted)?
    } else {
        Vec::new()
    };
    if args.picture {
        return show_picture(context, &runs, &names, &heat);
    }
    for run in &mut runs {
        run.replicas
            .sort_by_cached_key(|r| (names.site(r.node), names.name(r.node)));
    }
    let mut value = json!({
        "volume": map.head.name, "id": map.head.volume, "generation": map.head.generation,
        "size_bytes": size, "chunk_bytes": chunk,
        "runs": runs.iter().map(|run| json!({
            "first_chunk": run.first, "chunks": run.count, "start_byte": run.start, "end_byte": run.end,
            "replicas": run.replicas.iter().map(|replica| json!({
                "node": names.name(replica.node), "id": replica.node,
                "site": names.site(replica.node), "state": replica.state,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    if args.heat {
        value["uses_per_s"] = json!(heat);
    }
    context.output.show(&value, || {
        let rows = runs
            .iter()
            .map(|run| {
                let last = run.first + run.count - 1;
                let replicas: Vec<String> = run
                    .replicas
                    .iter()
                    .map(|r| format!("{} {}", names.name_and_site(r.node), state_word(r.state)))
                    .collect();
                vec![
                    if run.count == 1 {
                        run.first.to_string()
                    } else {
                        format!("{}-{last}", run.first)
                    },
                    format!("{}-{}", ByteSize(run.start), ByteSize(run.end)),
                    replicas.join(", "),
                ]
            })
            .collect();
        let columns = [
            ("chunks", Align::Left),
            ("bytes", Align::Left),
            ("replicas", Align::Left),
        ];
        table(&columns, rows)
    });
    Ok(())
}

/// Reads and writes per second of each chunk of the part, as the volume's front told last; zeros where it did not.
fn uses_per_s(
    context: &Context,
    names: &Names,
    map: &VolumeMap,
    part: ChunkRange,
) -> Result<Vec<f64>> {
    let told = told(context.cluster()?.cluster, names, map);
    let chunks = told
        .and_then(|told| told.heat)
        .map(|heat| heat.chunks)
        .unwrap_or_default();
    let all = (part.start.0..part.start.0 + part.count).map(|chunk| {
        let heat = usize::try_from(chunk)
            .ok()
            .and_then(|chunk| chunks.get(chunk));
        heat.map_or(0.0, |heat| heat.reads_per_s() + heat.writes_per_s())
    });
    Ok(all.collect())
}

/// One cell for each chunk, or for some where there are many.
fn show_picture(context: &Context, runs: &[Run], names: &Names, heat: &[f64]) -> Result<()> {
    let in_sync = |run: &Run| {
        let found = run.replicas.iter();
        let mut sites: Vec<String> = found
            .filter(|r| r.state == ReplicaState::InSync)
            .map(|r| names.site(r.node))
            .collect();
        sites.sort();
        sites
    };
    // Of the whole cluster, so that a site has one colour in the pictures of all volumes.
    let mut sites: Vec<String> = context
        .nodes()?
        .into_iter()
        .map(|n| n.record.site)
        .collect();
    sites.extend(runs.iter().flat_map(in_sync));
    sites.sort();
    sites.dedup();
    let mut cells = Vec::new();
    for run in runs {
        let own: Vec<usize> = in_sync(run)
            .iter()
            .filter_map(|site| sites.binary_search(site).ok())
            .collect();
        for _ in 0..run.count {
            cells.push(Cell {
                sites: own.clone(),
                heat: heat.get(cells.len()).copied().unwrap_or(0.0),
            });
        }
    }
    let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    print!("{}", picture(cells, &sites, coloured));
    Ok(())
}

pub(super) fn state_word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::InSync => "in-sync",
        ReplicaState::Joining => "joining",
        ReplicaState::Stale => "stale",
        ReplicaState::Leaving => "leaving",
    }
}
