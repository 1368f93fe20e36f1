//! `list` and `status`.

use super::cli::{ListArgs, StatusArgs};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::time::Duration;
use ublk_front::shell::attach::{AttachError, control_path};
use ublk_front::shell::{control, process};
use ukai_meta::catalog::{self, CatalogError};

/// A front answers from memory; one that does not within this is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Volumes that are attached, wherever.
pub(crate) fn list(args: &ListArgs) -> Result<(), AttachError> {
    let store = ukai_meta::open(&args.meta.url()?)?;
    let mut rows = Vec::new();
    for volume in catalog::list_volumes(&*store)? {
        let head = match catalog::load_head(&*store, volume.volume) {
            Ok(head) => head,
            Err(CatalogError::NoVolume(_) | CatalogError::Deleting(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(attach) = head.attach else { continue };
        let front = catalog::front(&*store, volume.volume)?;
        rows.push(json!({
            "volume": head.name,
            "size_bytes": head.size_bytes,
            "host": attach.host,
            "device": front.as_ref().map(|front| &front.device),
            "pid": front.as_ref().map(|front| front.pid),
        }));
    }
    if args.json {
        process::say(&Value::from(rows).to_string());
        return Ok(());
    }
    if rows.is_empty() {
        process::say("no volume is attached");
        return Ok(());
    }
    let mut table = vec![["VOLUME", "SIZE", "HOST", "PID", "DEVICE"].map(str::to_owned)];
    for row in &rows {
        let text = |key: &str| {
            row[key]
                .as_str()
                .unwrap_or("(its front does not answer)")
                .to_owned()
        };
        let pid = row["pid"]
            .as_u64()
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let size = size(row["size_bytes"].as_u64().unwrap_or(0));
        table.push([text("volume"), size, text("host"), pid, text("device")]);
    }
    print_table(&table);
    Ok(())
}

/// What one front is doing.
pub(crate) fn status(args: &StatusArgs) -> Result<(), AttachError> {
    let path = control_path(&args.run_dir.run_dir, &args.volume);
    let answer = control::ask(&path, &json!({ "cmd": "status" }), Some(PATIENCE));
    let status = match answer {
        Ok(status) => status,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            let text = format!("{} (nobody listens at {})", args.volume, path.display());
            return Err(AttachError::NotAttached(text));
        }
        Err(error) => {
            return Err(AttachError::Failed(format!(
                "ask {}: {error}",
                path.display()
            )));
        }
    };
    if args.json {
        process::say(&status.to_string());
        return Ok(());
    }
    let core = &status["control"];
    let plain = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let device = status["device"].as_str().unwrap_or("(none yet)");
    process::say(&format!(
        "{} is {} at {device}",
        plain(&status["volume"]),
        plain(&core["phase"])
    ));
    process::say(&format!(
        "host {}, process {}, token {}, generation {}, {} lane(s), {}",
        plain(&status["host"]),
        status["pid"],
        core["token"],
        core["generation"],
        core["lanes"],
        if core["settled"] == true {
            "settled"
        } else {
            "not settled"
        },
    ));
    if core["sync"].is_object() {
        let sync = &core["sync"];
        process::say(&format!(
            "filling {}: {} of {} chunks compared, {} sectors copied",
            plain(&sync["name"]),
            sync["chunks_done"],
            sync["chunks_total"],
            sync["sectors_copied"],
        ));
    }
    let header = [
        "NODE",
        "SITE",
        "CONNECTED",
        "HEALTH",
        "ROUND TRIP",
        "READ RANK",
    ];
    let mut table = vec![header.map(str::to_owned)];
    for node in core["nodes"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    {
        let health = node["health"]["state"].as_str().unwrap_or("in-sync");
        let trip = node["round_trip_us"].as_u64();
        table.push([
            plain(&node["name"]),
            plain(&node["site"]),
            if node["connected"] == true {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
            health.to_owned(),
            trip.map_or_else(|| "-".to_owned(), |us| format!("{us} us")),
            node["read_rank"]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |rank| rank.to_string()),
        ]);
    }
    print_table(&table);
    Ok(())
}

/// Columns as wide as they need to be.
fn print_table<const N: usize>(rows: &[[String; N]]) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        process::say(cells.join("  ").trim_end());
    }
}

/// Binary units, as few digits as tell the truth.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
    let unit = UNITS
        .iter()
        .find(|(_, shift)| bytes >> shift > 0 && bytes.trailing_zeros() >= *shift);
    match unit {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1 << 40), "1 TiB");
        assert_eq!(size(3 << 29), "1536 MiB");
        assert_eq!(size(4096 + 1), "4097 B");
    }
}
