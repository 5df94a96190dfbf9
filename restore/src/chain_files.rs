//! The files that the newest backup of a chain has in blocks: where each backup has them, and how one is put together.
//!
//! Every backup is read by ranges, a frame at a time. Servers send files in much the same order each time, so that goes
//! forwards through all of them, and each frame is fetched about once. Of each backup there is in memory, besides one
//! frame for each reader, where those files are: some sixty bytes for each.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::ops::Range;

use pgark_postgres::{ChainFile, IncrementalHeader, Reconstruction, incremental_path};
use pgark_repository::{
    IndexLine, IndexedFile, IndexedMember, IndexedPart, PathSet, RepositoryError, TAR_BLOCK, TarMember, WholeFile,
};
use tokio::runtime::Handle;

use crate::chain::{blame, each_line, is_in_blocks, whole_path};
use crate::copies::{Copies, StoredCopy};
use crate::damage::{damaged, reading_failed};
use crate::extract::{ExtractError, FrameReader, HeaderReader};

/// What is handed on at once.
const PIECE_BYTES: usize = 256 << 10;

/// The place of the newest backup in a chain.
pub(crate) const NEWEST: usize = 0;

/// A file in a backup of the chain.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    part: u32,
    /// Of its tar header.
    offset: u64,
    pub(crate) size: u64,
    mode: u32,
    crc32c: u32,
    limit_block: Option<u32>,
    is_in_blocks: bool,
    /// What was noted of the whole file when its blocks were taken.
    whole: Option<Box<WholeFile>>,
}

impl Place {
    pub(crate) fn new(member: &IndexedMember, file: &IndexedFile) -> Self {
        let IndexedFile { size, crc32c, limit_block, whole, .. } = *file;
        let IndexedMember { part, offset, mode, .. } = *member;
        let (is_in_blocks, whole) = (is_in_blocks(&member.path), whole.map(Box::new));
        Self { part, offset, size, mode, crc32c, limit_block, is_in_blocks, whole }
    }
}

/// The backups of a chain, and where they have the files.
#[derive(Debug)]
pub(crate) struct ChainFiles<'c> {
    /// The newest first, the full one last.
    members: Vec<MemberFiles<'c>>,
    key: RandomState,
    runtime: &'c Handle,
}

#[derive(Debug)]
struct MemberFiles<'c> {
    copies: &'c Copies,
    parts: HashMap<u32, IndexedPart>,
    /// By a hash of the path once the file is whole. The header at the place has the path itself.
    places: HashMap<u64, Place>,
}

impl<'c> ChainFiles<'c> {
    /// Reads where the members, the newest first, have the files that the newest has `in_blocks`.
    pub(crate) fn find(
        members: impl IntoIterator<Item = &'c Copies>,
        in_blocks: &PathSet,
        runtime: &'c Handle,
    ) -> Result<Self, RepositoryError> {
        let key = RandomState::new();
        let members = members.into_iter().map(|copies| MemberFiles::find(copies, in_blocks, &key, runtime));
        let members = members.collect::<Result<_, _>>()?;
        Ok(Self { members, key, runtime })
    }

    /// Reads files for one thread.
    pub(crate) fn reader(&self) -> ChainReader<'_> {
        let open = self.members.iter().map(|_| None).collect();
        ChainReader { files: self, open, buffer: Vec::new(), fetched: 0 }
    }

    /// The number of the member, counted from the newest as 0, that has the whole file on which all newer ones build.
    pub(crate) fn whole_in(&self, path: &[u8]) -> Option<usize> {
        (0..self.members.len()).find(|&member| self.place(member, path).is_some_and(|place| !place.is_in_blocks))
    }

    /// Compares what was put together with the plan, and with what the newest backup says of the file.
    pub(crate) fn check(&self, file: &PlannedFile, found: WholeFile) -> Result<(), ExtractError> {
        let expected = file.place(NEWEST).whole.as_deref();
        match found.size == file.plan.bytes() && expected.is_none_or(|expected| *expected == found) {
            true => Ok(()),
            false => Err(self.blame(&file.path, "what the chain makes of it is not what the server had")),
        }
    }

    fn place(&self, member: usize, path: &[u8]) -> Option<&Place> {
        self.members.get(member)?.places.get(&self.key.hash_one(path))
    }

    fn blame(&self, path: &[u8], reason: &str) -> ExtractError {
        let reason = format!("`{}`: {reason}", String::from_utf8_lossy(path));
        match self.members.first() {
            Some(newest) => blame(newest.copies, reason),
            None => RepositoryError::Input(reason).into(),
        }
    }
}

impl<'c> MemberFiles<'c> {
    fn find(
        copies: &'c Copies,
        wanted: &PathSet,
        key: &RandomState,
        runtime: &Handle,
    ) -> Result<Self, RepositoryError> {
        let (mut parts, mut places) = (HashMap::new(), HashMap::new());
        each_line(copies, runtime, |line| {
            match line {
                IndexLine::Part(part) => drop(parts.insert(part.part, part)),
                IndexLine::Member(member) => {
                    let whole = whole_path(&member.path);
                    if let Some(file) = &member.file
                        && wanted.contains(&whole)
                    {
                        // If a backup has a file both whole and in blocks, the whole one counts.
                        let key = key.hash_one(&*whole);
                        if places.get(&key).is_none_or(|known: &Place| known.is_in_blocks) {
                            places.insert(key, Place::new(&member, file));
                        }
                    }
                }
            }
            Ok::<_, RepositoryError>(())
        })?;
        Ok(Self { copies, parts, places })
    }
}

/// How a file is put together.
#[derive(Debug)]
pub(crate) struct PlannedFile {
    pub(crate) plan: Reconstruction,
    /// Where the backups that have only blocks have it, the newest first.
    incremental: Vec<Place>,
    /// Where it is whole.
    base: Place,
    path: Vec<u8>,
}

impl PlannedFile {
    /// The number of the backup that has the whole file on which the others build.
    pub(crate) fn base(&self) -> usize {
        self.incremental.len()
    }

    /// Where that one has it.
    pub(crate) fn base_place(&self) -> &Place {
        &self.base
    }

    /// Where a backup has it.
    pub(crate) fn place(&self, member: usize) -> &Place {
        self.incremental.get(member).unwrap_or(&self.base)
    }

    /// Its path once it is whole.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The mode that the newest backup gives it.
    pub(crate) fn mode(&self) -> u32 {
        self.place(NEWEST).mode
    }
}

/// Reads files of a chain. Of each backup one frame is in memory.
pub(crate) struct ChainReader<'f> {
    files: &'f ChainFiles<'f>,
    open: Vec<Option<(u32, FrameReader)>>,
    buffer: Vec<u8>,
    fetched: u64,
}

impl ChainReader<'_> {
    /// Stored bytes that were read since the last call.
    pub(crate) fn take_fetched(&mut self) -> u64 {
        std::mem::take(&mut self.fetched)
    }

    /// Reads what the backups have of a file, and decides where each of its blocks comes from.
    pub(crate) fn plan(&mut self, path: &[u8]) -> Result<PlannedFile, ExtractError> {
        let files = self.files;
        let (mut incremental, mut headers) = (Vec::new(), Vec::new());
        for (number, member) in files.members.iter().enumerate() {
            let Some(place) = files.place(number, path).cloned() else {
                let name = String::from_utf8_lossy(path);
                return Err(blame(member.copies, format!("`{name}`, on which a newer backup builds, is not in it")));
            };
            let in_blocks = incremental_path(path).filter(|_| place.is_in_blocks);
            let at = (place.part, place.offset);
            self.header(number, at, in_blocks.as_deref().unwrap_or(path), Some(place.size))?;
            if place.is_in_blocks {
                headers.push(self.blocks_of(number, &place)?);
                incremental.push(place);
                continue;
            }
            let mut chain: Vec<ChainFile<'_>> = headers
                .iter()
                .zip(&incremental)
                .map(|(header, place)| ChainFile::Incremental { header, limit_block: place.limit_block })
                .collect();
            chain.push(ChainFile::Whole { bytes: place.size });
            let plan = Reconstruction::plan(&chain).map_err(|error| files.blame(path, &error.to_string()))?;
            return Ok(PlannedFile { plan, incremental, base: place, path: path.to_vec() });
        }
        Err(files.blame(path, "no backup of the chain has the whole file"))
    }

    /// Reads the tar header of a member of a backup and compares it with the index.
    pub(crate) fn header(
        &mut self,
        member: usize,
        (part, offset): (u32, u64),
        path: &[u8],
        size: Option<u64>,
    ) -> Result<TarMember, ExtractError> {
        let mut block = [0; TAR_BLOCK];
        self.fill(member, part, offset, &mut block)?;
        match TarMember::read(&block) {
            Ok(Some(found)) if found.path == path && found.size == size => Ok(found),
            _ => {
                let name = String::from_utf8_lossy(path);
                Err(self.damaged(member, part, &format!("`{name}` is not where the index says")))
            }
        }
    }

    /// Hands out a range of a file's content.
    pub(crate) fn content(
        &mut self,
        member: usize,
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
            self.fill(member, place.part, begin.saturating_add(position), &mut buffer)?;
            each(&buffer)?;
            position += length as u64;
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Reads the header of an incremental file.
    fn blocks_of(&mut self, member: usize, place: &Place) -> Result<IncrementalHeader, ExtractError> {
        let mut reader = HeaderReader::new(place.size);
        let mut position = 0;
        loop {
            let missing = reader.missing().min(PIECE_BYTES);
            let mut bytes = vec![0; missing];
            self.fill(member, place.part, place.offset.saturating_add(TAR_BLOCK as u64 + position), &mut bytes)?;
            position += missing as u64;
            match reader.take(&mut bytes.as_slice()) {
                Ok(None) => {}
                Ok(Some(header)) => return Ok(header),
                Err(error) => {
                    return Err(self.damaged(member, place.part, &format!("it holds no incremental file: {error}")));
                }
            }
        }
    }

    /// Reads from the first copy that has it.
    fn fill(&mut self, member: usize, part: u32, position: u64, buffer: &mut [u8]) -> Result<(), ExtractError> {
        let files = self.files;
        let (Some(backup), Some(open)) = (files.members.get(member), self.open.get_mut(member)) else { return Ok(()) };
        let mut first = None;
        for copy in backup.copies.in_order() {
            match backup.fill_from(copy, files.runtime, open, (part, position), buffer) {
                Ok(fetched) => {
                    self.fetched += fetched;
                    return Ok(());
                }
                Err(error) => {
                    *open = None;
                    backup.copies.note_failure(copy, &error);
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Compares what was read of a file with its checksum in the manifest.
    pub(crate) fn check_crc(&self, member: usize, place: &Place, path: &[u8], crc32c: u32) -> Result<(), ExtractError> {
        if crc32c == place.crc32c {
            return Ok(());
        }
        let name = String::from_utf8_lossy(path);
        Err(self.damaged(member, place.part, &format!("`{name}` has another checksum than in the manifest")))
    }

    fn damaged(&self, member: usize, part: u32, reason: &str) -> ExtractError {
        match self.files.members.get(member).and_then(|member| member.copies.in_order().first().copied()) {
            Some(StoredCopy { repository, backup, .. }) => {
                damaged(repository, &repository.part_key(backup, part), reason).into()
            }
            None => RepositoryError::Input(reason.to_owned()).into(),
        }
    }
}

impl MemberFiles<'_> {
    /// Fills the buffer, and returns how many stored bytes were read for it.
    fn fill_from(
        &self,
        StoredCopy { repository, backup, .. }: &StoredCopy,
        runtime: &Handle,
        open: &mut Option<(u32, FrameReader)>,
        (number, position): (u32, u64),
        buffer: &mut [u8],
    ) -> Result<u64, RepositoryError> {
        let key = repository.part_key(backup, number);
        let failed = |error| reading_failed(repository, &key, error);
        let (_, frames) = match open.take().filter(|(open, _)| *open == number) {
            Some(same) => open.insert(same),
            None => {
                let Some(part) = self.parts.get(&number) else {
                    return Err(damaged(repository, &repository.index_key(backup), format!("it has no part {number}")));
                };
                let object = runtime.block_on(repository.open_part_for_ranges(backup, number))?;
                open.insert((number, FrameReader::new(object, part).map_err(failed)?))
            }
        };
        let before = frames.fetched();
        frames.skip_to(position).and_then(|()| frames.read_exact(buffer)).map_err(failed)?;
        frames.release_stored();
        Ok(frames.fetched() - before)
    }
}

/// Hands out so many bytes that are zero.
pub(crate) fn zeros(bytes: u64, put: &mut dyn FnMut(&[u8]) -> Result<(), ExtractError>) -> Result<(), ExtractError> {
    let zeros = vec![0; PIECE_BYTES];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
        put(&zeros[..length])?;
        left -= length as u64;
    }
    Ok(())
}
