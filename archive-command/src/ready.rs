//! Which segments wait to be archived, by PostgreSQL's own notes: `pg_wal/archive_status/<segment>.ready`.

use std::fs;
use std::path::{Path, PathBuf};

use pgark_postgres::SegmentName;

/// What is shipped at once at most, so that memory stays bounded with large segments, too.
const MOST_BYTES: u64 = 128 << 20;

/// The segments that PostgreSQL will ask for after one, and how many of them are shipped side by side with it.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// In PostgreSQL's order; none where that is unknown.
    pub(crate) segments: Vec<(SegmentName, PathBuf)>,
    pub(crate) at_once: usize,
}

/// What waits behind `asked`, of which at most `most` are to be shipped at once.
pub(crate) fn ready_after(asked: SegmentName, file: &Path, most: usize) -> Ready {
    let Some(pg_wal) = file.parent() else { return Ready::default() };
    let Ok(size) = fs::metadata(file).map(|metadata| metadata.len()) else { return Ready::default() };
    let at_once = most.min(usize::try_from((MOST_BYTES / size.max(1)).saturating_sub(1)).unwrap_or(usize::MAX));
    // A file that is shipped by hand lies somewhere else, and has no such folder beside it.
    let Ok(entries) = fs::read_dir(pg_wal.join("archive_status")) else { return Ready::default() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let segments = all_after(asked, names).into_iter().map(|name| (name, pg_wal.join(name.to_string()))).collect();
    Ready { segments, at_once }
}

fn all_after(asked: SegmentName, names: impl Iterator<Item = String>) -> Vec<SegmentName> {
    let ready = |name: String| name.strip_suffix(".ready")?.parse::<SegmentName>().ok();
    let mut segments: Vec<SegmentName> = names.filter_map(ready).filter(|segment| *segment > asked).collect();
    segments.sort_unstable();
    segments
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_next_ones_that_are_ready_are_chosen_in_the_servers_order() {
        let names = [
            "00000001000000000000000A.ready",
            "000000010000000000000009.ready",
            "00000001000000000000000B.done",
            "000000010000000000000003.ready",
            "000000020000000000000001.ready",
            "00000002.history.ready",
            "000000010000000000000008.00000028.backup.ready",
            "00000001000000000000000C.partial.ready",
            "nonsense",
        ];
        let chosen = |asked: &str| -> Vec<String> {
            let names = names.iter().map(|name| (*name).to_owned());
            all_after(asked.parse().unwrap(), names).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            chosen("000000010000000000000008"),
            ["000000010000000000000009", "00000001000000000000000A", "000000020000000000000001"]
        );
        assert_eq!(chosen("000000020000000000000001"), [""; 0]);
    }

    #[test]
    fn large_segments_are_few_at_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("archive_status")).unwrap();
        for number in 1..=9 {
            fs::write(folder.path().join(format!("archive_status/00000001000000000000000{number}.ready")), "").unwrap();
        }
        let asked = "000000010000000000000001";
        let file = folder.path().join(asked);
        for (mebibytes, expected) in [(1, 7), (16, 7), (64, 1), (1024, 0)] {
            fs::File::create(&file).unwrap().set_len(mebibytes << 20).unwrap();
            let ready = ready_after(asked.parse().unwrap(), &file, 7);
            assert_eq!((ready.at_once, ready.segments.len()), (expected, 8), "{mebibytes} MiB");
        }
        assert!(ready_after(asked.parse().unwrap(), Path::new("/nowhere/file"), 7).segments.is_empty());
    }
}
