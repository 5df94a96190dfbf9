//! Reading: the first repository that can serves, and the next one where it cannot, also in the middle.

use std::fs;
use std::path::PathBuf;

use harness::{Fault, Outcome, PostgresServer, Program, Trigger};

use super::{Lines, Two, flip};
use crate::site::assert_one_clear_line;

impl Two {
    /// What a server in recovery would ask.
    fn wal(&self, name: &str) -> Program {
        let to = self.cluster.dir().join("fetched");
        drop(fs::remove_file(&to));
        let identifier = self.cluster.cluster_dir();
        let identifier = identifier.file_name().unwrap().to_owned();
        self.cluster.restore().args(["wal", "--system-identifier"]).arg(identifier).arg(name).arg(to)
    }

    fn stored(&self, name: &str) -> (PathBuf, PathBuf) {
        let (near, far) = (self.near_files(), self.far_files());
        (near.path(&near.one(&[name])), far.path(&far.one(&[name])))
    }

    /// Restores up to the end of the backup, starts it and asks it.
    fn restored(&self, name: &str, arguments: &[&str]) -> (Outcome, String) {
        let to = self.cluster.dir().join(name);
        let base = self.cluster.restore().args(["base", "--target-immediate", "--target-action=promote", "--to"]);
        let outcome = base.arg(&to).args(arguments).succeed();
        self.cluster.server().run("pg_verifybackup", &["--no-parse-wal".as_ref(), to.as_os_str()]);
        let mut restored = PostgresServer::start_restored(&to, self.cluster.server().major());
        restored.wait_until_promoted();
        let answer = restored.psql("SELECT count(*) FROM facts");
        drop(restored);
        drop(fs::remove_dir_all(to));
        (outcome, answer)
    }
}

fn name_of(segment: PathBuf) -> String {
    segment.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned()
}

#[test]
fn c05_wal_is_absent_only_when_every_repository_has_said_so() {
    let mut two = Two::start(&Lines::default());
    for number in 0..3 {
        two.cluster.server().psql(&format!("CREATE TABLE t{number} (i int)"));
        two.cluster.archive_all();
    }
    let segments: Vec<String> = two.cluster.archived_segments(1).into_iter().map(name_of).collect();
    let [missing, damaged, both, ..] = &segments[..] else { panic!("{segments:?}") };
    let future = "0000000100000000000000F0";

    fs::remove_file(two.stored(missing).0).unwrap();
    let outcome = two.wal(missing).succeed();
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
    // A damaged copy is not taken, and not passed over in silence.
    flip(&two.stored(damaged).0);
    let outcome = two.wal(damaged).succeed();
    assert!(outcome.stderr.contains("near") && outcome.stderr.contains("damaged"), "{}", outcome.stderr);
    two.wal(future).fail_with(1);

    // The second one is away: what the first has is served, and nothing is called absent.
    two.far.stop();
    two.wal(both).succeed();
    for name in [future, missing, damaged, "00000002.history"] {
        let outcome = two.wal(name).fail_with(200);
        assert_one_clear_line(&outcome);
    }
    two.far.start_again();
    // The first one is not mounted.
    let (here, away) = (two.cluster.repository_dir(), two.cluster.dir().join("away"));
    fs::rename(&here, &away).unwrap();
    two.wal_of(&away, both).succeed();
    two.wal_of(&away, future).fail_with(200);
    fs::rename(&away, &here).unwrap();
    two.wal(future).fail_with(1);
}

impl Two {
    /// The same while the directory of the first repository is somewhere else.
    fn wal_of(&self, repository: &std::path::Path, name: &str) -> Program {
        let to = self.cluster.dir().join("fetched");
        drop(fs::remove_file(&to));
        let main = fs::read_dir(repository.join("main")).unwrap().next().unwrap().unwrap();
        self.cluster.restore().args(["wal", "--system-identifier"]).arg(main.file_name()).arg(name).arg(to)
    }
}

#[test]
fn c13_d10_what_one_copy_of_a_backup_lacks_is_read_from_the_other() {
    let two = Two::start(&Lines { is_encrypted: true, ..Lines::default() });
    two.cluster
        .server()
        .psql("CREATE TABLE facts AS SELECT i, sha512(i::text::bytea) AS noise FROM generate_series(1, 300000) i");
    two.cluster.backup();
    for (round, (object, injury)) in [
        ("parts/000001", "flip"),
        ("parts/000002", "delete"),
        ("index.jsonl", "flip"),
        ("backup_manifest", "delete"),
        ("backup.json", "flip"),
    ]
    .into_iter()
    .enumerate()
    {
        let (near, far) = two.stored(object);
        let whole = fs::read(&near).unwrap();
        match injury {
            "flip" => flip(&near),
            _ => fs::remove_file(&near).unwrap(),
        }
        let (outcome, answer) = two.restored(&format!("restored-{round}"), &[]);
        assert_eq!(answer, "300000");
        let warned = outcome.stderr.lines().any(|line| line.contains("near"));
        assert!(warned, "{object}: nothing was said of the damaged copy:\n{}", outcome.stderr);
        println!("{object} {injury}: {}", outcome.stderr.lines().find(|line| line.contains("near")).unwrap());

        // Damaged in both.
        if object != "backup_manifest" {
            flip(&far);
            let to = two.cluster.dir().join("refused");
            let refused = two.cluster.restore().args(["base", "--target-immediate", "--to"]).arg(&to).run();
            assert!(matches!(refused.code, Some(3 | 4)), "{object}: {:?}\n{}", refused.code, refused.stderr);
            assert!(!to.join("global/pg_control").exists());
            drop(fs::remove_dir_all(to));
            flip(&far);
        }
        fs::write(&near, whole).unwrap();
    }
}

#[test]
fn a_restore_goes_on_in_the_next_repository_when_the_first_one_refuses_in_the_middle() {
    let mut two = Two::start(&Lines { far_first: true, ..Lines::default() });
    two.cluster
        .server()
        .psql("CREATE TABLE facts AS SELECT i, sha512(i::text::bytea) AS noise FROM generate_series(1, 300000) i");
    two.cluster.backup();
    // The credentials expire while the second part is on its way; the manifest, which comes last, is also refused.
    let refused = Fault::http_answer("403 Forbidden", "<Error><Code>ExpiredToken</Code><Message>No.</Message></Error>");
    let part = Trigger::RequestWith("parts/000002.tar.zst HTTP/1.1".to_owned());
    two.proxy.add(Fault::always(part, refused));
    let (outcome, answer) = two.restored("restored", &[]);
    assert_eq!(answer, "300000");
    assert!(two.proxy.struck() > 0);
    assert!(outcome.stderr.contains("far"), "{}", outcome.stderr);
    two.proxy.clear();

    // Away from the beginning: the plan says what it does not know.
    two.far.stop();
    let plan = two.cluster.restore().args(["base", "--dry-run"]).succeed();
    assert!(plan.stdout.contains("not in this plan"), "{}", plan.stdout);
    // Recovery would stop at the first segment that only the other one could have.
    let (_, answer) = two.restored("alone", &["--repository", "near"]);
    assert_eq!(answer, "300000");
    let list = two.cluster.restore().arg("list").succeed().stdout;
    assert!(list.contains("not read: ") && list.contains("`far`"), "{list}");
    two.far.start_again();

    // One is behind the other, and a plan takes from both.
    two.cluster.archive_all();
    let last = name_of(two.cluster.archived_segments(1).pop().unwrap());
    let (near, _) = two.stored(&last);
    fs::remove_file(near).unwrap();
    let list = two.cluster.restore().arg("list").succeed().stdout;
    assert!(list.contains("1 segments, 16.0 MiB of WAL"), "{list}");
    let plan = two.cluster.restore().args(["base", "--dry-run"]).succeed().stdout;
    assert!(plan.contains(&last), "{plan}");
}
