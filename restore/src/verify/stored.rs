//! The bytes as they are stored: CRC-32, without a key.

use futures_util::{StreamExt, stream};
use pgark_repository::{Backup, BackupObject, ClusterRepository};

use super::{Fault, Findings};
use crate::stored_object::check_stored;

pub(super) async fn verify(
    repository: &ClusterRepository,
    backup: &Backup,
    objects: &[&BackupObject],
    jobs: usize,
    findings: &mut Findings,
) {
    let mut checks = stream::iter(objects)
        .map(|object| async move { (object, check_stored(repository, object).await) })
        .buffered(jobs);
    while let Some((object, checked)) = checks.next().await {
        findings.objects += 1;
        match checked {
            Ok(()) => findings.stored_bytes += object.size,
            Err(error) => findings.add(Fault::of_backup(backup, &object.key, &error)),
        }
    }
}
