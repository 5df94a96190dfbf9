//! The major versions whose formats are known here. A version outside is refused, never guessed at: WAL, `pg_control`
//! and the replication grammar may each mean something else in it.

use std::ops::RangeInclusive;

/// From the oldest to the newest.
pub const KNOWN_MAJOR_VERSIONS: RangeInclusive<u32> = 13..=18;

/// Whether everything that this crate reads is known of a major version.
pub fn is_known_major_version(major: u32) -> bool {
    KNOWN_MAJOR_VERSIONS.contains(&major)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal_page::magic_of;

    #[test]
    fn every_known_version_has_a_magic_and_no_other_has() {
        for major in 1..100 {
            assert_eq!(magic_of(major).is_some(), is_known_major_version(major), "{major}");
        }
    }
}
