//! First in, first out: the policy to compare others with.
//!
//! Good at: nobody is passed over, so nobody waits longer than all others' slices. Bad at: a task that needs 50 us waits
//! behind all that need their whole slice, and weights count for nothing.

use super::{Machine, Pick, Place, Placement, Policy, Ready, Task};
use crate::layout::Layout;

#[derive(Debug)]
pub struct Fifo {
    ready: Ready,
    placement: Placement,
    slice_ns: u64,
    arrivals: u64,
}

impl Fifo {
    pub fn new(layout: &Layout, slice_ns: u64) -> Self {
        Self {
            ready: Ready::new(),
            placement: Placement::new(layout),
            slice_ns,
            arrivals: 0,
        }
    }
}

impl Policy for Fifo {
    fn enqueue(&mut self, task: Task, _now_ns: u64) {
        self.arrivals += 1;
        self.ready.push(task, self.arrivals);
    }

    fn pick(&mut self) -> Option<Pick> {
        let (task, rank) = self.ready.pop()?;
        Some(Pick {
            task,
            rank,
            slice_ns: self.slice_ns,
        })
    }

    fn place(&mut self, pick: &Pick, now_ns: u64, machine: &mut dyn Machine) -> Place {
        self.placement.place(pick, now_ns, machine)
    }

    fn tick(&mut self, _now_ns: u64, active_llcs: u32) {
        self.placement.limit(active_llcs);
    }

    fn exit(&mut self, pid: i32) {
        self.ready.withdraw(pid);
    }

    fn waiting(&self) -> usize {
        self.ready.len()
    }
}
