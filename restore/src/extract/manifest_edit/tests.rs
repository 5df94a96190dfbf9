#![allow(clippy::unwrap_used, reason = "tests")]

use pgark_postgres::{ManifestChecksum, ManifestReader};
use pgark_repository::WholeFile;
use sha2::{Digest, Sha256};

use super::*;
use crate::survey::{BACKUP_LABEL, TABLESPACE_MAP};

/// A manifest with these files, its checksum right.
fn manifest(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n".to_owned();
    for (index, (path, content)) in files.iter().enumerate() {
        let checksum = ManifestChecksum::crc32c(crc32c::crc32c(content));
        let comma = if index + 1 == files.len() { "" } else { "," };
        text.push_str(&format!(
            "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-11-21 04:00:29 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}{comma}\n",
            content.len()
        ));
    }
    text.push_str(
        "],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n",
    );
    let digest: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    text.push_str(&format!("\"Manifest-Checksum\": \"{digest}\"}}\n"));
    text.into_bytes()
}

fn edited(before: &[u8], mut edit: ManifestEdit<'_>) -> Vec<u8> {
    let mut after = Vec::new();
    for line in before.split_inclusive(|&byte| byte == b'\n') {
        let mut line = line.to_vec();
        edit.apply(&mut line).unwrap();
        after.extend(line);
    }
    after
}

#[test]
fn d05_the_manifest_follows_a_rewritten_map() {
    let before = manifest(&[("backup_label", b"label"), ("tablespace_map", b"16385 /old\n"), ("PG_VERSION", b"15\n")]);
    let map = b"16385 /a/much/longer/place\n";
    let after = edited(&before, ManifestEdit::new(&[(TABLESPACE_MAP, map)], &Reconstructed::default()));
    // The reader checks the checksum of the whole.
    let mut reader = ManifestReader::new(after.as_slice()).unwrap();
    let files: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
    reader.finish().unwrap();
    let changed = files.iter().find(|file| file.path == TABLESPACE_MAP).unwrap();
    assert_eq!((changed.size, changed.checksum.clone()), (27, Some(ManifestChecksum::crc32c(crc32c::crc32c(map)))));
    let expected = manifest(&[("backup_label", b"label"), ("tablespace_map", map), ("PG_VERSION", b"15\n")]);
    assert_eq!(after, expected);
}

#[test]
fn the_manifest_of_a_chain_names_whole_files() {
    let label = b"START WAL LOCATION: 0/2000028\nINCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\nEND\n";
    let before =
        manifest(&[("backup_label", label), ("base/5/INCREMENTAL.1259", b"changes"), ("base/INCREMENTAL.1", b"")]);
    let reconstructed = Reconstructed::default();
    reconstructed.insert(b"base/5/1259", WholeFile { size: 5, crc32c: crc32c::crc32c(b"whole") });
    let label = whole_label(label);
    assert_eq!(label, b"START WAL LOCATION: 0/2000028\nEND\n");
    let after = edited(&before, ManifestEdit::new(&[(BACKUP_LABEL, &label)], &reconstructed));
    let expected = manifest(&[("backup_label", &label), ("base/5/1259", b"whole"), ("base/INCREMENTAL.1", b"")]);
    assert_eq!(String::from_utf8(after).unwrap(), String::from_utf8(expected).unwrap());
}

#[test]
fn a_line_without_the_fields_is_refused() {
    let (own, reconstructed) = ([(TABLESPACE_MAP, &b""[..])], Reconstructed::default());
    let mut edit = ManifestEdit::new(&own, &reconstructed);
    assert!(edit.apply(&mut b"{ \"Path\": \"tablespace_map\", \"Nothing\": 1 }\n".to_vec()).is_err());
    // A file that was not put together.
    assert!(edit.apply(&mut b"{ \"Path\": \"base/5/INCREMENTAL.1\", \"Size\": 12,\n".to_vec()).is_err());
}
