//! Incremental backups beside full ones and beside those of pgBackRest, which finds the changed blocks by reading
//! everything on the host of the database: a hundredth of the pages changed, nothing changed, and the restore of a chain
//! of seven, and its consolidation, beside the restore of a full backup.
//!
//! While a tool takes a backup, the server archives with that tool, and both wait until the WAL of the backup is there.
//! This belongs to what is measured.
//!
//! `make bench-incremental` runs it. `SCALE` is pgbench's scale and `TABLES` the number of small tables beside its own (150
//! and 2000 give a cluster of 3 GB in 13,000 files; without small tables there is nothing but pgbench), `ROUNDS` how often
//! each restore runs. `MAJORS` names other versions, like `18`; `PGBACKREST` another program than the one on the path.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod cluster;
mod measure;
mod pgbackrest;
mod release_programs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use cluster::create_small_tables;
use harness::{PostgresServer, bash, from_environment, wait_until};
use measure::{Measurement, Table, measure};
use pgbackrest::{PgBackRest, shell_command};
use release_programs::ReleasePrograms;

/// Incremental backups on the full one.
const CHAIN: u32 = 6;
/// Backups of a cluster in which nothing has changed, on top of those.
const UNCHANGED: u32 = 12;
/// The level that both tools compress with; it is pgark's default.
const LEVEL: u32 = 3;

fn main() {
    // `cargo test --benches` calls it too; the figures of a build without optimisation would mean nothing.
    if cfg!(debug_assertions) {
        println!("this is a build without optimisation: use make bench-incremental");
        return;
    }
    let majors: String = from_environment("MAJORS", "15 17 18".to_owned());
    for major in majors.split_whitespace() {
        let (scale, tables) = (from_environment("SCALE", 150), from_environment("TABLES", 2000));
        Bench::new(major.parse().expect("MAJORS are numbers"), scale, tables).run();
    }
}

/// 16 kB for the row `n`, which PostgreSQL keeps outside of the table.
const RANDOM_CONTENT: &str =
    "(SELECT decode(string_agg(md5(random()::text || n || m), ''), 'hex') FROM generate_series(1, 1000) m)";

struct Bench {
    server: PostgresServer,
    /// How many small tables there are; with them, there are two further large ones.
    tables: u32,
    programs: ReleasePrograms,
    peer: Option<Peer>,
}

struct Peer {
    program: PgBackRest,
    repository: PathBuf,
}

impl Bench {
    fn new(major: u32, scale: u32, tables: u32) -> Self {
        println!("\n## PostgreSQL {major}: building a cluster of pgbench scale {scale} and {tables} small tables");
        let server = PostgresServer::builder().major(major).data_checksums(true).setting("autovacuum", "off");
        let server = if major < 17 { server } else { server.setting("summarize_wal", "on") };
        let server = server.setting("archive_mode", "on").setting("archive_command", "true");
        let server = server.setting("max_wal_size", "16GB").start();
        server.init_pgbench(scale);
        if tables > 0 {
            create_further_tables(&server, tables);
        }
        server.psql("CHECKPOINT");
        // Before 17 a full backup is prepared for others only where they are wanted.
        let programs = ReleasePrograms::new("bench-incremental", &server, "incremental = 'auto'\n");
        let peer = Peer::new(programs.dir().create_dir("pgbackrest"), &server);
        Self { server, tables, programs, peer }
    }

    fn run(&self) {
        let mut backups = Table::new("backups", "full");
        backups.add("full", self.backup("--full", 0.0));
        if self.peer.is_some() {
            backups.add("full, pgBackRest", self.backup_of_peer("full", 0.0));
        }
        for round in 1..=CHAIN {
            self.change_a_hundredth(round);
            let names = ("1 % of the pages changed", "1 % of the pages changed, pgBackRest");
            self.both(&mut backups, names, round, CHAIN);
        }
        let last = self.newest_backup();
        println!("what changed, as zstd alone stores it: {:.1} MB", self.changed_bytes(&last) as f64 / 1e6);
        for round in 1..=UNCHANGED {
            self.both(&mut backups, ("nothing changed", "nothing changed, pgBackRest"), round, UNCHANGED);
        }
        backups.print();
        let full = self.backups().first().cloned().expect("there is a full backup");
        let mut restores = Table::new("restores", "full");
        for _ in 0..from_environment("ROUNDS", 3) {
            restores.add("full", self.restore(&full));
            restores.add("chain of 7", self.restore(&last));
        }
        restores.add("full backup made of that chain", self.consolidate(&last));
        restores.print();
    }

    /// One after the other, in turn: the first one pays for the checkpoint of what changed.
    ///
    /// pgBackRest waits for the next full second of the clock on its way. So that it is not chance what this takes, the
    /// rounds begin at different times of a second, evenly spread.
    fn both(&self, backups: &mut Table, (ours, theirs): (&'static str, &'static str), round: u32, rounds: u32) {
        let phase = f64::from(round - 1) / f64::from(rounds);
        let is_first = round % 2 == 1;
        if is_first {
            backups.add(ours, self.backup("--incremental", phase));
        }
        if self.peer.is_some() {
            backups.add(theirs, self.backup_of_peer("incr", phase));
        }
        if !is_first {
            backups.add(ours, self.backup("--incremental", phase));
        }
    }

    /// A row on every hundredth page of the large tables: another one each time, since what was updated has moved away. Of
    /// the table whose content lies outside of it, a hundredth of the rows gets another content.
    fn change_a_hundredth(&self, round: u32) {
        let update = |table: &str, change: &str| {
            self.server.psql(&format!(
                "UPDATE {table} SET {change} WHERE ctid = ANY (ARRAY(SELECT format('(%s,{round})', page)::tid \
                 FROM generate_series(0, pg_relation_size('{table}') / 8192 - 1, 100) page))"
            ));
        };
        update("pgbench_accounts", "abalance = abalance + 1");
        if self.tables > 0 {
            update("texts", "n = n + 1");
            self.server.psql(&format!("UPDATE random SET content = {RANDOM_CONTENT} WHERE n % 100 = {round}"));
        }
    }

    fn backup(&self, kind: &str, phase: f64) -> Measurement {
        self.archive_with(&self.programs.command("pgark-archive-command", &[]));
        let mut command = self.programs.command("pgark-agent", &["backup", kind]);
        self.measure(&mut command, &self.programs.dir().join("repository"), phase)
    }

    fn backup_of_peer(&self, kind: &str, phase: f64) -> Measurement {
        let peer = self.peer.as_ref().expect("asked for only if it is there");
        self.archive_with(&peer.program.command(&peer.repository, self.server.data_dir(), "archive-push"));
        let mut command = peer.program.backup(&peer.repository, &self.server, kind, LEVEL);
        self.measure(command.arg("--repo1-block"), &peer.repository, phase)
    }

    /// What is finished goes to nobody, so that nothing but the WAL of the next backup is archived with the command.
    fn archive_with(&self, command: &Command) {
        let archive_with = |command: &str| {
            self.server.psql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
            self.server.psql("SELECT pg_reload_conf()");
        };
        self.server.psql("SELECT pg_switch_wal()");
        wait_until("all WAL to be archived", Duration::from_secs(60), || {
            let waiting = self.server.psql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'");
            (waiting.trim() == "0").then_some(())
        });
        archive_with(&format!("{} %p", shell_command(command)));
    }

    /// What is stored is what the repository has more. Begins when that part of a second has passed, a second later at
    /// least: nobody takes two backups within one, in which the second would wait, since its id tells the time.
    fn measure(&self, command: &mut Command, repository: &Path, phase: f64) -> Measurement {
        std::thread::sleep(Duration::from_secs(1));
        let stored = || {
            let bytes = bash(repository, "du -sb . | cut -f1").succeed().stdout;
            bytes.trim().parse::<u64>().expect("du prints a number")
        };
        let before = stored();
        std::thread::sleep(until_phase(SystemTime::now(), phase));
        let mut measured = measure(command, Some(self.server.pid()), Path::new(""));
        measured.stored_bytes = stored() - before;
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

    fn consolidate(&self, id: &str) -> Measurement {
        let mut command = self.programs.command("pgark-agent", &["consolidate", id]);
        self.measure(&mut command, &self.programs.dir().join("repository"), 0.0)
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

/// Further tables: small ones, a large one whose content compresses badly, and a large one of short rows.
fn create_further_tables(server: &PostgresServer, small: u32) {
    create_small_tables(server, small);
    server.psql(&format!(
        "CREATE TABLE random AS SELECT n, {RANDOM_CONTENT} AS content FROM generate_series(1, 14000) n"
    ));
    server.psql("CREATE TABLE texts AS SELECT n, md5(n::text) AS content FROM generate_series(1, 3500000) n");
    server.psql("VACUUM");
}

/// How long it is until that part of a second has passed.
fn until_phase(now: SystemTime, phase: f64) -> Duration {
    let passed = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Duration::from_secs_f64((phase - f64::from(passed) / 1e9).rem_euclid(1.0))
}

impl Peer {
    /// `repo-block` is new in 2.46.
    fn new(repository: PathBuf, server: &PostgresServer) -> Option<Self> {
        let program = PgBackRest::find((2, 46))?;
        program.create(&repository, server);
        Some(Self { program, repository })
    }
}
