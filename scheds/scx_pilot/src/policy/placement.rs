//! Where a task runs: shared by the policies, as it follows from the machine and not from who goes first.
//!
//! - Usually: on the CPU where it ran last if that is idle, else on another idle one, else on whichever is free first.
//! - A service that is to be kept to some caches (its *reach*) tries the CPUs of those first, and takes any other idle one
//!   rather than wait.
//! - Over the power budget, work is packed into the first caches: a task waits there for up to a slice before it may wake
//!   a CPU elsewhere. In every fourth tenth of a second nothing is packed, since what waits for a certain CPU goes before
//!   what waits for any: a task that may only use packed CPUs would have to wait for the end of the load.

use super::{Machine, Pick, Place};
use crate::layout::Layout;

const PHASE_NS: u64 = 100_000_000;
const PHASES: u64 = 4;

#[derive(Clone, Debug)]
pub struct Placement {
    layout: Layout,
    active_llcs: u32,
    /// Until when each CPU is busy with what it was given to itself, by this thread's clock.
    busy_until_ns: Vec<u64>,
    turn: u32,
}

impl Placement {
    pub fn new(layout: &Layout) -> Self {
        Self {
            active_llcs: layout.nr_llcs(),
            busy_until_ns: vec![0; layout.nr_cpu_ids() as usize],
            layout: layout.clone(),
            turn: 0,
        }
    }

    /// Packs work into this many caches; at least one.
    pub fn limit(&mut self, active_llcs: u32) {
        self.active_llcs = active_llcs.clamp(1, self.layout.nr_llcs());
    }

    /// Says where a task is to run.
    pub fn place(&mut self, pick: &Pick, now_ns: u64, machine: &mut dyn Machine) -> Place {
        let task = &pick.task;
        let nr_llcs = self.layout.nr_llcs();
        let packed = self.active_llcs < nr_llcs;
        let (first, count) = if packed {
            (0, self.active_llcs)
        } else {
            (task.home % nr_llcs, task.reach.max(1))
        };
        // Only the kernel knows which CPUs the others may use.
        if !task.anywhere || count >= nr_llcs {
            return idle_or_any(task.pid, task.cpu, machine);
        }
        let own = self.layout.llc_of(task.cpu);
        let near = if (own + nr_llcs - first) % nr_llcs >= count {
            self.choose(first, count)
        } else if packed || machine.own_cpu() == Some(task.cpu) {
            task.cpu
        } else {
            // The kernel has just woken the CPU where it ran last, so that one doesn't count as idle now.
            self.choose_but(task.cpu, first, count)
        };
        let resting = now_ns / PHASE_NS % PHASES == PHASES - 1;
        if packed && !resting {
            let busy = &mut self.busy_until_ns[near as usize];
            if *busy <= now_ns + pick.slice_ns {
                *busy = now_ns.max(*busy) + pick.slice_ns;
                return Place::Cpu(near);
            }
        }
        let place = idle_or_any(task.pid, near, machine);
        if let Place::Cpu(cpu) = place
            && let Some(busy) = self.busy_until_ns.get_mut(cpu as usize)
        {
            // So that the next task of its service tries another one.
            *busy = now_ns + pick.slice_ns;
        }
        place
    }

    /// The less busy of two CPUs of these caches: nearly as good as the least busy of all, at a cost that doesn't grow.
    fn choose(&mut self, first: u32, count: u32) -> u32 {
        let (one, other) = (self.next_cpu(first, count), self.next_cpu(first, count));
        let busy = |cpu: u32| self.busy_until_ns[cpu as usize];
        if busy(other) < busy(one) { other } else { one }
    }

    /// The same, but not this one, unless it is by chance.
    fn choose_but(&mut self, cpu: u32, first: u32, count: u32) -> u32 {
        let chosen = self.choose(first, count);
        if chosen == cpu {
            self.choose(first, count)
        } else {
            chosen
        }
    }

    /// The CPUs of some caches in turn, one of each cache at a time.
    fn next_cpu(&mut self, first: u32, count: u32) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        let llc = (first + self.turn % count) % self.layout.nr_llcs();
        let cpus = self.layout.cpus_of(llc);
        let index = (self.turn / count) as usize % cpus.len().max(1);
        cpus.get(index).copied().unwrap_or(0)
    }
}

fn idle_or_any(pid: i32, near: u32, machine: &mut dyn Machine) -> Place {
    machine.idle_cpu(pid, near).map_or(Place::Any, Place::Cpu)
}

#[cfg(test)]
mod tests {
    use super::super::{Class, Task};
    use super::*;

    const MS: u64 = 1_000_000;

    /// Two CPUs can't be had: that of the task that runs, and the one that the kernel has just woken. Whoever asks for one
    /// of them gets the last of all.
    struct Taken([u32; 2]);

    impl Machine for Taken {
        fn idle_cpu(&mut self, _pid: i32, near: u32) -> Option<u32> {
            Some(if self.0.contains(&near) { 7 } else { near })
        }
    }

    #[test]
    fn two_tasks_of_a_service_stay_in_its_cache() {
        let layout = Layout::from_llcs(&[(0, vec![0, 1, 2, 3]), (1, vec![4, 5, 6, 7])]);
        let mut placement = Placement::new(&layout);
        let mut cpus = [0, 1];
        for round in 0..1000u64 {
            let wakes = (round % 2) as usize;
            let pick = Pick {
                task: Task {
                    pid: wakes as i32,
                    cpu: cpus[wakes],
                    anywhere: true,
                    weight: 100,
                    class: Class::Normal,
                    home: 0,
                    reach: 1,
                    ran_from_ns: 0,
                    ran_until_ns: 0,
                    burst_ns: 0,
                    token: [0, 0],
                },
                rank: 0,
                slice_ns: 4 * MS,
            };
            let place = placement.place(&pick, round * MS, &mut Taken(cpus));
            let Place::Cpu(cpu) = place else {
                panic!("CPUs idle in round {round}");
            };
            // The first ones, it has not placed.
            assert!(cpu < 4 || round < 4, "round {round}: {cpus:?}");
            cpus[wakes] = cpu;
        }
    }
}
