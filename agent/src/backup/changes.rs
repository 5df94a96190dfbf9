//! An incremental backup of PostgreSQL 13 to 16, which send everything: the stream is compared, block by block, with the
//! map of the parent, and what differs is stored as PostgreSQL 17 would send it.
//!
//! The header of an incremental file names its blocks, so a file is held until it is complete: only the blocks that
//! changed, in memory up to [`MEMORY_BYTES`] and behind that in a file of `state_dir`. The map of this backup is written
//! on the way, for the next one. A file that the parent does not have, or of which every block changed, is stored whole.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use pgark_postgres::{
    BlockHashes, BlockMapIndex, BlockMapWriter, IncrementalFrom, ManifestEditor, ManifestReplacement, RelationFile,
    block_hash, crc32c_from_hex, incremental_path,
};
use pgark_repository::{BackupWriter, TarMember, WholeFile};

/// Changed blocks of one file that are held in memory.
const MEMORY_BYTES: usize = 16 << 20;
const BLOCK_BYTES: usize = RelationFile::BLOCK_BYTES;
/// The longest line of a manifest that readers take.
const LINE_LIMIT: usize = 16 << 10;
/// What is read back at once of blocks that were put aside.
const COPY_BYTES: usize = 1 << 20;

/// Compares the stream of a backup with its parent.
pub(super) struct Changes {
    /// Nothing for a full backup, of which only the map is made.
    parent: Option<ParentMap>,
    map: BlockMapWriter<BufWriter<File>>,
    /// Where blocks are put aside.
    folder: PathBuf,
    /// What became of each file, in the order of the stream; the manifest has the same.
    stored: Vec<Stored>,
}

struct ParentMap {
    index: BlockMapIndex,
    map: BufReader<File>,
    start: IncrementalFrom,
}

/// What became of a file.
#[derive(Clone, Copy)]
enum Stored {
    AsItIs,
    /// Something else stands in its place.
    Otherwise {
        whole: WholeFile,
        size: u64,
        crc32c: u32,
    },
}

/// A file that is held until it is complete, or passed on while it is looked at.
pub(super) struct OpenFile {
    member: TarMember,
    remaining: u64,
    crc32c: u32,
    held: Held,
}

enum Held {
    Label(Vec<u8>),
    /// Passed on; only the map wants to know.
    Whole(Blocks),
    Changed {
        parent: BlockHashes,
        blocks: Blocks,
        numbers: Vec<u32>,
        content: HeldBlocks,
    },
}

impl OpenFile {
    /// Whether all of its content has come.
    pub(super) fn is_complete(&self) -> bool {
        self.remaining == 0
    }
}

/// Cuts content into blocks and hashes them.
#[derive(Default)]
struct Blocks {
    hashes: BlockHashes,
    count: u32,
    partial: Vec<u8>,
}

impl Blocks {
    fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(u32, u64, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= BLOCK_BYTES {
                let (block, rest) = bytes.split_at(BLOCK_BYTES);
                self.add(block, &mut each)?;
                bytes = rest;
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if self.partial.len() == BLOCK_BYTES {
                let block = std::mem::take(&mut self.partial);
                self.add(&block, &mut each)?;
                self.partial = block;
                self.partial.clear();
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        block: &[u8],
        each: &mut impl FnMut(u32, u64, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let hash = block_hash(block);
        self.hashes.push(hash);
        let number = self.count;
        self.count += 1;
        each(number, hash, block)
    }
}

/// Changed blocks, one behind the other.
#[derive(Default)]
struct HeldBlocks {
    memory: Vec<u8>,
    aside: Option<File>,
}

impl HeldBlocks {
    fn push(&mut self, block: &[u8], folder: &Path) -> anyhow::Result<()> {
        if self.memory.len() + block.len() > MEMORY_BYTES {
            let aside = match &mut self.aside {
                Some(aside) => aside,
                none => none.insert(tempfile::tempfile_in(folder).context("put changed blocks aside in state_dir")?),
            };
            aside.write_all(&self.memory).context("put changed blocks aside in state_dir")?;
            self.memory.clear();
        }
        self.memory.extend_from_slice(block);
        Ok(())
    }

    /// Hands everything out in order.
    async fn write(self, crc32c: &mut u32, writer: &mut BackupWriter) -> anyhow::Result<()> {
        if let Some(mut aside) = self.aside {
            aside.seek(SeekFrom::Start(0)).context("read changed blocks back")?;
            let mut buffer = vec![0; COPY_BYTES];
            loop {
                let count = aside.read(&mut buffer).context("read changed blocks back")?;
                if count == 0 {
                    break;
                }
                *crc32c = crc32c::crc32c_append(*crc32c, &buffer[..count]);
                writer.write(&buffer[..count]).await?;
            }
        }
        // A file that is complete takes nothing more, not even nothing.
        if !self.memory.is_empty() {
            *crc32c = crc32c::crc32c_append(*crc32c, &self.memory);
            writer.write(&self.memory).await?;
        }
        Ok(())
    }
}

impl Changes {
    /// Ends the comparison: the map is complete, and the manifest is still to come.
    pub(super) fn end(self) -> anyhow::Result<RewrittenManifest> {
        self.map.finish().context("write the block map")?.flush().context("write the block map")?;
        let stored = self.stored.into_iter();
        Ok(RewrittenManifest { stored, editor: ManifestEditor::default(), line: Vec::new() })
    }

    /// Begins a map in `map`; with a parent also the comparison with its map, which is verified.
    pub(super) fn new(map: File, parent: Option<(File, IncrementalFrom)>, folder: &Path) -> anyhow::Result<Self> {
        let parent = match parent {
            None => None,
            Some((file, start)) => {
                let mut map = BufReader::new(file);
                let index = BlockMapIndex::read(&mut map).context("read the parent's block map")?;
                Some(ParentMap { index, map, start })
            }
        };
        let map = BlockMapWriter::new(BufWriter::new(map)).context("write the block map")?;
        Ok(Self { parent, map, folder: folder.to_owned(), stored: Vec::new() })
    }

    /// Begins a file; nothing for a member that nobody wants to look at.
    pub(super) async fn begin(
        &mut self,
        member: TarMember,
        writer: &mut BackupWriter,
    ) -> anyhow::Result<Option<OpenFile>> {
        let Some(size) = member.size else {
            writer.begin_member(&member, None).await?;
            return Ok(None);
        };
        let held = self.held(&member, size)?;
        let Some(held) = held else {
            self.stored.push(Stored::AsItIs);
            writer.begin_member(&member, None).await?;
            return Ok(None);
        };
        if matches!(held, Held::Whole(_)) {
            writer.begin_member(&member, None).await?;
        }
        Ok(Some(OpenFile { member, remaining: size, crc32c: 0, held }))
    }

    fn held(&mut self, member: &TarMember, size: u64) -> anyhow::Result<Option<Held>> {
        if member.path == b"backup_label" && self.parent.is_some() {
            return Ok(Some(Held::Label(Vec::new())));
        }
        let is_relation = RelationFile::parse(&member.path).is_some_and(|file| file.may_be_incremental(size));
        if !is_relation {
            return Ok(None);
        }
        let of_parent = match &mut self.parent {
            Some(parent) if size > 0 => {
                parent.index.find(&mut parent.map, &member.path).context("read the parent's block map")?
            }
            _ => None,
        };
        Ok(Some(match of_parent {
            None => Held::Whole(Blocks::default()),
            Some(parent) => {
                Held::Changed { parent, blocks: Blocks::default(), numbers: Vec::new(), content: HeldBlocks::default() }
            }
        }))
    }

    /// Takes content of an open file.
    pub(super) async fn write(
        &mut self,
        file: &mut OpenFile,
        bytes: &[u8],
        writer: &mut BackupWriter,
    ) -> anyhow::Result<()> {
        file.remaining =
            file.remaining.checked_sub(bytes.len() as u64).context("a file is longer than it was to be")?;
        file.crc32c = crc32c::crc32c_append(file.crc32c, bytes);
        match &mut file.held {
            Held::Label(label) => label.extend_from_slice(bytes),
            Held::Whole(blocks) => {
                writer.write(bytes).await?;
                blocks.feed(bytes, |_, _, _| Ok(()))?;
            }
            Held::Changed { parent, blocks, numbers, content } => {
                let folder = &self.folder;
                blocks.feed(bytes, |number, hash, block| {
                    if parent.differs_at(number as usize, hash) {
                        numbers.push(number);
                        content.push(block, folder)?;
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Stores a file that is complete.
    pub(super) async fn finish(&mut self, file: OpenFile, writer: &mut BackupWriter) -> anyhow::Result<()> {
        let OpenFile { mut member, crc32c, held, .. } = file;
        let whole = WholeFile { size: member.size.unwrap_or(0), crc32c };
        match held {
            Held::Label(label) => {
                let Some(parent) = &self.parent else { bail!("a full backup has a label of its own") };
                let label = label_of_incremental(label, parent.start);
                member.size = Some(label.len() as u64);
                writer.begin_member(&member, None).await?;
                writer.write(&label).await?;
                let (size, crc32c) = (label.len() as u64, crc32c::crc32c(&label));
                self.stored.push(Stored::Otherwise { whole, size, crc32c });
            }
            Held::Whole(blocks) => {
                self.map.write(&member.path, &blocks.hashes).context("write the block map")?;
                self.stored.push(Stored::AsItIs);
            }
            Held::Changed { parent, blocks, numbers, content } => {
                self.map.write(&member.path, &blocks.hashes).context("write the block map")?;
                let Some(header) = blocks.hashes.changes_since(&parent)? else {
                    // All of it differs, so all of it was held.
                    let mut found = 0;
                    writer.begin_member(&member, None).await?;
                    content.write(&mut found, writer).await?;
                    ensure!(found == crc32c, "the blocks that were put aside came back otherwise");
                    self.stored.push(Stored::AsItIs);
                    return Ok(());
                };
                ensure!(header.blocks().eq(numbers), "a file was compared twice with different results");
                let path = incremental_path(&member.path).context("only a relation's file is kept in blocks")?;
                let header_bytes = header.to_bytes();
                member.path = path;
                member.size = Some(header.file_bytes());
                writer.begin_incremental(&member, whole).await?;
                let mut crc32c = crc32c::crc32c(&header_bytes);
                writer.write(&header_bytes).await?;
                content.write(&mut crc32c, writer).await?;
                self.stored.push(Stored::Otherwise { whole, size: header.file_bytes(), crc32c });
            }
        }
        Ok(())
    }
}

/// Rewrites the server's manifest as it arrives: what it says of each file is compared with what came, and where
/// something else is stored, that is what the manifest says from then on.
pub(super) struct RewrittenManifest {
    stored: std::vec::IntoIter<Stored>,
    editor: ManifestEditor,
    line: Vec<u8>,
}

impl RewrittenManifest {
    /// Takes bytes of the server's manifest and returns those of the rewritten one.
    pub(super) fn take(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut rewritten = Vec::with_capacity(bytes.len() + 1024);
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(piece);
            ensure!(self.line.len() <= LINE_LIMIT, "the server's manifest has a line of more than {LINE_LIMIT} bytes");
            if self.line.ends_with(b"\n") {
                let replacement = self.replacement()?;
                self.editor.edit(&mut self.line, replacement).map_err(anyhow::Error::msg)?;
                rewritten.append(&mut self.line);
            }
        }
        Ok(rewritten)
    }

    fn replacement(&mut self) -> anyhow::Result<Option<ManifestReplacement>> {
        if !self.line.starts_with(b"{ \"Path\": ") && !self.line.starts_with(b"{ \"Encoded-Path\": ") {
            return Ok(None);
        }
        let stored = self.stored.next().context("the server's manifest lists more files than arrived")?;
        let Stored::Otherwise { whole, size, crc32c } = stored else { return Ok(None) };
        let text = String::from_utf8_lossy(&self.line).into_owned();
        let path = ManifestEditor::path_of(&self.line).map(|path| String::from_utf8_lossy(path).into_owned());
        let path = path.context("the server's manifest encodes the path of a relation's file")?;
        let value = |before: &str, after: char| Some(text.split_once(before)?.1.split_once(after)?.0.to_owned());
        let found = (
            value("\"Size\": ", ',').and_then(|size| size.parse().ok()),
            value("\"Checksum\": \"", '"').and_then(|digits| crc32c_from_hex(&digits)),
        );
        ensure!(
            found == (Some(whole.size), Some(whole.crc32c)),
            "the server's manifest says something else of {path} than what arrived"
        );
        let path = incremental_path(path.as_bytes()).map_or(path, |path| String::from_utf8_lossy(&path).into_owned());
        Ok(Some(ManifestReplacement { path, size, crc32c }))
    }
}

/// What PostgreSQL 17 writes into the label, at the place where it does.
fn label_of_incremental(mut label: Vec<u8>, parent: IncrementalFrom) -> Vec<u8> {
    label.extend_from_slice(
        format!("INCREMENTAL FROM LSN: {}\nINCREMENTAL FROM TLI: {}\n", parent.lsn, parent.timeline).as_bytes(),
    );
    label
}
