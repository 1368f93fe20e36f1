//! `prepare-move`: copies of the hot part of a volume near the host that its virtual machine will move to.

use super::plan::{LATENCY_COLUMNS, latency_row, refusal, show};
use super::plan_json::to_json;
use super::relocate::{Wanted, follow, record};
use crate::cli::{PrepareMove, Relocate};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::jobs::explicit::Goals;
use crate::relocate::args::PlanArgs;
use crate::relocate::target::Kind;
use crate::relocate::{Planned, plan_for};
use crate::table::table;
use serde_json::json;
use ukai_meta::catalog;
use ukai_meta::map::VolumeMap;

pub(super) fn prepare_move(context: &Context, args: &PrepareMove) -> Result<()> {
    let is_of_writes = |target: &&crate::relocate::target::Target| target.kind != Some(Kind::Read);
    if let Some(target) = args.target.iter().find(is_of_writes) {
        return Err(ToolError::usage(format!(
            "target {target} is not of reads alone; more copies make no write faster"
        ))
        .next("ask for reads, for example \"p99-read<=2ms\"; `relocate` after the migration makes writes faster"));
    }
    let map = context.volume(&args.volume)?;
    let attached = map.head.attach.as_ref().map(|attach| attach.host.clone());
    if attached.as_ref() == Some(&args.host) {
        return Err(ToolError::refused(format!(
            "volume {} is attached on {} already",
            args.volume, args.host
        ))
        .next(format!(
            "`ukai-tools relocate {} --target ...` moves its data there",
            args.volume
        )));
    }
    let like = as_relocation(args);
    let planned = plan_for(context, &map, &like.ask, false)?;
    if let Some(impossible) = &planned.plan.impossible {
        show(context, &map, &planned)?;
        return Err(refusal(impossible));
    }
    let plan = &planned.plan;
    let is_needed = !plan.goals.goals.is_empty();
    if is_needed {
        let wanted = Wanted {
            bytes: plan.bytes_moved,
            prediction: planned.prediction(),
            goals: Goals {
                sets: plan.goals.sets.clone(),
                goals: plan.goals.goals.clone(),
                copies_made: plan.chunks_moved,
            },
        };
        let job = record(&map, &like, &wanted);
        job.check(&map)?;
        if !args.dry_run {
            catalog::create_job(&*context.store, &job)?;
        }
    }
    tell(context, args, &map, &planned, is_needed)?;
    if is_needed && !args.dry_run {
        follow(context, &like, &args.volume, attached.is_some())?;
    }
    Ok(())
}

/// What it has in common with `relocate`.
fn as_relocation(args: &PrepareMove) -> Relocate {
    Relocate {
        volume: vec![args.volume.clone()],
        all: false,
        ask: PlanArgs {
            host: Some(args.host.clone()),
            target: args.target.clone(),
            range: args.range,
            rate: args.rate,
            assume: args.assume.clone(),
            only_add: true,
            share: args.share.map(|share| share.0),
            ..PlanArgs::default()
        },
        node: Vec::new(),
        drop_surplus: false,
        follow: false,
        quiet_hours: None,
        every: None,
        once: false,
        protect: args.protect,
        deadline: args.deadline,
        detach_old_after: None,
        dry_run: args.dry_run,
        detach_from_terminal: args.detach_from_terminal,
    }
}

fn tell(
    context: &Context,
    args: &PrepareMove,
    map: &VolumeMap,
    planned: &Planned,
    is_needed: bool,
) -> Result<()> {
    let (volume, host) = (&args.volume, &args.host);
    let targets: Vec<String> = args
        .target
        .iter()
        .map(|target| format!(" --target \"{target}\""))
        .collect();
    let mut next = Vec::new();
    if is_needed {
        next.push(format!(
            "ukai-tools relocate {volume} --host {host} --drop-surplus"
        ));
    }
    if !targets.is_empty() {
        next.push(format!(
            "ukai-tools relocate {volume} --host {host}{}",
            targets.concat()
        ));
    }
    let state = match (is_needed, args.dry_run) {
        (false, _) => "prepared",
        (true, true) => "would-copy",
        (true, false) => "running",
    };
    let present = planned.plan.present;
    let at = map.head.attach.as_ref().map(|attach| attach.host.as_str());
    if context.output.json {
        let mut value = to_json(map, planned, &context.names()?);
        value["state"] = state.into();
        value["present"] =
            json!({ "host": at, "now": present.map(|p| p[0]), "after": present.map(|p| p[1]) });
        value["next"] = json!(next);
        context.output.show(&value, String::new);
        return Ok(());
    }
    show(context, map, planned)?;
    if !is_needed {
        context.output.say(&format!(
            "\nhost {host} has what it needs of volume {volume}: nothing is copied"
        ));
        return Ok(());
    }
    if let Some(at) = at {
        let mut text = format!(
            "\nwrites of these chunks wait for the new copies too, from now on, also on {at}, where the volume is used"
        );
        match present {
            Some([now, after]) => {
                let rows = vec![
                    latency_row("now", &now),
                    latency_row("with the copies", &after),
                ];
                text.push_str(&format!(". There:\n{}", table(&LATENCY_COLUMNS, rows)));
            }
            None => text.push_str(&format!(
                "; how long they take there is not known (run `ukai-tools probe` on {at})"
            )),
        }
        context.output.say(&text);
    }
    context.output.say(&format!(
        "\nafter the migration:\n  {}\n\
         if it is given up: ukai-tools relocate {volume} --host {} --drop-surplus",
        next.join("\n  "),
        at.unwrap_or("HOST")
    ));
    Ok(())
}
