//! `scrub`: finds rot and differences between replicas, and repairs them.
//!
//! | file | what |
//! |-|-|
//! | `compare` | what the states of a sector's replicas mean (pure) |
//! | `rate` | the bound on what is read (pure) |
//! | `clients` | asking all replicas of a chunk at once |
//! | `walk` | chunk by chunk: verify, compare, repair, look again |
//! | `report` | the table and the JSON |

mod clients;
mod compare;
pub(crate) mod rate;
mod report;
mod walk;

use crate::cli::Scrub;
use crate::client::block_on;
use crate::context::Context;
use crate::error::{Result, ToolError};
use clients::Clients;
use rate::Rate;
use report::Report;
use std::collections::BTreeSet;
use std::time::Instant;
use ukai_proto::{Token, Version};
use walk::Walk;

#[allow(clippy::disallowed_methods)] // the rate is in the administrator's time
pub(crate) fn scrub(context: &Context, args: &Scrub) -> Result<()> {
    let name = &args.name.volume;
    let map = context.volume(name)?;
    if map.head.deleting {
        return Err(ToolError::busy(format!("volume {name} is being deleted"))
            .next("finish it with `ukai-tools volume delete`"));
    }
    let range = args
        .range
        .resolve(map.head.size_bytes, map.head.chunk_bytes)?;
    let report = Report {
        volume: name.clone(),
        range: args.range.to_string(),
        repair: !args.no_repair,
        rate_max_bytes_per_second: args.rate.0.0,
        ..Report::default()
    };
    let never_attached = map.head.token == Token(0);
    let mut walk = Walk {
        context,
        names: context.names()?,
        map,
        range,
        clients: Clients::new(context.cluster()?.cluster),
        rate: Rate::new(args.rate),
        settled: Version::ZERO,
        report,
        started: Instant::now(),
        lost: BTreeSet::new(),
        repaired_on: BTreeSet::new(),
    };
    let started = walk.started;
    // Nothing was ever written, and no node knows the volume.
    if !never_attached {
        block_on(walk.run())?;
    }
    let mut report = walk.report;
    report.finish(started.elapsed().as_secs_f64());
    context.output.show(&report, || report.text());
    verdict(&report)
}

/// The exit code.
fn verdict(report: &Report) -> Result<()> {
    let volume = &report.volume;
    let left = report.faults_left();
    if left > 0 {
        let error = ToolError::damaged(format!("{left} faults of volume {volume} are left"));
        return Err(if report.repair {
            error.next("bring back nodes that are away and scrub again; else restore these places from a backup, or write them anew")
        } else {
            error.next(format!(
                "`ukai-tools scrub {volume}` repairs what can be repaired"
            ))
        });
    }
    if !report.complete {
        return Err(ToolError::refused(format!(
            "not all replicas of volume {volume} were looked at"
        ))
        .next(format!("bring the node back, then scrub again; a node that is not fenced yet is when the volume is attached, or by `ublk-front settle {volume}`")));
    }
    Ok(())
}
