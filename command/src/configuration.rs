//! The configuration: a TOML file, overridden by environment variables, overridden by options.
//!
//! [`Configuration`] holds checked values only. A file is read key by key through a `Section`, which is the one place
//! that knows the precedence (option, then environment, then file) and which remembers every key that was asked for:
//! whatever else stands in the file is unknown and is refused with the nearest key that exists. All faults are
//! collected, each with its file and line (or its variable), so that one run shows all of them.
//!
//! Loading opens the configuration file and nothing else. Files that it names (secrets, recipients) are opened by the
//! methods that need their content, because a host that writes backups has no identity file, and one that restores
//! has no need for the recipients.

mod credentials;
mod environment;
mod fault;
mod nearest;
mod notify;
mod proving;
mod quantity;
mod repository;
mod retention;
mod secret;
mod section;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use credentials::CredentialSource;
pub use environment::{Environment, Overrides};
pub use fault::{ConfigurationError, Fault, Origin};
pub use notify::{NotifyConfiguration, NotifyResult};
pub use proving::{DrillConfiguration, DrillQuery, ProofsConfiguration, VerifyConfiguration};
pub use quantity::{MaxRate, QuantityError, parse_duration, parse_size};
pub use repository::{RepositoryConfiguration, Scheme};
pub use retention::RetentionConfiguration;
pub use secret::{Secret, SecretSource};
use section::{Document, Section};

/// Where the configuration file is looked for when neither an option nor the environment names one.
const DEFAULT_PATH: &str = "/etc/pgark/config.toml";

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Everything that can be configured, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// What this host keeps for itself; safe to lose.
    pub state_dir: PathBuf,
    pub cluster: ClusterConfiguration,
    /// At least one, with distinct names, in the order of the file.
    pub repositories: Vec<RepositoryConfiguration>,
    pub compression: CompressionConfiguration,
    pub backup: BackupConfiguration,
    pub archive: ArchiveConfiguration,
    pub stream: StreamConfiguration,
    pub restore: RestoreConfiguration,
    pub verify: VerifyConfiguration,
    pub drill: DrillConfiguration,
    pub proofs: ProofsConfiguration,
    pub notify: NotifyConfiguration,
    pub retention: RetentionConfiguration,
}

/// `[cluster]`: the PostgreSQL cluster that this host protects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfiguration {
    /// The first part of every key in the repository: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// A libpq connection string or URL. It may hold a password, therefore it does not print.
    pub connection: Secret,
}

/// `[compression]`: how stored data is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressionConfiguration {
    /// A zstd level, 1 to 19.
    pub level: i32,
    /// As written; 0 lets [`CompressionConfiguration::workers`] decide.
    pub jobs: usize,
}

/// `[backup]`: how a base backup is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupConfiguration {
    pub checkpoint: CheckpointMode,
    /// How fast the server may send; `None` is unlimited.
    pub max_rate: Option<MaxRate>,
    /// The raw size near which a part is cut, at a file boundary.
    pub part_size: u64,
    /// How long the archive command has to deliver the backup's last WAL before it is fetched over replication.
    pub archive_wait: Duration,
    /// Directories on this host that are taken along, such as one with configuration.
    pub include: Vec<String>,
    /// Whether a backup builds on another one, when the command does not say it.
    pub incremental: IncrementalMode,
    /// In the modes that choose, the age of the last full backup from which on the next one is full.
    pub full_every: Duration,
    /// In the modes that choose, how many backups build on one another before the next one is full.
    pub chain_max: usize,
}

/// Whether a backup builds on another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncrementalMode {
    /// It holds everything.
    Never,
    /// It holds what changed since the last backup, or everything where that cannot be.
    Auto,
    /// It holds what changed since the last full backup, or everything where that cannot be.
    Differential,
}

/// `[archive]`: how one call of `pgark-archive-command` behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveConfiguration {
    /// After this long a call gives up, so that a dead network never hangs a shutdown.
    pub deadline: Duration,
    /// How many segments that are ready are shipped by one call, the one that was asked for included.
    pub ahead: usize,
}

/// `[stream]`: how `pgark-agent run` receives WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfiguration {
    /// The replication slot, which is created when it is missing.
    pub slot: String,
    /// How often what is new of the open segment is stored as a piece.
    pub partial_interval: Duration,
    /// So many new bytes are stored at once.
    pub partial_bytes: u64,
    /// Whether each piece is stored at once, for a server whose commits wait for it.
    pub synchronous: bool,
}

/// `[restore]`: how a cluster is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreConfiguration {
    /// As written; 0 lets [`RestoreConfiguration::workers`] decide.
    pub jobs: usize,
    /// How many segments are fetched before a server in recovery asks for them.
    pub prefetch: usize,
}

/// How the checkpoint that starts a backup is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointMode {
    /// At once, with a burst of writes.
    Fast,
    /// In the server's own time, which can take most of `checkpoint_timeout`.
    Spread,
}

/// Decides which configuration file is read: the option, else `PGARK_CONFIG`, else the fixed place.
pub fn configuration_path(option: Option<&Path>, environment: &Environment) -> PathBuf {
    match option {
        Some(path) => path.to_path_buf(),
        None => PathBuf::from(environment.get("PGARK_CONFIG").unwrap_or_else(|| DEFAULT_PATH.to_owned())),
    }
}

impl Configuration {
    /// Reads the file at `path` and lays the environment and the command's own options over it.
    pub fn load(path: &Path, environment: &Environment, overrides: &Overrides) -> Result<Self, ConfigurationError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigurationError::opening(path, error))?;
        Self::from_toml(&text, path, environment, overrides)
    }

    /// Does what [`Configuration::load`] does with a text that is already in memory; `path` is for messages.
    pub fn from_toml(
        text: &str,
        path: &Path,
        environment: &Environment,
        overrides: &Overrides,
    ) -> Result<Self, ConfigurationError> {
        let (configuration, _) = Self::read(text, path, environment, overrides)?;
        Ok(configuration)
    }

    /// Reads the text and also returns every key that exists, as `section.key`.
    fn read(
        text: &str,
        path: &Path,
        environment: &Environment,
        overrides: &Overrides,
    ) -> Result<(Self, Vec<String>), ConfigurationError> {
        let document = Document::parse(text, path, environment, overrides)?;
        let mut known = Vec::new();
        let mut faults = Vec::new();

        let mut top = document.top();
        let state_dir = top.path("state_dir").unwrap_or_else(|| PathBuf::from("/var/lib/pgark/state"));
        let cluster_table = top.table("cluster");
        let repository_tables = top.tables("repository");
        let compression_table = top.table("compression");
        let backup_table = top.table("backup");
        let archive_table = top.table("archive");
        let stream_table = top.table("stream");
        let restore_table = top.table("restore");
        let verify_table = top.table("verify");
        let drill_table = top.table("drill");
        let proofs_table = top.table("proofs");
        let notify_table = top.table("notify");
        let retention_table = top.table("retention");
        top.finish(&mut known, &mut faults);

        let mut section = document.section("cluster", cluster_table);
        let cluster = ClusterConfiguration::read(&mut section);
        section.finish(&mut known, &mut faults);

        let repositories = repository::read_all(&document, &repository_tables, &mut known, &mut faults);

        let mut section = document.section("compression", compression_table);
        let compression = CompressionConfiguration {
            level: section.integer("level", 3, 1, 19) as i32,
            jobs: section.integer("jobs", 0, 0, 64) as usize,
        };
        section.finish(&mut known, &mut faults);

        let mut section = document.section("backup", backup_table);
        let backup = BackupConfiguration::read(&mut section);
        section.finish(&mut known, &mut faults);

        let mut section = document.section("archive", archive_table);
        let archive = ArchiveConfiguration {
            deadline: section.duration("deadline", Duration::from_secs(60), Duration::from_secs(1), DAY),
            ahead: section.integer("ahead", 8, 1, 64) as usize,
        };
        section.finish(&mut known, &mut faults);

        let mut section = document.section("stream", stream_table);
        let stream = StreamConfiguration::read(&mut section);
        section.finish(&mut known, &mut faults);

        let mut section = document.section("restore", restore_table);
        let restore = RestoreConfiguration {
            jobs: section.integer("jobs", 0, 0, 64) as usize,
            prefetch: section.integer("prefetch", 8, 0, 64) as usize,
        };
        section.finish(&mut known, &mut faults);

        let mut section = document.section("verify", verify_table);
        let verify = VerifyConfiguration::read(&mut section);
        section.finish(&mut known, &mut faults);
        let drill = DrillConfiguration::read(&document, drill_table, &mut known, &mut faults);
        let proofs = ProofsConfiguration::read(&document, proofs_table, &mut known, &mut faults);

        let mut section = document.section("notify", notify_table);
        let notify = NotifyConfiguration::read(&mut section);
        section.finish(&mut known, &mut faults);

        let mut section = document.section("retention", retention_table);
        let retention = RetentionConfiguration::read(&mut section);
        section.finish(&mut known, &mut faults);

        if faults.is_empty() {
            let configuration = Self {
                state_dir,
                cluster,
                repositories,
                compression,
                backup,
                archive,
                stream,
                restore,
                verify,
                drill,
                proofs,
                notify,
                retention,
            };
            Ok((configuration, known))
        } else {
            Err(ConfigurationError::Invalid { faults })
        }
    }

    /// Chooses the repository that a reading command uses: the named one, or the only one.
    pub fn repository(&self, name: Option<&str>) -> Result<&RepositoryConfiguration, ConfigurationError> {
        let chosen = self.repositories_named(name)?;
        match chosen.as_slice() {
            [only] => Ok(only),
            _ => Err(ConfigurationError::SeveralRepositories { known: self.repository_names() }),
        }
    }

    /// Chooses the repositories that a writing command serves: the named one, or all of them.
    pub fn repositories_named(&self, name: Option<&str>) -> Result<Vec<&RepositoryConfiguration>, ConfigurationError> {
        let Some(name) = name else {
            return Ok(self.repositories.iter().collect());
        };
        match self.repositories.iter().find(|repository| repository.name == name) {
            Some(repository) => Ok(vec![repository]),
            None => {
                Err(ConfigurationError::UnknownRepository { name: name.to_owned(), known: self.repository_names() })
            }
        }
    }

    fn repository_names(&self) -> Vec<String> {
        self.repositories.iter().map(|repository| repository.name.clone()).collect()
    }
}

/// The longest time that any setting accepts.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl ClusterConfiguration {
    fn read(section: &mut Section<'_>) -> Self {
        let name = section.parsed("name", "main".to_owned(), parse_name);
        let connection = section.text("connection").unwrap_or_else(|| "host=/var/run/postgresql user=pgark".to_owned());
        Self { name, connection: Secret::new(connection) }
    }
}

impl CompressionConfiguration {
    /// How many threads compress: one per processor and at most four, unless `jobs` says otherwise.
    pub fn workers(&self) -> NonZeroUsize {
        workers(self.jobs, 4)
    }
}

impl RestoreConfiguration {
    /// How many parts are read at once: one per processor and at most eight, unless `jobs` says otherwise.
    pub fn workers(&self) -> NonZeroUsize {
        workers(self.jobs, 8)
    }
}

fn workers(jobs: usize, most: usize) -> NonZeroUsize {
    let automatic = || std::thread::available_parallelism().map_or(1, |processors| processors.get().min(most));
    NonZeroUsize::new(if jobs == 0 { automatic() } else { jobs }).unwrap_or(NonZeroUsize::MIN)
}

impl BackupConfiguration {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            checkpoint: section.parsed("checkpoint", CheckpointMode::Fast, str::parse),
            max_rate: section.parsed("max_rate", None, |text| text.parse().map(Some)),
            part_size: section.size("part_size", 256 * MIB, 16 * MIB, 16 * GIB),
            archive_wait: section.duration("archive_wait", Duration::from_secs(60), Duration::ZERO, DAY),
            include: section.list("include"),
            incremental: section.parsed("incremental", IncrementalMode::Never, str::parse),
            full_every: section.duration("full_every", DAY * 7, Duration::from_secs(60 * 60), DAY * 3660),
            chain_max: section.integer("chain_max", 14, 1, 1000) as usize,
        }
    }
}

impl StreamConfiguration {
    fn read(section: &mut Section<'_>) -> Self {
        let interval = (Duration::from_millis(100), Duration::from_secs(60));
        Self {
            slot: section.parsed("slot", "pgark".to_owned(), parse_slot),
            partial_interval: section.duration("partial_interval", Duration::from_secs(1), interval.0, interval.1),
            partial_bytes: section.size("partial_bytes", 4 * MIB, 8 << 10, GIB),
            synchronous: section.boolean("synchronous").unwrap_or(false),
        }
    }
}

/// Accepts what PostgreSQL accepts as the name of a replication slot.
fn parse_slot(text: &str) -> Result<String, String> {
    let allowed = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
    if (1..=63).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("1 to 63 lower-case letters, digits and `_` are allowed".to_owned())
    }
}

impl std::str::FromStr for IncrementalMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "never" => Ok(Self::Never),
            "auto" => Ok(Self::Auto),
            "differential" => Ok(Self::Differential),
            _ => Err("expected `never`, `auto` or `differential`".to_owned()),
        }
    }
}

impl std::str::FromStr for CheckpointMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fast" => Ok(Self::Fast),
            "spread" => Ok(Self::Spread),
            _ => Err("expected `fast` or `spread`".to_owned()),
        }
    }
}

impl std::fmt::Display for CheckpointMode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Fast => "fast",
            Self::Spread => "spread",
        })
    }
}

/// Accepts a name that can stand in an object key and in a path on any store.
fn parse_name(text: &str) -> Result<String, String> {
    const LONGEST: usize = 64;
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    if !text.chars().all(allowed) {
        Err("only letters, digits, `-`, `_` and `.` are allowed".to_owned())
    } else if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        Err("it must begin with a letter or a digit".to_owned())
    } else if text.len() > LONGEST {
        Err(format!("it has {} characters, at most {LONGEST} are allowed", text.len()))
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
#[path = "configuration/tests.rs"]
mod tests;
