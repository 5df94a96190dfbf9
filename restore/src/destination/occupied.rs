//! A directory with a cluster in it: whose it is, and what a restore over it leaves alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pgark_postgres::{ClusterState, ControlFile, SystemIdentifier};
use pgark_repository::Backup;
use rustix::fs::OFlags;

use super::{DestinationError, MARKER, MARKER_SYSTEM, NEW_MARKER, PlacedTablespace, resolve, running_server};

/// Far more than each of the files that are looked at has.
const LIMIT: u64 = 64 << 10;

/// Refuses what is not a stopped cluster of the backup, or an interrupted restore of it. A cluster whose `pg_control` is
/// lost or damaged cannot say which one it is; then its version has to do.
pub(super) fn check(path: &Path, backup: &Backup) -> Result<(), DestinationError> {
    let path_buf = path.to_path_buf();
    if let Some(pid) = running_server(path) {
        return Err(DestinationError::RunningServer { path: path_buf, pid });
    }
    let marker = read(&path.join(MARKER)).or_else(|| read(&path.join(NEW_MARKER)));
    let version = read(&path.join("PG_VERSION"));
    if marker.is_none() && version.is_none() {
        return Err(DestinationError::NoCluster { path: path_buf });
    }
    let expected = backup.server.system_identifier;
    let found =
        control_file(path).map(|control| control.system_identifier).or_else(|| marker.as_deref().and_then(of_marker));
    match found {
        Some(found) if found == expected => return Ok(()),
        Some(found) => return Err(DestinationError::OtherCluster { path: path_buf, found, expected }),
        None => {}
    }
    let version = version.map(|version| String::from_utf8_lossy(&version).trim().to_owned());
    match version.filter(|version| *version != backup.server.major().to_string()) {
        // What an interrupted restore has written may be cut short.
        Some(found) if marker.is_none() => {
            Err(DestinationError::OtherVersion { path: path_buf, found, expected: backup.server.major() })
        }
        _ => Ok(()),
    }
}

fn of_marker(content: &[u8]) -> Option<SystemIdentifier> {
    let text = String::from_utf8_lossy(content);
    text.lines().find_map(|line| line.strip_prefix(MARKER_SYSTEM)?.parse().ok())
}

/// The beginning of a plain file.
fn read(path: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut content = Vec::new();
    file.take(LIMIT).read_to_end(&mut content).ok()?;
    Some(content)
}

/// Where the links in `pg_tblspc` lead.
pub(super) fn tablespace_links(directory: &Path) -> BTreeMap<u32, PathBuf> {
    let links = directory.join("pg_tblspc");
    if !links.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return BTreeMap::new();
    }
    let entries = fs::read_dir(links).into_iter().flatten().flatten();
    let link = |entry: fs::DirEntry| {
        let oid = entry.file_name().to_str()?.parse().ok()?;
        Some((oid, fs::read_link(entry.path()).ok().filter(|target| target.is_absolute())?))
    };
    entries.filter_map(link).collect()
}

/// What the restore takes out of use without touching it.
pub(super) fn notes(directory: &Path, links: &BTreeMap<u32, PathBuf>, tablespaces: &[PlacedTablespace]) -> Vec<String> {
    let mut notes = only_copies(directory);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            notes.push(format!(
                "{} is a link to {}; the link goes, and what it leads to stays as it is",
                entry.file_name().display(),
                target.display()
            ));
        }
    }
    for (oid, target) in links {
        let placed = tablespaces.iter().find(|tablespace| tablespace.oid == *oid);
        let place = placed.and_then(|placed| placed.location.as_deref());
        if place.and_then(|place| resolve(place).ok()) != resolve(target).ok() {
            notes.push(format!(
                "{} was the place of tablespace {oid} and is no longer used; what is in it stays as it is",
                target.display()
            ));
        }
    }
    notes
}

/// WAL that may be nowhere else and goes with `pg_wal`.
fn only_copies(directory: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    let entries = fs::read_dir(directory.join("pg_wal/archive_status")).into_iter().flatten().flatten();
    let is_waiting = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "ready");
    let waiting = entries.filter(is_waiting).count();
    if waiting > 0 {
        notes.push(format!("{waiting} files in pg_wal wait for the archive and will be removed; ship them first"));
    }
    let control = control_file(directory);
    if control
        .is_some_and(|control| !matches!(control.state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery))
    {
        notes.push("the server did not shut down: its last transactions may be in pg_wal only, which will be emptied; copy it away first".to_owned());
    }
    notes
}

fn control_file(directory: &Path) -> Option<ControlFile> {
    ControlFile::parse(&read(&directory.join("global/pg_control"))?).ok()
}

/// Bytes of the files in a directory, as far as they can be read.
pub(super) fn allocated_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes_of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => allocated_bytes(&entry.path()),
        Ok(found) if found.is_file() => found.blocks().saturating_mul(512),
        _ => 0,
    };
    entries.map(bytes_of).fold(0, u64::saturating_add)
}
