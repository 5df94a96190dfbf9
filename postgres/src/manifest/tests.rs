#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::{Lsn, TimelineId};
use proptest::prelude::*;

/// Written by a PostgreSQL 15 server; compressed, since it names a thousand files.
const REAL_15_ZST: &[u8] = include_bytes!("../../tests/samples/15/backup_manifest.zst");

const FILE: &str = r#"{ "Path": "base/1/2", "Size": 8192, "Last-Modified": "2026-11-21 04:00:29 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "994e7be2" }"#;
const RANGE: &str = r#"{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }"#;

fn real() -> Vec<u8> {
    zstd::decode_all(REAL_15_ZST).unwrap()
}

/// Puts the checksum under the lines, as a server does.
fn sealed(lines: &str) -> Vec<u8> {
    let digest: String = Sha256::digest(lines.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{lines}\"Manifest-Checksum\": \"{digest}\"}}\n").into_bytes()
}

fn manifest(files: &str, ranges: &str) -> Vec<u8> {
    sealed(&format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}],\n\"WAL-Ranges\": [\n{ranges}],\n"
    ))
}

fn read(content: &[u8]) -> Result<(Vec<ManifestFile>, ManifestEnd), ManifestError> {
    let mut reader = ManifestReader::new(content)?;
    let files = reader.by_ref().collect::<Result<_, _>>()?;
    Ok((files, reader.finish()?))
}

fn one_file(object: &str) -> Result<ManifestFile, ManifestError> {
    let (files, _) = read(&manifest(&format!("{object}\n"), &format!("{RANGE}\n")))?;
    Ok(files.into_iter().next().unwrap())
}

fn one_range(object: &str) -> Result<WalRange, ManifestError> {
    let (_, end) = read(&manifest(&format!("{FILE}\n"), &format!("{object}\n")))?;
    Ok(end.wal_ranges[0])
}

#[test]
fn a_real_manifest_is_read() {
    let (files, end) = read(&real()).unwrap();
    assert_eq!((end.version, end.system_identifier), (1, None));
    assert_eq!(files.len(), std::str::from_utf8(&real()).unwrap().matches("\"Size\"").count());
    assert_eq!(files[0].path, b"backup_label");
    let label = crc32c::crc32c(include_bytes!("../../tests/samples/15/backup_label"));
    assert_eq!(files[0].checksum, Some(ManifestChecksum::crc32c(label)));
    assert_eq!(files.last().unwrap().path, b"global/pg_control");
    let [range] = end.wal_ranges[..] else { unreachable!() };
    assert_eq!((range.timeline, range.start), (TimelineId::FIRST, Lsn::new(0x180_0028)));
}

#[test]
fn a_real_manifest_of_an_incremental_backup_is_read() {
    let content = zstd::decode_all(&include_bytes!("../../tests/samples/18/backup_manifest.zst")[..]).unwrap();
    let (files, end) = read(&content).unwrap();
    let facts = include_str!("../../tests/samples/18/control-facts");
    assert_eq!(end.version, 2);
    assert_eq!(end.system_identifier.unwrap().to_string(), facts.split(' ').next().unwrap());
    assert!(files.iter().any(|file| file.path.starts_with(b"base/5/INCREMENTAL.")));
    assert_eq!(end.wal_ranges[0].start, Lsn::new(0xE0_0028));
}

#[test]
fn finish_reads_what_was_not_asked_for() {
    let content = real();
    let mut reader = ManifestReader::new(content.as_slice()).unwrap();
    reader.next_file().unwrap();
    assert_eq!(reader.finish().unwrap(), read(&content).unwrap().1);
}

#[test]
fn version_2_names_the_cluster() {
    let lines = |identifier: &str| {
        sealed(&format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {identifier},\n\"Files\": [\n],\n\"WAL-Ranges\": [\n{RANGE}\n],\n"
        ))
    };
    let (files, end) = read(&lines("18446744073709551615")).unwrap();
    assert!(files.is_empty());
    assert_eq!((end.version, end.system_identifier), (2, Some(SystemIdentifier::new(u64::MAX))));
    for identifier in ["\"7\"", "7.0", "-7", "7e3", "null", "", "18446744073709551616"] {
        assert!(matches!(read(&lines(identifier)), Err(ManifestError::Unexpected { line: 2, .. })), "{identifier}");
    }
}

#[test]
fn a_crc_is_written_lowest_byte_first() {
    assert_eq!(crc32c_to_hex(0xE27B_4E99), "994e7be2");
    assert_eq!(crc32c_from_hex("994e7be2"), Some(0xE27B_4E99));
    assert_eq!(crc32c_to_hex(crc32c::crc32c(b"")), "00000000");
    assert_eq!(crc32c_from_hex("994e7be"), None);
    let file = one_file(FILE).unwrap();
    assert_eq!(file.checksum.as_ref().and_then(ManifestChecksum::as_crc32c), Some(0xE27B_4E99));
    assert_eq!(file.checksum.unwrap().to_string(), "994e7be2");
}

#[test]
fn paths_may_be_encoded_or_escaped() {
    let encoded = FILE.replace(r#""Path": "base/1/2""#, r#""Encoded-Path": "6c6f672fff""#);
    assert_eq!(one_file(&encoded).unwrap().path, b"log/\xff");
    let escaped = FILE.replace("base/1/2", r"log/\u00e9\\\u0001\ud83d\ude00");
    assert_eq!(one_file(&escaped).unwrap().path, "log/é\\\u{1}😀".as_bytes());
}

#[test]
fn checksums_may_be_left_out_or_longer() {
    let none = FILE.replace(r#", "Checksum-Algorithm": "CRC32C", "Checksum": "994e7be2""#, "");
    assert_eq!(one_file(&none).unwrap().checksum, None);
    for (name, bytes) in [("SHA224", 28), ("SHA256", 32), ("SHA384", 48), ("SHA512", 64)] {
        let file = one_file(&FILE.replace("CRC32C", name).replace("994e7be2", &"ab".repeat(bytes))).unwrap();
        assert_eq!(file.checksum.unwrap().bytes, vec![0xAB; bytes]);
    }
}

#[test]
fn f09_wrong_files_are_refused() {
    for (from, to) in [
        (r#""Path": "base/1/2", "#, ""),
        (r#""Path""#, r#""Encoded-Path": "61", "Path""#),
        (r#""Path""#, r#""Extra": 1, "Path""#),
        (r#""Path": "#, r#""Path": "base/1/1", "Path": "#),
        (r#""Size": 8192, "#, r#""Size": 8192, "Size": 8192, "#),
        (r#""Size": 8192, "#, ""),
        ("8192", "\"8192\""),
        ("8192", "-1"),
        ("8192", "8192.0"),
        ("8192", "1e3"),
        ("8192", "null"),
        ("8192", "9223372036854775808"),
        ("8192", "99999999999999999999"),
        (r#""Last-Modified": "2026-11-21 04:00:29 GMT", "#, ""),
        ("\"base/1/2\"", "null"),
        ("\"base/1/2\"", "7"),
        (r#""Path": "base/1/2""#, r#""Encoded-Path": "123""#),
        (r#""Path": "base/1/2""#, r#""Encoded-Path": "zz""#),
        (r#""Path": "base/1/2""#, r#""Encoded-Path": """#),
        (r#""Checksum-Algorithm": "CRC32C", "#, ""),
        (r#", "Checksum": "994e7be2""#, ""),
        ("\"994e7be2\"", "null"),
        ("CRC32C", "CRC32"),
        ("CRC32C", "NONE"),
        ("CRC32C", "SHA256"),
        ("994e7be2", "994e7be"),
        ("994e7be2", "994e7bg2"),
        ("994e7be2", "994e7be200"),
        ("{ ", "[ "),
        ("{ ", "{ { "),
        (" }", ""),
        (" }", " } { }"),
    ] {
        assert!(FILE.contains(from), "{from}");
        assert!(one_file(&FILE.replacen(from, to, 1)).is_err(), "{from} -> {to}");
    }
}

#[test]
fn f01_paths_that_leave_the_directory_are_refused() {
    for path in ["", "/etc/passwd", "..", "a/../../b", "a//b", "a/", ".", r"a\u0000b", r"C:\\x"] {
        assert!(matches!(one_file(&FILE.replace("base/1/2", path)), Err(ManifestError::Path { .. })), "{path:?}");
    }
    for path in [r"\ud800", r"\udc00\ud800", r"\x"] {
        assert!(matches!(one_file(&FILE.replace("base/1/2", path)), Err(ManifestError::Object { .. })), "{path:?}");
    }
    let encoded = FILE.replace(r#""Path": "base/1/2""#, r#""Encoded-Path": "2e2e2f78""#);
    assert!(matches!(one_file(&encoded), Err(ManifestError::Path { .. })));
}

#[test]
fn f09_wrong_wal_ranges_are_refused() {
    assert_eq!(one_range(RANGE).unwrap().end, Lsn::new(0x200_0100));
    for (from, to) in [
        (r#""Timeline": 1, "#, ""),
        (r#""Start-LSN": "0/2000028", "#, ""),
        (r#", "End-LSN": "0/2000100""#, ""),
        (r#""Timeline""#, r#""Extra": 1, "Timeline""#),
        (r#""Timeline": 1"#, r#""Timeline": 1, "Timeline": 1"#),
        (r#": 1,"#, r#": "1","#),
        (r#": 1,"#, r#": 0,"#),
        (r#": 1,"#, r#": 4294967296,"#),
        ("0/2000028", "oops"),
        ("0/2000100", "0/2000027"),
        ("\"0/2000100\"", "33554688"),
    ] {
        assert!(RANGE.contains(from), "{from}");
        assert!(one_range(&RANGE.replacen(from, to, 1)).is_err(), "{from} -> {to}");
    }
}

#[test]
fn f09_wrong_layouts_are_refused() {
    let good = String::from_utf8(manifest(&format!("{FILE},\n{FILE}\n"), &format!("{RANGE},\n{RANGE}\n"))).unwrap();
    read(good.as_bytes()).unwrap();
    let lines = good.split_inclusive('\n').collect::<Vec<_>>();
    let body = lines[..lines.len() - 1].concat();
    let refused = |from: &str, to: &str| {
        assert!(body.contains(from), "{from}");
        assert!(read(&sealed(&body.replacen(from, to, 1))).is_err(), "{from} -> {to}");
    };
    for version in ["0", "3", "\"1\"", "1.0", "-1", "99999999999999999999", ""] {
        refused("Version\": 1", &format!("Version\": {version}"));
    }
    // A version 1 manifest never names the cluster, and a version 2 one always does.
    refused("Version\": 1,\n", "Version\": 1,\n\"System-Identifier\": 7,\n");
    refused("Version\": 1", "Version\": 2");
    refused("\"Files\": [", "\"Files\": {");
    refused("\"Files\": [\n", "\"Files\": 7,\n");
    refused("\"Files\": [\n", "\"Extra\": 7,\n\"Files\": [\n");
    refused("\"Files\": [\n", "\"Files\": [\n],\n\"Files\": [\n");
    refused("},\n{ \"Path\"", "}\n{ \"Path\"");
    refused("}\n],\n\"WAL", "},\n],\n\"WAL");
    refused("},\n{ \"Timeline\"", "}\n{ \"Timeline\"");
    refused("}\n],\n\"WAL-Ranges\"", "}\n],\n\"Extra\": 1,\n\"WAL-Ranges\"");
    refused("\n", "\r\n");
    refused("\"Files\"", " \"Files\"");
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with("{ \"Path\"")) {
        let without: String = lines.iter().enumerate().filter(|(n, _)| *n != number).map(|(_, l)| *l).collect();
        assert!(read(without.as_bytes()).is_err(), "{line}");
    }
    for text in ["", "\n", "{}", "{}\n", "[]\n", "{", "null\n", "7\n"] {
        assert!(read(text.as_bytes()).is_err(), "{text:?}");
        assert!(read(&sealed(text)).is_err(), "{text:?}");
    }
}

#[test]
fn f09_a_wrong_checksum_is_refused() {
    let content = real();
    let text = std::str::from_utf8(&content).unwrap();
    // A change that leaves every line well-formed is caught by the checksum alone.
    let size = text.replacen("\"Size\": ", "\"Size\": 1", 1);
    assert!(matches!(read(size.as_bytes()), Err(ManifestError::Checksum)));
    let at = text.find("Manifest-Checksum\": \"").unwrap() + 21;
    for (digits, written) in [(64, "0".repeat(64)), (1, "x".to_owned()), (1, String::new()), (64, String::new())] {
        let mut wrong = text.to_owned();
        wrong.replace_range(at..at + digits, &written);
        assert!(read(wrong.as_bytes()).is_err());
    }
    assert!(matches!(read(&content[..content.len() - 1]), Err(ManifestError::CutShort { .. })));
    assert!(matches!(read(&[&content[..], b"\n"].concat()), Err(ManifestError::BytesAfterEnd)));
}

#[test]
fn lines_are_bounded() {
    let long = FILE.replace("base/1/2", &"a/".repeat(10_000));
    assert!(matches!(one_file(&long), Err(ManifestError::LineTooLong { line: 3, .. })));
    // A path that uses every byte it may, each escaped as long as can be.
    let path = format!("{}{}", "\\u0001".repeat(255), "/\\u0001".repeat(384));
    assert_eq!(one_file(&FILE.replace("base/1/2", &path)).unwrap().path.len(), 1023);
    let endless = std::io::BufReader::new(std::io::repeat(b'a'));
    assert!(matches!(ManifestReader::new(endless), Err(ManifestError::LineTooLong { .. })));
}

#[test]
fn nothing_is_read_after_an_error() {
    let content = manifest("{ }\n", &format!("{RANGE}\n"));
    let mut reader = ManifestReader::new(content.as_slice()).unwrap();
    assert!(reader.next_file().is_err());
    assert!(matches!(reader.next_file(), Err(ManifestError::AfterError)));
    assert!(reader.next().is_none());
    assert!(reader.finish().is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(content: Vec<u8>) {
        let _unused = read(&content);
    }

    #[test]
    fn a_changed_byte_is_always_noticed(at in 0usize..2000, byte: u8) {
        let mut content = manifest(&format!("{FILE},\n{FILE}\n"), &format!("{RANGE}\n"));
        let at = at % content.len();
        let digits = content.len() - 67..content.len() - 3;
        // The case of the checksum's own digits carries nothing.
        let same = content[at] == byte || (digits.contains(&at) && content[at].eq_ignore_ascii_case(&byte));
        content[at] = byte;
        prop_assert_eq!(read(&content).is_ok(), same);
    }

    #[test]
    fn a_cut_manifest_is_always_noticed(length in 0usize..2000) {
        let content = manifest(&format!("{FILE}\n"), &format!("{RANGE}\n"));
        prop_assert!(read(&content[..length % content.len()]).is_err());
    }

    #[test]
    fn any_file_round_trips(path in "[^\\x00/.]{1,200}", size in 0..=MAX_FILE_SIZE, crc: u32, encoded: bool) {
        let bytes: String = path.bytes().map(|byte| format!("{byte:02x}")).collect();
        let key = if encoded { format!("\"Encoded-Path\": \"{bytes}\"") } else { format!("\"Path\": {}", serde_json::to_string(&path).unwrap()) };
        let object = format!(
            "{{ {key}, \"Size\": {size}, \"Last-Modified\": \"x\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            crc32c_to_hex(crc)
        );
        prop_assume!(path.len() <= 255 && check(&path));
        let file = one_file(&object).unwrap();
        prop_assert_eq!(file.path, path.into_bytes());
        prop_assert_eq!((file.size, file.checksum), (size, Some(ManifestChecksum::crc32c(crc))));
    }
}

fn check(path: &str) -> bool {
    crate::check_relative_path(path.as_bytes()).is_ok()
}
