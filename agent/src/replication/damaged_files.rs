//! Which files have damaged pages, from the warnings that a server sends while it reads them for a base backup.
//!
//! The error at the end of such a backup names no file; only the warnings before it do, in the server's language:
//! `checksum verification failed in file "./base/5/16384", block 3: …`. Paths look the same in every language.

/// So many files are named; of more only the number is known.
const MAX_FILES: usize = 20;

/// Where relations are, besides the tablespaces.
const ROOTS: [&str; 3] = ["base/", "global/", "pg_tblspc/"];

/// The damaged files of a base backup, in the order in which the server met them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DamagedFiles {
    named: Vec<String>,
    more: u64,
}

impl DamagedFiles {
    /// Their paths below the data directory: the first ones of many.
    pub fn named(&self) -> &[String] {
        &self.named
    }

    /// Looks for a file in a warning.
    pub(super) fn note(&mut self, warning: &str) {
        let Some(path) = path_in(warning) else { return };
        if self.named.iter().any(|known| known == path) {
            return;
        }
        if self.named.len() < MAX_FILES {
            self.named.push(path.to_owned());
        } else {
            // A file is warned of several times, so this is no number of files.
            self.more += 1;
        }
    }
}

impl std::fmt::Display for DamagedFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.named.join(", "))?;
        if self.more > 0 { f.write_str(" and others") } else { Ok(()) }
    }
}

/// A path of a relation's file that stands in quotes.
fn path_in(warning: &str) -> Option<&str> {
    ROOTS.iter().find_map(|root| {
        let (before, _) = warning.split_once(root)?;
        let is_quoted = before.trim_end_matches("./").ends_with(|last: char| !last.is_alphanumeric() && last != '/');
        let rest = warning.get(before.len()..)?;
        let path = |character: char| character.is_ascii_alphanumeric() || "/_.".contains(character);
        let end = rest.find(|character| !path(character)).unwrap_or(rest.len());
        (is_quoted && end < rest.len()).then(|| &rest[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a04_files_are_named_once_and_not_without_end() {
        let mut files = DamagedFiles::default();
        for block in 0..3 {
            files.note(&format!(
                "checksum verification failed in file \"./base/5/16384.1\", block {block}: calculated 1 but expected 2"
            ));
        }
        files.note("Prüfsummenfehler in Datei »pg_tblspc/16385/PG_15_202209061/5/17000«, Block 0");
        files.note("aborting backup due to backend exiting");
        files.note("cannot read database/5 of \"x\"");
        assert_eq!(files.named(), ["base/5/16384.1", "pg_tblspc/16385/PG_15_202209061/5/17000"]);
        for number in 0..100 {
            files.note(&format!("checksum verification failed in file \"./global/{number}\", block 0"));
        }
        assert_eq!(files.named().len(), MAX_FILES);
        assert!(files.to_string().ends_with("global/17 and others"), "{files}");
    }
}
