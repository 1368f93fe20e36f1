//! What the planner needs to know, from the metadata store and from the nodes; and everything that had to
//! be assumed because nobody knows it.

use super::args::PlanArgs;
use super::latency::{add_overhead, models, overhead, overhead_text};
use super::plan::Ask;
use super::problem::{Heat, Known, Node, NodeModel, Rules};
use super::together::Measured;
use crate::client::{ClientError, NodeClient, block_on, shards};
use crate::context::{Context, Names};
use crate::error::{Result, ToolError};
use crate::report::{Told, told};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};
use ukai_meta::map::VolumeMap;
use ukai_meta::{NodeLatency, NodeRecord, NodeState, ReplicaState, catalog};
use ukai_proto::message::read_chunk_list;
use ukai_proto::{ChunkIndex, ClusterId, Flags, Generation, Header, NodeId, Opcode};

/// Measurements older than this are mentioned as old: a day.
const OLD_S: u64 = 86_400;

/// Everything about one volume and where it is used.
pub(crate) struct Gathered {
    /// Where it is, or shall be, used; absent: nobody said, and nobody has it attached.
    pub(crate) host: Option<String>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) heat: Option<Heat>,
    pub(crate) written: Option<Vec<bool>>,
    pub(crate) told: Option<Told>,
    pub(crate) assumed: Vec<String>,
    pub(crate) overhead_us: Option<[f64; 2]>,
    /// If copies are only added: nodes as the host sees them that has the volume attached now.
    pub(crate) present: Option<BTreeMap<NodeId, NodeModel>>,
    /// How much nodes were slow together.
    pub(crate) measured: Option<Measured>,
}

impl Gathered {
    pub(crate) fn known(&self) -> Known<'_> {
        Known {
            nodes: self.nodes.clone(),
            heat: self.heat.as_ref(),
            written: self.written.as_deref(),
        }
    }
}

#[allow(clippy::disallowed_methods)] // the age of what was measured
pub(crate) fn now_unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// What is asked, checked against what there is.
pub(crate) fn ask(
    map: &VolumeMap,
    nodes: &[NodeState],
    args: &PlanArgs,
    host: &str,
    curve: bool,
) -> Result<Ask> {
    let sites: BTreeSet<&str> = nodes.iter().map(|node| node.record.site.as_str()).collect();
    let named = args
        .copies
        .iter()
        .map(|place| &place.0.site)
        .chain(&args.only_sites)
        .chain(&args.to_site);
    for site in named {
        if !sites.contains(site.as_str()) {
            let known: Vec<&str> = sites.iter().copied().collect();
            return Err(
                ToolError::not_found(format!("no node belongs to site {site:?}"))
                    .next(format!("sites are: {}", known.join(", "))),
            );
        }
    }
    for one in &args.assume {
        let is_node = |node: &NodeState| crate::place::is_called(node, &one.who);
        if !sites.contains(one.who.as_str()) && !nodes.iter().any(is_node) {
            return Err(ToolError::not_found(format!(
                "--assume {one}: no node and no site is called so"
            )));
        }
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = args.copies.iter().find(|place| !seen.insert(&place.0.site)) {
        return Err(ToolError::usage(format!(
            "site {} is named twice in --copies",
            twice.0.site
        )));
    }
    let copies: usize = args
        .copies
        .iter()
        .map(|place| usize::from(place.0.copies))
        .sum();
    if copies > crate::place::COPIES_MAX {
        return Err(ToolError::usage(format!(
            "{copies} copies; at most {} are possible",
            crate::place::COPIES_MAX
        )));
    }
    let rules = Rules {
        copies: args.copies.iter().map(|place| place.0.clone()).collect(),
        only_sites: args.only_sites.clone(),
        to_site: args.to_site.clone(),
        keep_sites: args.copies.is_empty() && args.only_sites.is_empty() && args.to_site.is_none(),
        only_add: args.only_add,
    };
    Ok(Ask {
        host: host.into(),
        targets: args.target.clone(),
        rules,
        range: Some(
            args.range
                .resolve(map.head.size_bytes, map.head.chunk_bytes)?,
        ),
        curve,
        share: args.share,
        present: None,
        measured: None,
    })
}

/// Asks everyone.
pub(crate) fn gather(context: &Context, map: &VolumeMap, args: &PlanArgs) -> Result<Gathered> {
    let states = context.nodes()?;
    let names = context.names_of(&states);
    let cluster = context.cluster()?.cluster;
    let evacuated: Vec<NodeId> = args
        .evacuate
        .iter()
        .map(|name| Ok(context.node(name)?.record.node))
        .collect::<Result<_>>()?;
    let told = told(cluster, &names, map);
    let attached = map.head.attach.as_ref().map(|attach| attach.host.clone());
    let host = args.host.clone().or(attached.clone());
    let mut out = Gathered {
        host: host.clone(),
        nodes: states
            .iter()
            .map(|state| node(state, evacuated.contains(&state.record.node)))
            .collect(),
        heat: None,
        written: None,
        told,
        assumed: Vec::new(),
        overhead_us: None,
        present: None,
        measured: None,
    };
    for node in map.nodes() {
        if names.state(node).is_none() {
            out.nodes.push(gone(node, evacuated.contains(&node)));
        }
    }
    out.read_heat(map);
    if let Some(host) = &host {
        out.read_latencies(context, map, &states, host, args)?;
    }
    out.written = block_on(written(cluster, &names, map));
    if out.written.is_none() {
        out.assumed
            .push("which chunks hold data is not known: each counts whole".into());
    }
    Ok(out)
}

/// What was told before nodes were dated is as old as the record.
fn dated(mut nodes: Vec<NodeLatency>, at_unix_s: u64) -> Vec<NodeLatency> {
    let undated = nodes.iter_mut().filter(|node| node.at_unix_s == 0);
    undated.for_each(|node| node.at_unix_s = at_unix_s);
    nodes
}

/// Nodes of which nobody has told anything for long.
fn old_text(
    records: &[NodeRecord],
    own: &[NodeLatency],
    front: &[NodeLatency],
    host: &str,
) -> Option<String> {
    let now = now_unix_s();
    let age_s = |node: NodeId| {
        let told = own.iter().chain(front).filter(|known| known.node == node);
        Some(now.saturating_sub(told.map(|known| known.at_unix_s).max()?))
    };
    let old: Vec<(&str, u64)> = records
        .iter()
        .filter_map(|record| Some((record.name.as_str(), age_s(record.node)?)))
        .filter(|(_, age_s)| *age_s > OLD_S)
        .collect();
    let days = old.iter().map(|(_, age_s)| age_s / OLD_S).max()?;
    let names: Vec<&str> = old.iter().map(|(name, _)| *name).collect();
    Some(format!(
        "{}: last measured from {host} up to {days} days ago; `ukai-tools probe` there measures again",
        names.join(", ")
    ))
}

fn node(state: &NodeState, is_evacuated: bool) -> Node {
    let record = &state.record;
    Node {
        id: record.node,
        name: record.name.clone(),
        site: record.site.clone(),
        is_alive: state.live.is_some(),
        is_draining: record.draining,
        is_evacuated,
        free_bytes: state.live.as_ref().map_or(0, |live| {
            record.capacity_bytes.saturating_sub(live.used_bytes)
        }),
        model: None,
    }
}

/// A node whose record is gone.
fn gone(node: NodeId, is_evacuated: bool) -> Node {
    Node {
        id: node,
        name: node.to_string(),
        site: "?".into(),
        is_alive: false,
        is_draining: false,
        is_evacuated,
        free_bytes: 0,
        model: None,
    }
}

impl Gathered {
    fn read_heat(&mut self, map: &VolumeMap) {
        let heat = self.told.as_ref().and_then(|told| told.heat.as_ref());
        let Some(heat) = heat.filter(|heat| {
            heat.chunks
                .iter()
                .any(|chunk| chunk.reads > 0 || chunk.writes > 0)
        }) else {
            self.assumed.push(
                "how much each chunk is used is not known (no front told it): all that hold data count the same".into(),
            );
            return;
        };
        self.heat = Some(Heat::told(heat, map.chunk_count()));
    }

    fn read_latencies(
        &mut self,
        context: &Context,
        map: &VolumeMap,
        states: &[NodeState],
        host: &str,
        args: &PlanArgs,
    ) -> Result<()> {
        let records: Vec<NodeRecord> = states.iter().map(|state| state.record.clone()).collect();
        let own = |host: &str| -> Result<Vec<NodeLatency>> {
            Ok(catalog::host_latency(&*context.store, host)?
                .map_or_else(Vec::new, |record| dated(record.nodes, record.at_unix_s)))
        };
        let front = self.told.as_ref().map(|told| told.front.clone());
        let of_front = |at: &str| {
            front
                .iter()
                .filter(|front| front.host == at)
                .flat_map(|front| dated(front.nodes.clone(), front.at_unix_s))
                .collect::<Vec<_>>()
        };
        let (own_here, front_here) = (own(host)?, of_front(host));
        self.assumed
            .extend(old_text(&records, &own_here, &front_here, host));
        let mut found = models(&records, &own_here, &front_here, &args.assume);
        self.assumed.append(&mut found.assumed);
        let overhead = front.as_ref().and_then(overhead);
        if let (Some(front), Some(overhead)) = (&front, &overhead) {
            let overhead_us = overhead.each_ref().map(|one| one.quantile(0.5));
            self.overhead_us = Some(overhead_us);
            self.assumed.push(overhead_text(overhead_us, &front.host));
            add_overhead(&mut found.models, overhead);
        }
        if self.overhead_us.is_none() {
            self.assumed.push(
                "the front's own time is not known: the guest will see a little more than what the nodes take".into(),
            );
        }
        if let Some(attach) = map.head.attach.as_ref().filter(|_| args.only_add) {
            let at = attach.host.as_str();
            let mut present = models(&records, &own(at)?, &of_front(at), &[]).models;
            if let Some(overhead) = &overhead {
                add_overhead(&mut present, overhead);
            }
            self.present = Some(present);
        }
        self.measured = front.as_ref().and_then(Measured::of);
        for node in &mut self.nodes {
            node.model = found.models.remove(&node.id);
        }
        Ok(())
    }
}

/// By chunk: whether any in-sync replica holds data. `None`: some chunk has no such replica on a node that
/// answers.
async fn written(cluster: ClusterId, names: &Names, map: &VolumeMap) -> Option<Vec<bool>> {
    let mut answered = BTreeSet::new();
    let mut out = vec![false; map.chunk_count() as usize];
    for node in map.nodes() {
        let Some(state) = names.state(node).filter(|state| state.live.is_some()) else {
            continue;
        };
        // A node that was never fenced for this volume refuses; another may do.
        if written_on(cluster, &state.record, map, &mut out)
            .await
            .is_ok()
        {
            answered.insert(node);
        }
    }
    let covered = |set: &[ukai_meta::Replica]| {
        set.iter().any(|replica| {
            replica.state == ReplicaState::InSync && answered.contains(&replica.node)
        })
    };
    map.sets_in_use()
        .all(|set| covered(map.set(set)))
        .then_some(out)
}

async fn written_on(
    cluster: ClusterId,
    record: &NodeRecord,
    map: &VolumeMap,
    out: &mut [bool],
) -> std::result::Result<(), ClientError> {
    for shard in shards(record) {
        let mut client = NodeClient::connect(cluster, record, shard).await?;
        let mut start = ChunkIndex(0);
        loop {
            let request = Header {
                volume: map.head.volume,
                token: map.head.token,
                generation: Generation(0),
                chunk: start,
                ..Header::request(Opcode::WrittenSince, 0)
            };
            let reply = client.request(request, Vec::new()).await?;
            let chunks = read_chunk_list(&reply.aux)?;
            for chunk in &chunks {
                if let Some(written) = out.get_mut(chunk.0 as usize) {
                    *written = true;
                }
            }
            match chunks.last() {
                Some(last)
                    if reply.header.flags.has(Flags::MORE)
                        && *last >= start
                        && last.0 < u32::MAX =>
                {
                    start = ChunkIndex(last.0 + 1);
                }
                _ => break,
            }
        }
    }
    Ok(())
}
