//! "Did you mean …?": the known name nearest to a mistyped one.

/// The candidate nearest to `word`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().take(64).collect();
    let limit = (word.len() / 3).clamp(1, 3);
    let mut best: Option<(usize, bool, &str)> = None;
    for candidate in candidates {
        let letters: Vec<char> = candidate.to_lowercase().chars().take(64).collect();
        if letters.len().abs_diff(word.len()) > limit {
            continue;
        }
        let distance = distance(&word, &letters);
        // A word of two letters is one step from almost everything.
        let near = distance <= limit && distance < word.len().max(letters.len());
        // Of equally near ones, one that begins alike, since few slip on the
        // first letter; then the first by name, whatever their order.
        let rank = (distance, letters.first() != word.first(), candidate);
        if near && best.is_none_or(|least| rank < least) {
            best = Some(rank);
        }
    }
    best.map(|(.., candidate)| candidate)
}

/// Edits between two words; two neighbours swapped are one edit.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut older: Vec<usize> = Vec::new();
    let mut old: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (old[j] + 1).min(row[j - 1] + 1).min(old[j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(older[j - 2] + 1);
            }
            row.push(least);
        }
        older = old;
        old = row;
    }
    old[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_recognised() {
        let keys = ["ingress", "egress", "description", "id"];
        assert_eq!(nearest("ingres", keys), Some("ingress"));
        assert_eq!(nearest("igress", keys), Some("ingress"));
        assert_eq!(nearest("Egress", keys), Some("egress"));
        assert_eq!(nearest("descripiton", keys), Some("description"));
    }

    #[test]
    fn unlike_words_suggest_nothing() {
        assert_eq!(nearest("colour", ["id", "ingress"]), None);
        assert_eq!(nearest("ab", ["cd", "x"]), None);
        assert_eq!(nearest("", ["a"]), None);
    }
}
