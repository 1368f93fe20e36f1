//! Which ranges of a volume are slower than its targets.

use super::outlook::set_quantile;
use super::problem::{NodeIndex, Problem};
use super::target::{Kind, Target};
use serde::Serialize;
use std::collections::HashMap;
use ukai_meta::ReplicaState;
use ukai_meta::map::VolumeMap;
use ukai_proto::NodeId;

/// Rows of ranges that are too slow.
const BREAKING_MAX: usize = 512;
/// Parts into which the volume is cut to show which of it is too slow.
const BREAKING_PARTS: u32 = 64;

/// Neighbouring parts whose load per chunk differs by less than this factor are shown as one.
const ALIKE: f64 = 1.25;

/// A range whose chunks are slower than a target, by themselves.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Breaking {
    pub(crate) first_chunk: u32,
    pub(crate) chunks: u32,
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) kind: Kind,
    /// Of the volume's requests of this kind.
    pub(crate) load: f64,
    /// At the target's percentile.
    pub(crate) latency_us: f64,
}

/// Ranges whose own latency is above a target's limit, the most loaded first. What nobody uses is left out.
pub(crate) fn breaking(problem: &Problem, map: &VolumeMap, targets: &[Target]) -> Vec<Breaking> {
    let part = map.chunk_count().div_ceil(BREAKING_PARTS).max(1);
    let index: HashMap<NodeId, NodeIndex> = (0..)
        .zip(&problem.nodes)
        .map(|(at, node)| (node.id, at))
        .collect();
    let mut out: Vec<Breaking> = Vec::new();
    for target in targets {
        for kind in target.kinds() {
            let loads = loads(problem, map.chunk_count(), kind);
            let mut slow = HashMap::new();
            for (run, set) in map.runs() {
                let (latency_us, nodes) = slow.entry(set).or_insert_with(|| {
                    let in_sync = map
                        .set(set)
                        .iter()
                        .filter(|replica| replica.state == ReplicaState::InSync);
                    let nodes: Vec<NodeId> = in_sync.map(|replica| replica.node).collect();
                    let at: Vec<NodeIndex> = nodes.iter().map(|node| index[node]).collect();
                    (
                        set_quantile(problem, &at, kind, target.percentile.probability()),
                        nodes,
                    )
                });
                #[allow(clippy::cast_precision_loss)] // at most 100 s
                if *latency_us <= target.limit.us as f64 {
                    continue;
                }
                let mut first_chunk = run.start.0;
                let end = first_chunk + run.count;
                while first_chunk < end {
                    let next = ((first_chunk / part + 1) * part).min(end);
                    let load = loads[first_chunk as usize..next as usize]
                        .iter()
                        .map(|load| f64::from(*load))
                        .sum();
                    let (chunks, nodes, latency_us) =
                        (next - first_chunk, nodes.clone(), *latency_us);
                    push(
                        &mut out,
                        Breaking {
                            first_chunk,
                            chunks,
                            nodes,
                            kind,
                            load,
                            latency_us,
                        },
                    );
                    first_chunk = next;
                }
            }
        }
    }
    out.sort_by(|a, b| {
        b.load
            .total_cmp(&a.load)
            .then(a.first_chunk.cmp(&b.first_chunk))
            .then(a.kind.cmp(&b.kind))
    });
    // Several targets of one kind.
    out.dedup_by(|a, b| (a.first_chunk, a.chunks, a.kind) == (b.first_chunk, b.chunks, b.kind));
    out.truncate(BREAKING_MAX);
    out
}

fn push(out: &mut Vec<Breaking>, next: Breaking) {
    if next.load <= 0.0 {
        return;
    }
    let density = |range: &Breaking| range.load / f64::from(range.chunks);
    if let Some(last) = out.last_mut() {
        let (a, b) = (density(last), density(&next));
        let is_alike = a.max(b) <= a.min(b) * ALIKE;
        let follows = last.first_chunk + last.chunks == next.first_chunk;
        if follows && is_alike && (last.kind, &last.nodes) == (next.kind, &next.nodes) {
            last.chunks += next.chunks;
            last.load += next.load;
            return;
        }
    }
    out.push(next);
}

/// Share of the volume's requests of a kind that each chunk gets.
fn loads(problem: &Problem, chunks: u32, kind: Kind) -> Vec<f32> {
    let mut out = vec![0.0; chunks as usize];
    for class in &problem.classes {
        #[allow(clippy::cast_possible_truncation)] // shown, no more
        let load = class.load(kind) as f32;
        for (start, count) in &class.runs {
            out[*start as usize..(start + count) as usize].fill(load);
        }
    }
    out
}
