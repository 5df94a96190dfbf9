//! `consolidate`: a chain becomes a full backup inside the repository, which restores to the same bytes, carries further
//! incremental backups, and lets the chain expire.

use std::fs;
use std::time::Duration;

use harness::{PostgresServer, Program, ProtectedCluster, bash, standard_tool};
use serde_json::Value;

use crate::chains::{backup, builder, compare, consolidate, parent_of, restore, start, unpack, verify};
use crate::incremental::{STEPS, content, fill, folder, part, statements};

/// A full backup and one that builds on another for each step.
fn chain(cluster: &ProtectedCluster, steps: &[&str]) -> Vec<String> {
    fill(cluster);
    let mut ids = vec![backup(cluster, "--full")];
    for step in steps {
        statements(cluster.server(), step);
        ids.push(backup(cluster, "--incremental"));
    }
    cluster.archive_all();
    ids
}

fn backups(cluster: &ProtectedCluster) -> Vec<String> {
    let list: Value = serde_json::from_str(&cluster.restore().args(["list", "--json"]).succeed().stdout).unwrap();
    list["backups"].as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

fn a_chain_becomes_a_full_backup(major: u32) {
    let cluster = start(major);
    let ids = chain(&cluster, &STEPS[..5]);
    let newest = ids.last().unwrap();
    let made = consolidate(&cluster, newest);
    assert!(made > *newest && made.ends_with("-full"), "{made} {newest}");
    assert_eq!(compare(&restore(&cluster, "ours", &made), &restore(&cluster, "theirs", newest)), 0);
    if major >= 17 {
        let by_hand = unpack(&cluster, &made);
        verify(&cluster, &by_hand);
    }
    let again = cluster.agent().args(["consolidate", newest]).fail_with(2);
    assert!(again.stderr.contains(&format!("{newest} is consolidated already, as {made}")), "{}", again.stderr);
    let full = cluster.agent().args(["consolidate", &made]).fail_with(2);
    assert!(full.stderr.contains(&format!("{made} is a full backup already")), "{}", full.stderr);

    // Further ones build on it, without any change on the host of the server.
    statements(cluster.server(), STEPS[6]);
    let next = backup(&cluster, "--incremental");
    statements(cluster.server(), "INSERT INTO d SELECT generate_series(1, 900)");
    let differential = backup(&cluster, "--differential");
    assert_eq!(parent_of(&cluster, &next).as_ref(), Some(&made));
    assert_eq!(parent_of(&cluster, &differential).as_ref(), Some(&made));
    let expected = content(cluster.server());
    cluster.archive_all();

    // The chain is not kept for itself any more.
    let policy = fs::read_to_string(cluster.config()).unwrap() + "\n[retention]\nfull = 1\n";
    let policy = cluster.dir().write("expiring.toml", policy);
    let expired = Program::agent().config(&policy).as_test_user().arg("expire").succeed();
    assert_eq!(backups(&cluster), [made, next, differential.clone()], "{}", expired.stdout);
    cluster.restore().arg("verify").succeed();
    let mut server = PostgresServer::start_restored(restore(&cluster, "last", &differential), major);
    server.wait_until_paused();
    assert_eq!(content(&server), expected);
}

#[test]
fn e19_a_chain_of_13_becomes_a_full_backup() {
    a_chain_becomes_a_full_backup(13);
}

#[test]
fn e19_a_chain_of_18_becomes_a_full_backup() {
    a_chain_becomes_a_full_backup(18);
}

#[test]
#[ignore = "soak: the versions in between"]
fn soak_e19_a_chain_of_any_version_becomes_a_full_backup() {
    (14..=17).for_each(a_chain_becomes_a_full_backup);
}

/// Whatever moment it is killed at: there is a whole backup, or none, and the next attempt succeeds.
#[test]
fn what_was_killed_is_in_nobodys_way() {
    let cluster = start(18);
    let ids = chain(&cluster, &STEPS[..2]);
    let newest = ids.last().unwrap();
    let mut killed = 0;
    for delay in (0..).map(|step| Duration::from_millis(25 << step)) {
        let running = cluster.agent().args(["--quiet", "consolidate", newest]).start();
        std::thread::sleep(delay);
        running.kill9();
        if backups(&cluster) != ids {
            break;
        }
        killed += 1;
        assert!(killed < 9, "it was never quick enough");
    }
    assert!(killed > 1, "it was never killed in the middle");
    let made = backups(&cluster).pop().unwrap();
    assert_eq!(compare(&restore(&cluster, "ours", &made), &restore(&cluster, "theirs", newest)), 0);
    cluster.restore().args(["verify", &made]).succeed();
}

#[test]
fn what_is_damaged_becomes_no_backup() {
    let cluster = start(18);
    let ids = chain(&cluster, &STEPS[..2]);
    let newest = ids.last().unwrap();
    for id in &ids {
        let path = part(&cluster, id);
        let before = fs::read(&path).unwrap();
        let mut flipped = before.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for content in [Some(flipped), Some(before[..middle].to_vec()), None] {
            let code = if content.is_some() { 4 } else { 3 };
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let outcome = cluster.agent().args(["--quiet", "consolidate", newest]).fail_with(code);
            assert!(outcome.stderr.contains("part"), "{}", outcome.stderr);
            assert_eq!(backups(&cluster), ids);
        }
        fs::write(&path, before).unwrap();
    }
    // What was broken off is in nobody's way.
    let made = consolidate(&cluster, newest);
    assert_eq!(compare(&restore(&cluster, "ours", &made), &restore(&cluster, "theirs", newest)), 0);
    let mark = folder(&cluster, &ids[1]).join("backup.json");
    let missing = cluster.agent().args(["--quiet", "consolidate", "20200101T000000Z-incr"]).fail_with(3);
    assert!(missing.stderr.contains("20200101T000000Z-incr"), "{}", missing.stderr);
    fs::remove_file(mark).unwrap();
    let broken = cluster.agent().args(["--quiet", "consolidate", newest]).fail_with(3);
    assert!(broken.stderr.contains(&format!("builds on {}, which is not there", ids[1])), "{}", broken.stderr);
}

/// Where the key is, and with the directories that the last one took along.
#[test]
fn an_encrypted_chain_is_consolidated_where_the_key_is() {
    let builder = builder(18);
    let identity = builder.dir().join("owner.identity");
    Program::at(&standard_tool("age-keygen")).arg("-o").arg(&identity).as_test_user().succeed();
    let text = fs::read_to_string(&identity).unwrap();
    let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    let url = |folder: &str| format!("file://{}", builder.dir().create_dir(folder).display());
    let section = |name: &str, folder: &str| {
        format!("[[repository]]\nname = \"{name}\"\nurl = \"{}\"\nrecipients = [\"{public}\"]\n", url(folder))
    };
    let repositories = section("one", "repository") + &section("two", "other");
    let etc = builder.dir().create_dir("etc");
    fs::write(etc.join("pg_hba.conf"), "local all all trust\n").unwrap();
    let include = format!("include = [\"{}\"]\n", etc.display());
    let cluster = builder.repository(&repositories).settings(&include).start();
    let ids = chain(&cluster, &STEPS[..2]);
    let newest = ids.last().unwrap();

    let refused = cluster.agent().args(["--quiet", "consolidate", newest]).fail_with(2);
    assert!(refused.stderr.contains("identity_file"), "{}", refused.stderr);
    let both = repositories.replace(
        &format!("recipients = [\"{public}\"]\n"),
        &format!("recipients = [\"{public}\"]\nidentity_file = \"{}\"\n", identity.display()),
    );
    let config = fs::read_to_string(cluster.config()).unwrap().replace(&repositories, &both);
    let config = cluster.dir().write("with-key.toml", config);
    // Of one copy a part is damaged: the other one has it.
    let damaged = cluster.dir().join("repository/main");
    let script = "set -e\nfor part in $(find \"$DIR\" -path '*incr*' -name '*.tar.zst.age'); do printf X | dd of=\"$part\" bs=1 seek=300 conv=notrunc; done";
    bash(cluster.dir().path(), script).env("DIR", damaged).succeed();
    let agent = || Program::agent().config(&config).as_test_user();
    let outcome = agent().args(["consolidate", "--json", newest]).succeed();
    assert!(outcome.stderr.contains("this copy of the backup cannot be used"), "{}", outcome.stderr);
    let made: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let made = made["id"].as_str().unwrap();
    for repository in ["one", "two"] {
        let restore = || Program::restore().config(&config).as_test_user();
        let (to, included) =
            (cluster.dir().join(repository.to_owned() + "-back"), cluster.dir().join(repository.to_owned() + "-etc"));
        let base = cluster.dir().join(repository.to_owned() + "-tablespaces");
        restore()
            .args(["--quiet", "--repository", repository, "base", "--backup", made, "--target-immediate"])
            .arg("--included-to")
            .arg(&included)
            .arg("--tablespace-base")
            .arg(&base)
            .arg("--to")
            .arg(&to)
            .succeed();
        verify(&cluster, &to);
        let back = included.join(etc.strip_prefix("/").unwrap()).join("pg_hba.conf");
        assert_eq!(fs::read_to_string(back).unwrap(), "local all all trust\n");
    }
}
