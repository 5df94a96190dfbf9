//! F01–F09, A11, A49: what a server sends is input. A proxy sends the real `pgark-agent backup` a base backup that a real
//! server made and a hostile one changed. Each change is refused with one sentence, which each test names, with exit 1,
//! and leaves no commit mark.

mod proxy;
mod recording;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use harness::{Outcome, Program, local_repository};

use self::proxy::{Answer, CommandProxy};
pub(crate) use self::recording::{Archive, Manifest, Member};
use self::recording::{Recording, copy_data, data_row, message};
use crate::repository_files::RepositoryFiles;
use crate::site::{Site, assert_one_clear_line};

/// More than any answer of a hostile server may cost.
const MEMORY_LIMIT: u64 = 400 << 20;

/// A real server, what it sent for a backup, and the proxy that sends it again.
pub(crate) struct Hostile {
    pub(crate) site: Site,
    proxy: CommandProxy,
    pub(crate) recording: Recording,
    faults: Vec<String>,
    cases: usize,
}

impl Hostile {
    pub(crate) fn start() -> Self {
        let site = Site::start();
        let proxy = CommandProxy::start(site.server());
        proxy.record("BASE_BACKUP");
        let config = site.other_config("recorded.toml", Some(&proxy.connection_string()), None);
        Program::agent().config(&config).as_test_user().arg("backup").succeed();
        let recording = Recording::new(&proxy.recorded());
        Self { site, proxy, recording, faults: Vec::new(), cases: 0 }
    }

    /// Takes a backup with this answer to `BASE_BACKUP`.
    pub(crate) fn backup(&mut self, command: &'static str, answer: Answer) -> (Outcome, RepositoryFiles) {
        self.proxy.answer(command, answer);
        self.cases += 1;
        let folder = format!("repository-{}", self.cases);
        let repository = local_repository(self.site.dir(), "local", &folder);
        let config = self.site.other_config("hostile.toml", Some(&self.proxy.connection_string()), Some(&repository));
        let outcome =
            Program::agent().config(&config).as_test_user().arg("backup").limit(Duration::from_secs(60)).run();
        (outcome, RepositoryFiles::new(&self.site.dir().join(folder)))
    }

    /// The answer is refused with these words.
    fn refused(&mut self, what: &str, command: &'static str, answer: Answer, words: &str) {
        let (outcome, files) = self.backup(command, answer);
        let line = if outcome.stderr.contains(": error: ") { assert_one_clear_line(&outcome) } else { String::new() };
        println!("{what}: {line}");
        let mut wrong = Vec::new();
        if outcome.code != Some(1) {
            wrong.push(format!("exit {:?}", outcome.code));
        }
        if !line.contains(words) {
            wrong.push(format!("no {words:?} in {:?}", outcome.stderr));
        }
        if !files.committed().is_empty() {
            wrong.push("there is a commit mark".to_owned());
        }
        if outcome.peak_memory_bytes > MEMORY_LIMIT {
            wrong.push(format!("{} bytes of memory", outcome.peak_memory_bytes));
        }
        if !wrong.is_empty() {
            self.faults.push(format!("{what}: {}", wrong.join("; ")));
        }
    }

    /// The backup with one change is refused with these words.
    fn changed(&mut self, what: &str, words: &str, change: impl FnOnce(&mut Recording)) {
        let mut recording = self.recording.clone();
        change(&mut recording);
        self.refused(what, "BASE_BACKUP", recording.answer(), words);
    }

    fn end(self) {
        println!("{} cases", self.cases);
        assert!(self.faults.is_empty(), "{} cases went wrong:\n{}", self.faults.len(), self.faults.join("\n"));
    }
}

/// Without this, the other tests would prove nothing.
#[test]
fn a_replayed_backup_without_a_change_is_committed() {
    let site = Hostile::start();
    let (proxy, mut recording) = (&site.proxy, site.recording.clone());
    let location = site.site.dir().join("space");
    let archive = recording.add_tablespace(16999, &location.display().to_string());
    archive.add(Member::new(b"PG_15_202209061", b'5', b""));
    let config = site.site.other_config("sound.toml", Some(&proxy.connection_string()), None);
    for recording in [site.recording.clone(), recording] {
        proxy.answer("BASE_BACKUP", recording.answer());
        Program::agent().config(&config).as_test_user().arg("backup").succeed();
    }
    assert_eq!(site.site.files().committed().len(), 3);
}

#[test]
fn f01_f06_a11_hostile_names_and_kinds_are_refused() {
    let mut hostile = Hostile::start();
    for title in
        ["../x.tar", "/base.tar", "base.tar\n", "016384.tar", "+16384.tar", "4294967296.tar", "base.tar.gz", ""]
    {
        hostile.changed(&format!("archive {title:?}"), "has a name that no server gives", |backup| {
            backup.add_archive(format!("{title}\0\0").as_bytes());
        });
    }
    hostile.changed(
        "an archive that nobody listed",
        "archive \"99999.tar\" is of no tablespace that the server listed",
        |backup| {
            backup.add_archive(b"99999.tar\0/srv/x\0");
        },
    );
    hostile.changed("the same archive again", "archive \"base.tar\" is sent twice", |backup| {
        backup.add_archive(b"base.tar\0\0");
    });
    hostile.changed("no archive of a listed tablespace", "ended without 16999.tar", |backup| {
        backup.add_tablespace(16999, "/srv/x");
        backup.archives.remove(0);
    });
    for path in ["/etc/cron.d/x", "../outside", "base/../../outside", "base//1", "base/./1", ".."] {
        hostile.changed(&format!("member {path:?}"), &format!("the path `{path}` is not allowed"), |backup| {
            backup.base().add(Member::new(path.as_bytes(), b'0', b"x"));
        });
    }
    hostile.changed("a member without a name", "the path `` is not allowed", |backup| {
        backup.base().add(Member::new(b"", b'0', b"x"));
    });
    for (what, kind) in
        [("hard link", '1'), ("symbolic link", '2'), ("character device", '3'), ("block device", '4'), ("fifo", '6')]
    {
        hostile.changed(&format!("a {what}"), &format!("`base/x` is of type `{kind}`; only plain files"), |backup| {
            let mut member = Member::new(b"base/x", kind as u8, b"");
            member.set(157, b"../../../etc/passwd");
            backup.base().add(member);
        });
    }
    for kind in ['x', 'g', 'L', 'K', 'S'] {
        hostile.changed(&format!("an extension {kind}"), "only plain files and directories are allowed", |backup| {
            backup.base().add(Member::new(b"././@LongLink", kind as u8, b"20 path=../outside\n"));
        });
    }
    hostile.changed("a name behind the name", "behind the end of the name `base/x` stands something else", |backup| {
        let mut member = Member::new(b"base/x", b'0', b"x");
        member.set(7, b"../../outside");
        backup.base().add(member);
    });
    // A line and a colour of its own: the name is allowed, and told so that it commands nothing.
    hostile.changed("control characters", "`base/a\\nb\\u{1b}[2J` arrived", |backup| {
        backup.base().add(Member::new(b"base/a\nb\x1b[2J", b'0', b"x"));
    });
    hostile.end();
}

#[test]
fn f04_f05_hostile_sizes_and_contents_are_refused() {
    let mut hostile = Hostile::start();
    let sized = |content: usize, size: &[u8]| {
        let mut member = Member::new(b"base/x", b'0', &vec![b'x'; content]);
        member.set(124, size);
        member
    };
    hostile.changed("a size that is too small", "the space behind a file's content is not empty", |backup| {
        backup.base().add(sized(100, b"00000000050"));
    });
    hostile.changed("a size that is a block too small", "the block is not a ustar header", |backup| {
        backup.base().add(sized(1024, b"00000001000"));
    });
    hostile.changed("a size that is too large", "the archive ends inside of a member", |backup| {
        backup.base().add(sized(100, b"70000000000"));
    });
    for (what, size) in [
        ("a negative size", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x38".as_slice()),
        ("a negative size that ends well", b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x64"),
        ("a size over 63 bits", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("a size of other letters", b"0000000008x"),
        ("a size with a sign", b"+0000000144"),
        ("no size", b"\0\0\0\0\0\0\0\0\0\0\0\0"),
    ] {
        hostile.changed(what, "`base/x` has no readable size", |backup| backup.base().add(sized(100, size)));
    }
    hostile.changed("a wrong checksum of a header", "the block is not a ustar header", |backup| {
        let mut member = Member::new(b"base/x", b'0', b"x");
        member.header[3] ^= 1;
        backup.base().add(member);
    });
    hostile.changed("bytes behind the end", "the archive goes on after its end", |backup| {
        let hidden = Member::new(b"base/x", b'0', b"x");
        backup.base().end.extend_from_slice(&hidden.header);
    });
    hostile.changed("an archive that is cut", "the archive ends inside of a member", |backup| {
        let base = backup.base();
        base.end.clear();
        let last = base.members.last_mut().unwrap();
        last.content.truncate(last.content.len() - 512);
    });
    hostile.changed("a directory with content", "the directory `base/x/` has content", |backup| {
        backup.base().add(Member::new(b"base/x/", b'5', b"x"));
    });
    for path in ["backup_label", "global/pg_control", "PG_VERSION"] {
        hostile.changed(&format!("a second {path}"), &format!("`{path}` comes twice"), |backup| {
            let again = backup.base().member(path).clone();
            backup.base().members.push(again);
        });
        if path != "PG_VERSION" {
            hostile.changed(&format!("no {path}"), &format!("the server sent no {path}"), |backup| {
                backup.base().members.retain(|member| member.path() != path);
            });
        }
    }
    hostile.changed(
        "pg_control in a tablespace",
        "`global/pg_control` is in 16999.tar of the server, where no server puts it",
        |backup| {
            let control = backup.base().member("global/pg_control").clone();
            backup.add_tablespace(16999, "/srv/x").add(control);
        },
    );
    for path in ["pg_tblspc/16999/PG_15_202209061/x", "backup_manifest", "postmaster.pid"] {
        hostile.changed(path, &format!("`{path}` is in base.tar of the server, where no server puts it"), |backup| {
            backup.base().add(Member::new(path.as_bytes(), b'0', b"x"));
        });
    }
    hostile.changed("a backup_label of 17 MiB", "the server sent `backup_label` with 17825792 bytes", |backup| {
        backup.set_file("backup_label", vec![b'\n'; 17 << 20]);
    });
    hostile.changed("a backup_label of another start", "backup_label says that the backup starts at", |backup| {
        let label = String::from_utf8(backup.base().member("backup_label").content.clone()).unwrap();
        let start = label.split(' ').nth(3).unwrap();
        let other = label.replacen(start, "0/1000028", 1);
        backup.set_file("backup_label", other.into_bytes());
    });
    hostile.changed(
        "a backup_label with one more line",
        "backup_label has an unknown line \"STANDBY: /bin/sh\"",
        |backup| {
            let mut label = backup.base().member("backup_label").content.clone();
            label.extend_from_slice(b"STANDBY: /bin/sh\n");
            backup.set_file("backup_label", label);
        },
    );
    hostile.changed("a damaged pg_control", "read the server's pg_control", |backup| {
        let mut control = backup.base().member("global/pg_control").content.clone();
        control[20] ^= 1;
        backup.set_file("global/pg_control", control);
    });
    for (what, map, words) in [
        ("a map of other tablespaces", "16384 /etc\n", "tablespace_map names [16384], but it listed []"),
        ("a map that leads nowhere", "16384 ../../etc\n", "read the server's tablespace_map"),
    ] {
        hostile.changed(what, words, |backup| backup.set_file("tablespace_map", map.into()));
    }
    hostile.end();
}

#[test]
fn f09_f12_a_manifest_that_lies_is_refused() {
    let mut hostile = Hostile::start();
    let mut lies = |what: &str, words: &str, change: &dyn Fn(&mut Manifest)| {
        hostile.changed(what, words, |backup| change(&mut backup.manifest));
    };
    lies("it lacks a file", "`PG_VERSION` arrived", &|manifest| {
        manifest.files.retain(|line| !line.contains("\"PG_VERSION\""))
    });
    lies("it has a file too many", "it lists `base/extra`, which did not arrive", &|manifest| {
        manifest.files.push(Manifest::entry("base/extra", b""));
    });
    lies("another content", "`PG_VERSION` arrived with another checksum", &|manifest| {
        *manifest.line("PG_VERSION") = Manifest::entry("PG_VERSION", b"99\n");
    });
    lies("another size", "`PG_VERSION` has 4 bytes, 3 arrived", &|manifest| {
        *manifest.line("PG_VERSION") = Manifest::entry("PG_VERSION", b"999\n");
    });
    lies("a path that leads out", "does not match its manifest", &|manifest| {
        *manifest.line("PG_VERSION") = Manifest::entry("../PG_VERSION", b"15\n");
    });
    lies("no WAL", "does not match its manifest", &|manifest| manifest.ranges.clear());
    for (what, from, to, words) in [
        ("WAL from elsewhere", "\"Start-LSN\": \"0/2", "\"Start-LSN\": \"0/1", "but the server said"),
        (
            "WAL that ends before it starts",
            "\"Start-LSN\": \"",
            "\"Start-LSN\": \"1",
            "WAL range ends before it starts",
        ),
        ("WAL with more to it", "\"End-LSN\": \"", "\"x\": \"0/1\", \"End-LSN\": \"", "unknown field `x`"),
        ("another timeline", "\"Timeline\": 1", "\"Timeline\": 2", "but the server said"),
        ("a timeline that is none", "\"Timeline\": 1", "\"Timeline\": -1", "does not match its manifest"),
    ] {
        lies(what, words, &|manifest| manifest.ranges[0] = manifest.ranges[0].replacen(from, to, 1));
    }
    lies("WAL without end", "but the server said", &|manifest| {
        let start = manifest.ranges[0].split("\"End-LSN\"").next().unwrap().to_owned();
        manifest.ranges[0] = format!("{start}\"End-LSN\": \"FFFFFFFF/FFFFFFFF\" }}");
    });
    lies("a gap in its WAL", "but the server said", &|manifest| {
        manifest.ranges.push("{ \"Timeline\": 1, \"Start-LSN\": \"0/28\", \"End-LSN\": \"0/30\" }".to_owned());
    });
    lies("it is cut", "does not match its manifest", &|manifest| {
        let mut bytes = manifest.bytes();
        bytes.truncate(bytes.len() - 30);
        manifest.instead = Some(bytes);
    });
    lies("it is empty", "does not match its manifest", &|manifest| manifest.instead = Some(Vec::new()));
    lies("it has another checksum of itself", "does not match its manifest", &|manifest| {
        let text = String::from_utf8(manifest.bytes()).unwrap();
        manifest.instead = Some(text.replacen("GMT", "CET", 1).into_bytes());
    });
    lies("it is nested without end", "does not match its manifest", &|manifest| {
        manifest.instead = Some(vec![b'['; 1 << 20]);
    });
    // The server itself agrees with what cannot be.
    hostile.changed("a backup that takes 16 EiB of WAL", "which cannot be", |backup| {
        let manifest = &mut backup.manifest;
        let start = manifest.ranges[0].split("\"Start-LSN\": \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        manifest.ranges[0] = format!("{{ \"Timeline\": 1, \"Start-LSN\": \"{start}\", \"End-LSN\": \"FFFFFFFF/0\" }}");
        let end = backup.tail.iter().position(|message| message[0] == b'D').unwrap();
        backup.tail[end] = data_row(&[Some("FFFFFFFF/0"), Some("1")]);
    });
    long_manifest(&mut hostile, 200 << 20);
    hostile.end();
}

#[test]
#[ignore = "long: make soak"]
fn soak_f09_a_manifest_of_a_gigabyte_takes_no_memory() {
    let mut hostile = Hostile::start();
    long_manifest(&mut hostile, 1 << 30);
    hostile.end();
}

/// In lines that could be right, and in one line.
fn long_manifest(hostile: &mut Hostile, bytes: usize) {
    for (what, line) in [("lines", Manifest::entry("base/1/1", b"x") + ",\n"), ("one line", "x".repeat(200))] {
        let recording = hostile.recording.clone();
        let line = line.into_bytes();
        let answer = Arc::new(move |output: &mut dyn Write| {
            let mut backup = recording.clone();
            let tail = std::mem::take(&mut backup.tail);
            backup.play(output)?;
            let piece = copy_data(b'd', &line.repeat(64));
            for _ in 0..bytes / piece.len() {
                output.write_all(&piece)?;
            }
            tail.iter().try_for_each(|message| output.write_all(message))
        });
        hostile.refused(
            &format!("a manifest of {bytes} bytes in {what}"),
            "BASE_BACKUP",
            answer,
            "does not match its manifest",
        );
    }
}

#[test]
fn a49_a11_hostile_messages_are_refused_in_bounded_memory() {
    let mut hostile = Hostile::start();
    let head: Vec<u8> = hostile.recording.head.concat();
    let begin = [head.clone(), copy_data(b'n', b"base.tar\0\0")].concat();
    let manifest = [begin.clone(), copy_data(b'm', b"")].concat();
    let once = |before: &[u8], bytes: &[u8]| -> Answer {
        let bytes = [before, bytes].concat();
        Arc::new(move |output| output.write_all(&bytes))
    };
    let cases: Vec<(&str, &[u8], Vec<u8>, &str)> = vec![
        (
            "a message of 4 GiB",
            &begin,
            b"d\xff\xff\xff\xf0d".to_vec(),
            "message 'd' has length 4294967280, expected 4 to",
        ),
        ("a message of -1 bytes", &begin, b"d\0\0\0\x03".to_vec(), "message 'd' has length 3, expected 4 to"),
        ("an error of 16 MiB", &begin, b"E\x01\0\0\0".to_vec(), "message 'E' has length 16777216"),
        ("an unknown message", &begin, message(b'!', b""), "unknown message '!'"),
        ("an unknown piece", &begin, copy_data(b'x', b""), "unknown piece 'x' of a base backup"),
        ("an empty piece", &begin, message(b'd', b""), "empty piece of a base backup"),
        ("data before an archive", &head, copy_data(b'd', b"x"), "data before an archive"),
        ("progress of three bytes", &begin, copy_data(b'p', b"123"), "malformed progress message"),
        ("an archive behind the manifest", &manifest, copy_data(b'n', b"base.tar\0\0"), "begins after the manifest"),
        ("a second manifest", &manifest, copy_data(b'm', b""), "malformed start of a manifest"),
        ("an end without a manifest", &begin, message(b'c', b""), "ended without a manifest"),
        ("an end without anything", &head, message(b'c', b""), "ended without base.tar"),
        ("a row in the copy", &begin, data_row(&[Some("x")]), "unexpected DataRow in a base backup"),
        ("a login in the copy", &begin, message(b'R', &[0, 0, 0, 3]), "unexpected Authentication in a base backup"),
    ];
    for (what, before, bytes, words) in cases {
        hostile.refused(what, "BASE_BACKUP", once(before, &bytes), words);
    }
    let notice = message(b'N', b"SWARNING\0VWARNING\0C01000\0Mendless\0\0");
    let debug = message(b'N', b"SDEBUG\0VDEBUG\0C00000\0Mendless\0\0");
    let parameter = |number: u64| message(b'S', format!("p{number}\0{}\0", "x".repeat(1000)).as_bytes());
    hostile.refused(
        "endless notices",
        "BASE_BACKUP",
        endless(begin.clone(), move |_| debug.clone()),
        "more than 10000 notices in a row",
    );
    hostile.refused(
        "endless warnings",
        "IDENTIFY_SYSTEM",
        endless(Vec::new(), move |_| notice.clone()),
        "more than 10000 notices in a row",
    );
    hostile.refused(
        "endless parameters",
        "IDENTIFY_SYSTEM",
        endless(Vec::new(), parameter),
        "too many or too long parameters",
    );
    hostile.refused(
        "endless rows",
        "IDENTIFY_SYSTEM",
        endless(Vec::new(), |_| data_row(&[Some("x")])),
        "a result goes on after 100000 rows",
    );
    let large = "x".repeat(8 << 20);
    hostile.refused(
        "rows without measure",
        "BASE_BACKUP",
        endless(Vec::new(), move |_| data_row(&[Some(&large)])),
        "a result goes on after 16 rows",
    );
    hostile.end();
}

/// Goes on until the client has had enough.
fn endless(begin: Vec<u8>, next: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static) -> Answer {
    Arc::new(move |output| -> io::Result<()> {
        output.write_all(&begin)?;
        (0..).try_for_each(|number| output.write_all(&next(number)))
    })
}
