//! Links before a restore's files, and its end: settings, the signal file and the manifest; then everything is made durable; and only
//! then `pg_control` gets its name, with which the cluster can be started.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pgark_postgres::TablespaceMap;
use rustix::fs::AtFlags;
use tokio::runtime::Handle;

use super::manifest_edit::{ManifestEdit, whole_label};
use super::put_together::Reconstructed;
use super::tree::{LastParent, Tree};
use super::write_back::sync_file_systems;
use super::{ExtractError, Extraction, io_failure};
use crate::destination::{MARKER, PlacedTablespace};
use crate::survey::{AUTO_CONF, BACKUP_LABEL, TABLESPACE_MAP};

/// The name of `pg_control` until it is durable.
pub(super) const NEW_CONTROL_FILE: &str = "pg_control.pgark";
/// The group may read where it may read everything else.
const OWN_MODE: u32 = 0o640;

pub(super) fn finish(
    extraction: &Extraction,
    tree: &Tree,
    reconstructed: &Reconstructed,
    runtime: &Handle,
) -> Result<(), ExtractError> {
    let last = &mut LastParent::default();
    let map = moved_map(extraction, tree)?;
    if let Some(map) = &map {
        write_file(tree, last, TABLESPACE_MAP, map)?;
    }
    let label = (!extraction.chain.is_empty()).then(|| whole_label(&extraction.survey.label_bytes));
    if let Some(label) = &label {
        write_file(tree, last, BACKUP_LABEL, label)?;
    }
    write_file(tree, last, AUTO_CONF, &extraction.auto_conf)?;
    write_file(tree, last, extraction.signal_file.as_bytes(), b"")?;
    let own: Vec<_> = [(TABLESPACE_MAP, map.as_deref()), (BACKUP_LABEL, label.as_deref())]
        .into_iter()
        .filter_map(|(path, content)| Some((path, content?)))
        .collect();
    write_manifest(extraction, tree, last, runtime, ManifestEdit::new(&own, reconstructed))?;
    sync_file_systems(tree)?;
    for root in tree.roots() {
        sync_parent(&root.path)?;
    }
    remove_marker(tree)?;
    publish_control_file(extraction, tree)
}

/// Makes the directories and links of `pg_tblspc`. A tablespace's place is filled only when its link is there: the link
/// tells a later restore with `--delta` that the place is this cluster's.
pub(super) fn link_tablespaces(extraction: &Extraction, tree: &Tree) -> Result<(), ExtractError> {
    for tablespace in &extraction.destination.tablespaces {
        let name = tablespace.oid.to_string();
        let path = format!("pg_tblspc/{name}");
        let Some(location) = &tablespace.location else {
            tree.create_directory(path.as_bytes(), 0o700)?;
            continue;
        };
        tree.create_directory(b"pg_tblspc", 0o700)?;
        let links = tree.open_directory("pg_tblspc")?;
        link(&links, &name, location)
            .map_err(|error| io_failure("create the link", tree.shown(path.as_bytes()), error))?;
    }
    Ok(())
}

fn link(links: &OwnedFd, name: &str, location: &Path) -> rustix::io::Result<()> {
    let found = rustix::fs::readlinkat(links, name, Vec::new());
    if found.is_ok_and(|found| found.as_bytes() == location.as_os_str().as_bytes()) {
        return Ok(());
    }
    let temporary = format!("{name}.pgark");
    rustix::fs::symlinkat(location, links, &temporary)?;
    rustix::fs::renameat(links, &temporary, links, name)?;
    rustix::fs::fsync(links)
}

/// The rewritten map where a tablespace has moved: the server makes the links of the map anew at its first start, and
/// would lead them back to the original places.
fn moved_map(extraction: &Extraction, tree: &Tree) -> Result<Option<Vec<u8>>, ExtractError> {
    let tablespaces = &extraction.destination.tablespaces;
    if !tablespaces.iter().any(|tablespace| tablespace.is_moved) {
        return Ok(None);
    }
    let entry = |tablespace: &PlacedTablespace| {
        Some((tablespace.oid, tablespace.location.as_ref()?.as_os_str().as_bytes().to_vec()))
    };
    let map = TablespaceMap::new(tablespaces.iter().filter_map(entry).collect()).map_err(|error| {
        io_failure("write", tree.shown(TABLESPACE_MAP), io::Error::new(io::ErrorKind::InvalidInput, error))
    })?;
    Ok(Some(map.to_bytes(extraction.backup.server.major())))
}

fn write_file(tree: &Tree, last: &mut LastParent, path: &[u8], content: &[u8]) -> Result<(), ExtractError> {
    let mut file = tree.create_file(last, path, OWN_MODE)?;
    file.write_all(content).map_err(|error| io_failure("write", tree.shown(path), error))
}

/// Writes the manifest of what is there.
fn write_manifest(
    extraction: &Extraction,
    tree: &Tree,
    last: &mut LastParent,
    runtime: &Handle,
    edit: ManifestEdit<'_>,
) -> Result<(), ExtractError> {
    let shown = tree.shown(b"backup_manifest");
    let mut output = io::BufWriter::new(tree.create_file(last, b"backup_manifest", OWN_MODE)?);
    edit.rewrite(&extraction.copies, runtime, |line| {
        output.write_all(line).map_err(|error| io_failure("write", &shown, error))
    })?;
    output.flush().map_err(|error| io_failure("write", &shown, error))
}

/// The entry of a root in the directory above it.
fn sync_parent(path: &Path) -> Result<(), ExtractError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let directory = File::open(parent).map_err(|error| io_failure("open", parent, error))?;
    directory.sync_all().map_err(|error| io_failure("sync", parent, error))
}

fn remove_marker(tree: &Tree) -> Result<(), ExtractError> {
    let root = tree.data();
    rustix::fs::unlinkat(&root.handle, MARKER, AtFlags::empty())
        .map_err(|error| io_failure("remove", root.path.join(MARKER), error))?;
    rustix::fs::fsync(&root.handle).map_err(|error| io_failure("sync", &root.path, error))
}

/// The last step: from here on the cluster can be started.
fn publish_control_file(extraction: &Extraction, tree: &Tree) -> Result<(), ExtractError> {
    let shown = tree.shown(b"global/pg_control");
    let temporary = format!("global/{NEW_CONTROL_FILE}");
    let mut file = tree.create_file(&mut LastParent::default(), temporary.as_bytes(), OWN_MODE)?;
    file.write_all(&extraction.survey.control_bytes).map_err(|error| io_failure("write", &shown, error))?;
    file.sync_all().map_err(|error| io_failure("sync", &shown, error))?;
    let global = tree.open_directory("global")?;
    rustix::fs::renameat(&global, OsStr::new(NEW_CONTROL_FILE), &global, OsStr::new("pg_control"))
        .map_err(|error| io_failure("create", &shown, error))?;
    rustix::fs::fsync(&global).map_err(|error| io_failure("sync", &shown, error))
}
