//! The processes of a guest. virtme-ng starts QEMU and virtiofsd behind shells of its own, so they are found by a mark
//! in their environment, which every descendant inherits, rather than by parentage or by name.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The variable that marks them; its value is the run's folder, which is unique.
pub const MARK: &str = "MANYCORE_VM";

const POLL: Duration = Duration::from_millis(20);

/// All living processes of the run.
pub fn of_run(run: &Path) -> Vec<Pid> {
    let wanted = format!("{MARK}={}", run.display());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|env| env.split(|b| *b == 0).any(|var| var == wanted.as_bytes()))
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// The run's QEMU, told from virtme-ng and virtiofsd by the name of its program.
pub fn qemu_of_run(run: &Path) -> Option<Pid> {
    of_run(run).into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()))
            .is_ok_and(|comm| comm.starts_with("qemu-system"))
    })
}

/// Ends what is left of the run: politely, and after the grace period for good.
pub fn end_run(run: &Path, grace: Duration) {
    end_all(|| of_run(run), grace);
}

/// So many looks in a row have to find nobody: a process that is just becoming another program has no environment for a
/// moment.
const LOOKS: u32 = 3;

fn end_all(look: impl Fn() -> Vec<Pid>, grace: Duration) {
    let deadline = Instant::now() + grace;
    let mut signal = Signal::TERM;
    let mut in_vain = 0;
    while in_vain < LOOKS {
        let left = look();
        if left.is_empty() {
            in_vain += 1;
            std::thread::sleep(POLL);
            continue;
        }
        in_vain = 0;
        for pid in left {
            // It may have ended by itself since it was listed.
            let _ = kill_process(pid, signal);
        }
        let pause_until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < pause_until && !look().is_empty() {
            std::thread::sleep(POLL);
        }
        if Instant::now() >= deadline {
            signal = Signal::KILL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::Command;

    /// Whether that comes true.
    fn soon(mut condition: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !condition() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    #[test]
    fn one_that_is_not_seen_for_a_moment_is_ended_all_the_same() {
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&sleeper);
        let looks = Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            // Its parent is this process, so it stays until it is waited for.
            let there = looks.get() > 1 && looks.get() < 4;
            Vec::from_iter(there.then_some(pid))
        };
        end_all(look, Duration::ZERO);
        let ended = soon(|| sleeper.try_wait().unwrap().is_some());
        let _ = sleeper.kill();
        sleeper.wait().unwrap();
        assert!(ended, "it was left alone");
    }

    #[test]
    fn descendants_are_found_and_ended_even_when_their_parent_is_gone() {
        let run = tempfile::tempdir().unwrap();
        // The shell leaves a background child behind, which also ignores the polite signal.
        let mut shell = Command::new("sh")
            .args(["-c", "trap '' TERM; sleep 1000 & exit 0"])
            .env(MARK, run.path())
            .spawn()
            .unwrap();
        shell.wait().unwrap();
        assert!(soon(|| of_run(run.path()).len() == 1));
        end_run(run.path(), Duration::from_millis(10));
        assert!(of_run(run.path()).is_empty());
    }

    #[test]
    fn others_are_left_alone() {
        let run = tempfile::tempdir().unwrap();
        let mut other = Command::new("sleep")
            .arg("1000")
            .env(MARK, run.path().join("other"))
            .spawn()
            .unwrap();
        end_run(run.path(), Duration::ZERO);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
