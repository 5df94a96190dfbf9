//! Where settings come from besides the file: environment variables, and the options of the command that runs.
//!
//! Both are plain values that a test can build. The process's own environment is read in exactly one function.

use std::collections::BTreeMap;
use std::fmt;

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// A look-up of environment variables. An empty variable counts as absent.
pub struct Environment {
    lookup: Box<Lookup>,
}

impl Environment {
    /// Looks into the environment of this process; for `main` only.
    pub fn of_process() -> Self {
        Self { lookup: Box::new(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())) }
    }

    /// Holds exactly these variables.
    pub fn from_pairs<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        let map: BTreeMap<String, String> =
            pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { lookup: Box::new(move |name| map.get(name).cloned()) }
    }

    /// Holds no variable.
    pub fn empty() -> Self {
        Self::from_pairs([])
    }

    /// The variable's value, unless it is unset or empty.
    pub fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Variables hold secrets, so none is shown.
        formatter.write_str("Environment")
    }
}

/// Settings that the command line gives: they win over the environment and the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    by_setting: BTreeMap<&'static str, (&'static str, String)>,
}

impl Overrides {
    /// Starts without any.
    pub fn none() -> Self {
        Self::default()
    }

    /// Lets `option` (as the user writes it, `--max-rate`) set `setting` (as `section.key`, `backup.max_rate`); does
    /// nothing where the option was not given.
    #[must_use]
    pub fn with(mut self, setting: &'static str, option: &'static str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.by_setting.insert(setting, (option, value.to_string()));
        }
        self
    }

    pub(super) fn get(&self, setting: &str) -> Option<(&'static str, &str)> {
        self.by_setting.get(setting).map(|(option, value)| (*option, value.as_str()))
    }
}
