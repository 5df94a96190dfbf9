//! Both layouts as a server sends them, and as it never would.

use super::super::scripted::Script;
use super::*;

/// Each layout, with a version that has it.
fn backups() -> [(u32, Script); 2] {
    [(140_000, old_backup()), (150_000, backup())]
}

/// Everything before the data: one tablespace and the data directory.
fn header() -> Script {
    Script::default()
        .row(&["0/2000028", "1"])
        .complete("SELECT")
        .row(&["16384", "/space", "7"])
        .message(b'D', b"\0\x03\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\x03100")
        .complete("SELECT")
}

fn end(script: Script) -> Script {
    script.row(&["0/2000100", "1"]).complete("SELECT").complete("BASE_BACKUP").ready()
}

/// A backup as PostgreSQL 14 sends it.
fn old_backup() -> Script {
    let copies: [&[&[u8]]; 3] = [&[b"tar of the tablespace"], &[b"tar of ", b"the base"], &[b"manifest"]];
    end(copies.iter().fold(header(), |script, pieces| {
        let script = script.message(b'H', &[0, 0, 0]);
        pieces.iter().fold(script, |script, piece| script.message(b'd', piece)).message(b'c', b"")
    }))
}

/// A backup as PostgreSQL 15 sends it.
fn backup() -> Script {
    let pieces: [&[u8]; 8] = [
        b"n16384.tar\0/space\0",
        b"dtar of the tablespace",
        b"p\0\0\0\0\0\0\x01\0",
        b"nbase.tar\0\0",
        b"dtar of ",
        b"dthe base",
        b"m",
        b"dmanifest",
    ];
    let script = header().message(b'H', &[0, 0, 0]);
    end(pieces.iter().fold(script, |script, piece| script.message(b'd', piece)).message(b'c', b""))
}

async fn take(version: u32, script: Script) -> Result<(Vec<BackupMessage>, BackupEnd), ReplicationError> {
    let (mut connection, _server) = script.connect().await;
    connection.version = Some(version);
    let mut stream = connection.base_backup(&BaseBackupOptions::default()).await?;
    assert_eq!(stream.estimated_size_kib(), Some(107));
    let mut messages = Vec::new();
    while let Some(message) = stream.next().await? {
        messages.push(message);
    }
    Ok((messages, stream.finish().await?))
}

#[tokio::test]
async fn a09_both_layouts_are_the_same_messages() {
    let archive = |name, path: &'static [u8]| BackupMessage::Archive { name, tablespace_path: path.into() };
    let data = |bytes: &'static [u8]| BackupMessage::Data(bytes.into());
    let expected = [
        archive(ArchiveName::Tablespace(16384), b"/space"),
        data(b"tar of the tablespace"),
        archive(ArchiveName::Base, b""),
        data(b"tar of "),
        data(b"the base"),
        BackupMessage::ManifestStart,
        BackupMessage::ManifestData(Bytes::from_static(b"manifest")),
    ];
    for (version, script) in backups() {
        let (mut messages, end) = take(version, script).await.unwrap();
        let progress = messages.iter().filter(|message| **message == BackupMessage::Progress(256)).count();
        assert_eq!(progress, usize::from(version >= NEW_GRAMMAR));
        messages.retain(|message| !matches!(message, BackupMessage::Progress(_)));
        assert_eq!(messages, expected, "{version}");
        assert_eq!(end.lsn, Lsn::new(0x200_0100));
    }
}

#[tokio::test]
async fn a05_noise_between_all_messages_changes_nothing() {
    for (version, script) in backups() {
        let quiet = take(version, script.clone()).await.unwrap();
        assert_eq!(take(version, script.noisy()).await.unwrap(), quiet);
    }
}

#[tokio::test]
async fn a01_an_end_at_any_message_is_a_failure() {
    for (version, script) in backups() {
        for count in 0..script.len() {
            let error = take(version, script.cut_after(count)).await.unwrap_err();
            assert!(matches!(error, ReplicationError::ConnectionClosed { .. }), "{version} after {count}: {error}");
        }
    }
}

#[tokio::test]
async fn an_error_at_any_message_is_that_error_and_leaves_the_connection_usable() {
    for (version, backup) in backups() {
        for count in 0..backup.len() {
            let script = backup.cut_after(count).error("55000").ready();
            let (mut connection, _server) = script.row(&["x"]).complete("SHOW").ready().connect().await;
            connection.version = Some(version);
            let mut result = Ok(());
            match connection.base_backup(&BaseBackupOptions::default()).await {
                Err(error) => result = Err(error),
                Ok(mut stream) => {
                    while result.is_ok() {
                        match stream.next().await {
                            Ok(Some(_)) => {}
                            Ok(None) => {
                                result = stream.finish().await.map(drop);
                                break;
                            }
                            Err(error) => result = Err(error),
                        }
                    }
                }
            }
            assert_eq!(result.unwrap_err().sqlstate(), Some("55000"), "{version} after {count}");
            assert_eq!(connection.show("a").await.unwrap(), "x", "{version} after {count}");
        }
    }
}

#[tokio::test]
async fn a04_only_an_error_after_the_end_row_says_that_the_data_is_complete() {
    for (version, backup) in backups() {
        let before_ready = backup.cut_after(backup.len() - 2);
        let error = take(version, before_ready.error("XX001").ready()).await.unwrap_err();
        assert!(
            matches!(error, ReplicationError::PagesDamaged { end, .. } if end.lsn == Lsn::new(0x200_0100)),
            "{error}"
        );
        let in_the_middle = backup.cut_after(10);
        let error = take(version, in_the_middle.error("XX001").ready()).await.unwrap_err();
        assert!(matches!(error, ReplicationError::Server { .. }), "{error}");
    }
}

#[tokio::test]
async fn a11_pieces_that_no_server_sends_are_refused() {
    let start = backup().cut_after(8);
    let begun = start.clone().message(b'd', b"nbase.tar\0\0");
    let manifest = begun.clone().message(b'd', b"m");
    for (script, piece) in [
        (&start, &b"x"[..]),
        (&start, b""),
        (&start, b"ddata before an archive"),
        (&start, b"n../x.tar\0\0"),
        (&start, b"nbase.tar\n\0\0"),
        (&start, b"n99999.tar\0/not/listed\0"),
        (&start, b"nbase.tar"),
        (&start, b"nbase.tar\0"),
        (&start, b"p123"),
        (&begun, b"nbase.tar\0\0"),
        (&manifest, b"m"),
        (&manifest, b"n16384.tar\0\0"),
    ] {
        let error = take(150_000, script.clone().message(b'd', piece)).await.unwrap_err();
        assert!(matches!(error, ReplicationError::ProtocolViolation(_)), "{}: {error}", piece.escape_ascii());
    }
}

#[tokio::test]
async fn a_backup_that_lacks_an_archive_or_its_manifest_is_refused() {
    let start = backup().cut_after(8);
    let base = start.clone().message(b'd', b"nbase.tar\0\0");
    let both = base.clone().message(b'd', b"n16384.tar\0\0");
    for script in [start, base, both] {
        let error = take(150_000, script.message(b'c', b"")).await.unwrap_err();
        assert!(error.to_string().contains("ended without"), "{error}");
    }
    // On an old server every COPY counts, and nothing but a COPY may take its place.
    let copy = |script: Script| script.message(b'H', &[0, 0, 0]).message(b'c', b"");
    for (copies, words) in [(0, "of an archive"), (1, "of an archive"), (2, "of the backup's manifest")] {
        let script = (0..copies).fold(header(), |script, _| copy(script));
        let error = take(140_000, end(script)).await.unwrap_err();
        assert!(error.to_string().contains(words), "{copies}: {error}");
    }
    let twice = header().message(b'H', &[0, 0, 0]).message(b'H', &[0, 0, 0]);
    let data_before = header().message(b'd', b"tar");
    let one_too_many = copy((0..3).fold(header(), |script, _| copy(script)));
    for script in [twice, data_before, one_too_many] {
        let error = take(140_000, script).await.unwrap_err();
        assert!(matches!(error, ReplicationError::ProtocolViolation(_)), "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_is_left_makes_the_connection_refuse_more() {
    let (mut connection, _server) = backup().connect().await;
    drop(connection.base_backup(&BaseBackupOptions::default()).await.unwrap());
    assert!(matches!(connection.show("a").await, Err(ReplicationError::Unusable)));
}

#[tokio::test]
async fn a_version_that_is_not_known_is_refused_before_anything_is_sent() {
    for (version, words) in [(190_000, "PostgreSQL 19"), (120_009, "PostgreSQL 12")] {
        let error = take(version, Script::default()).await.unwrap_err();
        assert!(matches!(error, ReplicationError::UnknownVersion { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{words}, and this pgark knows 13 to 18 only")), "{error}");
        assert!(error.hint().is_some());
    }
}
