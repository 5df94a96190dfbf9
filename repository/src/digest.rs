//! What identifies the raw content of an archived file: SHA-256 and size.

use sha2::{Digest, Sha256};

/// SHA-256 and size of raw bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDigest {
    /// The SHA-256.
    pub sha256: [u8; 32],
    /// The number of bytes.
    pub size: u64,
}

impl RawDigest {
    /// Digests bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { sha256: Sha256::digest(bytes).into(), size: bytes.len() as u64 }
    }

    /// The SHA-256 as 64 lower-case hex digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads a digest back from its hex digits and decimal size.
    #[must_use]
    pub fn from_hex(hex: &str, size: &str) -> Option<Self> {
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut sha256 = [0; 32];
        for (index, byte) in sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..index * 2 + 2], 16).ok()?;
        }
        Some(Self { sha256, size: size.parse().ok()? })
    }
}
