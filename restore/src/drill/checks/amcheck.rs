//! `pg_amcheck`: the structure of tables, and of B-tree indexes against each other and their tables.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::super::server::Server;
use super::{Check, Faults};

const PAUSE: Duration = Duration::from_millis(50);
/// What is read of its report; a ruined table has a line for every row.
const REPORT_LIMIT: u64 = 1 << 20;

pub(super) async fn run(server: &Server, program: &Path, jobs: usize) -> anyhow::Result<Check> {
    let began = Instant::now();
    let mut report = tempfile().context("create a file for the report of pg_amcheck")?;
    let output = || report.try_clone().context("open the report of pg_amcheck");
    let mut command = Command::new(program);
    command.args(["--all", "--install-missing", "--maintenance-db=template1", "--jobs"]).arg(jobs.to_string());
    // No trigger of the original may act when the extension is installed.
    command.env("PGOPTIONS", "-c session_replication_role=replica -c statement_timeout=0");
    command.envs(server.connection_variables()).stdin(Stdio::null()).stdout(output()?).stderr(output()?);
    let status = Running(command.spawn().context("start pg_amcheck")?).wait().await?;
    report.rewind().context("read the report of pg_amcheck")?;
    let mut text = Vec::new();
    report.take(REPORT_LIMIT).read_to_end(&mut text).context("read the report of pg_amcheck")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut faults = Faults::default();
    if !status.success() {
        paragraphs(&text).into_iter().for_each(|fault| faults.add(fault));
        if faults.count == 0 {
            faults.add(format!("pg_amcheck ended with {status} and said nothing"));
        }
    }
    Ok(Check::done("amcheck", began, "pg_amcheck of all databases".to_owned(), faults))
}

/// A file without a name.
fn tempfile() -> std::io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("pg_amcheck", flags)?.into())
}

/// It says where on one line, and what is wrong on the lines below, further in.
fn paragraphs(text: &str) -> Vec<String> {
    let mut faults: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.contains("warning: ")) {
        match (line.starts_with(' '), faults.last_mut()) {
            (true, Some(fault)) => {
                fault.push(' ');
                fault.push_str(line.trim());
            }
            _ => faults.push(line.trim_start_matches("pg_amcheck: ").to_owned()),
        }
    }
    faults
}

/// Ends with the drill.
struct Running(Child);

impl Running {
    async fn wait(mut self) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait().context("wait for pg_amcheck")? {
                return Ok(status);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where it has ended there is nothing to kill.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_line_with_what_is_further_in() {
        let text = "btree index \"postgres.public.t_pkey\":\n    ERROR:  item order invariant violated\n    \
                    DETAIL:  Lower index tid=(1,2)\nheap table \"postgres.public.t\", block 0, offset 1:\n    xmin bad\n";
        assert_eq!(
            paragraphs(text),
            [
                "btree index \"postgres.public.t_pkey\": ERROR:  item order invariant violated DETAIL:  Lower index \
                 tid=(1,2)",
                "heap table \"postgres.public.t\", block 0, offset 1: xmin bad"
            ]
        );
    }
}
