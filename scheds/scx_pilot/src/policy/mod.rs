//! Policies: who runs next, for how long, and where.
//!
//! A policy is asked by one thread only, the one that schedules. While that thread runs, every task that is not running
//! already waits for it; so a policy must neither allocate, nor block, nor log, except in its constructor. Its
//! structures have a fixed capacity: [`Ready`] for tasks that wait, [`PidMap`] for what it remembers of each task.

mod deadline;
mod fair;
mod fifo;
mod pidmap;
mod placement;
mod ready;

pub use deadline::{Deadline, MAX_ALLOWANCE_NS};
pub use fair::Fair;
pub use fifo::Fifo;
pub use pidmap::PidMap;
pub use placement::Placement;
pub use ready::Ready;

/// What a service is: `Latency`, somebody waits for its answer; `Batch`, only its throughput counts; or `Normal`.
pub use control_plane::policy::Class;

use crate::layout::Layout;

/// The most tasks that a policy is ever given to hold at once.
pub const MAX_WAITING: usize = 2048;
/// How many tasks a policy remembers. What is beyond is scheduled like a task seen for the first time.
pub const MAX_TASKS: usize = 1 << 17;

/// A task that wants to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub pid: i32,
    /// The CPU where it ran last.
    pub cpu: u32,
    /// Whether it may run on all CPUs. Which ones it may run on otherwise, only the kernel knows.
    pub anywhere: bool,
    /// Its share against others', 1 to 1,000,000: the kernel's (100 is nice 0), times its service's, times what inputs say.
    pub weight: u32,
    pub class: Class,
    /// The cache at which its service is at home, modulo their number, and to how many from there it is to be kept.
    pub home: u32,
    pub reach: u32,
    /// From when to when it ran last, in nanoseconds of the kernel's clock; both 0 if it never did.
    pub ran_from_ns: u64,
    pub ran_until_ns: u64,
    /// How long it has run since it last slept, in nanoseconds; 0 if it has just woken up.
    pub burst_ns: u64,
    /// What the kernel wants back with the decision.
    pub token: [u64; 2],
}

/// A decision: this task runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub task: Task,
    /// Its place among the tasks that were picked and have no CPU yet: the lowest runs first. So what is picked later can
    /// still run earlier.
    pub rank: u64,
    /// How long it may run, in nanoseconds.
    pub slice_ns: u64,
}

/// Where a task is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this CPU, before all that wait for any CPU.
    Cpu(u32),
    /// On the first CPU that is free.
    Any,
}

/// What a policy can ask the machine.
pub trait Machine {
    /// Takes an idle CPU for a task: the one given if it is idle, else another that the task may use, as near as the
    /// kernel can tell. A CPU that was taken should be used. `None` if all are busy.
    fn idle_cpu(&mut self, pid: i32, near: u32) -> Option<u32>;

    /// The CPU that will idle in a moment, as the policy itself runs there; `idle_cpu` gives it to the first task that wants
    /// it. `None` once a task has it, or while all CPUs are busy: what is sent to a certain CPU goes before what waits for
    /// any.
    fn own_cpu(&mut self) -> Option<u32> {
        None
    }
}

/// A scheduling policy.
pub trait Policy: Send {
    /// A task wants to run. If it is waiting already, this replaces what was known of it: it must be picked once.
    fn enqueue(&mut self, task: Task, now_ns: u64);

    /// Takes the task that runs next; `None` if none waits.
    fn pick(&mut self) -> Option<Pick>;

    /// Says where a task that was just picked is to run.
    fn place(&mut self, pick: &Pick, now_ns: u64, machine: &mut dyn Machine) -> Place {
        let _ = now_ns;
        machine
            .idle_cpu(pick.task.pid, pick.task.cpu)
            .map_or(Place::Any, Place::Cpu)
    }

    /// Some time has passed, about 100 ms. `active_llcs`: in how many caches work is to be packed; more than there are for
    /// no limit.
    fn tick(&mut self, now_ns: u64, active_llcs: u32) {
        let _ = (now_ns, active_llcs);
    }

    /// A task is gone, and its pid may soon be another's.
    fn exit(&mut self, pid: i32);

    /// How many tasks wait to be picked.
    fn waiting(&self) -> usize;
}

/// The policies that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// First in, first out
    Fifo,
    /// CPU time in proportion to weight
    #[default]
    Fair,
    /// Short and latency-sensitive tasks first, and nobody waits longer than a known bound
    Deadline,
}

impl Kind {
    /// A policy of this kind, with all the memory that it will ever need.
    ///
    /// `slice_ns`: how long a task may run at a time.
    pub fn build(self, layout: &Layout, slice_ns: u64) -> Box<dyn Policy> {
        match self {
            Self::Fifo => Box::new(Fifo::new(layout, slice_ns)),
            Self::Fair => Box::new(Fair::new(layout, slice_ns)),
            Self::Deadline => Box::new(Deadline::new(layout, slice_ns)),
        }
    }
}
