//! JSON keys as Go's encoding/json finds them: the exact one, or else the one
//! that differs in case only.

use crate::values::fold_key as fold;
use std::collections::HashMap;

/// The keys of an object and which place each stands for.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// Names by length, with their places. A few comparisons cost less than a hash, and every key
    /// of every record is looked up.
    by_length: Vec<Vec<(String, usize)>>,
    folded: HashMap<String, usize>,
}

impl Names {
    /// The names in the order of their places.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut all = Self::default();
        for (place, name) in names.enumerate() {
            if all.by_length.len() <= name.len() {
                all.by_length.resize(name.len() + 1, Vec::new());
            }
            all.by_length[name.len()].push((name.to_owned(), place));
            all.folded.insert(fold(name), place);
        }
        all
    }

    /// How many names a key can tell apart, case aside.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.folded.len()
    }

    /// The place that a key stands for.
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        let same_length = self.by_length.get(key.len()).map_or(&[][..], Vec::as_slice);
        if let Some((_, place)) = same_length.iter().find(|(name, _)| name == key) {
            return Some(*place);
        }
        // No longer key can match: the longest character that folds to ASCII, the Kelvin sign, has
        // three bytes.
        if key.len() >= 3 * self.by_length.len() {
            return None;
        }
        self.folded.get(&fold(key)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_or_without_case() {
        let names = Names::new(["status", "MediorumDiskSize"].into_iter());
        assert_eq!(names.find("status"), Some(0));
        assert_eq!(names.find("STATUS"), Some(0));
        assert_eq!(names.find("\u{17f}tatu\u{17f}"), Some(0));
        assert_eq!(names.find("mediorumdis\u{212a}size"), Some(1));
        assert_eq!(names.find("statu"), None);
        assert_eq!(names.find("státus"), None);
        assert_eq!(names.find(""), None);
        assert_eq!(names.find(&"s".repeat(1000)), None);
        assert_eq!(Names::new(["id", "ID"].into_iter()).len(), 1);
    }
}
