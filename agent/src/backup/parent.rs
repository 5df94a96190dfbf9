//! On which backup the next one builds.
//!
//! The server learns of the parent by its manifest, which this host has kept: what is in the repository may be
//! encrypted, and nobody here could decrypt it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use pgark_command::{Configuration, IncrementalMode};
use pgark_repository::{Backup, BackupId, ClusterRepository, RepositoryError, ServerFacts};
use sha2::{Digest, Sha256};

/// Manifests are text, and are read once.
const LEVEL: i32 = 1;

/// What the next backup is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Everything.
    Full,
    /// What changed since another one.
    ChangesSince {
        /// Which one.
        base: Base,
        /// Otherwise everything, where that cannot be or the policy wants it.
        is_demanded: bool,
    },
}

/// On what a backup builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// The last backup.
    Last,
    /// The last full backup.
    LastFull,
}

/// The backup that was chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent<'b> {
    pub(super) backup: &'b Backup,
    /// The full backup of its chain, by the id under which what is kept of it is found.
    pub(super) first: &'b BackupId,
}

/// When the next backup is full all the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainPolicy {
    pub(super) full_every: Duration,
    pub(super) chain_max: usize,
}

impl Wanted {
    /// Whether the command asked for an incremental backup, so that a full one is none.
    pub(super) fn is_demanded(self) -> bool {
        matches!(self, Self::ChangesSince { is_demanded: true, .. })
    }

    /// `demanded` is what the command says, if it says something.
    pub(super) fn new(mode: IncrementalMode, demanded: Option<Option<Base>>) -> Self {
        let changes = |base, is_demanded| Self::ChangesSince { base, is_demanded };
        match (demanded, mode) {
            (Some(None), _) | (None, IncrementalMode::Never) => Self::Full,
            (Some(Some(base)), _) => changes(base, true),
            (None, IncrementalMode::Auto) => changes(Base::Last, false),
            (None, IncrementalMode::Differential) => changes(Base::LastFull, false),
        }
    }
}

/// Chooses among the finished backups; the error says why it has to be a full one.
pub(super) fn choose<'b>(
    backups: &'b [Backup],
    base: Base,
    policy: Option<ChainPolicy>,
    server: &ServerFacts,
    now: Timestamp,
) -> Result<Parent<'b>, String> {
    // Two of different kinds may have begun in one second: ids do not tell which was the later one. What was made from a
    // chain comes behind the last of it.
    let eligible = backups.iter().filter(|backup| base == Base::Last || backup.parent.is_none());
    let parent = eligible.max_by_key(|backup| backup.start_time);
    let parent = parent.ok_or("there is no backup yet on which it could build")?;
    let mut first = parent;
    let mut length = 1;
    while let Some(id) = &first.parent {
        let older = backups.iter().rev().find(|backup| backup.id == *id && backup.id < first.id);
        first = older.ok_or_else(|| format!("{id}, on which {} builds, is missing", first.id))?;
        length += 1;
    }
    if parent.server.data_checksums != server.data_checksums {
        // What `pg_checksums` changes is not in the WAL.
        return Err(format!("page checksums were switched since {}", parent.id));
    }
    let chosen = Parent { backup: parent, first: first.as_sent().0 };
    let Some(ChainPolicy { full_every, chain_max }) = policy else { return Ok(chosen) };
    let age = Duration::try_from(now.duration_since(first.start_time)).unwrap_or_default();
    if age >= full_every {
        return Err(format!("{} is older than backup.full_every", first.id));
    }
    if length > chain_max {
        return Err(format!("backup.chain_max backups build on {} already", first.id));
    }
    Ok(chosen)
}

/// The finished backups that every required repository has.
pub(super) async fn common_backups(repositories: &[ClusterRepository]) -> Result<Vec<Backup>, RepositoryError> {
    let mut common: Option<Vec<Backup>> = None;
    for repository in repositories.iter().filter(|repository| !repository.is_optional()) {
        let finished = repository.backups().await?.finished;
        match &mut common {
            None => common = Some(finished),
            Some(common) => common.retain(|backup| finished.iter().any(|other| is_same(backup, other))),
        }
    }
    Ok(common.unwrap_or_default())
}

/// The repositories that have a backup which another one needs. One that is not required is left out if it does not.
///
/// # Errors
/// When a repository that is required does not have it or fails.
pub(crate) async fn those_with(
    all: Vec<ClusterRepository>,
    backup: &Backup,
) -> Result<Vec<ClusterRepository>, RepositoryError> {
    let id = &backup.id;
    let mut chosen = Vec::with_capacity(all.len());
    for repository in all {
        let (name, is_optional) = (repository.name(), repository.is_optional());
        match has_backup(&repository, backup).await {
            Ok(true) => chosen.push(repository),
            Ok(false) if is_optional => {
                tracing::warn!(repository = name, %id, "does not have this backup, and is left out")
            }
            Ok(false) => {
                let key = repository.keys().backup(id);
                return Err(RepositoryError::NotFound { repository: name.to_owned(), key });
            }
            Err(error) if is_optional => {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(repository = name, error, "is left out");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(chosen)
}

/// Whether a repository has this very backup.
async fn has_backup(repository: &ClusterRepository, backup: &Backup) -> Result<bool, RepositoryError> {
    match repository.backup(&backup.id).await {
        Ok(found) => Ok(is_same(&found, backup)),
        Err(RepositoryError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_same(one: &Backup, other: &Backup) -> bool {
    one.id == other.id && one.manifest.sha256 == other.manifest.sha256
}

/// Files of `state_dir` that are kept for the backup that builds on one. Safe to lose: the next one is a full one then.
struct KeptFiles {
    folder: PathBuf,
    /// In front of each name: several clusters may share the folder.
    prefix: String,
    extension: &'static str,
}

impl KeptFiles {
    fn new(configuration: &Configuration, folder: &str, extension: &'static str) -> Self {
        let prefix = format!("{}-", configuration.cluster.name);
        Self { folder: configuration.state_dir.join(folder), prefix, extension }
    }

    fn path(&self, id: &BackupId) -> PathBuf {
        self.folder.join(format!("{}{id}.{}", self.prefix, self.extension))
    }

    /// Where the file of a backup is until that is committed.
    fn begin(&self, id: &BackupId) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        Ok(self.folder.join(format!("{}{id}.new", self.prefix)))
    }

    /// Keeps the file of a backup, and of the others only that of `first`, the full one of its chain.
    fn keep(&self, begun: &Path, backup: &BackupId, first: &BackupId) -> io::Result<()> {
        fs::rename(begun, self.path(backup))?;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if self.is_own(&path) && path != self.path(backup) && path != self.path(first) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The name of one cluster may begin with that of another.
    fn is_own(&self, path: &Path) -> bool {
        let id = path.file_stem().and_then(|name| name.to_str()?.strip_prefix(&self.prefix));
        id.is_some_and(|id| id.parse::<BackupId>().is_ok())
    }
}

/// What the next backup needs of one: what the server has to be told, or what pgark itself compares with.
pub(super) struct Kept {
    manifests: KeptFiles,
    maps: KeptFiles,
}

/// A manifest that arrives.
pub(super) struct KeptManifest {
    path: PathBuf,
    output: zstd::Encoder<'static, BufWriter<File>>,
}

/// A block map that is being written.
pub(super) struct KeptMap {
    path: PathBuf,
}

impl Kept {
    pub(super) fn new(configuration: &Configuration) -> Self {
        Self {
            manifests: KeptFiles::new(configuration, "manifests", "zst"),
            maps: KeptFiles::new(configuration, "maps", "map"),
        }
    }

    /// Opens the manifest of a backup, proven to be the one that was stored; the error says why it cannot be used.
    pub(super) fn manifest(&self, backup: &Backup) -> Result<impl Read + Send + use<>, String> {
        // The server does not know the manifest of a backup that it has not sent.
        let (id, digest) = backup.as_sent();
        let path = self.manifests.path(id);
        let unusable = |error: io::Error| format!("its manifest {} cannot be used: {error}", path.display());
        let found = read(&path).and_then(sha256).map_err(unusable)?;
        if found != digest {
            return Err(format!("its manifest {} is not the one that was stored", path.display()));
        }
        read(&path).map_err(unusable)
    }

    /// Opens the block map of a backup, as [`Kept::manifest`] does.
    pub(super) fn map(&self, backup: &Backup) -> Result<File, String> {
        if backup.block_map.is_none() {
            let reason = "it has no block map, since backup.incremental was \"never\": set it to \"auto\" first";
            return Err(reason.to_owned());
        }
        let (id, _) = backup.as_sent();
        let path = self.maps.path(id);
        let unusable = |error: io::Error| format!("its block map {} cannot be used: {error}", path.display());
        let mut map = File::open(&path).map_err(unusable)?;
        let found = sha256(&mut map).map_err(unusable)?;
        if Some(&found) != backup.block_map.as_ref() {
            return Err(format!("its block map {} is not the one that was made with it", path.display()));
        }
        map.rewind().map_err(unusable)?;
        Ok(map)
    }

    /// Begins to keep the manifest of the backup that is under way.
    pub(super) fn begin_manifest(&self, id: &BackupId) -> io::Result<KeptManifest> {
        let path = self.manifests.begin(id)?;
        let output = zstd::Encoder::new(BufWriter::new(File::create(&path)?), LEVEL)?;
        Ok(KeptManifest { path, output })
    }

    /// Begins the block map of the backup that is under way.
    pub(super) fn begin_map(&self, id: &BackupId) -> io::Result<(KeptMap, File)> {
        let path = self.maps.begin(id)?;
        let file = File::create(&path)?;
        Ok((KeptMap { path }, file))
    }

    /// Where large things can be put aside.
    pub(super) fn folder(&self) -> &Path {
        &self.maps.folder
    }

    pub(super) fn keep_manifest(&self, manifest: KeptManifest, backup: &BackupId, first: &BackupId) -> io::Result<()> {
        manifest.output.finish()?.flush()?;
        self.manifests.keep(&manifest.path, backup, first)
    }

    pub(super) fn keep_map(&self, map: &KeptMap, backup: &BackupId, first: &BackupId) -> io::Result<()> {
        self.maps.keep(&map.path, backup, first)
    }
}

impl KeptManifest {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }
}

impl KeptMap {
    /// The digest by which the map is known again.
    pub(super) fn sha256(&self) -> io::Result<String> {
        sha256(File::open(&self.path)?)
    }
}

fn sha256(mut input: impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match input.read(&mut buffer)? {
            0 => break,
            count => digest.update(&buffer[..count]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read(path: &Path) -> io::Result<zstd::Decoder<'static, BufReader<File>>> {
    zstd::Decoder::new(File::open(path)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use pgark_repository::{BackupKind, Consolidated};
    use serde_json::json;

    use super::*;

    fn time(day: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + day * 86_400).unwrap()
    }

    fn id(day: i64, is_full: bool) -> BackupId {
        BackupId::new(time(day), if is_full { BackupKind::Full } else { BackupKind::Incremental })
    }

    fn backup(day: i64, parent: Option<BackupId>) -> Backup {
        let object = json!({"name": "", "stored_size": 1, "crc32": "", "sha256": format!("{day:064}")});
        let segment = "000000010000000000000001";
        serde_json::from_value(json!({
            "format": 1, "id": id(day, parent.is_none()).as_str(), "kind": BackupKind::with_parent(parent.as_ref()),
            "parent": parent.as_ref().map(BackupId::as_str), "cluster": "main", "server": server(180_006, true),
            "timeline": 1, "start_lsn": "0/10", "stop_timeline": 1, "stop_lsn": "0/20",
            "start_time": time(day), "stop_time": time(day), "wal": {"first": segment, "last": segment},
            "tablespaces": [], "parts": [], "manifest": object, "index": object,
            "totals": {"files": 0, "directories": 0, "raw_size": 0, "stored_size": 0},
            "recipients": [], "written_by": "", "checksum": "",
        }))
        .unwrap()
    }

    fn server(version_num: u32, data_checksums: bool) -> ServerFacts {
        serde_json::from_value(json!({
            "system_identifier": "7", "version_num": version_num, "wal_segment_size": 1 << 24,
            "data_directory_mode": "0700", "data_directory": null, "data_checksums": data_checksums, "standby": false,
        }))
        .unwrap()
    }

    /// A full backup on day 0 and 4, and two that build on each.
    fn week() -> Vec<Backup> {
        let chain = |day| [(day, None), (day + 1, Some(id(day, true))), (day + 2, Some(id(day + 1, false)))];
        [0, 4].into_iter().flat_map(chain).map(|(day, parent)| backup(day, parent)).collect()
    }

    const POLICY: ChainPolicy = ChainPolicy { full_every: Duration::from_secs(7 * 86_400), chain_max: 3 };

    fn chosen(
        backups: &[Backup],
        base: Base,
        policy: Option<ChainPolicy>,
        day: i64,
    ) -> Result<(BackupId, BackupId), String> {
        let chosen = choose(backups, base, policy, &server(180_006, true), time(day))?;
        Ok((chosen.backup.id.clone(), chosen.first.clone()))
    }

    #[test]
    fn the_last_backup_or_the_last_full_one_is_built_on() {
        let week = week();
        assert_eq!(chosen(&week, Base::Last, Some(POLICY), 7), Ok((id(6, false), id(4, true))));
        assert_eq!(chosen(&week, Base::LastFull, Some(POLICY), 7), Ok((id(4, true), id(4, true))));
    }

    #[test]
    fn what_is_kept_for_other_clusters_stays() {
        let folder = harness::TempDir::new("manifests");
        let files = |prefix: &str, extension| KeptFiles {
            folder: folder.path().to_owned(),
            prefix: prefix.to_owned(),
            extension,
        };
        let kept = |prefix: &str| Kept { manifests: files(prefix, "zst"), maps: files(prefix, "map") };
        let keep = |kept: &Kept, day, first| {
            let mut manifest = kept.begin_manifest(&id(day, day == first)).unwrap();
            manifest.write(b"manifest").unwrap();
            kept.keep_manifest(manifest, &id(day, day == first), &id(first, true)).unwrap();
        };
        let (main, other) = (kept("main-"), kept("main-2-"));
        keep(&other, 0, 0);
        for day in 0..4 {
            keep(&main, day, 0);
        }
        drop(main.begin_manifest(&id(9, true)).unwrap());
        keep(&main, 4, 0);
        let names = || {
            let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let path = |kept: &Kept, day, is_full| kept.manifests.path(&id(day, is_full));
        assert_eq!(names(), [path(&other, 0, true), path(&main, 0, true), path(&main, 4, false)].into());

        let digest = |content: &[u8]| sha256(content).unwrap();
        let mut stored = backup(4, Some(id(3, false)));
        assert!(main.manifest(&stored).err().unwrap().contains("not the one that was stored"));
        stored.manifest.sha256 = digest(b"manifest");
        let mut text = String::new();
        main.manifest(&stored).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "manifest");
        // To the server, what was made from the chain is the backup that it sent.
        let mut made = backup(5, None);
        let manifest_sha256 = stored.manifest.sha256.clone();
        made.consolidated = Some(Consolidated { from: stored.id.clone(), manifest_sha256 });
        main.manifest(&made).unwrap();
        let (map, mut file) = main.begin_map(&stored.id).unwrap();
        file.write_all(b"map").unwrap();
        assert_eq!(map.sha256().unwrap(), digest(b"map"));
        main.keep_map(&map, &stored.id, &id(0, true)).unwrap();
        assert!(main.map(&stored).err().unwrap().contains("has no block map"));
        stored.block_map = Some(digest(b"other"));
        assert!(main.map(&stored).err().unwrap().contains("not the one that was made with it"));
        stored.block_map = Some(digest(b"map"));
        main.map(&stored).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "manifestmap");
        made.block_map = stored.block_map;
        main.map(&made).unwrap();
        let all = [backup(4, Some(id(3, false))), made];
        let chosen = chosen(&all, Base::LastFull, None, 6).unwrap();
        assert_eq!(chosen, (id(5, true), id(4, false)));
    }

    #[test]
    fn the_policy_wants_a_full_backup_now_and_then() {
        let week = week();
        let short = ChainPolicy { chain_max: 2, ..POLICY };
        assert!(chosen(&week, Base::Last, Some(short), 7).unwrap_err().contains("chain_max"));
        assert!(chosen(&week, Base::LastFull, Some(short), 7).is_ok());
        assert!(chosen(&week, Base::Last, Some(POLICY), 11).unwrap_err().contains("full_every"));
        // What the command says counts more.
        assert!(chosen(&week, Base::Last, None, 100).is_ok());
    }

    #[test]
    fn e04_e16_what_cannot_be_built_on_is_not() {
        let mut week = week();
        assert!(chosen(&[], Base::Last, None, 7).is_err());
        let switched = choose(&week, Base::Last, None, &server(180_006, false), time(7)).map(|_| ());
        assert!(switched.unwrap_err().contains("page checksums"));
        week.remove(4);
        assert!(chosen(&week, Base::Last, None, 7).unwrap_err().contains("is missing"));
        // A circle has no beginning.
        week[3].parent = Some(id(6, false));
        week[4].parent = Some(week[3].id.clone());
        assert!(chosen(&week, Base::Last, None, 7).unwrap_err().contains("is missing"));
    }
}
