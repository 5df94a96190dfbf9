//! The bytes of a backup's object as they are stored.

use std::io::Read;

use pgark_repository::{BackupObject, ClusterRepository, RepositoryError};

use crate::damage::{damaged, reading_failed};
use crate::survey::blocking;

/// Reads an object to its end and compares size and CRC-32 with what `backup.json` says: needs no key.
pub(crate) async fn check_stored(repository: &ClusterRepository, object: &BackupObject) -> Result<(), RepositoryError> {
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
