//! Writes one backup to several repositories at once: read once, compress once, encrypt for each.
//!
//! ```text
//! members → tar bytes → frames of 4 MiB → `jobs` compressors → in order → encrypt → upload
//! ```
//!
//! Every stage is bounded: at most `jobs + 2` frames are under way, raw and compressed, and each
//! repository holds a few pieces of an upload. Per file, only its compressed index line and a hash of its path stay in
//! memory.
//! Nothing counts before [`BackupWriter::commit`] has created `backup.json`.

mod fan_out;
mod included;
mod manifest;
mod parts;
mod targets;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use self::fan_out::FanOut;
pub use self::included::IncludedDirectory;
pub use self::manifest::ManifestWriter;
use self::parts::{FinishedPart, PartStream};
pub use self::targets::BackupTargets;
use crate::backup::{BACKUP_FORMAT, Backup, Included, Part, Started, StoredFile, Totals, to_json};
use crate::backup_id::{BackupId, BackupKind};
use crate::cluster::ClusterRepository;
use crate::compression::FrameCompressor;
use crate::error::{RepositoryError, Result};
use crate::index::{IndexLine, IndexedFile, IndexedMember, IndexedPart, WholeFile};
use crate::path_set::PathSet;
use crate::store::{Creation, StoredObject};
use crate::tar_header::{END_OF_ARCHIVE, TAR_BLOCK, TarMember, tar_padding};

/// How a backup is stored.
#[derive(Debug, Clone, Copy)]
pub struct BackupWriterOptions {
    /// zstd level.
    pub level: i32,
    /// Compression workers.
    pub jobs: usize,
    /// Raw bytes after which a part ends with the file that passes them.
    pub part_bytes: u64,
}

/// From what a backup is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The server sends everything.
    Server,
    /// What changed since another backup: an incremental one.
    ChangesSince(BackupId),
    /// A backup and all on which it builds: a full one, of the same moment.
    ChainOf(BackupId),
}

impl Origin {
    /// The backup that must not go while this one is made from it, or on it.
    fn needed(&self) -> Option<&BackupId> {
        match self {
            Self::Server => None,
            Self::ChangesSince(id) | Self::ChainOf(id) => Some(id),
        }
    }

    fn parent(&self) -> Option<&BackupId> {
        match self {
            Self::ChangesSince(id) => Some(id),
            Self::Server | Self::ChainOf(_) => None,
        }
    }

    /// The id that is tried after `taken` others. In the order of ids, what was made from a chain comes right behind it.
    fn id(&self, taken: u32, now: Timestamp) -> BackupId {
        let start = match self {
            Self::ChainOf(id) => id.start().map(|start| start + Duration::from_secs(u64::from(taken) + 1)),
            Self::Server | Self::ChangesSince(_) => None,
        };
        BackupId::new(start.unwrap_or(now), BackupKind::with_parent(self.parent()))
    }
}

/// Writes a backup. See the module's words.
pub struct BackupWriter {
    targets: BackupTargets,
    id: BackupId,
    origin: Origin,
    options: BackupWriterOptions,
    stream: PartStream,
    index: IndexBuffer,
    paths: PathSet,
    part: u32,
    part_offset: u64,
    open: Option<OpenMember>,
    totals: Totals,
}

struct OpenMember {
    line: IndexedMember,
    remaining: u64,
    padding: usize,
}

/// What the caller knows of a backup once it is complete; the writer adds what it stored.
pub type BackupFacts<'a> = dyn Fn(BackupId) -> Backup + Send + Sync + 'a;

impl BackupWriter {
    /// Claims an id in every repository. One that is not required and fails is left out from then on. Every repository
    /// must have the backup from which this one is made, or on which it builds.
    ///
    /// # Errors
    /// When a repository refuses or cannot be reached.
    pub async fn begin(
        repositories: Vec<ClusterRepository>,
        origin: Origin,
        host: String,
        written_by: String,
        options: BackupWriterOptions,
    ) -> Result<Self> {
        let targets = BackupTargets::new(repositories);
        let id = claim(&targets, &origin, host, written_by).await?;
        let stream = PartStream::new(targets.clone(), id.clone(), options);
        Ok(Self {
            targets,
            id,
            origin,
            options,
            stream,
            index: IndexBuffer::new()?,
            paths: PathSet::default(),
            part: 1,
            part_offset: 0,
            open: None,
            totals: Totals::default(),
        })
    }

    /// The claimed id.
    #[must_use]
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// Where it goes, until its end.
    #[must_use]
    pub fn targets(&self) -> &BackupTargets {
        &self.targets
    }

    /// Gives back what was claimed, before anything is stored.
    pub async fn withdraw(self) {
        for (_, target) in self.targets.there() {
            let (store, keys) = (target.repository.store(), target.repository.keys());
            let deleted = async {
                store.delete(&keys.started(&self.id)).await?;
                store.remove_empty_folders(&keys.backup_folder(&self.id), Duration::ZERO).await
            };
            if let Err(error) = deleted.await {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::debug!(repository = store.name(), error, "the claim stays, for expiry to remove");
            }
        }
        self.stream.abort().await;
    }

    /// Begins a file or directory. A file's content follows through [`BackupWriter::write`], exactly
    /// as many bytes as its size. `limit_block` is that of [`IndexedFile`].
    ///
    /// # Errors
    /// `Input` for a path that cannot be stored or a file whose content is not complete; or when a
    /// repository fails.
    pub async fn begin_member(&mut self, member: &TarMember, limit_block: Option<u32>) -> Result<()> {
        self.open_member(member, limit_block, None).await
    }

    /// Begins an incremental file that stands for `whole`.
    ///
    /// # Errors
    /// As [`BackupWriter::begin_member`].
    pub async fn begin_incremental(&mut self, member: &TarMember, whole: WholeFile) -> Result<()> {
        self.open_member(member, None, Some(whole)).await
    }

    async fn open_member(
        &mut self,
        member: &TarMember,
        limit_block: Option<u32>,
        whole: Option<WholeFile>,
    ) -> Result<()> {
        self.check_complete()?;
        let header = member.header().map_err(|error| RepositoryError::Input(error.to_string()))?;
        if !self.paths.insert(&member.path) {
            let path = String::from_utf8_lossy(&member.path);
            return Err(RepositoryError::Input(format!("`{path}` comes twice, which no restore could follow")));
        }
        if self.part_offset >= self.options.part_bytes.max(1) {
            self.end_part().await?;
        }
        let offset = self.part_offset;
        self.put(&header).await?;
        let line = IndexedMember {
            path: member.path.clone(),
            mode: member.mode,
            part: self.part,
            offset,
            file: member.size.map(|size| IndexedFile { size, mtime: member.mtime, crc32c: 0, limit_block, whole }),
        };
        match member.size {
            None => {
                self.totals.directories += 1;
                self.index.push(&IndexLine::Member(line))
            }
            Some(size) => {
                self.totals.files += 1;
                self.totals.raw_size += size;
                self.open = Some(OpenMember { line, remaining: size, padding: tar_padding(size) });
                self.close_if_complete().await
            }
        }
    }

    /// Appends content of the open file.
    ///
    /// # Errors
    /// `Input` for more bytes than announced; or when a repository fails.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let Some(open) = self.open.as_mut().filter(|open| open.remaining >= length) else {
            return Err(RepositoryError::Input("more bytes came than a file's header announced".to_owned()));
        };
        open.remaining -= length;
        if let Some(file) = &mut open.line.file {
            file.crc32c = crc32c::crc32c_append(file.crc32c, bytes);
        }
        self.put(bytes).await?;
        self.close_if_complete().await
    }

    async fn close_if_complete(&mut self) -> Result<()> {
        if let Some(open) = self.open.take_if(|open| open.remaining == 0) {
            self.put(&[0; TAR_BLOCK][..open.padding]).await?;
            self.index.push(&IndexLine::Member(open.line))?;
        }
        Ok(())
    }

    fn check_complete(&self) -> Result<()> {
        match &self.open {
            None => Ok(()),
            Some(open) => Err(RepositoryError::Input(format!(
                "`{}` ended {} bytes early",
                String::from_utf8_lossy(&open.line.path),
                open.remaining
            ))),
        }
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.part_offset += bytes.len() as u64;
        self.stream.write(bytes).await
    }

    async fn end_part(&mut self) -> Result<()> {
        self.put(&END_OF_ARCHIVE).await?;
        self.stream.end_part().await?;
        let frames = self.stream.take_frames().await?;
        let line = IndexedPart { part: self.part, raw_size: self.part_offset, frames };
        self.index.push(&IndexLine::Part(line))?;
        self.part += 1;
        self.part_offset = 0;
        Ok(())
    }

    /// Ends the last part and goes on to the server's manifest, which is compared file by file with
    /// what was stored.
    ///
    /// # Errors
    /// `Input` when the last file is not complete; or when a repository fails.
    pub async fn begin_manifest(mut self) -> Result<ManifestWriter> {
        self.check_complete()?;
        if self.part_offset > 0 {
            self.end_part().await?;
        }
        let mut parts = self.stream.finish().await?;
        parts.sort_by_key(|part| part.number);
        let index = self.index.finish()?;
        let manifest = FanOut::begin(&self.targets, |keys, sealing| keys.manifest(&self.id, sealing)).await?;
        let stored =
            StoredBackup { targets: self.targets, id: self.id, origin: self.origin, parts, totals: self.totals, index };
        ManifestWriter::new(stored, manifest, self.options.level)
    }

    /// Gives the backup up: aborts what is being uploaded. What was uploaded whole stays behind
    /// without a commit mark, for expiry to remove.
    pub async fn abort(self) {
        self.stream.abort().await;
    }
}

/// A backup whose content is stored, and which only lacks its index and commit mark.
pub(crate) struct StoredBackup {
    targets: BackupTargets,
    id: BackupId,
    origin: Origin,
    parts: Vec<FinishedPart>,
    totals: Totals,
    index: FinishedIndex,
}

/// A backup whose manifest has been compared; ready to be committed.
pub struct CheckedBackup {
    stored: StoredBackup,
    /// For each repository; nothing for one that is left out.
    manifest: Vec<Option<StoredFile>>,
    /// For each repository.
    included: Vec<Vec<Included>>,
}

impl CheckedBackup {
    /// The backup's id.
    #[must_use]
    pub fn id(&self) -> &BackupId {
        &self.stored.id
    }

    /// Stores the index and, last of all, the commit mark, in every repository. `facts` fills in what
    /// the caller knows; format, id, kind, parent, parts, included directories, manifest, index, totals and recipients are ours.
    ///
    /// Returns the first commit mark. Repositories that are required get theirs first.
    ///
    /// # Errors
    /// When a repository that is required fails: in that one the backup does not exist then.
    pub async fn commit(self, facts: &BackupFacts<'_>) -> Result<Backup> {
        let stored = self.stored;
        let mut index = FanOut::begin(&stored.targets, |keys, sealing| keys.index(&stored.id, sealing)).await?;
        for chunk in &stored.index.compressed {
            if let Err(error) = index.write(chunk.clone()).await {
                index.abort().await;
                return Err(error);
            }
        }
        let objects = index.finish().await?;
        let mut first = None;
        let mut targets: Vec<_> = stored.targets.there().collect();
        targets.sort_by_key(|(place, target)| (target.repository.is_optional(), *place));
        for (place, target) in targets {
            let repository = &target.repository;
            let parts: Option<Vec<Part>> = stored.parts.iter().map(|part| part.in_repository(place)).collect();
            let (Some(parts), Some(manifest), Some(index)) = (parts, self.manifest[place].clone(), objects[place])
            else {
                continue;
            };
            let key = repository.keys().index(&stored.id, repository.sealing());
            let mut backup = facts(stored.id.clone());
            backup.format = BACKUP_FORMAT;
            backup.id = stored.id.clone();
            backup.parent = stored.origin.parent().cloned();
            backup.kind = BackupKind::with_parent(backup.parent.as_ref());
            backup.parts = parts;
            backup.manifest = manifest;
            backup.index = stored_file(key.file_name().to_owned(), index, &stored.index.sha256);
            backup.included = self.included.get(place).cloned().unwrap_or_default();
            backup.totals = stored.totals;
            backup.totals.stored_size = backup.parts.iter().map(|part| part.stored_size).sum::<u64>()
                + backup.included.iter().map(|included| included.object.stored_size).sum::<u64>()
                + backup.manifest.stored_size
                + backup.index.stored_size;
            backup.recipients = repository.recipients().public_keys();
            let json = backup.seal()?;
            let key = repository.keys().backup(&stored.id);
            let create = async {
                match repository.store().create(&key, json).await? {
                    Creation::Different => {
                        Err(RepositoryError::Conflict { repository: repository.name().to_owned(), key: key.clone() })
                    }
                    Creation::Created | Creation::Identical => check_claim(repository, &stored).await,
                }
            };
            if target.attempt(create).await?.is_some() {
                first.get_or_insert(backup);
            }
        }
        first.ok_or_else(|| RepositoryError::Input("a backup needs a repository".to_owned()))
    }
}

impl FinishedPart {
    fn in_repository(&self, place: usize) -> Option<Part> {
        let object = self.objects.get(place).copied().flatten()?;
        let crc32 = format!("{:08x}", object.crc32);
        Some(Part { number: self.number, raw_size: self.raw_size, stored_size: object.size, crc32 })
    }
}

/// Expiry deletes the claim before anything else of a backup that it takes for an interrupted one: a writer that stood
/// still for so long must not commit what may be gone.
///
/// The claim also keeps the backup that this one needs, and with it the WAL. It may have been overlooked by an expiry that
/// had begun before.
async fn check_claim(repository: &ClusterRepository, stored: &StoredBackup) -> Result<()> {
    let (id, name) = (&stored.id, repository.name());
    let reason = if repository.store().size(&repository.keys().started(id)).await?.is_none() {
        format!(
            "backup {id} had not been written to for so long that it was deleted from the repository `{name}` as an \
             interrupted one"
        )
    } else if let Some(needed) = stored.origin.needed()
        && repository.store().size(&repository.keys().backup(needed)).await?.is_none()
    {
        format!("backup {needed}, which {id} needs, was deleted from the repository `{name}` meanwhile")
    } else {
        return Ok(());
    };
    repository.store().delete(&repository.keys().backup(id)).await?;
    Err(RepositoryError::Input(reason))
}

/// Claims an id that is free in every repository. Two writers in one second get different ids,
/// because the claim is a conditional create.
async fn claim(targets: &BackupTargets, origin: &Origin, host: String, written_by: String) -> Result<BackupId> {
    for taken in 0..10 {
        let time = Timestamp::now();
        let id = origin.id(taken, time);
        let started = Started {
            format: BACKUP_FORMAT,
            id: id.clone(),
            host: host.clone(),
            process: std::process::id(),
            time,
            written_by: written_by.clone(),
            parent: origin.needed().cloned(),
        };
        let json = to_json(&started)?;
        let mut free = true;
        for (_, target) in targets.there() {
            let key = target.repository.keys().started(&id);
            let claimed = target.attempt(target.repository.store().create(&key, json.clone())).await?;
            if claimed == Some(Creation::Different) {
                free = false;
                break;
            }
        }
        if free {
            return Ok(id);
        }
        if origin.id(taken + 1, time) == id {
            tokio::time::sleep(until_next_second(time)).await;
        }
    }
    Err(RepositoryError::Input(
        "ten backup ids in a row were taken by others; is another backup being started in a loop?".to_owned(),
    ))
}

/// How long a second lasts still, and a moment more.
fn until_next_second(time: Timestamp) -> Duration {
    Duration::from_millis(1_005) - Duration::from_nanos(time.subsec_nanosecond().unsigned_abs().into())
}

/// The index as it grows: compressed at once, since a cluster may have millions of files.
struct IndexBuffer {
    encoder: zstd::Encoder<'static, Vec<u8>>,
    sha256: Sha256,
}

struct FinishedIndex {
    compressed: Vec<Bytes>,
    sha256: String,
}

impl IndexBuffer {
    fn new() -> Result<Self> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).map_err(compress_failure)?;
        encoder.include_checksum(true).map_err(compress_failure)?;
        Ok(Self { encoder, sha256: Sha256::new() })
    }

    fn push(&mut self, line: &IndexLine) -> Result<()> {
        let mut text = Vec::with_capacity(200);
        line.write(&mut text).map_err(compress_failure)?;
        self.sha256.update(&text);
        self.encoder.write_all(&text).map_err(compress_failure)
    }

    fn finish(self) -> Result<FinishedIndex> {
        let compressed = Bytes::from(self.encoder.finish().map_err(compress_failure)?);
        let chunk = 1 << 20;
        let compressed = (0..compressed.len())
            .step_by(chunk)
            .map(|at| compressed.slice(at..compressed.len().min(at + chunk)))
            .collect();
        Ok(FinishedIndex { compressed, sha256: hex(&self.sha256.finalize()) })
    }
}

fn stored_file(name: String, object: StoredObject, sha256: &str) -> StoredFile {
    StoredFile { name, stored_size: object.size, crc32: format!("{:08x}", object.crc32), sha256: sha256.to_owned() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compress_failure(error: std::io::Error) -> RepositoryError {
    RepositoryError::Input(format!("compressing failed: {error}"))
}

fn shared_compressor(level: i32) -> Arc<FrameCompressor> {
    Arc::new(FrameCompressor::new(level))
}
