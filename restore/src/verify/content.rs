//! What is in a backup: every file has the size and the checksum of PostgreSQL's manifest, and every object is whole.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pgark_command::{Progress, ProgressDisplay};
use pgark_repository::{Backup, ClusterRepository, IndexedMember, RepositoryError};
use tokio::runtime::Handle;

use super::{Fault, Findings, stored};
use crate::copies::Copies;
use crate::extract::{ExtractError, LastParent, Parts, Sink};
use crate::included::check_content;
use crate::survey::survey;

pub(super) async fn verify(
    repository: &ClusterRepository,
    backup: &Backup,
    jobs: usize,
    display: ProgressDisplay,
    findings: &mut Findings,
) {
    match survey(repository, backup).await {
        Ok(survey) => {
            findings.files += survey.files;
            findings.file_bytes += survey.layout.bytes;
        }
        // Without its lists only the stored bytes of a backup can be looked at.
        Err(error) => {
            let before = findings.faults.len();
            stored::verify(repository, backup, jobs, findings).await;
            if findings.faults.len() == before {
                findings.faults.push(Fault::of_backup(backup, &repository.index_key(backup), &error));
            }
            return;
        }
    }
    findings.objects += backup.parts.len() as u64 + 2;
    findings.stored_bytes += backup.totals.stored_size;
    let progress = Progress::start("verify", display);
    progress.set_total(backup.totals.raw_size);
    let failures = read_parts(repository, backup, jobs, progress).await;
    let fault = |error: RepositoryError| Fault::of_backup(backup, &repository.index_key(backup), &error);
    findings.faults.extend(failures.into_iter().map(fault));
    for (number, included) in (1..).zip(&backup.included) {
        findings.objects += 1;
        if let Err(error) = check_content(repository, backup, number, &included.object).await {
            findings.faults.push(Fault::of_backup(backup, &repository.included_key(backup, number), &error));
        }
    }
}

async fn read_parts(
    repository: &ClusterRepository,
    backup: &Backup,
    jobs: usize,
    progress: Progress,
) -> Vec<RepositoryError> {
    let (copies, runtime) = (Copies::of(repository.clone(), backup.clone()), Handle::current());
    let read = tokio::task::spawn_blocking(move || {
        let sink = Nowhere::default();
        let parts = Parts { copies: &copies, jobs, progress: &progress, sink: &sink };
        let ended = parts.read(&runtime);
        let mut failures = sink.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.extend(ended.err().map(repository_error));
        failures
    });
    read.await.unwrap_or_else(|error| vec![RepositoryError::Input(format!("reading stopped: {error}"))])
}

/// Files are checked and not kept; failures of parts are collected.
#[derive(Default)]
struct Nowhere(Mutex<Vec<RepositoryError>>);

impl Sink for Nowhere {
    fn directory(&self, _: &IndexedMember) -> Result<(), ExtractError> {
        Ok(())
    }

    fn file(&self, _: &mut LastParent, _: &IndexedMember) -> Result<Option<File>, ExtractError> {
        Ok(None)
    }

    fn discard(&self, _: &mut LastParent, _: &IndexedMember) -> Result<(), ExtractError> {
        Ok(())
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        PathBuf::from(String::from_utf8_lossy(path).into_owned())
    }

    fn part_failed(&self, error: ExtractError) -> Result<(), ExtractError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(repository_error(error));
        Ok(())
    }
}

fn repository_error(error: ExtractError) -> RepositoryError {
    match error {
        ExtractError::Repository(error) => error,
        other => RepositoryError::Input(other.to_string()),
    }
}
