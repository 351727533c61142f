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

    /// For how long the run's virtual CPUs have been still; zero while there is no QEMU.
    pub fn lasts(&mut self, run: &Path) -> Duration {
        let now = Instant::now();
        if now - self.looked >= POLL {
            self.looked = now;
            self.qemu = self.qemu.or_else(|| processes::qemu_of_run(run));
            self.saw(self.qemu.and_then(cpu_time), now);
        }
        now - self.since
    }

    /// At `now`, it has used this much.
    fn saw(&mut self, used: Option<u64>, now: Instant) {
        match used {
            // Less: of other threads than before.
            Some(used) if (self.used..self.used + USED_MIN).contains(&used) => {}
            used => {
                self.used = used.unwrap_or_default();
                self.since = now;
            }
        }
    }
}

/// The CPU time of all threads of the process but its first, which emulates no CPU, in ticks. Or of that one, as long as the
/// others have none: it makes them, which takes it ten seconds for 256 CPUs on a busy host.
fn cpu_time(process: Pid) -> Option<u64> {
    let process = process.as_raw_nonzero().to_string();
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let (mut first, mut others) = (0, 0);
    for thread in threads.flatten() {
        let Some(used) = fs::read_to_string(thread.path().join("stat"))
            .ok()
            .and_then(|stat| ticks(&stat))
        else {
            continue;
        };
        if thread.file_name() == process.as_str() {
            first = used;
        } else {
            others += used;
        }
    }
    Some(counted(first, others))
}

fn counted(first: u64, others: u64) -> u64 {
    if others == 0 { first } else { others }
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
    fn what_uses_too_little_is_still() {
        let mut stillness = Stillness::new();
        let start = Instant::now();
        let mut after = |secs, used| {
            let now = start + Duration::from_secs(secs);
            stillness.saw(used, now);
            (now - stillness.since).as_secs()
        };
        assert_eq!(after(1, None), 0);
        assert_eq!(after(2, Some(100)), 0);
        assert_eq!(after(4, Some(100)), 2);
        assert_eq!(after(9, Some(100 + USED_MIN - 1)), 7);
        assert_eq!(after(10, Some(100 + USED_MIN)), 0);
        // Its CPUs are made, and run.
        assert_eq!(after(12, Some(3)), 0);
        assert_eq!(after(14, Some(3)), 2);
        assert_eq!(after(15, Some(3 + USED_MIN)), 0);
        // It has ended.
        assert_eq!(after(20, None), 0);
        assert_eq!(after(30, None), 0);
    }

    #[test]
    fn the_first_thread_counts_while_it_makes_the_others() {
        let mut busy = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut time = Some(0);
        while time < Some(10) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            time = cpu_time(Pid::from_child(&busy));
        }
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(time >= Some(10));
        assert_eq!(cpu_time(Pid::from_raw(i32::MAX).unwrap()), None);
    }

    #[test]
    fn threads_beside_the_first_count() {
        assert_eq!(counted(5, 3), 3);
        assert_eq!(counted(5, 0), 5);

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
    }
}
