//! `pgark-restore verify` beside what nothing can do without: `cat` of the stored bytes for the quick mode, `zstd -t` of
//! them for the full one, which checks every file and every page besides.
//!
//! `make bench-verify` runs it. `SCALE` is pgbench's scale (150 gives a cluster of about 2.3 GB), `ROUNDS` how often each
//! variant runs. The stored files are in the page cache, so that the tools are compared and not the disk.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod measure;
mod release_programs;

use std::path::Path;
use std::process::Command;

use harness::{PostgresServer, from_environment};
use measure::{Table, measure};
use release_programs::ReleasePrograms;

fn main() {
    // `cargo test --benches` calls it too; the figures of a build without optimisation would mean nothing.
    if cfg!(debug_assertions) {
        println!("this is a build without optimisation: use make bench-verify");
        return;
    }
    let (scale, rounds): (u32, usize) = (from_environment("SCALE", 150), from_environment("ROUNDS", 5));
    for (checksums, full) in [(true, "full, with page checksums"), (false, "full, without page checksums")] {
        let bench = Bench::new(scale, checksums);
        let mut quick = Table::new("quick: the stored bytes", "cat");
        let mut whole = Table::new(full, "zstd -t");
        for _ in 0..rounds {
            quick.add("cat", measure(&mut bench.of_stored("cat", &[]), None, Path::new("")));
            quick.add("verify --quick", measure(&mut bench.pgark(&["verify", "--quick"]), None, Path::new("")));
            whole.add("zstd -t", measure(&mut bench.of_stored("zstd", &["-tq"]), None, Path::new("")));
            whole.add("verify", measure(&mut bench.pgark(&["verify"]), None, Path::new("")));
        }
        quick.print();
        whole.print();
    }
}

/// A repository with one backup.
struct Bench(ReleasePrograms);

impl Bench {
    fn new(scale: u32, checksums: bool) -> Self {
        let server = PostgresServer::builder().data_checksums(checksums).setting("autovacuum", "off").start();
        println!(
            "\nbuilding a cluster of pgbench scale {scale}, {} checksums",
            if checksums { "with" } else { "without" }
        );
        server.init_pgbench(scale);
        let bench = Self(ReleasePrograms::new("bench-verify", &server, "archive_wait = '0s'\n"));
        let backup = bench.0.command("pgark-agent", &["backup"]).status().expect("pgark-agent starts");
        assert!(backup.success(), "the backup failed");
        bench
    }

    fn pgark(&self, arguments: &[&str]) -> Command {
        self.0.command("pgark-restore", arguments)
    }

    /// A tool over everything that the backup has stored with zstd.
    fn of_stored(&self, tool: &str, arguments: &[&str]) -> Command {
        let found = Command::new("find").arg(self.0.dir().join("repository")).args(["-name", "*.zst"]).output();
        let found = String::from_utf8(found.expect("find runs").stdout).expect("keys are ASCII");
        let mut command = Command::new(tool);
        command.args(arguments).args(found.lines());
        command
    }
}
