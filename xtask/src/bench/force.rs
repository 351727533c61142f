//! Inside the guest: which scheduler is in force, how one is loaded and how it is unloaded.
//!
//! A scheduler that failed to load looks like the kernel's own, so nothing counts unless the kernel itself says, before
//! and after, who is in force. Nothing here gives up after a time: under a virtual clock a guest's second says nothing
//! about what a file server on the host needed. The host ends a guest that takes too long.

use super::plan::{Daemon, Scheduler};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SYSFS: &str = "/sys/kernel/sched_ext";
const LOG: &str = "/tmp/manycore-scheduler.log";
const POLL: Duration = Duration::from_millis(20);
/// Of a scheduler's last words.
const SHOWN_LINES: usize = 6;

/// What the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// "disabled", "enabling", "enabled", "disabling", or "absent" on a kernel without sched_ext.
    pub state: String,
    /// The loaded scheduler's name; empty if there is none.
    pub ops: String,
    /// Grows each time that a scheduler is loaded.
    pub enable_seq: String,
}

impl State {
    pub fn read() -> Self {
        Self::read_at(Path::new(SYSFS))
    }

    fn read_at(sysfs: &Path) -> Self {
        let read = |name| {
            fs::read_to_string(sysfs.join(name)).map_or(String::new(), |text| text.trim().into())
        };
        let state: String = read("state");
        Self {
            state: if state.is_empty() {
                "absent".into()
            } else {
                state
            },
            ops: read("root/ops"),
            enable_seq: read("enable_seq"),
        }
    }

    /// Why this is not the state of a machine on which that scheduler is in force.
    pub fn unlike(&self, scheduler: &Scheduler) -> Option<String> {
        let fits = match &scheduler.daemon {
            None => matches!(self.state.as_str(), "disabled" | "absent") && self.ops.is_empty(),
            Some(daemon) => self.state == "enabled" && self.ops.starts_with(&daemon.ops),
        };
        (!fits).then(|| {
            format!(
                "{} is not in force: sched_ext is {}, root/ops is {:?}",
                scheduler.title, self.state, self.ops
            )
        })
    }
}

/// Why a run between these two states doesn't count.
pub fn lapse(scheduler: &Scheduler, before: &State, after: &State) -> Option<String> {
    before
        .unlike(scheduler)
        .map(|why| format!("before the run {why}"))
        .or_else(|| {
            after
                .unlike(scheduler)
                .map(|why| format!("after the run {why}"))
        })
        .or_else(|| {
            (before.enable_seq != after.enable_seq)
                .then(|| format!("{} was loaded anew during the run", scheduler.title))
        })
}

/// A scheduler that was loaded here; the kernel's own has no process.
#[derive(Debug)]
pub struct Loaded {
    child: Option<Child>,
}

impl Loaded {
    /// Loads it and waits until the kernel names it. The error is why not, in the scheduler's own last words.
    pub fn load(scheduler: &Scheduler) -> Result<Self, String> {
        let Some(daemon) = &scheduler.daemon else {
            return match State::read().unlike(scheduler) {
                None => Ok(Self { child: None }),
                Some(why) => Err(why),
            };
        };
        let seq = State::read().enable_seq;
        let mut child = spawn(daemon).map_err(|error| format!("{}: {error}", daemon.command[0]))?;
        loop {
            let now = State::read();
            // The kernel counts the load only after it says "enabled".
            if now.unlike(scheduler).is_none() && now.enable_seq != seq {
                return Ok(Self { child: Some(child) });
            }
            match child.try_wait() {
                Ok(None) => std::thread::sleep(POLL),
                Ok(Some(status)) => return Err(last_words(&format!("ended with {status}"))),
                Err(error) => return Err(format!("waiting for it: {error}")),
            }
        }
    }

    /// Its last words, if it has ended.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.as_mut()?.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(last_words(&format!("ended with {status}"))),
            Err(error) => Some(format!("waiting for it: {error}")),
        }
    }

    /// Asks it to end, and waits until the kernel's own scheduler is back. The error is how it failed to.
    pub fn unload(self) -> Result<(), String> {
        let Some(mut child) = self.child else {
            return Ok(());
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended in this moment; the wait below tells.
            let _ = kill_process(pid, Signal::INT);
        }
        let status = child
            .wait()
            .map_err(|error| format!("waiting for its end: {error}"))?;
        while State::read().state != "disabled" {
            std::thread::sleep(POLL);
        }
        if status.success() {
            Ok(())
        } else {
            Err(last_words(&format!("asked to end, it ended with {status}")))
        }
    }
}

fn spawn(daemon: &Daemon) -> std::io::Result<Child> {
    let log = File::create(LOG)?;
    Command::new(&daemon.command[0])
        .args(&daemon.command[1..])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

fn last_words(how: &str) -> String {
    let log = fs::read(LOG).unwrap_or_default();
    summary(how, &String::from_utf8_lossy(&log))
}

/// The lines of a scheduler's log that say why it ended: those with an error or an exit in them, else the last ones.
fn summary(how: &str, log: &str) -> String {
    const TELLING: [&str; 5] = ["EXIT:", "Error:", "ERROR", "error:", "failed"];
    let lines: Vec<_> = log
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let telling: Vec<_> = lines
        .iter()
        .filter(|line| TELLING.iter().any(|word| line.contains(word)))
        .copied()
        .collect();
    let chosen = if telling.is_empty() { lines } else { telling };
    let from = chosen.len().saturating_sub(SHOWN_LINES);
    let words = chosen[from..].join("; ");
    if words.is_empty() {
        how.to_owned()
    } else {
        format!("{how}: {words}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels_own() -> Scheduler {
        Scheduler {
            name: "eevdf".into(),
            title: "EEVDF".into(),
            daemon: None,
        }
    }

    fn rr() -> Scheduler {
        Scheduler {
            name: "rr".into(),
            title: "scx_rr".into(),
            daemon: Some(Daemon {
                command: vec!["scx_rr".into()],
                ops: "rr_".into(),
            }),
        }
    }

    fn state(state: &str, ops: &str, enable_seq: &str) -> State {
        State {
            state: state.into(),
            ops: ops.into(),
            enable_seq: enable_seq.into(),
        }
    }

    #[test]
    fn the_state_is_read_as_the_kernel_shows_it() {
        let sysfs = tempfile::tempdir().unwrap();
        assert_eq!(State::read_at(sysfs.path()), state("absent", "", ""));
        fs::create_dir(sysfs.path().join("root")).unwrap();
        for (name, text) in [
            ("state", "enabled\n"),
            ("root/ops", "rr_0.1.0\n"),
            ("enable_seq", "3\n"),
        ] {
            fs::write(sysfs.path().join(name), text).unwrap();
        }
        assert_eq!(
            State::read_at(sysfs.path()),
            state("enabled", "rr_0.1.0", "3")
        );
    }

    #[test]
    fn only_the_right_scheduler_is_in_force() {
        assert_eq!(state("disabled", "", "0").unlike(&kernels_own()), None);
        assert_eq!(state("absent", "", "").unlike(&kernels_own()), None);
        assert!(
            state("enabled", "rr_0.1.0", "1")
                .unlike(&kernels_own())
                .is_some()
        );
        assert_eq!(state("enabled", "rr_0.1.0", "1").unlike(&rr()), None);
        assert!(state("enabled", "simple", "1").unlike(&rr()).is_some());
        assert!(state("enabling", "rr_0.1.0", "1").unlike(&rr()).is_some());
        assert!(state("disabled", "", "1").unlike(&rr()).is_some());
    }

    #[test]
    fn a_run_counts_only_between_two_right_states_of_one_load() {
        let good = state("enabled", "rr_0.1.0", "1");
        assert_eq!(lapse(&rr(), &good, &good), None);
        let gone = state("disabled", "", "1");
        assert!(
            lapse(&rr(), &good, &gone)
                .unwrap()
                .starts_with("after the run scx_rr is not")
        );
        assert!(
            lapse(&rr(), &gone, &good)
                .unwrap()
                .starts_with("before the run")
        );
        let again = state("enabled", "rr_0.1.0", "2");
        assert!(lapse(&rr(), &good, &again).unwrap().contains("anew"));
    }

    #[test]
    fn last_words_are_those_that_tell_why() {
        let log = "[INFO] starting\n[INFO] 8 CPUs\nError: Failed to load\n  caused by: EACCES\n";
        assert_eq!(
            summary("ended with 1", log),
            "ended with 1: Error: Failed to load"
        );
        assert_eq!(summary("ended with 1", "a\nb\n"), "ended with 1: a; b");
        assert_eq!(summary("ended with 1", ""), "ended with 1");
    }
}
