//! The server's manifest for what is there instead of what it sent: byte for byte, but for the files that are other ones.
//! Their lines and the checksum of the whole change with them, so that `pg_verifybackup` checks what is there.

use std::io::{BufRead, Read};

use pgark_postgres::{ManifestEditor, ManifestReplacement};
use tokio::runtime::Handle;

use super::ExtractError;
use super::put_together::Reconstructed;
use crate::chain::{is_in_blocks, whole_path};
use crate::copies::{Copies, List, StoredCopy};
use crate::damage::{damaged, reading_failed};
use crate::survey::DigestReader;

/// Far more than a line of a manifest has; a longer one comes in pieces.
const LINE_LIMIT: u64 = 1 << 20;

/// A server refuses the label of an incremental backup. Without the two lines it is that of a full one.
pub(crate) fn whole_label(label: &[u8]) -> Vec<u8> {
    let is_of_parent = |line: &&[u8]| line.starts_with(b"INCREMENTAL FROM ");
    label.split_inclusive(|&byte| byte == b'\n').filter(|line| !is_of_parent(line)).collect::<Vec<_>>().concat()
}

/// What the manifest says of files that are other ones.
pub(crate) struct ManifestEdit<'m> {
    /// Path and content of those that pgark itself writes.
    own: &'m [(&'m [u8], &'m [u8])],
    reconstructed: &'m Reconstructed,
    editor: ManifestEditor,
}

impl<'m> ManifestEdit<'m> {
    pub(crate) fn new(own: &'m [(&'m [u8], &'m [u8])], reconstructed: &'m Reconstructed) -> Self {
        Self { own, reconstructed, editor: ManifestEditor::default() }
    }

    /// Reads a backup's manifest and hands out what it becomes, line by line. For blocking threads.
    pub(crate) fn rewrite(
        mut self,
        copies: &Copies,
        runtime: &Handle,
        mut output: impl FnMut(&[u8]) -> Result<(), ExtractError>,
    ) -> Result<(), ExtractError> {
        let in_order = copies.in_order();
        let Some(StoredCopy { repository, backup, .. }) = in_order.first() else { return Ok(()) };
        let key = repository.manifest_key(backup);
        let (mut input, digest) = DigestReader::new(copies.read(List::Manifest, runtime));
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut input).take(LINE_LIMIT).read_until(b'\n', &mut line);
            if read.map_err(|error| reading_failed(repository, &key, error))? == 0 {
                break;
            }
            self.apply(&mut line).map_err(|reason| damaged(repository, &key, reason))?;
            output(&line)?;
        }
        Ok(digest.check(repository, &key, &backup.manifest)?)
    }

    pub(super) fn apply(&mut self, line: &mut Vec<u8>) -> Result<(), String> {
        let replacement = ManifestEditor::path_of(line).map_or(Ok(None), |path| self.replacement(path))?;
        self.editor.edit(line, replacement)
    }

    fn replacement(&self, path: &[u8]) -> Result<Option<ManifestReplacement>, String> {
        let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        if let Some((path, content)) = self.own.iter().find(|(own, _)| *own == path) {
            let (size, crc32c) = (content.len() as u64, crc32c::crc32c(content));
            return Ok(Some(ManifestReplacement { path: name(path), size, crc32c }));
        }
        if !is_in_blocks(path) {
            return Ok(None);
        }
        let whole = whole_path(path);
        let found = self.reconstructed.get(&whole);
        let path = name(&whole);
        let found = found.ok_or_else(|| format!("it lists {path}, which was not put together"))?;
        Ok(Some(ManifestReplacement { path, size: found.size, crc32c: found.crc32c }))
    }
}

#[cfg(test)]
mod tests;
