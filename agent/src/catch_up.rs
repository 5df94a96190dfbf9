//! What one repository lacks and another has: found by comparing listings, and copied as it is stored.
//!
//! A repository that was away lacks what came meanwhile. It may also lack what was deleted on purpose, and that must not
//! come back: so nothing is copied that is older than the oldest WAL there, no backup that is older than the newest one
//! there, and no WAL between two backups of which the older one keeps only what makes it consistent.

use std::collections::BTreeSet;

use anyhow::Context;
use futures_util::future::join_all;
use pgark_postgres::{SegmentName, WalFileName};
use pgark_repository::{
    Backup, BackupId, ClusterRepository, ErrorKind, RepositoryError, WalInventory, WalPiece, WalRange,
};

/// What a repository holds.
#[derive(Debug)]
pub(crate) struct Stock {
    pub(crate) repository: ClusterRepository,
    pub(crate) wal: WalInventory,
    pub(crate) backups: Vec<Backup>,
}

/// What was copied into one repository.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) files: usize,
    pub(crate) backups: usize,
}

impl Stock {
    /// Looks at all that answer.
    ///
    /// # Errors
    /// When one that is required does not.
    pub(crate) async fn of_all(repositories: &[ClusterRepository]) -> anyhow::Result<Vec<Self>> {
        let mut stocks = Vec::new();
        for (repository, stock) in repositories.iter().zip(join_all(repositories.iter().map(Self::of)).await) {
            match stock {
                Ok(stock) => stocks.push(stock),
                Err(error) if repository.is_optional() => {
                    let error: &(dyn std::error::Error + 'static) = &error;
                    tracing::info!(repository = repository.name(), error, "does not answer; it is filled up later");
                }
                Err(error) => return Err(error).context("list the archive"),
            }
        }
        Ok(stocks)
    }

    async fn of(repository: &ClusterRepository) -> Result<Self, RepositoryError> {
        let wal = repository.wal_inventory().await?;
        let backups = repository.backups().await?.finished;
        Ok(Self { repository: repository.clone(), wal, backups })
    }

    fn ranges(&self) -> Vec<WalRange> {
        self.backups.iter().map(|backup| backup.wal).collect()
    }

    /// Which of these segments it should have and does not.
    pub(crate) fn lacks(&self, wanted: &BTreeSet<SegmentName>) -> Vec<SegmentName> {
        let own = self.wal.segments.keys().copied().collect();
        lacks(&own, &self.ranges(), wanted)
    }
}

/// Of the segments that are wanted, those that are missing and were not deleted on purpose.
fn lacks(own: &BTreeSet<SegmentName>, backups: &[WalRange], wanted: &BTreeSet<SegmentName>) -> Vec<SegmentName> {
    let is_deliberate = |segment: &SegmentName| {
        // Who deletes leaves a backup, always: this one is new.
        if backups.is_empty() {
            return false;
        }
        let (before, after) = (own.range(..segment).next_back(), own.range(segment..).next());
        let Some(before) = before else { return after.is_some() };
        let ends = backups.iter().any(|range| range.last == *before);
        ends && after.is_some_and(|after| backups.iter().any(|range| range.first == *after))
    };
    wanted.iter().filter(|segment| !own.contains(segment) && !is_deliberate(segment)).copied().collect()
}

/// The backups that others have and that are newer than all of one's own.
fn newer_backups<'b>(own: &[Backup], others: impl Iterator<Item = &'b Backup>) -> Vec<&'b Backup> {
    let newest: Option<&BackupId> = own.iter().map(|backup| &backup.id).max();
    let mut newer: Vec<&Backup> = others.filter(|backup| newest.is_none_or(|newest| backup.id > *newest)).collect();
    newer.sort_by(|one, other| one.id.cmp(&other.id));
    newer.dedup_by(|one, other| one.id == other.id);
    newer
}

/// Fills each repository up from the others, and returns whether anything was copied. A failure ends it for that
/// repository, and is told.
pub(crate) async fn fill(stocks: &[Stock]) -> bool {
    let mut has_copied = false;
    for (place, stock) in stocks.iter().enumerate() {
        let others: Vec<&Stock> =
            stocks.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, other)| other).collect();
        let mut copied = Copied::default();
        let filled = fill_one(stock, &others, &mut copied).await;
        let name = stock.repository.name();
        if copied != Copied::default() {
            has_copied = true;
            tracing::info!(
                repository = name,
                wal_files = copied.files,
                backups = copied.backups,
                "filled up from the other repositories"
            );
        }
        if let Err(error) = filled {
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::warn!(repository = name, error, "is not filled up yet; trying again later");
        }
    }
    has_copied
}

async fn fill_one(stock: &Stock, others: &[&Stock], copied: &mut Copied) -> Result<(), RepositoryError> {
    let sources: Vec<&Stock> =
        others.iter().copied().filter(|other| stock.repository.can_copy_from(&other.repository)).collect();
    for file in files_to_copy(stock, &sources) {
        copied.files += usize::from(copy_file(stock, &sources, &file).await?);
    }
    for segment in stock.wal.superseded.iter().chain(stock.wal.open.keys()) {
        if stock.repository.has_wal_file(&WalFileName::Segment(*segment)).await? {
            delete_pieces(&stock.repository, *segment, &|_| true).await?;
        }
    }
    let mut there: BTreeSet<&BackupId> = stock.backups.iter().map(|backup| &backup.id).collect();
    for backup in newer_backups(&stock.backups, others.iter().flat_map(|other| &other.backups)) {
        if let Some(parent) = backup.parent.as_ref().filter(|parent| !there.contains(parent)) {
            let (repository, id) = (stock.repository.name(), &backup.id);
            tracing::warn!(repository, %id, %parent, "is not copied, since the backup on which it builds is not there");
            continue;
        }
        let Some(source) = sources.iter().find(|other| other.backups.contains(backup)) else {
            tracing::warn!(
                repository = stock.repository.name(),
                id = %backup.id,
                "cannot be copied, since this repository encrypts to other keys; the next pgark-agent backup stores \
                 one in it"
            );
            continue;
        };
        tracing::info!(repository = stock.repository.name(), id = %backup.id, "copying a backup");
        stock.repository.copy_backup(&source.repository, backup).await?;
        there.insert(&backup.id);
        copied.backups += 1;
    }
    Ok(())
}

fn files_to_copy(stock: &Stock, sources: &[&Stock]) -> Vec<WalFileName> {
    let wanted = sources.iter().flat_map(|other| other.wal.segments.keys().copied()).collect();
    let segments = stock.lacks(&wanted).into_iter().map(WalFileName::Segment);
    let known: BTreeSet<_> = sources.iter().flat_map(|other| other.wal.histories.iter().copied()).collect();
    let histories = known.difference(&stock.wal.histories).copied().map(WalFileName::History);
    // Histories first: without them the segments of a timeline lead nowhere.
    histories.chain(segments).collect()
}

/// Copies from the first that has it whole. A damaged or missing copy is left to the next source.
async fn copy_file(stock: &Stock, sources: &[&Stock], file: &WalFileName) -> Result<bool, RepositoryError> {
    for source in sources {
        match stock.repository.copy_wal_file(&source.repository, file).await {
            Ok(_) => return Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::debug!(%file, error, "is not copied from here");
            }
            Err(error) => return Err(error),
        }
    }
    tracing::warn!(%file, repository = stock.repository.name(), "no repository has a whole copy of it");
    Ok(false)
}

/// Deletes pieces whose bytes are in other objects by now.
pub(crate) async fn delete_pieces(
    repository: &ClusterRepository,
    segment: SegmentName,
    is_obsolete: &(dyn Fn(WalPiece) -> bool + Send + Sync),
) -> Result<(), RepositoryError> {
    for (piece, sealing) in repository.wal_pieces(segment).await? {
        if is_obsolete(piece) {
            repository.delete_wal_piece(segment, piece, sealing).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use pgark_postgres::{SegmentSize, TimelineId};

    use super::*;

    fn segment(number: u64) -> SegmentName {
        SegmentName::from_number(TimelineId::FIRST, number, SegmentSize::DEFAULT)
    }

    fn set(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<SegmentName> {
        numbers.into_iter().map(segment).collect()
    }

    fn missing(own: &[u64], backups: &[(u64, u64)], wanted: std::ops::Range<u64>) -> Vec<u64> {
        let range = |&(first, last): &(u64, u64)| WalRange { first: segment(first), last: segment(last) };
        let backups: Vec<WalRange> = backups.iter().map(range).collect();
        let lacks = lacks(&set(own.iter().copied()), &backups, &set(wanted));
        lacks.into_iter().map(|segment| segment.number(SegmentSize::DEFAULT)).collect()
    }

    #[test]
    fn what_came_while_it_was_away_is_missing() {
        assert_eq!(missing(&[3, 4, 5, 9, 10], &[(3, 4)], 1..12), [6, 7, 8, 11]);
        assert_eq!(missing(&[3, 4], &[(3, 4)], 1..8), [5, 6, 7]);
        // A new one lacks everything, also after the first segments have come.
        assert_eq!(missing(&[], &[], 4..7), [4, 5, 6]);
        assert_eq!(missing(&[5], &[], 4..7), [4, 6]);
    }

    #[test]
    fn what_was_deleted_on_purpose_does_not_come_back() {
        // The window begins at 20; the older backup keeps what makes it consistent.
        assert_eq!(missing(&[10, 11, 20, 21, 22], &[(10, 11), (20, 21)], 1..24), [23]);
        // A hole within the window is none of those.
        assert_eq!(missing(&[10, 11, 20, 21, 24, 25], &[(10, 11), (20, 21)], 1..26), [22, 23]);
    }
}
