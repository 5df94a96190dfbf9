//! A host that holds public keys only backs up and archives; only who holds a private key restores.

use std::fs;
use std::path::{Path, PathBuf};

use harness::{Program, ProtectedCluster, TempDir, bash, standard_tool};

struct Key {
    public: String,
    identity: PathBuf,
}

/// A key made by the real tool.
fn key(dir: &TempDir, name: &str) -> Key {
    let identity = dir.join(format!("{name}.identity"));
    Program::at(&standard_tool("age-keygen")).arg("-o").arg(&identity).as_test_user().succeed();
    let text = fs::read_to_string(&identity).unwrap();
    let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    Key { public, identity }
}

struct Encrypted {
    cluster: ProtectedCluster,
    owner: Key,
    second: Key,
    stranger: Key,
    url: String,
}

/// The server's host knows two public keys and no private one.
fn encrypted() -> Encrypted {
    let builder = ProtectedCluster::builder();
    let [owner, second, stranger] = ["owner", "second", "stranger"].map(|name| key(builder.dir(), name));
    let url = format!("file://{}", builder.dir().create_dir("repository").display());
    let recipients = format!("recipients = [\"{}\", \"{}\"]", owner.public, second.public);
    let section = format!("[[repository]]\nname = \"local\"\nurl = \"{url}\"\n{recipients}\n");
    let cluster = builder.repository(&section).server(|server| server.setting("wal_keep_size", "1GB")).start();
    Encrypted { cluster, owner, second, stranger, url }
}

impl Encrypted {
    /// The configuration of a host that restores, with the private key in `identity`.
    fn reading_config(&self, name: &str, identity: Option<&Path>) -> PathBuf {
        let identity = identity.map_or_else(String::new, |path| format!("identity_file = \"{}\"\n", path.display()));
        let section = format!("[[repository]]\nname = \"local\"\nurl = \"{}\"\n{identity}", self.url);
        self.cluster.write_config(name, &section)
    }
}

#[test]
fn only_a_private_key_restores() {
    let story = encrypted();
    let Encrypted { cluster, owner, second, stranger, .. } = &story;
    cluster.server().psql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n");
    let id = cluster.backup();
    cluster.server().psql("INSERT INTO t SELECT n, '' FROM generate_series(1001, 1234) n");
    cluster.archive_all();
    // What is listed needs no key.
    let listed = cluster.restore_with(&story.reading_config("none.toml", None)).arg("list").succeed();
    assert!(listed.stdout.contains(&id), "{}", listed.stdout);

    let to = cluster.dir().join("refused");
    let base = |config: &Path, to: &Path| cluster.restore_with(config).args(["--quiet", "base", "--to"]).arg(to);
    let wrong = story.reading_config("stranger.toml", Some(&stranger.identity));
    let missing = story.reading_config("none.toml", None);
    for (config, words) in [(wrong, "encrypted to other keys"), (missing, "set identity_file")] {
        // Whether WAL has to be read for the target or not.
        for target in [&[][..], &["--target-immediate"]] {
            let refused = base(&config, &to).args(target).fail_with(2);
            assert!(refused.stderr.contains(words), "no {words:?} in {}", refused.stderr);
            assert!(!to.exists(), "refused, but something was created");
        }
    }

    for (name, identity) in [("owner", &owner.identity), ("second", &second.identity)] {
        let to = cluster.dir().join(name);
        base(&story.reading_config(&format!("{name}.toml"), Some(identity)), &to).succeed();
        let mut restored = harness::PostgresServer::start_restored(&to, 15);
        restored.wait_until_promoted();
        assert_eq!(restored.psql("SELECT count(*) FROM t"), "1234");
    }
}

#[test]
fn the_real_age_tool_opens_everything() {
    let story = encrypted();
    let Encrypted { cluster, owner, .. } = &story;
    cluster.server().psql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    let id = cluster.backup();
    cluster.archive_all();
    let backup = cluster.cluster_dir().join("backups").join(id);
    let out = cluster.dir().create_dir("out");
    let identity = owner.identity.display();
    for part in fs::read_dir(backup.join("parts")).unwrap() {
        let part = part.unwrap().path();
        assert!(part.to_string_lossy().ends_with(".tar.zst.age"), "{part:?}");
        bash(&out, &format!("age -d -i '{identity}' '{}' | zstd -dc | tar -x", part.display())).succeed();
    }
    let data_dir = cluster.server().data_dir();
    assert_eq!(fs::read(out.join("PG_VERSION")).unwrap(), fs::read(data_dir.join("PG_VERSION")).unwrap());
    assert!(out.join("global/pg_control").exists());
    let manifest =
        format!("age -d -i '{identity}' '{}/backup_manifest.zst.age' | zstd -dc >backup_manifest", backup.display());
    bash(&out, &manifest).succeed();
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &out.display().to_string()]);

    let segment = &cluster.archived_segments(1)[0];
    let name = segment.file_name().unwrap().to_str().unwrap().strip_suffix(".zst.age").unwrap();
    bash(&out, &format!("age -d -i '{identity}' '{}' | zstd -dc >{name}", segment.display())).succeed();
    let raw = fs::read(data_dir.join("pg_wal").join(name)).unwrap();
    assert!(fs::read(out.join(name)).unwrap() == raw, "{name} is not what the server wrote");
    // Nothing that a stranger could read holds rows or WAL.
    let plain = fs::read(segment).unwrap();
    assert!(plain.starts_with(b"age-encryption.org/v1\n"));
}

#[test]
fn a_host_without_private_key_tells_same_from_different() {
    let story = encrypted();
    let cluster = &story.cluster;
    cluster.server().psql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    cluster.archive_all();
    let stored = cluster.archived_segments(1)[0].clone();
    let name = stored.file_name().unwrap().to_str().unwrap().strip_suffix(".zst.age").unwrap().to_owned();
    let object = fs::read(&stored).unwrap();
    let segment = format!("pg_wal/{name}");
    cluster.archive_command().arg(&segment).succeed();
    assert!(fs::read(&stored).unwrap() == object, "the second call rewrote the segment");

    let copy = cluster.dir().create_dir("other");
    let mut bytes = fs::read(cluster.server().data_dir().join(&segment)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let other = cluster.dir().write(&format!("other/{name}"), &bytes);
    assert!(other.starts_with(&copy));
    let refused = cluster.archive_command().arg(&other).fail_with(1);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains(&name), "{}", refused.stderr);
    assert!(fs::read(&stored).unwrap() == object, "the refused call changed the segment");
}
