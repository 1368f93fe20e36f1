//! `volume synchronize`: until every replica is in sync and nothing waits to be deleted. The front
//! does the work; a detached volume gets one for as long as it takes.

use super::volume_map::state_word;
use super::volume_show::Condition;
use crate::cli::Synchronize;
use crate::context::{Context, Names};
use crate::error::{Result, ToolError};
use crate::front;
use crate::progress::Progress;
use crate::table::{Align, table};
use serde::Serialize;
use serde_json::json;
use std::time::{Duration, Instant};
use ukai_meta::map::VolumeMap;
use ukai_meta::{ReplicaState, catalog};

/// A watch that was lost shows itself by this at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

pub(super) fn synchronize(context: &Context, args: &Synchronize) -> Result<()> {
    let name = &args.name.volume;
    let map = context.volume(name)?;
    let names = context.names()?;
    let work = work(&map, &names);
    if Condition::of(&map).settled() {
        return report(context, args, &map, &work, "in-sync");
    }
    if map.head.deleting {
        return Err(ToolError::busy(format!("volume {name} is being deleted"))
            .next("finish it with `ukai-tools volume delete`"));
    }
    if args.dry_run {
        return report(context, args, &map, &work, "would-synchronize");
    }
    let Some(attach) = &map.head.attach else {
        context.output.say(&work_table(&work));
        front::settle(name, &context.meta)?;
        let map = context.volume(name)?;
        check_settled(&map, &context.names()?)?;
        return report(context, args, &map, &[], "in-sync");
    };
    if context.front(&map.head)?.is_none() {
        return Err(ToolError::busy(format!(
            "volume {name} is attached on host {}, but its front does not answer",
            attach.host
        ))
        .next(format!(
            "look at ublk-front on {}; start it again if it has died",
            attach.host
        )));
    }
    if !args.wait {
        return report(context, args, &map, &work, "at-work");
    }
    let map = wait(context, args, map)?;
    report(context, args, &map, &[], "in-sync")
}

/// Waits for the front.
#[allow(clippy::disallowed_methods)] // --timeout is in the administrator's time
fn wait(context: &Context, args: &Synchronize, mut map: VolumeMap) -> Result<VolumeMap> {
    let started = Instant::now();
    let mut watch = catalog::watch_volume(&*context.store, map.head.volume)?;
    let open = |condition: &Condition| {
        condition
            .joining
            .max(condition.stale)
            .max(condition.leaving)
    };
    let mut most = open(&Condition::of(&map));
    let progress = Progress::new(&map.head.name, 100);
    loop {
        map = catalog::load_volume(&*context.store, map.head.volume)?;
        let condition = Condition::of(&map);
        if condition.settled() {
            return Ok(map);
        }
        let names = context.names()?;
        let dead = dead_holders(&map, &names);
        let left = open(&condition);
        most = most.max(left);
        progress.set(u64::from(most - left) * 100 / u64::from(most.max(1)));
        progress.message(&if dead.is_empty() {
            format!("{}: {left} chunks left", map.head.name)
        } else {
            format!(
                "{}: waiting for node {}, which is not alive",
                map.head.name,
                dead.join(", ")
            )
        });
        let limit = args.timeout.map(Duration::from_secs);
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            return Err(unfinished(&map, &names).next("the front goes on; ask again later"));
        }
        let left = limit.map_or(LOOK_AGAIN, |limit| limit.saturating_sub(started.elapsed()));
        watch.wait(left.min(LOOK_AGAIN))?;
    }
}

fn dead_holders(map: &VolumeMap, names: &Names) -> Vec<String> {
    map.nodes()
        .into_iter()
        .filter(|node| !names.is_alive(*node))
        .map(|node| names.name(node))
        .collect()
}

fn check_settled(map: &VolumeMap, names: &Names) -> Result<()> {
    if Condition::of(map).settled() {
        return Ok(());
    }
    let dead = dead_holders(map, names);
    Err(unfinished(map, names).next(if dead.is_empty() {
        "run the command again".into()
    } else {
        format!(
            "start node {}, or give its copies up: add a location, then remove that one",
            dead.join(", ")
        )
    }))
}

fn unfinished(map: &VolumeMap, names: &Names) -> ToolError {
    let list: Vec<String> = work(map, names)
        .iter()
        .map(|item| format!("{} chunks {} on {}", item.chunks, item.state, item.node))
        .collect();
    ToolError::refused(format!(
        "volume {} is not in sync yet: {}",
        map.head.name,
        list.join(", ")
    ))
}

/// What is not as it should be, on one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Work {
    node: String,
    site: String,
    alive: bool,
    state: &'static str,
    chunks: u32,
}

fn work(map: &VolumeMap, names: &Names) -> Vec<Work> {
    let mut out = Vec::new();
    for node in map.nodes() {
        for state in [
            ReplicaState::Joining,
            ReplicaState::Stale,
            ReplicaState::Leaving,
        ] {
            let chunks = map
                .ranges_of(node, state)
                .iter()
                .map(|range| range.count)
                .sum();
            if chunks > 0 {
                out.push(Work {
                    node: names.name(node),
                    site: names.site(node),
                    alive: names.is_alive(node),
                    state: state_word(state),
                    chunks,
                });
            }
        }
    }
    out
}

fn work_table(work: &[Work]) -> String {
    let rows = work
        .iter()
        .map(|item| {
            vec![
                item.node.clone(),
                item.site.clone(),
                if item.alive { "yes" } else { "no" }.into(),
                item.state.into(),
                item.chunks.to_string(),
            ]
        })
        .collect();
    let columns = [
        ("node", Align::Left),
        ("site", Align::Left),
        ("alive", Align::Left),
        ("state", Align::Left),
        ("chunks", Align::Right),
    ];
    table(&columns, rows)
}

fn report(
    context: &Context,
    args: &Synchronize,
    map: &VolumeMap,
    work: &[Work],
    outcome: &str,
) -> Result<()> {
    let name = &args.name.volume;
    let attached = map.head.attach.as_ref().map(|attach| attach.host.clone());
    let value = json!({ "volume": name, "outcome": outcome, "attached": attached, "work": work });
    context.output.show(&value, || match (outcome, attached) {
        ("in-sync", _) => format!("every replica of {name} is in sync"),
        ("at-work", Some(host)) => format!(
            "{}\nthe front on {host} is at work; --wait returns when it is done",
            work_table(work)
        ),
        (_, Some(host)) => format!(
            "{}\nthe front on {host} would be waited for",
            work_table(work)
        ),
        (_, None) => format!(
            "{}\nublk-front settle {name} would be run",
            work_table(work)
        ),
    });
    Ok(())
}
