//! `plan --score`: what the last relocation was to bring against what the guest sees now.

use super::plan::{LATENCY_COLUMNS, latency_row};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::relocate::gather::now_unix_s;
use crate::report::told;
use crate::table::table;
use serde_json::json;
use ukai_meta::LatencyPoints;
use ukai_meta::catalog;
use ukai_meta::job::{Percentiles, Tail};
use ukai_meta::report::FrontReport;

/// A report older than this says nothing about now: fronts send theirs every few seconds.
const FRESH_S: u64 = 60;

/// Measured over predicted; what was not measured has none.
fn ratio(measured: f64, predicted: f64) -> Option<f64> {
    (measured > 0.0 && predicted > 0.0).then(|| measured / predicted)
}

fn tail(points: Option<&LatencyPoints>) -> Tail {
    let at = |probability| points.map_or(0.0, |points| points.quantile(probability));
    Tail {
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
    }
}

fn measured(front: &FrontReport) -> Percentiles {
    Percentiles {
        read: tail(front.guest.read.latency.as_ref()),
        write: tail(front.guest.write.latency.as_ref()),
    }
}

fn ratios(measured: &Percentiles, predicted: &Percentiles) -> [Option<f64>; 6] {
    let of = |m: &Tail, p: &Tail| {
        [
            ratio(m.p50_us, p.p50_us),
            ratio(m.p99_us, p.p99_us),
            ratio(m.p999_us, p.p999_us),
        ]
    };
    let ([a, b, c], [d, e, f]) = (
        of(&measured.read, &predicted.read),
        of(&measured.write, &predicted.write),
    );
    [a, b, c, d, e, f]
}

/// "+3 %".
fn deviation(ratio: Option<f64>) -> String {
    ratio.map_or_else(
        || "-".into(),
        |ratio| format!("{:+.0} %", (ratio - 1.0) * 100.0),
    )
}

pub(super) fn score(context: &Context, name: &str) -> Result<()> {
    let map = context.volume(name)?;
    let (job, _) = catalog::job(&*context.store, map.head.volume)?
        .ok_or_else(|| ToolError::not_found(format!("volume {name} was never relocated")))?;
    let prediction = job.prediction.as_ref().ok_or_else(|| {
        ToolError::not_found(format!(
            "the relocation of volume {name} was planned without a prediction"
        ))
        .next("name the host it is used from: `relocate --host`")
    })?;
    let now = now_unix_s();
    let front = told(context.cluster()?.cluster, &context.names()?, &map).map(|told| told.front);
    let here = front.as_ref().filter(|front| front.host == prediction.host);
    let fresh = here.filter(|front| now.saturating_sub(front.at_unix_s) <= FRESH_S);
    let (seen, at_unix_s) = match (fresh, &job.score) {
        (Some(front), _) => (Some(measured(front)), Some(front.at_unix_s)),
        (None, Some(score)) => (Some(score.measured), Some(score.at_unix_s)),
        (None, None) => (here.map(measured), here.map(|front| front.at_unix_s)),
    };
    let against = seen.as_ref().map(|seen| ratios(seen, &prediction.after));
    let value = json!({
        "volume": name, "host": prediction.host, "job": job.state, "asked": job.asked,
        "before": prediction.before, "predicted": prediction.after, "measured": seen, "measured_at_unix_s": at_unix_s,
        "ratio": against.map(|r| json!({
            "read": { "p50": r[0], "p99": r[1], "p999": r[2] }, "write": { "p50": r[3], "p99": r[4], "p999": r[5] } })),
        "used_from": front.as_ref().map(|front| &front.host),
    });
    context.output.show(&value, || {
        let mut rows = vec![
            latency_row("before, predicted", &prediction.before),
            latency_row("after, predicted", &prediction.after),
        ];
        if let (Some(seen), Some(against)) = (&seen, against) {
            rows.push(latency_row("measured", seen));
            let mut row = vec!["measured against predicted".to_owned()];
            row.extend(against.map(deviation));
            rows.push(row);
        }
        let mut columns = LATENCY_COLUMNS;
        columns[0].0 = "";
        let mut text = format!(
            "volume {name}, used from host {}, relocation {} ({})\n\n{}",
            prediction.host,
            job.state.word(),
            job.asked,
            table(&columns, rows)
        );
        match (&seen, &front, at_unix_s) {
            (Some(_), _, Some(at)) => text.push_str(&format!(
                "\nmeasured {} s ago, over a minute",
                now.saturating_sub(at)
            )),
            (_, Some(front), _) => text.push_str(&format!(
                "\nnothing measured there: the volume is used from host {}",
                front.host
            )),
            _ => text.push_str("\nnothing measured yet: no front has told anything"),
        }
        text
    });
    Ok(())
}
