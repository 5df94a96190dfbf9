//! Proofs: what a drill or a verification found out about backups, as small objects that are never changed.
//!
//! They lie in a place of their own, since who reads backups has no right to write where they are. Nothing depends on
//! them but reports and the choice of what a sampling verification reads next: a lost proof costs some reading.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use pgark_postgres::{SegmentName, SystemIdentifier};
use serde::{Deserialize, Serialize};

use crate::backup_id::BackupId;
use crate::cluster::ClusterRepository;
use crate::error::{RepositoryError, Result};
use crate::keys::ObjectKey;
use crate::store::Creation;

/// The newest format of proofs that this program reads, and the one that it writes.
pub const PROOF_FORMAT: u64 = 1;
/// One line for each stretch of parts and of WAL that was read.
const PROOF_LIMIT: u64 = 16 << 20;
/// How many are read at once.
const AT_ONCE: usize = 8;

/// What one drill or verification found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// [`PROOF_FORMAT`] of the writer.
    pub format: u64,
    /// What was done.
    pub kind: ProofKind,
    /// When it ended.
    pub time: Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// Where it ran.
    pub host: String,
    /// The repository's name in the configuration there.
    pub repository: String,
    /// The cluster's name.
    pub cluster: String,
    /// Its system identifier.
    pub system_identifier: SystemIdentifier,
    /// Whether nothing was wrong.
    pub passed: bool,
    /// One sentence on what was done, or on what was wrong.
    pub summary: String,
    /// The backups that it tells about.
    pub backups: Vec<ProvenBackup>,
    /// The archived WAL that was read and found whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wal: Vec<ReadSegments>,
    /// The program that wrote it.
    pub written_by: String,
}

/// What was done for a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofKind {
    /// The backup was restored and started.
    Drill,
    /// Every file was compared with PostgreSQL's manifest, and the WAL was read.
    Full,
    /// The stored bytes were compared with their checksums.
    Quick,
    /// A part of what is stored was read.
    Sample,
}

impl ProofKind {
    /// The word in names and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drill => "drill",
            Self::Full => "full",
            Self::Quick => "quick",
            Self::Sample => "sample",
        }
    }
}

/// A backup in a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvenBackup {
    /// Which one.
    pub id: BackupId,
    /// Whether nothing was wrong with it.
    pub passed: bool,
    /// Its objects that were read and found whole, by their names in the backup's folder: stretches of them in the
    /// order of names, each with its first and its last one. Nothing where all of them were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Vec<(String, String)>>,
}

/// A stretch of archived WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadSegments {
    /// The first segment.
    pub first: SegmentName,
    /// The last one, on the same timeline.
    pub last: SegmentName,
}

/// On the place of proofs, not on a repository of backups.
impl ClusterRepository {
    /// Stores a proof and returns its key.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn record_proof(&self, proof: &Proof) -> Result<ObjectKey> {
        let mut json = serde_json::to_vec(proof)
            .map_err(|error| RepositoryError::Input(format!("writing a proof failed: {error}")))?;
        json.push(b'\n');
        let time = proof.time.strftime("%Y%m%dT%H%M%SZ");
        let name = format!("{time}-{}-{:08x}", proof.kind.as_str(), crc32fast::hash(&json));
        let key = self.keys().proof(&name);
        match self.store().create(&key, Bytes::from(json)).await? {
            Creation::Created | Creation::Identical => Ok(key),
            Creation::Different => Err(RepositoryError::Conflict { repository: self.name().to_owned(), key }),
        }
    }

    /// Reads the newest proofs, at most `limit`, newest first. One that cannot be understood is left out: it proves
    /// nothing.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn proofs(&self, limit: usize) -> Result<Vec<Proof>> {
        let (mut objects, _) = self.store().list_folder(&self.keys().proofs()).await?;
        objects.retain(|object| object.key.file_name().ends_with(".json"));
        objects.sort_by(|one, other| other.key.cmp(&one.key));
        let read = objects.into_iter().take(limit).map(|object| async move {
            match self.store().read(&object.key, PROOF_LIMIT).await {
                Ok(bytes) => Ok(serde_json::from_slice::<Proof>(&bytes).ok()),
                Err(RepositoryError::NotFound { .. } | RepositoryError::Damaged { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let mut read = stream::iter(read).buffered(AT_ONCE);
        let mut proofs = Vec::new();
        while let Some(proof) = read.next().await {
            proofs.extend(proof?.filter(|proof| proof.format <= PROOF_FORMAT));
        }
        // Names tell seconds only.
        proofs.sort_by_key(|proof| std::cmp::Reverse(proof.time));
        Ok(proofs)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{Repository, RepositoryOptions};

    fn proof(second: i64, summary: &str) -> Proof {
        Proof {
            format: PROOF_FORMAT,
            kind: ProofKind::Drill,
            time: Timestamp::from_second(1_800_000_000 + second).unwrap(),
            seconds: 1.5,
            host: "here".to_owned(),
            repository: "local".to_owned(),
            cluster: "main".to_owned(),
            system_identifier: "7000000000000000001".parse().unwrap(),
            passed: true,
            summary: summary.to_owned(),
            backups: Vec::new(),
            wal: Vec::new(),
            written_by: "test".to_owned(),
        }
    }

    #[tokio::test]
    async fn proofs_come_back_newest_first_and_what_is_no_proof_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().display());
        let options = RepositoryOptions { name: "proofs".to_owned(), url, ..RepositoryOptions::default() };
        let place = Repository::open(&options).unwrap();
        let place = place.cluster("main", "7000000000000000001".parse().unwrap()).unwrap();
        assert!(place.proofs(10).await.unwrap().is_empty());
        for second in [2, 1, 3] {
            let key = place.record_proof(&proof(second, "fine")).await.unwrap();
            assert_eq!(place.record_proof(&proof(second, "fine")).await.unwrap(), key);
        }
        place.record_proof(&proof(1, "another in the same second")).await.unwrap();
        let mut newer = proof(9, "from the future");
        newer.format += 1;
        place.record_proof(&newer).await.unwrap();
        let folder = directory.path().join(place.keys().proofs().as_str());
        std::fs::write(folder.join("20990101T000000Z-drill-00000000.json"), "{").unwrap();
        let seconds: Vec<_> =
            place.proofs(10).await.unwrap().iter().map(|proof| proof.time.as_second() % 100).collect();
        assert_eq!(seconds, [3, 2, 1, 1]);
        assert_eq!(place.proofs(3).await.unwrap().len(), 1);
    }
}
