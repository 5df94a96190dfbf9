//! F01–F11: what is stored is input. A backup of a real server is written again by somebody who can make every checksum
//! right, and who wants a restore to write elsewhere, to take all memory, or to crash. Each forgery is refused with one
//! sentence; nothing appears beside the directory of the restore, and what is in it cannot be started.

mod forgery;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use harness::{Outcome, Program, local_repository};
use serde_json::json;

use self::forgery::{Forgery, Lists, packed};
use crate::hostile_server::Hostile;
use crate::site::assert_one_clear_line;

/// More than any forgery may cost.
const MEMORY_LIMIT: u64 = 400 << 20;

struct Scene {
    hostile: Hostile,
    config: PathBuf,
    backup: PathBuf,
    original: Forgery,
    faults: Vec<String>,
    cases: usize,
}

impl Scene {
    fn start() -> Self {
        let mut hostile = Hostile::start();
        let recording = hostile.recording.clone();
        let (outcome, files) = hostile.backup("BASE_BACKUP", recording.answer());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let backup = files.path(&files.one(&["backup.json"])).parent().unwrap().to_owned();
        let original = Forgery::read(&backup);
        let section = local_repository(hostile.site.dir(), "local", "repository-1");
        let config = hostile.site.other_config("restore.toml", None, Some(&section));
        let scene = Self { hostile, config, backup, original, faults: Vec::new(), cases: 0 };
        // One that was written again without a change is as good as the real one.
        scene.original.lists().write(&scene.backup);
        let outcome = scene.restore();
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(scene.restored().join("global/pg_control").exists());
        fs::remove_dir_all(scene.jail()).unwrap();
        scene
    }

    fn jail(&self) -> PathBuf {
        self.hostile.site.dir().join("jail")
    }

    fn restored(&self) -> PathBuf {
        self.jail().join("restored")
    }

    fn restore(&self) -> Outcome {
        self.hostile.site.dir().create_dir("jail");
        let base = Program::restore().config(&self.config).as_test_user().args(["--quiet", "base", "--to"]);
        base.arg(self.restored()).run()
    }

    /// A backup with other content: the restore ends with this code and these words.
    fn content(&mut self, what: &str, code: i32, words: &str, forge: impl FnOnce(&mut Forgery)) {
        self.refused(what, code, words, forge, |_| {});
    }

    /// A backup whose lists do not say what it holds.
    fn lists(&mut self, what: &str, code: i32, words: &str, edit: impl FnOnce(&mut Lists)) {
        self.refused(what, code, words, |_| {}, edit);
    }

    fn refused(
        &mut self,
        what: &str,
        code: i32,
        words: &str,
        forge: impl FnOnce(&mut Forgery),
        edit: impl FnOnce(&mut Lists),
    ) {
        let mut forgery = self.original.clone();
        forge(&mut forgery);
        let mut lists = forgery.lists();
        edit(&mut lists);
        lists.write(&self.backup);
        self.cases += 1;
        let before = names(self.hostile.site.dir().path());
        let outcome = self.restore();
        let line = if outcome.stderr.contains(": error: ") { assert_one_clear_line(&outcome) } else { String::new() };
        println!("{what}: {line}");
        let mut wrong = Vec::new();
        if outcome.code != Some(code) {
            wrong.push(format!("exit {:?}", outcome.code));
        }
        if !line.contains(words) {
            wrong.push(format!("no {words:?} in {:?}", outcome.stderr));
        }
        if self.restored().join("global/pg_control").exists() {
            wrong.push("what it left can be started".to_owned());
        }
        let (mut after, in_jail) = (names(self.hostile.site.dir().path()), names(&self.jail()));
        after.remove("jail");
        if after != before || in_jail.iter().any(|name| name != "restored") || Path::new("/outside").exists() {
            wrong.push(format!("something was written beside it: {after:?} {in_jail:?}"));
        }
        if outcome.peak_memory_bytes > MEMORY_LIMIT {
            wrong.push(format!("{} bytes of memory", outcome.peak_memory_bytes));
        }
        if !wrong.is_empty() {
            self.faults.push(format!("{what}: {}", wrong.join("; ")));
        }
        fs::remove_dir_all(self.jail()).unwrap();
    }

    fn end(self) {
        println!("{} cases", self.cases);
        assert!(self.faults.is_empty(), "{} cases went wrong:\n{}", self.faults.len(), self.faults.join("\n"));
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn f01_f02_f05_a_stored_backup_that_leads_out_is_not_restored() {
    let mut scene = Scene::start();
    for path in ["../outside", "/outside", "base/../../outside", "base//x", "base/./x"] {
        scene.content(&format!("the path {path}"), 4, "a path leads out of the data directory", |backup| {
            backup.add(path, b'0', b"x");
        });
        let add = |backup: &mut Forgery| backup.add(path, b'0', b"x");
        scene.refused(&format!("{path} in the part alone"), 4, "is not allowed", add, |lists| {
            lists.rename(path, "base/x")
        });
        let add = |backup: &mut Forgery| backup.add("base/x", b'0', b"x");
        scene.refused(&format!("{path} in the manifest alone"), 4, "backup_manifest", add, |lists| {
            let line = lists.manifest.line("base/x");
            *line = line.replacen("base/x", path, 1);
        });
    }
    scene.content("a directory that leads out", 4, "a path leads out", |backup| backup.add("../outside", b'5', b""));
    for (what, kind) in
        [("hard link", b'1'), ("symbolic link", b'2'), ("device", b'3'), ("fifo", b'6'), ("extension", b'x')]
    {
        scene.content(&format!("a {what}"), 4, "only plain files and directories are allowed", |backup| {
            backup.add("base/x", kind, b"");
            backup.members.last_mut().unwrap().set(157, b"../../outside");
            backup.add("base/x/y", b'0', b"x");
        });
    }
    for path in ["PG_VERSION", "backup_label", "global/pg_control"] {
        scene.content(&format!("{path} twice"), 4, "twice", |backup| backup.add(path, b'0', b"x"));
    }
    scene.content("a file below a file", 4, "or below a file", |backup| backup.add("PG_VERSION/x", b'0', b"x"));
    scene.content("a second manifest", 4, "`backup_manifest`, which no backup has", |backup| {
        backup.add("backup_manifest", b'0', b"x");
    });
    scene.end();
}

#[test]
fn f04_f07_f08_f11_a_stored_backup_that_lies_is_not_restored() {
    let mut scene = Scene::start();
    for (what, map, words) in [
        (
            "a map of a tablespace that nobody lists",
            "16999 /outside\n",
            "its tablespace_map names [16999], backup.json []",
        ),
        ("a map that leads nowhere", "16999 ../outside\n", "16999"),
        ("a map that is none", "x\n", "tablespace_map"),
    ] {
        scene.content(what, 4, words, |backup| backup.set_file("tablespace_map", map.as_bytes()));
    }
    let parent = scene.hostile.site.dir().path().display().to_string();
    for (what, location, code, words) in [
        ("a tablespace in the directory above", parent.clone(), 2, "is not empty"),
        ("a tablespace in the data directory", format!("{parent}/jail/restored/base"), 2, "lie in each other"),
        ("a tablespace that leads up", format!("{parent}/jail/../outside"), 2, "is not an absolute path without"),
    ] {
        let map = format!("16999 {location}\n");
        let forge = |backup: &mut Forgery| backup.set_file("tablespace_map", map.as_bytes());
        scene.refused(what, code, words, forge, |lists| {
            lists.mark["tablespaces"] = json!([{"oid": 16999, "location": location, "in_place": false}]);
        });
    }
    scene.content("another start", 4, "its backup_label starts at 0/1000028", |backup| {
        let label = String::from_utf8(backup.content("backup_label").to_vec()).unwrap();
        let start = label.split(' ').nth(3).unwrap().to_owned();
        backup.set_file("backup_label", label.replacen(&start, "0/1000028", 1).as_bytes());
    });
    scene.content("a label with one more line", 4, "unknown line", |backup| {
        let label = [backup.content("backup_label"), b"STANDBY: x\n"].concat();
        backup.set_file("backup_label", &label);
    });
    for name in ["backup_label", "global/pg_control"] {
        scene.content(&format!("no {name}"), 4, &format!("the backup has no {name}"), |backup| {
            backup.members.retain(|member| member.path() != name);
        });
    }
    scene.content("another pg_control", 4, "pg_control", |backup| {
        let mut control = backup.content("global/pg_control").to_vec();
        control[0] ^= 1;
        backup.set_file("global/pg_control", &control);
    });

    scene.lists("an offset that lies", 4, "is not where the index says", |lists| {
        lists.index_line("PG_VERSION")["offset"] = 0.into()
    });
    scene.lists("an offset beyond everything", 4, "the range ends behind the part", |lists| {
        lists.index_line("backup_label")["offset"] = u64::MAX.into();
    });
    scene.lists("a size beyond everything", 4, "PG_VERSION", |lists| {
        lists.index_line("PG_VERSION")["size"] = u64::MAX.into()
    });
    scene.lists("a file of another part", 4, "a member of part 4294967295 stands in part 1", |lists| {
        lists.index_line("PG_VERSION")["part"] = u32::MAX.into();
    });
    scene.lists("no end of the part", 4, "it lists other totals", |lists| lists.index_ends = true);
    for (what, frames, words) in [
        ("no frames", json!([]), "000001.tar"),
        ("a frame beyond everything", json!([u32::MAX]), "longer than"),
        ("many frames", json!(vec![9; 100_000]), "000001.tar"),
    ] {
        scene.lists(what, 4, words, |lists| {
            lists.index.push(json!({"part": 1, "raw_size": lists.tar.len(), "frames": frames}));
            lists.index_ends = true;
        });
    }
    scene.lists("a part that goes on", 4, "000001.tar", |lists| {
        lists.part = Some([packed(&lists.tar), packed(b"more")].concat());
    });
    scene.lists("a frame that holds a gigabyte", 4, "000001.tar", |lists| lists.part = Some(bomb(1 << 30)));
    scene.lists("an index of a gigabyte in one line", 4, "index.jsonl", |lists| {
        lists.stored_index = Some(bomb(1 << 30));
    });
    scene.lists("a manifest in one line of 64 MiB", 4, "backup_manifest", |lists| {
        lists.manifest.instead = Some(vec![b' '; 64 << 20]);
    });

    for (what, field, value, code, words) in [
        ("a newer format", "format", json!(99), 2, "newer"),
        ("another backup's mark", "id", json!("20200101T000000Z-full"), 4, "not the backup it is stored as"),
        ("timeline zero", "timeline", json!(0), 4, "backup.json"),
        ("a start that is none", "start_lsn", json!("x"), 4, "backup.json"),
        ("another stop", "stop_lsn", json!("0/1"), 4, "its WAL is"),
        ("a stop without end", "stop_lsn", json!("FFFFFFFF/FFFFFFFF"), 3, "WAL"),
        ("parts without number", "parts", json!("all"), 4, "backup.json"),
        ("WAL without end", "wal", json!({"first": "x", "last": "y"}), 4, "backup.json"),
    ] {
        scene.lists(what, code, words, |lists| lists.mark[field] = value);
    }
    for (what, field, value, code, words) in [
        ("segments of no size", "wal_segment_size", json!(0), 3, "segment"),
        ("segments of three bytes", "wal_segment_size", json!(3), 3, "segment"),
        ("another system", "system_identifier", json!("1"), 4, "backup.json"),
        ("another version", "version_num", json!(180_000), 4, "its pg_control is of PostgreSQL 15"),
    ] {
        scene.lists(what, code, words, |lists| lists.mark["server"][field] = value);
    }
    scene.end();
}

/// A zstd frame of so many zeros, which takes next to no room.
fn bomb(bytes: u64) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes), &mut encoder).unwrap();
    encoder.finish().unwrap()
}
