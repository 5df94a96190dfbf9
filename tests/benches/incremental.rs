//! Incremental backups of PostgreSQL 17 and 18 beside full ones: a hundredth of the pages changed, nothing changed, and
//! the restore of a chain of seven beside that of a full backup.
//!
//! `make bench-incremental` runs it. `SCALE` is pgbench's scale (200 gives a cluster of about 3 GB), `ROUNDS` how often
//! each restore runs. `MAJORS` names other versions, like `18`.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod measure;
mod release_programs;

use std::path::Path;

use harness::{PostgresServer, bash, from_environment};
use measure::{Measurement, Table, measure};
use release_programs::ReleasePrograms;

/// Incremental backups on the full one.
const CHAIN: usize = 6;

fn main() {
    // `cargo test --benches` calls it too; the figures of a build without optimisation would mean nothing.
    if cfg!(debug_assertions) {
        println!("this is a build without optimisation: use make bench-incremental");
        return;
    }
    let majors: String = from_environment("MAJORS", "17 18".to_owned());
    for major in majors.split_whitespace() {
        Bench::new(major.parse().expect("MAJORS are numbers"), from_environment("SCALE", 200)).run();
    }
}

struct Bench {
    server: PostgresServer,
    programs: ReleasePrograms,
}

impl Bench {
    fn new(major: u32, scale: u32) -> Self {
        println!("\n## PostgreSQL {major}: building a cluster of pgbench scale {scale}");
        let server = PostgresServer::builder().major(major).data_checksums(true).setting("autovacuum", "off");
        let server = server.setting("summarize_wal", "on").setting("max_wal_size", "16GB").start();
        server.init_pgbench(scale);
        server.psql("CHECKPOINT");
        let programs = ReleasePrograms::new("bench-incremental", &server);
        Self { server, programs }
    }

    fn run(&self) {
        let mut backups = Table::new("backups", "full");
        backups.add("full", self.backup("--full"));
        for round in 1..=CHAIN {
            self.change_a_hundredth(round);
            backups.add("1 % of the pages changed", self.backup("--incremental"));
        }
        let last = self.newest_backup();
        println!("what changed, as zstd alone stores it: {:.1} MB", self.changed_bytes(&last) as f64 / 1e6);
        for _ in 0..3 {
            backups.add("nothing changed", self.backup("--incremental"));
        }
        backups.print();
        let full = self.backups().first().cloned().expect("there is a full backup");
        let mut restores = Table::new("restores", "full");
        for _ in 0..from_environment("ROUNDS", 3) {
            restores.add("full", self.restore(&full));
            restores.add("chain of 7", self.restore(&last));
        }
        restores.print();
    }

    /// A row on every hundredth page of the largest table: another one each time, since what was updated has moved away.
    fn change_a_hundredth(&self, round: usize) {
        self.server.psql(&format!(
            "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE ctid = ANY (ARRAY( \
             SELECT format('(%s,{round})', page)::tid FROM generate_series(0, \
             pg_relation_size('pgbench_accounts') / 8192 - 1, 100) page))"
        ));
    }

    fn backup(&self, kind: &str) -> Measurement {
        let before = self.backups();
        let mut command = self.programs.command("pgark-agent", &["backup", kind]);
        let mut measured = measure(&mut command, Some(self.server.pid()), Path::new(""));
        let id = self.backups().into_iter().find(|id| !before.contains(id)).expect("the backup is stored");
        let script = "du -sb \"$(find . -type d -name \"$ID\")\" | cut -f1";
        let bytes = bash(&self.programs.dir().join("repository"), script).env("ID", id).succeed().stdout;
        measured.stored_bytes = bytes.trim().parse().expect("du prints a number");
        measured
    }

    fn restore(&self, id: &str) -> Measurement {
        let to = self.programs.dir().join("restored");
        let arguments = ["base", "--target-immediate", "--backup", id, "--to"];
        let mut command = self.programs.command("pgark-restore", &arguments);
        let measured = measure(command.arg(&to), None, Path::new(""));
        std::fs::remove_dir_all(&to).expect("the restored cluster can be removed");
        measured
    }

    /// The blocks of the incremental files of a backup, compressed at the same level.
    fn changed_bytes(&self, id: &str) -> u64 {
        let script = "mkdir -p /tmp/pgark-bench-$$ && cd /tmp/pgark-bench-$$ && \
                      for part in $(find \"$REPO\" -path \"*$ID/parts/*\"); do zstd -dc \"$part\" | tar -x; done; \
                      find . -name 'INCREMENTAL.*' -size +8k -exec cat {} + | zstd -3 | wc -c; rm -r /tmp/pgark-bench-$$";
        let counted = bash(self.programs.dir().path(), script)
            .env("REPO", self.programs.dir().join("repository"))
            .env("ID", id)
            .succeed();
        counted.stdout.trim().parse().expect("wc prints a number")
    }

    /// The ids of all backups, oldest first.
    fn backups(&self) -> Vec<String> {
        let script = "find . -path '*/backups/*' -name backup.json | sed 's|.*/backups/||; s|/.*||' | sort";
        bash(&self.programs.dir().join("repository"), script).succeed().stdout.lines().map(str::to_owned).collect()
    }

    fn newest_backup(&self) -> String {
        self.backups().pop().expect("there is a backup")
    }
}
