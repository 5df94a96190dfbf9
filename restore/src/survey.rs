//! A look at a stored backup before anything is touched: index and manifest side by side, and the few small files
//! that decide how the rest is restored.
//!
//! Both lists name the files in the order in which the server sent them, so they are compared as streams. After this
//! the index is proven (by its own digest and by the manifest, which has a checksum of its own), and whoever lacks the
//! private key has failed before anything was written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use pgark_postgres::{BackupLabel, ChecksumAlgorithm, ControlFile, ManifestReader, TablespaceMap, WalRange};
use pgark_repository::{
    Backup, ClusterRepository, IndexLine, IndexReader, IndexedMember, IndexedPart, ObjectKey, OpenedObject,
    RepositoryError, StoredFile, TAR_BLOCK,
};
use sha2::{Digest, Sha256};

use crate::damage::{damaged, reading_failed};

/// Files that a restore looks at, changes or holds back; each is small.
pub(crate) const CONTROL_FILE: &[u8] = b"global/pg_control";
pub(crate) const BACKUP_LABEL: &[u8] = b"backup_label";
pub(crate) const TABLESPACE_MAP: &[u8] = b"tablespace_map";
pub(crate) const AUTO_CONF: &[u8] = b"postgresql.auto.conf";
/// No server sends it as a file; a restore writes it.
pub(crate) const MANIFEST: &[u8] = b"backup_manifest";
const NOTABLE: [&[u8]; 4] = [CONTROL_FILE, BACKUP_LABEL, TABLESPACE_MAP, AUTO_CONF];
/// The largest of them is an auto.conf or a map with thousands of lines.
const NOTABLE_LIMIT: u64 = 16 << 20;

/// What the survey found.
#[derive(Debug)]
pub struct Survey {
    pub control: ControlFile,
    pub label: BackupLabel,
    pub layout: Layout,
    /// The content of `postgresql.auto.conf`; empty where the backup has none.
    pub auto_conf: Vec<u8>,
    pub(crate) control_bytes: Vec<u8>,
    pub(crate) label_bytes: Vec<u8>,
    pub files: u64,
}

/// Where the files of a backup lie, and how much room they need.
#[derive(Debug, Default)]
pub struct Layout {
    /// Where the tablespaces outside of the data directory were.
    pub tablespaces: TablespaceMap,
    /// Bytes of files in each tablespace.
    pub tablespace_bytes: BTreeMap<u32, u64>,
    /// Bytes of all files.
    pub bytes: u64,
}

/// What the two lists say.
struct Listing {
    notable: Vec<(IndexedMember, Option<IndexedPart>)>,
    tablespace_bytes: BTreeMap<u32, u64>,
    files: u64,
    bytes: u64,
    parts: usize,
}

/// Surveys a backup.
pub async fn survey(repository: &ClusterRepository, backup: &Backup) -> Result<Survey, RepositoryError> {
    let index_key = repository.index_key(backup);
    let manifest_key = repository.manifest_key(backup);
    let index = repository.open_backup_object(backup, &index_key).await?;
    let manifest = repository.open_backup_object(backup, &manifest_key).await?;
    let place = (repository.clone(), backup.clone());
    let listing = blocking(move || {
        let (repository, backup) = place;
        compare(&repository, &backup, index, manifest)
    })
    .await;
    let listing = match listing {
        Err(error @ RepositoryError::Damaged { .. }) => return Err(blame(repository, backup).await.unwrap_or(error)),
        listing => listing?,
    };
    let mut notable = BTreeMap::new();
    for (member, part) in &listing.notable {
        let content = fetch(repository, backup, member, part.as_ref()).await?;
        notable.insert(member.path.clone(), content);
    }
    Survey::new(repository, backup, listing, notable)
}

impl Survey {
    fn new(
        repository: &ClusterRepository,
        backup: &Backup,
        listing: Listing,
        mut notable: BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<Self, RepositoryError> {
        let key = repository.index_key(backup);
        let wrong = |reason: String| damaged(repository, &key, reason);
        let mut required = |path: &[u8]| {
            let name = String::from_utf8_lossy(path);
            notable.remove(path).ok_or_else(|| wrong(format!("the backup has no {name}")))
        };
        let control_bytes = required(CONTROL_FILE)?;
        let label_bytes = required(BACKUP_LABEL)?;
        let control = ControlFile::parse(&control_bytes).map_err(|error| wrong(error.to_string()))?;
        if control.system_identifier != backup.server.system_identifier {
            return Err(wrong(format!(
                "its pg_control is of system {}, not {}",
                control.system_identifier, backup.server.system_identifier
            )));
        }
        let server = &backup.server;
        if control.segment_size.bytes() != u64::from(server.wal_segment_size) || control.major() != server.major() {
            return Err(wrong(format!(
                "its pg_control is of PostgreSQL {} with segments of {}, not {} with {} bytes",
                control.major(),
                control.segment_size,
                server.major(),
                server.wal_segment_size
            )));
        }
        let label = BackupLabel::parse(&label_bytes).map_err(|error| wrong(error.to_string()))?;
        if label.start_lsn != backup.start_lsn || label.start_segment.timeline != backup.timeline {
            return Err(wrong(format!(
                "its backup_label starts at {} on timeline {}, not at {} on {}",
                label.start_lsn, label.start_segment.timeline, backup.start_lsn, backup.timeline
            )));
        }
        if label.incremental_from.is_some() != backup.parent.is_some() {
            return Err(wrong(
                "its backup_label and backup.json disagree whether it is an incremental backup".to_owned(),
            ));
        }
        let map = notable.remove(TABLESPACE_MAP);
        let tablespaces = TablespaceMap::parse(map.as_deref().unwrap_or_default(), server.major())
            .map_err(|error| wrong(error.to_string()))?;
        let mut mapped: Vec<u32> = tablespaces.entries().iter().map(|(oid, _)| *oid).collect();
        let mut expected: Vec<u32> = backup
            .tablespaces
            .iter()
            .filter(|tablespace| !tablespace.in_place)
            .map(|tablespace| tablespace.oid)
            .collect();
        mapped.sort_unstable();
        expected.sort_unstable();
        if mapped != expected {
            return Err(wrong(format!("its tablespace_map names {mapped:?}, backup.json {expected:?}")));
        }
        Ok(Self {
            control,
            label,
            layout: Layout { tablespaces, tablespace_bytes: listing.tablespace_bytes, bytes: listing.bytes },
            auto_conf: notable.remove(AUTO_CONF).unwrap_or_default(),
            control_bytes,
            label_bytes,
            files: listing.files,
        })
    }
}

/// Two lists that contradict each other do not tell which of them is damaged; their digests do.
async fn blame(repository: &ClusterRepository, backup: &Backup) -> Option<RepositoryError> {
    let lists = [
        (repository.manifest_key(backup), backup.manifest.clone()),
        (repository.index_key(backup), backup.index.clone()),
    ];
    for (key, expected) in lists {
        let object = repository.open_backup_object(backup, &key).await.ok()?;
        let place = repository.clone();
        let checked = blocking(move || {
            let (mut list, digest) = DigestReader::new(decompress(&place, &key, object)?);
            io::copy(&mut list, &mut io::sink()).map_err(|error| reading_failed(&place, &key, error))?;
            digest.check(&place, &key, &expected)
        });
        if let Err(error) = checked.await {
            return Some(error);
        }
    }
    None
}

fn compare(
    repository: &ClusterRepository,
    backup: &Backup,
    index: OpenedObject,
    manifest: OpenedObject,
) -> Result<Listing, RepositoryError> {
    let index_key = repository.index_key(backup);
    let manifest_key = repository.manifest_key(backup);
    let index_failure = |error| reading_failed(repository, &index_key, error);
    let manifest_failure = |error: pgark_postgres::ManifestError| match error {
        pgark_postgres::ManifestError::Read { source, .. } => reading_failed(repository, &manifest_key, source),
        other => damaged(repository, &manifest_key, other.to_string()),
    };
    let (index, index_digest) = DigestReader::new(decompress(repository, &index_key, index)?);
    let (manifest, manifest_digest) = DigestReader::new(decompress(repository, &manifest_key, manifest)?);
    let mut index = IndexReader::new(index);
    let mut manifest = ManifestReader::new(manifest).map_err(manifest_failure)?;
    if let Some(other) = manifest.system_identifier().filter(|id| *id != backup.server.system_identifier) {
        return Err(damaged(repository, &manifest_key, format!("it is of system {other}")));
    }
    let mut listing = Listing { notable: Vec::new(), tablespace_bytes: BTreeMap::new(), files: 0, bytes: 0, parts: 0 };
    let mut directories = 0;
    let wrong = |reason: String| damaged(repository, &index_key, reason);
    while let Some(line) = index.next_line().map_err(index_failure)? {
        match line {
            IndexLine::Part(part) => {
                listing.parts += 1;
                let expected = backup.parts.get(listing.parts - 1);
                if expected.is_none_or(|expected| expected.number != part.part || expected.raw_size != part.raw_size) {
                    return Err(wrong(format!("part {} is not the one in backup.json", part.part)));
                }
                for (member, place) in listing.notable.iter_mut().rev() {
                    if place.is_some() || member.part != part.part {
                        break;
                    }
                    *place = Some(part.clone());
                }
            }
            IndexLine::Member(member) => {
                if member.part as usize != listing.parts + 1 {
                    return Err(wrong(format!(
                        "a member of part {} stands in part {}",
                        member.part,
                        listing.parts + 1
                    )));
                }
                let Some(file) = member.file else {
                    directories += 1;
                    continue;
                };
                let listed = manifest.next_file().map_err(manifest_failure)?;
                let name = String::from_utf8_lossy(&member.path).into_owned();
                if member.path == MANIFEST {
                    return Err(wrong(format!("it lists `{name}`, which no backup has")));
                }
                let Some(listed) = listed.filter(|listed| listed.path == member.path) else {
                    return Err(wrong(format!("`{name}` is not what the manifest lists next")));
                };
                let checksum = listed.checksum.filter(|checksum| checksum.algorithm == ChecksumAlgorithm::Crc32c);
                if listed.size != file.size
                    || checksum.is_some_and(|checksum| checksum.as_crc32c() != Some(file.crc32c))
                {
                    return Err(wrong(format!("`{name}` has another size or checksum than in the manifest")));
                }
                listing.files += 1;
                listing.bytes = listing.bytes.saturating_add(file.size);
                if let Some(oid) = tablespace_of(&member.path) {
                    let bytes = listing.tablespace_bytes.entry(oid).or_default();
                    *bytes = bytes.saturating_add(file.size);
                }
                if NOTABLE.contains(&member.path.as_slice()) {
                    if file.size > NOTABLE_LIMIT || listing.notable.iter().any(|(other, _)| other.path == member.path) {
                        return Err(wrong(format!("`{name}` is there twice or far too large")));
                    }
                    listing.notable.push((member, None));
                }
            }
        }
    }
    if manifest.next_file().map_err(manifest_failure)?.is_some() {
        return Err(wrong("it lacks files that the manifest lists".to_owned()));
    }
    if listing.parts != backup.parts.len()
        || listing.files != backup.totals.files
        || directories != backup.totals.directories
        || listing.bytes != backup.totals.raw_size
    {
        return Err(wrong("it lists other totals than backup.json".to_owned()));
    }
    let end = manifest.finish().map_err(manifest_failure)?;
    check_positions(backup, &end.wal_ranges).map_err(|reason| damaged(repository, &manifest_key, reason))?;
    index_digest.check(repository, &index_key, &backup.index)?;
    manifest_digest.check(repository, &manifest_key, &backup.manifest)?;
    Ok(listing)
}

/// The positions of `backup.json`, from which the plan was made, must be the server's own. The manifest has the newest
/// timeline first.
fn check_positions(backup: &Backup, ranges: &[WalRange]) -> Result<(), String> {
    let (Some(newest), Some(oldest)) = (ranges.first(), ranges.last()) else {
        return Err("it names no WAL".to_owned());
    };
    let found = (oldest.timeline, oldest.start, newest.timeline, newest.end);
    let expected = (backup.timeline, backup.start_lsn, backup.stop_timeline, backup.stop_lsn);
    if found == expected {
        return Ok(());
    }
    Err(format!(
        "its WAL is {} on timeline {} to {} on {}, and backup.json says {} on {} to {} on {}",
        found.1, found.0, found.3, found.2, expected.1, expected.0, expected.3, expected.2
    ))
}

/// The tablespace that a path below the data directory lies in.
pub(crate) fn tablespace_of(path: &[u8]) -> Option<u32> {
    let rest = path.strip_prefix(b"pg_tblspc/")?;
    let oid = std::str::from_utf8(rest.split(|&byte| byte == b'/').next()?).ok()?;
    // Other spellings of the number are other names.
    oid.parse().ok().filter(|number: &u32| number.to_string() == oid)
}

async fn fetch(
    repository: &ClusterRepository,
    backup: &Backup,
    member: &IndexedMember,
    part: Option<&IndexedPart>,
) -> Result<Vec<u8>, RepositoryError> {
    let key = repository.part_key(backup, member.part);
    let (Some(file), Some(part)) = (member.file, part.cloned()) else {
        return Err(damaged(repository, &repository.index_key(backup), "a part has no frames"));
    };
    let mut object = repository.open_part_for_ranges(backup, member.part).await?;
    // An offset beyond everything is refused below.
    let (place, offset) = (repository.clone(), member.offset.saturating_add(TAR_BLOCK as u64));
    let content = blocking(move || {
        // Bounded by NOTABLE_LIMIT.
        ClusterRepository::read_part_range(&mut object, &part, offset, file.size as usize)
            .map_err(|error| reading_failed(&place, &key, error))
    })
    .await?;
    if crc32c::crc32c(&content) != file.crc32c {
        let name = String::from_utf8_lossy(&member.path);
        return Err(damaged(
            repository,
            &repository.part_key(backup, member.part),
            format!("`{name}` has another checksum"),
        ));
    }
    Ok(content)
}

/// Takes off the compression.
pub(crate) fn decompress(
    repository: &ClusterRepository,
    key: &ObjectKey,
    object: OpenedObject,
) -> Result<zstd::Decoder<'static, BufReader<OpenedObject>>, RepositoryError> {
    zstd::Decoder::new(object).map_err(|error| reading_failed(repository, key, error))
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RepositoryError::Input(format!("reading stopped: {error}"))),
    }
}

/// Digests what passes; the digest stays readable after the reader was given away.
pub(crate) struct DigestReader<R> {
    input: R,
    digest: Rc<RefCell<Sha256>>,
}

pub(crate) struct StreamDigest(Rc<RefCell<Sha256>>);

impl<R: Read> DigestReader<R> {
    pub(crate) fn new(input: R) -> (BufReader<Self>, StreamDigest) {
        let digest = Rc::new(RefCell::new(Sha256::new()));
        (BufReader::new(Self { input, digest: digest.clone() }), StreamDigest(digest))
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.digest.borrow_mut().update(&buffer[..count]);
        Ok(count)
    }
}

impl StreamDigest {
    /// Compares with what `backup.json` says, once the stream has been read to its end.
    pub(crate) fn check(
        &self,
        repository: &ClusterRepository,
        key: &ObjectKey,
        expected: &StoredFile,
    ) -> Result<(), RepositoryError> {
        let found: String = self.0.borrow().clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == expected.sha256 {
            Ok(())
        } else {
            Err(damaged(repository, key, format!("its SHA-256 is {found}, backup.json says {}", expected.sha256)))
        }
    }
}
