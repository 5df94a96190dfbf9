//! A small file system of its own, for disks that are full.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{TempDir, TestUser};

/// A mounted tmpfs; unmounted when dropped, which must be before its folder goes.
pub(crate) struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts one with these options, as `size=20m`, in a folder of the test.
    pub(crate) fn mount(dir: &TempDir, name: &str, options: &str) -> Self {
        let path = dir.create_dir(name);
        mount(&path, options);
        TestUser::get().own(&path);
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Somebody makes room.
    pub(crate) fn resize(&self, options: &str) {
        mount(&self.path, &format!("remount,{options}"));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily, in case somebody still looks into it.
        drop(Command::new("umount").arg("--lazy").arg(&self.path).status());
    }
}

fn mount(path: &Path, options: &str) {
    let output = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run mount: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cannot mount a tmpfs on {} (this test wants root): {said}", path.display());
}
