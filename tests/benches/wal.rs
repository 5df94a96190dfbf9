//! WAL both ways: 64 segments that wait are archived, and 64 segments are replayed, beside other tools.
//!
//! `make bench-wal` runs it; `ROUNDS` is how often, and `PGBACKREST` another program than the one on the path. Ratios
//! within one run are all that counts. "30 ms" is an S3 server behind a proxy that lets every request wait so long. Both
//! work on the processors of what is measured, so their share is told, and beside it stands what they take for the objects
//! alone. A second table keeps them apart, as a store on another host would be: archiving has one processor, they another.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod measure;
#[allow(dead_code, reason = "backups are measured by other benchmarks")]
mod pgbackrest;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use harness::{
    Action, Fault, FaultProxy, PostgresServer, S3Server, TempDir, TestUser, Trigger, s3_repository, wait_until,
};
use measure::{Measurement, Table, measure, own_cpu};
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3Builder;
use pgbackrest::{PgBackRest, shell_command};

const SEGMENTS: usize = 64;
const DELAY: Duration = Duration::from_millis(30);
const REPLAY_LIMIT: Duration = Duration::from_secs(120);

fn main() {
    // `cargo test --benches` calls it too; the figures of a build without optimisation would mean nothing.
    if cfg!(debug_assertions) {
        println!("this is a build without optimisation: use make bench-wal");
        return;
    }
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let bench = Bench::new();
    bench.archive(rounds);
    bench.archive_beside_the_store(rounds);
    bench.replay(rounds);
}

/// A server that was stopped when segments of pgbench's WAL waited, and a backup of it from before them.
struct Bench {
    server: PostgresServer,
    dir: TempDir,
    programs: PathBuf,
    backup: PathBuf,
    /// All that are finished; of the last 64, each is full.
    segments: Vec<String>,
    s3: S3Server,
    proxy: FaultProxy,
    peer: Option<PgBackRest>,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::for_test_user("bench-wal");
        let mut server = PostgresServer::builder()
            .setting("shared_buffers", "512MB")
            .setting("max_wal_size", "8GB")
            .setting("checkpoint_timeout", "30min")
            // WAL is to be written fast; what is measured comes later.
            .setting("synchronous_commit", "off")
            .setting("archive_mode", "on")
            .setting("archive_command", "true")
            .setting("wal_keep_size", "16GB")
            .start();
        server.init_pgbench(20);
        let backup = dir.join("backup");
        server.run("pg_basebackup", &["-c", "fast", "-X", "none", "-D", backup.to_str().unwrap_or_default()]);
        server.alter_system("archive_command", "false");
        println!("writing {SEGMENTS} segments of WAL");
        let position = |server: &PostgresServer| -> u64 {
            let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
            server.psql(sql).trim().parse().unwrap_or(0)
        };
        let enough = position(&server) + ((SEGMENTS as u64 + 1) << 24);
        while position(&server) < enough {
            // Whole pages are logged after each checkpoint, as on a busy server.
            server.psql("CHECKPOINT");
            server.run("pgbench", &["-n", "-T", "5", "-c", "8", "postgres"]);
        }
        server.stop_immediate();
        let mut segments: Vec<String> = fs::read_dir(server.data_dir().join("pg_wal/archive_status"))
            .expect("the server's list of what is finished")
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.split_once('.')?.0.to_owned()))
            .filter(|name| name.len() == 24 && server.data_dir().join("pg_wal").join(name).exists())
            .collect();
        segments.sort();
        segments.dedup();
        let programs = std::env::var_os("PGARK_BENCH_PROGRAMS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"), PathBuf::from);
        let programs = programs.canonicalize().expect("the release programs are built by make bench-wal");
        let peer = PgBackRest::find((2, 0));
        let s3 = S3Server::start();
        let proxy = FaultProxy::to_port(s3.port());
        proxy.add(Fault::always(Trigger::RequestWith(" HTTP/1.1\r\n".to_owned()), Action::Delay(DELAY)));
        Self { server, dir, programs, backup, segments, s3, proxy, peer }
    }

    /// An empty local repository.
    fn local(&self) -> (PathBuf, String) {
        let path = self.fresh("repository");
        let section = format!("[[repository]]\nname = 'local'\nurl = 'file://{}'\n", path.display());
        (path, section)
    }

    /// A place in the S3 server, behind the proxy; each prefix is another one.
    fn slow_s3(&self, prefix: &str) -> String {
        self.s3_at(&self.proxy.endpoint(), prefix)
    }

    fn s3_at(&self, endpoint: &str, prefix: &str) -> String {
        s3_repository(&self.dir, "s3", endpoint, "backups", prefix, self.s3.keys())
    }

    fn config(&self, name: &str, repository: &str) -> PathBuf {
        let state = self.fresh(&format!("state-{name}"));
        let text = format!(
            "state_dir = '{}'\n[cluster]\nname = 'bench'\nconnection = 'host=/nowhere'\n[compression]\nlevel = 1\n\
             jobs = 2\n{repository}",
            state.display()
        );
        self.dir.write(&format!("{name}.toml"), text)
    }

    fn fresh(&self, name: &str) -> PathBuf {
        drop(fs::remove_dir_all(self.dir.join(name)));
        self.dir.create_dir(name)
    }

    fn waiting(&self) -> &[String] {
        &self.segments[self.segments.len() - SEGMENTS..]
    }

    /// Asks for one segment after the other, as the server's archiver does.
    fn ask_for_each(&self, segments: &[String], command: &str, out: &Path) -> Measurement {
        let status = self.server.data_dir().join("pg_wal/archive_status");
        drop(fs::remove_dir_all(&status));
        fs::create_dir(&status).expect("a list of what waits");
        for segment in segments {
            fs::write(status.join(format!("{segment}.ready")), "").expect("a segment that waits");
        }
        TestUser::get().own_all(&status);
        let data_dir = self.server.data_dir().display();
        let script = format!(
            "cd {data_dir} && for segment in {}; do {command} pg_wal/$segment || exit 1; \
             mv pg_wal/archive_status/$segment.ready pg_wal/archive_status/$segment.done; done",
            segments.join(" ")
        );
        succeed(Command::new("sh").arg("-c").arg(format!("sync; cat {data_dir}/pg_wal/0* > /dev/null")));
        measure(Command::new("sh").arg("-c").arg(script), None, out)
    }

    /// Archives what waits with the repository of `section`.
    fn archive_with(&self, program: &str, section: &str, out: &Path) -> Measurement {
        let command = format!("{program} --config {}", self.config("archive", section).display());
        self.ask_for_each(self.waiting(), &command, out)
    }

    fn s3_variants(&self) -> [(&'static str, String); 2] {
        [("pgark, S3", self.s3.endpoint()), ("pgark, S3, 30 ms", self.proxy.endpoint())]
    }

    fn archive(&self, rounds: usize) {
        let mut table = Table::new("archiving 64 segments that wait, zstd 1", "pgark, local");
        let program = self.programs.join("pgark-archive-command").display().to_string();
        for round in 0..rounds {
            println!("archive round {} of {rounds}", round + 1);
            let (out, section) = self.local();
            table.add("pgark, local", self.archive_with(&program, &section, &out));
            self.put(&objects(&out), &format!("only-{round}"));
            let (out, section) = self.local();
            let section = format!("{section}[archive]\nahead = 1\n");
            table.add("pgark, local, ahead = 1", self.archive_with(&program, &section, &out));
            let bucket = self.s3.bucket_dir("backups");
            for (number, (variant, endpoint)) in self.s3_variants().into_iter().enumerate() {
                let section = self.s3_at(&endpoint, &format!("round-{round}-{number}"));
                let shares = self.tell_shares(variant);
                table.add(variant, self.archive_with(&program, &section, &bucket));
                shares();
            }
            if let Some(peer) = &self.peer {
                let out = self.fresh("pgbackrest");
                let command = self.command_of_peer(peer, &out);
                table.add("pgBackRest, local, two processes", self.ask_for_each(self.waiting(), &command, &out));
            }
        }
        table.print();
    }

    /// Archives with one processor, locally and to a store that has another.
    fn archive_beside_the_store(&self, rounds: usize) {
        let [ours, of_store] = ["0", "1"];
        let own = std::process::id();
        let all = succeed(Command::new("taskset").args(["-cp", &own.to_string()]));
        let (_, all) = all.trim().rsplit_once(' ').expect("taskset ends with the processors");
        let move_store = |processors: &str| {
            for process in [self.s3.pid(), own] {
                succeed(Command::new("taskset").args(["-acp", processors, &process.to_string()]));
            }
        };
        move_store(of_store);
        let mut table = Table::new("archiving with one processor, the store on another", "pgark, local");
        let program = format!("taskset -c {ours} {}", self.programs.join("pgark-archive-command").display());
        for round in 0..rounds {
            println!("archive round {} of {rounds}, store apart", round + 1);
            let (out, section) = self.local();
            table.add("pgark, local", self.archive_with(&program, &section, &out));
            let bucket = self.s3.bucket_dir("backups");
            for (number, (variant, endpoint)) in self.s3_variants().into_iter().enumerate() {
                let section = self.s3_at(&endpoint, &format!("apart-{round}-{number}"));
                table.add(variant, self.archive_with(&program, &section, &bucket));
            }
        }
        move_store(all);
        table.print();
    }

    /// Says, when what it returns is called, what the S3 server and the proxy have taken of the processors since.
    fn tell_shares(&self, variant: &str) -> impl Fn() {
        let (server, own) = (self.s3.pid(), std::process::id());
        let before = [server, own].map(own_cpu);
        move || {
            let [server, proxy] = [own_cpu(server) - before[0], own_cpu(own) - before[1]].map(|cpu| cpu.as_millis());
            println!("{variant}: the S3 server took {server} ms of CPU, the proxy and the measuring {proxy} ms");
        }
    }

    /// What server and proxy allow: the same objects, put by eight at once.
    fn put(&self, objects: &[PathBuf], prefix: &str) {
        drop(rustls::crypto::ring::default_provider().install_default());
        let keys = self.s3.keys();
        let store = AmazonS3Builder::new()
            .with_bucket_name("backups")
            .with_region("us-east-1")
            .with_endpoint(self.proxy.endpoint())
            .with_allow_http(true)
            .with_access_key_id(&keys.access_key_id)
            .with_secret_access_key(&keys.secret_access_key)
            .build()
            .expect("the S3 server of the harness");
        let objects: Vec<(String, Vec<u8>)> = objects
            .iter()
            .map(|path| (format!("{prefix}/{}", path.display()), fs::read(path).expect("an object of the repository")))
            .collect();
        let shares = self.tell_shares("the objects alone, S3, 30 ms");
        let begun = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(stream::iter(objects).for_each_concurrent(8, async |(key, bytes)| {
            store.put(&key.into(), bytes.into()).await.map(drop).expect("the S3 server takes it");
        }));
        println!("the objects alone, S3, 30 ms: {} ms", begun.elapsed().as_millis());
        shares();
    }

    /// Asynchronous, with two processes; as the shell takes it.
    fn command_of_peer(&self, peer: &PgBackRest, repository: &Path) -> String {
        let spool = self.fresh("spool");
        let command = |name| peer.command(repository, self.server.data_dir(), name);
        succeed(TestUser::get().run(command("stanza-create").arg("--no-online")));
        let mut push = command("archive-push");
        push.args(["--archive-async", "--process-max=2", "--compress-type=zst", "--compress-level=1"]);
        push.arg(format!("--spool-path={}", spool.display()));
        shell_command(&push)
    }

    /// Replays all WAL in a copy of the backup; what counts is the server's own time for it.
    fn replay_with(&self, restore_command: &str) -> Duration {
        let target = self.dir.join("restored");
        drop(fs::remove_dir_all(&target));
        succeed(Command::new("cp").arg("-a").arg(&self.backup).arg(&target));
        fs::write(target.join("recovery.signal"), "").expect("a signal file");
        let mut server = PostgresServer::builder()
            .setting("restore_command", restore_command)
            // As in earnest: the server syncs each file that it was given.
            .setting("fsync", "on")
            .setting("shared_buffers", "512MB")
            .setting("archive_mode", "off")
            .start_restored(&target);
        // Asking the server again and again would take a processor's share that what fetches ahead needs.
        wait_until("the end of replay", REPLAY_LIMIT, || server.log().contains("redo done at").then_some(()));
        server.wait_until_promoted();
        let log = server.log();
        let line =
            log.lines().find(|line| line.contains("redo done at")).unwrap_or_else(|| panic!("no end of redo:\n{log}"));
        let seconds = line.rsplit_once("elapsed: ").and_then(|(_, rest)| rest.strip_suffix(" s")?.parse().ok());
        assert!(!target.join("pg_wal/pgark-prefetch").exists());
        Duration::from_secs_f64(seconds.unwrap_or_else(|| panic!("no time in {line}")))
    }

    fn replay(&self, rounds: usize) {
        let raw = self.fresh("raw");
        for segment in &self.segments {
            succeed(Command::new("cp").arg(self.server.data_dir().join("pg_wal").join(segment)).arg(&raw));
        }
        TestUser::get().own_all(&raw);
        let (out, section) = self.local();
        let local = self.config("local", &section);
        let slow = self.config("slow", &self.slow_s3("replay"));
        let one_by_one = self.config("one", &format!("{}[restore]\nprefetch = 0\n", self.slow_s3("replay")));
        for config in [&local, &slow] {
            let program = self.programs.join("pgark-archive-command").display().to_string();
            self.ask_for_each(&self.segments, &format!("{program} --config {}", config.display()), &out);
        }
        let fetch = |config: &Path| {
            format!("{} --config {} wal %f \"%p\"", self.programs.join("pgark-restore").display(), config.display())
        };
        let variants = [
            ("cp from a directory", format!("cp {}/%f \"%p\"", raw.display())),
            ("pgark, local", fetch(&local)),
            ("pgark, S3, 30 ms", fetch(&slow)),
            ("pgark, S3, 30 ms, prefetch = 0", fetch(&one_by_one)),
        ];
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); variants.len()];
        for round in 0..rounds {
            println!("replay round {} of {rounds}", round + 1);
            for ((_, command), times) in variants.iter().zip(&mut times) {
                succeed(&mut Command::new("sync"));
                times.push(self.replay_with(command));
            }
        }
        println!(
            "\n### replay of {} segments\n\n| restore_command | s | to cp |\n| --- | ---: | ---: |",
            self.segments.len()
        );
        let medians: Vec<f64> = times
            .iter_mut()
            .map(|times| {
                times.sort();
                times[times.len() / 2].as_secs_f64()
            })
            .collect();
        for ((name, _), median) in variants.iter().zip(&medians) {
            println!("| {name} | {median:.1} | {:.2} |", median / medians[0]);
        }
    }
}

/// The archived segments of a local repository.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { objects(&path) } else { vec![path] }).collect()
}

/// Returns what it printed.
fn succeed(command: &mut Command) -> String {
    let outcome = command.output().expect("the command starts");
    assert!(outcome.status.success(), "{command:?}: {}", String::from_utf8_lossy(&outcome.stderr));
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}
