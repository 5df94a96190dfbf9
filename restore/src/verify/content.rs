//! What is in a backup: every file has the size and the checksum of PostgreSQL's manifest, every page its own checksum
//! where the cluster has them, and every object is whole.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use pgark_command::{Progress, ProgressDisplay};
use pgark_postgres::{PAGE_SIZE, PageChecker, PageRules, WrongPages};
use pgark_repository::{Backup, BackupObject, BackupObjectKind, ClusterRepository, IndexedMember, RepositoryError};
use tokio::runtime::Handle;

use super::{Fault, Findings, stored};
use crate::copies::Copies;
use crate::extract::{ExtractError, LastParent, Parts, Sink};
use crate::included::check_content;
use crate::survey::{Survey, survey};

/// Reads some of a backup's objects; the lists are read with any part, since they say what is in it.
pub(super) async fn verify(
    repository: &ClusterRepository,
    backup: &Backup,
    objects: &[&BackupObject],
    jobs: usize,
    display: ProgressDisplay,
    findings: &mut Findings,
) {
    let chosen_parts: BTreeSet<u32> = objects
        .iter()
        .filter_map(|object| match object.kind {
            BackupObjectKind::Part(number) => Some(number),
            _ => None,
        })
        .collect();
    let wants_lists = objects.iter().any(|object| !matches!(object.kind, BackupObjectKind::Included(_)));
    if wants_lists {
        match survey(repository, backup).await {
            Ok(survey) => {
                read_parts(repository, backup, survey, chosen_parts, jobs, display, findings).await;
            }
            // Without its lists only the stored bytes of a backup can be looked at.
            Err(error) => {
                let before = findings.faults_of(backup);
                stored::verify(repository, backup, objects, jobs, findings).await;
                if findings.faults_of(backup) == before {
                    findings.add(Fault::of_backup(backup, &repository.index_key(backup), &error));
                }
                return;
            }
        }
    }
    // The parts were held against their CRC-32 while they were read; the others are small.
    let (parts, others): (Vec<&BackupObject>, Vec<&BackupObject>) =
        objects.iter().partition(|object| matches!(object.kind, BackupObjectKind::Part(_)));
    findings.objects += parts.len() as u64;
    findings.stored_bytes += parts.iter().map(|part| part.size).sum::<u64>();
    stored::verify(repository, backup, &others, jobs, findings).await;
    for object in others {
        let BackupObjectKind::Included(number) = object.kind else { continue };
        let Some(included) = backup.included.get(number as usize - 1) else { continue };
        if let Err(error) = check_content(repository, backup, number, &included.object).await {
            findings.add(Fault::of_backup(backup, &object.key, &error));
        }
    }
}

async fn read_parts(
    repository: &ClusterRepository,
    backup: &Backup,
    survey: Survey,
    chosen: BTreeSet<u32>,
    jobs: usize,
    display: ProgressDisplay,
    findings: &mut Findings,
) {
    let control = &survey.control;
    let has_pages = control.data_checksums && control.block_size as usize == PAGE_SIZE;
    let pages = has_pages
        .then_some(PageRules { start_lsn: backup.start_lsn, blocks_per_file: control.blocks_per_relation_file });
    let sink = Seen { chosen, pages, found: Mutex::default() };
    let progress = Progress::start("verify", display);
    let raw = backup.parts.iter().filter(|part| sink.wants(part.number)).map(|part| part.raw_size);
    progress.set_total(raw.sum());
    let index_key = repository.index_key(backup);
    let (copies, runtime) = (Copies::of(repository.clone(), backup.clone()), Handle::current());
    let done = tokio::task::spawn_blocking(move || {
        let parts = Parts { copies: &copies, jobs, progress: &progress, sink: &sink };
        let ended = parts.read(&runtime);
        let mut found = sink.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.failures.extend(ended.err().map(repository_error));
        found
    });
    let stopped = |error| Found {
        failures: vec![RepositoryError::Input(format!("reading stopped: {error}"))],
        ..Found::default()
    };
    let found = done.await.unwrap_or_else(stopped);
    findings.files += found.files;
    findings.file_bytes += found.bytes;
    for error in found.failures {
        findings.add(Fault::of_backup(backup, &index_key, &error));
    }
    for (part, path, wrong) in found.pages {
        findings.add_another(Fault {
            backup: Some(backup.id.clone()),
            object: repository.part_key(backup, part).to_string(),
            reason: format!(
                "`{path}` has {} pages with a wrong checksum, block {} first, as it had when it was backed up",
                wrong.count,
                wrong.first.unwrap_or(0)
            ),
            consequence: format!("backup {} can be restored, but not these pages", backup.id),
            damaged: true,
        });
    }
}

/// Files are checked and not kept; what is wrong is collected.
struct Seen {
    chosen: BTreeSet<u32>,
    pages: Option<PageRules>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    failures: Vec<RepositoryError>,
    files: u64,
    bytes: u64,
    /// The part, the file in it, and its pages.
    pages: Vec<(u32, String, WrongPages)>,
}

impl Seen {
    fn note(&self, note: impl FnOnce(&mut Found)) {
        note(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Sink for Seen {
    fn file(&self, _: &mut LastParent, member: &IndexedMember) -> Result<Option<Box<dyn Write + '_>>, ExtractError> {
        self.note(|found| {
            found.files += 1;
            found.bytes += member.file.map_or(0, |file| file.size);
        });
        Ok(None)
    }

    fn wants(&self, part: u32) -> bool {
        self.chosen.contains(&part)
    }

    fn pages(&self, member: &IndexedMember) -> Option<PageChecker> {
        self.pages?.checker(&member.path)
    }

    fn pages_checked(&self, member: &IndexedMember, wrong: WrongPages) {
        if wrong.count > 0 {
            self.note(|found| {
                found.pages.push((member.part, String::from_utf8_lossy(&member.path).into_owned(), wrong))
            });
        }
    }

    fn part_failed(&self, error: ExtractError) -> Result<(), ExtractError> {
        self.note(|found| found.failures.push(repository_error(error)));
        Ok(())
    }
}

fn repository_error(error: ExtractError) -> RepositoryError {
    match error {
        ExtractError::Repository(error) => error,
        other => RepositoryError::Input(other.to_string()),
    }
}
