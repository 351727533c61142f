//! What the guest tells the host while it carries out a plan: one JSON object a line.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Machine(Machine),
    /// A scheduler is in force; `ops` as the kernel names it.
    Loaded {
        scheduler: String,
        ops: String,
    },
    /// It could not be loaded; its remaining turns are left out.
    NotLoaded {
        scheduler: String,
        why: String,
    },
    Started {
        run: usize,
    },
    Done(Done),
    /// It ended by itself or the kernel threw it out; its remaining turns are left out.
    Ejected {
        scheduler: String,
        why: String,
    },
    /// It ended when asked to, and the kernel's own scheduler is back.
    Unloaded {
        scheduler: String,
    },
    /// The whole plan was carried out.
    End,
}

/// The guest as it sees itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub release: String,
    pub cmdline: String,
    pub cpus: usize,
    pub nodes: usize,
    /// Simultaneous multithreading is on.
    pub smt: bool,
    /// Empty if there is no frequency scaling.
    pub governor: String,
    /// The files of `/sys/kernel/debug/sched`: the kernel's own scheduler depends on them.
    pub sched_debug: BTreeMap<String, String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub run: usize,
    /// None if a signal ended it.
    pub code: Option<i32>,
    /// Both of its streams, as they were mixed.
    pub output: String,
    /// What `manycore observe` reported, of an observed run.
    pub observed: Option<serde_json::Value>,
    /// By the guest's clock.
    pub seconds: f64,
    /// Why the run doesn't count: the scheduler was not in force from its start to its end.
    pub lapse: Option<String>,
}
