//! Promise 7: memory is bounded, whatever the size of the cluster, of one file or of the number of files.

use std::fs;
use std::path::Path;

use harness::{Program, ProtectedCluster, TestUser};

const LIMIT: u64 = 256 << 20;

#[test]
fn heavy_backup_and_restore_stay_below_256_mib() {
    measure(&Ballast { large_files: 30, large_bytes: 10 << 20, small_files: 4_000, huge_bytes: 256 << 20 });
}

#[test]
#[ignore = "3 GB: make soak"]
fn soak_heavy_backup_and_restore_of_3_gb_stay_below_256_mib() {
    measure(&Ballast { large_files: 300, large_bytes: 10 << 20, small_files: 20_000, huge_bytes: 1 << 30 });
}

/// Files in the data directory, which a base backup sends like any others; no SQL could make them as fast.
struct Ballast {
    large_files: u32,
    large_bytes: u64,
    small_files: u32,
    huge_bytes: u64,
}

fn measure(ballast: &Ballast) {
    // Nothing of pgark is set: these are the defaults.
    let cluster = ProtectedCluster::start();
    let folder = cluster.server().data_dir().join("ballast");
    ballast.write(&folder);

    // With the defaults of this machine, and with those of one with eight processors.
    let many = cluster.write_config("many.toml", cluster.repositories());
    let text = fs::read_to_string(&many).unwrap();
    fs::write(&many, format!("{text}[compression]\njobs = 4\n[restore]\njobs = 8\n")).unwrap();
    for (name, config) in [("defaults", cluster.config()), ("eight processors", many.as_path())] {
        let backup = Program::agent().config(config).as_test_user().args(["--quiet", "backup"]).succeed();
        let to = cluster.dir().join("restored");
        let base =
            cluster.restore_with(config).args(["--quiet", "base", "--target-immediate", "--to"]).arg(&to).succeed();
        let mib = |bytes: u64| bytes / (1 << 20);
        println!(
            "{name}: backup {} MiB in {:.1} s, base {} MiB in {:.1} s",
            mib(backup.peak_memory_bytes),
            backup.duration.as_secs_f64(),
            mib(base.peak_memory_bytes),
            base.duration.as_secs_f64()
        );
        assert!((1..LIMIT).contains(&backup.peak_memory_bytes), "backup took {} bytes", backup.peak_memory_bytes);
        assert!((1..LIMIT).contains(&base.peak_memory_bytes), "base took {} bytes", base.peak_memory_bytes);
        fs::remove_dir_all(&to).unwrap();
    }
}

impl Ballast {
    fn write(&self, folder: &Path) {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let file = |folder: &Path, number: u32| folder.join(format!("{}/{number}", number % 100));
        for kind in ["large", "small", "huge"] {
            for number in 0..100 {
                fs::create_dir_all(folder.join(kind).join(number.to_string())).unwrap();
            }
        }
        for number in 0..self.large_files {
            noise.write(&file(&folder.join("large"), number), self.large_bytes);
        }
        for number in 0..self.small_files {
            noise.write(&file(&folder.join("small"), number), 8192);
        }
        noise.write(&file(&folder.join("huge"), 0), self.huge_bytes);
        TestUser::get().own_all(folder);
    }
}

/// Bytes of which about half compress away, as in a table.
struct Noise(u64);

impl Noise {
    fn write(&mut self, path: &Path, bytes: u64) {
        use std::io::Write;
        let mut output = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(path).unwrap());
        for word in 0..bytes / 8 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let value = if word % 2 == 0 { self.0 } else { word / 64 };
            output.write_all(&value.to_le_bytes()).unwrap();
        }
        output.flush().unwrap();
    }
}
