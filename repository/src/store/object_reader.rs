//! Reading a stored object from blocking code, with seeks: the local file itself, or ranges of a
//! remote object of which the next is fetched ahead.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{Store, blocking, io_failure};
use crate::error::{RepositoryError, Result};
use crate::keys::ObjectKey;

/// Bytes of one range request.
const RANGE_BYTES: u64 = 4 << 20;
/// Bytes of the first request at a new place, where only some of an object is read. Those that follow on are larger.
const FIRST_RANGE_BYTES: u64 = 256 << 10;
/// Pauses before a range is asked for again.
const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];

/// A stored object, as `Read + Seek` for blocking threads. Never use it on an async thread.
///
/// Errors carry a [`RepositoryError`] as their inner error.
#[derive(Debug)]
pub struct ObjectReader {
    size: u64,
    source: Source,
    check: Option<Check>,
}

/// What the bytes that are read from the first to the last must come to.
#[derive(Debug)]
struct Check {
    hasher: crc32fast::Hasher,
    left: u64,
    expected: u32,
}

#[derive(Debug)]
enum Source {
    Local(BufReader<File>),
    Remote(Box<RangeReader>),
}

#[derive(Debug)]
struct RangeReader {
    store: Store,
    key: ObjectKey,
    size: u64,
    position: u64,
    current: (u64, Bytes),
    ahead: Option<(u64, JoinHandle<Result<Bytes>>)>,
    /// Bytes of the next request; nothing is fetched ahead while it is smaller than others.
    range: u64,
    is_sparse: bool,
    runtime: Handle,
}

impl ObjectReader {
    pub(super) async fn open(store: Store, key: ObjectKey) -> Result<Self> {
        if let Some(directory) = &store.directory {
            let path = store.local_path(directory, &key);
            let opened = blocking({
                let path = path.clone();
                move || {
                    let file = File::open(path)?;
                    let size = file.metadata()?.len();
                    Ok((file, size))
                }
            })
            .await;
            return match opened {
                Ok((file, size)) => Ok(Self::new(size, Source::Local(BufReader::with_capacity(1 << 18, file)))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(RepositoryError::NotFound { repository: store.name().to_owned(), key })
                }
                Err(source) => Err(io_failure("read", &path, source)),
            };
        }
        let Some(size) = store.size(&key).await? else {
            return Err(RepositoryError::NotFound { repository: store.name().to_owned(), key });
        };
        Ok(Self::remote(store, key, size, Bytes::new()))
    }

    pub(super) async fn open_small(store: Store, key: ObjectKey) -> Result<Self> {
        if store.directory.is_some() {
            return Self::open(store, key).await;
        }
        let path = store.path(&key);
        let first = store.limited(RANGE_BYTES, store.first_bytes(&path, RANGE_BYTES)).await;
        match first.map(|answer| answer.map_err(|error| store.failure("read", &key, error))) {
            Some(Ok((size, bytes))) => Ok(Self::remote(store, key, size, bytes)),
            Some(Err(error @ RepositoryError::NotFound { .. })) => Err(error),
            // An empty object, which has no such range, or an answer that broke off; step by step it is told.
            Some(Err(_)) | None => Self::open(store, key).await,
        }
    }

    fn remote(store: Store, key: ObjectKey, size: u64, start: Bytes) -> Self {
        let (current, runtime) = ((0, start), Handle::current());
        let reader = RangeReader {
            store,
            key,
            size,
            position: 0,
            current,
            ahead: None,
            range: RANGE_BYTES,
            is_sparse: false,
            runtime,
        };
        Self::new(size, Source::Remote(Box::new(reader)))
    }

    fn new(size: u64, source: Source) -> Self {
        Self { size, source, check: None }
    }

    /// Lets the read that comes to the end fail unless the CRC-32 of all stored bytes is `expected`. Who seeks reads a
    /// range, and is not checked.
    pub(crate) fn expect_crc32(&mut self, expected: u32) {
        self.check = Some(Check { hasher: crc32fast::Hasher::new(), left: self.size, expected });
    }

    /// Makes ready for reading a little here and there: what is not asked for is hardly fetched.
    pub(crate) fn expect_gaps(&mut self) {
        if let Source::Remote(reader) = &mut self.source {
            reader.is_sparse = true;
        }
    }

    /// The object's stored size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Check {
    fn verify(&self) -> io::Result<()> {
        let (found, expected) = (self.hasher.clone().finalize(), self.expected);
        if found == expected {
            return Ok(());
        }
        let reason = format!("its stored bytes have the CRC-32 {found:08x}, and backup.json says {expected:08x}");
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

impl RangeReader {
    fn fetch(&self, offset: u64) -> JoinHandle<Result<Bytes>> {
        let length = self.range.min(self.size - offset);
        let (store, key) = (self.store.clone(), self.key.clone());
        self.runtime.spawn(async move {
            // A stream that has come far is worth some waiting.
            let waits = if store.is_impatient { &[][..] } else { &WAITS[..] };
            for wait in waits {
                match store.read_range(&key, offset, length).await {
                    Err(RepositoryError::Unavailable { .. }) => tokio::time::sleep(*wait).await,
                    other => return other,
                }
            }
            store.read_range(&key, offset, length).await
        })
    }

    fn fill(&mut self) -> io::Result<()> {
        let wanted = self.position;
        if self.is_sparse {
            let follows_on = wanted > 0 && wanted == self.current.0 + self.current.1.len() as u64;
            self.range = if follows_on { RANGE_BYTES.min(self.range * 4) } else { FIRST_RANGE_BYTES };
        }
        let task = match self.ahead.take() {
            Some((offset, task)) if offset == wanted => task,
            other => {
                if let Some((_, task)) = other {
                    task.abort();
                }
                self.fetch(wanted)
            }
        };
        let fetched = self.runtime.block_on(task);
        let fetched = fetched.unwrap_or_else(|error| Err(self.store.unavailable("read", &self.key, error)));
        let bytes = fetched.map_err(io::Error::other)?;
        let next = wanted + bytes.len() as u64;
        self.current = (wanted, bytes);
        if next < self.size && self.range == RANGE_BYTES {
            self.ahead = Some((next, self.fetch(next)));
        }
        Ok(())
    }
}

impl Read for RangeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        let inside =
            |(start, bytes): &(u64, Bytes), position: u64| position >= *start && position < start + bytes.len() as u64;
        if !inside(&self.current, self.position) {
            self.fill()?;
        }
        let (start, bytes) = &self.current;
        let from = usize::try_from(self.position - start).map_err(io::Error::other)?;
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Drop for RangeReader {
    fn drop(&mut self) {
        if let Some((_, task)) = self.ahead.take() {
            task.abort();
        }
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.source {
            Source::Local(file) => file.read(buffer)?,
            Source::Remote(reader) => reader.read(buffer)?,
        };
        if let Some(check) = &mut self.check {
            check.hasher.update(&buffer[..count]);
            check.left = check.left.saturating_sub(count as u64);
            if check.left == 0 {
                check.verify()?;
            }
        }
        Ok(count)
    }
}

impl Seek for ObjectReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.check = None;
        match &mut self.source {
            Source::Local(file) => file.seek(to),
            Source::Remote(reader) => {
                let target = match to {
                    SeekFrom::Start(offset) => Some(offset),
                    SeekFrom::End(offset) => reader.size.checked_add_signed(offset),
                    SeekFrom::Current(offset) => reader.position.checked_add_signed(offset),
                };
                reader.position =
                    target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
                Ok(reader.position)
            }
        }
    }
}
