//! age around what is stored: public keys on the writing side, private keys on the reading side.
//!
//! An age header may hold stanzas of kinds that a reader does not know, and readers skip them. pgark
//! adds one, in plain text but covered by the header's MAC, to every WAL object:
//!
//! ```text
//! -> pgark-raw-blake3 <64 hex digits> <raw size in bytes> <size in bytes of what is encrypted>
//! ```
//!
//! It tells what the object holds, and how long it must be, to a host without the private key.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use age::secrecy::ExposeSecret;
use age::x25519;
use age_core::format::{FileKey, Stanza};
use bytes::Bytes;

use crate::digest::RawDigest;

const NOTE_TAG: &str = "pgark-raw-blake3";

/// Public keys to encrypt to. Empty means: do not encrypt.
#[derive(Debug, Clone, Default)]
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// Parses `age1…` public keys.
    ///
    /// # Errors
    /// Names the first text that is none.
    pub fn parse<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        keys.into_iter()
            .map(|key| {
                x25519::Recipient::from_str(key)
                    .map_err(|_| format!("`{key}` is not an age public key; it begins with age1"))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether nothing is encrypted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public keys as text.
    #[must_use]
    pub fn public_keys(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Begins an encrypted stream; the note goes into its header.
    pub(crate) fn encrypt(&self, note: Option<&ContentNote>) -> io::Result<EncryptedStream> {
        let keys = self.0.iter().map(|key| key as &dyn age::Recipient);
        let note = note.into_iter().map(|note| note as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(keys.chain(note)).map_err(io::Error::other)?;
        let output = SharedBuffer::default();
        let writer = encryptor.wrap_output(output.clone())?;
        Ok(EncryptedStream { writer, output })
    }

    /// Encrypts a whole object in memory.
    pub(crate) fn encrypt_bytes(&self, bytes: &[u8], digest: &RawDigest) -> io::Result<Bytes> {
        let note = ContentNote { digest: digest.clone(), content_size: bytes.len() as u64 };
        let mut stream = self.encrypt(Some(&note))?;
        let mut whole = stream.push(bytes)?;
        whole.extend_from_slice(&stream.finish()?);
        Ok(whole.into())
    }
}

/// Private keys to decrypt with.
#[derive(Clone, Default)]
pub struct Identities(Vec<Arc<x25519::Identity>>);

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

impl Identities {
    /// Parses `AGE-SECRET-KEY-1…` private keys.
    ///
    /// # Errors
    /// Tells which one is none, by its place; never shows it.
    pub fn parse<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        keys.into_iter()
            .enumerate()
            .map(|(index, key)| {
                x25519::Identity::from_str(key)
                    .map(Arc::new)
                    .map_err(|_| format!("private key {} is not an age private key", index + 1))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The public key of each, as text.
    #[must_use]
    pub fn public_keys(&self) -> Vec<String> {
        self.0.iter().map(|identity| identity.to_public().to_string()).collect()
    }

    /// Opens an age stream.
    pub(crate) fn decrypt<R: Read>(&self, input: R) -> Result<age::stream::StreamReader<R>, age::DecryptError> {
        let keys = self.0.iter().map(|identity| identity.as_ref() as &dyn age::Identity);
        age::Decryptor::new(input)?.decrypt(keys)
    }
}

/// Makes a new key pair: the private key (`AGE-SECRET-KEY-1…`) and the public one (`age1…`).
#[must_use]
pub fn generate_key_pair() -> (String, String) {
    let identity = x25519::Identity::generate();
    (identity.to_string().expose_secret().to_owned(), identity.to_public().to_string())
}

/// What the header of an age file says of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContentNote {
    /// The raw file that is inside.
    pub(crate) digest: RawDigest,
    /// Bytes that were encrypted (the raw file, compressed).
    pub(crate) content_size: u64,
}

/// Reads the note from the header of an age file, without any key, and the size that the whole
/// object must have.
pub(crate) fn read_note(mut input: impl Read) -> io::Result<Option<(ContentNote, u64)>> {
    let reader = StanzaReader(Mutex::new(None));
    let mut counted = CountingReader { inner: &mut input, count: 0 };
    let decryptor = age::Decryptor::new(&mut counted).map_err(|error| match error {
        age::DecryptError::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, decrypt_reason(&error)),
    })?;
    // No identity opens it: only the stanzas are looked at.
    drop(decryptor.decrypt(std::iter::once(&reader as &dyn age::Identity)));
    let note = reader.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The payload is cut into chunks of 64 KiB with a tag of 16 bytes each, at least one.
    Ok(note.map(|note| {
        let chunks = note.content_size.div_ceil(64 << 10).max(1);
        let size = counted.count.saturating_add(note.content_size).saturating_add(chunks * 16);
        (note, size)
    }))
}

/// In our own words: age's go through its translations, and it panics where it does not find them.
pub(crate) fn decrypt_reason(error: &age::DecryptError) -> &'static str {
    match error {
        age::DecryptError::DecryptionFailed => "its content does not fit its key",
        age::DecryptError::InvalidHeader => "its age header cannot be read",
        age::DecryptError::InvalidMac => "its age header was changed",
        age::DecryptError::KeyDecryptionFailed => "a key in its age header cannot be read",
        age::DecryptError::UnknownFormat => "it is no age file of a version that is known",
        _ => "it is no age file of pgark",
    }
}

struct CountingReader<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}

/// A stream that is being encrypted; what is ready can be taken out at any time.
pub(crate) struct EncryptedStream {
    writer: age::stream::StreamWriter<SharedBuffer>,
    output: SharedBuffer,
}

impl EncryptedStream {
    /// Encrypts bytes and returns what became ready, which may be less or more.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.writer.write_all(bytes)?;
        Ok(self.output.take())
    }

    /// Seals the stream and returns its last bytes.
    pub(crate) fn finish(self) -> io::Result<Vec<u8>> {
        self.writer.finish()?;
        Ok(self.output.take())
    }
}

#[derive(Clone, Default)]
struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

impl SharedBuffer {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl age::Recipient for ContentNote {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let stanza = Stanza {
            tag: NOTE_TAG.to_owned(),
            args: vec![self.digest.hex(), self.digest.size.to_string(), self.content_size.to_string()],
            body: Vec::new(),
        };
        Ok((vec![stanza], HashSet::new()))
    }
}

struct StanzaReader(Mutex<Option<ContentNote>>);

impl age::Identity for StanzaReader {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        if stanza.tag == NOTE_TAG
            && let [hex, size, content_size] = stanza.args.as_slice()
            && let Some(digest) = RawDigest::from_hex(hex, size)
            && let Ok(content_size) = content_size.parse()
        {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ContentNote { digest, content_size });
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_readable_without_the_key_and_the_content_is_not() {
        let (private, public) = generate_key_pair();
        let recipients = Recipients::parse([public.as_str()]).unwrap();
        let digest = RawDigest::of(b"content");
        for length in [0, 1, 65535, 65536, 65537, 200_000] {
            let sealed = recipients.encrypt_bytes(&vec![1; length], &digest).unwrap();
            let (note, size) = read_note(&sealed[..]).unwrap().unwrap();
            assert_eq!((note.digest, size), (digest.clone(), sealed.len() as u64));
        }
        let sealed = recipients.encrypt_bytes(b"content", &digest).unwrap();

        let (other, _) = generate_key_pair();
        assert!(Identities::parse([other.as_str()]).unwrap().decrypt(&sealed[..]).is_err());
        assert!(Identities::default().decrypt(&sealed[..]).is_err());

        let mut content = Vec::new();
        let identities = Identities::parse([private.as_str()]).unwrap();
        identities.decrypt(&sealed[..]).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, b"content");
    }

    #[test]
    fn c16_a_changed_byte_anywhere_is_noticed() {
        let (private, public) = generate_key_pair();
        let recipients = Recipients::parse([public.as_str()]).unwrap();
        let identities = Identities::parse([private.as_str()]).unwrap();
        let sealed = recipients.encrypt_bytes(&[7; 100], &RawDigest::of(&[7; 100])).unwrap();
        for at in 0..sealed.len() {
            let mut damaged = sealed.to_vec();
            damaged[at] ^= 1;
            let read = identities.decrypt(&damaged[..]).map_err(io::Error::other).and_then(|mut reader| {
                let mut content = Vec::new();
                reader.read_to_end(&mut content).map(|_| content)
            });
            assert!(read.is_err(), "byte {at}");
        }
    }
}
