//! Several repositories: one that is away delays only itself and is complete afterwards, and a restore takes from the
//! next one what the first cannot give.

mod reading;
mod writing;

use std::path::Path;

use harness::{
    FaultProxy, ProtectedCluster, ProtectedClusterBuilder, S3Server, TempDir, local_repository, s3_repository,
};

use crate::repository_files::RepositoryFiles;
use crate::site::encryption;

/// Small parts, so that a backup has several.
const SETTINGS: &str = "[compression]\nlevel = 1\n[backup]\npart_size = \"16MiB\"\narchive_wait = \"1s\"\n";

/// A cluster with a directory, `near`, and a bucket behind a proxy, `far`.
pub(crate) struct Two {
    pub(crate) cluster: ProtectedCluster,
    pub(crate) proxy: FaultProxy,
    pub(crate) far: S3Server,
}

/// What stands in the section of a repository besides.
#[derive(Default)]
pub(crate) struct Lines<'l> {
    pub(crate) near: &'l str,
    pub(crate) far: &'l str,
    pub(crate) settings: &'l str,
    /// `far` comes first.
    pub(crate) far_first: bool,
    pub(crate) is_encrypted: bool,
}

impl Two {
    pub(crate) fn start(lines: &Lines<'_>) -> Self {
        Self::start_with(lines, |builder| builder)
    }

    pub(crate) fn start_with(
        lines: &Lines<'_>,
        change: impl FnOnce(ProtectedClusterBuilder) -> ProtectedClusterBuilder,
    ) -> Self {
        let far = S3Server::start();
        let proxy = FaultProxy::to_port(far.port());
        let builder = change(ProtectedCluster::builder().settings(SETTINGS).settings(lines.settings));
        let dir: &TempDir = builder.dir();
        let keys = if lines.is_encrypted { encryption(dir) } else { String::new() };
        let near = format!("{}{}{keys}", local_repository(dir, "near", "repository"), lines.near);
        let behind = s3_repository(dir, "far", &proxy.endpoint(), "backups", "pgark", far.keys());
        let behind = format!("{behind}{}{keys}", lines.far);
        let sections = if lines.far_first { [behind, near] } else { [near, behind] };
        let cluster = builder.repository(&sections.concat()).start();
        Self { cluster, proxy, far }
    }

    pub(crate) fn near_files(&self) -> RepositoryFiles {
        RepositoryFiles::new(&self.cluster.repository_dir())
    }

    pub(crate) fn far_files(&self) -> RepositoryFiles {
        RepositoryFiles::new(&self.far.bucket_dir("backups").join("pgark"))
    }
}

/// Changes a byte in the middle.
pub(crate) fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
