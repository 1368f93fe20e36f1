//! `relocate --follow`: keeps volumes fast where they are attached. Deciding is in `jobs::follow`; this is the loop
//! around it, for a service manager.

use super::relocate::{Wanted, record};
use crate::cli::Relocate;
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::jobs::explicit::Goals;
use crate::jobs::follow::{Action, LOOKS, Look, Now, Own, Rest, Seen, decide};
use crate::relocate::gather::now_unix_s;
use crate::relocate::plan_for;
use crate::table::{print_line, warn};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::job::{JobRecord, JobState};
use ukai_meta::map::VolumeMap;

/// Between looks at the signals.
const NAP: Duration = Duration::from_millis(100);
/// Between rounds, if it is not said.
const EVERY_S: u64 = 60;

/// What is remembered of one volume.
#[derive(Default)]
struct Followed {
    seen: Seen,
    said: Option<String>,
    /// When the job was made that is this loop's.
    job: Option<u64>,
    /// It was paused by this loop.
    paused: bool,
}

pub(super) fn follow(context: &Context, args: &Relocate) -> Result<()> {
    if args.ask.target.is_empty() {
        return Err(
            ToolError::usage("it is not said how fast the volumes shall be")
                .next("give --target, for example \"p99-read<=2ms\""),
        );
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| ToolError::refused(format!("watch signals: {error}")))?;
    }
    let mut followed = BTreeMap::new();
    // After an error a new session with the metadata store is opened: the old one may have expired.
    let mut anew: Option<Context> = None;
    loop {
        match round(anew.as_ref().unwrap_or(context), args, &mut followed, &stop) {
            Ok(()) => {}
            Err(error) if args.once => return Err(error),
            Err(error) => {
                warn(&format!("{}; trying again", error.what));
                match Context::open(Some(context.meta.clone()), context.output.json, false) {
                    Ok(opened) => anew = Some(opened),
                    Err(error) => warn(&error.what),
                }
            }
        }
        if args.once || !rest(args, &stop) {
            return Ok(());
        }
    }
}

/// Until the next round. `false`: it was told to stop.
#[allow(clippy::disallowed_methods)] // rounds are in the administrator's time
fn rest(args: &Relocate, stop: &AtomicBool) -> bool {
    let every_s = args.every.map_or(EVERY_S, |every| every.seconds).max(1);
    for _ in 0..every_s * 10 {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(NAP);
    }
    !stop.load(Ordering::Relaxed)
}

/// One look at every volume. What is wrong with one of them does not keep the others waiting; an error is that of
/// the metadata store.
fn round(
    context: &Context,
    args: &Relocate,
    followed: &mut BTreeMap<String, Followed>,
    stop: &AtomicBool,
) -> Result<()> {
    let names: Vec<String> = if args.all {
        let volumes = catalog::list_volumes(&*context.store)?;
        volumes.into_iter().map(|volume| volume.name).collect()
    } else {
        args.volume.clone()
    };
    followed.retain(|name, _| names.contains(name));
    for name in names {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let one = followed.entry(name.clone()).or_default();
        match step(context, args, &name, one) {
            Ok(said) => say(context, args, &name, one, &said),
            Err(error) if error.kind == crate::error::Kind::Unreachable || args.once => {
                return Err(error);
            }
            Err(error) => say(context, args, &name, one, &error.what),
        }
    }
    Ok(())
}

/// Only what is new is told.
fn say(context: &Context, args: &Relocate, name: &str, one: &mut Followed, said: &str) {
    if one.said.as_deref() == Some(said) && !args.once {
        return;
    }
    one.said = Some(said.into());
    if context.output.json {
        print_line(&json!({ "volume": name, "said": said }).to_string());
    } else {
        print_line(&format!("{name}: {said}"));
    }
}

/// Looks at one volume, and makes its job if it is time; what is to be told.
fn step(context: &Context, args: &Relocate, name: &str, one: &mut Followed) -> Result<String> {
    let map = context.volume(name)?;
    let (look, job) = look(context, args, &map, one)?;
    let host = look.host.clone().unwrap_or_default();
    one.seen.add(look);
    let now = Now {
        unix_s: now_unix_s(),
        hours: args.quiet_hours,
        looks: if args.once { 1 } else { LOOKS },
    };
    let job = match (decide(now, &one.seen), job) {
        (Action::Rest(rest), _) => return Ok(rest.to_string()),
        (Action::Pause, _) => {
            catalog::update_job(&*context.store, map.head.volume, name, JobRecord::pause)?;
            one.paused = true;
            return Ok("the hours for moving have ended: its job is paused".into());
        }
        (Action::Resume, _) => {
            catalog::update_job(&*context.store, map.head.volume, name, JobRecord::resume)?;
            one.paused = false;
            return Ok("the hours for moving have come: its job goes on".into());
        }
        (Action::Move, Some(job)) => job,
        (Action::Move, None) => return Ok(Rest::Impossible.to_string()),
    };
    let (chunks, verb) = (
        job.chunks_total(),
        if args.dry_run { "would be" } else { "are" },
    );
    job.check(&map)?;
    if !args.dry_run {
        match catalog::create_job(&*context.store, &job) {
            // Someone else was faster.
            Err(CatalogError::JobExists { .. }) => return Ok(Rest::HasJob.to_string()),
            made => {
                made?;
            }
        }
        (one.job, one.paused) = (Some(job.created_unix_s), false);
    }
    Ok(format!("{chunks} chunks {verb} moved towards host {host}"))
}

/// What is to be seen of a volume now, and the job that would mend it.
fn look(
    context: &Context,
    args: &Relocate,
    map: &VolumeMap,
    one: &Followed,
) -> Result<(Look, Option<JobRecord>)> {
    let last = catalog::job(&*context.store, map.head.volume)?.map(|(job, _)| job);
    let gave_up = last
        .as_ref()
        .filter(|job| matches!(job.state, JobState::Cancelled | JobState::Failed { .. }));
    let is_own = |job: &&JobRecord| {
        one.job == Some(job.created_unix_s) || job.asked.split(' ').any(|word| word == "--follow")
    };
    let own = match last.as_ref().filter(is_own).map(|job| &job.state) {
        Some(JobState::Running) => Own::Running,
        Some(JobState::Paused) if one.paused => Own::Paused,
        _ => Own::No,
    };
    let mut look = Look {
        own,
        host: map.head.attach.as_ref().map(|attach| attach.host.clone()),
        has_job: last.as_ref().is_some_and(|job| !job.state.is_ended()),
        gave_up_unix_s: gave_up.and_then(|job| job.ended_unix_s),
        ..Look::default()
    };
    if look.host.is_none() || look.has_job || map.head.deleting {
        return Ok((look, None));
    }
    let planned = plan_for(context, map, &args.ask, false)?;
    let plan = &planned.plan;
    look.is_broken = plan.targets.iter().any(|fate| !fate.is_met_now);
    look.is_possible = plan.impossible.is_none() && !plan.goals.goals.is_empty();
    let wanted = Wanted {
        bytes: plan.bytes_moved,
        prediction: planned.prediction(),
        goals: Goals {
            sets: plan.goals.sets.clone(),
            goals: plan.goals.goals.clone(),
            copies_made: plan.chunks_moved,
        },
    };
    let job = look.is_possible.then(|| record(map, args, &wanted));
    Ok((look, job))
}
