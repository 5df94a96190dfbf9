//! Directories outside of the data directory, such as one with configuration: each is a tar archive of its own, since
//! the server's manifest knows nothing of it.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::fan_out::FanOut;
use super::{CheckedBackup, compress_failure, hex, stored_file};
use crate::backup::Included;
use crate::error::{RepositoryError, Result};
use crate::tar_header::{END_OF_ARCHIVE, TarMember, tar_padding};

/// A directory with all that is in it, in memory: meant for configuration, not for data.
#[derive(Debug)]
pub struct IncludedDirectory {
    directory: String,
    files: u64,
    archive: Vec<u8>,
}

impl IncludedDirectory {
    /// An empty one. `directory` is its absolute path.
    #[must_use]
    pub fn new(directory: String) -> Self {
        Self { directory, files: 0, archive: Vec::new() }
    }

    /// Appends a file with its content, or a directory (whose content is empty); the path is relative to the directory.
    ///
    /// # Errors
    /// `Input` for a path that cannot be stored.
    pub fn add(&mut self, member: &TarMember, content: &[u8]) -> Result<()> {
        let header = member.header().map_err(|error| RepositoryError::Input(error.to_string()))?;
        self.archive.extend_from_slice(&header);
        self.archive.extend_from_slice(content);
        self.archive.resize(self.archive.len() + tar_padding(content.len() as u64), 0);
        self.files += u64::from(member.size.is_some());
        Ok(())
    }

    /// Its absolute path.
    #[must_use]
    pub fn directory(&self) -> &str {
        &self.directory
    }
}

impl CheckedBackup {
    /// Stores directories that belong to the backup besides the data directory.
    ///
    /// # Errors
    /// When a repository fails.
    pub async fn include(&mut self, directories: Vec<IncludedDirectory>, level: i32) -> Result<()> {
        let targets = &self.stored.targets;
        self.included.resize_with(targets.count(), Vec::new);
        for (number, mut included) in (1..).zip(directories) {
            included.archive.extend_from_slice(&END_OF_ARCHIVE);
            let sha256 = hex(&Sha256::digest(&included.archive));
            let compressed = compress(&included.archive, level)?;
            let key = |keys: &crate::keys::ClusterKeys, sealing| keys.included(&self.stored.id, number, sealing);
            let mut output = FanOut::begin(targets, key).await?;
            if let Err(error) = output.write(compressed).await {
                output.abort().await;
                return Err(error);
            }
            let objects = output.finish().await?;
            for (place, target) in targets.there() {
                let (repository, list) = (&target.repository, &mut self.included[place]);
                let Some(object) = objects[place] else { continue };
                let key = repository.keys().included(&self.stored.id, number, repository.sealing());
                list.push(Included {
                    directory: included.directory.clone(),
                    files: included.files,
                    raw_size: included.archive.len() as u64,
                    object: stored_file(format!("included/{}", key.file_name()), object, &sha256),
                });
            }
        }
        Ok(())
    }
}

fn compress(archive: &[u8], level: i32) -> Result<Bytes> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level).map_err(compress_failure)?;
    encoder.include_checksum(true).map_err(compress_failure)?;
    std::io::Write::write_all(&mut encoder, archive).map_err(compress_failure)?;
    Ok(encoder.finish().map_err(compress_failure)?.into())
}
