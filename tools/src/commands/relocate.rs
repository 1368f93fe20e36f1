//! `relocate`: makes a job and watches it.

use crate::cli::Relocate;
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::front;
use crate::jobs::explicit::{self, Goals};
use crate::jobs::surplus::{Holder, surplus};
use crate::jobs::view::{rate_text, span_text};
use crate::jobs::watch;
use crate::relocate::gather::gather;
use crate::relocate::plan_for;
use crate::table::warn;
use crate::units::ByteSize;
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};
use ukai_meta::catalog;
use ukai_meta::job::{JOB_FORMAT, JobLimits, JobPrediction, JobRecord, JobState};
use ukai_meta::map::VolumeMap;

/// What shall become of one volume.
pub(super) struct Wanted {
    pub(super) goals: Goals,
    pub(super) bytes: u64,
    pub(super) prediction: Option<JobPrediction>,
}

pub(super) fn relocate(context: &Context, args: &Relocate) -> Result<()> {
    let names = if args.all {
        let volumes = catalog::list_volumes(&*context.store)?;
        volumes.into_iter().map(|volume| volume.name).collect()
    } else {
        args.volume.clone()
    };
    let mut made = Vec::new();
    for name in &names {
        let map = context.volume(name)?;
        if args.all && map.head.deleting {
            continue;
        }
        let wanted = want(context, &map, args).map_err(|error| match names.len() {
            1 if !args.all => error,
            _ => error.context(format_args!("volume {name}")),
        })?;
        if wanted.goals.goals.is_empty() {
            let value = json!({ "volume": name, "state": "as-asked" });
            context.output.show(&value, || {
                format!("volume {name} is as asked; nothing moves")
            });
            continue;
        }
        let job = record(&map, args, &wanted);
        job.check(&map)?;
        if !args.dry_run {
            catalog::create_job(&*context.store, &job)?;
            made.push((name, map.head.attach.is_some()));
        }
        tell(context, args, &map, &job, &wanted);
    }
    for (name, is_attached) in made {
        follow(context, args, name, is_attached)?;
    }
    Ok(())
}

fn want(context: &Context, map: &VolumeMap, args: &Relocate) -> Result<Wanted> {
    if !args.node.is_empty() {
        return want_nodes(context, map, args);
    }
    if args.drop_surplus {
        return want_no_surplus(context, map, args);
    }
    let ask = &args.ask;
    let asks_nothing = ask.target.is_empty()
        && ask.copies.is_empty()
        && ask.only_sites.is_empty()
        && ask.to_site.is_none()
        && ask.evacuate.is_empty();
    if asks_nothing {
        return Err(
            ToolError::usage("it is not said what the volume shall be like")
                .next("give --target, --to-site, --only-sites, --copies, --evacuate, --node, or --drop-surplus"),
        );
    }
    let planned = plan_for(context, map, ask, false)?;
    let plan = &planned.plan;
    // Programs get one JSON value per volume, which has the prediction.
    if !context.output.json || plan.impossible.is_some() {
        super::plan::show(context, map, &planned)?;
    }
    if let Some(impossible) = &plan.impossible {
        return Err(super::plan::refusal(impossible));
    }
    Ok(Wanted {
        bytes: plan.bytes_moved,
        prediction: planned.prediction(),
        goals: Goals {
            sets: plan.goals.sets.clone(),
            goals: plan.goals.goals.clone(),
            copies_made: plan.chunks_moved,
        },
    })
}

/// Without a planner: these nodes.
fn want_nodes(context: &Context, map: &VolumeMap, args: &Relocate) -> Result<Wanted> {
    let range = args
        .ask
        .range
        .resolve(map.head.size_bytes, map.head.chunk_bytes)?;
    let mut nodes = Vec::new();
    for name in &args.node {
        let node = context.node(name)?;
        if node.record.draining {
            return Err(
                ToolError::refused(format!("node {name} is draining")).next(format!(
                    "`ukai-tools node undrain {name}`, or name another node"
                )),
            );
        }
        if node.live.is_none() {
            warn(&format!("node {name} is not alive; the job waits for it"));
        }
        if !nodes.contains(&node.record.node) {
            nodes.push(node.record.node);
        }
    }
    let goals = explicit::exactly(map, range, &nodes)?;
    Ok(Wanted {
        bytes: goals.copies_made * map.head.chunk_bytes,
        goals,
        prediction: None,
    })
}

/// Without a planner: no more copies than the volume was made with.
fn want_no_surplus(context: &Context, map: &VolumeMap, args: &Relocate) -> Result<Wanted> {
    let gathered = gather(context, map, &args.ask)?;
    if gathered.host.is_none() {
        return Err(ToolError::usage(format!(
            "nobody has volume {} attached: from where is it used?",
            map.head.name
        ))
        .next("give --host"));
    }
    let holders = gathered.nodes.iter().map(|node| {
        let holder = Holder {
            site: node.site.clone(),
            read_us: node.read_median_us(),
            is_alive: node.is_alive,
        };
        (node.id, holder)
    });
    let range = args
        .ask
        .range
        .resolve(map.head.size_bytes, map.head.chunk_bytes)?;
    Ok(Wanted {
        goals: surplus(map, range, &map.head.place, &holders.collect()),
        bytes: 0,
        prediction: None,
    })
}

#[allow(clippy::disallowed_methods)] // the time of day, for the record
fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

pub(super) fn record(map: &VolumeMap, args: &Relocate, wanted: &Wanted) -> JobRecord {
    let now = unix_s();
    let asked: Vec<String> = std::env::args().skip(1).collect();
    JobRecord {
        format: JOB_FORMAT,
        volume: map.head.volume,
        name: map.head.name.clone(),
        created_unix_s: now,
        asked: asked.join(" "),
        state: JobState::Running,
        copied_unix_s: None,
        ended_unix_s: None,
        limits: JobLimits {
            rate_bytes_per_s: args.ask.rate.map(|rate| rate.0.0),
            protect: args.protect.map(|protect| protect.0),
            deadline_unix_s: args.deadline.map(|span| now.saturating_add(span.seconds)),
            detach_old_after_s: args.detach_old_after.map_or(0, |span| span.seconds),
        },
        sets: wanted.goals.sets.clone(),
        goals: wanted.goals.goals.clone(),
        prediction: wanted.prediction.clone(),
        score: None,
    }
}

fn tell(context: &Context, args: &Relocate, map: &VolumeMap, job: &JobRecord, wanted: &Wanted) {
    let chunks = job.chunks_total();
    let state = if args.dry_run {
        "would-move"
    } else {
        "running"
    };
    let value = json!({
        "volume": map.head.name, "state": state, "chunks": chunks, "bytes_max": wanted.bytes,
        "ranges": job.goals.len(), "limits": job.limits, "prediction": job.prediction,
    });
    context.output.show(&value, || {
        if args.drop_surplus {
            let verb = if args.dry_run { "would lose" } else { "lose" };
            return format!(
                "{chunks} chunks of volume {} {verb} copies beyond those it was made with; nothing is copied",
                map.head.name
            );
        }
        let verb = if args.dry_run { "would move" } else { "moves" };
        let mut text = format!(
            "volume {} {verb} {chunks} chunks in {} ranges, at most {}",
            map.head.name,
            job.goals.len(),
            ByteSize(wanted.bytes).about(),
        );
        if let Some(rate) = job.limits.rate_bytes_per_s {
            let seconds = wanted.bytes.div_ceil(rate.max(1));
            text.push_str(&format!(
                ", at {} no more than {}",
                rate_text(rate),
                span_text(seconds)
            ));
        }
        text
    });
}

/// What happens to a job once it is made.
pub(super) fn follow(
    context: &Context,
    args: &Relocate,
    name: &str,
    is_attached: bool,
) -> Result<()> {
    if args.detach_from_terminal {
        let hint = if is_attached {
            format!("its front works on it; `ukai-tools job watch {name}` shows how far it is")
        } else {
            format!(
                "nobody has volume {name} attached: the next attach works on it, or `ublk-front settle {name}`"
            )
        };
        context.output.say(&hint);
        return Ok(());
    }
    if is_attached {
        return watch::to_its_end(context, name);
    }
    front::settle(name, &context.meta)?;
    let (map, job) = crate::jobs::view::load(context, name)?;
    let view = crate::jobs::view::view(context, &map, job)?;
    watch::ended(context, name, &view)
}
