//! `UPLOAD_MANIFEST`: gives the server the manifest of the backup that the next one is to build on.
//!
//! ```text
//! Q "UPLOAD_MANIFEST"
//!    G               the server waits for data
//! d* c               the manifest, byte for byte
//!    C "UPLOAD_MANIFEST"  Z
//! ```
//!
//! The server reads and checks it only when it is complete. It counts for the session, until another one replaces it.

use std::io::Read;

use bytes::BufMut;

use super::connection::{ReplicationConnection, unexpected};
use super::error::ReplicationError;
use super::message::BackendMessage;

const CHUNK_BYTES: usize = 64 << 10;
const PLACE: &str = "while a manifest is uploaded";

impl ReplicationConnection {
    /// Uploads a manifest. A connection on which reading `manifest` failed is left unusable.
    pub async fn upload_manifest(&mut self, mut manifest: impl Read) -> Result<(), ReplicationError> {
        self.start_command("UPLOAD_MANIFEST")?;
        match self.receive(PLACE).await? {
            BackendMessage::CopyInResponse => {}
            BackendMessage::ErrorResponse(server) => return Err(self.fail_command(server).await),
            other => return Err(unexpected(&other, PLACE)),
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = manifest.read(&mut chunk).map_err(|source| ReplicationError::Manifest { source })?;
            if count == 0 {
                break;
            }
            let output = self.output();
            output.put_u8(b'd');
            output.put_u32(4 + count as u32);
            output.put_slice(&chunk[..count]);
            self.send_all().await?;
        }
        postgres_protocol::message::frontend::copy_done(self.output());
        self.send_all().await?;
        match self.receive(PLACE).await? {
            BackendMessage::CommandComplete(tag) if tag.starts_with(b"UPLOAD_MANIFEST") => self.read_ready(PLACE).await,
            BackendMessage::ErrorResponse(server) => Err(self.fail_command(server).await),
            other => Err(unexpected(&other, PLACE)),
        }
    }

    async fn send_all(&mut self) -> Result<(), ReplicationError> {
        self.flush().await.map_err(|source| ReplicationError::ConnectionLost { during: PLACE, source })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::replication::scripted::Script;

    fn taken() -> Script {
        Script::default().message(b'G', &[0, 0, 0]).complete("UPLOAD_MANIFEST").ready()
    }

    #[tokio::test]
    async fn e13_the_manifest_goes_over_byte_for_byte() {
        let manifest: Vec<u8> = (0..150_000_u32).flat_map(u32::to_le_bytes).collect();
        for script in [taken(), taken().noisy()] {
            let (mut connection, mut server) = script.connect().await;
            let reading = tokio::spawn(async move {
                let mut bytes = Vec::new();
                server.read_to_end(&mut bytes).await.map(|_| bytes)
            });
            connection.upload_manifest(manifest.as_slice()).await.unwrap();
            // It can be used again.
            drop(connection.start_command("IDENTIFY_SYSTEM"));
            drop(connection);
            let sent = reading.await.unwrap().unwrap();
            let mut rest = &sent[..];
            let mut messages = Vec::new();
            while let [tag, a, b, c, d, ..] = rest {
                let length = 1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                messages.push((*tag, rest[5..length].to_vec()));
                rest = &rest[length..];
            }
            assert_eq!(messages.remove(0), (b'Q', b"UPLOAD_MANIFEST\0".to_vec()));
            assert_eq!(messages.pop().unwrap(), (b'c', Vec::new()));
            assert!(messages.iter().all(|(tag, _)| *tag == b'd'));
            assert_eq!(messages.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), manifest);
        }
    }

    #[tokio::test]
    async fn e13_what_the_server_says_of_it_is_told() {
        let refused = [
            Script::default().error("0A000").ready(),
            Script::default().message(b'G', &[0, 0, 0]).error("22P02").ready(),
        ];
        for script in refused {
            let (mut connection, _server) = script.connect().await;
            let error = connection.upload_manifest(&b"{}"[..]).await.unwrap_err();
            assert!(matches!(error, ReplicationError::Server { .. }), "{error}");
        }
        let script = taken();
        for count in 0..script.len() {
            let (mut connection, _server) = script.cut_after(count).connect().await;
            connection.upload_manifest(&b"{}"[..]).await.unwrap_err();
        }
        let (mut connection, _server) = Script::default().complete("SELECT").ready().connect().await;
        assert!(matches!(connection.upload_manifest(&b"{}"[..]).await, Err(ReplicationError::ProtocolViolation(_))));
    }

    #[tokio::test]
    async fn a_manifest_that_cannot_be_read_ends_the_session() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let (mut connection, _server) = taken().connect().await;
        let error = connection.upload_manifest(Broken).await.unwrap_err();
        assert!(matches!(error, ReplicationError::Manifest { .. }), "{error}");
        assert!(matches!(connection.identify_system().await, Err(ReplicationError::Unusable)));
    }
}
