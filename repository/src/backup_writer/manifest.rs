//! The server's manifest: stored byte for byte, and compared file by file with what was stored.
//!
//! The server lists files in the order in which it sends them, so both sides are read as streams.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use pgark_postgres::{ManifestEnd, ManifestReader};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fan_out::FanOut;
use super::{CheckedBackup, StoredBackup, compress_failure, hex, stored_file};
use crate::error::{RepositoryError, Result, in_full};
use crate::index::{IndexLine, IndexReader, IndexedMember};
use crate::store::StoredObject;

/// Bytes of compressed manifest that are gathered before they are stored.
const CHUNK_BYTES: usize = 1 << 20;

/// Takes the manifest as it arrives.
pub struct ManifestWriter {
    stored: StoredBackup,
    output: FanOut,
    encoder: zstd::Encoder<'static, Vec<u8>>,
    digest: Sha256,
    comparing: JoinHandle<std::result::Result<ManifestEnd, String>>,
    bytes: mpsc::Sender<Bytes>,
}

impl ManifestWriter {
    pub(super) fn new(stored: StoredBackup, output: FanOut, level: i32) -> Result<Self> {
        let (bytes, received) = mpsc::channel(16);
        let index: Arc<[Bytes]> = stored.index.compressed.as_slice().into();
        let comparing = tokio::task::spawn_blocking(move || {
            let manifest = BufReader::new(ChannelReader { received, current: Bytes::new() });
            compare(manifest, &index)
        });
        let mut encoder = zstd::Encoder::new(Vec::new(), level).map_err(compress_failure)?;
        encoder.include_checksum(true).map_err(compress_failure)?;
        Ok(Self { stored, output, encoder, digest: Sha256::new(), comparing, bytes })
    }

    /// Appends bytes of the manifest.
    ///
    /// # Errors
    /// When a repository fails. A manifest that does not match is told by [`ManifestWriter::finish`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.digest.update(&bytes);
        io::Write::write_all(&mut self.encoder, &bytes).map_err(compress_failure)?;
        if self.encoder.get_ref().len() >= CHUNK_BYTES {
            let ready = std::mem::take(self.encoder.get_mut());
            self.output.write(ready.into()).await?;
        }
        // A comparison that has found a fault stops listening; it is asked at the end.
        drop(self.bytes.send(bytes).await);
        Ok(())
    }

    /// Ends the manifest and tells whether it matches what was stored.
    ///
    /// # Errors
    /// `Input` naming the first difference; or when a repository fails.
    pub async fn finish(mut self) -> Result<(CheckedBackup, ManifestEnd)> {
        drop(self.bytes);
        let rest = self.encoder.finish().map_err(compress_failure)?;
        if let Err(error) = self.output.write(rest.into()).await {
            self.output.abort().await;
            return Err(error);
        }
        let compared = self.comparing.await.unwrap_or_else(|error| Err(format!("the comparison stopped: {error}")));
        let end = match compared {
            Ok(end) => end,
            Err(reason) => {
                self.output.abort().await;
                let reason = format!("what the server sent does not match its manifest: {reason}");
                return Err(RepositoryError::Input(reason));
            }
        };
        let sha256 = hex(&self.digest.finalize());
        let objects = self.output.finish().await?;
        let stored = |(place, object): (usize, Option<StoredObject>)| {
            let repository = &self.stored.targets.target(place)?.repository;
            let key = repository.keys().manifest(&self.stored.id, repository.sealing());
            Some(stored_file(key.file_name().to_owned(), object?, &sha256))
        };
        let manifest = objects.into_iter().enumerate().map(stored).collect();
        Ok((CheckedBackup { stored: self.stored, manifest, included: Vec::new() }, end))
    }

    /// Gives the backup up; see [`BackupWriter::abort`](super::BackupWriter::abort).
    pub async fn abort(self) {
        self.output.abort().await;
    }
}

/// Reads manifest and index side by side.
fn compare(manifest: impl BufRead, index: &[Bytes]) -> std::result::Result<ManifestEnd, String> {
    let compressed = ChunkReader { chunks: index.iter().cloned().collect() };
    let index = zstd::Decoder::new(compressed).map_err(|error| error.to_string())?;
    let mut stored = IndexReader::new(BufReader::new(index));
    let mut manifest = ManifestReader::new(manifest).map_err(|error| in_full(&error))?;
    while let Some(listed) = manifest.next_file().map_err(|error| in_full(&error))? {
        let name = String::from_utf8_lossy(&listed.path).into_owned();
        let Some(member) = next_file(&mut stored)? else {
            return Err(format!("it lists `{name}`, which did not arrive"));
        };
        let (Some(file), true) = (member.file, member.path == listed.path) else {
            let arrived = String::from_utf8_lossy(&member.path);
            return Err(format!("it lists `{name}` where `{arrived}` arrived"));
        };
        if file.size != listed.size {
            return Err(format!("`{name}` has {} bytes, {} arrived", listed.size, file.size));
        }
        let Some(checksum) = listed.checksum.as_ref().and_then(pgark_postgres::ManifestChecksum::as_crc32c) else {
            return Err(format!("`{name}` has no CRC32C"));
        };
        if checksum != file.crc32c {
            return Err(format!("`{name}` arrived with another checksum"));
        }
    }
    if let Some(member) = next_file(&mut stored)? {
        let arrived = String::from_utf8_lossy(&member.path);
        return Err(format!("`{arrived}` arrived, but is not listed"));
    }
    manifest.finish().map_err(|error| in_full(&error))
}

fn next_file<R: BufRead>(stored: &mut IndexReader<R>) -> std::result::Result<Option<IndexedMember>, String> {
    loop {
        match stored.next_line().map_err(|error| in_full(&error))? {
            None => return Ok(None),
            Some(IndexLine::Member(member)) if member.file.is_some() => return Ok(Some(member)),
            Some(_) => {}
        }
    }
}

struct ChannelReader {
    received: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.received.blocking_recv() {
                Some(bytes) => self.current = bytes,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

struct ChunkReader {
    chunks: std::collections::VecDeque<Bytes>,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
        let Some(chunk) = self.chunks.front_mut() else { return Ok(0) };
        let count = buffer.len().min(chunk.len());
        chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
