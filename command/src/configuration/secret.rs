//! Values that never print, and where they are kept.

use std::fmt;
use std::path::{Path, PathBuf};

use super::fault::ConfigurationError;

/// A text that shows itself to nobody who does not ask with [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The text itself; for the call that hands it to the server, and never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Where a secret is: already here (from the environment), or in a file that is read when it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    Value(Secret),
    File(PathBuf),
}

impl SecretSource {
    /// Fetches the secret; `what` names it if its file turns out to be empty. White space around it is cut off,
    /// because files end with a newline.
    pub fn read(&self, what: &'static str) -> Result<Secret, ConfigurationError> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let content = read_file(path)?;
                match content.trim() {
                    "" => Err(ConfigurationError::EmptyFile { path: path.clone(), what }),
                    secret => Ok(Secret::new(secret)),
                }
            }
        }
    }
}

pub(super) fn read_file(path: &Path) -> Result<String, ConfigurationError> {
    // A file that is named by the configuration and absent is an unreadable file: the advice for a missing
    // configuration would mislead.
    std::fs::read_to_string(path).map_err(|source| ConfigurationError::Unreadable { path: path.to_path_buf(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new("hunter2");
        let shown = format!("{secret:?} {:?} {:#?}", SecretSource::Value(secret.clone()), Some(&secret));
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(secret.expose(), "hunter2");
    }
}
