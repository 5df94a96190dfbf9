//! What pgark's three programs share: the options and the configuration file that they read, how they log, how they
//! print, and the exit codes that they end with.
//!
//! This crate is the only one that looks at the environment. It decides nothing about backups: it turns what a person
//! wrote into typed values, or into one clear sentence about what is wrong with it.

mod configuration;
mod data_directory;
mod exit_code;
mod failure;
mod logging;
mod notify;
mod options;
mod output;
mod progress;
mod repositories;
mod terminal;
mod time_input;

pub use configuration::{
    ArchiveConfiguration, BackupConfiguration, CheckpointMode, ClusterConfiguration, CompressionConfiguration,
    Configuration, ConfigurationError, CredentialSource, DrillConfiguration, DrillQuery, Environment, Fault,
    IncrementalMode, MaxRate, NotifyConfiguration, NotifyResult, Origin, Overrides, ProofsConfiguration, QuantityError,
    RepositoryConfiguration, RestoreConfiguration, RetentionConfiguration, Scheme, Secret, SecretSource,
    StreamConfiguration, VerifyConfiguration, configuration_path, parse_duration, parse_size,
};
pub use data_directory::{DataDirectoryError, data_directory_of_wal_file, read_control_file};
pub use exit_code::{ExitCode, ExitPolicy};
pub use failure::{Failure, Program, Verdict, explain, run};
pub use logging::{LogFormat, start_logging};
pub use notify::{notify_about, notify_message, notify_while};
pub use options::GlobalOptions;
pub use output::{Align, Report, Table, format_duration, format_size, format_time, printable};
pub use progress::{Progress, ProgressDisplay};
pub use repositories::{Side, judge_repository, open_for_writing, open_repository};
pub use time_input::{TargetTime, TimeInputError, machine_zone};
