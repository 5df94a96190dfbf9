//! Configuration outside of the data directory, as Debian has it: said to be missing, or taken along and brought back.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use harness::ProtectedCluster;

#[test]
fn directories_outside_are_taken_along_and_come_back_elsewhere() {
    let mut cluster = ProtectedCluster::start();
    let outside = cluster.dir().create_dir("etc/postgresql");
    let hba = outside.join("pg_hba.conf");
    fs::copy(cluster.server().data_dir().join("pg_hba.conf"), &hba).unwrap();
    fs::set_permissions(&hba, fs::Permissions::from_mode(0o644)).unwrap();
    cluster.server_mut().alter_system("hba_file", &hba.display().to_string());
    cluster.server_mut().restart();

    let plain = cluster.agent().args(["backup", "--json"]).succeed();
    assert!(plain.stderr.contains("is not in the backup"), "{}", plain.stderr);
    let shown = |id: &str| cluster.restore().args(["show", id]).succeed().stdout;
    let without = id_of(&plain.stdout);
    assert!(shown(&without).contains(&format!("not included {}", hba.display())));
    let to = cluster.dir().join("restored");
    let came_back = cluster.dir().join("came back");
    let base = |backup: &str| {
        let base = cluster.restore().args(["base", "--backup", backup, "--to"]).arg(&to);
        base.arg("--included-to").arg(&came_back)
    };
    let refused = base(&without).fail_with(2);
    assert!(refused.stderr.contains("has no included directory"), "{}", refused.stderr);

    fs::create_dir(outside.join("conf.d")).unwrap();
    fs::write(outside.join("conf.d/memory.conf"), "work_mem = 64MB\n").unwrap();
    fs::write(cluster.dir().join("server.crt"), "a certificate").unwrap();
    symlink(cluster.dir().join("server.crt"), outside.join("server.crt")).unwrap();
    symlink("nowhere", outside.join("broken")).unwrap();
    let include = cluster.agent().args(["backup", "--json", "--include"]).arg(&outside);
    // Named twice, once by what is below it: taken once.
    let outcome = include.arg("--include").arg(outside.join("conf.d")).succeed();
    assert!(outcome.stderr.contains("is a link to nothing"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("is not in the backup"), "{}", outcome.stderr);
    let with = id_of(&outcome.stdout);
    cluster.archive_all();
    let text = shown(&with);
    assert!(text.contains(&format!("included     {} (3 files)", outside.display())), "{text}");
    assert!(!text.contains("not included"), "{text}");

    // Nothing is put over what is there.
    fs::create_dir(&came_back).unwrap();
    fs::write(came_back.join("mine"), "").unwrap();
    let refused = base(&with).fail_with(2);
    assert!(refused.stderr.contains("is not empty"), "{}", refused.stderr);
    assert!(!to.exists());
    fs::remove_dir_all(&came_back).unwrap();

    let plan = cluster.restore().args(["base", "--backup", &with, "--dry-run"]).succeed().stdout;
    assert!(plan.contains(&format!("included    {} stays in the repository", outside.display())), "{plan}");
    base(&with).succeed();
    let found = came_back.join(outside.strip_prefix("/").unwrap());
    assert_eq!(fs::read(found.join("pg_hba.conf")).unwrap(), fs::read(&hba).unwrap());
    assert_eq!(fs::read_to_string(found.join("conf.d/memory.conf")).unwrap(), "work_mem = 64MB\n");
    assert_eq!(fs::read_to_string(found.join("server.crt")).unwrap(), "a certificate");
    assert!(!found.join("broken").exists());
    assert_eq!(fs::metadata(found.join("pg_hba.conf")).unwrap().permissions().mode() & 0o777, 0o644);
    assert!(!to.join("conf.d").exists());
}

fn id_of(json: &str) -> String {
    let report: serde_json::Value = serde_json::from_str(json).unwrap();
    report["id"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_no_configuration_is_refused_before_anything_is_asked() {
    let cluster = ProtectedCluster::start();
    let file = cluster.dir().write("file", "");
    let huge = cluster.dir().create_dir("huge");
    fs::File::create(huge.join("data")).unwrap().set_len(65 << 20).unwrap();
    let data_directory = cluster.server().data_dir().display().to_string();
    for (directory, words) in [
        ("relative", "is not an absolute path"),
        ("/", "is not an absolute path below /"),
        ("/no/such/directory", "No such file"),
        (&file.display().to_string(), "is not a directory"),
        (&data_directory, "is a data directory"),
        (&huge.display().to_string(), "hold more than 64"),
    ] {
        let refused = cluster.agent().args(["--quiet", "backup", "--include", directory]).fail_with(2);
        assert!(refused.stderr.contains(words), "{directory}: {}", refused.stderr);
    }
    let list = cluster.restore().args(["list"]).fail_with(3);
    assert!(list.stdout.is_empty(), "{}", list.stdout);
}
