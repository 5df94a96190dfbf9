//! Kills a program with strace at the n-th call of one system call: the call itself is not carried out any more.

use std::path::Path;

use harness::{Outcome, Program, program_path};

/// `name` of pgark's programs, to be killed when one of its threads enters `syscall` for the `n`-th time.
pub(crate) fn killed_at(name: &str, syscall: &str, n: u32) -> Program {
    strace(syscall, &format!("when={n}")).arg(program_path(name))
}

/// `name` of pgark's programs, to be killed when it enters `syscall` for this path.
pub(crate) fn killed_at_path(name: &str, syscall: &str, path: &Path) -> Program {
    strace(syscall, "when=1").arg("-P").arg(path).arg(program_path(name))
}

fn strace(syscall: &str, when: &str) -> Program {
    let strace = Path::new("/usr/bin/strace");
    assert!(strace.exists(), "strace is missing: apt-get install strace");
    Program::at(strace)
        .args(["-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={syscall}")])
        .args(["-e", &format!("inject={syscall}:signal=KILL:{when}")])
}

/// Whether the kill came to pass: strace ends by the signal that ended the program.
pub(crate) fn was_killed(outcome: &Outcome) -> bool {
    outcome.signal == Some(9) || outcome.code == Some(137)
}
