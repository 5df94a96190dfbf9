//! What the server says before the data: where the backup starts, and which tablespaces it has.

use std::collections::BTreeSet;

use bytes::Bytes;
use pgark_postgres::{Lsn, TimelineId};

use super::super::commands::{column, parse_column, timeline_column};
use super::super::connection::Row;
use super::super::error::ReplicationError;
use super::ArchiveName;

/// A tablespace other than the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Names its archive, `<oid>.tar`.
    pub oid: u32,
    /// Its path on the server in the server's own bytes; relative for one that lies inside `pg_tblspc`.
    pub location: Bytes,
    /// Its size where progress was asked for.
    pub size_kib: Option<u64>,
}

/// The rows of the second result set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TablespaceList {
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) data_directory_size_kib: Option<u64>,
    /// In the order of the rows, which on old servers is that of the archives.
    pub(super) archives: Vec<ArchiveName>,
}

/// The one row with a position, which stands before and after the data.
pub(super) fn parse_position(rows: &[Row]) -> Result<(Lsn, TimelineId), ReplicationError> {
    let [row] = rows else {
        return Err(ReplicationError::violation(format!("expected one row with a position, got {}", rows.len())));
    };
    Ok((parse_column(row, 0, "a WAL position")?, timeline_column(row, 1)?))
}

impl TablespaceList {
    pub(super) fn parse(rows: &[Row]) -> Result<Self, ReplicationError> {
        let mut tablespaces = Vec::with_capacity(rows.len());
        let mut archives = Vec::with_capacity(rows.len());
        let mut data_directory = None;
        for row in rows {
            let size_kib = match row.get(2) {
                Some(Some(_)) => Some(parse_column(row, 2, "a size")?),
                _ => None,
            };
            if let Some(None) = row.first() {
                data_directory = Some(size_kib);
                archives.push(ArchiveName::Base);
                continue;
            }
            let oid = parse_column(row, 0, "the oid of a tablespace")?;
            archives.push(ArchiveName::Tablespace(oid));
            tablespaces.push(Tablespace {
                oid,
                location: Bytes::copy_from_slice(column(row, 1, "the location of a tablespace")?),
                size_kib,
            });
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = archives.iter().find(|name| !seen.insert(**name)) {
            return Err(ReplicationError::violation(format!("{twice} is listed twice")));
        }
        match data_directory {
            Some(data_directory_size_kib) => Ok(Self { tablespaces, data_directory_size_kib, archives }),
            None => Err(ReplicationError::violation("the data directory is not listed")),
        }
    }

    /// The server's estimate for everything, where progress was asked for.
    pub(super) fn estimated_size_kib(&self) -> Option<u64> {
        let sizes = self.tablespaces.iter().map(|tablespace| tablespace.size_kib);
        sizes.fold(self.data_directory_size_kib, |sum, size| sum?.checked_add(size?))
    }

    /// Where the tablespace of an archive lies, empty for the data directory.
    pub(super) fn location(&self, name: ArchiveName) -> Bytes {
        let oid = match name {
            ArchiveName::Base => return Bytes::new(),
            ArchiveName::Tablespace(oid) => oid,
        };
        let tablespace = self.tablespaces.iter().find(|tablespace| tablespace.oid == oid);
        tablespace.map(|tablespace| tablespace.location.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_and_each_tablespace_must_be_listed_once() {
        let data_directory: Row = vec![None, None, Some(Bytes::from_static(b"100"))];
        let other: Row = vec![
            Some(Bytes::from_static(b"16384")),
            Some(Bytes::from_static(b"/t\xff")),
            Some(Bytes::from_static(b"7")),
        ];
        let list = TablespaceList::parse(&[other.clone(), data_directory.clone()]).unwrap();
        assert_eq!(list.tablespaces[0].location.as_ref(), b"/t\xff");
        assert_eq!(list.archives, [ArchiveName::Tablespace(16384), ArchiveName::Base]);
        assert_eq!(list.estimated_size_kib(), Some(107));
        TablespaceList::parse(std::slice::from_ref(&other)).unwrap_err();
        TablespaceList::parse(&[data_directory.clone(), data_directory.clone()]).unwrap_err();
        TablespaceList::parse(&[other.clone(), other, data_directory]).unwrap_err();
    }
}
