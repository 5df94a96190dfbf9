//! The names of the archives that make up a base backup.

use std::fmt;

/// Which archive follows. The server's text is checked into this, never used as a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArchiveName {
    /// `base.tar`, the data directory, sent last.
    Base,
    /// `<oid>.tar`.
    Tablespace(u32),
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base.tar"),
            Self::Tablespace(oid) => write!(f, "{oid}.tar"),
        }
    }
}

impl ArchiveName {
    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        let stem = str::from_utf8(name).ok()?.strip_suffix(".tar")?;
        if stem == "base" {
            return Some(Self::Base);
        }
        let digits = stem.bytes().all(|byte| byte.is_ascii_digit()) && !stem.starts_with('0');
        if digits { stem.parse().ok().map(Self::Tablespace) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a11_archive_names_that_no_server_gives_are_refused() {
        assert_eq!(ArchiveName::parse(b"base.tar"), Some(ArchiveName::Base));
        assert_eq!(ArchiveName::parse(b"16384.tar"), Some(ArchiveName::Tablespace(16384)));
        for bad in [
            &b"../x.tar"[..],
            b"base.tar\n",
            b"/base.tar",
            b"base.tar.gz",
            b".tar",
            b"",
            b"016384.tar",
            b"+1.tar",
            b"4294967296.tar",
            b"Base.tar",
            b"\xff.tar",
            b"1/../2.tar",
        ] {
            assert_eq!(ArchiveName::parse(bad), None, "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a11_an_archive_name_that_is_read_prints_as_it_came(name in "[a-z0-9./]{0,14}") {
            if let Some(parsed) = ArchiveName::parse(name.as_bytes()) {
                prop_assert_eq!(parsed.to_string(), name);
            }
        }
    }
}
