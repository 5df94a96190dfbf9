//! Bounds-checked reading of the fields inside one message.
//!
//! A message comes from the network: every read can fail, none can panic, and nothing is allocated from a length that
//! the message claims without having it.

use bytes::{Buf, Bytes};

/// The message ended before the field did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncated;

/// Reads big-endian fields and zero-terminated texts from the front of a message's body.
pub(crate) struct FieldReader {
    rest: Bytes,
}

impl FieldReader {
    pub(crate) fn new(body: Bytes) -> Self {
        Self { rest: body }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Truncated> {
        self.rest.try_get_u8().map_err(|_| Truncated)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Truncated> {
        self.rest.try_get_u16().map_err(|_| Truncated)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Truncated> {
        self.rest.try_get_i32().map_err(|_| Truncated)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<Bytes, Truncated> {
        if self.rest.len() < len { Err(Truncated) } else { Ok(self.rest.split_to(len)) }
    }

    /// Reads up to the next zero byte and steps over it.
    pub(crate) fn text(&mut self) -> Result<Bytes, Truncated> {
        let len = self.rest.iter().position(|&byte| byte == 0).ok_or(Truncated)?;
        let text = self.rest.split_to(len);
        self.rest.advance(1);
        Ok(text)
    }

    /// Everything that has not been read.
    pub(crate) fn remaining(self) -> Bytes {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}
