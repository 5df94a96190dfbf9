#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{PermissionsExt, symlink};

use pgark_postgres::TablespaceMap;
use pgark_repository::Tablespace;

use super::*;
use crate::plan::tests::backup;

/// A folder of this test, and what is asked.
struct Place {
    folder: tempfile::TempDir,
    backup: Backup,
    layout: Layout,
    given: Vec<(u32, PathBuf)>,
    base: Option<PathBuf>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, backup: backup(2, 1, 2), layout: Layout::default(), given: Vec::new(), base: None }
    }

    /// The backup has these tablespaces, which were below the folder.
    fn with_tablespaces(mut self, all: &[(u32, &str)]) -> Self {
        let entries = all.iter().map(|(oid, name)| (*oid, self.path(name).into_os_string().into_vec())).collect();
        self.layout.tablespaces = TablespaceMap::new(entries).unwrap();
        self.backup.tablespaces = all
            .iter()
            .map(|(oid, name)| Tablespace { oid: *oid, location: (*name).to_owned(), in_place: false })
            .collect();
        self
    }

    fn given(mut self, oid: u32, path: impl Into<PathBuf>) -> Self {
        self.given.push((oid, path.into()));
        self
    }

    fn base(mut self, path: impl Into<PathBuf>) -> Self {
        self.base = Some(path.into());
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn check(&self) -> Result<Destination, DestinationError> {
        self.check_with(None)
    }

    fn check_with(&self, repository: Option<&Path>) -> Result<Destination, DestinationError> {
        let request = DestinationRequest {
            directory: &self.path("data"),
            tablespaces: &self.given,
            tablespace_base: self.base.as_deref(),
            repositories: &repository.map(Path::to_path_buf).into_iter().collect::<Vec<_>>(),
            delta: false,
        };
        // The tests may run as root, which is refused one step earlier.
        let user = std::fs::metadata(self.folder.path()).unwrap().uid();
        check_as(user, &request, &self.backup, &self.layout)
    }
}

#[test]
fn an_absent_and_an_empty_directory_are_fine() {
    let place = Place::new();
    assert_eq!(place.check().unwrap().directory, place.path("data"));
    place.directory("data");
    assert_eq!(place.check().unwrap().mode_mask, 0o700);
    let mut readable = Place::new();
    readable.backup.server.data_directory_mode = "0750".to_owned();
    assert_eq!(readable.check().unwrap().mode_mask, 0o750);
}

#[test]
fn d01_what_is_not_empty_is_refused_with_its_reason() {
    let place = Place::new();
    place.file("data/notes.txt", "x");
    assert!(matches!(place.check(), Err(DestinationError::NotEmpty { is_data_directory: false, .. })));
    place.file("data/PG_VERSION", "15");
    assert!(matches!(place.check(), Err(DestinationError::Interrupted { .. })));
    place.file("data/global/pg_control", "x");
    assert!(matches!(place.check(), Err(DestinationError::NotEmpty { is_data_directory: true, .. })));
    place.file("data/postmaster.pid", "4711\n/data\n");
    assert!(matches!(place.check(), Err(DestinationError::RunningServer { pid: 4711, .. })));
    let interrupted = Place::new();
    interrupted.file("data/pgark.restoring", "");
    let error = interrupted.check().unwrap_err();
    assert!(matches!(error, DestinationError::Interrupted { .. }));
    assert!(error.hint().unwrap().contains("remove"));
    let file = Place::new();
    file.file("data", "x");
    assert!(matches!(file.check(), Err(DestinationError::NotADirectory { .. })));
}

#[test]
fn d01_a_directory_of_somebody_else_is_refused() {
    let place = Place::new();
    let owner = std::fs::metadata(place.directory("data")).unwrap().uid();
    let data = place.path("data");
    let request = DestinationRequest {
        directory: &data,
        tablespaces: &[],
        tablespace_base: None,
        repositories: &[],
        delta: false,
    };
    let refused = check_as(owner + 1, &request, &place.backup, &place.layout);
    assert!(matches!(refused, Err(DestinationError::Owner { .. })));
}

#[test]
fn d01_another_data_directory_and_the_repository_are_refused() {
    let place = Place::new();
    place.file("PG_VERSION", "15");
    assert!(matches!(place.check(), Err(DestinationError::InDataDirectory { .. })));
    let place = Place::new();
    for repository in ["data", "data/repository", "."] {
        let refused = place.check_with(Some(&place.path(repository)));
        assert!(matches!(refused, Err(DestinationError::Nested { .. })), "{repository}: {refused:?}");
    }
    assert!(place.check_with(Some(&place.path("elsewhere"))).is_ok());
}

#[test]
fn a_link_is_followed_before_places_are_compared() {
    let place = Place::new();
    let repository = place.directory("repository");
    place.directory("repository/inside");
    symlink(repository.join("inside"), place.path("data")).unwrap();
    assert!(matches!(place.check_with(Some(&repository)), Err(DestinationError::Nested { .. })));
    let dangling = Place::new();
    symlink("/nonexistent/place", dangling.path("data")).unwrap();
    assert!(matches!(dangling.check(), Err(DestinationError::Unreadable { .. })));
}

#[test]
fn tablespaces_go_back_or_where_they_are_told() {
    let place = Place::new().with_tablespaces(&[(16385, "fast"), (16386, "slow")]);
    let moved = place.path("new");
    let place = place.given(16386, &moved);
    let tablespaces = place.check().unwrap().tablespaces;
    assert_eq!(
        tablespaces[0],
        PlacedTablespace { oid: 16385, location: Some(place.path("fast")), is_moved: false, is_occupied: false }
    );
    assert_eq!(
        tablespaces[1],
        PlacedTablespace { oid: 16386, location: Some(moved), is_moved: true, is_occupied: false }
    );
}

#[test]
fn all_tablespaces_go_below_one_directory_but_those_that_are_told_otherwise() {
    let place = Place::new().with_tablespaces(&[(16385, "fast"), (16386, "slow"), (16387, "inside")]);
    let (base, moved) = (place.path("spaces"), place.path("new"));
    let mut place = place.base(&base).given(16386, &moved);
    place.backup.tablespaces[2].in_place = true;
    place.layout.tablespaces = TablespaceMap::new(place.layout.tablespaces.entries()[..2].to_vec()).unwrap();
    // The originals are still there, and in nobody's way.
    place.file("fast/PG_15_202209061/5/1", "x");
    let tablespaces = place.check().unwrap().tablespaces;
    let expected = [
        PlacedTablespace { oid: 16385, location: Some(base.join("16385")), is_moved: true, is_occupied: false },
        PlacedTablespace { oid: 16386, location: Some(moved), is_moved: true, is_occupied: false },
        PlacedTablespace { oid: 16387, location: None, is_moved: false, is_occupied: false },
    ];
    assert_eq!(tablespaces, expected);
}

#[test]
fn d06_a_wrong_base_of_tablespaces_is_refused() {
    let two = || Place::new().with_tablespaces(&[(16385, "fast"), (16386, "slow")]);
    for path in ["relative", "/srv/../etc", "/srv/./x"] {
        let error = two().base(path).check().unwrap_err();
        assert!(matches!(error, DestinationError::BaseNotAbsolute { .. }), "{path}: {error}");
        assert!(error.to_string().contains(path), "{error}");
    }
    for inside in ["data", "data/spaces"] {
        let place = two();
        let base = place.path(inside);
        assert!(matches!(place.base(base).check(), Err(DestinationError::Nested { .. })), "{inside}");
    }
    let occupied = two();
    occupied.file("spaces/16386/x", "x");
    let base = occupied.path("spaces");
    assert!(matches!(occupied.base(base).check(), Err(DestinationError::NotEmpty { .. })));
    // One that was told its place lies where another would go.
    let place = two();
    let base = place.path("spaces");
    let place = place.base(&base).given(16386, base.join("16385"));
    assert!(matches!(place.check(), Err(DestinationError::Twice { .. })));
}

#[test]
fn d06_wrong_tablespaces_are_refused() {
    let two = || Place::new().with_tablespaces(&[(16385, "fast"), (16386, "slow")]);
    let at = |name: &'static str| {
        let place = two();
        let path = place.path(name);
        place.given(16385, path)
    };
    assert!(matches!(at("slow").check(), Err(DestinationError::Twice { .. })));
    assert!(matches!(at("slow/below").check(), Err(DestinationError::Nested { .. })));
    assert!(matches!(at("data/below").check(), Err(DestinationError::Nested { .. })));
    assert!(matches!(two().given(16385, "relative").check(), Err(DestinationError::NotAbsolute { .. })));
    assert!(matches!(two().given(16385, "/srv/../etc").check(), Err(DestinationError::NotAbsolute { .. })));
    assert!(matches!(two().given(16385, "/").check(), Err(DestinationError::NotAbsolute { .. })));
    let unknown = two().given(99, "/srv/x").check().unwrap_err();
    assert!(unknown.to_string().contains("16385"), "{unknown}");
    let twice = two().given(16385, "/srv/x").given(16385, "/srv/y");
    assert!(matches!(twice.check(), Err(DestinationError::TablespaceTwice { oid: 16385 })));
    // Where it was, the original still lies.
    let occupied = two();
    occupied.file("fast/PG_15_202209061/5/1", "x");
    assert!(matches!(occupied.check(), Err(DestinationError::NotEmpty { .. })));
    let mut in_place = two().given(16385, "/srv/x");
    in_place.backup.tablespaces[0].in_place = true;
    assert!(matches!(in_place.check(), Err(DestinationError::InPlace { oid: 16385 })));
}

#[test]
fn a_full_disk_is_noticed_before_it_is_full() {
    let mut place = Place::new();
    place.layout.bytes = u64::MAX / 2;
    let refused = place.check().unwrap_err();
    assert!(matches!(refused, DestinationError::NoSpace { .. }), "{refused:?}");
}

#[test]
fn what_cannot_be_looked_at_is_not_taken_for_absent() {
    if rustix::process::geteuid().is_root() {
        // Root can look at everything; a file in the way is what is left to test.
        let place = Place::new();
        place.file("data", "x");
        let inside = place.path("data/inside");
        let request = DestinationRequest {
            directory: &inside,
            tablespaces: &[],
            tablespace_base: None,
            repositories: &[],
            delta: false,
        };
        let refused = check_as(0, &request, &place.backup, &place.layout);
        assert!(matches!(refused, Err(DestinationError::Unreadable { .. })), "{refused:?}");
    } else {
        let place = Place::new();
        let closed = place.directory("closed");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        let inside = closed.join("data");
        let request = DestinationRequest {
            directory: &inside,
            tablespaces: &[],
            tablespace_base: None,
            repositories: &[],
            delta: false,
        };
        let user = rustix::process::geteuid().as_raw();
        let refused = check_as(user, &request, &place.backup, &place.layout);
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(matches!(refused, Err(DestinationError::Unreadable { .. })), "{refused:?}");
    }
}
