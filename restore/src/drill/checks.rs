//! What is asked of the restored server: that it can read everything, that its indexes fit its tables, and whatever the
//! administrator wants to know.

mod amcheck;
mod queries;
mod relations;

use std::time::Instant;

use pgark_command::{DrillConfiguration, ExitCode, Failure};
use serde::Serialize;

use super::programs::Programs;
use super::server::Server;

/// So many faults of one check are listed; all of them are counted.
const LISTED_FAULTS: usize = 50;

/// What a check came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// `read`, `amcheck` or `query`.
    pub(crate) name: &'static str,
    pub(crate) result: CheckResult,
    /// What was done, or why it was not.
    pub(crate) detail: String,
    pub(crate) seconds: f64,
    /// What is wrong; of very many only the first.
    pub(crate) faults: Vec<String>,
    pub(crate) fault_count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CheckResult {
    Passed,
    Failed,
    /// It could not be done here; that is no failure.
    Skipped,
}

impl CheckResult {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl Check {
    fn done(name: &'static str, began: Instant, detail: String, faults: Faults) -> Self {
        let result = if faults.count == 0 { CheckResult::Passed } else { CheckResult::Failed };
        let seconds = began.elapsed().as_secs_f64();
        Self { name, result, detail, seconds, faults: faults.listed, fault_count: faults.count }
    }

    fn skipped(name: &'static str, detail: &str) -> Self {
        let (result, detail) = (CheckResult::Skipped, detail.to_owned());
        Self { name, result, detail, seconds: 0.0, faults: Vec::new(), fault_count: 0 }
    }
}

/// Faults as they are found.
#[derive(Debug, Default)]
struct Faults {
    listed: Vec<String>,
    count: u64,
}

impl Faults {
    fn add(&mut self, fault: impl Into<String>) {
        self.count += 1;
        if self.listed.len() < LISTED_FAULTS {
            self.listed.push(fault.into());
        }
    }
}

/// Runs all checks, also those behind one that failed.
pub(crate) async fn run(
    server: &Server,
    programs: &Programs,
    configuration: &DrillConfiguration,
    jobs: usize,
    found: &mut Vec<Check>,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    tracing::info!("read every page of every relation");
    found.push(relations::read_all(server, jobs, notes).await?);
    tracing::info!("check tables and indexes");
    found.push(match (configuration.amcheck, programs.optional("pg_amcheck")) {
        (false, _) => Check::skipped("amcheck", "turned off by amcheck in [drill]"),
        (true, None) => {
            Check::skipped("amcheck", &format!("there is no pg_amcheck in {}", programs.directory.display()))
        }
        (true, Some(program)) => amcheck::run(server, &program, jobs).await?,
    });
    for query in &configuration.queries {
        found.push(queries::run(server, query).await);
    }
    Ok(())
}

/// The verdict over all checks, with the first reason.
pub(crate) fn verdict(checks: &[Check]) -> Result<(), Failure> {
    let failed: Vec<&Check> = checks.iter().filter(|check| check.result == CheckResult::Failed).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    let faults: u64 = failed.iter().map(|check| check.fault_count).sum();
    let more = match faults {
        0 | 1 => String::new(),
        count => format!(" (and {} more faults)", count - 1),
    };
    let reason = first.faults.first().map_or("", String::as_str);
    let message = format!("the restored cluster is not sound: check {}: {reason}{more}", first.name);
    Err(Failure::new(ExitCode::Failed, message))
}
