//! A stub of Google Cloud Storage, because no server that speaks its XML API exists for a machine without a network.
//!
//! It answers the calls that `object_store`'s client makes: put, get (ranges, HEAD), delete, list, multipart uploads,
//! with generations and `x-goog-if-generation-match` as Google documents them. What it proves is that pgark uses that
//! client rightly; it proves nothing about Google's service. It checks no signatures and keeps everything in memory.

mod bucket;
mod http;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::object_storage::gcs_repository;
use crate::temp_dir::TempDir;
use bucket::Bucket;

#[derive(Debug)]
pub struct GcsStub {
    port: u16,
    bucket: Arc<Mutex<Bucket>>,
    runtime: Option<Runtime>,
}

impl GcsStub {
    /// Starts a stub with one bucket, `backups`; others are not found.
    pub fn start() -> Self {
        let fail = |error: std::io::Error| -> ! { panic!("cannot start the stub of Google Cloud Storage: {error}") };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| fail(error));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap_or_else(|error| fail(error));
        let port = listener.local_addr().unwrap_or_else(|error| fail(error)).port();
        listener.set_nonblocking(true).unwrap_or_else(|error| fail(error));
        let bucket = Arc::new(Mutex::new(Bucket::new("backups")));
        runtime.spawn(accept(listener, Arc::clone(&bucket)));
        Self { port, bucket, runtime: Some(runtime) }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The names of all objects, in order.
    pub fn objects(&self) -> Vec<String> {
        lock(&self.bucket).names()
    }

    /// Damages an object behind the client's back: its bytes go through `change`, its generation stays.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        lock(&self.bucket).damage(name, change);
    }

    /// How many multipart uploads are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        lock(&self.bucket).open_uploads()
    }

    /// A `[[repository]]` section for bucket `backups`.
    pub fn repository(&self, dir: &TempDir, name: &str) -> String {
        gcs_repository(dir, name, &self.endpoint(), "backups", "pgark")
    }
}

impl Drop for GcsStub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A service account's key file that makes `object_store` ask nobody for a token, neither Google nor the metadata
/// address of a virtual machine.
pub fn service_account(endpoint: &str) -> String {
    format!(
        r#"{{"gcs_base_url": "{endpoint}", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}}"#
    )
}

async fn accept(listener: TcpListener, bucket: Arc<Mutex<Bucket>>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client, Arc::clone(&bucket)));
    }
}

/// Answers requests until the client is done with the connection.
async fn serve(client: TcpStream, bucket: Arc<Mutex<Bucket>>) {
    let mut client = BufReader::new(client);
    while let Some(request) = http::read_request(&mut client).await {
        let head = request.method == "HEAD";
        let answer = lock(&bucket).answer(request).to_bytes(head);
        if client.get_mut().write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}
