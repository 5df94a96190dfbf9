//! Tablespaces go back to where they were, to another place, or stay within the data directory.

use std::fs;

use harness::{PostgresServer, ProtectedCluster, TestUser, newest_major};

/// A tablespace within the data directory is only in the backups of servers from 16 on.
fn kept_moved_and_in_place(major: u32) {
    let with_inside = major >= 16;
    let builder = ProtectedCluster::builder();
    let mut cluster = builder.server(|server| server.major(major).setting("allow_in_place_tablespaces", "on")).start();
    let kept = cluster.dir().create_dir("kept tablespace");
    let moved = cluster.dir().create_dir("moved");
    let server = cluster.server();
    for (space, place, rows) in [
        ("kept", kept.display().to_string(), 1000),
        ("moved", moved.display().to_string(), 2000),
        ("inside", String::new(), 3000),
    ] {
        server.psql(&format!(
            "CREATE TABLESPACE {space} LOCATION '{place}';
             CREATE TABLE in_{space} TABLESPACE {space} AS SELECT n, md5(n::text) FROM generate_series(1, {rows}) n"
        ));
    }
    if !with_inside {
        let refused = cluster.agent().args(["--quiet", "backup"]).fail_with(1);
        assert!(refused.stderr.contains("and there are some: inside"), "{}", refused.stderr);
        server.psql("ALTER TABLE in_inside SET TABLESPACE pg_default; DROP TABLESPACE inside");
    }
    let oid = |name: &str| server.psql(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'"));
    let (kept_oid, moved_oid, inside_oid) = (oid("kept"), oid("moved"), oid("inside"));
    let backup = cluster.backup();
    // What comes after the backup is written into the tablespaces by recovery.
    server.psql("INSERT INTO in_moved SELECT n, '' FROM generate_series(2001, 2345) n");
    server.psql("CREATE TABLE later TABLESPACE kept AS SELECT n FROM generate_series(1, 77) n");
    cluster.archive_all();

    let to = cluster.dir().join("restored");
    let new_place = cluster.dir().join("new/place of it");
    let refused = |tablespaces: &[&str], words: &str| {
        let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to);
        let base = tablespaces.iter().fold(base, |base, given| base.arg("--tablespace").arg(given));
        let refused = base.fail_with(2);
        assert!(refused.stderr.contains(words), "no {words:?} in {}", refused.stderr);
        assert!(!to.exists() && !new_place.exists(), "refused, but something was created");
    };
    let move_it = format!("{moved_oid}={}", new_place.display());
    // The original is still where the other tablespace would go back to.
    refused(&[&move_it], "kept tablespace");
    refused(&[&move_it, &format!("99={}", new_place.display())], "no tablespace 99");
    refused(&[&format!("{kept_oid}={}", new_place.display()), &move_it], "is used for two tablespaces");
    refused(&[&move_it, &move_it], "is given twice");
    refused(&[&format!("{moved_oid}=relative")], "is not an absolute path");
    let within = format!("{moved_oid}={}", to.join("within").display());
    refused(&[&format!("{kept_oid}={}", new_place.display()), &within], "lie in each other");
    if with_inside {
        refused(&[&format!("{inside_oid}={}", new_place.display())], "cannot be moved");
    }

    cluster.server_mut().stop_fast();
    fs::rename(&kept, cluster.dir().join("original")).unwrap();
    let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to);
    base.arg("--tablespace").arg(&move_it).args(["--backup", &backup]).succeed();
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);

    let mut restored = PostgresServer::start_restored(&to, major);
    restored.wait_until_promoted();
    let counts = "SELECT (SELECT count(*) FROM in_kept), (SELECT count(*) FROM in_moved),
                         (SELECT count(*) FROM in_inside), (SELECT count(*) FROM later)";
    assert_eq!(restored.psql(counts), "1000|2345|3000|77");
    let location = |oid: &str| restored.psql(&format!("SELECT pg_tablespace_location({oid})"));
    assert_eq!(location(&kept_oid), kept.display().to_string());
    assert_eq!(location(&moved_oid), new_place.display().to_string());
    if with_inside {
        assert_eq!(location(&inside_oid), format!("pg_tblspc/{inside_oid}"));
    }
    // The original of the moved one was not written to: it still has what the stopped server left.
    assert!(fs::read_dir(&moved).unwrap().next().is_some());
    restored.stop_fast();
    restored.start();
    assert_eq!(restored.psql(counts), "1000|2345|3000|77");
}

#[test]
fn d05_tablespaces_are_kept_and_moved() {
    kept_moved_and_in_place(15);
}

#[test]
fn d05_tablespaces_are_kept_moved_and_in_place_by_the_newest_postgresql() {
    kept_moved_and_in_place(newest_major());
}

#[test]
fn d05_three_tablespaces_go_below_one_directory() {
    let major = newest_major();
    let builder = ProtectedCluster::builder();
    let cluster = builder.server(|server| server.major(major).setting("allow_in_place_tablespaces", "on")).start();
    let server = cluster.server();
    let spaces = ["first", "second with blank", "third"];
    for (number, name) in spaces.iter().enumerate() {
        let place = cluster.dir().create_dir(name);
        server.psql(&format!("CREATE TABLESPACE s{number} LOCATION '{}'", place.display()));
    }
    server.psql("CREATE TABLESPACE s3 LOCATION ''");
    for number in 0..4 {
        server.psql(&format!(
            "CREATE TABLE t{number} TABLESPACE s{number} AS SELECT n FROM generate_series(1, 10{number}) n"
        ));
    }
    let oids: Vec<String> = server
        .psql("SELECT oid FROM pg_tablespace WHERE spcname ~ '^s[0-9]' ORDER BY 1")
        .lines()
        .map(str::to_owned)
        .collect();
    cluster.backup();
    server.psql("INSERT INTO t0 SELECT 0; INSERT INTO t2 SELECT 0");
    cluster.archive_all();

    let (to, below) = (cluster.dir().join("restored"), cluster.dir().join("all/spaces"));
    let elsewhere = cluster.dir().join("elsewhere");
    let base = |below: &str| {
        let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to).args(["--tablespace-base", below]);
        base.arg("--tablespace").arg(format!("{}={}", oids[2], elsewhere.display()))
    };
    let shown = below.display().to_string();
    let refused = |below: &str, words: &str| {
        let outcome = base(below).fail_with(2);
        assert!(outcome.stderr.contains(words), "no {words:?} in {}", outcome.stderr);
        assert!(!to.exists() && !elsewhere.exists(), "refused, but something was created");
    };
    refused("relative/spaces", "--tablespace-base: relative/spaces is not an absolute path");
    refused(&to.join("inside").display().to_string(), "lie in each other");
    cluster.dir().create_dir("all/spaces");
    fs::create_dir_all(below.join(&oids[1]).join("something")).unwrap();
    TestUser::get().own_all(&below);
    refused(&shown, "is not empty");
    fs::remove_dir_all(below.join(&oids[1])).unwrap();

    let plan = base(&shown).arg("--dry-run").succeed().stdout;
    let first = cluster.dir().join("first");
    for line in [
        format!("tablespace  {} in {shown}/{} (was {})", oids[0], oids[0], first.display()),
        format!("tablespace  {} in {} (was ", oids[2], elsewhere.display()),
    ] {
        assert!(plan.contains(&line), "no {line:?} in\n{plan}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&base(&shown).args(["--dry-run", "--json"]).succeed().stdout).unwrap();
    let place = |oid: &str| {
        let all = json["tablespaces"].as_array().unwrap();
        let oid: u32 = oid.parse().unwrap();
        all.iter().find(|tablespace| tablespace["oid"] == oid).unwrap()["location"].clone()
    };
    assert_eq!(place(&oids[1]), format!("{shown}/{}", oids[1]), "{json}");
    assert_eq!(place(&oids[3]), serde_json::Value::Null, "{json}");

    base(&shown).succeed();
    // The links and the map are there before a server sees the directory, and say the same.
    let map = fs::read_to_string(to.join("tablespace_map")).unwrap();
    let places = [below.join(&oids[0]), below.join(&oids[1]), elsewhere];
    for (oid, place) in oids.iter().zip(&places) {
        assert_eq!(fs::read_link(to.join("pg_tblspc").join(oid)).unwrap(), *place);
        assert!(map.lines().any(|line| line == format!("{oid} {}", place.display())), "{map}");
    }
    assert_eq!(map.lines().count(), 3, "{map}");
    assert!(fs::symlink_metadata(to.join("pg_tblspc").join(&oids[3])).unwrap().is_dir());
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);

    let mut restored = PostgresServer::start_restored(&to, major);
    restored.wait_until_promoted();
    for (number, rows) in ["101", "101", "103", "103"].iter().enumerate() {
        assert_eq!(restored.psql(&format!("SELECT count(*) FROM t{number}")), *rows, "t{number}");
    }
    for (oid, place) in oids.iter().zip(&places) {
        assert_eq!(restored.psql(&format!("SELECT pg_tablespace_location({oid})")), place.display().to_string());
    }
    restored.stop_fast();
}
