//! A backup whose manifest does not match what arrived is refused with a sentence, and does not exist afterwards.

use pgark_repository::{BackupWriterOptions, RepositoryError};

use crate::place::Place;
use crate::sample_backup::{Manifest, OPTIONS, Sample, begin, entry, entry_with};

/// Writes the sample with this manifest; returns the sentence.
async fn refusal(sample: &Sample, manifest: &str) -> String {
    let place = Place::local();
    let repository = place.open();
    let error = sample.write(std::slice::from_ref(&repository), OPTIONS, manifest).await.err();
    let Some(RepositoryError::Input(sentence)) = error else { panic!("{error:?}\n{manifest}") };
    let list = repository.backups().await.unwrap();
    assert_eq!((list.finished.len(), list.unfinished.len()), (0, 1), "{sentence}");
    let stored = repository.store().list(&repository.keys().backups()).await.unwrap();
    assert!(stored.iter().all(|object| !object.key.as_str().contains("backup_manifest")), "{stored:?}");
    sentence
}

fn edited(edit: impl FnOnce(&mut Vec<String>)) -> String {
    let Manifest(mut lines) = Sample::small().manifest();
    edit(&mut lines);
    Manifest(lines).text()
}

#[tokio::test]
async fn f05_f12_every_difference_is_named() {
    let last = Sample::small().manifest().0.len() - 1;
    let place_of = |name: &str| Sample::small().manifest().0.iter().position(|line| line.contains(name)).unwrap();
    let (one, version) = (place_of("base/1/one"), place_of("PG_VERSION"));
    let crc = |digits: &str| entry_with(b"base/1/one", 1, digits);
    let cases = [
        ("lacks the first", edited(|lines| drop(lines.remove(0))), "`backup_label` arrived"),
        ("lacks one in the middle", edited(|lines| drop(lines.remove(one))), "`base/1/one` arrived"),
        ("lacks the last", edited(|lines| drop(lines.remove(last))), "nnn` arrived, but is not listed"),
        ("has one more", edited(|lines| lines.insert(one, entry(b"base/1/extra", b"x"))), "it lists `base/1/extra`"),
        (
            "has one more at its end",
            edited(|lines| lines.push(entry(b"z", b"x"))),
            "it lists `z`, which did not arrive",
        ),
        ("has one twice", edited(|lines| lines.insert(one, lines[one].clone())), "it lists `base/1/one` where"),
        (
            "has another order",
            edited(|lines| lines.swap(one, version)),
            "it lists `base/1/one` where `PG_VERSION` arrived",
        ),
        (
            "has another size",
            edited(|lines| lines[one] = entry_with(b"base/1/one", 2, "90f599e3")),
            "`base/1/one` has 2 bytes, 1 arrived",
        ),
        (
            "has another checksum",
            edited(|lines| lines[one] = crc("00000001")),
            "`base/1/one` arrived with another checksum",
        ),
        ("has another name", edited(|lines| lines[one] = entry(b"base/1/One", b"1")), "it lists `base/1/One`"),
        ("lists a directory", edited(|lines| lines.insert(one, entry(b"base/1", b""))), "it lists `base/1` where"),
        ("leads out", edited(|lines| lines[one] = entry(b"../one", b"1")), "../one"),
        (
            "has no checksum",
            edited(|lines| {
                let at = lines[one].find(", \"Checksum-Algorithm\"").unwrap();
                lines[one].truncate(at);
                lines[one].push_str(" }");
            }),
            "`base/1/one` has no CRC32C",
        ),
    ];
    for (what, manifest, expected) in cases {
        let sentence = refusal(&Sample::small(), &manifest).await;
        assert!(sentence.contains(expected), "a manifest that {what}: {sentence}");
        assert!(sentence.starts_with("what the server sent does not match its manifest: "), "{sentence}");
    }
}

#[tokio::test]
async fn f09_a_broken_manifest_is_refused() {
    let whole = Sample::small().manifest().text();
    let mut cases =
        vec![String::new(), "{}".to_owned(), "\u{0}".repeat(300), whole.clone() + "\n{}", "[".repeat(100_000)];
    cases.extend((1..whole.len()).step_by(97).map(|length| whole[..length].to_owned()));
    cases.push(whole[..whole.len() - 1].to_owned() + "}\n");
    // Its own checksum, over every byte of it.
    cases.push(whole.replacen("01:53:20", "01:53:21", 1));
    cases.push(whole.replace("\"Timeline\": 1", "\"Timeline\": 2"));
    let at = whole.find("\"Manifest-Checksum\": \"").unwrap() + 22;
    let digit = if whole.as_bytes()[at] == b'0' { "1" } else { "0" };
    cases.push(format!("{}{digit}{}", &whole[..at], &whole[at + 1..]));
    for manifest in cases {
        refusal(&Sample::small(), &manifest).await;
    }
}

/// A comparison that has failed early neither blocks nor ends the rest of a long manifest.
#[tokio::test]
async fn a21_a_long_manifest_that_is_wrong_in_its_first_line_is_taken_to_its_end() {
    let sample = Sample::large();
    let Manifest(mut lines) = sample.manifest();
    lines[0] = entry(b"other", b"x");
    let sentence = refusal(&sample, &Manifest(lines).text()).await;
    assert!(sentence.contains("it lists `other`"), "{sentence}");
}

#[tokio::test]
async fn f05_a_path_that_comes_twice_is_refused() {
    for name in ["backup_label", "base/1", "base/1/one"] {
        let mut sample = Sample::small();
        let at = sample.0.iter().position(|(member, _)| member.path == name.as_bytes()).unwrap();
        sample.0.push(sample.0[at].clone());
        let sentence = refusal(&sample, &sample.manifest().text()).await;
        assert!(sentence.starts_with(&format!("`{name}` comes twice")), "{sentence}");
    }
}

#[tokio::test]
async fn a18_files_that_are_longer_or_shorter_than_announced_are_refused() {
    let place = Place::local();
    let repositories = [place.open()];
    let options = BackupWriterOptions { part_bytes: 1, ..OPTIONS };
    let sample = Sample::small();
    let (file, content) = sample.files().next().unwrap();

    let mut longer = begin(&repositories, options).await.unwrap();
    longer.begin_member(file, None).await.unwrap();
    longer.write(content).await.unwrap();
    let error = longer.write(b"x").await.unwrap_err();
    assert!(matches!(&error, RepositoryError::Input(text) if text.contains("more bytes")), "{error:?}");
    longer.abort().await;

    let mut shorter = begin(&repositories, options).await.unwrap();
    shorter.begin_member(file, None).await.unwrap();
    shorter.write(&content[1..]).await.unwrap();
    let error = shorter.begin_member(file, None).await.unwrap_err();
    assert!(error.to_string().contains("`backup_label` ended 1 bytes early"), "{error}");
    let error = shorter.begin_manifest().await.err().unwrap();
    assert!(error.to_string().contains("`backup_label` ended 1 bytes early"), "{error}");
    assert_eq!(repositories[0].backups().await.unwrap().finished, []);
}
