//! Sees that an emulated guest stands still: now and then one loses an interrupt, mostly while it boots, all its CPUs halt,
//! and nothing wakes them any more. QEMU goes on all the same, so it is told by the CPU time of its threads.

use super::processes;
use rustix::process::Pid;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a guest that boots uses many times over, even with a small part of a busy host, and one that stands still doesn't,
/// in ticks of 10 ms.
const USED_MIN: u64 = 2;
const POLL: Duration = Duration::from_millis(500);

pub struct Stillness {
    qemu: Option<Pid>,
    looked: Instant,
    /// Since when it has used less than `USED_MIN` beyond `used`.
    since: Instant,
    used: u64,
}

impl Stillness {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            qemu: None,
            looked: now,
            since: now,
            used: 0,
        }
    }

    /// For how long the run's virtual CPUs have been still; zero while there is no QEMU, and until they have run at all.
    pub fn lasts(&mut self, run: &Path) -> Duration {
        let now = Instant::now();
        if now - self.looked >= POLL {
            self.looked = now;
            self.qemu = self.qemu.or_else(|| processes::qemu_of_run(run));
            self.saw(self.qemu.and_then(cpu_time), now);
        }
        now - self.since
    }

    /// At `now`, its virtual CPUs have used this much, in ticks.
    fn saw(&mut self, used: Option<u64>, now: Instant) {
        // 256 of them take QEMU's first thread ten seconds to make on a busy host.
        let made = self.used > 0;
        let used = used.unwrap_or_default();
        if !made || used >= self.used + USED_MIN || used < self.used {
            self.used = used;
            self.since = now;
        }
    }
}

/// The CPU time of all threads of the process but its first, which emulates no CPU, in ticks.
fn cpu_time(process: Pid) -> Option<u64> {
    let process = process.as_raw_nonzero().to_string();
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let times = threads
        .flatten()
        .filter(|thread| thread.file_name() != process.as_str())
        .filter_map(|thread| ticks(&fs::read_to_string(thread.path().join("stat")).ok()?));
    Some(times.sum())
}

/// `utime` and `stime` of a line of `/proc/PID/stat`; see proc_pid_stat(5). The program's name may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn times_are_found_whatever_the_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 99 0 1 0 250 50 3 4 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a"), None);
        assert_eq!(ticks("7 (a) S 1 7"), None);
    }

    #[test]
    fn nothing_is_still_before_it_has_run() {
        let mut stillness = Stillness::new();
        let start = Instant::now();
        let mut after = |secs, used| {
            let now = start + Duration::from_secs(secs);
            stillness.saw(used, now);
            (now - stillness.since).as_secs()
        };
        assert_eq!(after(1, None), 0);
        assert_eq!(after(2, Some(0)), 0);
        assert_eq!(after(20, Some(0)), 0);
        assert_eq!(after(21, Some(USED_MIN)), 0);
        assert_eq!(after(23, Some(USED_MIN + 1)), 2);
        assert_eq!(after(31, Some(USED_MIN + 1)), 10);
        assert_eq!(after(32, Some(2 * USED_MIN)), 0);
        // QEMU has ended.
        assert_eq!(after(40, None), 0);
        assert_eq!(after(50, None), 0);
    }

    #[test]
    fn only_threads_beside_the_first_count() {
        let own = rustix::process::getpid();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            // The time of a thread that ends, such as another test's, is no longer counted.
            let deadline = Instant::now() + Duration::from_secs(20);
            let grows = || {
                let before = cpu_time(own);
                std::thread::sleep(Duration::from_millis(100));
                cpu_time(own) > before
            };
            let mut grown = false;
            while !grown && Instant::now() < deadline {
                grown = grows();
            }
            stop.store(true, Ordering::Relaxed);
            assert!(grown);
        });

        let mut child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let time = cpu_time(Pid::from_child(&child));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(time, Some(0));
        assert_eq!(cpu_time(Pid::from_raw(i32::MAX).unwrap()), None);
    }
}
