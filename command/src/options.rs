//! The options that every command takes.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use crate::configuration::{
    Configuration, ConfigurationError, Environment, Overrides, RepositoryConfiguration, configuration_path,
};
use crate::logging::LogFormat;

/// Options of every command; flatten them into the program's own.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every command")]
pub struct GlobalOptions {
    /// Read the configuration from FILE [default: $PGARK_CONFIG, else /etc/pgark/config.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Use only the repository NAME of the configuration [default: $PGARK_REPOSITORY, else all of them]
    ///
    /// Commands that write serve all configured repositories unless this chooses one. Those that restore read from all
    /// of them, in the order of the configuration; verify and drill need it where several are configured.
    #[arg(long, value_name = "NAME", global = true)]
    pub repository: Option<String>,

    /// Log more; twice for still more
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,

    /// Log errors only, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Choose how log lines look [default: $PGARK_LOG_FORMAT, else text]
    #[arg(long, value_enum, value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
}

impl GlobalOptions {
    /// Loads the configuration that the options and the environment point at.
    pub fn configuration(
        &self,
        environment: &Environment,
        overrides: &Overrides,
    ) -> Result<Configuration, ConfigurationError> {
        Configuration::load(&configuration_path(self.config.as_deref(), environment), environment, overrides)
    }

    /// The repository of a command that looks at one alone.
    pub fn repository<'c>(
        &self,
        environment: &Environment,
        configuration: &'c Configuration,
    ) -> Result<&'c RepositoryConfiguration, ConfigurationError> {
        configuration.repository(self.repository_name(environment).as_deref())
    }

    /// The repositories that a command writes to, or restores from.
    pub fn repositories<'c>(
        &self,
        environment: &Environment,
        configuration: &'c Configuration,
    ) -> Result<Vec<&'c RepositoryConfiguration>, ConfigurationError> {
        configuration.repositories_named(self.repository_name(environment).as_deref())
    }

    fn repository_name(&self, environment: &Environment) -> Option<String> {
        self.repository.clone().or_else(|| environment.get("PGARK_REPOSITORY"))
    }

    /// The format, and whether the variable was understood: logging has to start in any case.
    pub(crate) fn log_format(&self, environment: &Environment) -> (LogFormat, bool) {
        match (self.log_format, environment.get("PGARK_LOG_FORMAT")) {
            (Some(format), _) => (format, true),
            (None, None) => (LogFormat::Text, true),
            (None, Some(text)) => match LogFormat::from_str(&text, true) {
                Ok(format) => (format, true),
                Err(_) => (LogFormat::Text, false),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        global: GlobalOptions,
        #[command(subcommand)]
        command: Command,
    }

    #[derive(clap::Subcommand)]
    enum Command {
        List,
    }

    fn parse(arguments: &[&str]) -> Result<GlobalOptions, clap::Error> {
        Program::try_parse_from(arguments).map(|Program { global, command: Command::List }| global)
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        Program::command().debug_assert();
        let options = parse(&["p", "-vv", "list", "--repository", "far", "--log-format", "json"]).unwrap();
        assert_eq!(options.verbose, 2);
        assert_eq!(options.repository.as_deref(), Some("far"));
        assert_eq!(options.log_format, Some(LogFormat::Json));
        assert!(parse(&["p", "-v", "-q", "list"]).is_err());
    }

    #[test]
    fn an_option_wins_over_the_environment() {
        let environment = Environment::from_pairs([("PGARK_LOG_FORMAT", "JSON"), ("PGARK_REPOSITORY", "near")]);
        let none = GlobalOptions::default();
        assert_eq!(none.log_format(&environment), (LogFormat::Json, true));
        assert_eq!(none.repository_name(&environment).as_deref(), Some("near"));
        let given = parse(&["p", "list", "--log-format=text", "--repository=far"]).unwrap();
        assert_eq!(given.log_format(&environment), (LogFormat::Text, true));
        assert_eq!(given.repository_name(&environment).as_deref(), Some("far"));
        let wrong = Environment::from_pairs([("PGARK_LOG_FORMAT", "xml")]);
        assert_eq!(none.log_format(&wrong), (LogFormat::Text, false));
    }
}
