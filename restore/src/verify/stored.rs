//! The bytes as they are stored: CRC-32, without a key.

use std::io::Read;

use futures_util::{StreamExt, stream};
use pgark_repository::{Backup, BackupObject, ClusterRepository, RepositoryError};

use super::{Fault, Findings};
use crate::damage::{damaged, reading_failed};
use crate::survey::blocking;

pub(super) async fn verify(
    repository: &ClusterRepository,
    backup: &Backup,
    objects: &[&BackupObject],
    jobs: usize,
    findings: &mut Findings,
) {
    let mut checks =
        stream::iter(objects).map(|object| async move { (object, check(repository, object).await) }).buffered(jobs);
    while let Some((object, checked)) = checks.next().await {
        findings.objects += 1;
        match checked {
            Ok(()) => findings.stored_bytes += object.size,
            Err(error) => findings.add(Fault::of_backup(backup, &object.key, &error)),
        }
    }
}

async fn check(repository: &ClusterRepository, object: &BackupObject) -> Result<(), RepositoryError> {
    let mut reader = repository.store().open_reader(&object.key).await?;
    let wrong = |what: &str, found: String, expected: String| {
        damaged(repository, &object.key, format!("its {what} is {found}, backup.json says {expected}"))
    };
    if reader.size() != object.size {
        return Err(wrong("size", reader.size().to_string(), object.size.to_string()));
    }
    let (place, key) = (repository.clone(), object.key.clone());
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
    if found == object.crc32 { Ok(()) } else { Err(wrong("CRC-32", found, object.crc32.clone())) }
}
