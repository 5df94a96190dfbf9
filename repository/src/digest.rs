//! What identifies the raw content of an archived file: BLAKE3 and size.
//!
//! BLAKE3 as in its specification, unkeyed, 32 bytes of output: what `b3sum` prints.

/// BLAKE3 and size of raw bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDigest {
    /// The hash.
    pub blake3: [u8; 32],
    /// The number of bytes.
    pub size: u64,
}

impl RawDigest {
    /// Digests bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { blake3: blake3::hash(bytes).into(), size: bytes.len() as u64 }
    }

    /// The hash as 64 lower-case hex digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.blake3.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads a digest back from its hex digits and decimal size.
    #[must_use]
    pub fn from_hex(hex: &str, size: &str) -> Option<Self> {
        let hash = blake3::Hash::from_hex(hex).ok()?;
        Some(Self { blake3: hash.into(), size: size.parse().ok()? })
    }
}
