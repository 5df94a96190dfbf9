//! The bytes as they are stored: sizes and CRC-32, without a key.

use std::io::Read;

use futures_util::{StreamExt, stream};
use pgark_repository::{Backup, ClusterRepository, ObjectKey, RepositoryError};

use super::{Fault, Findings};
use crate::damage::{damaged, reading_failed};
use crate::survey::blocking;

/// An object and what `backup.json` says of it.
struct Listed {
    key: ObjectKey,
    size: u64,
    crc32: String,
}

pub(super) async fn verify(repository: &ClusterRepository, backup: &Backup, jobs: usize, findings: &mut Findings) {
    let mut checks = stream::iter(listed(repository, backup))
        .map(|listed| async move {
            let checked = check(repository, &listed).await;
            (listed, checked)
        })
        .buffered(jobs);
    while let Some((listed, checked)) = checks.next().await {
        findings.objects += 1;
        match checked {
            Ok(()) => findings.stored_bytes += listed.size,
            Err(error) => findings.faults.push(Fault::of_backup(backup, &listed.key, &error)),
        }
    }
}

fn listed(repository: &ClusterRepository, backup: &Backup) -> Vec<Listed> {
    let parts = backup.parts.iter().map(|part| Listed {
        key: repository.part_key(backup, part.number),
        size: part.stored_size,
        crc32: part.crc32.clone(),
    });
    let included = (1..)
        .zip(&backup.included)
        .map(|(number, included)| (repository.included_key(backup, number), &included.object));
    let lists = [(repository.manifest_key(backup), &backup.manifest), (repository.index_key(backup), &backup.index)];
    let files = lists.into_iter().chain(included);
    let files = files.map(|(key, file)| Listed { key, size: file.stored_size, crc32: file.crc32.clone() });
    parts.chain(files).collect()
}

async fn check(repository: &ClusterRepository, listed: &Listed) -> Result<(), RepositoryError> {
    let mut reader = repository.store().open_reader(&listed.key).await?;
    let wrong = |what: &str, found: String, expected: String| {
        damaged(repository, &listed.key, format!("its {what} is {found}, backup.json says {expected}"))
    };
    if reader.size() != listed.size {
        return Err(wrong("size", reader.size().to_string(), listed.size.to_string()));
    }
    let (place, key) = (repository.clone(), listed.key.clone());
    let found = blocking(move || {
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match reader.read(&mut buffer).map_err(|error| reading_failed(&place, &key, error))? {
                0 => return Ok(format!("{:08x}", hasher.finalize())),
                count => hasher.update(&buffer[..count]),
            }
        }
    });
    let found = found.await?;
    if found == listed.crc32 { Ok(()) } else { Err(wrong("CRC-32", found, listed.crc32.clone())) }
}
