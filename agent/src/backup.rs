//! `pgark-agent backup`: takes a base backup.
//!
//! The order is the promise: a slot holds the WAL, then the base backup streams into the repositories, the server's
//! manifest is compared with what was stored, the WAL that the backup needs is proven to be in every repository, and
//! only then the commit mark is created. Whatever fails before that leaves no backup behind.

mod changes;
mod included;
mod limit_blocks;
mod needed_wal;
mod parent;
mod receive;
pub(crate) mod summary;
mod tar_stream;
mod wal_delivery;
mod writing;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use jiff::Timestamp;
use pgark_command::{
    CheckpointMode, Configuration, Environment, ExitCode, Failure, GlobalOptions, IncrementalMode, Overrides, Progress,
    ProgressDisplay, notify_about, notify_message, open_for_writing,
};
use pgark_postgres::{BackupSource, IncrementalFrom, Lsn, ManifestEnd, SegmentSize, TablespaceMap, TimelineId};
use pgark_repository::{
    Backup, BackupId, BackupKind, BackupTargets, BackupWriter, BackupWriterOptions, CheckedBackup, ClusterRepository,
    IncludedDirectory, Origin, ServerFacts, StoredFile, Tablespace, Totals,
};

use self::changes::Changes;
use self::limit_blocks::{LimitBlocks, history_since};
pub(crate) use self::parent::those_with;
use self::parent::{Base, ChainPolicy, Kept, KeptManifest, KeptMap, Parent, Wanted};
use self::receive::{Handling, Received, receive};
pub use self::tar_stream::{TarPiece, TarStream, TarStreamError};
use self::wal_delivery::WalHold;
pub(crate) use self::writing::{Writing, give_up_in_time};
use crate::catch_up::{Stock, fill};
use crate::expire;
use crate::replication::{
    BackupEnd, BackupStart, BaseBackupOptions, BaseBackupStream, ConnectionOptions, DamagedFiles,
    ReplicationConnection, ReplicationError, ServerError, SystemIdentification, sqlstate,
};
use crate::server::{Archiving, FIRST_INCREMENTAL_MAJOR, Server};
use crate::stop_signal::stop_signal;

/// The program, as everything that it stores names it.
pub(crate) const WRITTEN_BY: &str = concat!("pgark ", env!("CARGO_PKG_VERSION"));

/// Written into `backup_label`.
const LABEL: &str = "pgark base backup";

/// Before these minor releases, WAL summaries can lack what changed: an incremental backup may then be wrong.
const FIRST_SOUND_SUMMARIES: [(u32, u32); 2] = [(17, 170_011), (18, 180_006)];

/// Options of `backup`.
#[derive(Args, Debug)]
pub struct BackupArguments {
    /// Take a full backup [default: backup.incremental decides, else full]
    #[arg(long, group = "kind")]
    pub full: bool,

    /// Store what changed since the last backup
    ///
    /// PostgreSQL 17 and later, with summarize_wal = on, send only that. Others send everything, and it is compared.
    #[arg(long, group = "kind")]
    pub incremental: bool,

    /// Store what changed since the last full backup
    #[arg(long, group = "kind")]
    pub differential: bool,

    /// Choose how the first checkpoint is made: `fast` or `spread` [default: backup.checkpoint, else fast]
    #[arg(long, value_name = "MODE")]
    pub checkpoint: Option<String>,

    /// Limit what the server sends per second, as `100MB` [default: backup.max_rate, else unlimited]
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<String>,

    /// Take a directory of this host along, such as one with configuration; may be given several times
    ///
    /// Comes on top of backup.include. `pgark-restore base --included-to` brings it back.
    #[arg(long, value_name = "DIR")]
    pub include: Vec<String>,

    /// Keep a note with the backup; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotate: Vec<String>,

    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Takes a base backup and returns when it is committed in every required repository.
///
/// # Errors
/// When anything at all is missing: then no repository has a commit mark, or the error says so.
pub async fn backup(
    global: &GlobalOptions,
    environment: &Environment,
    arguments: &BackupArguments,
) -> anyhow::Result<ExitCode> {
    let overrides = Overrides::none().with("backup.checkpoint", "--checkpoint", arguments.checkpoint.as_ref()).with(
        "backup.max_rate",
        "--max-rate",
        arguments.max_rate.as_ref(),
    );
    let configuration = global.configuration(environment, &overrides).context("read the configuration")?;
    notify_about("backup", &configuration);
    let annotations = parse_annotations(&arguments.annotate)?;
    let directories = [configuration.backup.include.as_slice(), &arguments.include].concat();
    let included = included::read(&directories)?;
    let connection = ConnectionOptions::from_process(configuration.cluster.connection.expose())
        .context("read cluster.connection")?;
    let repositories = open_for_writing(&global.repositories(environment, &configuration)?)?;

    let stopped = stop_signal()?;
    tokio::pin!(stopped);

    let started = Instant::now();
    let mut connected = tokio::select! {
        connected = Source::connect(&connection, &configuration) => connected?,
        name = &mut stopped => bail!("stopped by {name}"),
    };
    let repositories = repositories
        .iter()
        .map(|repository| repository.cluster(&configuration.cluster.name, connected.facts.system_identifier))
        .collect::<Result<Vec<_>, _>>()?;
    for file in connected.facts.files_left_out(included.iter().map(IncludedDirectory::directory)) {
        tracing::warn!(
            file,
            "lies outside the data directory and is not in the backup; --include takes its directory along"
        );
    }
    let wanted = Wanted::new(configuration.backup.incremental, arguments.base());
    let kept = Kept::new(&configuration);
    let backups = match wanted {
        Wanted::Full => Vec::new(),
        Wanted::ChangesSince { .. } => {
            parent::common_backups(&repositories).await.context("look for the backup on which this one builds")?
        }
    };
    let mut parent = connected.parent(wanted, &configuration, &backups, &kept).await?;
    let mut writing = Writing::Gone;
    let progress = Progress::start("backup", ProgressDisplay::detect(global));
    let taken = loop {
        let taken = tokio::select! {
            taken = connected.take(&repositories, &configuration, parent, &kept, &mut writing, &progress) => taken,
            name = &mut stopped => Err(anyhow::anyhow!("stopped by {name}; nothing was committed")),
        };
        match taken {
            Err(error) if !wanted.is_demanded() && error.is::<IncrementalRefused>() => {
                tracing::warn!(reason = format!("{error:#}"), "taking a full backup");
                std::mem::replace(&mut writing, Writing::Gone).withdraw().await;
                parent = None;
            }
            taken => break taken,
        }
    };
    progress.finish();
    let mut taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            let given_up = async {
                match error.is::<IncrementalRefused>() {
                    true => writing.withdraw().await,
                    false => writing.abort().await,
                }
            };
            give_up_in_time(given_up).await;
            return Err(error.context("take the base backup"));
        }
    };
    // From here on there is nothing to abort; a commit that has begun is not interrupted either.
    let damaged_files = taken.damaged_files.to_string();
    let targets = taken.targets.clone();
    let for_next = (taken.manifest.take(), taken.map.take());
    // One that was left out a moment ago is not asked again.
    let behind = match targets.repositories() {
        several if several.len() > 1 => Stock::of_all(&several).await.unwrap_or_default(),
        _ => Vec::new(),
    };
    let backup = taken.commit(&configuration, annotations, included).await.context("commit the backup")?;
    connected.hold.end().await;
    let first = parent.map_or(&backup.id, |parent| parent.first);
    let kept_for_next = match for_next {
        (Some(manifest), _) => kept.keep_manifest(manifest, &backup.id, first),
        (None, Some(map)) => kept.keep_map(&map, &backup.id, first),
        (None, None) => Ok(()),
    };
    if let Err(error) = kept_for_next {
        tracing::warn!(%error, "state_dir cannot be written: the next backup will be a full one");
    }
    notify_message(format!("backup {} is stored", backup.id));
    let elapsed = started.elapsed();
    // By what they had before this backup; what came since came to them, too.
    tokio::select! {
        _ = fill(&behind) => {}
        name = &mut stopped => tracing::warn!(signal = name, "other repositories are not filled up; the backup is stored"),
    }
    if !arguments.json {
        summary::print(&backup, &targets, elapsed)?;
    }
    // The backup is stored: whatever happens now, the exit code is about it.
    let stored_in = targets.repositories();
    let expired = match configuration.retention.after_backup {
        false => Vec::new(),
        true => tokio::select! {
            expired = expire::after_backup(&stored_in, &configuration.retention.policy) => expired,
            name = &mut stopped => {
                tracing::warn!("the backup is stored; expiring others was stopped by {name}, and the next expiry goes on");
                Vec::new()
            }
        },
    };
    if arguments.json {
        summary::print_json(&backup, &targets, elapsed, &expired)?;
    }
    summary::tell_expired(&expired, arguments.json)?;
    match &backup.damaged_pages {
        None => Ok(ExitCode::Done),
        Some(reason) => Err(Failure::new(
            ExitCode::SourceDamaged,
            match damaged_files.as_str() {
                "" => format!("backup {} is stored, but the server found damaged pages: {reason}", backup.id),
                files => format!("backup {} is stored, but the server found damaged pages in {files}", backup.id),
            },
        )
        .with_hint(
            "keep older backups; in the database whose OID follows base/, SELECT pg_filenode_relation(0, 16384) names \
             the relation of a file 16384, and pg_amcheck looks for more",
        )
        .into()),
    }
}

fn parse_annotations(texts: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut annotations = BTreeMap::new();
    for text in texts {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::new(ExitCode::Usage, format!("--annotate takes KEY=VALUE, not `{text}`")))?;
        annotations.insert(key.to_owned(), value.to_owned());
    }
    Ok(annotations)
}

impl BackupArguments {
    /// What the command demands, if it does.
    fn base(&self) -> Option<Option<Base>> {
        match (self.full, self.incremental, self.differential) {
            (true, ..) => Some(None),
            (_, true, _) => Some(Some(Base::Last)),
            (.., true) => Some(Some(Base::LastFull)),
            _ => None,
        }
    }
}

/// The server does not send only what changed: summaries are missing, or it cannot follow the parent.
#[derive(Debug, thiserror::Error)]
#[error("the server cannot send only what changed")]
struct IncrementalRefused(#[source] Box<ServerError>);

/// The server that is backed up, with its connections.
struct Source {
    sql: Server,
    replication: ReplicationConnection,
    hold: WalHold,
    facts: ServerFacts,
    identity: SystemIdentification,
    segment_size: SegmentSize,
    start_time: Timestamp,
}

/// A backup whose content and WAL are stored, and which only needs its commit mark.
struct Taken {
    checked: CheckedBackup,
    targets: BackupTargets,
    facts: ServerFacts,
    label_timeline: TimelineId,
    start: BackupStart,
    stop_timeline: TimelineId,
    stop_lsn: Lsn,
    start_time: Timestamp,
    stop_time: Timestamp,
    wal: pgark_repository::WalRange,
    tablespaces: Vec<Tablespace>,
    damaged_pages: Option<String>,
    damaged_files: DamagedFiles,
    /// For the next backup.
    manifest: Option<KeptManifest>,
    map: Option<KeptMap>,
    block_map: Option<String>,
}

impl Source {
    async fn connect(options: &ConnectionOptions, configuration: &Configuration) -> anyhow::Result<Self> {
        let mut replication = ReplicationConnection::connect(options).await.context("open a replication connection")?;
        replication.known_server_version().await?;
        // Whatever chose this server, the other connections go there too.
        let options = &options.only(replication.host());
        let identity = replication.identify_system().await?;
        let sql = Server::connect(options).await?;
        let facts = sql.facts(identity.system_identifier).await?;
        let segment_size = SegmentSize::new(u64::from(facts.wal_segment_size))?;
        if let Some(names) = sql.tablespaces_left_out(&facts).await? {
            bail!(
                "PostgreSQL {} leaves tablespaces within the data directory out of a base backup, and there are some: \
                 {names}; give them a LOCATION, or upgrade to 16 or later",
                facts.major()
            );
        }
        let hold = WalHold::begin(options).await?;
        let start_time = sql.clock().await?;
        tracing::info!(
            cluster = configuration.cluster.name,
            system_identifier = %identity.system_identifier,
            timeline = %identity.timeline,
            server_version = facts.version_num,
            "starting a base backup"
        );
        Ok(Self { sql, replication, hold, facts, identity, segment_size, start_time })
    }

    /// Chooses the backup on which this one builds; nothing for a full one, and the reason is said.
    async fn parent<'b>(
        &self,
        wanted: Wanted,
        configuration: &Configuration,
        backups: &'b [Backup],
        kept: &Kept,
    ) -> anyhow::Result<Option<Parent<'b>>> {
        let Wanted::ChangesSince { base, is_demanded } = wanted else { return Ok(None) };
        let chosen = async {
            let policy =
                ChainPolicy { full_every: configuration.backup.full_every, chain_max: configuration.backup.chain_max };
            let policy = (!is_demanded).then_some(policy);
            self.sql.can_send_changes().await.map_err(|error| format!("{error:#}"))??;
            let chosen = parent::choose(backups, base, policy, &self.facts, self.start_time)?;
            match self.sends_changes() {
                true => kept.manifest(chosen.backup).map(drop),
                false => kept.map(chosen.backup).map(drop),
            }
            .map_err(|reason| format!("of {}, {reason}", chosen.backup.id))?;
            Ok::<_, String>(chosen)
        };
        match chosen.await {
            Ok(chosen) => {
                let version = self.facts.version_num;
                if FIRST_SOUND_SUMMARIES.iter().any(|&(major, sound)| major == self.facts.major() && version < sound) {
                    tracing::warn!(
                        server_version = version,
                        "this minor release has known faults in its WAL summaries; update it, or take full backups"
                    );
                }
                Ok(Some(chosen))
            }
            Err(reason) if is_demanded => {
                Err(Failure::new(ExitCode::Failed, format!("an incremental backup cannot be taken: {reason}"))
                    .with_hint("take a full one with --full")
                    .into())
            }
            Err(reason) => {
                tracing::info!(reason, "taking a full backup");
                Ok(None)
            }
        }
    }

    async fn take(
        &mut self,
        repositories: &[ClusterRepository],
        configuration: &Configuration,
        parent: Option<Parent<'_>>,
        kept: &Kept,
        writing: &mut Writing,
        progress: &Progress,
    ) -> anyhow::Result<Taken> {
        let level = configuration.compression.level;
        let parent = parent.map(|parent| parent.backup);
        let mut repositories = repositories.to_vec();
        let mut history = None;
        if let Some(parent) = parent {
            repositories = those_with(repositories, parent).await?;
        }
        // Where the server cannot, pgark finds out itself what changed.
        let told = parent.filter(|_| self.sends_changes());
        if let Some(parent) = told {
            history = history_since(parent, self.identity.timeline, &mut self.replication).await?;
            let manifest = kept.manifest(parent).map_err(anyhow::Error::msg)?;
            let upload = self.replication.upload_manifest(manifest).await;
            upload.with_context(|| format!("give the server the manifest of {}", parent.id))?;
        }
        let repositories = repositories.as_slice();
        let writer = BackupWriter::begin(
            repositories.to_vec(),
            parent.map_or(Origin::Server, |parent| Origin::ChangesSince(parent.id.clone())),
            host_name(),
            WRITTEN_BY.to_owned(),
            BackupWriterOptions {
                level,
                jobs: configuration.compression.workers().get(),
                part_bytes: configuration.backup.part_size,
            },
        )
        .await?;
        tracing::debug!(id = %writer.id(), "claimed the backup's id");
        let targets = writer.targets().clone();
        let wants_map = parent.is_some() || configuration.backup.incremental != IncrementalMode::Never;
        let mut handling = Handling::default();
        let mut kept_map = None;
        match self.sends_changes() {
            true => handling.kept = keep_or_tell(kept.begin_manifest(writer.id())),
            false if wants_map => {
                if let Some((begun, file)) = keep_or_tell(kept.begin_map(writer.id())) {
                    let before = parent.map(|parent| Ok((kept.map(parent)?, started(parent)))).transpose();
                    let before = before.map_err(|reason: String| anyhow::anyhow!(reason))?;
                    handling.changes = Some(Changes::new(file, before, kept.folder())?);
                    kept_map = Some(begun);
                }
                ensure!(
                    parent.is_none() || kept_map.is_some(),
                    "state_dir cannot be written, so nothing can be compared"
                );
            }
            false => {}
        }
        *writing = Writing::Parts(Box::new(writer));

        let options = BaseBackupOptions {
            label: LABEL.to_owned(),
            fast_checkpoint: configuration.backup.checkpoint == CheckpointMode::Fast,
            max_rate_kib: configuration.backup.max_rate.map(pgark_command::MaxRate::kilobytes_per_second),
            incremental: told.is_some(),
            ..BaseBackupOptions::default()
        };
        let mut stream = match self.replication.base_backup(&options).await {
            Err(ReplicationError::Server { server })
                if told.is_some() && server.sqlstate == sqlstate::NOT_IN_PREREQUISITE_STATE =>
            {
                return Err(IncrementalRefused(server).into());
            }
            stream => stream?,
        };
        let start = stream.start();
        let tablespaces = tablespaces(&stream);
        if let Some(parent) = told {
            handling.limits = LimitBlocks::between(history.as_ref(), parent, start, &self.sql).await?;
        } else {
            // Of an incremental backup the server knows no size in advance.
            progress.set_total(stream.estimated_size_kib().unwrap_or(0) * 1024);
        }
        let received = tokio::select! {
            received = receive(&mut stream, writing, &mut handling, progress) => received?,
            error = self.hold.keep() => {
                return Err(error).context("the connection that holds the backup's WAL broke");
            }
        };
        let (end, damaged_pages) = match stream.finish().await {
            Ok(end) => (end, None),
            Err(ReplicationError::PagesDamaged { end, server }) => (end, Some(server.message)),
            Err(error) => return Err(error.into()),
        };
        let (checked, manifest_end) = writing.finish().await?;
        self.check(&received, told, start, end, &manifest_end)?;
        let block_map = kept_map.as_ref().map(KeptMap::sha256).transpose().context("read the block map")?;
        let map =
            TablespaceMap::parse(&received.map, self.facts.major()).context("read the server's tablespace_map")?;
        check_tablespaces(&map, &tablespaces)?;
        let stop_time = self.sql.clock().await?;

        let segments = needed_wal::needed_segments(&manifest_end.wal_ranges, self.segment_size);
        let wal = needed_wal::wal_range(&segments).context("the server's manifest names no WAL")?;
        let patience = match self.sql.archiving().await? {
            Archiving::On => configuration.backup.archive_wait,
            Archiving::Off => Duration::ZERO,
        };
        tracing::info!(first = %wal.first, last = %wal.last, "waiting until the backup's WAL is stored");
        let required: Vec<_> = repositories.iter().filter(|repository| !repository.is_optional()).cloned().collect();
        self.hold.deliver_histories(&required, end.timeline, level).await?;
        self.hold.deliver_segments(&required, &segments, self.segment_size, patience, level).await?;
        for repository in targets.repositories().into_iter().filter(ClusterRepository::is_optional) {
            let sources = (required.as_slice(), &repository);
            if let Err(error) =
                self.hold.deliver_to_optional(sources, end.timeline, &segments, self.segment_size, level).await
            {
                targets.give_up(&repository, error);
            }
        }
        Ok(Taken {
            checked,
            targets,
            facts: self.facts.clone(),
            label_timeline: received.label.start_timeline.unwrap_or(start.timeline),
            start,
            stop_timeline: end.timeline,
            stop_lsn: end.lsn,
            start_time: self.start_time,
            stop_time,
            wal,
            tablespaces,
            damaged_pages,
            damaged_files: self.replication.damaged_files().clone(),
            manifest: handling.kept,
            map: kept_map,
            block_map,
        })
    }

    /// Whether the server itself knows what changed.
    fn sends_changes(&self) -> bool {
        i64::from(self.facts.major()) >= FIRST_INCREMENTAL_MAJOR
    }

    /// Everything that the server says twice must agree.
    fn check(
        &self,
        received: &Received,
        parent: Option<&Backup>,
        start: BackupStart,
        end: BackupEnd,
        manifest: &ManifestEnd,
    ) -> anyhow::Result<()> {
        let identifier = self.identity.system_identifier;
        ensure!(
            received.control.system_identifier == identifier,
            "the pg_control that arrived belongs to system {}, the connection to {identifier}",
            received.control.system_identifier
        );
        if let Some(listed) = manifest.system_identifier {
            ensure!(listed == identifier, "the manifest belongs to system {listed}, the connection to {identifier}");
        }
        ensure!(
            received.label.start_lsn == start.lsn,
            "backup_label says that the backup starts at {}, the server said {}",
            received.label.start_lsn,
            start.lsn
        );
        needed_wal::check_ranges(&manifest.wal_ranges, start, end)?;
        let built_on = received.label.incremental_from.map(|from| (from.lsn, from.timeline));
        let expected = parent.map(|parent| (parent.start_lsn, parent.timeline));
        ensure!(
            built_on == expected,
            "backup_label says that the backup builds on {built_on:?}, which should be {expected:?}"
        );
        ensure!(
            (received.label.backup_from == BackupSource::Standby) == self.facts.standby,
            "the server changed its role while the backup was taken"
        );
        Ok(())
    }
}

impl Taken {
    async fn commit(
        mut self,
        configuration: &Configuration,
        annotations: BTreeMap<String, String>,
        included: Vec<IncludedDirectory>,
    ) -> anyhow::Result<Backup> {
        self.checked.include(included, configuration.compression.level).await?;
        let none = || StoredFile { name: String::new(), stored_size: 0, crc32: String::new(), sha256: String::new() };
        let facts = |id: BackupId| Backup {
            format: 0,
            id,
            // The writer knows.
            kind: BackupKind::Full,
            parent: None,
            consolidated: None,
            cluster: configuration.cluster.name.clone(),
            server: self.facts.clone(),
            timeline: self.label_timeline,
            start_lsn: self.start.lsn,
            stop_timeline: self.stop_timeline,
            stop_lsn: self.stop_lsn,
            start_time: self.start_time,
            stop_time: self.stop_time,
            wal: self.wal,
            tablespaces: self.tablespaces.clone(),
            parts: Vec::new(),
            manifest: none(),
            index: none(),
            block_map: self.block_map.clone(),
            included: Vec::new(),
            totals: Totals::default(),
            recipients: Vec::new(),
            annotations: annotations.clone(),
            damaged_pages: self.damaged_pages.clone(),
            damaged_files: self.damaged_files.named().to_vec(),
            written_by: WRITTEN_BY.to_owned(),
            checksum: String::new(),
        };
        Ok(self.checked.commit(&facts).await?)
    }
}

/// What the next backup would need of this one.
fn keep_or_tell<T>(begun: std::io::Result<T>) -> Option<T> {
    if let Err(error) = &begun {
        tracing::info!(%error, "state_dir cannot be written: the next backup cannot build on this one");
    }
    begun.ok()
}

fn started(backup: &Backup) -> IncrementalFrom {
    IncrementalFrom { lsn: backup.start_lsn, timeline: backup.timeline }
}

fn tablespaces(stream: &BaseBackupStream<'_>) -> Vec<Tablespace> {
    stream
        .tablespaces()
        .iter()
        .map(|tablespace| Tablespace {
            oid: tablespace.oid,
            location: String::from_utf8_lossy(&tablespace.location).into_owned(),
            in_place: !tablespace.location.starts_with(b"/"),
        })
        .collect()
}

/// The map, from which a restore takes the places, must be of the tablespaces that were listed.
fn check_tablespaces(map: &TablespaceMap, listed: &[Tablespace]) -> anyhow::Result<()> {
    let mut mapped: Vec<u32> = map.entries().iter().map(|(oid, _)| *oid).collect();
    let outside = listed.iter().filter(|tablespace| !tablespace.in_place);
    let mut expected: Vec<u32> = outside.map(|tablespace| tablespace.oid).collect();
    mapped.sort_unstable();
    expected.sort_unstable();
    ensure!(mapped == expected, "the server's tablespace_map names {mapped:?}, but it listed {expected:?}");
    Ok(())
}

pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_key_and_value() {
        let texts = ["ticket=42".to_owned(), "why=before=after".to_owned()];
        let parsed = parse_annotations(&texts).unwrap();
        assert_eq!(parsed["ticket"], "42");
        assert_eq!(parsed["why"], "before=after");
        assert!(parse_annotations(&["=x".to_owned()]).is_err());
        assert!(parse_annotations(&["x".to_owned()]).is_err());
    }
}
