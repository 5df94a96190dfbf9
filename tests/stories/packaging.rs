//! What is packaged is right: units, compose file, scripts.

use std::path::Path;

use harness::Program;

#[test]
fn units_and_compose_file_are_accepted_by_their_own_tools() {
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/check.sh");
    let outcome = Program::at(&check).succeed();
    assert!(outcome.stdout.contains("packaging is in order"), "{outcome:?}");
}
