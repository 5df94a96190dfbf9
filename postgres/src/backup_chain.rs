//! A chain of backups: a full one, and incremental ones that each build on the one before.
//!
//! The checks are those of `pg_combinebackup`: `backup_label` of an incremental backup names where its parent started,
//! and that must be exactly where the next older backup of the chain did. So a member that is missing, twice there or
//! in the wrong place is noticed, whatever it is called. All members must be of one cluster.

use thiserror::Error;

use crate::{IncrementalFrom, Lsn, SystemIdentifier, TimelineId};

/// What a backup says of its place in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainMember {
    /// The cluster, as `pg_control` names it.
    pub system_identifier: SystemIdentifier,
    /// The cluster, as the manifest names it; version 1 of the format does not.
    pub manifest_system_identifier: Option<SystemIdentifier>,
    /// Where the backup started, as its label says.
    pub start_lsn: Lsn,
    /// The timeline it started on, as its label says.
    pub start_timeline: TimelineId,
    /// Where the backup it builds on started; nothing for a full one.
    pub incremental_from: Option<IncrementalFrom>,
}

/// The backups do not make a chain. Places in it are counted from the newest backup as 0.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChainError {
    /// There is no backup.
    #[error("chain has no backup")]
    Empty,
    /// A backup is of another cluster than the newest.
    #[error("backup {member} of the chain is of the system {found}, expected {expected}")]
    OtherSystem {
        /// The place of the backup.
        member: usize,
        /// The newest backup's cluster.
        expected: SystemIdentifier,
        /// This backup's cluster.
        found: SystemIdentifier,
    },
    /// The manifest belongs to another backup.
    #[error("manifest of backup {member} of the chain is of the system {found}, expected {expected}")]
    OtherManifest {
        /// The place of the backup.
        member: usize,
        /// The cluster in `pg_control`.
        expected: SystemIdentifier,
        /// The cluster in the manifest.
        found: SystemIdentifier,
    },
    /// A full backup can only be the oldest one.
    #[error("backup {member} of the chain is a full backup, expected an incremental one")]
    FullInside {
        /// The place of the backup.
        member: usize,
    },
    /// The oldest backup must be a full one.
    #[error("oldest backup of the chain is an incremental one, whose parent started at {} on timeline {}", parent.lsn, parent.timeline)]
    NoFull {
        /// Where its parent started.
        parent: IncrementalFrom,
    },
    /// A backup is not the parent of the next newer one.
    #[error(
        "backup {member} of the chain started at {} on timeline {}, expected {} on timeline {}",
        found.lsn, found.timeline, expected.lsn, expected.timeline
    )]
    OtherParent {
        /// The place of the backup.
        member: usize,
        /// Where the parent of the next newer backup started.
        expected: IncrementalFrom,
        /// Where this backup started.
        found: IncrementalFrom,
    },
    /// A backup claims a parent that started after itself.
    #[error(
        "backup {member} of the chain started at {} on timeline {}, which is not after its parent's {} on timeline {}",
        start.lsn, start.timeline, parent.lsn, parent.timeline
    )]
    NotAfterParent {
        /// The place of the backup.
        member: usize,
        /// Where it started.
        start: IncrementalFrom,
        /// Where its parent started.
        parent: IncrementalFrom,
    },
}

impl ChainMember {
    /// Checks that the backups, newest first, make a chain that is complete. A full backup alone is one.
    pub fn check(chain: &[Self]) -> Result<(), ChainError> {
        let expected = chain.first().ok_or(ChainError::Empty)?.system_identifier;
        for (member, backup) in chain.iter().enumerate() {
            let found = backup.system_identifier;
            if found != expected {
                return Err(ChainError::OtherSystem { member, expected, found });
            }
            if let Some(found) = backup.manifest_system_identifier.filter(|found| *found != expected) {
                return Err(ChainError::OtherManifest { member, expected, found });
            }
        }
        for (member, backup) in chain.iter().enumerate() {
            match (backup.incremental_from, chain.get(member + 1)) {
                (None, None) => {}
                (None, Some(_)) => return Err(ChainError::FullInside { member }),
                (Some(parent), None) => return Err(ChainError::NoFull { parent }),
                (Some(expected), Some(older)) => {
                    let (start, found) = (backup.start(), older.start());
                    if found != expected {
                        return Err(ChainError::OtherParent { member: member + 1, expected, found });
                    }
                    if start.lsn <= found.lsn || start.timeline < found.timeline {
                        return Err(ChainError::NotAfterParent { member, start, parent: found });
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns where the backup started, as one that builds on it names that.
    const fn start(&self) -> IncrementalFrom {
        IncrementalFrom { lsn: self.start_lsn, timeline: self.start_timeline }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_710_467_865_093_598_212);
    const OTHER: SystemIdentifier = SystemIdentifier::new(7);

    fn at(lsn: u64, timeline: u32) -> IncrementalFrom {
        IncrementalFrom { lsn: Lsn::new(lsn), timeline: TimelineId::new(timeline).unwrap() }
    }

    fn member(start: IncrementalFrom, incremental_from: Option<IncrementalFrom>) -> ChainMember {
        ChainMember {
            system_identifier: SYSTEM,
            manifest_system_identifier: Some(SYSTEM),
            start_lsn: start.lsn,
            start_timeline: start.timeline,
            incremental_from,
        }
    }

    /// A full backup on timeline 1, an incremental one on it, and two on timeline 2; newest first.
    fn chain() -> Vec<ChainMember> {
        let starts = [at(400, 2), at(300, 2), at(200, 1), at(100, 1)];
        let parents = starts.iter().skip(1).copied().map(Some).chain([None]);
        starts.into_iter().zip(parents).map(|(start, parent)| member(start, parent)).collect()
    }

    #[test]
    fn e06_a_complete_chain_passes_also_across_timelines() {
        let chain = chain();
        for newest in 0..chain.len() {
            assert_eq!(ChainMember::check(&chain[newest..]), Ok(()));
        }
        let old_manifest = ChainMember { manifest_system_identifier: None, ..chain[3] };
        assert_eq!(ChainMember::check(&[old_manifest]), Ok(()));
    }

    #[test]
    fn e04_a_chain_with_a_missing_member_is_refused() {
        assert_eq!(ChainMember::check(&[]), Err(ChainError::Empty));
        for missing in 1..3 {
            let mut chain = chain();
            let expected = chain[missing - 1].incremental_from.unwrap();
            chain.remove(missing);
            let found = chain[missing].start();
            assert_eq!(ChainMember::check(&chain), Err(ChainError::OtherParent { member: missing, expected, found }));
        }
        assert_eq!(ChainMember::check(&chain()[..3]), Err(ChainError::NoFull { parent: at(100, 1) }));
    }

    #[test]
    fn e04_every_other_order_of_a_chain_is_refused() {
        for first in 0..4 {
            for second in 0..4 {
                let mut other = chain();
                other.swap(first, second);
                assert_eq!(ChainMember::check(&other).is_ok(), first == second, "{first} {second}");
                let mut twice = chain();
                twice.insert(first, twice[second]);
                assert!(ChainMember::check(&twice).is_err(), "{first} {second}");
            }
        }
    }

    #[test]
    fn e05_a_full_backup_can_only_be_the_oldest() {
        let mut chain = chain();
        chain[1].incremental_from = None;
        assert_eq!(ChainMember::check(&chain), Err(ChainError::FullInside { member: 1 }));
    }

    #[test]
    fn e04_another_timeline_or_position_is_refused() {
        for start in [at(201, 1), at(200, 2)] {
            let mut chain = chain();
            (chain[2].start_lsn, chain[2].start_timeline) = (start.lsn, start.timeline);
            let error = ChainError::OtherParent { member: 2, expected: at(200, 1), found: start };
            assert_eq!(ChainMember::check(&chain), Err(error));
        }
        for start in [at(300, 1), at(200, 2), at(100, 2)] {
            let chain = [member(start, Some(at(200, 2))), member(at(200, 2), None)];
            let error = ChainError::NotAfterParent { member: 0, start, parent: at(200, 2) };
            assert_eq!(ChainMember::check(&chain), Err(error));
        }
    }

    #[test]
    fn e04_a_member_of_another_cluster_is_refused() {
        for foreign in 0..4 {
            let mut other = chain();
            other[foreign].manifest_system_identifier = Some(OTHER);
            let error = ChainError::OtherManifest { member: foreign, expected: SYSTEM, found: OTHER };
            assert_eq!(ChainMember::check(&other), Err(error));
            other[foreign].system_identifier = OTHER;
            assert!(matches!(ChainMember::check(&other), Err(ChainError::OtherSystem { .. })));
        }
    }
}
