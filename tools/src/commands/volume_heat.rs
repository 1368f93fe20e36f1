//! `volume heat`: the hottest parts of a volume, and their share of the load.

use crate::cli::HeatArgs;
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::heat::{HotRange, hot_ranges};
use crate::range::bytes_of;
use crate::report;
use crate::table::{Align, table};
use crate::units::ByteSize;
use serde_json::{Value, json};
use ukai_meta::map::VolumeMap;

pub(super) fn heat(context: &Context, args: &HeatArgs) -> Result<()> {
    let map = context.volume(&args.name.volume)?;
    let told = report::told(context.cluster()?.cluster, &context.names()?, &map);
    let heat = told.and_then(|told| told.heat).ok_or_else(|| {
        ToolError::not_found(format!(
            "no node knows how volume {} is used",
            args.name.volume
        ))
        .next("fronts tell it a few seconds after the first I/O; nodes forget it when they restart")
    })?;
    let ranges = hot_ranges(&heat.chunks);
    let total: f64 = ranges.iter().map(HotRange::ops_per_s).sum();
    let shown = &ranges[..ranges.len().min(args.limit)];
    let rows = rows(&map, shown, total);
    let value = json!({
        "volume": map.head.name, "measured_s": heat.age_s, "chunk_bytes": map.head.chunk_bytes,
        "ops_per_s": round(total), "ranges_total": ranges.len(), "ranges": rows,
    });
    context.output.show(&value, || text(&value, &rows));
    Ok(())
}

fn rows(map: &VolumeMap, ranges: &[HotRange], total: f64) -> Vec<Value> {
    let mut before = 0.0;
    let row = |hot: &HotRange| {
        let (start, end) = bytes_of(hot.range, map.head.size_bytes, map.head.chunk_bytes);
        before += hot.ops_per_s();
        let share = |ops: f64| {
            if total > 0.0 {
                round(ops / total * 100.0)
            } else {
                0.0
            }
        };
        json!({
            "first_chunk": hot.range.start, "chunks": hot.range.count,
            "start_byte": start, "end_byte": end,
            "reads_per_s": round(hot.reads_per_s), "writes_per_s": round(hot.writes_per_s),
            "bytes_per_s": round(hot.bytes_per_s),
            "share_percent": share(hot.ops_per_s()), "share_with_those_above_percent": share(before),
        })
    };
    ranges.iter().map(row).collect()
}

/// Levels are exact to 6 %: more than this would pretend.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn text(value: &Value, rows: &[Value]) -> String {
    let size = |field: &Value| ByteSize(field.as_u64().unwrap_or(0)).about();
    let number = |field: &Value| format!("{:.1}", field.as_f64().unwrap_or(0.0));
    let cells = |row: &Value| {
        let bytes = row["end_byte"].as_u64().unwrap_or(0) - row["start_byte"].as_u64().unwrap_or(0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate
        let rate = ByteSize(row["bytes_per_s"].as_f64().unwrap_or(0.0) as u64).about();
        vec![
            size(&row["start_byte"]),
            size(&row["end_byte"]),
            ByteSize(bytes).about(),
            number(&row["reads_per_s"]),
            number(&row["writes_per_s"]),
            format!("{rate}/s"),
            format!("{} %", number(&row["share_percent"])),
            format!("{} %", number(&row["share_with_those_above_percent"])),
        ]
    };
    let columns = [
        ("from", Align::Right),
        ("to", Align::Right),
        ("size", Align::Right),
        ("reads/s", Align::Right),
        ("writes/s", Align::Right),
        ("data", Align::Right),
        ("of the load", Align::Right),
        ("with those above", Align::Right),
    ];
    let hidden = value["ranges_total"].as_u64().unwrap_or(0) - rows.len() as u64;
    let more = match hidden {
        0 => String::new(),
        hidden => format!("\n{hidden} cooler ranges are not shown (--limit)"),
    };
    format!(
        "measured for {} s; older use counts half every 10 minutes; {:.1} requests/s\n\n{}{more}",
        value["measured_s"],
        value["ops_per_s"].as_f64().unwrap_or(0.0),
        table(&columns, rows.iter().map(cells).collect())
    )
}
