//! Whole backups: what was sent comes back from every store, through standard tools, by streams and by ranges; and a
//! backup that is not finished does not exist.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use harness::TempDir;
use pgark_repository::{
    Backup, BackupWriterOptions, ClusterRepository, IndexLine, IndexedMember, IndexedPart, RepositoryError,
    RepositoryOptions, Sealing, TAR_BLOCK, TarMember,
};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sha2::{Digest, Sha256};

use crate::place::{Keys, Place, decrypting, encrypted, file_of, noise, open};
use crate::sample_backup::{OPTIONS, Sample, begin, facts, hex};
use crate::wal_archive::shell;

/// The index, read by a blocking thread.
pub(crate) async fn read_index(
    repository: &ClusterRepository,
    backup: &Backup,
) -> (Vec<IndexedMember>, BTreeMap<u32, IndexedPart>) {
    let mut index = repository.open_index(backup).await.unwrap();
    tokio::task::spawn_blocking(move || {
        let (mut members, mut parts) = (Vec::new(), BTreeMap::new());
        while let Some(line) = index.next_line().unwrap() {
            match line {
                IndexLine::Member(member) => members.push(member),
                IndexLine::Part(part) => drop(parts.insert(part.part, part)),
            }
        }
        (members, parts)
    })
    .await
    .unwrap()
}

async fn read_to_end(mut reader: impl Read + Send + 'static) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map(|_| content)
    })
    .await
    .unwrap()
}

/// The raw tar archive of each part.
pub(crate) async fn read_parts(repository: &ClusterRepository, backup: &Backup) -> BTreeMap<u32, Vec<u8>> {
    let mut parts = BTreeMap::new();
    for part in &backup.parts {
        let raw = read_to_end(repository.open_part(backup, part.number).await.unwrap()).await.unwrap();
        assert_eq!(raw.len() as u64, part.raw_size);
        parts.insert(part.number, raw);
    }
    parts
}

/// Everything that a reader can see of a backup is what was sent.
pub(crate) async fn check(repository: &ClusterRepository, sample: &Sample, backup: &Backup) {
    let found = repository.backup(&backup.id).await.unwrap();
    assert_eq!(BackupFacts::of(&found), BackupFacts::of(backup));
    let manifest = read_to_end(repository.open_manifest(&found).await.unwrap()).await.unwrap();
    assert!(manifest == sample.manifest().text().as_bytes());
    assert_eq!(found.manifest.sha256, hex(&Sha256::digest(&manifest)));

    let (members, frames) = read_index(repository, &found).await;
    let parts = read_parts(repository, &found).await;
    assert_eq!(members.len(), sample.0.len());
    assert_eq!(frames.keys().collect::<Vec<_>>(), parts.keys().collect::<Vec<_>>());
    for (member, (sent, content)) in members.iter().zip(&sample.0) {
        assert_eq!(member.path, sent.path);
        assert_eq!(member.mode, sent.mode);
        let raw = &parts[&member.part][usize::try_from(member.offset).unwrap()..];
        let header: &[u8; TAR_BLOCK] = raw[..TAR_BLOCK].try_into().unwrap();
        assert_eq!(TarMember::read(header).unwrap().unwrap(), *sent);
        match (&member.file, content) {
            (Some(file), Some(content)) => {
                assert_eq!((file.size, file.crc32c), (content.len() as u64, crc32c::crc32c(content)));
                assert!(raw[TAR_BLOCK..TAR_BLOCK + content.len()] == content[..]);
            }
            (None, None) => {}
            other => panic!("{other:?}"),
        }
    }
    let stored: u64 = found.parts.iter().map(|part| part.stored_size).sum();
    assert_eq!(found.totals.stored_size, stored + found.manifest.stored_size + found.index.stored_size);
    assert_eq!(found.totals.files, sample.files().count() as u64);
    assert_eq!(found.totals.directories, (sample.0.len() - sample.files().count()) as u64);
    assert_eq!(found.totals.raw_size, sample.files().map(|(_, content)| content.len() as u64).sum::<u64>());
    crc_of_every_object(repository, &found).await;
}

/// What is the same in every repository.
#[derive(Debug, PartialEq)]
struct BackupFacts(String, BTreeMap<String, String>, Vec<(u32, u64)>, String);

impl BackupFacts {
    fn of(backup: &Backup) -> Self {
        let parts = backup.parts.iter().map(|part| (part.number, part.raw_size)).collect();
        Self(backup.id.to_string(), backup.annotations.clone(), parts, backup.index.sha256.clone())
    }
}

/// A scrub needs no key: sizes and CRC-32 over the stored bytes, and nothing else lies in the folder.
async fn crc_of_every_object(repository: &ClusterRepository, backup: &Backup) {
    let mut expected = BTreeMap::new();
    for part in &backup.parts {
        expected.insert(repository.part_key(backup, part.number), (part.stored_size, part.crc32.clone()));
    }
    for (key, file) in
        [(repository.manifest_key(backup), &backup.manifest), (repository.index_key(backup), &backup.index)]
    {
        assert_eq!(key.file_name(), file.name);
        expected.insert(key, (file.stored_size, file.crc32.clone()));
    }
    let folder = repository.keys().backup_folder(&backup.id);
    let mut listed = BTreeMap::new();
    for object in repository.store().list(&folder).await.unwrap() {
        if [repository.keys().started(&backup.id), repository.keys().backup(&backup.id)].contains(&object.key) {
            continue;
        }
        let bytes = repository.store().read(&object.key, object.size).await.unwrap();
        listed.insert(object.key, (object.size, format!("{:08x}", crc32fast::hash(&bytes))));
    }
    assert_eq!(listed, expected);
}

/// Two places for one writer: plain and encrypted. Then the same two as a reader sees them.
fn two_repositories(
    first: &RepositoryOptions,
    second: &RepositoryOptions,
    keys: &Keys,
) -> ([ClusterRepository; 2], [ClusterRepository; 2]) {
    ([open(first), open(&encrypted(second, keys))], [open(first), open(&decrypting(second, keys))])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a07_a20_a_backup_in_two_repositories_comes_back_from_both_by_every_way() {
    let (plain, sealed) = (Place::local(), Place::local());
    let keys = Keys::new();
    let (writers, readers) = two_repositories(&plain.options(), &sealed.options(), &keys);
    let sample = Sample::large();
    let backup = sample.commit(&writers).await;
    assert_eq!(
        (readers[0].backup(&backup.id).await.unwrap().sealing(), backup.sealing()),
        (Sealing::Plain, Sealing::Plain)
    );
    assert_eq!(readers[1].backup(&backup.id).await.unwrap().recipients, std::slice::from_ref(&keys.public));
    let dir = TempDir::new("keys");
    let identity = dir.write("identity.txt", format!("{}\n", keys.private));
    for (place, reader) in [&plain, &sealed].into_iter().zip(&readers) {
        let backup = reader.backup(&backup.id).await.unwrap();
        check(reader, &sample, &backup).await;
        parts_are_cut_between_files(&sample, reader, &backup).await;
        by_standard_tools(place, reader, &sample, &backup, &identity);
        by_ranges(reader, &backup).await;
        // The list finds it, and nothing that is unfinished.
        let list = reader.backups().await.unwrap();
        assert_eq!((list.finished, list.unfinished.len()), (vec![backup], 0));
    }
}

/// A part ends with the file that passes the target size, so it is never more than one file above it.
async fn parts_are_cut_between_files(sample: &Sample, repository: &ClusterRepository, backup: &Backup) {
    let largest = sample.files().map(|(_, content)| content.len() as u64).max().unwrap();
    assert!(backup.parts.len() > 5, "{}", backup.parts.len());
    for (place, part) in backup.parts.iter().enumerate() {
        assert_eq!(part.number as usize, place + 1);
        let slack = 2 * TAR_BLOCK as u64 + 1024;
        assert!(part.raw_size <= OPTIONS.part_bytes + largest + slack, "{part:?}");
        assert!(part.raw_size > OPTIONS.part_bytes || place + 1 == backup.parts.len(), "{part:?}");
    }
    let (_, parts) = read_index(repository, backup).await;
    for part in parts.values() {
        assert_eq!(part.frames.len() as u64, part.raw_size.div_ceil(4 << 20), "{part:?}");
    }
}

/// `zstd` and `tar` (and `age`) unpack each part; together they are the data directory.
fn by_standard_tools(place: &Place, repository: &ClusterRepository, sample: &Sample, backup: &Backup, identity: &Path) {
    let dir = TempDir::new("unpacked");
    for part in &backup.parts {
        let path = file_of(place, repository.part_key(backup, part.number));
        let (decrypt, list) = match backup.sealing() {
            Sealing::Plain => ("cat \"$1\"", "zstd -dc"),
            Sealing::Age => ("age -d -i \"$2\" \"$1\"", "zstd -dc"),
        };
        let listed = shell(&format!("{decrypt} | {list} | tar -t"), &[&path, identity]);
        assert!(!listed.is_empty());
        shell(&format!("{decrypt} | {list} | tar -x -C \"$3\""), &[&path, identity, dir.path()]);
    }
    for (member, content) in &sample.0 {
        let path = dir.path().join(std::ffi::OsStr::from_bytes(&member.path));
        match content {
            Some(content) => assert!(std::fs::read(&path).unwrap() == *content, "{}", path.display()),
            None => assert!(path.is_dir(), "{}", path.display()),
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o7777, member.mode, "{}", path.display());
    }
    let manifest = file_of(place, repository.manifest_key(backup));
    let read = match backup.sealing() {
        Sealing::Plain => shell("zstd -dc \"$1\"", &[&manifest]),
        Sealing::Age => shell("age -d -i \"$2\" \"$1\" | zstd -dc", &[&manifest, identity]),
    };
    assert!(read == sample.manifest().text().as_bytes());
}

/// Any range of any part, by the index alone, is what the stream of the part has there.
async fn by_ranges(repository: &ClusterRepository, backup: &Backup) {
    let (members, frames) = read_index(repository, backup).await;
    let parts = read_parts(repository, backup).await;
    let large = members.iter().find(|member| member.path == b"base/5/large").unwrap().clone();
    let mut objects = Vec::new();
    for number in [large.part, 1] {
        let object = repository.open_object(&repository.part_key(backup, number)).await.unwrap();
        objects.push((number, std::sync::Mutex::new(object)));
    }
    tokio::task::spawn_blocking(move || {
        for (number, object) in objects {
            let (part, whole) = (&frames[&number], &parts[&number]);
            let range = |offset: u64, length: usize| {
                ClusterRepository::read_part_range(&mut object.lock().unwrap(), part, offset, length)
            };
            let end = whole.len() as u64;
            let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
            let ranges = (0..end, 0..6_usize << 20);
            let checked = runner.run(&ranges, |(offset, length)| {
                let from = usize::try_from(offset).unwrap();
                let read = range(offset, length);
                if from + length <= whole.len() {
                    proptest::prop_assert!(
                        read.map_err(|error| TestCaseError::fail(error.to_string()))? == whole[from..from + length]
                    );
                } else {
                    proptest::prop_assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
                }
                Ok(())
            });
            checked.unwrap();
            assert!(range(0, whole.len()).unwrap() == *whole);
            assert_eq!(range(end, 0).unwrap(), b"");
            for (offset, length) in
                [(end, 1), (0, whole.len() + 1), (u64::MAX, 1), (u64::MAX, usize::MAX), (1, usize::MAX)]
            {
                assert_eq!(range(offset, length).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
            }
            // An index that lies is no reason to panic or to take gigabytes.
            for frames in [
                vec![],
                vec![u32::MAX; 10],
                vec![0; 10],
                vec![1; 10],
                part.frames.iter().map(|length| length + 1).collect(),
            ] {
                let lie = IndexedPart { frames, ..part.clone() };
                let read = ClusterRepository::read_part_range(&mut object.lock().unwrap(), &lie, 0, 10);
                assert!(read.is_err(), "{lie:?}");
            }
            let lie = IndexedPart { raw_size: u64::MAX, ..part.clone() };
            assert!(ClusterRepository::read_part_range(&mut object.lock().unwrap(), &lie, u64::MAX - 5, 5).is_err());
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_from_s3_and_azure_at_once() {
    let (first, second) = (Place::s3s(), Place::azurite());
    let keys = Keys::new();
    let (writers, readers) = two_repositories(&first.options(), &second.options(), &keys);
    let sample = Sample::large();
    let backup = sample.commit(&writers).await;
    for reader in &readers {
        let backup = reader.backup(&backup.id).await.unwrap();
        check(reader, &sample, &backup).await;
        by_ranges(reader, &backup).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_from_the_stub_of_google_cloud_storage() {
    let place = Place::gcs_stub();
    let repository = place.open();
    let sample = Sample::large();
    let backup = sample.commit(std::slice::from_ref(&repository)).await;
    check(&repository, &sample, &backup).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "full suite: starts Ceph"]
async fn a_backup_comes_back_from_the_rados_gateway() {
    let place = Place::rgw();
    let repository = place.open();
    let sample = Sample::large();
    let backup = sample.commit(std::slice::from_ref(&repository)).await;
    check(&repository, &sample, &backup).await;
}

/// Sizes at the borders of blocks, frames and parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_at_every_border_come_back() {
    let mut sample = Sample(Vec::new());
    let frame = 4_usize << 20;
    for (number, size) in
        [0, 1, 511, 512, 513, frame - 2048, frame - 1536, frame - 1535, frame - 512, frame, frame + 1, 2 * frame - 512]
            .into_iter()
            .enumerate()
    {
        sample.file(format!("base/{number}").as_bytes(), noise(number as u64, size));
        sample.directory(format!("base/{number}.d").as_bytes());
    }
    for part_bytes in [0, 1, 512, 1 << 20, frame as u64, u64::MAX] {
        let place = Place::local();
        let repositories = [place.open()];
        let options = BackupWriterOptions { part_bytes, jobs: 0, level: 1 };
        let checked = sample.write(&repositories, options, &sample.manifest().text()).await.unwrap();
        let backup = checked.commit(&facts).await.unwrap();
        check(&repositories[0], &sample, &backup).await;
        if part_bytes <= 1 {
            assert_eq!(backup.parts.len(), sample.0.len());
        }
        if part_bytes == u64::MAX {
            assert_eq!(backup.parts.len(), 1);
        }
    }
}

/// The claim is a conditional create, so nobody shares an id, whatever the clocks say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a33_writers_that_begin_in_the_same_second_get_different_ids() {
    let (first, second) = (Place::local(), Place::local());
    let repositories = vec![first.open(), second.open()];
    let writers = (0..3).map(|_| {
        let repositories = repositories.clone();
        tokio::spawn(async move { begin(&repositories, OPTIONS).await.unwrap() })
    });
    let mut ids = Vec::new();
    for writer in futures_util::future::join_all(writers).await {
        let writer = writer.unwrap();
        ids.push(writer.id().clone());
        writer.abort().await;
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    let list = repositories[0].backups().await.unwrap();
    assert_eq!(list.finished, []);
    let claims: Vec<_> = list.unfinished.iter().map(|unfinished| unfinished.started.clone().unwrap()).collect();
    assert!(claims.iter().all(|claim| claim.host == "test" && claim.process == std::process::id()), "{claims:?}");
    assert!(ids.iter().all(|id| claims.iter().any(|claim| claim.id == *id)), "{claims:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a34_a_backup_that_is_given_up_does_not_exist() {
    let sample = Sample::large();
    for drop_it in [false, true] {
        let place = Place::gcs_stub();
        let repositories = [place.open()];
        // Parts of 32 MiB, so that an upload is under way.
        let options = BackupWriterOptions { part_bytes: 32 << 20, ..OPTIONS };
        let mut writer = begin(&repositories, options).await.unwrap();
        let id = writer.id().clone();
        sample.write_members(&mut writer).await.unwrap();
        if drop_it {
            drop(writer)
        } else {
            writer.abort().await
        }
        let Place::GcsStub(stub) = &place else { unreachable!() };
        for _ in 0..200 {
            if stub.open_uploads() == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(stub.open_uploads(), 0, "dropped: {drop_it}");
        assert!(matches!(repositories[0].backup(&id).await, Err(RepositoryError::NotFound { .. })));
        let list = repositories[0].backups().await.unwrap();
        assert_eq!((list.finished.len(), list.unfinished.len()), (0, 1));
        assert_eq!(list.unfinished[0].id, id);
    }
}

/// The mark is created last: a writer that stops anywhere before leaves none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a34_the_commit_mark_is_the_last_object() {
    let place = Place::local();
    let repositories = [place.open()];
    let sample = Sample::small();
    let checked = sample.write(&repositories, OPTIONS, &sample.manifest().text()).await.unwrap();
    let id = checked.id().clone();
    assert_eq!(repositories[0].backups().await.unwrap().finished, []);
    let backup = checked.commit(&facts).await.unwrap();
    let mark = file_of(&place, repositories[0].keys().backup(&id));
    let committed = mark.metadata().unwrap().modified().unwrap();
    for object in repositories[0].store().list(&repositories[0].keys().root()).await.unwrap() {
        let path = file_of(&place, &object.key);
        assert!(path.metadata().unwrap().modified().unwrap() <= committed, "{}", object.key);
    }
    assert_eq!(repositories[0].backups().await.unwrap().finished, [backup]);
}

/// The id in the mark is the claimed one, whatever the caller's facts say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_the_mark_names_the_backup_that_it_belongs_to() {
    let place = Place::local();
    let repositories = [place.open()];
    let sample = Sample::small();
    let checked = sample.write(&repositories, OPTIONS, &sample.manifest().text()).await.unwrap();
    let id = checked.id().clone();
    let other = "20200101T000000Z-full".parse().unwrap();
    checked.commit(&|_| facts(pgark_repository::BackupId::clone(&other))).await.unwrap();
    assert_eq!(repositories[0].backup(&id).await.unwrap().id, id);
}

/// A flipped byte in any object: an error, or a bit that nobody reads; and always seen by a scrub without a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_a_flipped_byte_in_any_object_is_noticed() {
    let (plain, sealed) = (Place::local(), Place::local());
    let keys = Keys::new();
    let (writers, readers) = two_repositories(&plain.options(), &sealed.options(), &keys);
    let mut sample = Sample::small();
    sample.file(b"base/1/noise", noise(1, 300_000));
    let id = sample.commit(&writers).await.id;
    for (place, reader) in [&plain, &sealed].into_iter().zip(&readers) {
        let backup = reader.backup(&id).await.unwrap();
        let objects = [
            (reader.part_key(&backup, 1), backup.parts[0].crc32.clone()),
            (reader.manifest_key(&backup), backup.manifest.crc32.clone()),
            (reader.index_key(&backup), backup.index.crc32.clone()),
        ];
        for (key, crc32) in objects {
            let path = file_of(place, &key);
            let whole = std::fs::read(&path).unwrap();
            let read = async || {
                let object = reader.open_object(&key).await?;
                let decoder = zstd::Decoder::new(object).unwrap();
                read_to_end(decoder).await.map_err(|error| pgark_repository::read_failure(reader.store(), &key, error))
            };
            let raw = read().await.unwrap();
            for at in (0..200).chain((200..whole.len()).step_by(whole.len() / 40)).filter(|at| *at < whole.len()) {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 8);
                std::fs::write(&path, &flipped).unwrap();
                assert_ne!(format!("{:08x}", crc32fast::hash(&flipped)), crc32);
                match read().await {
                    Err(RepositoryError::Damaged { .. } | RepositoryError::NoKey { .. }) => {}
                    Ok(read) => assert!(read == raw && backup.sealing() == Sealing::Plain, "{key} byte {at}"),
                    Err(error) => panic!("{key} byte {at}: {error:?}"),
                }
            }
            std::fs::write(&path, &whole).unwrap();
        }
    }
}

/// Objects of one backup do not pass for those of another: the index would not fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c16_without_the_key_no_object_of_an_encrypted_backup_opens() {
    let place = Place::local();
    let (keys, others) = (Keys::new(), Keys::new());
    let writer = open(&encrypted(&place.options(), &keys));
    let backup = Sample::small().commit(std::slice::from_ref(&writer)).await;
    for reader in [writer.clone(), open(&decrypting(&place.options(), &others))] {
        // The mark is for everybody who may read the store.
        let backup = reader.backup(&backup.id).await.unwrap();
        let refused = [
            reader.open_index(&backup).await.map(drop),
            reader.open_manifest(&backup).await.map(drop),
            reader.open_part(&backup, 1).await.map(drop),
        ];
        for refused in refused {
            assert!(matches!(refused, Err(RepositoryError::NoKey { .. })), "{refused:?}");
        }
    }
}

/// A file that ends with its own CRC-32C, as `pg_control` does, has the same CRC-32C whatever it says. Only the stored
/// bytes tell the part of one backup from that of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn c13_a_part_of_another_backup_is_noticed_where_no_files_checksum_tells() {
    let keys = Keys::new();
    for is_encrypted in [false, true] {
        let place = Place::local();
        let options =
            if is_encrypted { decrypting(&encrypted(&place.options(), &keys), &keys) } else { place.options() };
        let repository = open(&options);
        let mut backups = Vec::new();
        for seed in [1, 2] {
            let mut content = noise(seed, 292);
            content.extend(crc32c::crc32c(&content).to_le_bytes());
            let mut sample = Sample(Vec::new());
            sample.file(b"global/pg_control", content);
            backups.push(sample.commit(std::slice::from_ref(&repository)).await);
        }
        let [one, other] = backups.try_into().unwrap();
        let sums = async |backup: &Backup| read_index(&repository, backup).await.0[0].file.unwrap().crc32c;
        assert_eq!(sums(&one).await, sums(&other).await);
        let [to, from] = [&one, &other].map(|backup| file_of(&place, repository.part_key(backup, 1)));
        std::fs::copy(from, to).unwrap();
        let read = match repository.open_part(&one, 1).await {
            Ok(part) => read_to_end(part).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        assert!(read.as_ref().is_err_and(|error| error.contains("CRC-32")), "{read:?}");
        assert!(read_to_end(repository.open_part(&other, 1).await.unwrap()).await.is_ok());
    }
}
