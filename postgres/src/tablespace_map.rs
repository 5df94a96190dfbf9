//! `tablespace_map`: where the tablespaces of a base backup lie.
//!
//! One line each: the OID, a space, the absolute path. A newline, carriage return or backslash in the path has a
//! backslash before it; in 13 a backslash has none, and stands for itself unless a line end follows. On the first start
//! the server makes its links from this file, so a restore that moves tablespaces must rewrite it, in its own dialect.

use thiserror::Error;

/// The server reads lines into a buffer of this size.
const MAX_LINE_BYTES: usize = 1023;

/// From this major version on, backslashes in paths have a backslash before them.
const ESCAPED_BACKSLASHES: u32 = 14;

/// The tablespaces of a backup and their locations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    entries: Vec<(u32, Vec<u8>)>,
}

/// The content is not a tablespace map.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TablespaceMapError {
    /// The last line has no newline.
    #[error("tablespace_map is cut short: its last line has no newline")]
    NoNewline,
    /// A line is not an OID, a space and a path.
    #[error("tablespace_map, line {line}: expected an OID, a space and a path, found {found:?}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// Its content.
        found: String,
    },
    /// A path is not absolute, too long, or has a NUL in it.
    #[error(
        "tablespace {oid} has the path {path:?}: expected an absolute path of at most {MAX_LINE_BYTES} bytes with its OID"
    )]
    Path {
        /// The tablespace.
        oid: u32,
        /// The path found.
        path: String,
    },
    /// A tablespace appears twice.
    #[error("tablespace_map names tablespace {oid} twice")]
    Twice {
        /// The tablespace.
        oid: u32,
    },
}

impl TablespaceMap {
    /// Makes a map of tablespaces and their absolute paths.
    pub fn new(entries: Vec<(u32, Vec<u8>)>) -> Result<Self, TablespaceMapError> {
        let mut oids: Vec<u32> = entries.iter().map(|(oid, _)| *oid).collect();
        oids.sort_unstable();
        if let Some(twice) = oids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(TablespaceMapError::Twice { oid: twice[0] });
        }
        for (oid, path) in &entries {
            let line_bytes = oid.to_string().len() + 1 + path.len();
            if !path.starts_with(b"/") || path.contains(&0) || line_bytes > MAX_LINE_BYTES {
                return Err(TablespaceMapError::Path { oid: *oid, path: lossy(path) });
            }
        }
        Ok(Self { entries })
    }

    /// Reads a map that a server of this major version wrote.
    pub fn parse(content: &[u8], major: u32) -> Result<Self, TablespaceMapError> {
        let mut entries = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        let mut open = false;
        for &byte in content {
            open = true;
            match byte {
                _ if escaped => {
                    line.push(byte);
                    escaped = false;
                }
                b'\\' if major >= ESCAPED_BACKSLASHES => escaped = true,
                b'\n' | b'\r' if major < ESCAPED_BACKSLASHES && line.last() == Some(&b'\\') => {
                    line.pop();
                    line.push(byte);
                }
                b'\n' => {
                    entries.push(parse_line(&line, entries.len() + 1)?);
                    line.clear();
                    open = false;
                }
                _ => line.push(byte),
            }
        }
        if open {
            return Err(TablespaceMapError::NoNewline);
        }
        Self::new(entries)
    }

    /// Writes the map as a server of this major version does.
    pub fn to_bytes(&self, major: u32) -> Vec<u8> {
        let mut content = Vec::new();
        for (oid, path) in &self.entries {
            content.extend_from_slice(oid.to_string().as_bytes());
            content.push(b' ');
            for &byte in path {
                if matches!(byte, b'\n' | b'\r') || (byte == b'\\' && major >= ESCAPED_BACKSLASHES) {
                    content.push(b'\\');
                }
                content.push(byte);
            }
            content.push(b'\n');
        }
        content
    }

    /// Returns the tablespaces in the order of the file: OID and path.
    pub fn entries(&self) -> &[(u32, Vec<u8>)] {
        &self.entries
    }

    /// Returns the path of a tablespace.
    pub fn path(&self, oid: u32) -> Option<&[u8]> {
        self.entries.iter().find(|(known, _)| *known == oid).map(|(_, path)| path.as_slice())
    }
}

fn parse_line(line: &[u8], number: usize) -> Result<(u32, Vec<u8>), TablespaceMapError> {
    let space = line.iter().position(|&b| b == b' ');
    let entry = space.and_then(|at| {
        let (oid, path) = (line.get(..at)?, line.get(at + 1..)?);
        let digits = oid.iter().all(u8::is_ascii_digit);
        let oid: u32 = std::str::from_utf8(oid).ok().filter(|_| digits)?.parse().ok()?;
        if oid == 0 || path.is_empty() { None } else { Some((oid, path.to_vec())) }
    });
    entry.ok_or_else(|| TablespaceMapError::Line { line: number, found: lossy(line) })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(200).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by a PostgreSQL 15 server; the first path has a backslash in it.
    const REAL: &[u8] = include_bytes!("../tests/samples/15/tablespace_map");

    #[test]
    fn a_real_map_is_read_and_written_back() {
        let map = TablespaceMap::parse(REAL, 15).unwrap();
        let paths: Vec<_> = map.entries().iter().map(|(_, path)| path.as_slice()).collect();
        assert_eq!(paths, [&br"/tmp/pgt15/two\two"[..], b"/tmp/pgt15/space one"]);
        assert_eq!(map.to_bytes(15), REAL);
        assert_eq!(map.path(map.entries()[0].0), Some(&br"/tmp/pgt15/two\two"[..]));
        assert_eq!(map.path(1), None);
    }

    #[test]
    fn a_backslash_stands_for_itself_in_13() {
        let content = b"16384 /tmp/two\\two\n16385 /line\\\nend\n";
        let map = TablespaceMap::parse(content, 13).unwrap();
        assert_eq!(map.path(16384), Some(&br"/tmp/two\two"[..]));
        assert_eq!(map.path(16385), Some(&b"/line\nend"[..]));
        assert_eq!(map.to_bytes(13), content);
        assert_eq!(TablespaceMap::parse(&map.to_bytes(14), 14), Ok(map));
    }

    #[test]
    fn an_empty_map_is_valid() {
        assert_eq!(TablespaceMap::parse(b"", 15).unwrap(), TablespaceMap::default());
    }

    #[test]
    fn other_contents_are_refused() {
        for content in [&b"1 /a"[..], b"1 /a\n2 /b", b"1 /a\\", b"1 /a\\\n"] {
            assert_eq!(TablespaceMap::parse(content, 15), Err(TablespaceMapError::NoNewline), "{content:?}");
        }
        for content in [&b"\n"[..], b"1\n", b"1 \n", b" /a\n", b"x /a\n", b"+1 /a\n", b"0 /a\n", b"4294967296 /a\n"] {
            assert!(matches!(TablespaceMap::parse(content, 15), Err(TablespaceMapError::Line { .. })), "{content:?}");
        }
        for content in [&b"1 a\n"[..], b"1 ../a\n", b"1 /a\0b\n", &[b"1 /", &[b'a'; 2000][..], b"\n"].concat()] {
            assert!(matches!(TablespaceMap::parse(content, 15), Err(TablespaceMapError::Path { .. })), "{content:?}");
        }
        assert_eq!(TablespaceMap::parse(b"7 /a\n8 /b\n7 /c\n", 15), Err(TablespaceMapError::Twice { oid: 7 }));
    }

    proptest! {
        #[test]
        fn maps_round_trip(paths in prop::collection::btree_map(1u32.., prop::collection::vec(1u8.., 0..60), 0..8)) {
            let entries = paths.into_iter().map(|(oid, rest)| (oid, [b"/".as_slice(), &rest].concat())).collect();
            let map = TablespaceMap::new(entries).unwrap();
            prop_assert_eq!(TablespaceMap::parse(&map.to_bytes(14), 14), Ok(map));
        }

        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>, at in 0..REAL.len(), byte: u8) {
            let mut mutated = REAL.to_vec();
            mutated[at] = byte;
            for major in [13, 14] {
                let _unused = TablespaceMap::parse(&content, major);
                let _unused = TablespaceMap::parse(&mutated, major);
            }
        }
    }
}
