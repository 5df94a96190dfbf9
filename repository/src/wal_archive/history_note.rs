//! The last line of a stored timeline history, which makes damage in it visible.
//!
//! ```text
//! 1    0/5000000    no recovery target specified
//! # pgark 00000002.history <64 hex digits> <raw size in bytes>
//! ```
//!
//! Nothing else would: a history is a few numbers as text, and any digit is as good as another to the server, which
//! would then recover the wrong WAL. The server takes the line for a comment, so a plain copy of the object serves
//! recovery too. The name is in it because a history of one timeline can pass for that of a later one.

use pgark_postgres::{TimelineId, WalFileName};

use crate::digest::RawDigest;

const TAG: &str = "# pgark";

/// What is stored for a history.
pub(super) fn with_note(timeline: TimelineId, raw: &[u8], digest: &RawDigest) -> Vec<u8> {
    let mut stored = raw.to_vec();
    stored.extend_from_slice(note(timeline, raw, digest).as_bytes());
    stored
}

/// The history in a stored object, or why it is none that was stored here.
pub(super) fn without_note(timeline: TimelineId, mut stored: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    let end = stored.len().saturating_sub(1);
    let start = stored[..end].iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let line = std::str::from_utf8(&stored[start..end]).ok();
    let size = line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
    let size = size.filter(|size| *size <= stored.len()).ok_or("its last line is not pgark's note")?;
    // The whole note is made again: whatever differs in it is damage, too.
    let (raw, found) = stored.split_at(size);
    if found != note(timeline, raw, &RawDigest::of(raw)).as_bytes() {
        return Err("its content does not match the note in its last line");
    }
    stored.truncate(size);
    Ok(stored)
}

fn note(timeline: TimelineId, raw: &[u8], digest: &RawDigest) -> String {
    // The server ends every line of a history; where one is open all the same, it must not run into the note.
    let end = if raw.is_empty() || raw.ends_with(b"\n") { "" } else { "\n" };
    format!("{end}{TAG} {} {} {}\n", WalFileName::History(timeline), digest.hex(), digest.size)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use pgark_postgres::TimelineHistory;

    use super::*;

    const RAW: &[u8] = b"1\t0/3000000\tno recovery target specified\n";

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn stored(raw: &[u8]) -> Vec<u8> {
        with_note(timeline(3), raw, &RawDigest::of(raw))
    }

    #[test]
    fn a_history_comes_back_as_it_was_and_is_still_one_with_its_note() {
        for raw in [RAW, b"", b"1\t0/3000000\topen end", b"# a comment\n\n1\t0/1\tx\n"] {
            assert_eq!(without_note(timeline(3), stored(raw)).unwrap(), raw);
        }
        let read = |content: &[u8]| TimelineHistory::parse(timeline(3), content).unwrap();
        assert_eq!(read(&stored(RAW)), read(RAW));
    }

    #[test]
    fn c13_every_flipped_bit_every_cut_and_every_swap_is_seen() {
        let whole = stored(RAW);
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[place] ^= 1 << bit;
                assert!(without_note(timeline(3), flipped).is_err(), "byte {place}, bit {bit}");
            }
            assert!(without_note(timeline(3), whole[..place].to_vec()).is_err(), "cut to {place}");
        }
        assert!(without_note(timeline(3), [&whole[..], b"\n"].concat()).is_err());
        assert!(without_note(timeline(4), whole).is_err());
        assert!(without_note(timeline(3), RAW.to_vec()).is_err());
    }
}
