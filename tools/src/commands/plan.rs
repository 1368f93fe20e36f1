//! `plan`: shows what the planner found. The planning itself is in `relocate`.

use super::plan_json::to_json;
use crate::cli::Plan as PlanCommand;
use crate::context::{Context, Names};
use crate::error::{Result, ToolError};
use crate::range::bytes_of;
use crate::relocate::breaking::Breaking;
use crate::relocate::curve::Point;
use crate::relocate::explain::{Impossible, share_text};
use crate::relocate::outlook::SiteShare;
use crate::relocate::plan::Plan;
use crate::relocate::target::{Kind, latency_text};
use crate::relocate::{Planned, plan_for};
use crate::table::{Align, table};
use crate::units::ByteSize;
use ukai_meta::job::{Percentiles, Tail};
use ukai_meta::map::VolumeMap;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, NodeId};

/// Rows of ranges for people; JSON has more.
const BREAKING_ROWS: usize = 12;
const BAR_WIDTH: usize = 40;

pub(super) fn plan(context: &Context, args: &PlanCommand) -> Result<()> {
    let map = context.volume(&args.name.volume)?;
    let planned = plan_for(context, &map, &args.ask, args.curve)?;
    show(context, &map, &planned)?;
    match &planned.plan.impossible {
        None => Ok(()),
        Some(impossible) => Err(refusal(impossible)),
    }
}

/// The error that an impossible plan ends with, after it was shown.
pub(super) fn refusal(impossible: &Impossible) -> ToolError {
    let what = match impossible.homeless_chunks {
        0 => "impossible: the targets cannot be met".into(),
        chunks => format!("impossible: {chunks} chunks have no place that the rules allow"),
    };
    ToolError::refused(what)
        .next("ask for what can be had, or change what stands in the way (see above)")
}

/// Prints a plan.
pub(super) fn show(context: &Context, map: &VolumeMap, planned: &Planned) -> Result<()> {
    let names = context.names()?;
    context.output.show(&to_json(map, planned, &names), || {
        text(map, planned, &names)
    });
    Ok(())
}

pub(super) fn chunks_of(range: &Breaking) -> ChunkRange {
    ChunkRange {
        start: ChunkIndex(range.first_chunk),
        count: range.chunks,
    }
}

fn text(map: &VolumeMap, planned: &Planned, names: &Names) -> String {
    let plan = &planned.plan;
    let host = planned.gathered.host.as_deref();
    let mut parts = vec![match host {
        Some(host) => format!("volume {}, used from host {host}", map.head.name),
        None => format!(
            "volume {}; no host is given and none has it attached: nothing is predicted",
            map.head.name
        ),
    }];
    match (&plan.now, &plan.after) {
        (Some(now), Some(after)) => parts.push(latency_table(now, after, plan)),
        _ if host.is_some() => {
            parts
                .push("its latency there is not known: run `ukai-tools probe` on that host".into());
        }
        _ => {}
    }
    if !plan.targets.is_empty() {
        parts.push(target_table(plan));
    }
    if !plan.breaking.is_empty() {
        parts.push(breaking_table(map, plan, names));
    }
    if let Some(impossible) = &plan.impossible {
        parts.push(impossible_text(impossible));
    } else {
        parts.push(moves_text(map, planned, names));
    }
    if !plan.curve.is_empty() {
        parts.push(curve_text(plan));
    }
    if !planned.gathered.assumed.is_empty() {
        parts.push(format!(
            "assumed:\n  {}",
            planned.gathered.assumed.join("\n  ")
        ));
    }
    parts.join("\n\n")
}

fn tail_cells(tail: &Tail) -> [String; 3] {
    [tail.p50_us, tail.p99_us, tail.p999_us].map(latency_text)
}

/// Percentile columns of reads, then of writes.
pub(super) const LATENCY_COLUMNS: [(&str, Align); 7] = [
    ("predicted", Align::Left),
    ("read p50", Align::Right),
    ("p99", Align::Right),
    ("p99.9", Align::Right),
    ("write p50", Align::Right),
    ("p99", Align::Right),
    ("p99.9", Align::Right),
];

pub(super) fn latency_row(name: &str, latency: &Percentiles) -> Vec<String> {
    let mut row = vec![name.to_owned()];
    row.extend(tail_cells(&latency.read));
    row.extend(tail_cells(&latency.write));
    row
}

fn latency_table(now: &Percentiles, after: &Percentiles, plan: &Plan) -> String {
    let mut rows = vec![latency_row("now", now)];
    let mut reads = format!("reads come from: {}", sites_text(&plan.reads_now));
    if plan.chunks_moved > 0 {
        rows.push(latency_row("after", after));
        reads.push_str(&format!("; after: {}", sites_text(&plan.reads_after)));
    }
    format!("{}\n{reads}", table(&LATENCY_COLUMNS, rows))
}

fn sites_text(shares: &[SiteShare]) -> String {
    let list: Vec<String> = shares
        .iter()
        .map(|share| format!("{} {}", share.site, share_text(share.reads)))
        .collect();
    list.join(", ")
}

fn target_table(plan: &Plan) -> String {
    let word = |yes: bool| if yes { "met" } else { "missed" };
    let rows = plan
        .targets
        .iter()
        .map(|fate| {
            vec![
                fate.target.clone(),
                fate.kind.name().into(),
                latency_text(fate.now_us),
                word(fate.is_met_now).into(),
                latency_text(fate.after_us),
                word(fate.is_met_after).into(),
            ]
        })
        .collect();
    let columns = [
        ("target", Align::Left),
        ("of", Align::Left),
        ("now", Align::Right),
        ("", Align::Left),
        ("after", Align::Right),
        ("", Align::Left),
    ];
    table(&columns, rows)
}

fn breaking_table(map: &VolumeMap, plan: &Plan, names: &Names) -> String {
    let row = |range: &Breaking| {
        let (start, end) = bytes_of(chunks_of(range), map.head.size_bytes, map.head.chunk_bytes);
        let nodes: Vec<String> = range
            .nodes
            .iter()
            .map(|node| names.name_and_site(*node))
            .collect();
        vec![
            format!("{}-{}", ByteSize(start), ByteSize(end)),
            nodes.join(", "),
            range.kind.name().into(),
            latency_text(range.latency_us),
            share_text(range.load),
        ]
    };
    let rows: Vec<Vec<String>> = plan.breaking.iter().take(BREAKING_ROWS).map(row).collect();
    let columns = [
        ("too slow now", Align::Left),
        ("on", Align::Left),
        ("of", Align::Left),
        ("latency", Align::Right),
        ("share of load", Align::Right),
    ];
    let mut text = table(&columns, rows);
    let rest = plan.breaking.iter().skip(BREAKING_ROWS);
    let (count, load) = rest.fold((0, 0.0), |(count, load), range| {
        (count + 1, load + range.load)
    });
    if count > 0 {
        text.push_str(&format!(
            "\n(and {count} more with {} of the load)",
            share_text(load)
        ));
    }
    text
}

fn moves_text(map: &VolumeMap, planned: &Planned, names: &Names) -> String {
    let plan = &planned.plan;
    if plan.chunks_moved == 0 {
        let why = if plan.targets.is_empty() {
            "nothing asks for it"
        } else {
            "every target is met already"
        };
        return format!("nothing is to be moved: {why}");
    }
    let list = |nodes: &[NodeId]| {
        let list: Vec<String> = nodes
            .iter()
            .map(|node| names.name_and_site(*node))
            .collect();
        if list.is_empty() {
            "-".to_owned()
        } else {
            list.join(", ")
        }
    };
    let rows = plan
        .moves
        .iter()
        .map(|one| {
            vec![
                list(&one.goal.add),
                list(&one.goal.remove),
                one.chunks.to_string(),
                ByteSize(one.bytes).about(),
                ByteSize(one.wan_bytes).about(),
                share_text(one.reads),
                share_text(one.writes),
            ]
        })
        .collect();
    let columns = [
        ("copies to", Align::Left),
        ("instead of", Align::Left),
        ("chunks", Align::Right),
        ("bytes", Align::Right),
        ("over wan", Align::Right),
        ("reads", Align::Right),
        ("writes", Align::Right),
    ];
    let mut text = format!(
        "{}\nmoves {} in {} of {} chunks, {} between sites; no plan does with less than {}\ntakes about {} at {}/s{}",
        table(&columns, rows),
        ByteSize(plan.bytes_moved).about(),
        plan.chunks_moved,
        map.chunk_count(),
        ByteSize(plan.wan_bytes).about(),
        ByteSize(plan.bytes_min).about(),
        duration_text(planned.eta_s()),
        ByteSize(planned.rate_bytes_per_s).about(),
        if planned.is_rate_given {
            ""
        } else {
            " (no --rate given)"
        },
    );
    if plan.margin < 1.0 && !plan.targets.is_empty() {
        text.push_str(&format!(
            "\na margin is kept: only {} of the requests that a target lets be slow are",
            share_text(plan.margin)
        ));
    }
    if !plan.targets.is_empty()
        && plan.margin >= 1.0
        && plan.targets.iter().any(|fate| !fate.is_met_now)
    {
        text.push_str(
            "\nno margin could be kept: measured latency may miss the target by a little",
        );
    }
    if plan.goals.filled_chunks > 0 {
        text.push_str(&format!(
            "\n{} of the chunks move only because they lie between others: a job has {} ranges at most",
            plan.goals.filled_chunks,
            ukai_meta::job::GOALS_MAX
        ));
    }
    if plan.goals.left_out_chunks > 0 {
        text.push_str(&format!(
            "\n{} chunks, the least used, do not fit into one job: plan again when it is done",
            plan.goals.left_out_chunks
        ));
    }
    text
}

fn impossible_text(impossible: &Impossible) -> String {
    let mut lines = Vec::new();
    for best in &impossible.best {
        let what = format!(
            "{} of {}s within {}",
            share_text(best.probability),
            best.kind.name(),
            latency_text(best.asked_us)
        );
        lines.push(match best.best_us {
            Some(us) => format!(
                "impossible: {what}; the best that can be had is {}",
                latency_text(us)
            ),
            None => format!("impossible: {what}"),
        });
    }
    if impossible.homeless_chunks > 0 {
        lines.push(format!(
            "impossible: {} chunks may not stay and have nowhere to go",
            impossible.homeless_chunks
        ));
    }
    lines.extend(
        impossible
            .reasons
            .iter()
            .map(|reason| format!("  because: {reason}")),
    );
    lines.join("\n")
}

fn curve_text(plan: &Plan) -> String {
    // Drawn is what is asked for: writes only if nothing is said of reads.
    let reads = plan.targets.is_empty() || plan.targets.iter().any(|fate| fate.kind == Kind::Read);
    let kind = if reads { Kind::Read } else { Kind::Write };
    let value = |point: &Point| {
        if reads {
            point.latency.read.p99_us
        } else {
            point.latency.write.p99_us
        }
    };
    let most = plan.curve.iter().map(value).fold(1.0, f64::max);
    let rows = plan
        .curve
        .iter()
        .map(|point| {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss
            )] // at most 40
            let bar = (value(point) / most * BAR_WIDTH as f64).round() as usize;
            vec![
                ByteSize(point.bytes).about(),
                ByteSize(point.wan_bytes).about(),
                latency_text(point.latency.read.p99_us),
                latency_text(point.latency.write.p99_us),
                "#".repeat(bar.max(1)),
            ]
        })
        .collect();
    let bar_name = format!("{} p99", kind.name());
    let columns = [
        ("moved", Align::Right),
        ("over wan", Align::Right),
        ("read p99", Align::Right),
        ("write p99", Align::Right),
        (bar_name.as_str(), Align::Left),
    ];
    table(&columns, rows)
}

/// "2h 5m", "12s".
pub(super) fn duration_text(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m {rest}s"),
        _ => format!("{hours}h {minutes}m"),
    }
}
