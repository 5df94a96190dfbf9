//! What happens to a stored object: faults as data.

use std::fmt;
use std::fs;

use super::cluster::Stored;

#[derive(Debug, Clone)]
pub(crate) enum Injury {
    /// The lowest bit of this byte is another: in text, one digit becomes another.
    Flip(usize),
    /// Only so many bytes are left.
    Cut(usize),
    Extend,
    Delete,
    /// The bytes of another object of its kind.
    Swap(Vec<u8>),
}

/// Flips at `count` places, among them the first and the last.
pub(crate) fn flips(length: usize, count: usize) -> Vec<Injury> {
    let mut places: Vec<usize> = (0..count).map(|number| number * (length - 1) / (count - 1).max(1)).collect();
    // Where headers are.
    places.extend([1, 5, 9, 40, 120].into_iter().filter(|place| count > 1 && *place < length));
    places.sort_unstable();
    places.dedup();
    places.into_iter().map(Injury::Flip).collect()
}

/// All other injuries that need no second object.
pub(crate) fn cuts(length: usize) -> Vec<Injury> {
    vec![
        Injury::Cut(length - 1),
        Injury::Cut(length / 2),
        Injury::Cut(1),
        Injury::Cut(0),
        Injury::Extend,
        Injury::Delete,
    ]
}

impl Injury {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Flip(_) => "flipped",
            Self::Cut(0) => "emptied",
            Self::Cut(_) => "truncated",
            Self::Extend => "extended",
            Self::Delete => "deleted",
            Self::Swap(_) => "swapped",
        }
    }

    /// Does something while the object is injured.
    pub(crate) fn with<T>(&self, stored: &Stored, work: impl FnOnce() -> T) -> T {
        let mut bytes = stored.bytes.clone();
        match self {
            Self::Flip(place) => bytes[*place] ^= 1,
            Self::Cut(length) => bytes.truncate(*length),
            Self::Extend => bytes.push(0),
            Self::Delete => {}
            Self::Swap(other) => bytes.clone_from(other),
        }
        assert!(bytes != stored.bytes || matches!(self, Self::Delete), "{self} changes nothing");
        // A link may hold the same bytes elsewhere: the name gets new ones.
        fs::remove_file(&stored.path).unwrap();
        if !matches!(self, Self::Delete) {
            fs::write(&stored.path, bytes).unwrap();
        }
        let done = work();
        fs::write(&stored.path, &stored.bytes).unwrap();
        done
    }
}

impl fmt::Display for Injury {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flip(place) => write!(formatter, "flipped at byte {place}"),
            Self::Cut(length) => write!(formatter, "cut to {length} bytes"),
            other => formatter.write_str(other.kind()),
        }
    }
}
