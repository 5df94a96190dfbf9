//! What can be wrong with a configuration, said so that the reader can mend it at once.
//!
//! No message repeats a value that could be a secret.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The configuration, or a file that it names, cannot be used.
#[derive(Debug, Error)]
pub enum ConfigurationError {
    #[error(
        "there is no configuration file {}: copy config.example.toml there and edit it, or name another file with \
         --config or PGARK_CONFIG", path.display()
    )]
    Missing { path: PathBuf },

    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{}:{line}: this is not valid TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },

    /// One line a fault.
    #[error("{}", lines(faults))]
    Invalid { faults: Vec<Fault> },

    #[error("there is no repository `{name}`; configured: {}", known.join(", "))]
    UnknownRepository { name: String, known: Vec<String> },

    #[error("several repositories are configured; choose one with --repository: {}", known.join(", "))]
    SeveralRepositories { known: Vec<String> },

    #[error("{} is empty; it should hold the {what}", path.display())]
    EmptyFile { path: PathBuf, what: &'static str },

    #[error("{place}: {problem}")]
    Key { place: String, problem: &'static str },
}

impl ConfigurationError {
    pub(super) fn opening(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path: path.to_path_buf() },
            _ => Self::Unreadable { path: path.to_path_buf(), source: error },
        }
    }
}

/// One thing that is wrong, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub origin: Origin,
    pub sentence: String,
}

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File { path: PathBuf, line: usize },
    Environment { variable: String },
    CommandLine { option: &'static str },
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.origin, self.sentence)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Environment { variable } => formatter.write_str(variable),
            Self::CommandLine { option } => formatter.write_str(option),
        }
    }
}

fn lines(faults: &[Fault]) -> String {
    let sentences: Vec<String> = faults.iter().map(Fault::to_string).collect();
    sentences.join("\n")
}
