//! A chain of backups read as the full backup that it stands for: the files of the newest one in their order, and those of
//! which it has only changed blocks put together from all.

use std::borrow::Cow;
use std::ops::Range;

use pgark_postgres::{BlockRun, BlockSource, RelationFile};
use pgark_repository::{IndexLine, IndexedFile, IndexedMember, TarMember, WholeFile};
use tokio::runtime::Handle;

use crate::chain::{Chain, each_line, whole_path};
use crate::chain_files::{ChainFiles, ChainReader, NEWEST, Place, PlannedFile, zeros};
use crate::copies::Copies;
use crate::extract::{ExtractError, ManifestEdit, Reconstructed, whole_label};
use crate::survey::{BACKUP_LABEL, Survey};

/// A chain that has been proven.
#[derive(Debug)]
pub struct CombinedBackup {
    newest: Copies,
    chain: Chain,
    label: Vec<u8>,
}

/// What a full backup is made of.
#[derive(Debug)]
pub enum CombinedPiece {
    /// A file or directory.
    Member(TarMember),
    /// Content of the file that came last.
    Content(Vec<u8>),
}

/// The files that were put together, for the manifest.
#[derive(Debug, Default)]
pub struct CombinedFiles(Reconstructed);

impl CombinedBackup {
    /// The backup that `newest` and the chain below it stand for. `survey` is that of the newest.
    #[must_use]
    pub fn new(newest: Copies, chain: Chain, survey: &Survey) -> Self {
        Self { newest, chain, label: whole_label(&survey.label_bytes) }
    }

    /// Reads all files. For blocking threads.
    ///
    /// # Errors
    /// When a stored object cannot be read, does not hold what it should, or is missing; or what `output` says.
    pub fn read(
        &self,
        runtime: &Handle,
        output: &mut dyn FnMut(CombinedPiece) -> Result<(), ExtractError>,
    ) -> Result<CombinedFiles, ExtractError> {
        let chain = ChainFiles::find(self.chain.members(&self.newest), &self.chain.in_blocks, runtime)?;
        let (reader, files) = (chain.reader(), CombinedFiles::default());
        let mut combining = Combining { label: &self.label, chain: &chain, reader, output, files };
        each_line(&self.newest, runtime, |line| match line {
            IndexLine::Member(member) => combining.member(&member),
            IndexLine::Part(_) => Ok(()),
        })?;
        Ok(combining.files)
    }

    /// Reads the manifest that fits, line by line. For blocking threads, after the files.
    ///
    /// # Errors
    /// As [`CombinedBackup::read`].
    pub fn read_manifest(
        &self,
        files: &CombinedFiles,
        runtime: &Handle,
        output: impl FnMut(&[u8]) -> Result<(), ExtractError>,
    ) -> Result<(), ExtractError> {
        ManifestEdit::new(&[(BACKUP_LABEL, &self.label)], &files.0).rewrite(&self.newest, runtime, output)
    }
}

/// Puts the files together.
struct Combining<'c> {
    label: &'c [u8],
    chain: &'c ChainFiles<'c>,
    reader: ChainReader<'c>,
    output: &'c mut dyn FnMut(CombinedPiece) -> Result<(), ExtractError>,
    files: CombinedFiles,
}

impl Combining<'_> {
    fn member(&mut self, member: &IndexedMember) -> Result<(), ExtractError> {
        let size = member.file.map(|file| file.size);
        let mut header = self.reader.header(NEWEST, (member.part, member.offset), &member.path, size)?;
        let Some(file) = &member.file else { return (self.output)(CombinedPiece::Member(header)) };
        if member.path == BACKUP_LABEL {
            header.size = Some(self.label.len() as u64);
            (self.output)(CombinedPiece::Member(header))?;
            return (self.output)(CombinedPiece::Content(self.label.to_vec()));
        }
        match whole_path(&member.path) {
            Cow::Owned(whole) => self.put_together(&whole, header),
            Cow::Borrowed(_) => self.copy(member, file, header),
        }
    }

    /// A file that the newest backup has whole.
    fn copy(&mut self, member: &IndexedMember, file: &IndexedFile, header: TarMember) -> Result<(), ExtractError> {
        let Self { reader, output, .. } = self;
        output(CombinedPiece::Member(header))?;
        let (place, mut crc32c) = (Place::new(member, file), 0);
        reader.content(NEWEST, &place, 0..file.size, &mut |bytes| {
            crc32c = crc32c::crc32c_append(crc32c, bytes);
            output(CombinedPiece::Content(bytes.to_vec()))
        })?;
        reader.check_crc(NEWEST, &place, &member.path, crc32c)
    }

    /// A file of which the newest backup has the changed blocks.
    fn put_together(&mut self, path: &[u8], mut header: TarMember) -> Result<(), ExtractError> {
        let Self { chain, reader, output, .. } = self;
        let file = reader.plan(path)?;
        header.path = path.to_vec();
        header.size = Some(file.plan.bytes());
        output(CombinedPiece::Member(header))?;

        let mut found = WholeFile::EMPTY;
        let mut put = |bytes: &[u8]| {
            found.add(bytes);
            output(CombinedPiece::Content(bytes.to_vec()))
        };
        let mut whole = WholeBelow { file: &file, position: 0, crc32c: 0 };
        for BlockRun { blocks, source } in file.plan.runs() {
            let bytes = blocks.len() as u64 * RelationFile::BLOCK_BYTES as u64;
            match *source {
                BlockSource::Zeros => zeros(bytes, &mut put)?,
                BlockSource::File { member, offset } if member == file.base() => {
                    whole.take(reader, offset..offset + bytes, &mut put)?;
                }
                BlockSource::File { member, offset } => {
                    reader.content(member, file.place(member), offset..offset + bytes, &mut put)?;
                }
            }
        }
        whole.finish(reader)?;
        chain.check(&file, found)?;
        self.files.0.insert(path, found);
        Ok(())
    }
}

/// The whole file at the end of a chain. What is not taken of it is read as well, because its checksum is that of all.
struct WholeBelow<'w> {
    file: &'w PlannedFile,
    position: u64,
    crc32c: u32,
}

impl WholeBelow<'_> {
    fn take(
        &mut self,
        reader: &mut ChainReader<'_>,
        range: Range<u64>,
        put: &mut dyn FnMut(&[u8]) -> Result<(), ExtractError>,
    ) -> Result<(), ExtractError> {
        self.pass_over(reader, range.start)?;
        self.position = range.end;
        reader.content(self.file.base(), self.file.base_place(), range, &mut |bytes| {
            self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
            put(bytes)
        })
    }

    fn pass_over(&mut self, reader: &mut ChainReader<'_>, to: u64) -> Result<(), ExtractError> {
        let from = std::mem::replace(&mut self.position, to);
        reader.content(self.file.base(), self.file.base_place(), from..to, &mut |bytes| {
            self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
            Ok(())
        })
    }

    fn finish(mut self, reader: &mut ChainReader<'_>) -> Result<(), ExtractError> {
        let base = self.file.base_place();
        self.pass_over(reader, base.size)?;
        reader.check_crc(self.file.base(), base, self.file.path(), self.crc32c)
    }
}
