//! An indexed binary min-heap: the active vCPUs by local clock.
//!
//! `std`'s `BinaryHeap` cannot change the key of an element in place; here every operation is O(log n) and the
//! minimum is O(1), so that the cost of a turn hardly grows from 8 to 1024 vCPUs. Equal keys are ordered by id,
//! which keeps runs repeatable.

/// Marks an id that is not in the heap.
const ABSENT: u32 = u32::MAX;

/// Min-heap of `(key, id)` where `id` is a small dense integer.
#[derive(Debug, Default, Clone)]
pub struct MinHeap {
    entries: Vec<(i64, u32)>,
    /// Position of each id in `entries`, or [`ABSENT`].
    position: Vec<u32>,
}

impl MinHeap {
    /// An empty heap.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of ids in the heap.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no id is in the heap.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether `id` is in the heap.
    pub fn contains(&self, id: u32) -> bool {
        self.position.get(id as usize).is_some_and(|&p| p != ABSENT)
    }

    /// The smallest key, if any.
    pub fn min(&self) -> Option<i64> {
        self.entries.first().map(|&(key, _)| key)
    }

    /// The ids in the heap, in no particular order.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries.iter().map(|&(_, id)| id)
    }

    /// Inserts `id`, or changes its key.
    pub fn set(&mut self, id: u32, key: i64) {
        let index = id as usize;
        if index >= self.position.len() {
            self.position.resize(index + 1, ABSENT);
        }
        let mut at = self.position[index] as usize;
        if self.position[index] == ABSENT {
            at = self.entries.len();
            self.entries.push((key, id));
            self.position[index] = at as u32;
        } else {
            self.entries[at].0 = key;
        }
        let at = self.sift_up(at);
        self.sift_down(at);
    }

    /// Removes `id` if it is there.
    pub fn remove(&mut self, id: u32) {
        if !self.contains(id) {
            return;
        }
        let at = self.position[id as usize] as usize;
        self.position[id as usize] = ABSENT;
        self.entries.swap_remove(at);
        if at < self.entries.len() {
            self.position[self.entries[at].1 as usize] = at as u32;
            let at = self.sift_up(at);
            self.sift_down(at);
        }
    }

    /// Removes all ids.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.position.fill(ABSENT);
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.entries.swap(a, b);
        self.position[self.entries[a].1 as usize] = a as u32;
        self.position[self.entries[b].1 as usize] = b as u32;
    }

    fn sift_up(&mut self, mut at: usize) -> usize {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.entries[parent] <= self.entries[at] {
                break;
            }
            self.swap(parent, at);
            at = parent;
        }
        at
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let left = 2 * at + 1;
            let mut least = at;
            for child in [left, left + 1] {
                if child < self.entries.len() && self.entries[child] < self.entries[least] {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.swap(least, at);
            at = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MinHeap;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// The heap agrees with a plain ordered map after any sequence of operations.
        #[test]
        fn agrees_with_a_map(ops in prop::collection::vec((0u32..40, prop::option::of(-50i64..50)), 0..400)) {
            let mut heap = MinHeap::new();
            let mut model = BTreeMap::new();
            for (id, op) in ops {
                match op {
                    Some(key) => { heap.set(id, key); model.insert(id, key); }
                    None => { heap.remove(id); model.remove(&id); }
                }
                prop_assert_eq!(heap.len(), model.len());
                prop_assert_eq!(heap.is_empty(), model.is_empty());
                prop_assert_eq!(heap.min(), model.values().min().copied());
                prop_assert_eq!(heap.contains(id), model.contains_key(&id));
                let mut ids: Vec<u32> = heap.ids().collect();
                ids.sort_unstable();
                prop_assert_eq!(ids, model.keys().copied().collect::<Vec<_>>());
            }
        }
    }
}
