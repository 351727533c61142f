//! Core-to-core latency: two pinned threads pass a cache line to and fro.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control_plane::topology::CpuId;
use rustix::thread::{CpuSet, sched_setaffinity};

/// To and fro, per round.
const TRIPS: u32 = 150;
const ROUNDS: usize = 11;
/// A pair that takes longer was kept from running.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a waiting thread looks at the time.
const LOOKS: u32 = 4096;

/// A line that shares its cache line, and the one that is fetched with it, with nothing else.
#[repr(align(128))]
struct Line(AtomicU32);

/// Measures how long it takes until a CPU sees what another one wrote, in nanoseconds: half of the way to and fro, the
/// median of the rounds, so that a round with an interrupt in it doesn't count. `None` if one of them was kept from
/// running.
///
/// # Errors
/// If a thread can't be started or pinned.
pub(super) fn latency(a: CpuId, b: CpuId) -> Result<Option<f64>> {
    let line = Line(AtomicU32::new(0));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let pong = scope.spawn(|| {
            let done = pin(b).map(|()| pong(&line, &stop));
            // If it could not be pinned, the other one need not wait for it.
            stop.store(true, Ordering::Relaxed);
            done
        });
        let ping = scope.spawn(|| {
            let done = pin(a).map(|()| ping(&line, &stop));
            stop.store(true, Ordering::Relaxed);
            done
        });
        let ping = ping.join().ok().context("a thread has panicked")??;
        pong.join().ok().context("a thread has panicked")??;
        Ok(ping)
    })
}

/// Binds this thread to a CPU.
pub(super) fn pin(cpu: CpuId) -> Result<()> {
    let id = cpu.0 as usize;
    anyhow::ensure!(
        id < CpuSet::MAX_CPU,
        "CPU {cpu} is beyond what can be measured"
    );
    let mut set = CpuSet::new();
    set.set(id);
    sched_setaffinity(None, &set).with_context(|| format!("pinning a thread to CPU {cpu}"))
}

fn ping(Line(line): &Line, stop: &AtomicBool) -> Option<f64> {
    let deadline = Instant::now() + PATIENCE;
    let mut value = 0;
    let mut rounds = Vec::with_capacity(ROUNDS);
    // The first one waits for the other thread, and warms up.
    for round in 0..=ROUNDS {
        let begin = Instant::now();
        for _ in 0..TRIPS {
            line.store(value + 1, Ordering::Release);
            value += 2;
            let mut looks = 0;
            while line.load(Ordering::Acquire) != value {
                looks += 1;
                if looks % LOOKS == 0 && (Instant::now() > deadline || stop.load(Ordering::Relaxed))
                {
                    return None;
                }
            }
        }
        if round > 0 {
            rounds.push(begin.elapsed().as_nanos() as f64 / f64::from(2 * TRIPS));
        }
    }
    rounds.sort_by(f64::total_cmp);
    rounds.get(ROUNDS / 2).copied()
}

fn pong(Line(line): &Line, stop: &AtomicBool) {
    let mut value = 1;
    for _ in 0..(ROUNDS as u32 + 1) * TRIPS {
        let mut looks = 0;
        while line.load(Ordering::Acquire) != value {
            looks += 1;
            if looks % LOOKS == 0 && stop.load(Ordering::Relaxed) {
                return;
            }
        }
        line.store(value + 1, Ordering::Release);
        value += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    #[test]
    fn two_cpus_see_each_other() {
        let set = sched_getaffinity(None).unwrap();
        let cpus: Vec<CpuId> = (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .map(|cpu| CpuId(cpu as u32))
            .collect();
        if let [a, b, ..] = cpus[..] {
            // None if this machine is too busy, which is no fault of the code.
            if let Some(ns) = latency(a, b).unwrap() {
                assert!((1.0..1e6).contains(&ns), "{ns}");
            }
        }
        // The same CPU twice: they can only take turns, and it says so or comes to an end.
        latency(cpus[0], cpus[0]).unwrap();
        assert!(latency(CpuId(4000), cpus[0]).is_err());
    }
}
