//! Sets of CPU, node or cache ids, read and written as the kernel does: `0-3,8`.

use std::collections::BTreeSet;
use std::fmt;

/// No id may be above this: it keeps a garbled line from filling the memory.
const MAX_ID: u32 = 1 << 16;

/// A set of ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdSet(BTreeSet<u32>);

impl IdSet {
    /// Parses `0-3,8`. An empty text is the empty set; `None` if it is no list of ids below 65536.
    pub fn parse(text: &str) -> Option<Self> {
        let mut ids = BTreeSet::new();
        let text = text.trim();
        if text.is_empty() {
            return Some(Self(ids));
        }
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last || last > MAX_ID {
                return None;
            }
            ids.extend(first..=last);
        }
        Some(Self(ids))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    pub fn difference(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

impl FromIterator<u32> for IdSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl fmt::Display for IdSet {
    /// As the kernel prints it: ascending, ranges joined, nothing for the empty set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists() {
        for (text, printed) in [("0-3,8", "0-3,8"), ("8,0-1,1,2", "0-2,8"), (" \n", "")] {
            assert_eq!(IdSet::parse(text).unwrap().to_string(), printed);
        }
        for garbled in ["3-1", "a", "1-", "0-4294967295", ",", "1,", "-1", "1 2"] {
            assert_eq!(IdSet::parse(garbled), None, "{garbled}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(ids in proptest::collection::btree_set(0u32..300, 0..100)) {
            let set: IdSet = ids.into_iter().collect();
            prop_assert_eq!(IdSet::parse(&set.to_string()), Some(set));
        }
    }
}
