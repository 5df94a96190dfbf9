//! Memory stays bounded, whatever the size of what is stored.

use pgark_repository::{BackupWriterOptions, TarMember};

use crate::place::{Keys, Place, encrypted, noise, open};
use crate::sample_backup::{Manifest, begin, entry_with, facts};

/// The most memory that this process has held since its mark was set back.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// A gigabyte that does not compress, in files of 64 MiB, to one store twice: plain and encrypted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_a21_a_gigabyte_to_s3_takes_less_than_230_mib() {
    const FILES: u32 = 16;
    const CHUNKS: u32 = 64;
    const CHUNK: usize = 1 << 20;
    let place = Place::s3s();
    let keys = Keys::new();
    let elsewhere = pgark_repository::RepositoryOptions { url: "s3://backups/sealed".to_owned(), ..place.options() };
    let repositories = [place.open(), open(&encrypted(&elsewhere, &keys))];
    // Sets the high-water mark back to what is held now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();

    let options = BackupWriterOptions { level: 1, jobs: 2, part_bytes: 256 << 20 };
    let mut writer = begin(&repositories, options).await.unwrap();
    let mut lines = Vec::new();
    for file in 0..FILES {
        let path = format!("base/1/{file}").into_bytes();
        let size = u64::from(CHUNKS) * CHUNK as u64;
        let member = TarMember { path: path.clone(), mode: 0o600, mtime: 0, size: Some(size) };
        writer.begin_member(&member, None).await.unwrap();
        let mut crc = 0;
        for chunk in 0..CHUNKS {
            let content = noise(u64::from(file * CHUNKS + chunk), CHUNK);
            crc = crc32c::crc32c_append(crc, &content);
            writer.write(&content).await.unwrap();
        }
        lines.push(entry_with(&path, size, &pgark_postgres::crc32c_to_hex(crc)));
    }
    let mut writer = writer.begin_manifest().await.unwrap();
    writer.write(Manifest(lines).text().into()).await.unwrap();
    let backup = writer.finish().await.unwrap().0.commit(&facts).await.unwrap();
    let peak = peak_bytes();
    assert_eq!(backup.totals.raw_size, u64::from(FILES * CHUNKS) * CHUNK as u64);
    assert!(backup.totals.stored_size > 1 << 30);
    assert!(peak < 230 << 20, "{} MiB", peak >> 20);
}
