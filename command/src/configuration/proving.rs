//! `[drill]`, `[verify]` and `[proofs]`: how what is stored is proven, and where the proofs are kept.

use std::path::PathBuf;
use std::time::Duration;

use super::DAY;
use super::fault::Fault;
use super::repository::{self, RepositoryConfiguration};
use super::section::{Document, Section, Table};

/// How `[proofs]` is called in messages and as a repository.
const PROOFS: &str = "proofs";

/// `[drill]`: how a backup is restored, started and looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillConfiguration {
    /// Below which the throw-away directory is made.
    pub directory: PathBuf,
    /// Where PostgreSQL's programs are; `None` looks in the usual places for the backup's version.
    pub bin_dir: Option<PathBuf>,
    /// A superuser of the restored cluster.
    pub user: String,
    /// `name=value` for the server, besides its own settings.
    pub settings: Vec<String>,
    /// Whether `pg_amcheck` is run where it is installed.
    pub amcheck: bool,
    /// A drill that takes longer has failed.
    pub timeout: Duration,
    /// What is asked of the restored server.
    pub queries: Vec<DrillQuery>,
}

/// `[[drill.query]]`: a statement and what it has to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrillQuery {
    pub database: String,
    pub sql: String,
    /// Columns separated by `|`, rows by line breaks; `None` accepts every answer but an error.
    pub expect: Option<String>,
}

/// `[verify]`: how much a nightly run reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyConfiguration {
    /// Every stored object is read again within this time.
    pub reread_within: Duration,
}

/// `[proofs]`: where the results of drills and verifications are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofsConfiguration {
    /// A place that this host may write to; `None` is a directory in `state_dir`.
    pub place: Option<RepositoryConfiguration>,
}

impl DrillConfiguration {
    pub(super) fn read(
        document: &Document<'_>,
        table: Option<Table<'_>>,
        known: &mut Vec<String>,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut section = document.section("drill", table);
        let drill = Self {
            directory: section.path("directory").unwrap_or_else(|| PathBuf::from("/var/lib/pgark-drill")),
            bin_dir: section.path("bin_dir"),
            user: section.text("user").unwrap_or_else(|| "postgres".to_owned()),
            settings: section.list("settings"),
            amcheck: section.boolean("amcheck").unwrap_or(true),
            timeout: section.duration("timeout", DAY, Duration::from_secs(1), DAY * 30),
            queries: Vec::new(),
        };
        for setting in drill.settings.iter().filter(|setting| !is_setting(setting)) {
            section.fault(format!("`settings` holds `{}`: expected \"name=value\"", setting.escape_debug()));
        }
        let tables = section.tables("query");
        section.finish(known, faults);
        // Their keys are known also where the file has none.
        let tables: Vec<_> = if tables.is_empty() { vec![None] } else { tables.into_iter().map(Some).collect() };
        let queries = (1..).zip(tables).filter_map(|(number, table)| {
            let mut section = document.numbered("drill.query", number, table);
            let query = DrillQuery::read(&mut section, table.is_some());
            section.finish(known, faults);
            query
        });
        Self { queries: queries.collect(), ..drill }
    }
}

impl DrillQuery {
    fn read(section: &mut Section<'_>, exists: bool) -> Option<Self> {
        let any = |text: &str| Ok::<_, std::convert::Infallible>(text.to_owned());
        let database = section.text("database").unwrap_or_else(|| "postgres".to_owned());
        let expect = section.text("expect");
        let sql = if exists { section.required("sql", any) } else { section.text("sql") };
        Some(Self { database, sql: sql.filter(|_| exists)?, expect })
    }
}

impl VerifyConfiguration {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self { reread_within: section.duration("reread_within", DAY * 30, DAY, DAY * 3650) }
    }
}

impl ProofsConfiguration {
    pub(super) fn read(
        document: &Document<'_>,
        table: Option<Table<'_>>,
        known: &mut Vec<String>,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut section = document.section(PROOFS, table);
        let place = repository::read_place(&mut section, document, PROOFS);
        section.finish(known, faults);
        Self { place }
    }
}

fn is_setting(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
    })
}
