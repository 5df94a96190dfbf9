//! Checksums of files as a manifest writes them.
//!
//! They are the hexadecimal digits of the digest's bytes. For CRC-32C those are the number's bytes in the machine's
//! order, lowest first: 0xE27B4E99 is written `994e7be2`.

use std::fmt::{self, Write};

/// How the server computed the checksums of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChecksumAlgorithm {
    /// The default, fast, and able to find accidental damage only.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// The checksum of a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ManifestChecksum {
    /// How it was computed.
    pub algorithm: ChecksumAlgorithm,
    /// The digest, as many bytes as the algorithm has.
    pub bytes: Vec<u8>,
}

impl ChecksumAlgorithm {
    /// Reads the name as a manifest spells it.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Crc32c, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    /// Returns the name as a manifest and `MANIFEST_CHECKSUMS` spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// Returns the length of the digest.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl ManifestChecksum {
    /// Makes the checksum of a CRC-32C that was computed as a number.
    pub fn crc32c(number: u32) -> Self {
        Self { algorithm: ChecksumAlgorithm::Crc32c, bytes: number.to_le_bytes().to_vec() }
    }

    /// Returns the number of a CRC-32C, or nothing for another algorithm.
    pub fn as_crc32c(&self) -> Option<u32> {
        match self.algorithm {
            ChecksumAlgorithm::Crc32c => self.bytes.as_slice().try_into().ok().map(u32::from_le_bytes),
            _ => None,
        }
    }

    /// Reads the digits of a checksum, which must have the length of the algorithm's digest.
    pub fn from_hex(algorithm: ChecksumAlgorithm, digits: &str) -> Option<Self> {
        let bytes = from_hex(digits.as_bytes())?;
        if bytes.len() == algorithm.bytes() { Some(Self { algorithm, bytes }) } else { None }
    }
}

impl fmt::Display for ManifestChecksum {
    /// Writes the digits as a manifest has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Writes a CRC-32C as a manifest does, lowest byte first.
pub fn crc32c_to_hex(number: u32) -> String {
    let mut digits = String::with_capacity(8);
    for byte in number.to_le_bytes() {
        // Writing to a string cannot fail.
        write!(digits, "{byte:02x}").ok();
    }
    digits
}

/// Reads a CRC-32C as a manifest writes it, lowest byte first.
pub fn crc32c_from_hex(digits: &str) -> Option<u32> {
    ManifestChecksum::from_hex(ChecksumAlgorithm::Crc32c, digits)?.as_crc32c()
}

pub(super) fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(hex_digit(pair[0])? << 4 | hex_digit(pair[1])?)).collect()
}

const fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
