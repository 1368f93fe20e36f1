//! How a job is shown.

use super::args::ProtectArg;
use crate::context::{Context, Names};
use crate::error::Result;
use crate::front;
use crate::relocate::gather::now_unix_s;
use crate::report;
use crate::table::fields;
use crate::units::ByteSize;
use serde::Serialize;
use serde_json::{Value, json};
use ukai_meta::catalog;
use ukai_meta::job::{self, Batch, JobProgress, JobRecord, JobState, Next, Wait};
use ukai_meta::map::VolumeMap;
use ukai_meta::report::FrontReport;

/// A job, and how it goes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    #[serde(skip)]
    pub(crate) job: JobRecord,
    pub(crate) progress: JobProgress,
    /// A front works on it.
    pub(crate) is_attached: bool,
    #[serde(skip)]
    chunk_bytes: u64,
    /// The progress was told by the front; else it is what the map says.
    pub(crate) is_told: bool,
    /// Seconds ago, if it was read from a node's memory: the front runs on another host.
    pub(crate) told_s_ago: Option<u64>,
}

/// Fronts publish every 5 s. What is older, by clocks of two hosts, says nothing about now.
const FRESH_S: u64 = 30;

/// The volume's job as its front tells, or as far as the map does.
pub(crate) fn view(context: &Context, map: &VolumeMap, job: JobRecord) -> Result<View> {
    let told = told(context, map, &job);
    let is_told = told.is_some();
    let (mut progress, told_s_ago) = told.unwrap_or_default();
    // The map is newer than what anybody told.
    let outlook = job::next(map, &as_running(&job), BATCH, |_| true, false);
    progress.state = job.state.word().into();
    progress.total_chunks = outlook.chunks_total;
    progress.copied_chunks = outlook.chunks_copied;
    progress.moved_chunks = outlook.chunks_done;
    if !is_told {
        progress.limited_by = match (&job.state, &outlook.next) {
            (JobState::Running, _) if map.head.attach.is_none() => "nobody has it attached".into(),
            (JobState::Running, Next::Wait(Wait::Node(node))) => {
                format!("waits for node {}", context.names()?.name(*node))
            }
            (JobState::Running, _) => "its front does not say (yet)".into(),
            (state, _) => state.word().into(),
        };
    }
    Ok(View {
        is_attached: map.head.attach.is_some(),
        chunk_bytes: map.head.chunk_bytes,
        job,
        progress,
        is_told,
        told_s_ago,
    })
}

const BATCH: Batch = Batch {
    chunks_max: 1,
    changes_max: 16,
};

/// Counts are of the goals, whatever the state.
fn as_running(job: &JobRecord) -> JobRecord {
    JobRecord {
        state: JobState::Running,
        ..job.clone()
    }
}

/// What the front says: itself, if it runs on this host, else what it left with the volume's nodes, and
/// how many seconds ago.
fn told(context: &Context, map: &VolumeMap, job: &JobRecord) -> Option<(JobProgress, Option<u64>)> {
    map.head.attach.as_ref()?;
    let itself = || -> Option<JobProgress> {
        let record = context.front(&map.head).ok()??;
        let answer = front::ask(&record, &json!({ "cmd": "status" })).ok()?;
        let progress: JobProgress =
            serde_json::from_value(answer["control"]["job"].clone()).ok()?;
        Some(progress).filter(|progress| progress.is_of(job))
    };
    if let Some(progress) = itself() {
        return Some((progress, None));
    }
    let (cluster, names) = (context.cluster().ok()?.cluster, context.names().ok()?);
    let report = report::front_silently(cluster, &names, map)?;
    let (progress, age_s) = of_report(report, map, job, now_unix_s())?;
    Some((progress, Some(age_s)))
}

/// Progress of this job, by the front that has the volume attached now, lately. Pure.
fn of_report(
    report: FrontReport,
    map: &VolumeMap,
    job: &JobRecord,
    now_unix_s: u64,
) -> Option<(JobProgress, u64)> {
    // A report from before the job is about the one before.
    let is_ours = map
        .head
        .attach
        .as_ref()
        .is_some_and(|attach| attach.host == report.host)
        && report.at_unix_s >= job.created_unix_s;
    // The clocks of two hosts differ either way.
    let is_fresh = report.at_unix_s.abs_diff(now_unix_s) <= FRESH_S;
    let age_s = now_unix_s.saturating_sub(report.at_unix_s);
    report
        .job
        .filter(|progress| is_ours && is_fresh && progress.is_of(job))
        .map(|progress| (progress, age_s))
}

/// How much is done. Chunks count when their whole batch is in sync; in between, the bytes tell, at least that much is
/// there.
fn percent(progress: &JobProgress, chunk_bytes: u64) -> u64 {
    let total = progress.total_chunks.max(1);
    let by_chunks = progress.copied_chunks * 100 / total;
    let whole = u128::from(total) * u128::from(chunk_bytes.max(1));
    let by_bytes = u128::from(progress.copied_bytes) * 100 / whole;
    by_chunks.max(u64::try_from(by_bytes).unwrap_or(99).min(99))
}

/// Microseconds for people.
pub(crate) fn us_text(us: u64) -> String {
    if us >= 1000 {
        let text = format!("{}.{:03}", us / 1000, us % 1000);
        format!("{}ms", text.trim_end_matches('0').trim_end_matches('.'))
    } else {
        format!("{us}us")
    }
}

/// Seconds for people.
pub(crate) fn span_text(seconds: u64) -> String {
    match seconds {
        0..=99 => format!("{seconds}s"),
        100..=5999 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

pub(crate) fn rate_text(bytes_per_s: u64) -> String {
    format!("{}/s", ByteSize(bytes_per_s).about())
}

impl View {
    pub(crate) fn percent(&self) -> u64 {
        percent(&self.progress, self.chunk_bytes)
    }

    /// One line: `42% 118MiB/s, eta 3m10s, guest p99 1.2ms of 3ms, limited by: guest p99`.
    pub(crate) fn line(&self) -> String {
        let progress = &self.progress;
        let mut parts = vec![format!(
            "{}/{} chunks, {} copied",
            progress.copied_chunks,
            progress.total_chunks,
            ByteSize(progress.copied_bytes).about()
        )];
        if self.is_told && !self.job.state.is_ended() {
            parts.push(rate_text(progress.rate_bytes_per_s));
            parts.extend(progress.eta_s.map(|eta| format!("eta {}", span_text(eta))));
            parts.extend(self.p99_text());
        }
        parts.push(match self.job.state {
            JobState::Running => format!("limited by: {}", progress.limited_by),
            _ => progress.state.clone(),
        });
        parts.join(", ")
    }

    pub(crate) fn p99_text(&self) -> Option<String> {
        let progress = &self.progress;
        let p99 = progress.guest_p99_us.map(us_text);
        match (p99, progress.budget_us) {
            (Some(p99), Some(budget)) => Some(format!("guest p99 {p99} of {}", us_text(budget))),
            (Some(p99), None) => Some(format!("guest p99 {p99}")),
            (None, _) => None,
        }
    }

    /// For `--json`: the record without its many goals.
    pub(crate) fn json(&self) -> Value {
        let mut job = serde_json::to_value(&self.job).unwrap_or_default();
        if let Some(map) = job.as_object_mut() {
            map.insert("goals".into(), self.job.goals.len().into());
        }
        json!({ "job": job, "progress": self.progress, "attached": self.is_attached, "told_by_front": self.is_told,
                "told_s_ago": self.told_s_ago })
    }

    /// For people.
    pub(crate) fn text(&self, names: &Names) -> String {
        let (job, progress) = (&self.job, &self.progress);
        let state = match &job.state {
            JobState::Failed { why } => format!("failed: {why}"),
            state => state.word().into(),
        };
        let none = || "none".to_owned();
        let list = |nodes: &[ukai_proto::NodeId]| {
            let list: Vec<String> = nodes.iter().map(|node| names.name(*node)).collect();
            if list.is_empty() {
                "-".into()
            } else {
                list.join(",")
            }
        };
        let mut rows = vec![
            ("volume", job.name.clone()),
            ("asked", job.asked.clone()),
            ("state", state),
            (
                "chunks",
                format!(
                    "{} of {} copied, {} moved",
                    progress.copied_chunks, progress.total_chunks, progress.moved_chunks
                ),
            ),
            (
                "rate",
                job.limits.rate_bytes_per_s.map_or_else(none, rate_text),
            ),
            (
                "protect",
                job.limits
                    .protect
                    .map_or_else(none, |p| ProtectArg(p).to_string()),
            ),
        ];
        if let Some(base) = job.limits.protect.and_then(|p| p.base_us) {
            rows.push(("base p99", us_text(base)));
        }
        if job.limits.detach_old_after_s > 0 {
            rows.push(("old copies kept", span_text(job.limits.detach_old_after_s)));
        }
        if self.is_told {
            rows.push(("copied", ByteSize(progress.copied_bytes).about()));
            rows.push(("pace", rate_text(progress.rate_bytes_per_s)));
            rows.extend(self.p99_text().map(|text| ("guest", text)));
            rows.extend(
                self.told_s_ago
                    .map(|s| ("told", format!("by its front on another host, {s}s ago"))),
            );
        }
        if job.state == JobState::Running {
            rows.push(("limited by", progress.limited_by.clone()));
            rows.extend(progress.eta_s.map(|eta| ("eta", span_text(eta))));
        }
        for set in job.sets.iter().take(8) {
            let text = format!("to {}, from {}", list(&set.add), list(&set.remove));
            rows.push(("goal", text));
        }
        fields(&rows)
    }
}

/// The job of a volume that may have been deleted meanwhile.
pub(crate) fn load(context: &Context, name: &str) -> Result<(VolumeMap, JobRecord)> {
    let map = context.volume(name)?;
    let (job, _) = catalog::job(&*context.store, map.head.volume)?
        .ok_or_else(|| catalog::CatalogError::NoJob(name.into()))?;
    Ok((map, job))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_of_a_batch_counts() {
        let of = |copied_chunks, copied_bytes| {
            let progress = JobProgress {
                total_chunks: 128,
                copied_chunks,
                copied_bytes,
                ..JobProgress::default()
            };
            percent(&progress, 1 << 20)
        };
        assert_eq!(of(0, 32 << 20), 25);
        assert_eq!(of(0, 500 << 20), 99, "copied twice, not done");
        assert_eq!(
            of(64, 1 << 20),
            50,
            "mostly empty chunks, or another front began it"
        );
        assert_eq!(of(128, 128 << 20), 100);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(us_text(999), "999us");
        assert_eq!(us_text(3000), "3ms");
        assert_eq!(us_text(1250), "1.25ms");
        assert_eq!(us_text(100_010), "100.01ms");
        assert_eq!(span_text(99), "99s");
        assert_eq!(span_text(190), "3m10s");
        assert_eq!(span_text(7260), "2h01m");
    }
}
