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
use ukai_meta::job::{JobRecord, JobScore, Percentiles, Tail};
use ukai_meta::map::VolumeMap;
use ukai_meta::report::FrontReport;

/// A report older than this says nothing about now: fronts send theirs every few seconds.
const FRESH_S: u64 = 60;
/// The guest's latency is told for so long at most.
const WINDOW_S: u64 = 60;
/// Over less than this a 99th percentile is luck.
const WINDOW_MIN_S: u64 = 10;
/// Between two reports of a front.
const REPORT_S: u64 = 5;
/// What is asked for within so long after the end of the job is kept with it: later the guest may do something else.
const KEEP_S: u64 = 120;
/// Requests of a kind that its percentiles need.
const SAMPLES_MIN: u64 = 100;

/// Measured over predicted; what was not measured has none.
fn ratio(measured: f64, predicted: f64) -> Option<f64> {
    (measured > 0.0 && predicted > 0.0).then(|| measured / predicted)
}

fn tail(points: Option<&LatencyPoints>) -> Tail {
    let points = points.filter(|points| points.count >= SAMPLES_MIN);
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

/// The score stays with the job.
fn keep(context: &Context, map: &VolumeMap, job: &JobRecord, score: JobScore) -> Result<()> {
    let head = &map.head;
    catalog::update_job(&*context.store, head.volume, &head.name, |record| {
        let same = record.created_unix_s == job.created_unix_s && record.goals == job.goals;
        if same {
            record.score = Some(score.clone());
        }
        Ok(same)
    })?;
    Ok(())
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

/// What the guest saw after the move, or how long it takes until that can be told.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Seen {
    Measured(Percentiles),
    /// Seconds; roughly.
    NotYet(u64),
}

/// A window that reaches back to before the end of the move says nothing of what it brought.
fn seen(front: &FrontReport, ended_unix_s: u64, now_unix_s: u64) -> Seen {
    let since = front
        .since_unix_s
        .unwrap_or(front.at_unix_s.saturating_sub(WINDOW_S));
    if since < ended_unix_s {
        // Fronts begin anew with the end of a job; with the next report at the latest one may hope so.
        let enough_at = ended_unix_s + WINDOW_MIN_S + REPORT_S;
        return Seen::NotYet(enough_at.saturating_sub(now_unix_s).max(REPORT_S));
    }
    let over = front.at_unix_s.saturating_sub(since);
    if over < WINDOW_MIN_S {
        return Seen::NotYet(
            (since + WINDOW_MIN_S + REPORT_S)
                .saturating_sub(now_unix_s)
                .max(1),
        );
    }
    Seen::Measured(measured(front))
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
    let told = fresh
        .zip(job.ended_unix_s)
        .map(|(front, ended)| (seen(front, ended, now), front.at_unix_s));
    let kept = job
        .score
        .as_ref()
        .map(|score| (score.measured, score.at_unix_s));
    let (measured, again_in_s) = match told {
        Some((Seen::Measured(seen), at)) => (Some((seen, at)), None),
        Some((Seen::NotYet(again), _)) => (kept, Some(again)),
        None => (kept, None),
    };
    if let (Some((Seen::Measured(seen), at)), Some(ended)) = (told, job.ended_unix_s)
        && at <= ended + KEEP_S
    {
        keep(
            context,
            &map,
            &job,
            JobScore {
                host: prediction.host.clone(),
                at_unix_s: at,
                measured: seen,
            },
        )?;
    }
    let (seen, at_unix_s) = measured.unzip();
    let against = seen.as_ref().map(|seen| ratios(seen, &prediction.after));
    let value = json!({
        "volume": name, "host": prediction.host, "job": job.state, "asked": job.asked,
        "before": prediction.before, "predicted": prediction.after, "measured": seen, "measured_at_unix_s": at_unix_s,
        "ratio": against.map(|r| json!({
            "read": { "p50": r[0], "p99": r[1], "p999": r[2] }, "write": { "p50": r[3], "p99": r[4], "p999": r[5] } })),
        "again_in_s": again_in_s, "used_from": front.as_ref().map(|front| &front.host),
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
        text.push('\n');
        text.push_str(&match (at_unix_s, again_in_s, &front) {
            _ if job.ended_unix_s.is_none() => {
                format!("not measured yet: the relocation is {}", job.state.word())
            }
            (None, Some(again), _) => format!(
                "not measured yet: at least {WINDOW_MIN_S} s after the end of the relocation are needed; ask again in {again} s"
            ),
            (Some(at), ..) => format!(
                "measured {} s ago, over a minute at most, after the end of the relocation",
                now.saturating_sub(at)
            ),
            (None, None, Some(front)) if fresh.is_none() && here.is_some() => format!(
                "not measured: the front has told nothing for {} s",
                now.saturating_sub(front.at_unix_s)
            ),
            (None, None, Some(front)) => format!(
                "nothing measured there: the volume is used from host {}",
                front.host
            ),
            (None, None, None) => "nothing measured yet: no front has told anything".into(),
        });
        text
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_meta::report::GuestReports;
    use ukai_proto::Token;

    #[test]
    fn only_what_was_measured_after_the_move_counts() {
        let front = |since_unix_s, at_unix_s| FrontReport {
            host: "h".into(),
            token: Token(1),
            at_unix_s,
            since_unix_s,
            guest: GuestReports::default(),
            wake: None,
            write_replicated: None,
            nodes: Vec::new(),
            job: None,
        };
        let is_measured =
            |front: &FrontReport| matches!(seen(front, 1000, 1011), Seen::Measured(_));
        assert!(is_measured(&front(Some(1000), 1010)));
        assert!(
            !is_measured(&front(Some(999), 1010)),
            "begun before the end"
        );
        assert!(!is_measured(&front(Some(1001), 1010)), "too short");
        assert_eq!(seen(&front(Some(1001), 1010), 1000, 1011), Seen::NotYet(5));
        assert_eq!(seen(&front(None, 1050), 1000, 1051), Seen::NotYet(5));
        assert!(
            is_measured(&front(None, 1060)),
            "a front that does not tell: a minute"
        );
        assert_eq!(seen(&front(Some(940), 1000), 1000, 1000), Seen::NotYet(15));
    }
}
