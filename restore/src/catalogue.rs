//! What the repository holds of one cluster, as far as plans and lists need it: read once, then only looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use pgark_postgres::{SystemIdentifier, TimelineHistory, TimelineId};
use pgark_repository::{
    Backup, BackupId, BackupList, ClusterRepository, Hold, Repository, RepositoryError, WalInventory,
};
use thiserror::Error;

use crate::archive::Archive;
use crate::copies::warn_of_copy;
use crate::late_segments::settled_inventory;
use crate::windows::segment_size;

/// Backups, archived WAL and the histories of all timelines of one cluster.
#[derive(Clone, Debug)]
pub struct Catalogue {
    /// The repository, or several, separated by commas.
    pub repository: String,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    pub backups: BackupList,
    pub wal: WalInventory,
    /// Every history that is archived, and that of timeline 1, which has no file.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Histories that are archived and cannot be read. Only those who report go on then.
    pub unreadable_histories: Vec<(TimelineId, Arc<RepositoryError>)>,
    /// Other clusters that were stored under the same name, as before an upgrade.
    pub others: Vec<SystemIdentifier>,
    /// Why other repositories are not read: what only they hold is not known.
    pub unread: Vec<String>,
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

    /// Reads what can be read: histories that are damaged, or encrypted to keys that are not here, are only noted.
    pub async fn load_for_report(
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
        for_report: bool,
    ) -> Result<(Self, ClusterRepository), CatalogueError> {
        let known = Known::read(repository, cluster, wanted).await?;
        let system_identifier = known.newest().ok_or_else(|| empty(repository, cluster))?;
        known.catalogue(system_identifier, for_report).await?.ok_or_else(|| empty(repository, cluster))
    }

    /// Reads all of several repositories. Those that cannot be read are left out and named, unless it is all of them.
    pub async fn load_all(
        repositories: &[Repository],
        cluster: &str,
        wanted: Option<SystemIdentifier>,
        for_report: bool,
    ) -> Result<Merged, CatalogueError> {
        let known = join_all(repositories.iter().map(|repository| Known::read(repository, cluster, wanted))).await;
        let newest = known.iter().flatten().filter_map(|known| Some((known.newest_backup(), known.newest()?))).max();
        let read = |known: Result<Known, CatalogueError>| async move {
            let known = known?;
            let system_identifier = newest.map(|(_, newest)| newest);
            let (name, cluster) = (known.repository.name().to_owned(), known.cluster.clone());
            let empty = CatalogueError::Empty { cluster, repository: name };
            match system_identifier {
                Some(system_identifier) => known.catalogue(system_identifier, for_report).await?.ok_or(empty),
                None => Err(empty),
            }
        };
        let mut merged: Option<Merged> = None;
        let mut errors = Vec::new();
        for read in join_all(known.into_iter().map(read)).await {
            match (read, &mut merged) {
                (Err(error), _) => errors.push(error),
                (Ok((catalogue, place)), Some(merged)) => merged.add(catalogue, place),
                (Ok((catalogue, place)), none) => *none = Some(Merged::new(catalogue, place)),
            }
        }
        let Some(mut merged) = merged else {
            let nothing = CatalogueError::Empty { cluster: cluster.to_owned(), repository: String::new() };
            return Err(errors.into_iter().next().unwrap_or(nothing));
        };
        for error in errors {
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::warn!(error, "going on without this repository");
            let causes = std::iter::successors(error.source(), |cause| cause.source());
            merged.catalogue.unread.push(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")));
        }
        merged.warn_of_copies_that_cannot_be_used();
        Ok(merged)
    }

    pub fn backup(&self, id: &BackupId) -> Option<&Backup> {
        self.backups.finished.iter().find(|backup| backup.id == *id)
    }

    /// The backups on which one builds, the nearest first; the error is the one that is missing.
    pub(crate) fn chain_below<'c>(&'c self, backup: &Backup) -> Result<Vec<&'c Backup>, BackupId> {
        let mut chain: Vec<&'c Backup> = Vec::new();
        let (mut above, mut parent) = (&backup.id, backup.parent.as_ref());
        while let Some(id) = parent {
            // A circle has no beginning either.
            let found = self.backup(id).filter(|found| found.id < *above).ok_or_else(|| id.clone())?;
            chain.push(found);
            (above, parent) = (&found.id, found.parent.as_ref());
        }
        Ok(chain)
    }

    /// The highest timeline of which anything is known.
    pub fn newest_timeline(&self) -> TimelineId {
        let histories = self.histories.keys().copied();
        let segments = self.wal.segments.keys().chain(self.wal.open.keys()).map(|segment| segment.timeline);
        let backups = self.backups.finished.iter().flat_map(|backup| [backup.timeline, backup.stop_timeline]);
        histories.chain(segments).chain(backups).max().unwrap_or(TimelineId::FIRST)
    }
}

fn empty(repository: &Repository, cluster: &str) -> CatalogueError {
    CatalogueError::Empty { cluster: cluster.to_owned(), repository: repository.name().to_owned() }
}

/// What several repositories hold together.
#[derive(Debug)]
pub struct Merged {
    pub catalogue: Catalogue,
    /// What each of them holds by itself, in the order of the configuration.
    pub single: Vec<Catalogue>,
    places: Vec<ClusterRepository>,
}

impl Merged {
    fn new(catalogue: Catalogue, place: ClusterRepository) -> Self {
        Self { single: vec![catalogue.clone()], catalogue, places: vec![place] }
    }

    fn add(&mut self, other: Catalogue, place: ClusterRepository) {
        self.single.push(other.clone());
        self.places.push(place);
        let all = &mut self.catalogue;
        all.repository = format!("{}, {}", all.repository, other.repository);
        for backup in other.backups.finished {
            if all.backups.finished.iter().all(|known| known.id != backup.id) {
                all.backups.finished.push(backup);
            }
        }
        all.backups.finished.sort_by(|one, other| one.id.cmp(&other.id));
        all.backups.unfinished.extend(other.backups.unfinished);
        all.backups.unfinished.sort_by(|one, other| one.id.cmp(&other.id));
        all.backups.unfinished.dedup_by(|one, other| one.id == other.id);
        let finished = &all.backups.finished;
        all.backups.unfinished.retain(|unfinished| finished.iter().all(|backup| backup.id != unfinished.id));
        // What one repository can read is no loss.
        let finished = &all.backups.finished;
        all.backups.unreadable.extend(other.backups.unreadable);
        all.backups.unreadable.retain(|unreadable| finished.iter().all(|backup| backup.id != unreadable.id));
        all.wal.merge(other.wal);
        for (timeline, history) in other.histories {
            all.histories.entry(timeline).or_insert(history);
        }
        all.unreadable_histories.extend(other.unreadable_histories);
        let histories = &all.histories;
        all.unreadable_histories.retain(|(timeline, _)| !histories.contains_key(timeline));
        let others: BTreeSet<_> = all.others.iter().copied().chain(other.others).collect();
        all.others = others.into_iter().filter(|other| *other != all.system_identifier).collect();
    }

    /// What is read from another repository is no loss, and has to be mended all the same.
    fn warn_of_copies_that_cannot_be_used(&self) {
        for single in &self.single {
            let elsewhere = |id: &BackupId| self.catalogue.backup(id).is_some();
            for copy in single.backups.unreadable.iter().filter(|copy| elsewhere(&copy.id)) {
                warn_of_copy(&single.repository, &copy.id, &*copy.error);
            }
        }
    }

    /// The holds of all backups, each from the first repository in which it is held. What cannot be read is left out.
    pub async fn holds(&self) -> Vec<Hold> {
        let mut holds: Vec<Hold> = Vec::new();
        for (place, single) in self.places.iter().zip(&self.single) {
            let ids = single.backups.finished.iter().map(|backup| backup.id.clone());
            match place.holds(ids).await {
                Ok(found) => holds.extend(found),
                Err(error) => tracing::warn!(repository = place.name(), "cannot read which backups are held: {error}"),
            }
        }
        holds.sort_by(|one, other| one.id.cmp(&other.id));
        holds.dedup_by(|one, other| one.id == other.id);
        holds
    }

    /// Where all of it can be read.
    pub fn archive(&self) -> Archive {
        let backups = self.single.iter().map(|catalogue| catalogue.backups.finished.clone());
        Archive::new(self.places.iter().cloned().zip(backups))
    }
}

/// The clusters under one name in a repository, with their backups.
struct Known {
    repository: Repository,
    cluster: String,
    all: BTreeSet<SystemIdentifier>,
    places: BTreeMap<SystemIdentifier, (ClusterRepository, BackupList)>,
}

impl Known {
    async fn read(
        repository: &Repository,
        cluster: &str,
        wanted: Option<SystemIdentifier>,
    ) -> Result<Self, CatalogueError> {
        let all = repository.system_identifiers(cluster).await?;
        if all.is_empty() {
            return Err(empty(repository, cluster));
        }
        if let Some(wanted) = wanted
            && !all.contains(&wanted)
        {
            let known = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (cluster, repository) = (cluster.to_owned(), repository.name().to_owned());
            return Err(CatalogueError::UnknownSystem { cluster, repository, wanted, known });
        }
        let mut places = BTreeMap::new();
        for identifier in all.iter().filter(|identifier| wanted.is_none_or(|wanted| wanted == **identifier)) {
            let place = repository.cluster(cluster, *identifier)?;
            let backups = place.backups_where_readable().await?;
            places.insert(*identifier, (place, backups));
        }
        Ok(Self { repository: repository.clone(), cluster: cluster.to_owned(), all, places })
    }

    /// The cluster with the newest finished backup.
    fn newest(&self) -> Option<SystemIdentifier> {
        let newest = |(_, (_, list)): &(&SystemIdentifier, &(ClusterRepository, BackupList))| newest_backup(list);
        // Among equals the first one.
        self.places.iter().rev().max_by_key(newest).map(|(identifier, _)| *identifier)
    }

    fn newest_backup(&self) -> Option<Timestamp> {
        self.places.values().filter_map(|(_, list)| newest_backup(list)).max()
    }

    /// Everything of one cluster; nothing where it is not here.
    async fn catalogue(
        mut self,
        system_identifier: SystemIdentifier,
        for_report: bool,
    ) -> Result<Option<(Catalogue, ClusterRepository)>, CatalogueError> {
        let Some((place, backups)) = self.places.remove(&system_identifier) else { return Ok(None) };
        let wal = settled_inventory(&place, segment_size(&backups)).await?;
        let mut unreadable_histories = Vec::new();
        let mut histories = BTreeMap::from([(TimelineId::FIRST, TimelineHistory::first())]);
        for timeline in &wal.histories {
            match place.timeline_history(*timeline).await {
                Ok(None) => {}
                Ok(Some(history)) => drop(histories.insert(*timeline, history)),
                Err(error @ (RepositoryError::NoKey { .. } | RepositoryError::Damaged { .. })) if for_report => {
                    unreadable_histories.push((*timeline, Arc::new(error)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let catalogue = Catalogue {
            repository: self.repository.name().to_owned(),
            cluster: self.cluster,
            system_identifier,
            backups,
            wal,
            histories,
            unreadable_histories,
            others: self.all.into_iter().filter(|other| *other != system_identifier).collect(),
            unread: Vec::new(),
        };
        Ok(Some((catalogue, place)))
    }
}

fn newest_backup(list: &BackupList) -> Option<Timestamp> {
    list.finished.last().map(|backup| backup.start_time)
}
