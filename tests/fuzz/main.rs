//! The functions of `fuzz/`, without libFuzzer: over the corpus, and over mutations of it for some seconds each. It finds
//! less than `make fuzz`, and runs wherever the tests do.
//!
//! Runs differ only in how far they get: `SEED=…` gives other mutations, `FUZZ_SECONDS=…` more of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod mutation;
#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "for libFuzzer it is a library of its own")]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use self::mutation::Mutator;

fn fuzz(name: &str) {
    let function = targets::TARGETS.iter().find(|(target, _)| *target == name).unwrap().1;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut corpus: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    corpus.sort();
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    let attempt = |input: &[u8]| {
        if catch_unwind(|| function(input)).is_err() {
            let kept = std::env::temp_dir().join(format!("pgark-fuzz-{name}-{}", std::process::id()));
            fs::write(&kept, input).unwrap();
            panic!("the input is kept in {}; put it into {} once it is mended", kept.display(), folder.display());
        }
    };
    corpus.iter().for_each(|input| attempt(input));

    let number = |variable: &str, usual| std::env::var(variable).map_or(usual, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", 3));
    let mut mutator = Mutator::new(number("SEED", 1));
    let mut count = 0;
    while Instant::now() < end {
        attempt(&mutator.mutate(&corpus));
        count += 1;
    }
    println!("{name}: {} files, {count} mutations", corpus.len());
    assert!(count > 100, "only {count} mutations");
}

#[test]
fn f01_f06_tar_archives() {
    fuzz("tar");
}

#[test]
fn f09_f12_manifests() {
    fuzz("manifest");
}

#[test]
fn b21_wal_pages_and_records() {
    fuzz("wal");
}

#[test]
fn b18_timeline_histories() {
    fuzz("history");
}

#[test]
fn f07_f08_backup_labels_and_tablespace_maps() {
    fuzz("labels");
}

#[test]
fn f11_lines_of_an_index() {
    fuzz("index");
}

#[test]
fn f11_commit_marks() {
    fuzz("commit_mark");
}

#[test]
fn e11_beginnings_of_incremental_files() {
    fuzz("incremental");
}

#[test]
fn e01_e10_reconstructions() {
    fuzz("reconstruction");
}

#[test]
fn e13_block_maps() {
    fuzz("block_map");
}

/// What is fuzzed here is fuzzed by libFuzzer too.
#[test]
fn every_target_has_a_program_and_a_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let names = |of: &str| -> Vec<String> {
        let entries = fs::read_dir(folder.join(of)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let mut known: Vec<_> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    known.sort();
    assert_eq!(names("fuzz_targets"), known);
    assert_eq!(names("corpus"), known);
}
