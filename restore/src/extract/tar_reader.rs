//! A strict reader of the tar archives that pgark writes.
//!
//! ```text
//! header (512) · content · zeros up to 512 · … · two blocks of zeros · end
//! ```
//!
//! Which headers are allowed is decided in one place, [`TarMember::read`]; here it is where they are: nothing may be
//! missing, nothing may follow, and every byte of padding is zero.

use std::io::{self, BufRead};

use pgark_repository::{TAR_BLOCK, TarMember, tar_padding};

/// What is handed on at once: little enough to stay in the processor's cache while it is checked and written.
const PIECE_BYTES: usize = 128 << 10;

/// Reads members one after the other.
pub struct TarReader<R> {
    input: R,
    /// How many bytes were read.
    position: u64,
}

impl<R: BufRead> TarReader<R> {
    pub fn new(input: R) -> Self {
        Self { input, position: 0 }
    }

    /// How many bytes were read; before a member is read, the place of its header.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn input(&self) -> &R {
        &self.input
    }

    /// Goes on at another place, to which `skip` brings the input.
    pub(super) fn skip_to(
        &mut self,
        position: u64,
        skip: impl FnOnce(&mut R, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        skip(&mut self.input, position)?;
        self.position = position;
        Ok(())
    }

    /// The next member, or nothing at the proper end of the archive. The content of the member before must have been
    /// read.
    pub fn next_member(&mut self) -> io::Result<Option<TarMember>> {
        let offset = self.position;
        let mut block = [0; TAR_BLOCK];
        self.read_exact(&mut block)?;
        match TarMember::read(&block) {
            Ok(Some(member)) => Ok(Some(member)),
            Ok(None) => self.read_end().map(|()| None),
            Err(error) => Err(invalid(format!("at byte {offset}: {error}"))),
        }
    }

    /// Reads a member's content piece by piece, and the padding behind it.
    pub fn read_content(&mut self, size: u64, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"));
            }
            let count = available.len().min(usize::try_from(left).unwrap_or(usize::MAX)).min(PIECE_BYTES);
            take(&available[..count])?;
            self.input.consume(count);
            self.position += count as u64;
            left -= count as u64;
        }
        let mut zeros = [0; TAR_BLOCK];
        self.read_exact(&mut zeros[..tar_padding(size)])?;
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(invalid(format!("the padding before byte {} is not empty", self.position)));
        }
        Ok(())
    }

    fn read_end(&mut self) -> io::Result<()> {
        let mut block = [0; TAR_BLOCK];
        self.read_exact(&mut block)?;
        if block.iter().any(|&byte| byte != 0) {
            return Err(invalid("the archive ends with one block of zeros instead of two".to_owned()));
        }
        if !self.input.fill_buf()?.is_empty() {
            return Err(invalid(format!("bytes follow the end of the archive at byte {}", self.position)));
        }
        Ok(())
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(buffer)?;
        self.position += buffer.len() as u64;
        Ok(())
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
#[path = "tar_reader/tests.rs"]
mod tests;
