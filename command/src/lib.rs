//! What pgark's three programs share: the options and the configuration file that they read, how they log, how they
//! print, and the exit codes that they end with.
//!
//! This crate is the only one that looks at the environment. It decides nothing about backups: it turns what a person
//! wrote into typed values, or into one clear sentence about what is wrong with it.

mod configuration;

pub use configuration::{
    ArchiveConfiguration, BackupConfiguration, CheckpointMode, ClusterConfiguration,
    CompressionConfiguration, Configuration, ConfigurationError, CredentialSource, Environment,
    Fault, MaxRate, Origin, Overrides, QuantityError, RepositoryConfiguration,
    RestoreConfiguration, Scheme, Secret, SecretSource, configuration_path, parse_duration,
    parse_size,
};
