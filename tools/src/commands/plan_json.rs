//! A plan for programs.

use super::plan::chunks_of;
use crate::context::Names;
use crate::range::bytes_of;
use crate::relocate::Planned;
use serde_json::{Value, json};
use ukai_meta::map::VolumeMap;
use ukai_proto::NodeId;

/// Everything the planner found, with names of nodes.
pub(super) fn to_json(map: &VolumeMap, planned: &Planned, names: &Names) -> Value {
    let plan = &planned.plan;
    let list = |nodes: &[NodeId]| {
        nodes
            .iter()
            .map(|node| names.name(*node))
            .collect::<Vec<_>>()
    };
    let breaking: Vec<Value> = plan
        .breaking
        .iter()
        .map(|range| {
            let (start, end) = bytes_of(chunks_of(range), map.head.size_bytes, map.head.chunk_bytes);
            json!({ "first_chunk": range.first_chunk, "chunks": range.chunks, "start_byte": start, "end_byte": end,
                    "nodes": list(&range.nodes), "kind": range.kind, "load": range.load, "latency_us": range.latency_us })
        })
        .collect();
    let moves: Vec<Value> = plan
        .moves
        .iter()
        .map(|one| {
            json!({ "add": list(&one.goal.add), "remove": list(&one.goal.remove), "copies": one.goal.copies,
                    "chunks": one.chunks, "bytes": one.bytes, "wan_bytes": one.wan_bytes,
                    "reads": one.reads, "writes": one.writes })
        })
        .collect();
    json!({
        "volume": map.head.name, "id": map.head.volume, "host": planned.gathered.host,
        "now": plan.now, "after": plan.after, "reads_now": plan.reads_now, "reads_after": plan.reads_after,
        "targets": plan.targets, "margin": plan.margin, "breaking": breaking, "moves": moves,
        "chunks_moved": plan.chunks_moved, "chunks_total": map.chunk_count(),
        "bytes_moved": plan.bytes_moved, "bytes_min": plan.bytes_min, "wan_bytes": plan.wan_bytes,
        "filled_chunks": plan.goals.filled_chunks, "left_out_chunks": plan.goals.left_out_chunks,
        "rate_bytes_per_s": planned.rate_bytes_per_s, "rate_given": planned.is_rate_given, "eta_s": planned.eta_s(),
        "heat_known": { "read": plan.heat_known[0], "write": plan.heat_known[1] },
        "dependence": plan.dependence.alpha(),
        "overhead_us": planned.gathered.overhead_us.map(|us| json!({ "read": us[0], "write": us[1] })),
        "impossible": plan.impossible, "curve": plan.curve, "assumed": planned.gathered.assumed,
        "goals": { "sets": plan.goals.sets, "ranges": plan.goals.goals },
    })
}
