//! `pgark-agent`: everything that writes to the repository. `backup` takes a base backup, `consolidate` makes a full one of
//! a chain, `run` receives WAL, `expire` deletes what is not kept, `check` proves the set-up.

use anyhow::Context;
use clap::{Parser, Subcommand};
use pgark_agent::{
    BackupArguments, CheckArguments, ConsolidateArguments, ExpireArguments, HoldArguments, ReleaseArguments,
};
use pgark_command::{Environment, ExitCode, ExitPolicy, GlobalOptions, Program, run, start_logging};
use tracing::Level;

/// Take base backups of a PostgreSQL cluster, receive its WAL, and expire both
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
    /// Make a full backup of an incremental one and all on which it builds
    ///
    /// Happens inside the repository: no server is asked. Needs the private key where the repository is encrypted. Further
    /// incremental backups then build on the new full one. Nothing is deleted; `expire` does not keep the chain for long.
    Consolidate(ConsolidateArguments),
    /// Look at everything that backups and archiving need, and say what to mend
    ///
    /// Exits with 1 when there is a failure. Ends the segment that is being written, to see it arrive, unless
    /// --no-switch is given or the server is a standby.
    Check(CheckArguments),
    /// Stay up and store the server's WAL while it is written
    Run,
    /// Delete backups and WAL that [retention] does not keep
    ///
    /// Prints what is kept and what is deleted, and why. Without `full` or `window` in [retention] only the rests of
    /// interrupted backups are deleted.
    Expire(ExpireArguments),
    /// Keep a backup, whatever [retention] says, until it is released
    Hold(HoldArguments),
    /// Leave a backup to [retention] again
    Release(ReleaseArguments),
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
        let global = &arguments.global;
        let outcome: anyhow::Result<ExitCode> = runtime.block_on(async {
            match arguments.command {
                Command::Backup(backup) => Box::pin(pgark_agent::backup(global, &environment, &backup)).await,
                Command::Consolidate(consolidate) => {
                    Box::pin(pgark_agent::consolidate(global, &environment, &consolidate)).await
                }
                Command::Check(check) => pgark_agent::check(global, &environment, &check).await,
                Command::Run => pgark_agent::run(global, &environment).await,
                Command::Expire(expire) => pgark_agent::expire(global, &environment, &expire).await,
                Command::Hold(hold) => pgark_agent::hold(global, &environment, &hold).await,
                Command::Release(release) => pgark_agent::release(global, &environment, &release).await,
            }
        });
        // Nothing that still hangs, such as a dead network file system, may hold the exit back.
        runtime.shutdown_background();
        outcome
    })
}
