#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const NAME_AT: usize = 0;
const SIZE_AT: usize = 124;
const TYPE_AT: usize = 156;

fn file(path: &str, content: &[u8]) -> Vec<u8> {
    let member = TarMember { path: path.into(), mode: 0o600, mtime: 1, size: Some(content.len() as u64) };
    let padding = vec![0; tar_padding(content.len() as u64)];
    [member.header().unwrap().as_slice(), content, &padding].concat()
}

fn directory(path: &str) -> Vec<u8> {
    TarMember { path: path.into(), mode: 0o700, mtime: 1, size: None }.header().unwrap().to_vec()
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 2 * TAR_BLOCK]].concat()
}

/// Writes bytes into the first header and makes its checksum right again.
fn tampered(mut archive: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    archive[at..at + bytes.len()].copy_from_slice(bytes);
    let mut header = tar::Header::from_byte_slice(&archive[..TAR_BLOCK]).clone();
    header.set_cksum();
    archive[..TAR_BLOCK].copy_from_slice(header.as_bytes());
    archive
}

type Found = (String, Option<Vec<u8>>);

fn read(archive: &[u8]) -> io::Result<Vec<Found>> {
    let mut reader = TarReader::new(archive);
    let mut found = Vec::new();
    while let Some(member) = reader.next_member()? {
        let path = String::from_utf8_lossy(&member.path).into_owned();
        let content = match member.size {
            None => None,
            Some(size) => {
                let mut content = Vec::new();
                reader.read_content(size, |bytes| {
                    content.extend_from_slice(bytes);
                    Ok(())
                })?;
                Some(content)
            }
        };
        found.push((path, content));
    }
    Ok(found)
}

#[test]
fn a_whole_archive_is_read() {
    let content = vec![7; 1000];
    let bytes = archive(&[directory("base"), file("base/1", &content), file("base/2", b""), file("x", &[1; 512])]);
    let expected = vec![
        ("base".to_owned(), None),
        ("base/1".to_owned(), Some(content)),
        ("base/2".to_owned(), Some(Vec::new())),
        ("x".to_owned(), Some(vec![1; 512])),
    ];
    assert_eq!(read(&bytes).unwrap(), expected);
}

#[test]
fn f01_paths_that_lead_out_are_refused() {
    for path in ["../x", "/etc/passwd", "a/../../b", "a//b", "a/./b", "C:\\x", ".."] {
        let mut name = path.as_bytes().to_vec();
        name.resize(100, 0);
        let refused = read(&tampered(archive(&[file("x", b"")]), NAME_AT, &name));
        assert!(refused.is_err(), "{path}: {refused:?}");
    }
}

#[test]
fn f02_f03_f06_links_devices_and_extensions_are_refused() {
    for kind in *b"12346789xgLKSVMXA" {
        let refused = read(&tampered(archive(&[file("x", b"")]), TYPE_AT, &[kind])).unwrap_err();
        assert!(refused.to_string().contains("only plain files"), "{}: {refused}", char::from(kind));
    }
}

#[test]
fn f04_wrong_headers_are_refused() {
    let good = archive(&[file("x", b"content")]);
    let mut checksum = good.clone();
    checksum[NAME_AT] = b'y';
    assert!(read(&checksum).is_err());
    for size in [&b"7777777777x\0"[..], b"-0000000007\0", &[0xFF; 12]] {
        assert!(read(&tampered(good.clone(), SIZE_AT, size)).is_err(), "{size:?}");
    }
    // More than there is.
    assert!(read(&tampered(good.clone(), SIZE_AT, b"77777777777\0")).is_err());
    // A magic of another kind of tar.
    assert!(read(&tampered(good, 257, b"ustar  \0")).is_err());
}

#[test]
fn f04_a_cut_or_something_behind_the_end_is_refused() {
    let good = archive(&[file("x", b"content"), directory("d")]);
    for length in 0..good.len() {
        assert!(read(&good[..length]).is_err(), "{length} of {}", good.len());
    }
    for extra in [vec![0; 512], b"x".to_vec(), file("y", b"")] {
        assert!(read(&[good.clone(), extra].concat()).is_err());
    }
}

#[test]
fn f04_padding_and_the_end_must_be_empty() {
    let mut padded = archive(&[file("x", b"content")]);
    padded[TAR_BLOCK + 100] = 1;
    assert!(read(&padded).is_err());
    let mut ended = archive(&[file("x", b"content")]);
    let last = ended.len() - 1;
    ended[last] = 1;
    assert!(read(&ended).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0usize..4096, byte: u8) {
        let mut bytes = archive(&[directory("base"), file("base/1", &[3; 700]), file("x", b"")]);
        let at = at % bytes.len();
        bytes[at] = byte;
        drop(read(&bytes));
    }
}
