//! `pgark-agent hold` and `release`: a backup that is held is not deleted, whatever the policy says.

use std::io::Write;

use anyhow::Context;
use clap::Args;
use pgark_command::{
    Environment, ExitCode, Failure, GlobalOptions, Overrides, Report, format_time, open_for_writing, printable,
};
use pgark_repository::{BackupId, ClusterRepository, Hold, RepositoryError};

use super::{one_of, places};
use crate::backup::{WRITTEN_BY, host_name};

/// Arguments of `hold`.
#[derive(Args, Debug)]
pub struct HoldArguments {
    /// The backup, as `pgark-restore list` names it
    #[arg(value_name = "ID")]
    pub id: BackupId,

    /// Say why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

/// Arguments of `release`.
#[derive(Args, Debug)]
pub struct ReleaseArguments {
    /// The backup, as `pgark-restore list` names it
    #[arg(value_name = "ID")]
    pub id: BackupId,
}

/// Holds a backup in every repository that has it.
///
/// # Errors
/// When none has it, or when a repository fails.
pub async fn hold(
    global: &GlobalOptions,
    environment: &Environment,
    arguments: &HoldArguments,
) -> anyhow::Result<ExitCode> {
    let HoldArguments { id, reason } = arguments;
    if reason.trim().is_empty() {
        return Err(Failure::new(ExitCode::Usage, "--reason is empty: say why the backup is held").into());
    }
    let hold = Hold::new(id.clone(), reason.clone(), host_name(), WRITTEN_BY.to_owned());
    in_every_place(global, environment, id, async |place| {
        Ok(match place.hold(&hold).await? {
            None => format!("backup {id} is held in repository `{}`", place.name()),
            Some(earlier) => format!(
                "backup {id} is held in repository `{}` already, since {}: {}",
                place.name(),
                format_time(earlier.time),
                printable(&earlier.reason)
            ),
        })
    })
    .await
}

/// Ends the hold of a backup in every repository that has it.
///
/// # Errors
/// When none has it, or when a repository fails.
pub async fn release(
    global: &GlobalOptions,
    environment: &Environment,
    arguments: &ReleaseArguments,
) -> anyhow::Result<ExitCode> {
    let id = &arguments.id;
    in_every_place(global, environment, id, async |place| {
        Ok(match place.release(id).await? {
            true => format!("backup {id} is no longer held in repository `{}`", place.name()),
            false => format!("backup {id} was not held in repository `{}`", place.name()),
        })
    })
    .await
}

async fn in_every_place(
    global: &GlobalOptions,
    environment: &Environment,
    id: &BackupId,
    act: impl AsyncFn(&ClusterRepository) -> Result<String, RepositoryError>,
) -> anyhow::Result<ExitCode> {
    let configuration = global.configuration(environment, &Overrides::none()).context("read the configuration")?;
    let mut report = Report::to_stdout();
    let (mut is_found, mut failures) = (false, Vec::new());
    for repository in open_for_writing(&global.repositories(environment, &configuration)?)? {
        let places = match places(&repository, &configuration).await {
            Ok(places) => places,
            Err(error) => {
                failures.push(error);
                continue;
            }
        };
        for place in places {
            match act(&place).await {
                Ok(sentence) => {
                    is_found = true;
                    writeln!(report, "{sentence}")?;
                }
                Err(RepositoryError::NotFound { .. }) => {}
                Err(error) => failures.push(error.into()),
            }
        }
    }
    report.flush()?;
    match one_of(failures) {
        Some(failure) => Err(failure),
        None if is_found => Ok(ExitCode::Done),
        None => Err(Failure::new(ExitCode::Unreachable, format!("there is no finished backup {id}"))
            .with_hint("`pgark-restore list` shows those that there are")
            .into()),
    }
}
