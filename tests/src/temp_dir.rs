//! Folders of one test, below `/tmp` so that paths of unix sockets stay short, and readable to the test user.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::test_user::TestUser;

/// A folder that goes away with this value, unless `PGARK_KEEP=1` is set.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Creates a folder that belongs to whoever runs the tests and that everybody may read.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/pgark-{}-{number}-{name}", std::process::id()));
        // A run that was killed can have left a folder with the same pid behind.
        drop(fs::remove_dir_all(&path));
        fs::create_dir(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        Self { path }
    }

    /// Creates a folder that belongs to the test user, so that servers and programs run as that user may write there.
    pub fn for_test_user(name: &str) -> Self {
        let dir = Self::new(name);
        TestUser::get().own(dir.path());
        dir
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Creates a folder below this one, with the same owner and mode.
    pub fn create_dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        TestUser::get().own_like(&path, &self.path);
        path
    }

    /// Writes a file below this folder, with the folder's owner.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        TestUser::get().own_like(&path, &self.path);
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::env::var_os("PGARK_KEEP").as_deref() == Some(OsStr::new("1")) {
            return;
        }
        // Whether it goes away or not decides no test.
        drop(fs::remove_dir_all(&self.path));
    }
}
