//! A04: the source has a damaged page. The backup is stored, says so, and exits with 5; it is never taken for a sound one.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use crate::site::{Site, assert_one_clear_line};

#[test]
fn a04_a_backup_of_damaged_pages_is_kept_marked_and_exits_with_5() {
    let mut site = Site::start();
    site.fill("kept", 8);
    site.server().psql("CREATE TABLE sound AS SELECT generate_series(1, 1000) AS i; CHECKPOINT");
    let relation = site.server().psql("SELECT pg_relation_filepath('kept')");
    let sound = site.server().psql("SELECT pg_relation_filepath('sound')");
    site.server_mut().stop_fast();
    let file = OpenOptions::new().write(true).open(site.server().data_dir().join(&relation)).unwrap();
    file.write_all_at(b"rotten", 3 * 8192 + 4000).unwrap();
    drop(file);
    site.server_mut().start();

    let outcome = site.start_backup().fail_with(5);
    let line = assert_one_clear_line(&outcome);
    assert!(line.ends_with(&format!("the server found damaged pages in {relation}")), "{line}");
    assert!(outcome.stderr.contains("hint: ") && !outcome.stderr.contains(&sound), "{}", outcome.stderr);
    let files = site.files();
    let committed = files.committed();
    assert_eq!(committed.len(), 1, "{:?}", files.all());
    let id = committed.first().unwrap();
    let mark = std::fs::read_to_string(files.path(&files.one(&["backup.json"]))).unwrap();
    assert!(mark.contains("\"damaged_pages\": \"") && !mark.contains("\"damaged_pages\": null"), "{mark}");
    site.wait_until_left_alone();

    let shown = site.restore().args(["show", id]).succeed().stdout;
    assert!(shown.contains(&format!("damaged      {relation}\n")), "`show` says nothing of it:\n{shown}");
    let listed = site.list();
    assert!(listed.to_lowercase().contains("damaged"), "`list` says nothing of it:\n{listed}");
    // What is sound can still be had from it.
    assert_eq!(site.restored_answer("restored", Some(id), "SELECT count(*) FROM sound"), "1000");
}
