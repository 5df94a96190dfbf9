//! Finds the key that a misspelt one was meant to be.

/// The known word that is nearest to `written`, unless all of them are far away.
pub(super) fn nearest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let written = written.to_ascii_lowercase().replace('-', "_");
    // A third of the letters may be wrong: `conection` finds `connection`, `x` finds nothing.
    let furthest = written.chars().count().div_ceil(3).min(5);
    known
        .into_iter()
        .map(|word| {
            // A key whose end was left off is near however long the end is: `secret_access_key`, `…_file`.
            let shortened = written.len() >= 4 && word.starts_with(written.as_str());
            (if shortened { 1 } else { distance(&written, word) }, word)
        })
        .filter(|(distance, _)| *distance <= furthest)
        .min()
        .map(|(_, word)| word)
}

/// Counts the insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (row, &from) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, &to) in right.iter().enumerate() {
            let mut cost = (last[column] + usize::from(from != to)).min(last[column + 1] + 1).min(current[column] + 1);
            let swapped = row > 0 && column > 0 && from == right[column - 1] && to == left[row - 1];
            if swapped {
                cost = cost.min(before_last[column - 1] + 1);
            }
            current.push(cost);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last[right.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("conection", "connection"), 1);
        assert_eq!(distance("nmae", "name"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn finds_the_meant_key_or_none() {
        let known = ["name", "url", "secret_access_key_file", "path_style"];
        assert_eq!(nearest("nmae", known), Some("name"));
        assert_eq!(nearest("Path-Style", known), Some("path_style"));
        assert_eq!(nearest("secret_access_key", known), Some("secret_access_key_file"));
        assert_eq!(nearest("wholly_different", known), None);
        assert_eq!(nearest("", known), None);
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_and_bounded(left in ".{0,12}", right in ".{0,12}") {
            let there = distance(&left, &right);
            prop_assert_eq!(there, distance(&right, &left));
            prop_assert!(there <= left.chars().count().max(right.chars().count()));
            prop_assert_eq!(there == 0, left == right);
        }
    }
}
