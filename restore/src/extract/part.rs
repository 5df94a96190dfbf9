//! One part: what the tar archive in its frames holds is compared with the index member by member while the files are
//! written. Of a part that is there in parts only, only the frames are read that
//! hold what is missing.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use pgark_repository::{Backup, ClusterRepository, IndexedMember, ObjectKey, TarMember};
use tokio::runtime::Handle;

use super::frame_reader::FrameReader;
use super::parts::{Parts, Sink, Work};
use super::tar_reader::TarReader;
use super::tree::LastParent;
use super::{ExtractError, io_failure};
use crate::damage::{damaged, reading_failed};

/// Reads a part and checks it against the index; its files go into the sink. Where a copy of it fails, what came of it
/// is taken back, and the next copy is read.
pub(super) fn read_part<S: Sink>(
    parts: &Parts<'_, S>,
    runtime: &Handle,
    work: &Work,
    stop: &AtomicBool,
) -> Result<(), ExtractError> {
    let missing = missing(parts, work, stop)?;
    if missing.is_empty() && !work.members.is_empty() {
        return Ok(());
    }
    let mut first = None;
    let copies = parts.copies.in_order();
    for (number, copy) in copies.iter().enumerate() {
        let mut opened = 0;
        let is_last = number + 1 == copies.len();
        let repository = if is_last { copy.repository.clone() } else { copy.repository.impatient() };
        let error = match read_copy(parts, &repository, &copy.backup, runtime, (work, &missing), stop, &mut opened) {
            Err(ExtractError::Repository(error)) => error,
            other => return other,
        };
        parts.copies.note_failure(copy, &error);
        first.get_or_insert(error);
        if is_last {
            break;
        }
        let last_parent = &mut LastParent::default();
        for member in missing.iter().filter(|member| member.file.is_some()).take(opened) {
            parts.sink.discard(last_parent, member)?;
        }
    }
    first.map_or(Ok(()), |error| Err(error.into()))
}

/// `opened` counts the files that came into the sink.
fn read_copy<S: Sink>(
    parts: &Parts<'_, S>,
    repository: &ClusterRepository,
    backup: &Backup,
    runtime: &Handle,
    (work, missing): (&Work, &[&IndexedMember]),
    stop: &AtomicBool,
    opened: &mut usize,
) -> Result<(), ExtractError> {
    let number = work.part.part;
    let key = repository.part_key(backup, number);
    let has_gaps = missing.len() < work.members.len();
    let object = runtime.block_on(async {
        match has_gaps {
            true => repository.open_part_for_ranges(backup, number).await,
            false => repository.open_stored_part(backup, number).await,
        }
    })?;
    let frames = FrameReader::new(object, &work.part).map_err(|error| reading_failed(repository, &key, error))?;
    let last_parent = LastParent::default();
    let mut part = Part { parts, repository, key, tar: TarReader::new(frames), last_parent, opened };
    for member in missing {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if has_gaps {
            part.skip_to(member)?;
        }
        part.read_member(member)?;
    }
    if !has_gaps && let Some(extra) = part.next()? {
        let name = String::from_utf8_lossy(&extra.path).into_owned();
        return Err(part.damaged(format!("it holds `{name}`, which the index does not list")));
    }
    parts.sink.fetched(part.tar.input().fetched());
    Ok(())
}

/// The members that have to be read: all of them, directories too, or only the files that are not there.
fn missing<'w, S: Sink>(
    parts: &Parts<'_, S>,
    work: &'w Work,
    stop: &AtomicBool,
) -> Result<Vec<&'w IndexedMember>, ExtractError> {
    let mut last_parent = LastParent::default();
    let mut missing: Vec<&IndexedMember> = Vec::with_capacity(work.members.len());
    for member in &work.members {
        let is_there = match member.file {
            Some(_) if !stop.load(Ordering::Relaxed) => parts.sink.has(&mut last_parent, member)?,
            _ => false,
        };
        if !is_there {
            missing.push(member);
        } else if let Some(file) = member.file {
            parts.progress.advance(file.size);
        }
    }
    if missing.len() < work.members.len() {
        missing.retain(|member| member.file.is_some());
    }
    Ok(missing)
}

struct Part<'p, S> {
    parts: &'p Parts<'p, S>,
    repository: &'p ClusterRepository,
    key: ObjectKey,
    tar: TarReader<FrameReader>,
    last_parent: LastParent,
    opened: &'p mut usize,
}

impl<'p, S: Sink> Part<'p, S> {
    fn damaged(&self, reason: impl Into<String>) -> ExtractError {
        damaged(self.repository, &self.key, reason).into()
    }

    fn next(&mut self) -> Result<Option<TarMember>, ExtractError> {
        self.tar.next_member().map_err(|error| reading_failed(self.repository, &self.key, error).into())
    }

    fn skip_to(&mut self, member: &IndexedMember) -> Result<(), ExtractError> {
        let skipped = self.tar.skip_to(member.offset, FrameReader::skip_to);
        skipped.map_err(|error| reading_failed(self.repository, &self.key, error).into())
    }

    fn read_member(&mut self, member: &IndexedMember) -> Result<(), ExtractError> {
        let offset = self.tar.position();
        let found = self.next()?;
        let size = member.file.map(|file| file.size);
        let fits = found.is_some_and(|found| found.path == member.path && found.size == size);
        if !fits || offset != member.offset {
            let name = String::from_utf8_lossy(&member.path);
            return Err(self.damaged(format!("`{name}` is not where the index says, or not what it says")));
        }
        let Some(indexed) = member.file else { return Ok(()) };
        let file = self.open_file(member)?;
        *self.opened += 1;
        let crc32c = self.copy(member, indexed.size, file)?;
        if crc32c != indexed.crc32c {
            let name = String::from_utf8_lossy(&member.path);
            return Err(self.damaged(format!("`{name}` has another checksum than in the manifest")));
        }
        self.parts.sink.written(&mut self.last_parent, member)?;
        self.parts.progress.advance(indexed.size);
        Ok(())
    }

    /// The destination was empty: what is in the way was listed before, as a file or as a directory.
    fn open_file(&mut self, member: &IndexedMember) -> Result<Option<Box<dyn Write + 'p>>, ExtractError> {
        self.parts.sink.file(&mut self.last_parent, member).map_err(|error| match error {
            ExtractError::Io { source, .. } if is_in_the_way(&source) => {
                let name = String::from_utf8_lossy(&member.path);
                self.damaged(format!("`{name}` is in the backup twice, or below a file"))
            }
            error => error,
        })
    }

    /// Copies a file's content and returns its checksum.
    fn copy(
        &mut self,
        member: &IndexedMember,
        size: u64,
        mut file: Option<Box<dyn Write + 'p>>,
    ) -> Result<u32, ExtractError> {
        let mut crc32c = 0;
        let mut write_error = None;
        let mut pages = self.parts.sink.pages(member);
        let copied = self.tar.read_content(size, |bytes| {
            crc32c = crc32c::crc32c_append(crc32c, bytes);
            if let Some(pages) = &mut pages {
                pages.feed(bytes);
            }
            match &mut file {
                None => Ok(()),
                Some(file) => file.write_all(bytes).map_err(|error| {
                    let kind = error.kind();
                    write_error = Some(error);
                    kind.into()
                }),
            }
        });
        if let (Some(file), None, Ok(())) = (&mut file, &write_error, &copied) {
            write_error = file.flush().err();
        }
        match (write_error, copied) {
            // What the file holds is not what can be written.
            (Some(error), _) if error.kind() == io::ErrorKind::InvalidData => {
                let name = String::from_utf8_lossy(&member.path);
                Err(self.damaged(format!("`{name}` is no incremental file: {error}")))
            }
            (Some(error), _) => Err(error
                .downcast::<ExtractError>()
                .unwrap_or_else(|error| io_failure("write", self.parts.sink.shown(&member.path), error))),
            (None, Err(error)) => Err(reading_failed(self.repository, &self.key, error).into()),
            (None, Ok(())) => {
                if let Some(pages) = pages {
                    self.parts.sink.pages_checked(member, pages.finish());
                }
                Ok(crc32c)
            }
        }
    }
}

fn is_in_the_way(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory)
}
