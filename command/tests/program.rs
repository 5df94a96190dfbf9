//! The top of a program as the operating system sees it: exit codes, lines on standard error, closed pipes.
//!
//! Each check starts this same executable again with a scenario's name in a variable. It has no test harness of its
//! own, because the scenario's exit code has to be the process's.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::error::Error;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use anyhow::Context;
use clap::Parser;
use pgark_command::{
    Environment, ExitCode, ExitPolicy, Failure, GlobalOptions, LogFormat, Overrides, Program, Progress,
    ProgressDisplay, Report, Verdict, run, start_logging,
};

const SCENARIO: &str = "PGARK_TEST_SCENARIO";

fn main() -> std::process::ExitCode {
    match std::env::var(SCENARIO) {
        Ok(scenario) => child(&scenario),
        Err(_) => {
            check_errors();
            check_restore_command();
            check_panics();
            check_usage();
            check_configuration();
            check_json();
            check_closed_pipes();
            check_progress();

            std::process::ExitCode::SUCCESS
        }
    }
}

#[derive(Parser)]
#[command(name = "pgark-test", version)]
struct Options {
    #[command(flatten)]
    global: GlobalOptions,
}

fn judge(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let kind = error.downcast_ref::<std::io::Error>()?.kind();
    (kind == std::io::ErrorKind::InvalidData).then(|| Verdict::new(ExitCode::Damaged).with_hint("run verify"))
}

fn child(scenario: &str) -> std::process::ExitCode {
    let (policy, scenario) = match scenario.strip_prefix("wal ") {
        Some(scenario) => (ExitPolicy::RestoreCommand, scenario),
        None => (ExitPolicy::Ordinary, scenario),
    };
    let program = Program { name: "pgark-test", policy, judge };
    run(program, || {
        let options = Options::try_parse()?.global;
        let environment = Environment::of_process();
        start_logging(&options, tracing::Level::INFO, &environment);
        match scenario {
            "done" => Ok(ExitCode::Done),
            "source damaged" => Ok(ExitCode::SourceDamaged),
            "absent" => Ok(ExitCode::NotInArchive),
            "failed" => Err(anyhow::anyhow!("the connection was closed")).context("take the backup"),
            "unreachable" => {
                Err(Failure::new(ExitCode::Unreachable, "no backup before the target").with_hint("choose later").into())
            }
            "damaged" => Err(std::io::Error::other("x")).or_else(|_| {
                let damaged = std::io::Error::from(std::io::ErrorKind::InvalidData);
                Err(damaged).context("read the part")
            }),
            "panic" => panic!("two\nlines"),
            "panic in a thread" => {
                let joined = std::thread::spawn(|| panic!("in the thread")).join();
                joined.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
                Ok(ExitCode::Done)
            }
            "configuration" => {
                let configuration =
                    options.configuration(&environment, &Overrides::none()).context("read the configuration")?;
                writeln!(Report::to_stdout(), "{}", configuration.cluster.name)?;
                Ok(ExitCode::Done)
            }
            "much output" => {
                let mut report = Report::to_stdout();
                for line in 0..100_000 {
                    writeln!(report, "line {line}")?;
                }
                report.flush()?;
                // What a command's code says about its work is not changed by a reader that left.
                Ok(ExitCode::SourceDamaged)
            }
            "log much" => {
                for line in 0..100_000 {
                    tracing::info!(target: "pgark_test", line, "something happened");
                }
                Ok(ExitCode::Done)
            }
            "progress" => {
                let progress = Progress::start("backup", ProgressDisplay::detect(&options));
                progress.set_total(100);
                progress.set(50);
                tracing::info!(target: "pgark_test", "between");
                progress.finish();
                Ok(ExitCode::Done)
            }
            other => Err(anyhow::anyhow!("there is no scenario {other}")),
        }
    })
}

fn command(scenario: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).env_clear().env(SCENARIO, scenario).stdin(Stdio::null());
    command
}

/// The exit code and standard error of a scenario.
fn outcome(scenario: &str, arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = command(scenario, arguments).output().unwrap();
    (status.code().expect("no scenario dies by a signal"), String::from_utf8(stderr).unwrap())
}

fn check_errors() {
    assert_eq!(outcome("done", &[]), (0, String::new()));
    assert_eq!(outcome("source damaged", &[]), (5, String::new()));
    assert_eq!(
        outcome("failed", &[]),
        (1, "pgark-test: error: take the backup: the connection was closed\n".to_owned())
    );
    assert_eq!(
        outcome("unreachable", &[]),
        (3, "pgark-test: error: no backup before the target\nhint: choose later\n".to_owned())
    );
    let (code, text) = outcome("damaged", &["--quiet"]);
    assert_eq!(code, 4);
    assert!(text.starts_with("pgark-test: error: read the part: ") && text.ends_with("\nhint: run verify\n"), "{text}");
}

/// Promise 6: whatever goes wrong except a proven absence must not look like the end of WAL.
fn check_restore_command() {
    assert_eq!(outcome("wal done", &[]).0, 0);
    assert_eq!(outcome("wal absent", &[]).0, 1);
    for scenario in ["wal failed", "wal unreachable", "wal damaged", "wal panic", "wal panic in a thread"] {
        assert_eq!(outcome(scenario, &[]).0, 200, "{scenario}");
    }
    assert_eq!(outcome("wal done", &["--wrong-option"]).0, 200);
    assert_eq!(outcome("wal configuration", &["--config", "/nonexistent/c.toml"]).0, 200);
}

fn check_panics() {
    let (code, text) = outcome("panic", &[]);
    assert_eq!(code, 101);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("pgark-test: error: internal error at ") && text.contains("two lines"), "{text}");
    let (code, text) = outcome("panic in a thread", &[]);
    assert_eq!(code, 1);
    assert!(text.contains("in the thread") && text.contains("error: a thread panicked"), "{text}");
}

fn check_usage() {
    let (code, text) = outcome("done", &["--wrong-option"]);
    assert_eq!(code, 2);
    assert!(text.contains("--wrong-option"), "{text}");
    let help = command("failed", &["--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    for option in ["--config <FILE>", "--repository <NAME>", "--verbose", "--quiet", "--log-format <FORMAT>"] {
        assert!(text.contains(option), "{option} is missing from {text}");
    }
}

fn check_configuration() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    std::fs::write(path, "[cluster]\nnmae = 1\n[[repository]]\nname = \"x\"\nurl = \"s3:/b\"\n").unwrap();
    let (code, text) = outcome("configuration", &["--config", path]);
    assert_eq!(code, 2);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(
        lines[0],
        format!(
            "pgark-test: error: read the configuration: {path}:2: unknown key `nmae` in [cluster], did you mean `name`?"
        )
    );
    assert!(lines[1].starts_with(&format!("pgark-test: error: {path}:5: `url` in repository `x`: ")), "{text}");

    std::fs::write(path, "[[repository]]\nname = \"x\"\nurl = \"file:///x\"\n").unwrap();
    let output =
        command("configuration", &[]).env("PGARK_CONFIG", path).env("PGARK_CLUSTER_NAME", "of-variable").output();
    assert_eq!(output.unwrap().stdout, b"of-variable\n");
}

fn check_json() {
    let format = <LogFormat as clap::ValueEnum>::to_possible_value(&LogFormat::Json).unwrap();
    let (code, text) = outcome("unreachable", &["--log-format", format.get_name()]);
    assert_eq!(code, 3);
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert_eq!(line["message"], "no backup before the target");
    assert_eq!(line["hint"], "choose later");
    assert_eq!(line["exit_code"], 3);
    let (code, text) = outcome("panic", &["--log-format=json"]);
    assert_eq!(code, 101);
    assert!(serde_json::from_str::<serde_json::Value>(text.trim_end()).is_ok(), "{text}");
}

fn check_closed_pipes() {
    let mut child = command("much output", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Reads a little and goes away, as `head -1` does.
    let mut first = [0; 7];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((&first, output.status.code()), (b"line 0\n", Some(5)));
    assert_eq!(output.stderr, b"");

    let mut child = command("log much", &[]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn check_progress() {
    // Not a terminal: no bar, no colours, and no line before ten seconds are over.
    let (code, text) = outcome("progress", &[]);
    assert_eq!(code, 0);
    assert!(text.ends_with(" INFO between\n") && text.lines().count() == 1 && !text.contains('\u{1b}'), "{text}");
    assert_eq!(outcome("progress", &["-q"]), (0, String::new()));
}
