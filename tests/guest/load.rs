//! Threads that keep CPUs busy, and tell how they fared: how long each ran, how long it had to wait, and whether it was
//! ever seen on a CPU that it may not use.

use crate::cpus::Cpus;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;
use rustix::thread::{gettid, sched_getcpu, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Never sleeps.
    Spin,
    /// Works for a moment and sleeps for a moment.
    Sleep,
    /// Works for a moment and sleeps for so long.
    Doze(Duration),
    /// Wakes up every five to ten seconds.
    Nap,
    /// Offers its CPU after each moment of work.
    Yield,
    /// Starts a process and waits for it.
    Fork,
    /// Never sleeps and walks through its own memory, a page each time.
    Touch,
    /// Keeps changing its own mask, and looks where it is each time.
    Wander,
}

/// What a worker has that touches memory, in bytes, and what it goes on by each time.
const TOUCHED: usize = 2 << 20;
const PAGE: usize = 4096;
/// Room for that many CPUs in a mask.
const MAX_CPUS: usize = 1024;

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// Moments of work done.
    rounds: AtomicU64,
    /// The longest time between two rounds, in ns, since it was last asked for.
    longest_gap_ns: AtomicU64,
    /// Odd while its mask is being changed.
    epoch: AtomicU64,
    allowed: [AtomicU64; MAX_CPUS / 64],
    violation: Mutex<Option<String>>,
}

impl Shared {
    fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
            longest_gap_ns: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            allowed: [const { AtomicU64::new(u64::MAX) }; MAX_CPUS / 64],
            violation: Mutex::new(None),
        }
    }

    fn allows(&self, cpu: usize) -> bool {
        self.allowed[cpu / 64].load(Ordering::SeqCst) & (1 << (cpu % 64)) != 0
    }

    /// Looks whether this thread is where it may be. What it sees while its mask changes counts neither way.
    fn look(&self) {
        let before = self.epoch.load(Ordering::SeqCst);
        let cpu = sched_getcpu();
        let allowed = self.allows(cpu);
        let after = self.epoch.load(Ordering::SeqCst);
        if before == after && before.is_multiple_of(2) && !allowed {
            self.violated(format!("on CPU {cpu}, which its mask excludes"));
        }
    }

    fn violated(&self, what: String) {
        self.violation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(what);
    }
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) tid: Pid,
    work: Work,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread, on these CPUs only if there is a list.
    pub(crate) fn start(work: Work, cpus: Option<&Cpus>) -> Result<Self> {
        let shared = Arc::new(Shared::new());
        let (sender, receiver) = channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("{work:?}").to_lowercase())
            .stack_size(64 * 1024)
            .spawn(move || labour(work, &theirs, &sender))
            .context("starting a thread")?;
        let tid = receiver.recv().context("a thread did not start")?;
        let worker = Self {
            tid,
            work,
            shared,
            thread: Some(thread),
        };
        if let Some(cpus) = cpus {
            worker.set_cpus(cpus)?;
        }
        Ok(worker)
    }

    /// Changes its mask. From then on it must not be seen elsewhere.
    pub(crate) fn set_cpus(&self, cpus: &Cpus) -> Result<()> {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        let done = sched_setaffinity(Some(self.tid), &crate::cpus::mask(cpus.iter().copied()));
        self.expect_cpus(cpus);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        done.with_context(|| format!("setting the mask of a thread to {cpus:?}"))
    }

    fn expect_cpus(&self, cpus: &Cpus) {
        for (index, word) in self.shared.allowed.iter().enumerate() {
            let bits = (0..64)
                .filter(|bit| cpus.contains(&(index * 64 + bit)))
                .fold(0, |bits, bit| bits | 1 << bit);
            word.store(bits, Ordering::SeqCst);
        }
    }

    /// Stops looking at its mask: the kernel overrides it when the last CPU of it goes offline.
    pub(crate) fn expect_any_cpu(&self) {
        self.expect_cpus(&(0..MAX_CPUS).collect());
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::Relaxed)
    }

    /// Whether sched_ext schedules it.
    pub(crate) fn is_on_sched_ext(&self) -> Result<bool> {
        is_on_sched_ext(self.tid.as_raw_nonzero().get())
    }

    fn name(&self) -> String {
        format!("{:?} {}", self.work, self.tid.as_raw_nonzero())
    }
}

/// Whether sched_ext schedules this task.
pub(crate) fn is_on_sched_ext(tid: i32) -> Result<bool> {
    let path = format!("/proc/{tid}/sched");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text
        .lines()
        .find(|line| line.starts_with("ext.enabled"))
        .with_context(|| format!("{path} says nothing about sched_ext"))?;
    Ok(line.trim_end().ends_with('1'))
}

fn labour(work: Work, shared: &Shared, started: &Sender<Pid>) {
    if started.send(gettid()).is_err() {
        return;
    }
    let mut own = vec![1u8; if work == Work::Touch { TOUCHED } else { 0 }];
    let mut page = 0;
    let mut last = Instant::now();
    let mut random = Random::new(gettid().as_raw_nonzero().get().unsigned_abs().into());
    while !shared.stop.load(Ordering::Relaxed) {
        // Of thousands that nap, each turn would cost an emulator more than the wakeup that is to be looked at.
        if work != Work::Nap {
            spin();
        }
        shared.look();
        match work {
            Work::Spin => {}
            Work::Touch => {
                page = (page + PAGE) % TOUCHED;
                own[page] = own[page].wrapping_add(1);
            }
            Work::Sleep => std::thread::sleep(Duration::from_micros(300)),
            Work::Doze(time) => std::thread::sleep(time),
            Work::Nap => {
                std::thread::sleep(Duration::from_millis(5000 + random.below(5000) as u64))
            }
            Work::Yield => std::thread::yield_now(),
            Work::Fork => {
                let done = Command::new("true").status();
                if !done.is_ok_and(|status| status.success()) {
                    shared.violated("`true` could not be run".into());
                }
            }
            Work::Wander => wander(shared, &mut random),
        }
        shared.rounds.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let gap = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
        shared.longest_gap_ns.fetch_max(gap, Ordering::Relaxed);
        last = now;
    }
}

/// Some 20 to 100 us of work under emulation.
fn spin() {
    for i in 0..2000 {
        black_box(i);
    }
    // PAUSE, at which the emulator of a guest with many CPUs turns to the next of them; else only after a tenth of a
    // second, so that an interrupt to all of 32 busy ones takes three seconds.
    std::hint::spin_loop();
}

fn wander(shared: &Shared, random: &mut Random) {
    let Ok(online) = crate::cpus::online() else {
        return shared.violated("the list of CPUs can't be read".into());
    };
    let cpus = random.some_of(&online);
    if let Err(error) = sched_setaffinity(None, &crate::cpus::mask(cpus.iter().copied())) {
        return shared.violated(format!("setting its own mask to {cpus:?}: {error}"));
    }
    let cpu = sched_getcpu();
    if !cpus.contains(&cpu) {
        shared.violated(format!(
            "on CPU {cpu} after setting its own mask to {cpus:?}"
        ));
    }
}

/// A set of workers.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) workers: Vec<Worker>,
}

impl Load {
    pub(crate) fn start(count: usize, work: Work) -> Result<Self> {
        Self::start_on(count, work, None)
    }

    pub(crate) fn start_on(count: usize, work: Work, cpus: Option<&Cpus>) -> Result<Self> {
        let mut load = Self::default();
        for _ in 0..count {
            load.workers.push(Worker::start(work, cpus)?);
        }
        Ok(load)
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.workers.extend(more.take());
    }

    fn take(mut self) -> Vec<Worker> {
        std::mem::take(&mut self.workers)
    }

    pub(crate) fn set_cpus(&self, cpus: &Cpus) -> Result<()> {
        self.workers.iter().try_for_each(|w| w.set_cpus(cpus))
    }

    /// Forgets what was seen so far; for the end of a start.
    pub(crate) fn reset_gaps(&self) {
        for worker in &self.workers {
            worker.shared.longest_gap_ns.store(0, Ordering::Relaxed);
        }
    }

    /// The longest that any worker had to wait between two rounds.
    pub(crate) fn longest_gap(&self) -> Duration {
        let longest = self
            .workers
            .iter()
            .map(|worker| worker.shared.longest_gap_ns.load(Ordering::Relaxed))
            .max();
        Duration::from_nanos(longest.unwrap_or(0))
    }

    /// How long each has been running on a CPU, in ns.
    pub(crate) fn runtimes(&self) -> Result<BTreeMap<i32, u64>> {
        let tids = self.workers.iter().map(|w| w.tid.as_raw_nonzero().get());
        runtimes(tids)
    }

    /// Waits until every worker has done a round from now on, and none was where it may not be.
    pub(crate) fn check_progress(&self, limit: Duration) -> Result<()> {
        let before: Vec<_> = self.workers.iter().map(Worker::rounds).collect();
        let deadline = Instant::now() + limit;
        loop {
            self.check_masks()?;
            // The round that was under way may have begun before; the second is all new.
            let stuck: Vec<_> = self
                .workers
                .iter()
                .zip(&before)
                .filter(|(worker, before)| worker.rounds() < **before + 2)
                .map(|(worker, _)| worker)
                .collect();
            if stuck.is_empty() {
                // Those rounds may have been where it may not be.
                return self.check_masks();
            }
            if Instant::now() > deadline {
                eprintln!("{}", crate::kernel::scheduler_dump());
                let some: Vec<_> = stuck.iter().take(40).map(|worker| worker.name()).collect();
                bail!(
                    "{} of {} threads made no progress within {} s, such as {}",
                    stuck.len(),
                    self.workers.len(),
                    limit.as_secs(),
                    some.join(", ")
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails if a worker was seen where it may not be.
    pub(crate) fn check_masks(&self) -> Result<()> {
        for worker in &self.workers {
            let violation = worker
                .shared
                .violation
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(violation) = violation {
                anyhow::bail!("{}: {violation}", worker.name());
            }
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.shared.stop.store(true, Ordering::Relaxed);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A panic in it was printed.
                let _ = thread.join();
            }
        }
    }
}

/// Gives a task another scheduling policy. The priority is for real-time ones, from 1 to 99.
pub(crate) fn set_policy(tid: i32, policy: i32, priority: i32) -> Result<()> {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the pointer is to a whole sched_param, which the kernel only reads during the call.
    let done = unsafe { libc::sched_setscheduler(tid, policy, &raw const param) };
    ensure!(
        done == 0,
        "setting the policy of a task to {policy}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// The calling thread is a real-time one until this is dropped, so that what it does to others takes no longer the more
/// they compute. What it starts meanwhile is real-time, too.
pub(crate) struct RealTime(());

impl RealTime {
    pub(crate) fn begin() -> Result<Self> {
        set_policy(0, libc::SCHED_FIFO, 1)?;
        Ok(Self(()))
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        if let Err(error) = set_policy(0, libc::SCHED_OTHER, 0) {
            eprintln!("a thread stays real-time: {error:#}");
        }
    }
}

/// How long tasks have been running on a CPU, in ns. Those that have ended are left out.
pub(crate) fn runtimes(tids: impl Iterator<Item = i32>) -> Result<BTreeMap<i32, u64>> {
    let all = times(tids)?.into_iter();
    Ok(all.map(|(tid, (ran, _))| (tid, ran)).collect())
}

/// How long tasks have been running on a CPU, and how long they have waited for one, in ns. Those that have ended are left
/// out.
pub(crate) fn times(tids: impl Iterator<Item = i32>) -> Result<BTreeMap<i32, (u64, u64)>> {
    let mut all = BTreeMap::new();
    for tid in tids {
        let Ok(text) = fs::read_to_string(format!("/proc/{tid}/schedstat")) else {
            continue;
        };
        let mut words = text.split(' ').map(str::parse);
        let (Some(Ok(ran)), Some(Ok(waited))) = (words.next(), words.next()) else {
            bail!("/proc/{tid}/schedstat says {text:?}");
        };
        all.insert(tid, (ran, waited));
    }
    Ok(all)
}

/// How evenly CPU time was shared.
#[derive(Debug)]
pub(crate) struct Fairness {
    pub(crate) tasks: usize,
    /// The least and the most that one got, as a multiple of the mean.
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// (sum x)^2 / (n sum x^2): 1 if all got the same, 1/n if one got all (Jain, Chiu, Hawe 1984).
    pub(crate) jain: f64,
}

impl Fairness {
    /// Of what each got between two readings.
    pub(crate) fn between(before: &BTreeMap<i32, u64>, after: &BTreeMap<i32, u64>) -> Result<Self> {
        let shares: Vec<f64> = before
            .iter()
            .filter_map(|(tid, then)| Some(after.get(tid)?.saturating_sub(*then) as f64))
            .collect();
        ensure!(
            shares.len() == before.len() && !shares.is_empty(),
            "{} of {} tasks are gone",
            before.len() - shares.len(),
            before.len()
        );
        let sum: f64 = shares.iter().sum();
        let squares: f64 = shares.iter().map(|x| x * x).sum();
        let mean = sum / shares.len() as f64;
        ensure!(mean > 0.0, "none of the tasks ran at all");
        Ok(Self {
            tasks: shares.len(),
            least: shares.iter().copied().fold(f64::INFINITY, f64::min) / mean,
            most: shares.iter().copied().fold(0.0, f64::max) / mean,
            jain: sum * sum / (shares.len() as f64 * squares),
        })
    }
}

impl std::fmt::Display for Fairness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} tasks got {:.2} to {:.2} of the mean, Jain's index {:.3}",
            self.tasks, self.least, self.most, self.jain
        )
    }
}

/// Numbers that look random and are the same each time (xorshift64).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Less than `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }

    /// One of them, about half of them, or all; never none.
    pub(crate) fn some_of(&mut self, cpus: &Cpus) -> Cpus {
        let all: Vec<_> = cpus.iter().copied().collect();
        let one = all[self.below(all.len())];
        match self.below(3) {
            0 => Cpus::from([one]),
            1 => all
                .iter()
                .copied()
                .filter(|cpu| *cpu == one || self.below(2) == 0)
                .collect(),
            _ => cpus.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_one_for_equals_and_sees_the_starved() {
        let before = BTreeMap::from([(1, 0), (2, 100)]);
        let equal = Fairness::between(&before, &BTreeMap::from([(1, 50), (2, 150)])).unwrap();
        assert_eq!((equal.least, equal.most, equal.jain), (1.0, 1.0, 1.0));
        let starved = Fairness::between(&before, &BTreeMap::from([(1, 50), (2, 100)])).unwrap();
        assert_eq!((starved.least, starved.most, starved.jain), (0.0, 2.0, 0.5));
        assert!(Fairness::between(&before, &BTreeMap::from([(1, 50)])).is_err());
    }

    #[test]
    fn a_thread_outside_its_mask_is_seen() {
        let load = Load::start(1, Work::Spin).unwrap();
        // The mask is expected, but was not set.
        load.workers[0].expect_cpus(&Cpus::from([MAX_CPUS - 1]));
        assert!(load.check_progress(Duration::from_secs(10)).is_err());
    }

    #[test]
    fn a_stuck_thread_is_seen() {
        let load = Load::start(1, Work::Spin).unwrap();
        load.check_progress(Duration::from_secs(10)).unwrap();
        load.workers[0].shared.stop.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        let error = load.check_progress(Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("no progress"), "{error}");
    }
}
