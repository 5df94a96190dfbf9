//! Where the programs are, built once per run of the tests, and readable to the user that runs them.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const PROGRAMS: [&str; 3] = ["pgark-agent", "pgark-archive-command", "pgark-restore"];

/// The path of one of pgark's programs, of the profile that the tests are built with.
pub fn program_path(name: &str) -> PathBuf {
    assert!(PROGRAMS.contains(&name), "{name} is none of pgark's programs");
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| readable_to_all(&build())).join(name)
}

/// Builds what is not up to date, and returns the folder. Without this a test could run yesterday's program.
fn build() -> PathBuf {
    // …/target/<profile>/deps/<test>
    let test = std::env::current_exe().unwrap_or_else(|error| panic!("cannot tell where this test is: {error}"));
    let folder = test.ancestors().nth(2).unwrap_or_else(|| panic!("{} is not in a target folder", test.display()));
    // `make test` has built them; so has another test process of the same run.
    if std::env::var_os("PGARK_PROGRAMS_BUILT").is_some() {
        return folder.to_owned();
    }
    let run = std::env::var("NEXTEST_RUN_ID").ok();
    let lock = lock(&folder.join("pgark-programs.lock"));
    let stamp = folder.join("pgark-programs.run");
    if run.is_some() && fs::read_to_string(&stamp).ok() == run {
        return folder.to_owned();
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // As `make programs` does: another selection would have other features, and build half the world again.
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--tests"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // So would what the outer cargo tells this test: build scripts look at it.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().unwrap_or_else(|error| panic!("cannot run cargo: {error}"));
    assert!(output.status.success(), "pgark's programs do not build:\n{}", String::from_utf8_lossy(&output.stderr));
    if let Some(run) = run {
        fs::write(&stamp, run).unwrap_or_else(|error| panic!("cannot write {}: {error}", stamp.display()));
    }
    drop(lock);
    folder.to_owned()
}

/// The archive command is run by the server, as its own user: in a checkout below `/root` that user finds nothing, so
/// the programs are copied to where it does.
fn readable_to_all(folder: &Path) -> PathBuf {
    let open = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
    if folder.ancestors().all(open) || !rustix::process::geteuid().is_root() {
        return folder.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    for program in PROGRAMS {
        let path = folder.join(program);
        let metadata = fs::metadata(&path).unwrap_or_else(|error| panic!("cannot find {}: {error}", path.display()));
        (path, metadata.len(), metadata.mtime(), metadata.mtime_nsec()).hash(&mut hasher);
    }
    let copies = PathBuf::from(format!("/tmp/pgark-programs-{:016x}", hasher.finish()));
    let lock = lock(&copies.with_extension("lock"));
    if !copies.is_dir() {
        let unfinished = copies.with_extension("unfinished");
        let copy = || -> std::io::Result<()> {
            fs::create_dir_all(&unfinished)?;
            for program in PROGRAMS {
                fs::copy(folder.join(program), unfinished.join(program))?;
            }
            fs::rename(&unfinished, &copies)
        };
        copy().unwrap_or_else(|error| panic!("cannot copy the programs to {}: {error}", copies.display()));
    }
    drop(lock);
    copies
}

fn lock(path: &Path) -> File {
    let lock = File::create(path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
    lock.lock().unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()));
    lock
}
