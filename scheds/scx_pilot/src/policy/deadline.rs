//! Deadline: the earliest deadline runs first, and everybody gets one.
//!
//! A task that wants to run at time *a* has the deadline *a + D*. The allowance *D* is what its class is given, plus four
//! times what it usually runs at a time (less with more weight), and never more than [`MAX_ALLOWANCE_NS`]. So short and
//! latency tasks go before batch work that came a little earlier, and after batch work that has waited for long.
//!
//! Good at: short waits for those who run for short, with a bound for all. Bad at: shares; weight only shortens waits.
//!
//! # Nobody waits longer than this
//!
//! Take a task *T* that wants to run at *a* with allowance *D*, and may use *m* CPUs. Let *n* be the most tasks, *T*
//! included, that want to run on them at any one time from then on, and *S* the longest that a task runs at a time (the
//! slice, plus what is left of a timer tick). Then *T* runs by
//!
//! > *a + D + (n - 1) S / m*
//!
//! 1. Whoever wants to run after *a + D* has a later deadline than *T*, as no allowance is negative. So from that moment
//!    on only tasks are served before *T* that were running or waiting at that moment, and each of them once: when it
//!    comes again, it comes after *a + D*.
//! 2. These are at most *n - 1* tasks, none of which runs longer than *S*: together at most *(n - 1) S* of CPU time.
//! 3. Until *T* runs, none of its *m* CPUs idles or serves a task with a later deadline, since each could take *T* instead.
//!    They all work off those *(n - 1) S* at once, which is over after *(n - 1) S / m*.
//!
//! As *D* is at most [`MAX_ALLOWANCE_NS`] whatever the class, that also bounds batch work's wait beside any amount of
//! latency tasks. It holds for CPUs that sched_ext has to itself: real-time tasks, per-CPU kernel threads and this daemon
//! go first. A task that is placed on a CPU which was idle a moment ago may find it taken: that adds one *S*.

use super::{Class, MAX_TASKS, Machine, Pick, PidMap, Place, Placement, Policy, Ready, Task};
use crate::layout::Layout;

/// The longest allowance, in nanoseconds.
pub const MAX_ALLOWANCE_NS: u64 = 100_000_000;
/// How much longer than what a task usually runs at a time its allowance is.
const PATIENCE: u64 = 4;
/// The weight at which an allowance is neither stretched nor shortened.
const UNIT: u64 = 100;

/// What is known of a task.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How long it runs at a time, as a moving average, in nanoseconds.
    usual_ns: u64,
    /// Until when its runtime has been looked at, on the kernel's clock.
    counted_ns: u64,
}

#[derive(Debug)]
pub struct Deadline {
    ready: Ready,
    tasks: PidMap<State>,
    placement: Placement,
    slice_ns: u64,
}

impl Deadline {
    pub fn new(layout: &Layout, slice_ns: u64) -> Self {
        Self {
            ready: Ready::new(),
            tasks: PidMap::with_capacity(MAX_TASKS),
            placement: Placement::new(layout),
            slice_ns,
        }
    }

    /// What the class alone is worth, in nanoseconds.
    fn base_ns(class: Class) -> u64 {
        match class {
            Class::Latency => 0,
            Class::Normal => 8_000_000,
            Class::Batch => 40_000_000,
        }
    }

    /// How long a task may wait before those that come later stop going first, in nanoseconds.
    fn allowance_ns(task: &Task, usual_ns: u64) -> u64 {
        let patience = PATIENCE.saturating_mul(usual_ns.max(task.burst_ns));
        let weighted = patience.saturating_mul(UNIT) / u64::from(task.weight.max(1));
        Self::base_ns(task.class)
            .saturating_add(weighted)
            .min(MAX_ALLOWANCE_NS)
    }
}

impl Policy for Deadline {
    fn enqueue(&mut self, task: Task, now_ns: u64) {
        let usual_ns = self.tasks.entry(task.pid).map_or(0, |state| {
            let ran = task
                .ran_until_ns
                .saturating_sub(task.ran_from_ns.max(state.counted_ns));
            if ran > 0 {
                state.usual_ns = (3 * state.usual_ns + ran) / 4;
                state.counted_ns = task.ran_until_ns;
            }
            state.usual_ns
        });
        let allowance = Self::allowance_ns(&task, usual_ns);
        self.ready.push(task, now_ns.saturating_add(allowance));
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
        self.tasks.remove(pid);
        self.ready.withdraw(pid);
    }

    fn waiting(&self) -> usize {
        self.ready.len()
    }
}
