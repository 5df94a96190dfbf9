//! A tar archive that arrives in pieces, taken apart as it comes.
//!
//! Servers before 15 end an archive without the two blocks of zeros, so the end of the input counts as the end where a
//! header would begin.

use pgark_repository::{TAR_BLOCK, TarHeaderError, TarMember, tar_padding};

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub enum TarPiece<'a> {
    /// A file or directory begins; a file's content follows.
    Member(TarMember),
    /// The next bytes of its content.
    Content(&'a [u8]),
}

/// An archive that cannot be taken apart.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TarStreamError {
    /// A header is refused.
    #[error(transparent)]
    Header(#[from] TarHeaderError),
    /// Bytes follow the end.
    #[error("the archive goes on after its end")]
    AfterEnd,
    /// The input ended inside a member.
    #[error("the archive ends inside of a member")]
    Truncated,
    /// What fills a block up is not zero.
    #[error("the space behind a file's content is not empty")]
    Padding,
}

/// Takes an archive apart.
#[derive(Debug)]
pub struct TarStream {
    state: State,
    header: [u8; TAR_BLOCK],
    filled: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Content {
        remaining: u64,
        padding: usize,
    },
    Padding {
        remaining: usize,
    },
    /// At least one block of zeros was seen.
    End,
}

impl Default for TarStream {
    fn default() -> Self {
        Self { state: State::Header, header: [0; TAR_BLOCK], filled: 0 }
    }
}

impl TarStream {
    /// Takes the next piece off the front of `input`; `None` when it is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarPiece<'a>>, TarStreamError> {
        while !input.is_empty() {
            match self.state {
                State::Header => {
                    let take = input.len().min(TAR_BLOCK - self.filled);
                    self.header[self.filled..self.filled + take].copy_from_slice(&input[..take]);
                    self.filled += take;
                    *input = &input[take..];
                    if self.filled < TAR_BLOCK {
                        return Ok(None);
                    }
                    self.filled = 0;
                    let Some(member) = TarMember::read(&self.header)? else {
                        self.state = State::End;
                        continue;
                    };
                    self.state = after_header(member.size.unwrap_or(0));
                    return Ok(Some(TarPiece::Member(member)));
                }
                State::Content { remaining, padding } => {
                    let take = input.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
                    let (content, rest) = input.split_at(take);
                    *input = rest;
                    let remaining = remaining - take as u64;
                    self.state =
                        if remaining > 0 { State::Content { remaining, padding } } else { after_content(padding) };
                    return Ok(Some(TarPiece::Content(content)));
                }
                State::Padding { remaining } => {
                    let take = input.len().min(remaining);
                    let (padding, rest) = input.split_at(take);
                    if padding.iter().any(|byte| *byte != 0) {
                        return Err(TarStreamError::Padding);
                    }
                    *input = rest;
                    self.state = after_content(remaining - take);
                }
                State::End => {
                    if input.iter().any(|byte| *byte != 0) {
                        return Err(TarStreamError::AfterEnd);
                    }
                    *input = &[];
                }
            }
        }
        Ok(None)
    }

    /// Checks that the archive is complete.
    pub fn finish(self) -> Result<(), TarStreamError> {
        match self.state {
            State::Header if self.filled == 0 => Ok(()),
            State::End => Ok(()),
            _ => Err(TarStreamError::Truncated),
        }
    }
}

fn after_header(size: u64) -> State {
    if size == 0 { State::Header } else { State::Content { remaining: size, padding: tar_padding(size) } }
}

fn after_content(padding: usize) -> State {
    if padding == 0 { State::Header } else { State::Padding { remaining: padding } }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(files: &[(&str, Vec<u8>)], end: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, content) in files {
            let member =
                TarMember { path: path.as_bytes().to_vec(), mode: 0o600, mtime: 1, size: Some(content.len() as u64) };
            bytes.extend_from_slice(&member.header().unwrap());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len() + tar_padding(content.len() as u64), 0);
        }
        if end {
            bytes.resize(bytes.len() + 2 * TAR_BLOCK, 0);
        }
        bytes
    }

    /// Path and content of each file.
    type Files = Vec<(Vec<u8>, Vec<u8>)>;

    fn read(bytes: &[u8], chunk: usize) -> Result<Files, TarStreamError> {
        let mut stream = TarStream::default();
        let mut files = Files::new();
        for mut piece in bytes.chunks(chunk) {
            while let Some(piece) = stream.next(&mut piece)? {
                match piece {
                    TarPiece::Member(member) => files.push((member.path, Vec::new())),
                    TarPiece::Content(content) => files.last_mut().unwrap().1.extend_from_slice(content),
                }
            }
        }
        stream.finish().map(|()| files)
    }

    #[test]
    fn a09_a_missing_end_is_fine_and_a_missing_byte_is_not() {
        let files = [("a", vec![1; 700]), ("b", vec![])];
        for end in [true, false] {
            assert_eq!(read(&archive(&files, end), 64).unwrap().len(), 2);
        }
        let bytes = archive(&files[..1], false);
        for length in 1..bytes.len() {
            assert_eq!(read(&bytes[..length], 64), Err(TarStreamError::Truncated), "{length}");
        }
    }

    #[test]
    fn f04_bytes_behind_the_end_or_in_the_padding_are_refused() {
        let mut bytes = archive(&[("a", vec![1; 700])], true);
        bytes.push(1);
        assert_eq!(read(&bytes, 100), Err(TarStreamError::AfterEnd));
        let mut bytes = archive(&[("a", vec![1; 700])], true);
        bytes[TAR_BLOCK + 701] = 1;
        assert_eq!(read(&bytes, 100), Err(TarStreamError::Padding));
    }

    proptest! {
        #[test]
        fn any_cut_into_pieces_gives_the_same_files(
            sizes in proptest::collection::vec(0usize..2000, 0..8),
            chunk in 1usize..3000,
            end: bool,
        ) {
            let names: Vec<String> = (0..sizes.len()).map(|n| format!("base/{n}")).collect();
            let files: Vec<(&str, Vec<u8>)> =
                names.iter().zip(&sizes).map(|(name, size)| (name.as_str(), vec![7; *size])).collect();
            let read = read(&archive(&files, end), chunk).unwrap();
            prop_assert_eq!(read.len(), files.len());
            for ((path, content), (name, expected)) in read.iter().zip(&files) {
                prop_assert_eq!(path.as_slice(), name.as_bytes());
                prop_assert_eq!(content, expected);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), chunk in 1usize..700) {
            drop(read(&bytes, chunk));
        }
    }
}
