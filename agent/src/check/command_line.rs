//! Reads an `archive_command` far enough to tell whose program it runs, and with which configuration. What a shell would
//! make of more than words and quotes is not understood, and said so.

use std::path::{Path, PathBuf};

const PROGRAM: &str = "pgark-archive-command";
const DEFAULT_CONFIG: &str = "/etc/pgark/config.toml";

/// What the server is told to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArchiveCommand {
    /// As it is written: a path, or a name for the server's `PATH`.
    pub(super) program: PathBuf,
    pub(super) config: PathBuf,
    pub(super) repository: Option<String>,
    /// Whether it gets the file's path.
    pub(super) takes_file: bool,
}

impl ArchiveCommand {
    /// Nothing for a command that does not run this program.
    pub(super) fn parse(command: &str) -> Option<Self> {
        let words = words(command)?;
        let at = words.iter().position(|word| Path::new(word).file_name().is_some_and(|name| name == PROGRAM))?;
        let value = |name: &str| {
            let after = words.iter().skip(at + 1);
            let separate = after.clone().zip(after.clone().skip(1)).find(|(word, _)| *word == name);
            let joined = after.clone().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            separate.map(|(_, value)| value.as_str()).or(joined)
        };
        let of_environment = words.iter().take(at).find_map(|word| word.strip_prefix("PGARK_CONFIG="));
        Some(Self {
            program: words.get(at)?.into(),
            config: value("--config").or(of_environment).unwrap_or(DEFAULT_CONFIG).into(),
            repository: value("--repository").map(str::to_owned),
            takes_file: words.iter().skip(at + 1).any(|word| word == "%p"),
        })
    }
}

/// The words of a shell command; nothing where a quote is not closed.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = command.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(characters.next()?),
            (None, character) if character.is_whitespace() => words.extend(word.take()),
            (_, character) => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(command: &str) -> ArchiveCommand {
        ArchiveCommand::parse(command).unwrap()
    }

    #[test]
    fn the_usual_forms_are_understood() {
        let usual = parse("pgark-archive-command %p");
        assert_eq!((usual.config.to_str(), usual.takes_file), (Some(DEFAULT_CONFIG), true));
        let path = parse("/opt/my\\ tools/pgark-archive-command --config '/etc/a b.toml' \"%p\"");
        assert_eq!(path.program, Path::new("/opt/my tools/pgark-archive-command"));
        assert_eq!(path.config, Path::new("/etc/a b.toml"));
        let joined = parse("test -x x && PGARK_CONFIG=/e pgark-archive-command --repository=near pg_wal/%f");
        assert_eq!((joined.config.as_path(), joined.repository.as_deref()), (Path::new("/e"), Some("near")));
        assert!(!joined.takes_file);
    }

    #[test]
    fn other_programs_are_not_taken_for_it() {
        for command in
            ["", "cp %p /archive/%f", "(disabled)", "my-pgark-archive-command %p", "pgark-archive-command '%p"]
        {
            assert_eq!(ArchiveCommand::parse(command), None, "{command}");
        }
    }
}
