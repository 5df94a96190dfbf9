//! `pgark-restore`: everything that reads the repository. See `docs/runbook.md`.

use std::ffi::OsString;

use anyhow::Context;
use clap::{Parser, Subcommand};
use pgark_command::{Environment, ExitPolicy, GlobalOptions, Overrides, Program, notify_about, run, start_logging};
use pgark_restore::{
    BaseArguments, DrillArguments, ListArguments, ShowArguments, VerifyArguments, WalArguments, judge,
};
use tracing::Level;

/// List what is stored, and restore a PostgreSQL cluster to any point in time
#[derive(Parser)]
#[command(name = "pgark-restore", version)]
struct Arguments {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List backups, archived WAL and its gaps
    List(ListArguments),
    /// Show everything about one backup
    Show(ShowArguments),
    /// Restore a cluster and configure its recovery
    Base(Box<BaseArguments>),
    /// Read what is stored, and report everything that is wrong with it
    ///
    /// Exits with 4 when something is damaged or missing, and with 1 when something could not be read.
    Verify(VerifyArguments),
    /// Prove a backup: restore it, start PostgreSQL on it, check everything, remove it
    ///
    /// The server has no listening port, archives nothing and takes no setting from the backup. Exits with 1 when a check
    /// has failed, with 3 when the target cannot be reached, and with 4 when stored data is damaged.
    Drill(Box<DrillArguments>),
    /// Fetch one WAL segment or history file; for restore_command
    ///
    /// Exits with 0 when the file is in its place, with 1 when it is proven not to be in the archive, and with 200
    /// when neither is known: then PostgreSQL stops instead of ending recovery early.
    Wal(WalArguments),
}

fn main() -> std::process::ExitCode {
    let policy = policy(std::env::args_os().skip(1));
    run(Program { name: "pgark-restore", policy, judge }, || {
        let arguments = Arguments::try_parse()?;
        let environment = Environment::of_process();
        let is_fetch = matches!(arguments.command, Command::Wal(_));
        let usual = if is_fetch { Level::WARN } else { Level::INFO };
        start_logging(&arguments.global, usual, &environment);
        let global = &arguments.global;
        let configuration = global.configuration(&environment, &Overrides::none()).context("read the configuration")?;
        match &arguments.command {
            Command::Verify(_) => notify_about("verify", &configuration),
            Command::Drill(_) => notify_about("drill", &configuration),
            _ => {}
        }
        // A fetch is started for every segment, so it starts no more threads than it needs.
        let mut builder = match is_fetch {
            true => tokio::runtime::Builder::new_current_thread(),
            false => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = builder.enable_all().build().context("start the runtime")?;
        let outcome = runtime.block_on(async {
            match &arguments.command {
                Command::List(list) => pgark_restore::list(global, &environment, &configuration, list).await,
                Command::Show(show) => pgark_restore::show(global, &environment, &configuration, show).await,
                Command::Base(base) => pgark_restore::base(global, &environment, &configuration, base).await,
                Command::Verify(verify) => pgark_restore::verify(global, &environment, &configuration, verify).await,
                Command::Drill(drill) => pgark_restore::drill(global, &environment, &configuration, drill).await,
                Command::Wal(wal) => pgark_restore::wal(global, &environment, &configuration, wal).await,
            }
        });
        // Nothing that still hangs, such as a dead network file system, may hold the exit back.
        runtime.shutdown_background();
        outcome
    })
}

/// Who reads the exit code has to be known before the arguments are understood: wrong usage of `wal` must not look like
/// the end of WAL. A standby is the exception: only an ordinary code leaves it alive.
fn policy(arguments: impl Iterator<Item = OsString>) -> ExitPolicy {
    let arguments: Vec<OsString> = arguments.collect();
    let takes_value = |option: &OsString| option == "--config" || option == "--repository" || option == "--log-format";
    let mut skip = false;
    let command = arguments.iter().find(|argument| {
        let is_value = std::mem::replace(&mut skip, takes_value(argument));
        !is_value && !argument.as_encoded_bytes().starts_with(b"-")
    });
    let is_standby = arguments.iter().any(|argument| argument == "--standby");
    if command.is_some_and(|command| command == "wal") && !is_standby {
        ExitPolicy::RestoreCommand
    } else {
        ExitPolicy::Ordinary
    }
}
