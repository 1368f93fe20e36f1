//! `probe`: round trips from this host to every node, and the nodes' own service times, kept for
//! planners in the metadata store.

use super::ping::round_trips;
use crate::cli::Probe;
use crate::client::{ClientError, block_on, shards};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::progress::Progress;
use crate::report;
use crate::table::{Align, table, warn};
use hdrhistogram::Histogram;
use serde_json::json;
use std::time::{Duration, SystemTime};
use ukai_meta::{HostLatency, LatencyPoints, NodeLatency, NodeRecord, NodeState, catalog, key};
use ukai_proto::ClusterId;

/// Between questions: a node that is asked without a break is awake already, and looks nearer than it is for a guest.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) fn probe(context: &Context, args: &Probe) -> Result<()> {
    let host = match &args.host {
        Some(host) => host.clone(),
        None => own_name()?,
    };
    if !key::valid_name(&host) {
        return Err(
            ToolError::usage(format!("{host:?} is no host name")).next(key::NAME_RULE.to_owned())
        );
    }
    let nodes = wanted(context, &args.node)?;
    let cluster = context.cluster()?.cluster;
    let (mut known, mut silent) = (Vec::new(), Vec::new());
    let total = nodes.len() as u64 * u64::from(args.count);
    let progress = Progress::new("probe", total);
    for node in &nodes {
        let record = &node.record;
        progress.message(&format!("probe {}", record.name));
        match block_on(measure(cluster, record, args.count, &progress)) {
            Ok(latency) => known.push((record.clone(), latency)),
            Err(error) => silent.push((record.name.clone(), error.to_string())),
        }
    }
    drop(progress);
    for (name, error) in &silent {
        warn(&format!("node {name} does not answer: {error}"));
    }
    if known.is_empty() {
        return Err(ToolError::refused("no node answers; nothing was measured")
            .next("`ukai-tools node list` tells which are alive"));
    }
    let latency = HostLatency {
        host: host.clone(),
        at_unix_s: unix_s(),
        by: "probe".into(),
        nodes: known.iter().map(|(_, latency)| latency.clone()).collect(),
    };
    if !args.dry_run {
        catalog::put_host_latency(&*context.store, &latency)?;
    }
    let silent: Vec<_> = silent
        .iter()
        .map(|(node, error)| json!({ "node": node, "error": error }))
        .collect();
    let value = json!({ "written": !args.dry_run, "latency": latency, "silent": silent });
    context.output.show(&value, || {
        let end = if args.dry_run {
            "nothing was written (--dry-run)".into()
        } else {
            format!("written as seen from host {host}")
        };
        format!("{}\n\n{end}", latencies_table(&known))
    });
    Ok(())
}

/// The nodes named, or all that are alive.
fn wanted(context: &Context, names: &[String]) -> Result<Vec<NodeState>> {
    if !names.is_empty() {
        return names.iter().map(|name| context.node(name)).collect();
    }
    let (alive, dead): (Vec<_>, Vec<_>) = context
        .nodes()?
        .into_iter()
        .partition(|node| node.live.is_some());
    for node in dead {
        warn(&format!("node {} is not alive", node.record.name));
    }
    Ok(alive)
}

/// As the front calls its host.
fn own_name() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let text = text.map_err(|error| {
        ToolError::refused(format!("learn this host's name: {error}")).next("give it with --host")
    })?;
    Ok(text.trim().to_owned())
}

#[allow(clippy::disallowed_methods)] // a date for the record
fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// `count` round trips, spread over the shards, then what the node says of itself.
async fn measure(
    cluster: ClusterId,
    record: &NodeRecord,
    count: u32,
    progress: &Progress,
) -> std::result::Result<NodeLatency, ClientError> {
    let mut all: Option<Histogram<u64>> = None;
    for shard in shards(record) {
        let share = count.div_ceil(u32::from(record.shard_count));
        let one = round_trips(cluster, record, shard, share, PAUSE, progress).await?;
        match &mut all {
            None => all = Some(one),
            // Same bounds and precision, so adding cannot fail.
            Some(all) => drop(all.add(&one)),
        }
    }
    let network = all.and_then(|all| {
        #[allow(clippy::cast_precision_loss)] // nanoseconds below 2^53
        LatencyPoints::from_quantiles(all.len(), |quantile| {
            all.value_at_quantile(quantile) as f64 / 1000.0
        })
    });
    let service = report::service(cluster, record).await?;
    Ok(NodeLatency {
        at_unix_s: unix_s(),
        network,
        read_service: service.read,
        write_service: service.write,
        ..NodeLatency::of(record.node)
    })
}

fn latencies_table(known: &[(NodeRecord, NodeLatency)]) -> String {
    let at = |points: Option<LatencyPoints>, quantile| match points {
        Some(points) => format!("{:.1}", points.quantile(quantile)),
        None => "-".into(),
    };
    let cells = |(record, latency): &(NodeRecord, NodeLatency)| {
        let network = latency.network;
        let mut cells = vec![
            record.name.clone(),
            record.site.clone(),
            network.map_or("0".into(), |points| points.count.to_string()),
        ];
        for points in [network, latency.read_service, latency.write_service] {
            cells.extend([at(points, 0.5), at(points, 0.99)]);
        }
        cells
    };
    let columns = [
        ("node", Align::Left),
        ("site", Align::Left),
        ("round trips", Align::Right),
        ("p50 us", Align::Right),
        ("p99 us", Align::Right),
        ("read inside p50", Align::Right),
        ("p99", Align::Right),
        ("write inside p50", Align::Right),
        ("p99", Align::Right),
    ];
    table(&columns, known.iter().map(cells).collect())
}
