//! The cluster of the damage matrix: two backups, three timelines, and the same in a plain, an encrypted and an S3
//! repository.

use std::fs;
use std::path::PathBuf;

use harness::{Outcome, S3Server, local_repository};

use crate::repository_files::RepositoryFiles;
use crate::site::{Site, encryption};

pub(crate) const REPOSITORIES: [&str; 3] = ["plain", "sealed", "s3"];

pub(crate) struct DamagedCluster {
    pub(crate) site: Site,
    pub(crate) old_backup: String,
    pub(crate) new_backup: String,
    /// One of the first and one of the second timeline.
    pub(crate) segments: [String; 2],
    /// What the table `t` holds at the end of the archive.
    pub(crate) rows: String,
    identifier: String,
    s3: S3Server,
}

/// A stored object.
pub(crate) struct Stored {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    /// What a message must contain to name it.
    pub(crate) shown: String,
}

impl DamagedCluster {
    pub(crate) fn start() -> Self {
        let s3 = S3Server::start();
        let mut site = Site::start_with_repository(|dir| {
            let sealed = format!("{}{}", local_repository(dir, "sealed", "sealed"), encryption(dir));
            format!("{}{sealed}{}", local_repository(dir, "plain", "plain"), s3.repository(dir, "s3"))
        });
        site.server().psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
        let include = site.dir().create_dir("configuration");
        fs::write(include.join("postgresql.conf"), "port = 5432\n".repeat(100)).unwrap();
        let old_backup = backup(&site);
        let insert = "INSERT INTO t SELECT generate_series(1, 1000)";
        site.server().psql(insert);
        let mut segments = vec![site.archive_segment()];
        for _ in 0..2 {
            next_timeline(&mut site);
            site.server().psql(insert);
            segments.push(site.archive_segment());
        }
        fs::write(include.join("postgresql.conf"), "port = 5433\n".repeat(90)).unwrap();
        let new_backup = backup(&site);
        for id in [&old_backup, &new_backup] {
            hold(&site, id);
        }
        site.server().psql(insert);
        site.archive_segment();
        let rows = site.server().psql("SELECT count(*) FROM t");
        let identifier = site.server().psql("SELECT system_identifier FROM pg_control_system()");
        let segments = [segments[0].clone(), segments[1].clone()];
        Self { site, old_backup, new_backup, segments, rows, identifier, s3 }
    }

    /// The old backup as it is restored from whole objects.
    pub(crate) fn reference(&self, repository: &str) -> PathBuf {
        let reference = self.site.dir().join("reference");
        assert_eq!(self.base(repository, &self.old_backup).code, Some(0));
        fs::rename(self.restored(), &reference).unwrap();
        reference
    }

    fn files(&self, repository: &str) -> RepositoryFiles {
        match repository {
            "s3" => RepositoryFiles::new(&self.s3.bucket_dir("backups")),
            local => RepositoryFiles::new(&self.site.dir().join(local)),
        }
    }

    fn stored(&self, repository: &str, texts: &[&str]) -> Stored {
        let files = self.files(repository);
        let path = files.path(&files.one(texts));
        let bytes = fs::read(&path).unwrap();
        let shown = path.file_name().unwrap().to_str().unwrap().to_owned();
        Stored { path, bytes, shown }
    }

    pub(crate) fn object_of_backup(&self, repository: &str, id: &str, name: &str) -> Stored {
        self.stored(repository, &[&format!("/backups/{id}/{name}")])
    }

    pub(crate) fn wal_object(&self, repository: &str, name: &str) -> Stored {
        self.stored(repository, &["/wal/", name])
    }

    /// Where [`Self::base`] restores to.
    pub(crate) fn restored(&self) -> PathBuf {
        self.site.dir().join("restored")
    }

    pub(crate) fn forget_restored(&self) {
        drop(fs::remove_dir_all(self.restored()));
        drop(fs::remove_dir_all(self.included()));
    }

    pub(crate) fn base(&self, repository: &str, id: &str) -> Outcome {
        let base = self.site.restore().args(["--quiet", "--repository", repository, "base", "--backup", id]);
        base.args(["--target-immediate", "--included-to"]).arg(self.included()).arg("--to").arg(self.restored()).run()
    }

    /// Where [`Self::base`] puts the included directory.
    pub(crate) fn included(&self) -> PathBuf {
        self.site.dir().join("included")
    }

    /// Where [`Self::wal`] puts the file.
    pub(crate) fn destination(&self) -> PathBuf {
        self.site.dir().join("RECOVERYXLOG")
    }

    pub(crate) fn wal(&self, repository: &str, name: &str) -> Outcome {
        let wal = self.site.restore().args(["--repository", repository, "wal"]);
        wal.args(["--system-identifier", &self.identifier, name]).arg(self.destination()).run()
    }

    /// The right content of a WAL file, from whole objects.
    pub(crate) fn fetched(&self, repository: &str, name: &str) -> Vec<u8> {
        let outcome = self.wal(repository, name);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let content = fs::read(self.destination()).unwrap();
        fs::remove_file(self.destination()).unwrap();
        content
    }
}

/// A backup with the directory `configuration`.
fn backup(site: &Site) -> String {
    let include = site.dir().join("configuration");
    let outcome = site.agent().args(["--quiet", "backup", "--json", "--include"]).arg(include).succeed();
    let id = outcome.stdout.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next());
    id.unwrap_or_else(|| panic!("no id: {}", outcome.stdout)).to_owned()
}

/// Puts a hold on a backup, in the local repositories.
fn hold(site: &Site, id: &str) {
    for repository in ["plain", "sealed"] {
        let files = RepositoryFiles::new(&site.dir().join(repository));
        let claim = files.path(&files.one(&[&format!("/backups/{id}/started.json")]));
        let hold = format!("{{\n  \"format\": 1,\n  \"id\": \"{id}\",\n  \"reason\": \"the audit\"\n}}\n");
        fs::write(claim.with_file_name("hold.json"), hold).unwrap();
    }
}

/// Makes the server a standby of nobody, and promotes it.
fn next_timeline(site: &mut Site) {
    site.server_mut().stop_fast();
    fs::write(site.server().data_dir().join("standby.signal"), "").unwrap();
    site.server().own_data_dir();
    site.server_mut().start();
    site.server_mut().promote();
}
