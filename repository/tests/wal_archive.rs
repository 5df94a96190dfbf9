//! Archived WAL: the same file again, other files under its name, damage, keys, and standard tools.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use pgark_postgres::WalFileName;
use pgark_repository::{
    ClusterRepository, ErrorKind, ObjectKey, PreparedWalFile, RawDigest, RepositoryError, RepositoryOptions, Sealing,
    WalStored,
};

use crate::place::{Keys, Place, decrypting, encrypted, file_of, noise, open};

const SEGMENT: &str = "00000001000000000000000A";

fn name(text: &str) -> WalFileName {
    text.parse().unwrap()
}

/// Compresses like WAL does: half of it noise.
fn segment(seed: u64, mebibytes: usize) -> Vec<u8> {
    let mut raw = noise(seed, mebibytes << 20);
    raw.chunks_mut(8192).for_each(|page| page[4096..].fill(0));
    raw
}

fn prepare(file: &str, raw: &[u8]) -> PreparedWalFile {
    PreparedWalFile::prepare(name(file), raw, 3, 2).unwrap()
}

async fn fetch(repository: &ClusterRepository, file: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
    repository.fetch_wal_file(&name(file), Vec::new()).await
}

/// A writer's and a reader's view of one place.
struct Sides {
    name: &'static str,
    writer: ClusterRepository,
    reader: ClusterRepository,
    sealing: Sealing,
}

/// Without encryption, and with only the public key on the writing side.
fn sides(options: &RepositoryOptions, keys: &Keys) -> [Sides; 2] {
    let plain = Sides { name: "plain", writer: open(options), reader: open(options), sealing: Sealing::Plain };
    let options = RepositoryOptions { url: format!("{}/sealed", options.url), ..options.clone() };
    let age = Sides {
        name: "encrypted",
        writer: open(&encrypted(&options, keys)),
        reader: open(&decrypting(&options, keys)),
        sealing: Sealing::Age,
    };
    [plain, age]
}

fn object(side: &Sides, file: &str) -> ObjectKey {
    side.writer.keys().wal_file(&name(file), side.sealing)
}

async fn same_and_other(place: Place) {
    let keys = Keys::new();
    for side in sides(&place.options(), &keys) {
        let Sides { writer, reader, .. } = &side;
        let raw = segment(1, 16);
        assert!(!writer.has_wal_file(&name(SEGMENT)).await.unwrap());
        assert_eq!(writer.store_wal_file(&prepare(SEGMENT, &raw)).await.unwrap(), WalStored::New, "{}", side.name);
        assert!(writer.has_wal_file(&name(SEGMENT)).await.unwrap());
        let stored = writer.store().read(&object(&side, SEGMENT), 1 << 30).await.unwrap();

        // Again, as it is and compressed in another way: other bytes, the same content.
        assert_eq!(writer.store_wal_file(&prepare(SEGMENT, &raw)).await.unwrap(), WalStored::AlreadyThere);
        let otherwise = PreparedWalFile::prepare(name(SEGMENT), &raw, 9, 5).unwrap();
        assert_eq!(writer.store_wal_file(&otherwise).await.unwrap(), WalStored::AlreadyThere, "{}", side.name);

        let mut other = raw.clone();
        other[5_000_000] ^= 1;
        for other in [&other[..], &raw[..15 << 20], &[]] {
            let error = writer.store_wal_file(&prepare(SEGMENT, other)).await.unwrap_err();
            assert!(matches!(error, RepositoryError::Conflict { .. }), "{}: {error:?}", side.name);
            assert_eq!(error.kind(), ErrorKind::Conflict);
        }
        assert!(writer.store().read(&object(&side, SEGMENT), 1 << 30).await.unwrap() == stored, "{}", side.name);
        assert!(fetch(reader, SEGMENT).await.unwrap().unwrap() == raw, "{}", side.name);
    }
}

#[tokio::test]
async fn b01_b02_b32_local_tells_same_from_other() {
    same_and_other(Place::local()).await;
}

#[tokio::test]
async fn b01_b02_b32_s3s_tells_same_from_other() {
    same_and_other(Place::s3s()).await;
}

#[tokio::test]
async fn b01_b02_b32_azurite_tells_same_from_other() {
    same_and_other(Place::azurite()).await;
}

#[tokio::test]
async fn b01_b02_b32_gcs_stub_tells_same_from_other() {
    same_and_other(Place::gcs_stub()).await;
}

#[tokio::test]
#[ignore = "full suite: starts Ceph"]
async fn b01_b02_b32_rgw_tells_same_from_other() {
    same_and_other(Place::rgw()).await;
}

#[tokio::test]
async fn a51_b18_every_file_of_every_size_comes_back() {
    let place = Place::local();
    let keys = Keys::new();
    let files = [
        ("0000000100000000000000FF", segment(1, 1)),
        ("00000001000000000000000B", segment(2, 16)),
        ("00000001000000000000000C", segment(3, 64)),
        ("00000001000000000000000D", vec![0; 16 << 20]),
        ("00000001000000000000000E", noise(4, 16 << 20)),
        ("00000002000000000000000E.partial", segment(5, 16)),
        ("00000001000000000000000B.00000028.backup", b"START WAL LOCATION: 0/B000028\n".to_vec()),
        ("00000002.history", b"1\t0/E000000\tno recovery target specified\n".to_vec()),
        ("0000000A.history", b"2\t1/E000000\tbefore 2026-11-20 02:00:03+00\n".to_vec()),
    ];
    for side in sides(&place.options(), &keys) {
        for (file, raw) in &files {
            assert_eq!(fetch(&side.reader, file).await.unwrap(), None, "{file}");
            let stored = side.writer.store_wal_file(&prepare(file, raw)).await.unwrap();
            assert_eq!(stored, WalStored::New, "{} {file}", side.name);
            assert!(fetch(&side.reader, file).await.unwrap().as_ref() == Some(raw), "{} {file}", side.name);
            assert_eq!(side.writer.store_wal_file(&prepare(file, raw)).await.unwrap(), WalStored::AlreadyThere);
            let other = [raw.as_slice(), b"\n"].concat();
            let error = side.writer.store_wal_file(&prepare(file, &other)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{} {file}: {error:?}", side.name);
        }
        let inventory = side.reader.wal_inventory().await.unwrap();
        let segments: Vec<_> = inventory.segments.keys().map(ToString::to_string).collect();
        let expected = [
            "00000001000000000000000B",
            "00000001000000000000000C",
            "00000001000000000000000D",
            "00000001000000000000000E",
        ];
        assert_eq!(segments, [&expected[..], &["0000000100000000000000FF"]].concat());
        assert_eq!(inventory.histories.iter().map(|timeline| timeline.get()).collect::<Vec<_>>(), [2, 10]);
        let history = side.reader.timeline_history("0000000A".parse_timeline()).await.unwrap().unwrap();
        assert_eq!(history.entries().len(), 1);
        assert!(side.reader.timeline_history("00000003".parse_timeline()).await.unwrap().is_none());
        assert!(side.reader.timeline_history("00000001".parse_timeline()).await.unwrap().is_some());
    }
}

trait ParseTimeline {
    fn parse_timeline(&self) -> pgark_postgres::TimelineId;
}

impl ParseTimeline for str {
    fn parse_timeline(&self) -> pgark_postgres::TimelineId {
        pgark_postgres::TimelineId::new(u32::from_str_radix(self, 16).unwrap()).unwrap()
    }
}

/// Encryption was turned on, or off, between two sends of one file.
#[tokio::test]
async fn b32_turning_encryption_on_or_off_makes_no_second_object() {
    let keys = Keys::new();
    for encrypt_first in [false, true] {
        let place = Place::local();
        let options = place.options();
        let (plain, sealed) = (open(&options), open(&encrypted(&options, &keys)));
        let both = open(&decrypting(&encrypted(&options, &keys), &keys));
        let (first, second) = if encrypt_first { (&sealed, &plain) } else { (&plain, &sealed) };
        for file in [SEGMENT, "00000002.history"] {
            let raw = if file == SEGMENT { segment(1, 1) } else { b"1\t0/E000000\tx\n".to_vec() };
            assert_eq!(first.store_wal_file(&prepare(file, &raw)).await.unwrap(), WalStored::New);
            assert_eq!(second.store_wal_file(&prepare(file, &raw)).await.unwrap(), WalStored::AlreadyThere);
            let other = prepare(file, &[&raw[..], b"2\t0/F000000\ty\n"].concat());
            let error = second.store_wal_file(&other).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
            assert!(second.has_wal_file(&name(file)).await.unwrap());
            assert!(fetch(&both, file).await.unwrap().unwrap() == raw);
        }
        assert_eq!(plain.store().list(&plain.keys().wal()).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn c16_c17_without_the_right_key_nothing_is_read() {
    let place = Place::local();
    let (keys, others) = (Keys::new(), Keys::new());
    let options = place.options();
    let writer = open(&encrypted(&options, &keys));
    let raw = segment(1, 1);
    for file in [SEGMENT, "00000002.history"] {
        writer.store_wal_file(&prepare(file, &raw)).await.unwrap();
        for reader in [open(&options), writer.clone(), open(&decrypting(&options, &others))] {
            let output = Watched::default();
            let error = reader.fetch_wal_file(&name(file), output.clone()).await.unwrap_err();
            assert!(matches!(error, RepositoryError::NoKey { .. }), "{error:?}");
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert_eq!(*output.0.lock().unwrap(), 0);
        }
        // The right one among others.
        let several =
            RepositoryOptions { identities: vec![others.private.clone(), keys.private.clone()], ..options.clone() };
        assert!(fetch(&open(&several), file).await.unwrap().unwrap() == raw);
    }
    // Encrypted for two: each of them can read.
    let two = RepositoryOptions { recipients: vec![others.public.clone(), keys.public.clone()], ..options.clone() };
    open(&two).store_wal_file(&prepare("00000001000000000000000B", &raw)).await.unwrap();
    for keys in [&keys, &others] {
        assert!(fetch(&open(&decrypting(&options, keys)), "00000001000000000000000B").await.unwrap().unwrap() == raw);
    }
}

/// Counts what is written.
#[derive(Clone, Debug, Default)]
struct Watched(Arc<Mutex<usize>>);

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        *self.0.lock().unwrap() += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where the frames of a compressed object end, the note being the first.
fn frame_ends(stored: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    while *ends.last().unwrap() < stored.len() {
        let from = *ends.last().unwrap();
        ends.push(from + zstd::zstd_safe::find_frame_compressed_size(&stored[from..]).unwrap());
    }
    ends
}

/// Every truncation and many flips of a stored segment: never content that is not the segment's, and never a success.
#[tokio::test]
async fn b03_c13_a_damaged_segment_is_neither_believed_nor_given_out() {
    let place = Place::local();
    let keys = Keys::new();
    let raw = segment(1, 1);
    for side in sides(&place.options(), &keys) {
        let file = PreparedWalFile::prepare(name(SEGMENT), &raw, 3, 4).unwrap();
        side.writer.store_wal_file(&file).await.unwrap();
        let path = match side.sealing {
            Sealing::Plain => file_of(&place, object(&side, SEGMENT)),
            Sealing::Age => file_of(&place, format!("sealed/{}", object(&side, SEGMENT))),
        };
        let whole = std::fs::read(&path).unwrap();
        let length = whole.len();

        // Also between two frames, where zstd sees nothing wrong.
        let mut lengths = vec![0, 1, 7, 8, 50, 97, 98, 99, 200, length / 2, length - 65_000, length - 16, length - 1];
        if side.sealing == Sealing::Plain {
            assert_eq!(frame_ends(&whole).len(), 6);
            lengths.extend(&frame_ends(&whole)[..5]);
        }
        for shorter in lengths {
            std::fs::write(&path, &whole[..shorter]).unwrap();
            let read = fetch(&side.reader, SEGMENT).await;
            assert!(
                matches!(read, Err(RepositoryError::Damaged { .. })),
                "{} cut to {shorter}: {:?}",
                side.name,
                read.err()
            );
            let error = side.writer.store_wal_file(&file).await.unwrap_err();
            assert!(matches!(error, RepositoryError::Damaged { .. }), "{} cut to {shorter}: {error:?}", side.name);
        }
        for longer in [&b"\0"[..], &whole[..100]] {
            std::fs::write(&path, [&whole, longer].concat()).unwrap();
            let read = fetch(&side.reader, SEGMENT).await;
            assert!(matches!(read, Err(RepositoryError::Damaged { .. })), "{}: {:?}", side.name, read.err());
            let error = side.writer.store_wal_file(&file).await.unwrap_err();
            assert!(matches!(error, RepositoryError::Damaged { .. }), "{}: {error:?}", side.name);
        }

        let (mut damaged, mut harmless) = (0, 0);
        for at in (0..400).chain((400..length).step_by(length / 300)) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            match fetch(&side.reader, SEGMENT).await {
                Err(RepositoryError::Damaged { .. }) => damaged += 1,
                // The stanza of the only key: the header does not say who it was for any more.
                Err(RepositoryError::NoKey { .. }) if side.sealing == Sealing::Age && at < 400 => damaged += 1,
                // A bit that zstd does not look at.
                Ok(Some(read)) if read == raw && side.sealing == Sealing::Plain => harmless += 1,
                other => panic!("{} byte {at}: {other:?}", side.name),
            }
            let again = side.writer.store_wal_file(&file).await;
            match (side.sealing, &again) {
                (_, Err(RepositoryError::Damaged { .. } | RepositoryError::Conflict { .. })) => {}
                (Sealing::Plain, Ok(WalStored::AlreadyThere)) => assert!(harmless > 0, "byte {at}"),
                // Without the private key the encrypted content cannot be looked at, only its header and its length.
                (Sealing::Age, Ok(WalStored::AlreadyThere)) => {}
                other => panic!("{} byte {at}: {other:?}", side.name),
            }
            assert!(std::fs::read(&path).unwrap() == flipped, "it was changed");
        }
        assert!(harmless <= 8 && damaged > 600, "{}: {damaged} damaged, {harmless} harmless", side.name);
    }
}

/// Objects that are valid zstd, with a note that is none, or that lies.
#[tokio::test]
async fn b03_c18_an_object_whose_note_is_wrong_is_damaged() {
    let place = Place::local();
    let repository = place.open();
    let raw = segment(1, 1);
    let file = prepare(SEGMENT, &raw);
    repository.store_wal_file(&file).await.unwrap();
    let key = repository.keys().wal_file(&name(SEGMENT), Sealing::Plain);
    let path = file_of(&place, &key);
    let whole = std::fs::read(&path).unwrap();
    let frames = whole[frame_ends(&whole)[1]..].to_vec();
    let note = |text: &[u8]| {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        [&[0x5E, 0x2A, 0x4D, 0x18][..], &length, text].concat()
    };
    let text = |hash: &str, size: &str| format!("pgark-raw-blake3 {hash} {size}").into_bytes();
    let hash = RawDigest::of(&raw).hex();
    assert!(whole == [note(&text(&hash, "1048576")), frames.clone()].concat());

    let bomb = zstd::encode_all(std::io::repeat(0).take_bytes(1 << 30), 1).unwrap();
    let cases = [
        ("no note", frames.clone()),
        ("an empty note", [note(b""), frames.clone()].concat()),
        ("another note", [note(b"something else altogether"), frames.clone()].concat()),
        ("bytes that are no text", [note(&[0xff; 90]), frames.clone()].concat()),
        ("a long note", [note(&[b' '; 10_000]), frames.clone()].concat()),
        ("another hash", [note(&text(&"0".repeat(64), "1048576")), frames.clone()].concat()),
        ("a short hash", [note(&text(&hash[1..], "1048576")), frames.clone()].concat()),
        ("a hash with umlauts", [note(&text(&format!("ü{}", &hash[2..]), "1048576")), frames.clone()].concat()),
        ("another size", [note(&text(&hash, "1048577")), frames.clone()].concat()),
        ("no number", [note(&text(&hash, "many")), frames.clone()].concat()),
        ("a huge number", [note(&text(&hash, "18446744073709551615")), frames.clone()].concat()),
        ("a number that is none", [note(&text(&hash, "99999999999999999999999")), frames.clone()].concat()),
        ("a word too many", [note(&text(&hash, "1048576 x")), frames.clone()].concat()),
        ("only a note", note(&text(&hash, "1048576"))),
        ("a gigabyte of zeros", [note(&text(&hash, "1048576")), bomb].concat()),
        ("no zstd", [note(&text(&hash, "1048576")), noise(7, 100_000)].concat()),
        ("an HTML page", b"<html><body>Please log in.</body></html>".to_vec()),
    ];
    for (what, stored) in cases {
        std::fs::write(&path, &stored).unwrap();
        let output = Watched::default();
        let read = repository.fetch_wal_file(&name(SEGMENT), output.clone()).await.map(drop);
        assert!(matches!(read, Err(RepositoryError::Damaged { .. })), "{what}: {read:?}");
        assert!(*output.0.lock().unwrap() <= (1 << 20) + 1 || what == "a huge number", "{what}");
        let again = repository.store_wal_file(&file).await;
        assert!(matches!(again, Err(RepositoryError::Damaged { .. })), "{what}: {again:?}");
        assert!(std::fs::read(&path).unwrap() == stored, "{what}: it was changed");
    }
}

trait TakeBytes: std::io::Read + Sized {
    fn take_bytes(self, limit: u64) -> std::io::Take<Self> {
        std::io::Read::take(self, limit)
    }
}

impl TakeBytes for std::io::Repeat {}

/// PostgreSQL's disk is full: its fault, and not the repository's.
#[tokio::test]
async fn d02_an_output_that_fails_is_no_damage() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let place = Place::local();
    let repository = place.open();
    for file in [SEGMENT, "00000002.history"] {
        repository.store_wal_file(&prepare(file, b"1\t0/E000000\tx\n")).await.unwrap();
        let error = repository.fetch_wal_file(&name(file), Full).await.map(drop).unwrap_err();
        assert!(matches!(error, RepositoryError::Io { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn b13_b14_concurrent_senders_agree_on_one_content() {
    let place = Place::local();
    let keys = Keys::new();
    for side in sides(&place.options(), &keys) {
        let (ours, theirs) = (prepare(SEGMENT, &segment(1, 1)), prepare(SEGMENT, &segment(2, 1)));
        let senders = (0..12).map(|sender| {
            let (repository, file) = (side.writer.clone(), if sender % 2 == 0 { ours.clone() } else { theirs.clone() });
            tokio::spawn(async move { repository.store_wal_file(&file).await })
        });
        let ended: Vec<_> = join_all(senders).await.into_iter().map(|ended| ended.unwrap()).collect();
        assert_eq!(ended.iter().filter(|ended| matches!(ended, Ok(WalStored::New))).count(), 1, "{ended:?}");
        assert_eq!(ended.iter().filter(|ended| matches!(ended, Ok(WalStored::AlreadyThere))).count(), 5, "{ended:?}");
        let conflicts = ended.iter().filter(|ended| matches!(ended, Err(RepositoryError::Conflict { .. })));
        assert_eq!(conflicts.count(), 6, "{ended:?}");
    }
}

#[tokio::test]
async fn foreign_files_among_the_wal_are_passed_over() {
    let place = Place::local();
    let repository = place.open();
    repository.store_wal_file(&prepare(SEGMENT, &segment(1, 1))).await.unwrap();
    let folder = file_of(&place, repository.keys().wal_file(&name(SEGMENT), Sealing::Plain));
    let folder = folder.parent().unwrap();
    for foreign in [
        "README",
        "00000001000000000000000B",
        "00000001000000000000000b.zst",
        "00000001000000000000000C.gz",
        ".zst",
        "x.age",
    ] {
        std::fs::write(folder.join(foreign), b"foreign").unwrap();
    }
    std::fs::write(folder.join("../../00000003.history.zst"), b"foreign").unwrap();
    let inventory = repository.wal_inventory().await.unwrap();
    assert_eq!(inventory.segments.keys().map(ToString::to_string).collect::<Vec<_>>(), [SEGMENT]);
    assert_eq!(inventory.histories.len(), 0);
}

/// A pipeline of a shell; its output.
pub(crate) fn shell(script: &str, arguments: &[&Path]) -> Vec<u8> {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "bash"]).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said} (age, zstd and tar are needed)");
    output.stdout
}

/// Promise 3: what is stored needs no pgark.
#[tokio::test]
async fn standard_tools_read_the_wal() {
    let place = Place::local();
    let keys = Keys::new();
    let dir = harness::TempDir::new("keys");
    let identity = dir.write("identity.txt", format!("{}\n", keys.private));
    let raw = segment(1, 16);
    let history = b"1\t0/E000000\tno recovery target specified\n";
    for side in sides(&place.options(), &keys) {
        side.writer.store_wal_file(&prepare(SEGMENT, &raw)).await.unwrap();
        side.writer.store_wal_file(&prepare("00000001000000000000000A.00000028.backup", history)).await.unwrap();
        let prefix = if side.sealing == Sealing::Age { "sealed/" } else { "" };
        let path = |file| file_of(&place, format!("{prefix}{}", object(&side, file)));
        let (wal, text) = (path(SEGMENT), path("00000001000000000000000A.00000028.backup"));
        let (read, shown) = match side.sealing {
            Sealing::Plain => (shell("zstd -dc \"$1\"", &[&wal]), std::fs::read(text).unwrap()),
            Sealing::Age => (
                shell("age -d -i \"$2\" \"$1\" | zstd -dc", &[&wal, &identity]),
                shell("age -d -i \"$2\" \"$1\"", &[&text, &identity]),
            ),
        };
        assert!(read == raw, "{}", side.name);
        assert_eq!(shown, history);
    }
}
