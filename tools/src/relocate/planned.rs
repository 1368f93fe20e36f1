//! A plan for a volume with what it was made from: for `plan`, which shows it, and for `relocate`, which
//! makes a job of it.

use super::args::PlanArgs;
use super::gather::{Gathered, ask, gather};
use super::plan::{Plan, plan};
use crate::context::Context;
use crate::error::{Result, ToolError};
use ukai_meta::job::JobPrediction;
use ukai_meta::map::VolumeMap;

/// Copying speed that is told the time for when none is given.
pub(crate) const RATE_DEFAULT_BYTES_PER_S: u64 = 100 << 20;

/// The plan and its grounds.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) gathered: Gathered,
    pub(crate) rate_bytes_per_s: u64,
    pub(crate) is_rate_given: bool,
}

/// Gathers and plans. An impossible plan is no error: `plan.impossible` says why.
pub(crate) fn plan_for(
    context: &Context,
    map: &VolumeMap,
    args: &PlanArgs,
    curve: bool,
) -> Result<Planned> {
    if map.head.deleting {
        return Err(ToolError::busy(format!(
            "volume {} is being deleted",
            map.head.name
        )));
    }
    let states = context.nodes()?;
    let mut gathered = gather(context, map, args)?;
    let host = gathered.host.clone();
    let mut ask = ask(map, &states, args, host.as_deref().unwrap_or("?"), curve)?;
    ask.present = gathered.present.take();
    ask.measured = gathered.measured.take();
    if !ask.targets.is_empty() || ask.share.is_some() {
        let Some(host) = &host else {
            return Err(ToolError::usage(format!(
                "a target needs a host, and nobody has volume {} attached",
                map.head.name
            ))
            .next("give --host"));
        };
        check_known(map, &gathered, host)?;
    }
    let unknown: Vec<&str> = gathered
        .nodes
        .iter()
        .filter(|node| node.model.is_none())
        .map(|node| node.name.as_str())
        .collect();
    if let Some(host) = host.as_ref().filter(|_| !unknown.is_empty()) {
        let text = format!(
            "{}: never measured from {host}, so not considered for any target",
            unknown.join(", ")
        );
        gathered.assumed.push(text);
    }
    let rate = args.rate.map(|rate| rate.0.0);
    Ok(Planned {
        plan: plan(map, gathered.known(), &ask),
        gathered,
        rate_bytes_per_s: rate.unwrap_or(RATE_DEFAULT_BYTES_PER_S),
        is_rate_given: rate.is_some(),
    })
}

/// Every node that holds the volume must have been measured: a prediction with a hole is none.
fn check_known(map: &VolumeMap, gathered: &Gathered, host: &str) -> Result<()> {
    let in_use = map.nodes();
    let unknown: Vec<&str> = gathered
        .nodes
        .iter()
        .filter(|node| node.model.is_none() && in_use.contains(&node.id))
        .map(|node| node.name.as_str())
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let first = unknown[0];
    Err(ToolError::refused(format!(
        "the latency between host {host} and node {} was never measured",
        unknown.join(", ")
    ))
    .next(format!(
        "run `ukai-tools probe` on {host}, or say what to assume: --assume {first}=2ms"
    )))
}

impl Planned {
    /// For the job's record.
    pub(crate) fn prediction(&self) -> Option<JobPrediction> {
        Some(JobPrediction {
            host: self.gathered.host.clone()?,
            before: self.plan.now?,
            after: self.plan.after?,
        })
    }

    /// Seconds that the copying takes at the rate.
    pub(crate) fn eta_s(&self) -> u64 {
        self.plan.bytes_moved.div_ceil(self.rate_bytes_per_s)
    }
}
