//! Programs are run, measured and killed as the tests of pgark's own rely on.

use std::path::Path;
use std::time::Duration;

use harness::{Program, program_path};

fn shell(script: &str) -> Program {
    Program::at(Path::new("/bin/sh")).args(["-c", script])
}

#[test]
fn output_exit_code_and_memory_of_a_program_are_seen() {
    let outcome = shell("echo out; echo err >&2; exit 3").fail_with(3);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    // dd holds one block of the size it is told.
    let outcome = shell("exec dd if=/dev/zero of=/dev/null bs=64M count=40 2>&1").succeed();
    assert!((64 << 20..128 << 20).contains(&outcome.peak_memory_bytes), "{}", outcome.peak_memory_bytes);
}

#[test]
fn a_running_program_is_waited_for_and_killed() {
    let mut running = shell("echo started >&2; exec sleep 1000").start();
    running.wait_for_stderr("started");
    assert!(running.is_running());
    let outcome = running.kill9();
    assert_eq!((outcome.code, outcome.signal), (None, Some(9)));
    let late = std::panic::catch_unwind(|| shell("exec sleep 1000").limit(Duration::from_millis(200)).run());
    assert!(late.is_err());
}

#[test]
fn the_programs_of_pgark_are_built_and_the_test_user_may_run_them() {
    for name in ["pgark-agent", "pgark-archive-command", "pgark-restore"] {
        let outcome = Program::at(&program_path(name)).arg("--version").as_test_user().succeed();
        assert!(outcome.stdout.starts_with(name), "{name} --version printed {:?}", outcome.stdout);
    }
}
