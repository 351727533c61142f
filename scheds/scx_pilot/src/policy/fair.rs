//! Fair: CPU time in proportion to weight.
//!
//! Each task has a virtual runtime, which grows as it runs, the slower the greater its weight; the least one runs next.
//! A queue for each NUMA node holds the tasks that ran there last, and the queue with the least virtual runtime is served
//! first; there is one virtual clock for all, as whatever finds no idle CPU ends in one order.
//!
//! Tasks that end are never heard of again, so their last run is not counted. Were the clock to follow only what is, those
//! who live long would wait for ever behind a program that does all its work in new tasks. So the clock moves with CPU
//! time of which nothing was heard, too.
//!
//! Ranks are virtual runtimes in steps of a quarter of a slice, and whoever comes first goes first within a step. To the
//! nanosecond, a task that waits for messages would run as soon as there is one, if it has run a little less than others;
//! a turn later there are several.
//!
//! Good at: shares. Who sleeps a lot runs soon after it wakes, but can't save up more than one slice. Bad at: telling a
//! task that somebody waits for from one that nobody does.

use super::{MAX_TASKS, Machine, Pick, PidMap, Place, Placement, Policy, Ready, Task};
use crate::layout::Layout;

/// The weight at which virtual runtime is real runtime.
const UNIT: u64 = 100;

/// By how much slower the clock moves than CPUs that run nothing but what is never heard of again. Some time is always lost
/// between tasks, so at 1 it would outrun fair shares as soon as more than a few tasks want a CPU.
const UNHEARD: u64 = 4;

/// Steps of a rank in a slice. On 8 CPUs, hackbench with 4 groups takes 0.076 s with 4 steps as with one, like `fifo`, and
/// 0.082 s to the nanosecond.
const STEPS: u64 = 4;

/// What is known of a task.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    vruntime: u64,
    /// The virtual runtime with which it was last picked.
    picked: u64,
    /// Until when its runtime has been counted, on the kernel's clock.
    counted_ns: u64,
    /// Whose queue it is in, if any, as its index plus one.
    queue: u32,
}

#[derive(Debug)]
pub struct Fair {
    /// By node.
    queues: Vec<Ready>,
    tasks: PidMap<State>,
    /// No task that waits has a lower virtual runtime, but for those that just woke up. Never 0.
    clock: u64,
    /// Runtime that was counted since the last tick, and when that was.
    counted_ns: u64,
    ticked_ns: Option<u64>,
    layout: Layout,
    placement: Placement,
    slice_ns: u64,
}

impl Fair {
    pub fn new(layout: &Layout, slice_ns: u64) -> Self {
        Self {
            queues: (0..layout.nr_nodes()).map(|_| Ready::new()).collect(),
            tasks: PidMap::with_capacity(MAX_TASKS),
            // So that one slice can be taken off.
            clock: slice_ns.max(1),
            counted_ns: 0,
            ticked_ns: None,
            layout: layout.clone(),
            placement: Placement::new(layout),
            slice_ns,
        }
    }
}

impl Policy for Fair {
    fn enqueue(&mut self, task: Task, _now_ns: u64) {
        let queue = self.layout.node_of(task.cpu);
        let Some(state) = self.tasks.entry(task.pid) else {
            // One too many to remember: as good as new each time. It has to be found again if it comes twice.
            for other in &mut self.queues {
                other.withdraw(task.pid);
            }
            self.queues[queue as usize].push(task, self.clock);
            return;
        };
        if let Some(before) = state.queue.checked_sub(1).filter(|&before| before != queue) {
            self.queues[before as usize].withdraw(task.pid);
        }
        let uncounted = task
            .ran_until_ns
            .saturating_sub(task.ran_from_ns.max(state.counted_ns));
        if state.vruntime == 0 {
            // New.
            state.vruntime = self.clock;
        }
        if uncounted > 0 {
            self.counted_ns += uncounted;
            // It was the first to run, so those that wait have no less.
            self.clock = self.clock.max(state.picked);
            state.vruntime += uncounted * UNIT / u64::from(task.weight.max(1));
            state.counted_ns = task.ran_until_ns;
        }
        state.vruntime = state.vruntime.max(self.clock - self.slice_ns);
        state.queue = queue + 1;
        let step = (self.slice_ns / STEPS).max(1);
        self.queues[queue as usize].push(task, state.vruntime / step * step);
    }

    fn pick(&mut self) -> Option<Pick> {
        let first = |(index, queue): (usize, &mut Ready)| Some((queue.peek()?, index));
        let (_, index) = self.queues.iter_mut().enumerate().filter_map(first).min()?;
        let (task, rank) = self.queues[index].pop()?;
        if let Some(state) = self.tasks.entry(task.pid) {
            state.queue = 0;
            state.picked = rank;
        }
        Some(Pick {
            task,
            rank,
            slice_ns: self.slice_ns,
        })
    }

    fn place(&mut self, pick: &Pick, now_ns: u64, machine: &mut dyn Machine) -> Place {
        self.placement.place(pick, now_ns, machine)
    }

    fn tick(&mut self, now_ns: u64, active_llcs: u32) {
        self.placement.limit(active_llcs);
        if let Some(before) = self.ticked_ns.replace(now_ns) {
            let cpus = u64::from(self.layout.nr_online());
            let unheard = (cpus * (now_ns - before)).saturating_sub(self.counted_ns);
            self.clock += unheard / (UNHEARD * cpus);
        }
        self.counted_ns = 0;
    }

    fn exit(&mut self, pid: i32) {
        self.tasks.remove(pid);
        for queue in &mut self.queues {
            queue.withdraw(pid);
        }
    }

    fn waiting(&self) -> usize {
        self.queues.iter().map(Ready::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn task(pid: i32, ran: (u64, u64)) -> Task {
        Task {
            pid,
            cpu: 0,
            anywhere: true,
            weight: 100,
            class: super::super::Class::Normal,
            home: 0,
            reach: u32::MAX,
            ran_from_ns: ran.0,
            ran_until_ns: ran.1,
            burst_ns: 0,
            token: [0, 0],
        }
    }

    #[test]
    fn nobody_waits_for_ever_behind_tasks_that_end() {
        let mut fair = Fair::new(&Layout::from_llcs(&[(0, vec![0])]), 4 * MS);
        fair.tick(0, u32::MAX);
        fair.enqueue(task(1, (0, 0)), 0);
        fair.pick();
        fair.enqueue(task(1, (0, 20 * MS)), 0);
        let waits = fair.pick().unwrap().rank;
        // New tasks only, each of which runs once.
        let mut new = (2..).map(|pid| {
            fair.tick(u64::from(pid as u32) * 10 * MS, u32::MAX);
            fair.enqueue(task(pid, (0, 0)), 0);
            fair.pick().unwrap().rank
        });
        assert!(new.next().unwrap() < waits);
        assert!(new.take(12).any(|rank| rank > waits));
    }

    #[test]
    fn a_run_is_counted_once() {
        let mut fair = Fair::new(&Layout::from_llcs(&[(0, vec![0])]), 4 * MS);
        let mut rank = |ran| {
            fair.enqueue(task(1, ran), 0);
            fair.pick().unwrap().rank
        };
        let first = rank((0, 0));
        assert_eq!(rank((10 * MS, 20 * MS)) - first, 10 * MS);
        // It came again without having run, as after a change of affinity.
        assert_eq!(rank((10 * MS, 20 * MS)) - first, 10 * MS);
    }
}
