//! A chain of backups read as the full backup that it stands for: the files of the newest one in their order, and those of
//! which it has only changed blocks put together from all.
//!
//! Every backup is read by ranges, a frame at a time. Servers send files in much the same order each time, so that goes
//! forwards through all of them, and each frame is fetched about once. Of each older backup there is in memory, besides
//! one frame, where its files are: some fifty bytes for each.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::iter;
use std::ops::Range;

use pgark_postgres::{BlockRun, BlockSource, ChainFile, IncrementalHeader, Reconstruction, RelationFile};
use pgark_repository::{
    IndexLine, IndexedFile, IndexedMember, IndexedPart, PathSet, RepositoryError, TAR_BLOCK, TarMember, WholeFile,
};
use tokio::runtime::Handle;

use crate::chain::{Chain, blame, each_line, is_in_blocks, whole_path};
use crate::copies::{Copies, StoredCopy};
use crate::damage::{damaged, reading_failed};
use crate::extract::{ExtractError, FrameReader, HeaderReader, ManifestEdit, Reconstructed, whole_label};
use crate::survey::{BACKUP_LABEL, Survey};

/// What is handed on at once.
const PIECE_BYTES: usize = 256 << 10;

/// A chain that has been proven.
#[derive(Debug)]
pub struct CombinedBackup {
    /// The newest first, the full one last.
    members: Vec<Copies>,
    /// The files that the newest has only in part, under the names that they have when whole.
    in_blocks: PathSet,
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
        let Chain { older, in_blocks, .. } = chain;
        let members = iter::once(newest).chain(older.into_iter().rev()).collect();
        Self { members, in_blocks, label: whole_label(&survey.label_bytes) }
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
        let Some((newest, older)) = self.members.split_first() else { return Ok(CombinedFiles::default()) };
        let mut sources = vec![Source::new(newest, runtime)];
        for copies in older {
            let mut source = Source::new(copies, runtime);
            source.find_files(&self.in_blocks)?;
            sources.push(source);
        }
        let mut combining = Combining { label: &self.label, sources, output, files: CombinedFiles::default() };
        let mut members: Vec<IndexedMember> = Vec::new();
        each_line(newest, runtime, |line| match line {
            IndexLine::Member(member) => {
                members.push(member);
                Ok(())
            }
            IndexLine::Part(part) => {
                combining.begin_part(part);
                members.drain(..).try_for_each(|member| combining.member(&member))
            }
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
        let Some(newest) = self.members.first() else { return Ok(()) };
        ManifestEdit::new(&[(BACKUP_LABEL, &self.label)], &files.0).rewrite(newest, runtime, output)
    }
}

/// A file in a backup of the chain.
#[derive(Clone, Copy)]
struct Place {
    part: u32,
    /// Of its tar header.
    offset: u64,
    size: u64,
    crc32c: u32,
    limit_block: Option<u32>,
    is_in_blocks: bool,
}

impl Place {
    fn new(member: &IndexedMember, file: &IndexedFile) -> Self {
        let IndexedFile { size, crc32c, limit_block, .. } = *file;
        let is_in_blocks = is_in_blocks(&member.path);
        Self { part: member.part, offset: member.offset, size, crc32c, limit_block, is_in_blocks }
    }
}

/// A backup of the chain that is read.
struct Source<'c> {
    copies: &'c Copies,
    runtime: &'c Handle,
    parts: HashMap<u32, IndexedPart>,
    /// By a hash of the path once the file is whole. The header at the place has the path itself.
    places: HashMap<u64, Place>,
    key: RandomState,
    open: Option<(u32, FrameReader)>,
    buffer: Vec<u8>,
}

impl<'c> Source<'c> {
    fn new(copies: &'c Copies, runtime: &'c Handle) -> Self {
        let (parts, places, key) = (HashMap::new(), HashMap::new(), RandomState::new());
        Self { copies, runtime, parts, places, key, open: None, buffer: Vec::new() }
    }

    /// Takes note of where the wanted files are.
    fn find_files(&mut self, wanted: &PathSet) -> Result<(), RepositoryError> {
        each_line(self.copies, self.runtime, |line| {
            match line {
                IndexLine::Part(part) => drop(self.parts.insert(part.part, part)),
                IndexLine::Member(member) => {
                    let whole = whole_path(&member.path);
                    if let Some(file) = &member.file
                        && wanted.contains(&whole)
                    {
                        let place = Place::new(&member, file);
                        let known = self.places.entry(self.key.hash_one(&*whole)).or_insert(place);
                        // If a backup has a file both whole and in blocks, the whole one counts.
                        if known.is_in_blocks {
                            *known = place;
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn place(&self, whole: &[u8]) -> Option<Place> {
        self.places.get(&self.key.hash_one(whole)).copied()
    }

    /// Reads the tar header of a member and compares it with the index.
    fn header(&mut self, place: (u32, u64), path: &[u8], size: Option<u64>) -> Result<TarMember, ExtractError> {
        let (part, offset) = place;
        let mut block = [0; TAR_BLOCK];
        self.fill(part, offset, &mut block)?;
        match TarMember::read(&block) {
            Ok(Some(found)) if found.path == path && found.size == size => Ok(found),
            _ => Err(self.damaged(part, &format!("`{}` is not where the index says", String::from_utf8_lossy(path)))),
        }
    }

    /// Hands out a range of a file's content.
    fn content(
        &mut self,
        place: &Place,
        range: Range<u64>,
        each: &mut dyn FnMut(&[u8]) -> Result<(), ExtractError>,
    ) -> Result<(), ExtractError> {
        let begin = place.offset.saturating_add(TAR_BLOCK as u64);
        let mut position = range.start;
        let mut buffer = std::mem::take(&mut self.buffer);
        while position < range.end {
            let length = usize::try_from(range.end - position).unwrap_or(usize::MAX).min(PIECE_BYTES);
            buffer.resize(length, 0);
            self.fill(place.part, begin.saturating_add(position), &mut buffer)?;
            each(&buffer)?;
            position += length as u64;
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Reads the header of an incremental file.
    fn blocks_of(&mut self, place: &Place) -> Result<IncrementalHeader, ExtractError> {
        let mut reader = HeaderReader::new(place.size);
        let mut position = 0;
        loop {
            let missing = reader.missing().min(PIECE_BYTES);
            let mut bytes = vec![0; missing];
            self.fill(place.part, place.offset.saturating_add(TAR_BLOCK as u64 + position), &mut bytes)?;
            position += missing as u64;
            match reader.take(&mut bytes.as_slice()) {
                Ok(None) => {}
                Ok(Some(header)) => return Ok(header),
                Err(error) => return Err(self.damaged(place.part, &format!("it holds no incremental file: {error}"))),
            }
        }
    }

    /// Reads from the first copy that has it.
    fn fill(&mut self, part: u32, position: u64, buffer: &mut [u8]) -> Result<(), ExtractError> {
        let copies = self.copies;
        let mut first = None;
        for copy in copies.in_order() {
            match self.fill_from(copy, part, position, buffer) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.open = None;
                    copies.note_failure(copy, &error);
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), |error| Err(error.into()))
    }

    fn fill_from(
        &mut self,
        StoredCopy { repository, backup, .. }: &StoredCopy,
        number: u32,
        position: u64,
        buffer: &mut [u8],
    ) -> Result<(), RepositoryError> {
        let key = repository.part_key(backup, number);
        let failed = |error| reading_failed(repository, &key, error);
        let frames = match self.open.take_if(|(open, _)| *open != number) {
            None if self.open.is_some() => None,
            _ => {
                let Some(part) = self.parts.get(&number) else {
                    return Err(damaged(repository, &repository.index_key(backup), format!("it has no part {number}")));
                };
                let object = self.runtime.block_on(repository.open_part_for_ranges(backup, number))?;
                Some(FrameReader::new(object, part).map_err(failed)?)
            }
        };
        if let Some(frames) = frames {
            self.open = Some((number, frames));
        }
        let Some((_, frames)) = &mut self.open else { return Ok(()) };
        frames.skip_to(position).and_then(|()| frames.read_exact(buffer)).map_err(failed)
    }

    fn damaged(&self, part: u32, reason: &str) -> ExtractError {
        match self.copies.in_order().first() {
            Some(StoredCopy { repository, backup, .. }) => {
                damaged(repository, &repository.part_key(backup, part), reason).into()
            }
            None => RepositoryError::Input(reason.to_owned()).into(),
        }
    }
}

/// Puts the files together.
struct Combining<'c> {
    label: &'c [u8],
    /// The newest backup first.
    sources: Vec<Source<'c>>,
    output: &'c mut dyn FnMut(CombinedPiece) -> Result<(), ExtractError>,
    files: CombinedFiles,
}

impl Combining<'_> {
    fn begin_part(&mut self, part: IndexedPart) {
        if let Some(newest) = self.sources.first_mut() {
            newest.parts = HashMap::from([(part.part, part)]);
        }
    }

    fn member(&mut self, member: &IndexedMember) -> Result<(), ExtractError> {
        let Some(newest) = self.sources.first_mut() else { return Ok(()) };
        let size = member.file.map(|file| file.size);
        let mut header = newest.header((member.part, member.offset), &member.path, size)?;
        let Some(file) = &member.file else { return (self.output)(CombinedPiece::Member(header)) };
        if member.path == BACKUP_LABEL {
            header.size = Some(self.label.len() as u64);
            (self.output)(CombinedPiece::Member(header))?;
            return (self.output)(CombinedPiece::Content(self.label.to_vec()));
        }
        let place = Place::new(member, file);
        match whole_path(&member.path) {
            Cow::Owned(whole) => self.put_together(&whole, place, header, (&member.path, file.whole)),
            Cow::Borrowed(_) => self.copy(&place, header),
        }
    }

    /// A file that the newest backup has whole.
    fn copy(&mut self, place: &Place, header: TarMember) -> Result<(), ExtractError> {
        let Self { sources, output, .. } = self;
        let Some(newest) = sources.first_mut() else { return Ok(()) };
        let name = String::from_utf8_lossy(&header.path).into_owned();
        output(CombinedPiece::Member(header))?;
        let mut crc32c = 0;
        newest.content(place, 0..place.size, &mut |bytes| {
            crc32c = crc32c::crc32c_append(crc32c, bytes);
            output(CombinedPiece::Content(bytes.to_vec()))
        })?;
        match crc32c == place.crc32c {
            true => Ok(()),
            false => Err(newest.damaged(place.part, &format!("`{name}` has another checksum than in the manifest"))),
        }
    }

    /// A file of which the newest backup has the changed blocks. `whole` is what was noted of the file when it was taken.
    fn put_together(
        &mut self,
        path: &[u8],
        newest: Place,
        mut header: TarMember,
        (incremental_path, expected): (&[u8], Option<WholeFile>),
    ) -> Result<(), ExtractError> {
        let chain = self.chain_of(path, newest)?;
        let parts: Vec<ChainFile<'_>> = chain.iter().map(Link::as_chain_file).collect();
        let plan = Reconstruction::plan(&parts).map_err(|error| self.blame(path, &error.to_string()))?;
        header.path = path.to_vec();
        header.size = Some(plan.bytes());
        (self.output)(CombinedPiece::Member(header))?;

        let (sources, output) = (&mut self.sources, &mut *self.output);
        let mut crc32c = 0;
        let mut put = |bytes: &[u8]| {
            crc32c = crc32c::crc32c_append(crc32c, bytes);
            output(CombinedPiece::Content(bytes.to_vec()))
        };
        let mut whole = WholeBelow::default();
        for BlockRun { blocks, source } in plan.runs() {
            let bytes = blocks.len() as u64 * RelationFile::BLOCK_BYTES as u64;
            match *source {
                BlockSource::Zeros => zeros(bytes, &mut put)?,
                BlockSource::File { member, offset } => {
                    let (Some(source), Some(link)) = (sources.get_mut(member), chain.get(member)) else { continue };
                    match link.header {
                        Some(_) => source.content(&link.place, offset..offset + bytes, &mut put)?,
                        None => whole.take(source, &link.place, offset..offset + bytes, &mut put)?,
                    }
                }
            }
        }
        if let (Some(source), Some(link)) = (sources.get_mut(chain.len() - 1), chain.last()) {
            whole.finish(source, &link.place, path)?;
        }
        let found = WholeFile { size: plan.bytes(), crc32c };
        if expected.is_some_and(|expected| expected != found) {
            return Err(self.blame(path, "what the chain makes of it is not what the server had"));
        }
        self.files.0.insert(incremental_path, found.size, found.crc32c);
        Ok(())
    }

    /// What the chain has of a file, the newest first, down to where it is whole.
    fn chain_of(&mut self, path: &[u8], newest: Place) -> Result<Vec<Link>, ExtractError> {
        let mut chain = Vec::new();
        for (number, source) in self.sources.iter_mut().enumerate() {
            let place = if number == 0 { Some(newest) } else { source.place(path) };
            let Some(place) = place else {
                let name = String::from_utf8_lossy(path);
                return Err(blame(source.copies, format!("`{name}`, on which a newer backup builds, is not in it")));
            };
            if number > 0 {
                let in_blocks = pgark_postgres::incremental_path(path).filter(|_| place.is_in_blocks);
                source.header((place.part, place.offset), in_blocks.as_deref().unwrap_or(path), Some(place.size))?;
            }
            let header = if place.is_in_blocks { Some(source.blocks_of(&place)?) } else { None };
            let is_whole = header.is_none();
            chain.push(Link { place, header });
            if is_whole {
                break;
            }
        }
        Ok(chain)
    }

    fn blame(&self, path: &[u8], reason: &str) -> ExtractError {
        let reason = format!("`{}`: {reason}", String::from_utf8_lossy(path));
        match self.sources.first() {
            Some(newest) => blame(newest.copies, reason),
            None => RepositoryError::Input(reason).into(),
        }
    }
}

/// What one backup has of a file.
struct Link {
    place: Place,
    /// Nothing where the file is whole.
    header: Option<IncrementalHeader>,
}

impl Link {
    fn as_chain_file(&self) -> ChainFile<'_> {
        match &self.header {
            Some(header) => ChainFile::Incremental { header, limit_block: self.place.limit_block },
            None => ChainFile::Whole { bytes: self.place.size },
        }
    }
}

/// The whole file at the end of a chain. What is not taken of it is read as well, because its checksum is that of all.
#[derive(Default)]
struct WholeBelow {
    position: u64,
    crc32c: u32,
}

impl WholeBelow {
    fn take(
        &mut self,
        source: &mut Source<'_>,
        place: &Place,
        range: Range<u64>,
        put: &mut dyn FnMut(&[u8]) -> Result<(), ExtractError>,
    ) -> Result<(), ExtractError> {
        self.pass_over(source, place, range.start)?;
        self.position = range.end;
        source.content(place, range, &mut |bytes| {
            self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
            put(bytes)
        })
    }

    fn pass_over(&mut self, source: &mut Source<'_>, place: &Place, to: u64) -> Result<(), ExtractError> {
        let from = std::mem::replace(&mut self.position, to);
        source.content(place, from..to, &mut |bytes| {
            self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
            Ok(())
        })
    }

    fn finish(mut self, source: &mut Source<'_>, place: &Place, path: &[u8]) -> Result<(), ExtractError> {
        self.pass_over(source, place, place.size)?;
        if self.crc32c == place.crc32c {
            return Ok(());
        }
        let name = String::from_utf8_lossy(path);
        Err(source.damaged(place.part, &format!("`{name}` has another checksum than in the manifest")))
    }
}

fn zeros(bytes: u64, put: &mut dyn FnMut(&[u8]) -> Result<(), ExtractError>) -> Result<(), ExtractError> {
    let zeros = vec![0; PIECE_BYTES];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
        put(&zeros[..length])?;
        left -= length as u64;
    }
    Ok(())
}
