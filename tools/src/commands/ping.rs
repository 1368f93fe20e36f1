//! `node ping`: round trips to each shard, as a distribution.

use crate::cli::Ping;
use crate::client::{ClientError, NodeClient, block_on, shards};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::progress::Progress;
use crate::table::{Align, table};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};
use ukai_meta::NodeRecord;
use ukai_proto::{ClusterId, Header, Opcode, ShardIndex};

/// Round trips before those that count.
const WARM_UP: u32 = 3;

/// Round trips to one shard, microseconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct RoundTrips {
    shard: u16,
    count: u64,
    min_us: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

pub(super) fn ping(context: &Context, args: &Ping) -> Result<()> {
    let node = context.node(&args.name.node)?;
    let cluster = context.cluster()?.cluster;
    let mut rows = Vec::new();
    let progress = Progress::new(
        &format!("ping {}", node.record.name),
        u64::from(args.count) * u64::from(node.record.shard_count),
    );
    for shard in shards(&node.record) {
        let histogram = block_on(round_trips(
            cluster,
            &node.record,
            shard,
            args.count,
            Duration::ZERO,
            &progress,
        ))
        .map_err(|error| {
            ToolError::refused(format!("node {} shard {shard}: {error}", node.record.name))
                .next("`ukai-tools node show` tells its addresses and whether it is alive")
        })?;
        #[allow(clippy::cast_precision_loss)] // nanoseconds below 2^53
        let us = |ns: u64| ns as f64 / 1000.0;
        rows.push(RoundTrips {
            shard: shard.0,
            count: histogram.len(),
            min_us: us(histogram.min()),
            p50_us: us(histogram.value_at_quantile(0.5)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            max_us: us(histogram.max()),
        });
    }
    drop(progress);
    context.output.show(&rows, || {
        let columns = [
            ("shard", Align::Right),
            ("count", Align::Right),
            ("min us", Align::Right),
            ("p50 us", Align::Right),
            ("p99 us", Align::Right),
            ("max us", Align::Right),
        ];
        let cells = |row: &RoundTrips| {
            let times = [row.min_us, row.p50_us, row.p99_us, row.max_us];
            let mut cells = vec![row.shard.to_string(), row.count.to_string()];
            cells.extend(times.iter().map(|us| format!("{us:.1}")));
            cells
        };
        table(&columns, rows.iter().map(cells).collect())
    });
    Ok(())
}

#[allow(clippy::disallowed_methods)] // measuring is the purpose
pub(super) async fn round_trips(
    cluster: ClusterId,
    record: &NodeRecord,
    shard: ShardIndex,
    count: u32,
    pause: Duration,
    progress: &Progress,
) -> std::result::Result<Histogram<u64>, ClientError> {
    // 3 digits from 1 ns to a minute: 200 KiB, and above what the client's timeout lets through.
    let mut histogram =
        Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds are constant");
    let mut client = NodeClient::connect(cluster, record, shard).await?;
    // The first ones meet cold caches on both sides.
    for _ in 0..WARM_UP {
        client
            .request(Header::request(Opcode::Ping, 0), Vec::new())
            .await?;
    }
    for _ in 0..count {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let sent = Instant::now();
        client
            .request(Header::request(Opcode::Ping, 0), Vec::new())
            .await?;
        histogram.saturating_record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
        progress.advance();
    }
    Ok(histogram)
}
