//! Files of relations: where they lie, how they are named, and how long they get.
//!
//! ```text
//! global/1262                                     shared by all databases
//! base/5/16384_vm.2                               base/<database>/<file number>[_fsm|_vm|_init][.<segment>]
//! pg_tblspc/16390/PG_18_202506291/5/16385         pg_tblspc/<tablespace>/<version>/<database>/...
//! ```
//!
//! A relation is cut into files of 1 GiB, its segments. Numbers have no leading zeros, so that each file has one name;
//! what is named otherwise is some other file to the server as well.

use crate::PAGE_SIZE;

/// The file of one segment of one fork of a relation, as its path below the data directory tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// The tablespace's OID; 1663 for `base` and 1664 for `global`.
    pub tablespace: u32,
    /// The database's OID; zero for a relation that all databases share.
    pub database: u32,
    /// The number that the files of the relation are named by.
    pub number: u32,
    /// What the file holds.
    pub fork: RelationFork,
    /// Which part of the fork it is, counted from zero.
    pub segment: u32,
}

/// What a file of a relation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelationFork {
    /// The data.
    Main,
    /// Where there is room. Changes are not all in the WAL.
    FreeSpaceMap,
    /// Which blocks every transaction can see.
    VisibilityMap,
    /// What an unlogged relation is reset to.
    Init,
}

const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;
/// Blocks of a relation have 32-bit numbers.
const MAX_SEGMENTS: u32 = 1 << 15;

impl RelationFile {
    /// The size of a block; a cluster with another one is not supported here.
    pub const BLOCK_BYTES: usize = PAGE_SIZE;
    /// How many blocks a segment has at most: 1 GiB, as clusters have it unless PostgreSQL was built otherwise.
    pub const MAX_BLOCKS: u32 = 131_072;

    /// Reads a path below the data directory. Nothing is returned for a file of no relation, and for one with another
    /// name than the server gives it; temporary relations are among these.
    pub fn parse(path: &[u8]) -> Option<Self> {
        let path = std::str::from_utf8(path).ok()?;
        let folders: Vec<&str> = path.splitn(6, '/').collect();
        let (tablespace, database, name) = match *folders {
            ["global", name] => (GLOBAL_TABLESPACE, 0, name),
            ["base", database, name] => (DEFAULT_TABLESPACE, positive(database)?, name),
            ["pg_tblspc", tablespace, version, database, name] if is_version_folder(version) => {
                (positive(tablespace)?, positive(database)?, name)
            }
            _ => return None,
        };
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, positive(segment).filter(|segment| *segment < MAX_SEGMENTS)?),
            None => (name, 0),
        };
        let (number, fork) = match name.split_once('_') {
            None => (name, RelationFork::Main),
            Some((number, "fsm")) => (number, RelationFork::FreeSpaceMap),
            Some((number, "vm")) => (number, RelationFork::VisibilityMap),
            Some((number, "init")) => (number, RelationFork::Init),
            Some(_) => return None,
        };
        Some(Self { tablespace, database, number: positive(number)?, fork, segment })
    }

    /// Whether only the changed blocks of the file may be kept when it has `bytes`, by the server's own rules: no
    /// free space map, no length that ends inside a block or is above that of a segment.
    pub fn may_be_incremental(&self, bytes: u64) -> bool {
        const BLOCK: u64 = RelationFile::BLOCK_BYTES as u64;
        self.fork != RelationFork::FreeSpaceMap
            && bytes.is_multiple_of(BLOCK)
            && bytes / BLOCK <= Self::MAX_BLOCKS.into()
    }

    /// Counts a block of the fork, or a number of its blocks, from the segment's beginning; zero before it.
    pub const fn block_in_segment(&self, block: u32) -> u32 {
        block.saturating_sub(self.segment * Self::MAX_BLOCKS)
    }
}

/// Whether the name is like `PG_18_202506291`, which holds the relations of one version in a tablespace.
fn is_version_folder(name: &str) -> bool {
    name.strip_prefix("PG_")
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(major, catalog)| positive(major).is_some() && positive(catalog).is_some())
}

/// Reads a number that is not zero and has no leading zeros.
fn positive(digits: &str) -> Option<u32> {
    let plain = digits.starts_with(|first: char| ('1'..='9').contains(&first));
    if plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_of_relations_are_told_by_their_paths() {
        use RelationFork::{FreeSpaceMap, Init, Main, VisibilityMap};
        for (path, tablespace, database, number, fork, segment) in [
            ("global/1262", 1664, 0, 1262, Main, 0),
            ("global/1262_fsm", 1664, 0, 1262, FreeSpaceMap, 0),
            ("base/5/16384", 1663, 5, 16384, Main, 0),
            ("base/5/16384.1", 1663, 5, 16384, Main, 1),
            ("base/5/16384_vm.12", 1663, 5, 16384, VisibilityMap, 12),
            ("base/4294967295/4294967295_init.32767", 1663, u32::MAX, u32::MAX, Init, 32767),
            ("pg_tblspc/16390/PG_18_202506291/5/16385", 16390, 5, 16385, Main, 0),
        ] {
            let file = RelationFile { tablespace, database, number, fork, segment };
            assert_eq!(RelationFile::parse(path.as_bytes()), Some(file), "{path}");
        }
    }

    #[test]
    fn other_files_belong_to_no_relation() {
        for path in [
            "",
            "base",
            "base/5",
            "base/5/",
            "PG_VERSION",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/t3_16384",
            "base/5/016384",
            "base/5/0",
            "base/5/+1",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384.32768",
            "base/5/16384.",
            "base/5/16384.1.2",
            "base/5/16384_",
            "base/5/16384_vmx",
            "base/5/16384_vm_vm",
            "base/5/4294967296",
            "base/5/INCREMENTAL.16384",
            "base/5/16384/1",
            "base/x/16384",
            "base/05/16384",
            "base/pgsql_tmp/16384",
            "/base/5/16384",
            "global/5/1262",
            "pg_xact/0000",
            "pg_wal/1",
            "pg_tblspc/16390",
            "pg_tblspc/16390/5/16385",
            "pg_tblspc/16390/PG_18/5/16385",
            "pg_tblspc/16390/18_202506291/5/16385",
            "pg_tblspc/16390/PG_18_202506291/5/16385/6",
        ] {
            assert_eq!(RelationFile::parse(path.as_bytes()), None, "{path}");
        }
        assert_eq!(RelationFile::parse(b"base/5/\xff"), None);
    }

    #[test]
    fn e10_the_server_decides_by_fork_and_length_what_it_sends_whole() {
        let main = RelationFile::parse(b"base/5/16384.2").unwrap();
        for (bytes, expected) in
            [(0, true), (8192, true), (1 << 30, true), (8191, false), (8193, false), ((1 << 30) + 8192, false)]
        {
            assert_eq!(main.may_be_incremental(bytes), expected, "{bytes}");
        }
        assert!(!RelationFile::parse(b"base/5/16384_fsm").unwrap().may_be_incremental(8192));
        assert!(RelationFile::parse(b"base/5/16384_vm").unwrap().may_be_incremental(8192));
    }

    #[test]
    fn blocks_are_counted_from_the_segments_beginning() {
        let second = RelationFile::parse(b"base/5/16384.1").unwrap();
        assert_eq!([0, 131_071, 131_072, 131_075].map(|block| second.block_in_segment(block)), [0, 0, 0, 3]);
        let last = RelationFile::parse(b"base/5/16384.32767").unwrap();
        assert_eq!(last.block_in_segment(u32::MAX), 131_071);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(path: Vec<u8>) {
            let _unused = RelationFile::parse(&path);
        }

        #[test]
        fn what_is_read_has_an_ordinary_path(path in "(base|global|pg_tblspc|PG_1_2|[0-9._/a-z]{1,4}|/){1,9}") {
            if RelationFile::parse(path.as_bytes()).is_some() {
                prop_assert_eq!(crate::check_relative_path(path.as_bytes()), Ok(()));
            }
        }
    }
}
