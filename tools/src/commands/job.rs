//! `job`: look at relocations, steer them.

use crate::cli::JobVerb;
use crate::context::Context;
use crate::error::Result;
use crate::jobs::view::{load, rate_text, span_text, us_text, view};
use crate::jobs::watch;
use crate::table::{Align, table};
use serde_json::{Value, json};
use ukai_meta::JobRecord;
use ukai_meta::catalog;
use ukai_meta::job::JobError;

pub(super) fn job(context: &Context, verb: &JobVerb) -> Result<()> {
    match verb {
        JobVerb::List { all } => list(context, *all),
        JobVerb::Show(name) => show(context, &name.volume),
        JobVerb::Watch(name) => watch::to_its_end(context, &name.volume),
        JobVerb::Pause(name) => steer(context, &name.volume, JobRecord::pause),
        JobVerb::Resume(name) => steer(context, &name.volume, JobRecord::resume),
        JobVerb::Cancel(name) => steer(context, &name.volume, JobRecord::cancel),
        JobVerb::SetRate { name, rate } => steer(context, &name.volume, |job| {
            let old = std::mem::replace(&mut job.limits.rate_bytes_per_s, rate.0);
            Ok(old != rate.0)
        }),
        JobVerb::SetProtect { name, protect } => steer(context, &name.volume, |job| {
            let mut protect = protect.0;
            // The base is that of the volume before anything moved.
            if let (Some(new), Some(old)) = (&mut protect, job.limits.protect) {
                new.base_us = old.base_us;
            }
            let old = std::mem::replace(&mut job.limits.protect, protect);
            Ok(old != protect)
        }),
    }
}

fn list(context: &Context, all: bool) -> Result<()> {
    let mut rows = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    for job in catalog::list_jobs(&*context.store)? {
        if job.state.is_ended() && !all {
            continue;
        }
        let map = catalog::load_volume(&*context.store, job.volume)?;
        let view = view(context, &map, job)?;
        let progress = &view.progress;
        let dash = || "-".to_owned();
        rows.push(vec![
            view.job.name.clone(),
            progress.state.clone(),
            format!("{}%", view.percent()),
            format!("{}/{}", progress.copied_chunks, progress.total_chunks),
            if view.is_told {
                rate_text(progress.rate_bytes_per_s)
            } else {
                dash()
            },
            progress.eta_s.map_or_else(dash, span_text),
            progress.guest_p99_us.map_or_else(dash, us_text),
            progress.budget_us.map_or_else(dash, us_text),
            progress.limited_by.clone(),
        ]);
        values.push(view.json());
    }
    context.output.show(&values, || {
        if rows.is_empty() {
            return if all {
                "no volume has a relocation job".into()
            } else {
                "no relocation is under way (--all shows the past ones too)".into()
            };
        }
        let columns = [
            ("volume", Align::Left),
            ("state", Align::Left),
            ("done", Align::Right),
            ("chunks", Align::Right),
            ("rate", Align::Right),
            ("eta", Align::Right),
            ("guest p99", Align::Right),
            ("budget", Align::Right),
            ("limited by", Align::Left),
        ];
        table(&columns, rows)
    });
    Ok(())
}

fn show(context: &Context, name: &str) -> Result<()> {
    let (map, job) = load(context, name)?;
    let view = view(context, &map, job)?;
    let names = context.names()?;
    context.output.show(&view.json(), || view.text(&names));
    Ok(())
}

fn steer(
    context: &Context,
    name: &str,
    edit: impl FnMut(&mut JobRecord) -> std::result::Result<bool, JobError>,
) -> Result<()> {
    let volume = context.volume_id(name)?;
    let job = catalog::update_job(&*context.store, volume, name, edit)?;
    let value = json!({ "volume": name, "state": job.state, "limits": job.limits });
    let attached = catalog::load_head(&*context.store, volume)?
        .attach
        .is_some();
    context.output.show(&value, || {
        let mut text = format!("the job of volume {name} is {}", job.state.word());
        if !attached && !job.state.is_ended() {
            text.push_str(&format!(
                "; nobody has the volume attached: `ublk-front settle {name}` works on it"
            ));
        }
        text
    });
    Ok(())
}
