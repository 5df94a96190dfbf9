//! Where a restore goes, checked before anything is touched.
//!
//! A restore creates; it never overwrites and never removes what it did not create. So the data directory and each
//! tablespace must be absent or empty, belong to the user at work, lie apart from each other, from other data
//! directories and from the repository. Root is refused: PostgreSQL does not run as root and would not start on files
//! of root.
//!
//! With `--delta` the data directory may be the same cluster's, stopped, or that of an interrupted restore; and the
//! place of a tablespace may be what a link of that directory leads to, which proves whose it is.

mod occupied;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use pgark_command::format_size;
use pgark_postgres::SystemIdentifier;
use pgark_repository::Backup;
use thiserror::Error;

use crate::survey::Layout;

/// Exists while a restore is under way, and after one that was interrupted.
pub(crate) const MARKER: &str = "pgark.restoring";
/// The marker until it is written.
pub(crate) const NEW_MARKER: &str = "pgark.restoring.new";
/// Begins the line of it that says which cluster is restored.
pub(crate) const MARKER_SYSTEM: &str = "System identifier: ";

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct DestinationRequest<'r> {
    pub directory: &'r Path,
    /// Where tablespaces go that shall not go back to where they were.
    pub tablespaces: &'r [(u32, PathBuf)],
    /// Below which all other tablespaces go, each into a directory named after its OID.
    pub tablespace_base: Option<&'r Path>,
    /// The directories of local repositories.
    pub repositories: &'r [PathBuf],
    /// Whether a cluster that is there may be brought to the backup.
    pub delta: bool,
}

/// A place for the data directory and for each tablespace, all of them absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub directory: PathBuf,
    pub tablespaces: Vec<PlacedTablespace>,
    /// What files and directories may allow at most: 0700, or 0750 where the source let its group read.
    pub mode_mask: u32,
    /// Whether there is something to be brought to the backup.
    pub is_occupied: bool,
    /// What the user should know of what is there.
    pub notes: Vec<String>,
}

/// A tablespace and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTablespace {
    pub oid: u32,
    /// Nothing for a tablespace that lies in the data directory itself.
    pub location: Option<PathBuf>,
    /// Whether that is not where it was.
    pub is_moved: bool,
    /// Whether it holds this cluster's files.
    pub is_occupied: bool,
}

/// The place cannot be used. Nothing was touched.
#[derive(Debug, Error)]
pub enum DestinationError {
    #[error("a restore must not run as root, because PostgreSQL refuses to start as root and on files of root")]
    Root,
    #[error("{} has a running server (postmaster.pid names process {pid})", .path.display())]
    RunningServer { path: PathBuf, pid: u32 },
    #[error("{} holds an interrupted restore", .path.display())]
    Interrupted { path: PathBuf },
    #[error("{} is neither a data directory nor an interrupted restore, and --delta removes what does not belong", .path.display())]
    NoCluster { path: PathBuf },
    #[error("{} is of the cluster with system identifier {found}, and the backup is of {expected}", .path.display())]
    OtherCluster { path: PathBuf, found: SystemIdentifier, expected: SystemIdentifier },
    #[error("{} is of PostgreSQL {found}, and the backup of {expected}", .path.display())]
    OtherVersion { path: PathBuf, found: String, expected: u32 },
    #[error("{} is not empty{}", .path.display(), if *.is_data_directory { ": it is a data directory" } else { "" })]
    NotEmpty { path: PathBuf, is_data_directory: bool },
    #[error("{} is not a directory", .path.display())]
    NotADirectory { path: PathBuf },
    #[error("{} belongs to user {owner}, and this is user {user}", .path.display())]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error("{} lies in another data directory, {}", .path.display(), .other.display())]
    InDataDirectory { path: PathBuf, other: PathBuf },
    #[error("{} and {} lie in each other", .first.display(), .second.display())]
    Nested { first: PathBuf, second: PathBuf },
    #[error("{} is used for two tablespaces", .path.display())]
    Twice { path: PathBuf },
    #[error("tablespace {oid} is given twice")]
    TablespaceTwice { oid: u32 },
    #[error("the backup has no tablespace {oid}; it has {known}")]
    UnknownTablespace { oid: u32, known: String },
    #[error("tablespace {oid} lies in the data directory itself and cannot be moved")]
    InPlace { oid: u32 },
    #[error("tablespace {oid}: {} is not an absolute path without `.` and `..`", .path.display())]
    NotAbsolute { oid: u32, path: PathBuf },
    #[error("--tablespace-base: {} is not an absolute path without `.` and `..`", .path.display())]
    BaseNotAbsolute { path: PathBuf },
    #[error("{} has {} free, and the restore needs {}", .path.display(), format_size(*.free), format_size(*.needed))]
    NoSpace { path: PathBuf, free: u64, needed: u64 },
    #[error("cannot look at {}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
}

impl DestinationError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Root => {
                "run it as the user that will run the server, as in `sudo -u postgres pgark-restore base …`".to_owned()
            }
            Self::RunningServer { path, pid } => format!(
                "stop that server, or restore into another directory; if no server runs (no process {pid} here or in a \
                 container that shares the directory), remove {}",
                path.join("postmaster.pid").display()
            ),
            Self::Interrupted { path } => format!(
                "it cannot be started; go on with --delta, or remove {} and run the restore again",
                path.display()
            ),
            Self::NotEmpty { path, is_data_directory: true } => format!(
                "move {} away or remove it, or restore into another directory; --delta rewrites a stopped cluster with \
                 what differs from the backup",
                path.display()
            ),
            Self::NotEmpty { path, .. } => {
                format!("move {} away or remove it, or restore into another directory", path.display())
            }
            Self::OtherCluster { .. } => {
                "restore into another directory, choose the cluster with --system-identifier, or remove what is there \
                 and restore without --delta"
                    .to_owned()
            }
            Self::NoCluster { .. }
            | Self::OtherVersion { .. }
            | Self::NotADirectory { .. }
            | Self::InDataDirectory { .. } => "restore into another directory".to_owned(),
            Self::Owner { .. } => "run it as that user, or change the owner of the directory".to_owned(),
            Self::Nested { .. } | Self::Twice { .. } | Self::TablespaceTwice { .. } => {
                "give each tablespace a directory of its own with --tablespace OID=DIR, or all of them with \
                 --tablespace-base DIR"
                    .to_owned()
            }
            Self::UnknownTablespace { .. }
            | Self::InPlace { .. }
            | Self::NotAbsolute { .. }
            | Self::BaseNotAbsolute { .. } => return None,
            Self::NoSpace { .. } => "free some, or restore into another file system".to_owned(),
            Self::Unreadable { .. } => return None,
        })
    }
}

/// Checks everything that can be checked without writing.
pub fn check(
    request: &DestinationRequest<'_>,
    backup: &Backup,
    layout: &Layout,
) -> Result<Destination, DestinationError> {
    match rustix::process::geteuid().as_raw() {
        0 => Err(DestinationError::Root),
        user => check_as(user, request, backup, layout),
    }
}

fn check_as(
    user: u32,
    request: &DestinationRequest<'_>,
    backup: &Backup,
    layout: &Layout,
) -> Result<Destination, DestinationError> {
    let directory = resolve(request.directory)?;
    let is_occupied = !check_place(&directory, user)?;
    if is_occupied {
        match request.delta {
            true => occupied::check(&directory, backup)?,
            false => return Err(not_empty(&directory)),
        }
    }
    check_surroundings(&directory)?;
    let links = if is_occupied { occupied::tablespace_links(&directory) } else { BTreeMap::new() };
    let mut tablespaces = place_tablespaces(request, backup, layout, &links)?;
    let mut places = vec![directory.clone()];
    for tablespace in &mut tablespaces {
        let Some(location) = &tablespace.location else { continue };
        let place = resolve(location)?;
        if !check_place(&place, user)? {
            let linked = links.get(&tablespace.oid).and_then(|link| resolve(link).ok());
            if linked.as_ref() != Some(&place) {
                return Err(DestinationError::NotEmpty { path: location.clone(), is_data_directory: false });
            }
            tablespace.is_occupied = true;
        }
        if places.contains(&place) {
            return Err(DestinationError::Twice { path: place });
        }
        places.push(place);
    }
    for repository in request.repositories {
        places.push(resolve(repository)?);
    }
    for (index, first) in places.iter().enumerate() {
        if let Some(second) = places.iter().skip(index + 1).find(|second| nested(first, second)) {
            return Err(DestinationError::Nested { first: first.clone(), second: second.clone() });
        }
    }
    check_space(&directory, is_occupied, &tablespaces, layout)?;
    // The mode comes as octal digits; anything but "the group may read" means "nobody else may".
    let mode_mask = match u32::from_str_radix(&backup.server.data_directory_mode, 8) {
        Ok(mode) if mode & 0o050 == 0o050 => 0o750,
        _ => 0o700,
    };
    let notes = if is_occupied { occupied::notes(&directory, &links, &tablespaces) } else { Vec::new() };
    Ok(Destination { directory, tablespaces, mode_mask, is_occupied, notes })
}

/// Makes a path absolute and follows the links in what exists of it.
fn resolve(path: &Path) -> Result<PathBuf, DestinationError> {
    let unreadable = |source| DestinationError::Unreadable { path: path.to_path_buf(), source };
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    if absolute.components().any(|component| component == Component::ParentDir) && !absolute.exists() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "`..` in a path that does not exist");
        return Err(unreadable(source));
    }
    let mut missing: Vec<OsString> = Vec::new();
    let mut existing = absolute.as_path();
    loop {
        match existing.canonicalize() {
            Ok(mut resolved) => {
                resolved.extend(missing.iter().rev());
                return Ok(resolved);
            }
            // A dangling link is there, and nothing can be created under its name.
            Err(error) if error.kind() == io::ErrorKind::NotFound && existing.symlink_metadata().is_err() => {
                let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
                    return Err(unreadable(error));
                };
                missing.push(name.to_owned());
                existing = parent;
            }
            Err(error) => return Err(unreadable(error)),
        }
    }
}

/// A place must be absent, or a directory of this user. Returns whether nothing is in it.
fn check_place(path: &Path, user: u32) -> Result<bool, DestinationError> {
    let unreadable = |source| DestinationError::Unreadable { path: path.to_path_buf(), source };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(unreadable(error)),
    };
    if !metadata.is_dir() {
        return Err(DestinationError::NotADirectory { path: path.to_path_buf() });
    }
    if metadata.uid() != user {
        return Err(DestinationError::Owner { path: path.to_path_buf(), owner: metadata.uid(), user });
    }
    Ok(std::fs::read_dir(path).map_err(unreadable)?.next().is_none())
}

/// Says in what way a directory is not empty.
fn not_empty(path: &Path) -> DestinationError {
    let path = path.to_path_buf();
    if let Some(pid) = running_server(&path) {
        return DestinationError::RunningServer { path, pid };
    }
    let is_data_directory = path.join("PG_VERSION").exists();
    let is_marked = [MARKER, NEW_MARKER].iter().any(|marker| path.join(marker).exists());
    if is_marked || is_data_directory && !path.join("global/pg_control").exists() {
        return DestinationError::Interrupted { path };
    }
    DestinationError::NotEmpty { path, is_data_directory }
}

/// The process in `postmaster.pid`. Whether it still lives cannot be told from another container, so it counts.
fn running_server(path: &Path) -> Option<u32> {
    let content = std::fs::read_to_string(path.join("postmaster.pid")).ok()?;
    content.lines().next()?.trim().parse().ok()
}

fn check_surroundings(directory: &Path) -> Result<(), DestinationError> {
    match directory.ancestors().skip(1).find(|ancestor| ancestor.join("PG_VERSION").exists()) {
        Some(other) => {
            Err(DestinationError::InDataDirectory { path: directory.to_path_buf(), other: other.to_path_buf() })
        }
        None => Ok(()),
    }
}

fn place_tablespaces(
    request: &DestinationRequest<'_>,
    backup: &Backup,
    layout: &Layout,
    links: &BTreeMap<u32, PathBuf>,
) -> Result<Vec<PlacedTablespace>, DestinationError> {
    let given = request.tablespaces;
    if let Some(base) = request.tablespace_base.filter(|base| !is_plain_absolute(base)) {
        return Err(DestinationError::BaseNotAbsolute { path: base.to_path_buf() });
    }
    for (index, (oid, path)) in given.iter().enumerate() {
        if given.iter().skip(index + 1).any(|(other, _)| other == oid) {
            return Err(DestinationError::TablespaceTwice { oid: *oid });
        }
        match backup.tablespaces.iter().find(|tablespace| tablespace.oid == *oid) {
            None => {
                let known: Vec<String> = backup
                    .tablespaces
                    .iter()
                    .map(|tablespace| format!("{} ({})", tablespace.oid, tablespace.location))
                    .collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(DestinationError::UnknownTablespace { oid: *oid, known });
            }
            Some(tablespace) if tablespace.in_place => return Err(DestinationError::InPlace { oid: *oid }),
            Some(_) => check_absolute(*oid, path)?,
        }
    }
    let mut placed = Vec::new();
    for tablespace in &backup.tablespaces {
        let oid = tablespace.oid;
        let original = layout.tablespaces.path(oid).map(|path| PathBuf::from(OsString::from_vec(path.to_vec())));
        let location = match (given.iter().find(|(other, _)| *other == oid), request.tablespace_base) {
            (Some((_, path)), _) => Some(path.clone()),
            (None, Some(base)) if !tablespace.in_place => Some(base.join(oid.to_string())),
            (None, _) => original.as_ref().map(|original| links.get(&oid).unwrap_or(original).clone()),
        };
        if let Some(location) = &location {
            check_absolute(oid, location)?;
        }
        let is_moved = location != original;
        placed.push(PlacedTablespace { oid, location, is_moved, is_occupied: false });
    }
    Ok(placed)
}

fn check_absolute(oid: u32, path: &Path) -> Result<(), DestinationError> {
    if is_plain_absolute(path) && path.parent().is_some() {
        Ok(())
    } else {
        Err(DestinationError::NotAbsolute { oid, path: path.to_path_buf() })
    }
}

fn is_plain_absolute(path: &Path) -> bool {
    let mut parts = path.as_os_str().as_bytes().split(|&byte| byte == b'/');
    path.is_absolute() && parts.all(|part| part != b"." && part != b"..")
}

fn nested(first: &Path, second: &Path) -> bool {
    first.starts_with(second) || second.starts_with(first)
}

/// Sums what each file system has to take, and what is there and goes or is used again.
fn check_space(
    directory: &Path,
    is_occupied: bool,
    tablespaces: &[PlacedTablespace],
    layout: &Layout,
) -> Result<(), DestinationError> {
    let bytes_of = |oid: u32| layout.tablespace_bytes.get(&oid).copied().unwrap_or(0);
    let outside = || {
        tablespaces
            .iter()
            .filter_map(|place| Some((place.location.as_deref()?, bytes_of(place.oid), place.is_occupied)))
    };
    let elsewhere = outside().map(|(_, bytes, _)| bytes).fold(0, u64::saturating_add);
    let mut loads: Vec<Load> = Vec::new();
    for (path, bytes, is_occupied) in
        std::iter::once((directory, layout.bytes.saturating_sub(elsewhere), is_occupied)).chain(outside())
    {
        let Some(existing) = path.ancestors().find(|ancestor| ancestor.exists()) else { continue };
        let unreadable = |source| DestinationError::Unreadable { path: existing.to_path_buf(), source };
        let device = std::fs::metadata(existing).map_err(unreadable)?.dev();
        let present = if is_occupied { occupied::allocated_bytes(path) } else { 0 };
        let load = Load { device, path: existing.to_path_buf(), needed: bytes, present };
        match loads.iter_mut().find(|other| other.device == device) {
            Some(other) => {
                other.needed = other.needed.saturating_add(load.needed);
                other.present = other.present.saturating_add(load.present);
            }
            None => loads.push(load),
        }
    }
    for Load { path, needed, present, .. } in loads {
        let stat = rustix::fs::statvfs(&path)
            .map_err(|error| DestinationError::Unreadable { path: path.clone(), source: error.into() })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed = needed.saturating_sub(present);
        if free < needed {
            return Err(DestinationError::NoSpace { path, free, needed });
        }
    }
    Ok(())
}

/// What comes to one file system.
struct Load {
    device: u64,
    path: PathBuf,
    needed: u64,
    present: u64,
}

#[cfg(test)]
#[path = "destination/tests.rs"]
mod tests;
