//! Processes that keep CPUs busy: unlike threads, they can be in a cgroup of their own.

use crate::cpus::{Cpus, mask};
use crate::load::{runtimes, times};
use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use rustix::thread::{Pid, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that was built with this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    Ok(own.with_file_name(name))
}

/// The processes that this one has started, and that have not ended.
pub(crate) fn children_of(pid: u32) -> Result<Vec<i32>> {
    let parent = pid.to_string();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let name = entry.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended by now.
        if field(child, 4).is_some_and(|of| of == parent) {
            children.push(child);
        }
    }
    Ok(children)
}

/// Where a task runs, or ran last.
pub(crate) fn last_cpu(tid: i32) -> Option<usize> {
    field(tid, 39)?.parse().ok()
}

/// A field of `/proc/TID/stat`, from 1; of those after the name, which may hold anything.
fn field(tid: i32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().nth(number - 3)?.to_owned())
}

/// A program in the background, killed when this goes.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .context("starting a service")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Some that spin, killed when this goes.
#[derive(Debug)]
pub(crate) struct Procs(Vec<Child>);

impl Procs {
    /// So many processes of two threads each.
    pub(crate) fn spin(count: usize) -> Result<Self> {
        Self::start(count, &beside("spin")?, 2, &[])
    }

    /// The same under another name, each by way of a command (`taskset`, say).
    pub(crate) fn start(count: usize, program: &Path, threads: usize, by: &[&str]) -> Result<Self> {
        let mut procs = Self(Vec::new());
        for _ in 0..count {
            let mut command = match by {
                [] => Command::new(program),
                [first, rest @ ..] => {
                    let mut command = Command::new(first);
                    command.args(rest).arg(program);
                    command
                }
            };
            let child = command
                .args(["--threads", &threads.to_string(), "--seconds", "1000"])
                .stdin(Stdio::null())
                .spawn()
                .context("starting a process that spins")?;
            procs.0.push(child);
        }
        Ok(procs)
    }

    /// All their threads may run on these CPUs from now on.
    pub(crate) fn allow(&self, cpus: &Cpus) -> Result<()> {
        let mask = mask(cpus.iter().copied());
        for tid in self.tids()? {
            sched_setaffinity(Pid::from_raw(tid), &mask)
                .with_context(|| format!("setting the affinity of thread {tid}"))?;
        }
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        for child in &self.0 {
            kill_process(Pid::from_child(child), signal)
                .context("sending a signal to a process")?;
        }
        Ok(())
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(Child::id)
    }

    pub(crate) fn tids(&self) -> Result<Vec<i32>> {
        let mut tids = Vec::new();
        for pid in self.pids() {
            let dir = format!("/proc/{pid}/task");
            for entry in fs::read_dir(&dir).with_context(|| format!("reading {dir}"))? {
                let name = entry.with_context(|| format!("reading {dir}"))?.file_name();
                tids.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
            }
        }
        Ok(tids)
    }

    /// How long each of their threads has run, in ns.
    pub(crate) fn runtimes(&self) -> Result<BTreeMap<i32, u64>> {
        runtimes(self.tids()?.into_iter())
    }

    /// How long each of their threads has run, and how long it has waited for a CPU, in ns.
    pub(crate) fn times(&self) -> Result<BTreeMap<i32, (u64, u64)>> {
        times(self.tids()?.into_iter())
    }

    /// Waits until every thread has run for a little more.
    pub(crate) fn check_progress(&self, limit: Duration) -> Result<()> {
        const LITTLE_NS: u64 = 1_000_000;
        let before = self.runtimes()?;
        let deadline = Instant::now() + limit;
        loop {
            let now = self.runtimes()?;
            let stuck: Vec<_> = before
                .iter()
                .filter(|(tid, then)| now.get(tid).is_none_or(|now| now - *then < LITTLE_NS))
                .map(|(tid, _)| tid.to_string())
                .collect();
            if stuck.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "these threads of processes made no progress within {} s: {}",
                limit.as_secs(),
                stuck.join(", ")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Procs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A tree of processes that grows until it may not, and then at its leaves dies and grows again.
pub(crate) fn bomb() -> Result<()> {
    loop {
        let mut children = 0;
        for _ in 0..2 {
            // SAFETY: this process has one thread, and so has each of its children.
            match unsafe { libc::fork() } {
                // A child is the root of a tree of its own.
                0 => return bomb(),
                -1 => {}
                _ => children += 1,
            }
        }
        if children == 0 {
            return Ok(());
        }
        for _ in 0..children {
            // SAFETY: a null pointer asks for no status.
            unsafe { libc::wait(std::ptr::null_mut()) };
        }
    }
}
