//! A restore over what is there: which files are as the backup has them, and how many are not.
//!
//! A file is kept when it has the size, the CRC-32C and no second name; anything else about it, and every doubt (it
//! cannot be read, it is a link, its CRC-32C tells nothing), means that it is written anew. Times decide nothing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use pgark_repository::IndexedMember;
use rustix::fs::{FileType, Mode};
use serde::Serialize;
use tokio::runtime::Handle;

use super::claim::OLD_CONTROL_FILE;
use super::expected::Expected;
use super::finish::NEW_CONTROL_FILE;
use super::parts::{Parts, Sink};
use super::sweep::Sweep;
use super::tree::{LastParent, Tree, set_mode};
use super::{ExtractError, Extraction, SIGNALS};
use crate::chain::is_in_blocks;
use crate::destination::MARKER;
use crate::survey::{AUTO_CONF, CONTROL_FILE, MANIFEST, TABLESPACE_MAP};

/// How much is read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What a restore over an existing directory did, or would do. Files that every restore writes itself are not counted.
#[derive(Debug, Default, Serialize)]
pub struct DeltaFigures {
    pub kept_files: AtomicU64,
    pub kept_bytes: AtomicU64,
    pub rewritten_files: AtomicU64,
    pub rewritten_bytes: AtomicU64,
    pub removed_files: AtomicU64,
    pub removed_bytes: AtomicU64,
    /// Bytes of the backup's parts that were read from the repository.
    pub fetched_bytes: AtomicU64,
}

impl DeltaFigures {
    pub(super) fn removed(&self, bytes: u64) {
        self.removed_files.fetch_add(1, Ordering::Relaxed);
        self.removed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn compared(&self, bytes: u64, is_kept: bool) {
        let (files, sum) = match is_kept {
            true => (&self.kept_files, &self.kept_bytes),
            false => (&self.rewritten_files, &self.rewritten_bytes),
        };
        files.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Files of a restore's own, which are written anew each time.
pub(super) fn is_written_by_restore(path: &[u8]) -> bool {
    let in_global = path.strip_prefix(b"global/").unwrap_or_default();
    [CONTROL_FILE, AUTO_CONF, TABLESPACE_MAP, MANIFEST, MARKER.as_bytes()].contains(&path)
        || [NEW_CONTROL_FILE.as_bytes(), OLD_CONTROL_FILE.as_bytes()].contains(&in_global)
        || SIGNALS.contains(&path)
}

/// Whether a file is there as the backup has it. Its mode is put right on the way, unless this only looks.
pub(super) fn is_there(tree: &Tree, last: &mut LastParent, member: &IndexedMember, mend: bool) -> bool {
    let Some(wanted) = member.file else { return false };
    let Ok(mut file) = tree.open_file(last, &member.path) else { return false };
    let Ok(found) = rustix::fs::fstat(&file) else { return false };
    let is_plain = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_nlink == 1;
    let is_own = found.st_uid == rustix::process::geteuid().as_raw();
    if tells_nothing(wanted.crc32c) || !is_plain || !is_own || u64::try_from(found.st_size) != Ok(wanted.size) {
        return false;
    }
    match checksum(&mut file) {
        Ok((size, crc32c)) if (size, crc32c) == (wanted.size, wanted.crc32c) => {
            let mode = tree.file_mode(member.mode);
            !mend || Mode::from_raw_mode(found.st_mode) == mode || set_mode(&file, mode).is_ok()
        }
        _ => false,
    }
}

/// A file that ends with the CRC-32C of what stands before has the same CRC-32C whatever that is: `pg_filenode.map`, which
/// says where the catalogues are, ends so, before PostgreSQL 16 with four more bytes of zeros behind; and so do the states
/// of prepared transactions and of replication origins.
fn tells_nothing(crc32c: u32) -> bool {
    let of_nothing = crc32c::crc32c(&[]);
    let at_end = crc32c::crc32c(&of_nothing.to_le_bytes());
    [at_end, crc32c::crc32c_append(at_end, &[0; 4])].contains(&crc32c)
}

/// Size and CRC-32C of what a file holds.
pub(super) fn checksum(file: &mut File) -> io::Result<(u64, u32)> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut size, mut crc32c) = (0, 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, crc32c)),
            Ok(count) => {
                size += count as u64;
                crc32c = crc32c::crc32c_append(crc32c, &buffer[..count]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Extraction {
    /// Counts what a restore over the directory would do, and touches nothing.
    pub(super) fn look(&self, runtime: &Handle) -> Result<DeltaFigures, ExtractError> {
        let figures = DeltaFigures::default();
        let tree = Tree::look(&self.destination)?;
        if let Some(tree) = &tree {
            self.sweep(tree, runtime, &figures, false)?;
        }
        let sink = OnlyCounted { extraction: self, tree: tree.as_ref(), figures: &figures };
        Parts { copies: &self.copies, jobs: self.jobs, progress: &self.progress, sink: &sink }.read(runtime)?;
        figures.rewritten_bytes.fetch_add(self.chain.bytes_in_blocks, Ordering::Relaxed);
        Ok(figures)
    }

    /// Removes what the backup does not have, or only counts it.
    pub(super) fn sweep(
        &self,
        tree: &Tree,
        runtime: &Handle,
        figures: &DeltaFigures,
        is_carried_out: bool,
    ) -> Result<(), ExtractError> {
        let expected = Expected::read(&self.copies, runtime, |path| self.is_held_back(path))?;
        let control = &self.survey.control;
        let own_directory = format!("PG_{}_{}", control.major(), control.catalog_version);
        Sweep { tree, expected: &expected, own_directory, figures, is_carried_out }.run()
    }
}

/// Nothing is read from the repository: whatever differs is only counted.
struct OnlyCounted<'c> {
    extraction: &'c Extraction,
    tree: Option<&'c Tree>,
    figures: &'c DeltaFigures,
}

impl Sink for OnlyCounted<'_> {
    fn has(&self, last: &mut LastParent, member: &IndexedMember) -> Result<bool, ExtractError> {
        if let Some(file) = member.file.filter(|_| !self.extraction.is_held_back(&member.path)) {
            let in_blocks = is_in_blocks(&member.path);
            let is_kept = !in_blocks && self.tree.is_some_and(|tree| is_there(tree, last, member, false));
            // What is put together has another size, which is known of all of it.
            self.figures.compared(if in_blocks { 0 } else { file.size }, is_kept);
        }
        Ok(true)
    }

    fn file(&self, _: &mut LastParent, _: &IndexedMember) -> Result<Option<Box<dyn Write + '_>>, ExtractError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::tells_nothing;

    #[test]
    fn a_file_that_ends_with_its_own_checksum_is_never_known_by_it() {
        for content in [&b""[..], b"mapped", &[7; 504]] {
            let own = crc32c::crc32c(content).to_le_bytes();
            assert!(tells_nothing(crc32c::crc32c(&[content, &own].concat())));
            assert!(tells_nothing(crc32c::crc32c(&[content, &own, &[0; 4]].concat())));
            assert!(!tells_nothing(crc32c::crc32c(&[content, b"18\n"].concat())));
        }
    }
}
