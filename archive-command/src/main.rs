//! `pgark-archive-command %p`: ships one file of `pg_wal` to the repositories. See `docs/configuration.md`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use pgark_command::{
    Environment, ExitCode, ExitPolicy, GlobalOptions, Overrides, Program, Verdict, judge_repository, run, start_logging,
};
use tracing::Level;

/// Ship one WAL segment or history file to the repositories
///
/// PostgreSQL runs it: archive_command = 'pgark-archive-command %p'. It exits with 0 only when the file is on stable
/// storage in every repository. A file that is there already with the same content is a success; one with other
/// content is a failure and stays as it is.
#[derive(Parser)]
#[command(name = "pgark-archive-command", version)]
struct Arguments {
    #[command(flatten)]
    global: GlobalOptions,

    /// The file, as PostgreSQL gives it for %p
    #[arg(value_name = "%p")]
    file: PathBuf,
}

fn main() -> std::process::ExitCode {
    let program = Program { name: "pgark-archive-command", policy: ExitPolicy::Ordinary, judge };
    run(program, || {
        let arguments = Arguments::try_parse()?;
        let environment = Environment::of_process();
        start_logging(&arguments.global, Level::WARN, &environment);
        let configuration =
            arguments.global.configuration(&environment, &Overrides::none()).context("read the configuration")?;
        let repositories = arguments.global.repositories(&environment, &configuration)?;
        pgark_archive_command::archive(&arguments.file, &configuration, &repositories)
            .with_context(|| format!("archive {}", arguments.file.display()))?;
        Ok(ExitCode::Done)
    })
}

fn judge(error: &(dyn std::error::Error + 'static)) -> Option<Verdict> {
    judge_repository(error)
}
