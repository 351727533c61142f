//! Whether a measurement of core-to-core latency means anything here.
//!
//! It doesn't where CPUs are emulated, where the host has given this machine more CPUs than it keeps running at the
//! same time, and where others are at work. Each is looked for on its own, and what is found is said.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control_plane::topology::CpuId;

use super::pingpong::pin;

/// How long to look whether the machine is quiet.
const QUIET: Duration = Duration::from_millis(500);
/// A CPU that is busier than this is not.
const MAX_BUSY: f64 = 0.2;
/// Share of all CPU time that the host may have taken: hardly a tick.
const MAX_STOLEN: f64 = 0.001;
/// How long all CPUs run at once.
const TOGETHER: Duration = Duration::from_millis(200);
/// An interrupt takes microseconds; who is away for longer was not running.
const AWAY: Duration = Duration::from_micros(200);
/// Share of the time that a CPU may be away.
const MAX_AWAY: f64 = 0.03;
/// How far two measurements of a pair may be apart, typically.
const MAX_DIFFERENCE: f64 = 0.15;
/// What two real CPUs take, generously.
const PLAUSIBLE_NS: std::ops::Range<f64> = 3.0..3000.0;

/// Why a measurement can't be trusted here.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Distrust {
    #[error(
        "this machine's CPUs are emulated in software ({0}), so their caches are too: there is nothing to measure"
    )]
    Emulated(String),
    #[error("CPU {cpu} is {percent:.0}% busy: run it on a quiet machine")]
    Busy { cpu: u32, percent: f64 },
    #[error(
        "CPU {cpu} stood still for {percent:.0}% of the time while all CPUs ran: the host has fewer CPUs to give than \
         this machine has, or they are in use"
    )]
    Oversubscribed { cpu: u32, percent: f64 },
    #[error("the host took {percent:.1}% of the CPU time away (steal time): its CPUs are shared")]
    Stolen { percent: f64 },
    #[error(
        "{failed} of {pairs} pairs of CPUs could not be measured: something kept them from running"
    )]
    Unmeasured { failed: usize, pairs: usize },
    #[error("measuring again gave latencies that are {percent:.0}% off, typically")]
    Unsteady { percent: f64 },
    #[error("latencies of {ns:.0} ns, typically: no real CPUs are like that")]
    Implausible { ns: f64 },
}

/// Fails if the CPUs are emulated.
pub(super) fn check_real() -> Result<(), Distrust> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match emulator(&cpuinfo, &hypervisor().unwrap_or_default()) {
        Some(name) => Err(Distrust::Emulated(name)),
        None => Ok(()),
    }
}

/// The emulator's name, if there is one.
fn emulator(cpuinfo: &str, hypervisor: &str) -> Option<String> {
    if hypervisor == "TCGTCGTCGTCG" {
        return Some("QEMU TCG".to_string());
    }
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim())?;
    (model.contains("TCG") || model.starts_with("QEMU Virtual CPU")).then(|| model.to_string())
}

/// The signature of the hypervisor, if there is one and this is x86.
#[cfg(target_arch = "x86_64")]
// Newer compilers know that this instruction does no harm.
#[allow(unused_unsafe)]
fn hypervisor() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    // SAFETY: every x86_64 CPU has the instruction, which only reads.
    let features = unsafe { __cpuid(1) };
    if features.ecx & (1 << 31) == 0 {
        return None;
    }
    // SAFETY: as above; bit 31 says that there is such a leaf.
    let leaf = unsafe { __cpuid(0x4000_0000) };
    let bytes: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    Some(
        String::from_utf8_lossy(&bytes)
            .trim_end_matches('\0')
            .to_string(),
    )
}

#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> Option<String> {
    None
}

/// Ticks of each CPU since boot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ticks(BTreeMap<u32, CpuTicks>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct CpuTicks {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Ticks {
    /// Reads them.
    ///
    /// # Errors
    /// If `/proc/stat` can't be read.
    pub(super) fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Ok(Self::parse(&stat))
    }

    /// `cpuN user nice system idle iowait irq softirq steal guest guest_nice`; guests' time is part of user's.
    fn parse(stat: &str) -> Self {
        let cpu = |line: &str| {
            let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
            let cpu: u32 = words
                .next()
                .filter(|_| !line.starts_with("cpu "))?
                .parse()
                .ok()?;
            let ticks: Vec<u64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
            let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
            let own = CpuTicks {
                all: ticks.iter().sum(),
                idle: at(3) + at(4),
                stolen: at(7),
            };
            Some((cpu, own))
        };
        Self(stat.lines().filter_map(cpu).collect())
    }

    /// Fails if a CPU was busy since then.
    pub(super) fn check_quiet(&self, since: &Self) -> Result<(), Distrust> {
        for (&cpu, now) in &self.0 {
            let Some(then) = since.0.get(&cpu) else {
                continue;
            };
            let all = now.all.saturating_sub(then.all);
            let busy = all.saturating_sub(now.idle.saturating_sub(then.idle)) as f64;
            if busy > MAX_BUSY * all as f64 {
                let percent = 100.0 * busy / all as f64;
                return Err(Distrust::Busy { cpu, percent });
            }
        }
        Ok(())
    }

    /// Fails if the host took time away since then.
    pub(super) fn check_not_stolen(&self, since: &Self) -> Result<(), Distrust> {
        let sum = |of: fn(&CpuTicks) -> u64, ticks: &Self| ticks.0.values().map(of).sum::<u64>();
        let grown = |of| sum(of, self).saturating_sub(sum(of, since)) as f64;
        let share = grown(|cpu| cpu.stolen) / grown(|cpu| cpu.all).max(1.0);
        if share > MAX_STOLEN {
            return Err(Distrust::Stolen {
                percent: 100.0 * share,
            });
        }
        Ok(())
    }
}

/// Fails if somebody else is at work. Takes half a second.
pub(super) fn check_quiet() -> Result<Result<(), Distrust>> {
    let before = Ticks::read()?;
    thread::sleep(QUIET);
    Ok(Ticks::read()?.check_quiet(&before))
}

/// Fails if the CPUs can't all run at the same time: each looks at the clock all the time, and sees when it was away.
pub(super) fn check_together(cpus: &[CpuId]) -> Result<Result<(), Distrust>> {
    let barrier = Barrier::new(cpus.len());
    let away: Vec<Result<(CpuId, f64)>> = thread::scope(|scope| {
        let watch = |cpu: CpuId| {
            let barrier = &barrier;
            scope.spawn(move || {
                let pinned = pin(cpu);
                barrier.wait();
                pinned.map(|()| (cpu, share_away()))
            })
        };
        let threads: Vec<_> = cpus.iter().map(|&cpu| watch(cpu)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread has panicked")?)
            .collect()
    });
    for found in away {
        let (cpu, share) = found?;
        if share > MAX_AWAY {
            return Ok(Err(Distrust::Oversubscribed {
                cpu: cpu.0,
                percent: 100.0 * share,
            }));
        }
    }
    Ok(Ok(()))
}

fn share_away() -> f64 {
    let begin = Instant::now();
    let mut last = begin;
    let mut away = Duration::ZERO;
    while last - begin < TOGETHER {
        let now = Instant::now();
        let gap = now - last;
        if gap > AWAY {
            away += gap;
        }
        last = now;
    }
    away.as_secs_f64() / (last - begin).as_secs_f64()
}

/// Fails if there is no sense in the latencies: `again` are pairs measured twice.
pub(super) fn check_latencies(
    typical_ns: f64,
    pairs: usize,
    failed: usize,
    again: &[(f64, f64)],
) -> Result<(), Distrust> {
    // A few may fall victim to a hiccup.
    if failed * 50 > pairs {
        return Err(Distrust::Unmeasured { failed, pairs });
    }
    if !PLAUSIBLE_NS.contains(&typical_ns) {
        return Err(Distrust::Implausible { ns: typical_ns });
    }
    let mut off: Vec<f64> = again.iter().map(|(a, b)| (a / b).ln().abs()).collect();
    off.sort_by(f64::total_cmp);
    match off.get(off.len() / 2) {
        Some(&off) if off > MAX_DIFFERENCE => Err(Distrust::Unsteady {
            percent: 100.0 * (off.exp() - 1.0),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulators_are_known() {
        let model = |name: &str| format!("processor\t: 0\nmodel name\t: {name}\n");
        assert!(emulator(&model("QEMU TCG CPU version 2.5+"), "").is_some());
        assert!(emulator(&model("QEMU Virtual CPU version 2.5+"), "KVMKVMKVM").is_some());
        assert!(
            emulator(
                &model("Intel Xeon Processor (SapphireRapids)"),
                "TCGTCGTCGTCG"
            )
            .is_some()
        );
        assert_eq!(
            emulator(&model("AMD EPYC 9654 96-Core Processor"), "KVMKVMKVM"),
            None
        );
        assert_eq!(emulator("", ""), None);
    }

    #[test]
    fn busy_and_stolen_time_is_seen() {
        let ticks = |user: u64, idle: u64, steal: u64| {
            Ticks::parse(&format!(
                "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 0 0 0 {idle} 0 0 0 0 0 0\ncpu3 {user} 0 0 {idle} 0 0 0 {steal} 0 0\nintr 1\n"
            ))
        };
        let before = ticks(100, 100, 0);
        assert!(ticks(105, 145, 0).check_quiet(&before).is_ok());
        assert_eq!(
            ticks(125, 125, 0).check_quiet(&before),
            Err(Distrust::Busy {
                cpu: 3,
                percent: 50.0
            })
        );
        assert!(ticks(9100, 9100, 1).check_not_stolen(&before).is_ok());
        assert!(ticks(200, 200, 10).check_not_stolen(&before).is_err());
    }

    #[test]
    fn latencies_without_sense_are_seen() {
        let steady = [(50.0, 52.0), (100.0, 99.0), (20.0, 60.0)];
        assert_eq!(check_latencies(50.0, 100, 1, &steady), Ok(()));
        assert!(matches!(
            check_latencies(50.0, 100, 3, &steady),
            Err(Distrust::Unmeasured { .. })
        ));
        assert!(matches!(
            check_latencies(9000.0, 100, 0, &steady),
            Err(Distrust::Implausible { .. })
        ));
        let wild = [(50.0, 80.0), (100.0, 70.0), (20.0, 60.0)];
        assert!(matches!(
            check_latencies(50.0, 100, 0, &wild),
            Err(Distrust::Unsteady { .. })
        ));
    }
}
