//! Watching a job to its end. Ctrl-C ends the watching, not the job.

use super::view::{View, load, view};
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::progress::Progress;
use crate::table::print_line;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ukai_meta::catalog;
use ukai_meta::job::JobState;

/// Between looks: the front's figures change four times a second.
const LOOK: Duration = Duration::from_millis(500);
/// What fronts on other hosts leave with nodes changes every 5 s.
const LOOK_FAR: Duration = Duration::from_secs(2);
/// Without a terminal a line is printed so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How watching ended.
#[derive(Debug)]
pub(crate) enum Watched {
    Ended(Box<View>),
    /// Ctrl-C.
    Left,
}

/// Until the job has ended, or the administrator has seen enough.
#[allow(clippy::disallowed_methods)] // paces output for people
pub(crate) fn watch(context: &Context, name: &str) -> Result<Watched> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|error| ToolError::refused(format!("watch signals: {error}")))?;
    }
    let volume = context.volume_id(name)?;
    let mut changes = catalog::watch_job(&*context.store, volume)?;
    let progress = Progress::new(name, 100);
    let mut told_at: Option<Instant> = None;
    loop {
        let (map, job) = load(context, name)?;
        let view = view(context, &map, job)?;
        if view.job.state.is_ended() {
            return Ok(Watched::Ended(Box::new(view)));
        }
        let line = format!("{name}: {}", view.line());
        progress.set(view.percent());
        progress.message(&line);
        if progress.is_hidden() && told_at.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            told_at = Some(Instant::now());
            if context.output.json {
                print_line(&view.json().to_string());
            } else {
                print_line(&line);
            }
        }
        let is_far = view.is_attached && (view.told_s_ago.is_some() || !view.is_told);
        changes.wait(if is_far { LOOK_FAR } else { LOOK })?;
        if interrupted.load(Ordering::Relaxed) {
            return Ok(Watched::Left);
        }
    }
}

/// Watches, and says how it ended; a job that failed or was cancelled is an error.
pub(crate) fn to_its_end(context: &Context, name: &str) -> Result<()> {
    match watch(context, name)? {
        Watched::Left => Err(ToolError::left(format!(
            "interrupted; the job of volume {name} goes on"
        ))
        .next(format!(
            "`ukai-tools job watch {name}` looks again, `ukai-tools job pause {name}` or `cancel` stops it"
        ))),
        Watched::Ended(view) => ended(context, name, &view),
    }
}

pub(crate) fn ended(context: &Context, name: &str, view: &View) -> Result<()> {
    match &view.job.state {
        JobState::Failed { why } => Err(ToolError::refused(format!(
            "the relocation of volume {name} failed: {why}"
        ))
        .next(format!(
            "what has moved stays; `ukai-tools job resume {name}` goes on once the reason is gone"
        ))),
        JobState::Cancelled => Err(ToolError::refused(format!(
            "the relocation of volume {name} was cancelled; what has moved stays"
        ))),
        _ => {
            context
                .output
                .show(&view.json(), || format!("{name}: {}", view.line()));
            Ok(())
        }
    }
}
