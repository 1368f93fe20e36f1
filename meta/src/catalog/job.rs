//! Relocation jobs: one record per volume. Tools create and steer it, the front that runs it writes its
//! end; every change is conditional on the record's version.

use super::{CatalogError, Step, decide, get_json, json, list_volumes};
use crate::job::{JobError, JobRecord};
use crate::key;
use crate::store::{CommitError, KvVersion, MetaError, MetaStore, Watch, Write};
use ukai_proto::VolumeId;

/// Makes a job. Refused while another one of the volume has not ended; one that has is replaced. The
/// caller has checked it against the map ([`JobRecord::check`]).
pub fn create_job(store: &dyn MetaStore, job: &JobRecord) -> Result<KvVersion, CatalogError> {
    decide(store, || {
        // A deletion that begins meanwhile conflicts: it must not leave the job behind.
        let head = store
            .get(&key::head(job.volume))?
            .ok_or_else(|| CatalogError::NoVolume(job.name.clone()))?;
        if super::load_head(store, job.volume)?.deleting {
            return Err(CatalogError::Deleting(job.volume));
        }
        let key = key::job(job.volume);
        let write = match get_json::<JobRecord>(store, &key)? {
            // After an unknown outcome this is our own.
            Some((there, value)) if there == *job => return Ok(Step::Done(value.version)),
            Some((there, _)) if !there.state.is_ended() => {
                return Err(CatalogError::JobExists {
                    name: there.name,
                    state: there.state.word(),
                });
            }
            Some((_, value)) => Write::Set {
                key,
                bytes: json(job),
                expected: value.version,
            },
            None => Write::Create {
                key,
                bytes: json(job),
                ephemeral: false,
            },
        };
        let guard = Write::Check {
            key: key::head(job.volume),
            expected: head.version,
        };
        Ok(Step::Commit(vec![write, guard], KvVersion::default()))
    })?;
    let there = self::job(store, job.volume)?;
    Ok(there.map_or_else(KvVersion::default, |(_, version)| version))
}

/// The volume's job, whatever its state, and the version for a conditional change.
pub fn job(
    store: &dyn MetaStore,
    volume: VolumeId,
) -> Result<Option<(JobRecord, KvVersion)>, CatalogError> {
    let found = get_json(store, &key::job(volume))?;
    Ok(found.map(|(job, value)| (job, value.version)))
}

/// The jobs of all volumes, by name.
pub fn list_jobs(store: &dyn MetaStore) -> Result<Vec<JobRecord>, CatalogError> {
    let mut jobs = Vec::new();
    for volume in list_volumes(store)? {
        if let Some((mut job, _)) = self::job(store, volume.volume)? {
            job.name = volume.name;
            jobs.push(job);
        }
    }
    Ok(jobs)
}

/// Changes the volume's job: `edit` says whether anything is to be written. It may be called again.
/// Gives the record as it is then.
pub fn update_job(
    store: &dyn MetaStore,
    volume: VolumeId,
    name: &str,
    mut edit: impl FnMut(&mut JobRecord) -> Result<bool, JobError>,
) -> Result<JobRecord, CatalogError> {
    let mut tried: Option<JobRecord> = None;
    decide(store, || {
        let (mut job, version) =
            self::job(store, volume)?.ok_or_else(|| CatalogError::NoJob(name.to_owned()))?;
        if tried.as_ref() == Some(&job) {
            return Ok(Step::Done(job)); // an unknown outcome that did land
        }
        if !edit(&mut job)? {
            return Ok(Step::Done(job));
        }
        tried = Some(job.clone());
        let write = Write::Set {
            key: key::job(volume),
            bytes: json(&job),
            expected: version,
        };
        Ok(Step::Commit(vec![write], job))
    })
}

/// What a front judged a job by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobGuard {
    /// Version of the job's record.
    pub job: KvVersion,
    /// Version of the head of the volume's map.
    pub head: KvVersion,
}

/// Writes the record if it and the map are still these: how a front tells what became of the job. A job may have been
/// made from a newer map than its front has read: what is to be removed does not lie there yet, and all seems done.
pub fn store_job(
    store: &dyn MetaStore,
    job: &JobRecord,
    guard: JobGuard,
) -> Result<KvVersion, CommitError> {
    let write = Write::Set {
        key: key::job(job.volume),
        bytes: json(job),
        expected: guard.job,
    };
    let check = Write::Check {
        key: key::head(job.volume),
        expected: guard.head,
    };
    let versions = store.commit(&[write, check])?;
    Ok(versions[0])
}

/// Fires when the volume's job is made, steered or ended.
pub fn watch_job(store: &dyn MetaStore, volume: VolumeId) -> Result<Box<dyn Watch>, MetaError> {
    store.watch(&key::job(volume))
}
