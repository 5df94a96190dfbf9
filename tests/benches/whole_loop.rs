//! Backup, restore and archiving beside other tools, in turn on the same cluster, as a table with ratios.
//!
//! `make bench` runs it. `SCALE` is pgbench's scale (150 gives a cluster of about 3 GB), `ROUNDS` how often each variant
//! runs. The table shows medians: these machines are noisy, so only ratios of one run mean anything.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod cluster;
mod measure;
mod pgbackrest;

use std::path::{Path, PathBuf};
use std::process::Command;

use cluster::create_small_tables;
use harness::{PostgresServer, TempDir, TestUser, from_environment};
use measure::{Measurement, Table, measure};
use pgbackrest::PgBackRest;

/// The level that every tool compresses with.
const LEVEL: u32 = 1;
const SEGMENTS: usize = 24;

fn main() {
    // `cargo test --benches` calls it too; the figures of a build without optimisation would mean nothing.
    if cfg!(debug_assertions) {
        println!("this is a build without optimisation: use make bench");
        return;
    }
    let scale: u32 = from_environment("SCALE", 150);
    let rounds: usize = from_environment("ROUNDS", 5);
    let bench = Bench::new(scale);
    bench.backups(rounds);
    bench.restores(rounds);
    bench.archive(rounds);
}

struct Bench {
    server: PostgresServer,
    dir: TempDir,
    programs: PathBuf,
    pgbackrest: Option<PgBackRest>,
}

impl Bench {
    fn new(scale: u32) -> Self {
        let mut server = PostgresServer::builder()
            .setting("shared_buffers", "1GB")
            .setting("max_wal_size", "4GB")
            .setting("checkpoint_timeout", "30min")
            .setting("autovacuum", "off")
            .setting("fsync", "on")
            .setting("archive_mode", "off")
            .start();
        println!("building a cluster of pgbench scale {scale}");
        server.init_pgbench(scale);
        let rows = u64::from(scale) * 500_000 / 150 / 2;
        server.psql(&format!(
            "CREATE TABLE poor AS SELECT n, string_agg(md5(random()::text || n || m), '') AS noise \
             FROM generate_series(1, {rows}) n, generate_series(1, 62) m WHERE n <= {rows} / 2 GROUP BY n"
        ));
        create_small_tables(&server, scale * 2000 / 150);
        server.psql("CHECKPOINT");
        server.wait_until_ready();
        let dir = TempDir::for_test_user("bench");
        let programs = std::env::var_os("PGARK_BENCH_PROGRAMS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"), PathBuf::from);
        let programs = programs.canonicalize().expect("the release programs are built by make bench");
        let bench = Self { server, dir, programs, pgbackrest: PgBackRest::find((2, 39)) };
        let size = bench.server.psql("SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database");
        println!("the databases have {}", size.trim());
        bench
    }

    fn config(&self, repository: &Path) -> PathBuf {
        self.dir.write(
            "config.toml",
            format!(
                "state_dir = '{}'\n[cluster]\nname = 'bench'\nconnection = '{}'\n[[repository]]\nname = 'local'\n\
                 url = 'file://{}'\n[compression]\nlevel = {LEVEL}\njobs = 2\n[restore]\njobs = 2\n",
                self.dir.join("state").display(),
                self.server.connection_string().replace('\'', "\""),
                repository.display(),
            ),
        )
    }

    fn pgark(&self, program: &str, repository: &Path) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("--config").arg(self.config(repository)).arg("--quiet");
        command
    }

    fn fresh(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        drop(std::fs::remove_dir_all(&path));
        self.dir.create_dir(name)
    }

    fn warm(&self) {
        let data_dir = self.server.data_dir().display();
        succeed(
            Command::new("sh").arg("-c").arg(format!("sync; find {data_dir} -type f -exec cat {{}} + > /dev/null")),
        );
    }

    fn backups(&self, rounds: usize) {
        let mut table = Table::new("full backup, local repository, zstd 1", "pg_basebackup client-zstd:1");
        let server = Some(self.server.pid());
        for round in 0..rounds {
            println!("backup round {} of {rounds}", round + 1);
            self.warm();
            let out = self.fresh("out-pgark");
            let mut backup = self.pgark("pgark-agent", &out);
            table.add("pgark", measure(backup.args(["backup", "--json"]), server, &out));
            for (name, compress) in [
                ("pg_basebackup client-zstd:1", "client-zstd:level=1"),
                ("pg_basebackup client-zstd:1,workers=2", "client-zstd:level=1,workers=2"),
            ] {
                self.warm();
                let out = self.fresh("out-basebackup");
                let mut backup = self.server.command("pg_basebackup");
                backup.args(["-c", "fast", "-Ft", "--compress", compress, "-D"]).arg(out.join("b"));
                table.add(name, measure(&mut backup, server, &out));
            }
            if let Some(pgbackrest) = &self.pgbackrest {
                self.warm();
                let out = self.fresh("out-pgbackrest");
                pgbackrest.create(&out, &self.server);
                let mut backup = pgbackrest.backup(&out, &self.server, "full", LEVEL);
                backup.arg("--no-archive-check");
                table.add("pgbackrest bundle, 2 processes", measure(&mut backup, server, &out));
            }
        }
        table.print();
    }

    fn restores(&self, rounds: usize) {
        let mut table = Table::new("restore, durable at the end", "zstd -dc | tar -x; sync");
        for round in 0..rounds {
            println!("restore round {} of {rounds}", round + 1);
            let (out, target) = (self.dir.join("out-pgark"), self.fresh("target"));
            self.settle(&out);
            let mut restore = self.pgark("pgark-restore", &out);
            restore.arg("base").args(["--target-immediate", "--to"]).arg(&target);
            table.add("pgark", measure(&mut restore, None, &target));

            let target = self.fresh("target");
            let base = self.dir.join("out-basebackup/b/base.tar.zst");
            self.settle(&base);
            let mut restore = Command::new("sh");
            restore.arg("-c").arg(format!(
                "zstd -dc {} | tar -x -C {t} && sync -f {t}",
                base.display(),
                t = target.display()
            ));
            table.add("zstd -dc | tar -x; sync", measure(&mut restore, None, &target));
            if let Some(pgbackrest) = &self.pgbackrest {
                let (out, target) = (self.dir.join("out-pgbackrest"), self.fresh("target"));
                self.settle(&out);
                let mut restore = pgbackrest.command(&out, &target, "restore");
                restore.arg(format!("--spool-path={}", self.dir.join("spool").display()));
                restore.args(["--process-max=2", "--type=immediate"]);
                table.add("pgbackrest bundle, 2 processes", measure(&mut restore, None, &target));
            }
        }
        table.print();
    }

    /// Reads what is going to be restored into the cache and lets earlier writes end.
    fn settle(&self, path: &Path) {
        succeed(
            Command::new("sh")
                .arg("-c")
                .arg(format!("sync; find {} -type f -exec cat {{}} + > /dev/null", path.display())),
        );
    }

    fn archive(&self, rounds: usize) {
        let segments = self.dir.create_dir("pg_wal");
        let mut names = Vec::new();
        for _ in 0..SEGMENTS {
            self.server.run("pgbench", &["-n", "-t", "3000", "-c", "4", "postgres"]);
            let name = self.server.psql("SELECT pg_walfile_name(pg_current_wal_lsn())").trim().to_owned();
            self.server.psql("SELECT pg_switch_wal()");
            std::fs::copy(self.server.data_dir().join("pg_wal").join(&name), segments.join(&name))
                .expect("copy a segment");
            names.push(name);
        }
        TestUser::get().own_all(&segments);
        let mut table = Table::new("archiving, for each of 24 segments", "zstd -1; sync FILE");
        for round in 0..rounds {
            println!("archive round {} of {rounds}", round + 1);
            let out = self.fresh("archive");
            self.settle(&segments);
            let calls = names.iter().map(|name| {
                let mut command = self.pgark("pgark-archive-command", &out);
                command.arg(segments.join(name));
                command
            });
            table.add("pgark-archive-command", total(calls.collect(), &out));
            let out = self.fresh("archive");
            let calls = names.iter().map(|name| {
                let mut command = Command::new("sh");
                command.arg("-c").arg(format!(
                    "zstd -1 -q {} -o {o} && sync {o}",
                    segments.join(name).display(),
                    o = out.join(name).display()
                ));
                command
            });
            table.add("zstd -1; sync FILE", total(calls.collect(), &out));
        }
        table.print();
    }
}

/// Runs the commands one after the other; wall and CPU time are those of one call.
fn total(commands: Vec<Command>, out: &Path) -> Measurement {
    let count = commands.len() as u32;
    let runs: Vec<Measurement> = commands.into_iter().map(|mut command| measure(&mut command, None, out)).collect();
    Measurement {
        wall: runs.iter().map(|run| run.wall).sum::<std::time::Duration>() / count,
        cpu: runs.iter().map(|run| run.cpu).sum::<std::time::Duration>() / count,
        peak_memory_bytes: runs.iter().map(|run| run.peak_memory_bytes).max().unwrap_or(0),
        stored_bytes: runs.last().map_or(0, |run| run.stored_bytes),
    }
}

fn succeed(command: &mut Command) {
    let outcome = command.output().expect("the command starts");
    assert!(outcome.status.success(), "{command:?}: {}", String::from_utf8_lossy(&outcome.stderr));
}
