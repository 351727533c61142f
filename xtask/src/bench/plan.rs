//! What is run under which scheduler, in which order. The host makes a plan, the guest carries it out.

use serde::{Deserialize, Serialize};

/// A scheduler that can be in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// As in `--sched`: "eevdf", "rr", "bpfland", ...
    pub name: String,
    /// As reports show it, with the version where it is not of this checkout.
    pub title: String,
    /// None for the kernel's own.
    pub daemon: Option<Daemon>,
}

/// The program that loads a sched_ext scheduler and unloads it when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    pub command: Vec<String>,
    /// What `/sys/kernel/sched_ext/root/ops` starts with while it is in force.
    pub ops: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Tells whether the guest's clock can be trusted; if not, nothing more is run.
    Check,
    /// Fills caches of files and translated code; its figures are not used.
    Warmup,
    Timed,
    /// Run once more under `manycore observe`, for the reasons behind the figures; not timed.
    Observed,
}

/// One run of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub id: usize,
    pub workload: String,
    pub seed: u64,
    pub purpose: Purpose,
    /// Slept before the start, so that seeds differ in where in a tick they begin.
    pub offset_us: u64,
    pub command: Vec<String>,
}

/// What is run from one load of a scheduler to its unload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub scheduler: String,
    pub runs: Vec<Run>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub schedulers: Vec<Scheduler>,
    pub turns: Vec<Turn>,
}

impl Plan {
    pub fn run(&self, id: usize) -> Option<(&Turn, &Run)> {
        self.turns
            .iter()
            .find_map(|turn| Some((turn, turn.runs.iter().find(|run| run.id == id)?)))
    }

    pub fn scheduler(&self, name: &str) -> Option<&Scheduler> {
        self.schedulers.iter().find(|s| s.name == name)
    }

    /// Whether a scheduler has to be loaded for that turn.
    pub fn loads(&self, turn: &Turn) -> bool {
        self.scheduler(&turn.scheduler)
            .is_some_and(|scheduler| scheduler.daemon.is_some())
    }

    pub fn runs(&self) -> usize {
        self.turns.iter().map(|turn| turn.runs.len()).sum()
    }
}
