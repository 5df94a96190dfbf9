//! What the repository holds of one cluster, as far as plans and lists need it: read once, then only looked at.

use std::collections::BTreeMap;

use pgark_postgres::{SystemIdentifier, TimelineHistory, TimelineId};
use pgark_repository::{Backup, BackupId, BackupList, ClusterRepository, Repository, RepositoryError, WalInventory};
use thiserror::Error;

/// Backups, archived WAL and the histories of all timelines of one cluster.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub repository: String,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    pub backups: BackupList,
    pub wal: WalInventory,
    /// Every history that is archived, and that of timeline 1, which has no file.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Other clusters that were stored under the same name, as before an upgrade.
    pub others: Vec<SystemIdentifier>,
}

/// There is nothing to read from.
#[derive(Debug, Error)]
pub enum CatalogueError {
    #[error("nothing is stored for the cluster `{cluster}` in the repository `{repository}`")]
    Empty { cluster: String, repository: String },
    #[error(
        "the cluster `{cluster}` has no system identifier {wanted} in the repository `{repository}`; it has {known}"
    )]
    UnknownSystem { cluster: String, repository: String, wanted: SystemIdentifier, known: String },
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl Catalogue {
    /// Reads everything. Without `wanted`, the cluster is the one with the newest finished backup.
    pub async fn load(
        repository: &Repository,
        cluster: &str,
        wanted: Option<SystemIdentifier>,
    ) -> Result<(Self, ClusterRepository), CatalogueError> {
        Self::read(repository, cluster, wanted, false).await
    }

    /// Reads everything that can be read without a private key: encrypted histories are left out where there is none.
    pub async fn load_without_key(
        repository: &Repository,
        cluster: &str,
        wanted: Option<SystemIdentifier>,
    ) -> Result<(Self, ClusterRepository), CatalogueError> {
        Self::read(repository, cluster, wanted, true).await
    }

    async fn read(
        repository: &Repository,
        cluster: &str,
        wanted: Option<SystemIdentifier>,
        without_key: bool,
    ) -> Result<(Self, ClusterRepository), CatalogueError> {
        let known = repository.system_identifiers(cluster).await?;
        if known.is_empty() {
            let (cluster, repository) = (cluster.to_owned(), repository.name().to_owned());
            return Err(CatalogueError::Empty { cluster, repository });
        }
        if let Some(wanted) = wanted
            && !known.contains(&wanted)
        {
            let known = known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (cluster, repository) = (cluster.to_owned(), repository.name().to_owned());
            return Err(CatalogueError::UnknownSystem { cluster, repository, wanted, known });
        }
        let mut chosen: Option<(ClusterRepository, BackupList)> = None;
        for identifier in known.iter().filter(|identifier| wanted.is_none_or(|wanted| wanted == **identifier)) {
            let place = repository.cluster(cluster, *identifier)?;
            let backups = place.backups().await?;
            let newest = |list: &BackupList| list.finished.last().map(|backup| backup.start_time);
            if chosen.as_ref().is_none_or(|(_, best)| newest(best) < newest(&backups)) {
                chosen = Some((place, backups));
            }
        }
        let Some((place, backups)) = chosen else {
            let (cluster, repository) = (cluster.to_owned(), repository.name().to_owned());
            return Err(CatalogueError::Empty { cluster, repository });
        };
        let wal = place.wal_inventory().await?;
        let mut histories = BTreeMap::from([(TimelineId::FIRST, TimelineHistory::first())]);
        for timeline in &wal.histories {
            match place.timeline_history(*timeline).await {
                Ok(None) => {}
                Ok(Some(history)) => drop(histories.insert(*timeline, history)),
                Err(RepositoryError::NoKey { .. }) if without_key => {}
                Err(error) => return Err(error.into()),
            }
        }
        let system_identifier = place.system_identifier();
        let catalogue = Self {
            repository: repository.name().to_owned(),
            cluster: cluster.to_owned(),
            system_identifier,
            backups,
            wal,
            histories,
            others: known.into_iter().filter(|other| *other != system_identifier).collect(),
        };
        Ok((catalogue, place))
    }

    pub fn backup(&self, id: &BackupId) -> Option<&Backup> {
        self.backups.finished.iter().find(|backup| backup.id == *id)
    }

    /// The highest timeline of which anything is known.
    pub fn newest_timeline(&self) -> TimelineId {
        let histories = self.histories.keys().copied();
        let segments = self.wal.segments.keys().chain(self.wal.open.keys()).map(|segment| segment.timeline);
        let backups = self.backups.finished.iter().flat_map(|backup| [backup.timeline, backup.stop_timeline]);
        histories.chain(segments).chain(backups).max().unwrap_or(TimelineId::FIRST)
    }
}
