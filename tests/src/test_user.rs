//! The unprivileged user that servers run as. Under root that is `pgtest`, made when missing; otherwise it is the user
//! who runs the tests.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

const NAME: &str = "pgtest";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestUser {
    pub uid: u32,
    pub gid: u32,
    /// Whether the tests run as root and have to change to this user.
    switch: bool,
}

impl TestUser {
    pub fn get() -> Self {
        static USER: OnceLock<TestUser> = OnceLock::new();
        *USER.get_or_init(Self::find_or_create)
    }

    /// Makes `command` run as this user.
    pub fn run(self, command: &mut Command) -> &mut Command {
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes this user the owner of one file or folder.
    pub fn own(self, path: &Path) {
        if self.switch {
            chown(path, Some(self.uid), Some(self.gid))
                .unwrap_or_else(|error| panic!("cannot chown {}: {error}", path.display()));
        }
    }

    /// Makes this user the owner of a folder and all that is in it. Symbolic links are not followed.
    pub fn own_all(self, path: &Path) {
        if !self.switch {
            return;
        }
        let fail = |error: std::io::Error| -> ! { panic!("cannot chown {}: {error}", path.display()) };
        lchown(path, Some(self.uid), Some(self.gid)).unwrap_or_else(|error| fail(error));
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).unwrap_or_else(|error| fail(error)) {
                self.own_all(&entry.unwrap_or_else(|error| fail(error)).path());
            }
        }
    }

    pub(crate) fn own_like(self, path: &Path, like: &Path) {
        if fs::metadata(like).is_ok_and(|metadata| metadata.uid() == self.uid) {
            self.own(path);
        }
    }

    fn find_or_create() -> Self {
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            return Self { uid: uid.as_raw(), gid: rustix::process::getegid().as_raw(), switch: false };
        }
        if let Some(user) = Self::look_up() {
            return user;
        }
        // Two test processes can get here at once, and two of useradd can make the user twice, with two ids.
        let path = env::temp_dir().join("pgark-test-user.lock");
        let lock = File::create(&path).and_then(|lock| lock.lock().map(|()| lock));
        let _lock = lock.unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()));
        if let Some(user) = Self::look_up() {
            return user;
        }
        let output = Command::new("useradd")
            .args(["--system", "--user-group", "--home-dir", "/nonexistent", "--shell", "/bin/sh", NAME])
            .output();
        Self::look_up().unwrap_or_else(|| panic!("cannot create the user {NAME} that servers run as: {output:?}"))
    }

    fn look_up() -> Option<Self> {
        let passwd =
            fs::read_to_string("/etc/passwd").unwrap_or_else(|error| panic!("cannot read /etc/passwd: {error}"));
        let mut fields = passwd
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| (fields.next() == Some(NAME)).then_some(fields))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { uid, gid, switch: true })
    }
}
