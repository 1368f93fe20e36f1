//! `volume map`: where every chunk range lies.

use crate::cli::Map;
use crate::context::{Context, Names};
use crate::error::Result;
use crate::picture::{Cell, picture};
use crate::range::bytes_of;
use crate::table::{Align, table};
use crate::units::ByteSize;
use serde_json::json;
use std::io::IsTerminal as _;
use ukai_meta::{Replica, ReplicaState};

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
    if args.picture {
        return show_picture(context, &runs, &names);
    }
    for run in &mut runs {
        run.replicas
            .sort_by_cached_key(|r| (names.site(r.node), names.name(r.node)));
    }
    let value = json!({
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

/// One cell for each chunk, or for some where there are many.
fn show_picture(context: &Context, runs: &[Run], names: &Names) -> Result<()> {
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
        let own = in_sync(run).into_iter();
        let cell = Cell {
            sites: own
                .filter_map(|site| sites.binary_search(&site).ok())
                .collect(),
            heat: 0.0,
        };
        cells.extend(std::iter::repeat_n(cell, run.count as usize));
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
