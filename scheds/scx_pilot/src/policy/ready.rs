//! A queue of tasks by rank, each in it once.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::{MAX_WAITING, PidMap, Task};

/// Tasks that wait, the one with the lowest rank first; of equal ones, the one that came first.
#[derive(Clone, Debug)]
pub struct Ready {
    heap: BinaryHeap<Reverse<Entry>>,
    /// The entry of each task that counts; others of the same task are left behind and passed over.
    current: PidMap<u64>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    rank: u64,
    number: u64,
    task: Task,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.rank, self.number).cmp(&(other.rank, other.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl Default for Ready {
    fn default() -> Self {
        Self::new()
    }
}

impl Ready {
    /// Room for [`MAX_WAITING`] tasks.
    pub fn new() -> Self {
        Self {
            heap: BinaryHeap::with_capacity(2 * MAX_WAITING),
            current: PidMap::with_capacity(MAX_WAITING),
            next: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.current.len()
    }

    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// Adds a task. If it is in the queue already, this takes its place.
    ///
    /// # Panics
    /// If there is no room, which [`crate::cycle::Cycle`] sees to.
    pub fn push(&mut self, task: Task, rank: u64) {
        self.next += 1;
        let number = self.next;
        *self
            .current
            .entry(task.pid)
            .expect("more than MAX_WAITING tasks in a queue") = number;
        if self.heap.len() == self.heap.capacity() {
            let current = &self.current;
            self.heap
                .retain(|Reverse(entry)| counts(current, entry) || entry.number == number);
        }
        self.heap.push(Reverse(Entry { rank, number, task }));
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<(Task, u64)> {
        while let Some(Reverse(entry)) = self.heap.pop() {
            if counts(&self.current, &entry) {
                self.current.remove(entry.task.pid);
                return Some((entry.task, entry.rank));
            }
        }
        None
    }

    /// The rank of the first.
    pub fn peek(&mut self) -> Option<u64> {
        while let Some(Reverse(entry)) = self.heap.peek() {
            if counts(&self.current, entry) {
                return Some(entry.rank);
            }
            self.heap.pop();
        }
        None
    }

    /// Takes a task out, wherever it is. Whether it was there.
    pub fn withdraw(&mut self, pid: i32) -> bool {
        self.current.remove(pid).is_some()
    }
}

fn counts(current: &PidMap<u64>, entry: &Entry) -> bool {
    current.get(entry.task.pid) == Some(&entry.number)
}
