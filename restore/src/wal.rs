//! The command around `fetch_wal`: whose WAL it is, and what a standby is told about faults.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use pgark_command::{Configuration, Environment, ExitCode, GlobalOptions, Side, open_repository};
use pgark_postgres::{SystemIdentifier, WalFileName};
use tokio::signal::unix::{SignalKind, signal};

use crate::archive::Archive;
use crate::fetch_wal::{Fetched, fetch_wal, fetch_wal_for_standby, system_identifier_of};
use crate::prefetch::{self, Prefetch};

/// What a shell reports for a command that SIGTERM ended. PostgreSQL sends that when it shuts down, and only this code
/// makes it do so quietly.
const TERMINATED: i32 = 128 + 15;

/// Arguments of `wal`.
#[derive(Args, Debug)]
pub struct WalArguments {
    /// The file that is wanted, as PostgreSQL gives it for %f
    #[arg(value_name = "%f")]
    name: WalFileName,

    /// Where it goes, as PostgreSQL gives it for %p
    #[arg(value_name = "%p")]
    destination: PathBuf,

    /// Fetch for a standby: try again for a while, and then report any fault as 1
    #[arg(long)]
    standby: bool,

    /// Whose WAL it is [default: that of the data directory in which %p lies]
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,

    /// Fetch what comes behind %f instead
    #[arg(long = prefetch::OPTION, hide = true)]
    is_prefetch: bool,
}

/// Runs the command.
pub async fn wal(
    options: &GlobalOptions,
    environment: &Environment,
    configuration: &Configuration,
    arguments: &WalArguments,
) -> anyhow::Result<ExitCode> {
    let fetch = || format!("fetch {}", arguments.name);
    let prefetch = Prefetch::for_call(arguments.name, &arguments.destination, configuration.restore.prefetch);
    let system_identifier = match arguments.system_identifier {
        Some(given) => given,
        None => system_identifier_of(&arguments.destination).with_context(fetch)?,
    };
    let open = || -> anyhow::Result<Archive> {
        let mut places = Vec::new();
        for chosen in options.repositories(environment, configuration)? {
            let repository = open_repository(chosen, Side::Reading)?;
            places.push((repository.cluster(&configuration.cluster.name, system_identifier)?, Vec::new()));
        }
        Ok(Archive::new(places))
    };
    if arguments.is_prefetch {
        // Nobody waits for its outcome: what it could not fetch is asked for in time, and its failure told then.
        if let Some(prefetch) = prefetch
            && let Err(error) = prefetch.run(&open()?).await
        {
            tracing::debug!(%error, "ended");
        }
        return Ok(ExitCode::Done);
    }
    let fetch_file = async {
        if let Some(prefetch) = &prefetch
            && prefetch.deliver(system_identifier).await
        {
            return Ok(Fetched::InPlace);
        }
        let archive = open()?;
        if arguments.standby {
            Ok(fetch_wal_for_standby(&archive, arguments.name, &arguments.destination).await?)
        } else {
            Ok(fetch_wal(&archive, arguments.name, &arguments.destination).await?)
        }
    };
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let stopped: Result<anyhow::Result<Fetched>, ()> = tokio::select! {
        fetched = fetch_file => Ok(fetched),
        _ = terminate.recv() => Err(()),
    };
    // By now the temporary file is gone.
    let Ok(fetched) = stopped else { std::process::exit(TERMINATED) };
    match fetched.with_context(fetch)? {
        Fetched::InPlace => {
            if let Some(prefetch) = &prefetch {
                prefetch.start();
            }
            Ok(ExitCode::Done)
        }
        Fetched::Absent => {
            tracing::info!(file = %arguments.name, "not in the archive");
            Ok(ExitCode::NotInArchive)
        }
    }
}
