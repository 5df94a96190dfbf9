//! `pgark-agent`: everything that writes to the repository. `backup` takes a base backup, `run` receives WAL,
//! `check` proves the set-up.

use anyhow::Context;
use clap::{Parser, Subcommand};
use pgark_agent::{BackupArguments, CheckArguments};
use pgark_command::{Environment, ExitCode, ExitPolicy, GlobalOptions, Program, run, start_logging};
use tracing::Level;

/// Take base backups of a PostgreSQL cluster and receive its WAL
#[derive(Parser)]
#[command(name = "pgark-agent", version)]
struct Arguments {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take a base backup and store it in every repository
    Backup(BackupArguments),
    /// Look at everything that backups and archiving need, and say what to mend
    ///
    /// Exits with 1 when there is a failure. Ends the segment that is being written, to see it arrive, unless
    /// --no-switch is given or the server is a standby.
    Check(CheckArguments),
    /// Stay up and store the server's WAL while it is written
    Run,
}

fn main() -> std::process::ExitCode {
    let program = Program { name: "pgark-agent", policy: ExitPolicy::Ordinary, judge: pgark_agent::judge };
    run(program, || {
        let arguments = Arguments::try_parse()?;
        let environment = Environment::of_process();
        start_logging(&arguments.global, Level::INFO, &environment);
        // One thread moves the bytes, so that no wake-up crosses threads; compression, encryption and local files have
        // threads of their own.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        let outcome: anyhow::Result<ExitCode> = match arguments.command {
            Command::Backup(backup) => runtime.block_on(pgark_agent::backup(&arguments.global, &environment, &backup)),
            Command::Check(check) => runtime.block_on(pgark_agent::check(&arguments.global, &environment, &check)),
            Command::Run => runtime.block_on(pgark_agent::run(&arguments.global, &environment)),
        };
        // Nothing that still hangs, such as a dead network file system, may hold the exit back.
        runtime.shutdown_background();
        outcome
    })
}
