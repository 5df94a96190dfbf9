//! What each of several repositories has of all that is stored: whether one is behind the others, and by how much.

use std::io::Write;

use pgark_command::{Align, Table, format_size};
use pgark_postgres::Lsn;
use pgark_repository::BackupId;
use serde::Serialize;

use crate::catalogue::{Catalogue, Merged};
use crate::windows::timelines;

/// One repository's share.
#[derive(Debug, Serialize)]
pub(crate) struct Share {
    name: String,
    backups: usize,
    newest_backup: Option<BackupId>,
    /// Finished backups that only others have.
    missing_backups: Vec<BackupId>,
    segments: usize,
    /// Segments that only others have.
    missing_segments: usize,
    /// Where its WAL ends on the newest timeline.
    wal_end_lsn: Option<Lsn>,
    /// How many bytes of WAL later the others end; nothing where its newest timeline is an older one.
    behind_bytes: Option<u64>,
}

/// The share of each repository.
pub(crate) fn shares(merged: &Merged) -> Vec<Share> {
    let all = &merged.catalogue;
    let end = wal_end(all);
    let share = |single: &Catalogue| {
        let own_end = wal_end(single);
        let missing = all.backups.finished.iter().filter(|backup| single.backup(&backup.id).is_none());
        let missing_segments = all.wal.segments.keys().filter(|segment| !single.wal.segments.contains_key(segment));
        Share {
            name: single.repository.clone(),
            backups: single.backups.finished.len(),
            newest_backup: single.backups.finished.last().map(|backup| backup.id.clone()),
            missing_backups: missing.map(|backup| backup.id.clone()).collect(),
            segments: single.wal.segments.len(),
            missing_segments: missing_segments.count(),
            wal_end_lsn: own_end.map(|(_, end)| end),
            behind_bytes: own_end
                .zip(end)
                .filter(|(own, all)| own.0 == all.0)
                .and_then(|(own, all)| all.1.bytes_since(own.1)),
        }
    };
    merged.single.iter().map(share).collect()
}

fn wal_end(catalogue: &Catalogue) -> Option<(u32, Lsn)> {
    let ends = timelines(catalogue).into_iter().flat_map(|wal| {
        let timeline = wal.timeline.get();
        wal.stretches.into_iter().map(move |stretch| (timeline, stretch.end_lsn))
    });
    ends.max()
}

/// Only where there are several, or one could not be read.
pub(crate) fn write_shares(report: &mut impl Write, shares: &[Share], unread: &[String]) -> std::io::Result<()> {
    if shares.len() > 1 {
        let mut table = Table::new(&[
            ("repository", Align::Left),
            ("backups", Align::Right),
            ("newest", Align::Left),
            ("segments", Align::Right),
            ("WAL up to", Align::Left),
            ("behind the others", Align::Left),
        ]);
        for share in shares {
            table.row([
                share.name.clone(),
                share.backups.to_string(),
                share.newest_backup.as_ref().map(ToString::to_string).unwrap_or_default(),
                share.segments.to_string(),
                share.wal_end_lsn.map(|end| end.to_string()).unwrap_or_default(),
                behind(share),
            ]);
        }
        writeln!(report, "{table}")?;
    }
    for reason in unread {
        writeln!(report, "not read: {reason}")?;
    }
    if unread.is_empty() { Ok(()) } else { writeln!(report) }
}

fn behind(share: &Share) -> String {
    let mut parts = Vec::new();
    if !share.missing_backups.is_empty() {
        parts.push(format!("{} backups", share.missing_backups.len()));
    }
    if share.missing_segments > 0 {
        parts.push(format!("{} segments", share.missing_segments));
    }
    match share.behind_bytes {
        Some(0) => {}
        Some(bytes) => parts.push(format!("{} of WAL", format_size(bytes))),
        None => parts.push("a timeline".to_owned()),
    }
    if parts.is_empty() { "no".to_owned() } else { parts.join(", ") }
}
