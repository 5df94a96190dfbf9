//! Tools that every machine has or can have, and that must be able to read what pgark stores: `age`, `zstd`, `tar`.

use std::path::{Path, PathBuf};

use crate::programs::Program;

/// A tool on the `PATH`; panics with the script to run when it is missing.
pub fn standard_tool(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not on the PATH: run tests/servers/install-tools.sh as root"))
}

/// A line for bash, run as the test user in `folder`. A command that fails makes the line fail, in a pipe too.
pub fn bash(folder: &Path, line: &str) -> Program {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let bash = Program::at(&standard_tool("bash")).args(["-euo", "pipefail", "-c", line]);
    bash.env("PATH", path).current_dir(folder).as_test_user()
}
