//! A map from pids that never grows.

/// A hash table with linear probing and a fixed number of places.
#[derive(Clone, Debug)]
pub struct PidMap<V> {
    slots: Vec<(i32, V)>,
    mask: usize,
    len: usize,
}

/// No task has this pid: the idle tasks have it, and nobody schedules them.
const FREE: i32 = 0;

impl<V: Copy + Default> PidMap<V> {
    /// Room for `capacity` pids, rounded up to a power of two. All memory is allocated, and touched, here.
    pub fn with_capacity(capacity: usize) -> Self {
        // A quarter stays free, so that a search for what is not there ends soon.
        let size = (capacity + capacity / 3 + 1).next_power_of_two();
        Self {
            slots: vec![(FREE, V::default()); size],
            mask: size - 1,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn home(&self, pid: i32) -> usize {
        // Fibonacci hashing: pids come in sequence.
        ((pid as u32).wrapping_mul(0x9e37_79b9) >> 7) as usize & self.mask
    }

    /// Where a pid is, or else where it would go.
    fn find(&self, pid: i32) -> Result<usize, usize> {
        let mut slot = self.home(pid);
        loop {
            match self.slots[slot].0 {
                found if found == pid => return Ok(slot),
                FREE => return Err(slot),
                _ => slot = (slot + 1) & self.mask,
            }
        }
    }

    pub fn get(&self, pid: i32) -> Option<&V> {
        self.find(pid).ok().map(|slot| &self.slots[slot].1)
    }

    /// The value of a pid, which is the default for a new one. `None` if it is new and there is no room.
    pub fn entry(&mut self, pid: i32) -> Option<&mut V> {
        if pid == FREE {
            return None;
        }
        let slot = match self.find(pid) {
            Ok(slot) => slot,
            Err(slot) => {
                if (self.len + 1) * 4 > self.slots.len() * 3 {
                    return None;
                }
                self.len += 1;
                self.slots[slot] = (pid, V::default());
                slot
            }
        };
        Some(&mut self.slots[slot].1)
    }

    pub fn remove(&mut self, pid: i32) -> Option<V> {
        let mut hole = self.find(pid).ok()?;
        let value = self.slots[hole].1;
        self.len -= 1;
        // What comes after and could not have its home because of this one moves up.
        let mut next = (hole + 1) & self.mask;
        while self.slots[next].0 != FREE {
            let home = self.home(self.slots[next].0);
            let is_reachable_from_home = |slot: usize| {
                (slot.wrapping_sub(home) & self.mask) <= (next.wrapping_sub(home) & self.mask)
            };
            if is_reachable_from_home(hole) {
                self.slots[hole] = self.slots[next];
                hole = next;
            }
            next = (next + 1) & self.mask;
        }
        self.slots[hole].0 = FREE;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_is_a_map(ops in prop::collection::vec((1i32..60, 0u8..3), 0..400)) {
            let mut ours = PidMap::with_capacity(24);
            let mut model = HashMap::new();
            for (step, (pid, op)) in ops.into_iter().enumerate() {
                match op {
                    0 => prop_assert_eq!(ours.remove(pid), model.remove(&pid)),
                    _ => match ours.entry(pid) {
                        Some(value) => {
                            *value = step;
                            model.insert(pid, step);
                        }
                        None => prop_assert!(!model.contains_key(&pid) && model.len() >= 24),
                    },
                }
                prop_assert_eq!(ours.len(), model.len());
                for pid in 1..60 {
                    prop_assert_eq!(ours.get(pid), model.get(&pid));
                }
            }
        }
    }
}
