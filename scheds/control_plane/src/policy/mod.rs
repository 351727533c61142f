//! Policy: which services are narrow and local and which are wide, applied to cgroups, followed, and undone.
//!
//! ```text
//! policy file ─ schema ─> Policy ─ resolve (+ Topology) ─> Resolved ─ plan (+ cgroups) ─> changes ─ apply ─> files
//!                                                                                           │
//!                                                                        journal, before the first write
//! ```
//! [`Session`] is what a daemon owns: it applies a policy, follows cgroups that come and go, tells the daemon which
//! class each has, and puts everything back. The same parts, one by one, are `manycore policy`.
//!
//! Three rules hold throughout. Nothing is applied if there is any mistake. What was there before is on disk before the
//! first write. A value that is not what was written here any more is somebody else's: it is left alone and reported.

mod apply;
#[cfg(test)]
mod apply_tests;
mod idset;
mod journal;
mod machine;
mod matching;
mod options;
mod plan;
mod resolve;
#[cfg(test)]
mod resolve_tests;
mod restore;
mod schema;
#[cfg(test)]
mod schema_tests;
mod session;
#[cfg(test)]
mod session_tests;
mod suggest;
#[cfg(test)]
mod testing;

use std::fmt;
use std::io;
use std::path::PathBuf;

pub use apply::{LeftAlone, Report, apply, dry_run};
pub use idset::IdSet;
pub use journal::{DEFAULT_JOURNAL, Entry, Journal};
pub use machine::{CgroupFile, Controller, Machine, Target};
pub use matching::Matcher;
pub use options::PolicyOpts;
pub use plan::{Change, Wish, check, wishes};
pub use resolve::{Assignment, Resolved, Share, resolve};
pub use restore::restore;
pub use schema::{At, Class, Memory, Mistake, Place, Policy, Service, Width};
pub use session::Session;
pub use suggest::suggest;

/// What a BPF policy is told of the tasks of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassEntry {
    pub class: Class,
    /// In us, 100 to 100000; `None`: the scheduler's own.
    pub slice_us: Option<u32>,
    /// How far its tasks may be spread; `None`: as its class has it.
    pub width: Option<Width>,
}

/// A cgroup's class, new or changed; without an entry, the cgroup is gone or no service any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassChange {
    /// As `bpf_get_current_cgroup_id()` gives it: the inode number of the cgroup's folder.
    pub cgroup_id: u64,
    pub entry: Option<ClassEntry>,
}

/// Takes class changes: a daemon's BPF map ([`crate::classes::ClassMap`]). A closure is one.
pub trait ClassSink {
    /// # Errors
    /// If it can't be taken now, as when a map is full. It is offered again at the next tick.
    fn change(&mut self, change: &ClassChange) -> io::Result<()>;
}

impl<F: FnMut(&ClassChange) -> io::Result<()>> ClassSink for F {
    fn change(&mut self, change: &ClassChange) -> io::Result<()> {
        self(change)
    }
}

/// Why a policy could not be applied or undone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", lines(.0))]
    Mistakes(Vec<Mistake>),
    #[error("cannot write {value:?} to {target}: {source}{}", hint(.target, .source))]
    Write {
        target: Target,
        value: String,
        source: io::Error,
    },
    #[error("{target} says {now:?} after {value:?} was written to it")]
    Refused {
        target: Target,
        value: String,
        now: String,
    },
    #[error("cannot read {target}: {source}")]
    Read { target: Target, source: io::Error },
    #[error("cannot read the cgroups below {}: {source}", .root.display())]
    Scan { root: PathBuf, source: io::Error },
    #[error("the journal {}: {reason}", .path.display())]
    Journal { path: PathBuf, reason: String },
    #[error(
        "a policy is in force already, kept by process {pid}: end that first, or change its file and send it SIGHUP"
    )]
    Busy { pid: String },
}

fn lines(mistakes: &[Mistake]) -> String {
    let lines: Vec<_> = mistakes.iter().map(Mistake::to_string).collect();
    lines.join("\n")
}

/// What the kernel means by an error of a cgroup file.
fn hint(target: &Target, error: &io::Error) -> &'static str {
    use rustix::io::Errno;
    match (target, Errno::from_io_error(error)) {
        (Target::Controller { .. }, Some(Errno::BUSY)) => {
            " (that cgroup has tasks of its own, so the kernel can't divide it among its children)"
        }
        (Target::Controller { .. }, Some(Errno::NOENT)) => {
            " (the kernel doesn't have that controller here)"
        }
        (_, Some(Errno::ACCESS | Errno::PERM)) => " (are you root?)",
        _ => "",
    }
}

impl fmt::Display for ClassEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.class.fmt(f)?;
        self.slice_us.map_or(Ok(()), |us| write!(f, ", {us} us"))
    }
}
