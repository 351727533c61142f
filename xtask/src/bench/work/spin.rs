//! Work that is defined by the CPU time it takes, and a gate that releases many threads at once.

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use rustix::thread::futex;
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Between two looks at the clock, which is a system call that also does the scheduler's accounting.
const CHUNK: Duration = Duration::from_micros(50);

/// The CPU time that the calling thread has had.
pub fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

/// Computes for stretches of about a chunk, as measured once.
#[derive(Debug, Clone, Copy)]
pub struct Spinner {
    iterations: u64,
}

impl Spinner {
    pub fn calibrated() -> Self {
        let mut iterations = 64;
        loop {
            let from = cpu_time();
            work(iterations);
            let took = cpu_time().saturating_sub(from);
            if took >= CHUNK {
                let share = CHUNK.as_secs_f64() / took.as_secs_f64();
                return Self {
                    iterations: ((iterations as f64 * share) as u64).max(1),
                };
            }
            iterations *= 2;
        }
    }

    /// Computes that many chunks, whatever time they take.
    pub fn compute(self, chunks: u32) {
        for _ in 0..chunks {
            work(self.iterations);
        }
    }

    /// Computes until the calling thread has had that much more CPU time. Being preempted doesn't count.
    pub fn burn(self, demand: Duration) {
        let until = cpu_time() + demand;
        while cpu_time() < until {
            work(self.iterations);
        }
    }
}

/// Random numbers in registers, without a branch between the next four: an emulated CPU needs several times as long for an
/// instruction in a loop of few, or in memory.
fn work(iterations: u64) {
    let mut x = 1;
    for _ in 0..iterations {
        x = random(random(random(random(x))));
    }
    black_box(x);
}

/// The next of xorshift64.
#[inline(always)]
fn random(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ x << 17
}

/// Holds threads until all are there, then releases them by one system call.
#[derive(Debug, Default)]
pub struct Gate {
    waiting: AtomicU32,
    open: AtomicU32,
}

impl Gate {
    pub fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        while self.open.load(Ordering::Acquire) == 0 {
            // An interrupted or late wait is repeated by the loop.
            let _ = futex::wait(&self.open, futex::Flags::PRIVATE, 0, None);
        }
    }

    /// Waits until that many threads wait.
    pub fn gather(&self, threads: usize) {
        while (self.waiting.load(Ordering::Acquire) as usize) < threads {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The last one has counted itself, but may not sleep yet.
        std::thread::sleep(Duration::from_millis(10));
    }

    pub fn release(&self) -> Result<()> {
        self.open.store(1, Ordering::Release);
        futex::wake(&self.open, futex::Flags::PRIVATE, u32::MAX >> 1)
            .context("waking the threads")?;
        Ok(())
    }
}

/// That many demands around a mean, by up to a tenth less or more, whose sum does not depend on the seed.
pub fn demands(count: usize, mean: Duration, rng: &mut Rng) -> Vec<Duration> {
    let weights: Vec<_> = (0..count).map(|_| 0.9 + 0.2 * rng.f64()).collect();
    let sum: f64 = weights.iter().sum();
    weights
        .iter()
        .map(|weight| mean.mul_f64(weight * count as f64 / sum))
        .collect()
}

/// Reads a list of CPUs as the kernel writes it: "0-3,8".
pub fn parse_cpulist(text: &str) -> Result<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) else {
            bail!("{text:?} is not a list of CPUs");
        };
        cpus.extend(from..=to);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_demand_is_met_in_cpu_time() {
        let from = cpu_time();
        Spinner::calibrated().burn(Duration::from_millis(20));
        let took = cpu_time() - from;
        assert!(took >= Duration::from_millis(20), "{took:?}");
        assert!(took < Duration::from_millis(40), "{took:?}");
    }

    #[test]
    fn a_gate_holds_until_it_is_released() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        gate.pass();
                        Instant::now()
                    })
                })
                .collect();
            gate.gather(4);
            let released = Instant::now();
            gate.release().unwrap();
            for thread in threads {
                assert!(thread.join().unwrap() >= released);
            }
        });
    }

    #[test]
    fn demands_differ_but_their_sum_does_not() {
        let mean = Duration::from_millis(20);
        let one = demands(16, mean, &mut Rng::with_seed(1));
        let two = demands(16, mean, &mut Rng::with_seed(2));
        assert_ne!(one, two);
        for list in [one, two] {
            let sum: Duration = list.iter().sum();
            assert!(sum.abs_diff(mean * 16) < Duration::from_micros(1));
        }
    }

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpulist("0-2,5\n").unwrap(), [0, 1, 2, 5]);
        assert_eq!(parse_cpulist("\n").unwrap(), [0_usize; 0]);
        assert!(parse_cpulist("0-x").is_err());
    }
}
