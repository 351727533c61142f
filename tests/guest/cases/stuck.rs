//! Who waits in the local queue of a CPU that a task of a higher class keeps, and for a CPU that sleeps on.

use super::checker::{HELD, held};
use super::stats::{self, Totals};
use crate::Setting;
use crate::broken::Broken;
use crate::cpus::{Cpus, mask, online};
use crate::daemon::Daemon;
use crate::kernel::debugfs;
use crate::load::{Load, Work, set_policy};
use crate::procs::Procs;
use anyhow::{Context, Result, ensure};
use rustix::thread::sched_setaffinity;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Which CPU.
const KEPT: usize = 1;
/// The first of a process may have its name only once it runs; those that it starts are sent to the CPU for sure.
const THREADS: usize = 2;
/// How often they are sent there.
const TIMES: u32 = 5;
/// So long they wait if nobody frees them.
const IN_VAIN: Duration = Duration::from_secs(4);
/// So long at most if somebody does.
const FREED: Duration = Duration::from_secs(20);

/// A scheduler that sends tasks to the local queue of a CPU that a real-time task keeps. Without what frees them in the real
/// daemons they wait there; with it they get on.
pub(crate) fn stuck(_: &Setting) -> Result<String> {
    let scene = begin(&[])?;
    ensure!(
        !all_ran(&scene.held, IN_VAIN)?,
        "tasks that were sent to a CPU which another keeps ran all the same"
    );
    scene.end()?;

    let mut longest = Duration::ZERO;
    let mut scene = begin(&["--free"])?;
    for _ in 0..TIMES {
        let started = Instant::now();
        ensure!(
            all_ran(&scene.held, FREED)?,
            "tasks that were sent to a CPU which another keeps are not freed within {} s",
            FREED.as_secs()
        );
        longest = longest.max(started.elapsed());
        scene.held = sent()?;
    }
    scene.end()?;
    Ok(format!(
        "sent {TIMES} times, freed and run within {} ms",
        longest.as_millis()
    ))
}

/// A scheduler that queues tasks for a CPU which it doesn't wake. What wakes such a CPU in the real daemons does so here, unless
/// something else comes by there, as it does now and then.
pub(crate) fn unwoken(_: &Setting) -> Result<String> {
    const TRIES: u32 = 100;
    // Interrupts go to the first and the last.
    let all = online()?;
    let sleeper = *all.iter().nth(all.len() / 2).context("no CPU is online")?;
    leave_it_to_us(sleeper)?;
    let cpu = sleeper.to_string();
    let broken = Broken::load(&[
        "--fault", "unwoken", "--hold", HELD, "--cpu", &cpu, "--free",
    ])?;
    let (mut woken, mut tries) = (0, 0);
    while woken < TIMES as usize {
        ensure!(
            tries < TRIES,
            "a CPU that was not woken for tasks was found {woken} times in {TRIES} tries"
        );
        tries += 1;
        let held = sent()?;
        ensure!(
            all_ran(&held, FREED)?,
            "a CPU that sleeps on is not woken within {} s",
            FREED.as_secs()
        );
        let said = broken.stderr();
        woken = said.matches(&format!("CPU {sleeper} slept on")).count();
    }
    broken.unload()?;
    sched_setaffinity(None, &mask(online()?)).context("coming back to a CPU")?;
    Ok(format!(
        "in {tries} tries, a CPU that slept on was woken {woken} times"
    ))
}

/// Whether all threads of a process that was just started have run within this time.
fn all_ran(held: &Procs, limit: Duration) -> Result<bool> {
    const LITTLE_NS: u64 = 1_000_000;
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let ran = held.runtimes()?;
        if ran.len() == THREADS && ran.values().all(|&ns| ns > LITTLE_NS) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(false)
}

struct Scene {
    broken: Broken,
    keeper: Load,
    held: Procs,
}

/// They may run on any CPU, unlike who starts them.
fn sent() -> Result<Procs> {
    let all = online()?.into_iter().map(|cpu| cpu.to_string());
    let all = all.collect::<Vec<_>>().join(",");
    held(THREADS, &["taskset", "-c", &all])
}

fn begin(more: &[&str]) -> Result<Scene> {
    let cpu = KEPT.to_string();
    let mut args = vec!["--fault", "strand", "--hold", HELD, "--cpu", &cpu];
    args.extend(more);
    let broken = Broken::load(&args)?;
    leave_it_to_us(KEPT)?;
    let keeper = Load::start_on(1, Work::Spin, Some(&Cpus::from([KEPT])))?;
    for worker in &keeper.workers {
        set_policy(worker.tid.as_raw_nonzero().get(), libc::SCHED_FIFO, 1)?;
    }
    Ok(Scene {
        broken,
        keeper,
        held: sent()?,
    })
}

impl Scene {
    fn end(self) -> Result<()> {
        // To unload a scheduler, the kernel needs each CPU.
        drop(self.keeper);
        sched_setaffinity(None, &mask(online()?)).context("coming back to a CPU")?;
        self.held.check_progress(FREED)?;
        self.broken.unload()?;
        self.held.check_progress(FREED)
    }
}

/// The CPU is kept from the scheduler by nothing but the real-time task, and this thread isn't sent there.
fn leave_it_to_us(cpu: usize) -> Result<()> {
    // With this the kernel sees to it that our class gets a part of each CPU.
    let server = debugfs()?.join(format!("sched/ext_server/cpu{cpu}/runtime"));
    if server.exists() {
        std::fs::write(&server, "0").with_context(|| format!("writing {}", server.display()))?;
    }
    let elsewhere = online()?.into_iter().filter(|&other| other != cpu);
    sched_setaffinity(None, &mask(elsewhere)).context("leaving a CPU")
}

/// A real-time task wakes up on a CPU again and again, and keeps it until all others have got on: those who were sent there
/// in that moment as well, which are many where CPUs are emulated by less than one of the host's.
pub(crate) fn cpu_kept(setting: &Setting) -> Result<String> {
    let mut daemon = Daemon::lent(setting)?;
    let before = freed()?;
    let load = Load::start(3 * online()?.len(), Work::Sleep)?;
    leave_it_to_us(KEPT)?;
    let keeper = Keeper::start()?;
    for time in 0..KEPT_TIMES {
        keeper.tell(KEEP);
        flip(&load)?;
        load.check_progress(FREED)
            .with_context(|| format!("while the CPU is kept for the {time}th time"))?;
        keeper.tell(SLEEP);
        std::thread::sleep(PAUSE);
    }
    drop(keeper);
    let freed = freed()?
        .zip(before)
        .map_or(String::new(), |(after, before)| {
            format!(", {} tasks freed", after - before)
        });
    drop(load);
    daemon.check_alive()?;
    // Who was sent to the CPU and taken away from there has been counted as often as others.
    let counted = stats::on_quiet_machine()?;
    daemon.stop()?;
    Ok(format!(
        "a CPU was kept {KEPT_TIMES} times{freed}; {counted}"
    ))
}

/// Takes all out of whatever queue they are in, again and again, for the time for which a CPU is kept.
fn flip(load: &Load) -> Result<()> {
    let all: Cpus = online()?.into_iter().collect();
    let mut fewer = all.clone();
    fewer.pop_last();
    let until = Instant::now() + KEPT_FOR;
    for set in [&fewer, &all].into_iter().cycle() {
        load.set_cpus(set)?;
        std::thread::sleep(FLIP);
        if Instant::now() > until && std::ptr::eq(set, &all) {
            break;
        }
    }
    Ok(())
}

/// How many the daemon has freed, if it counts them.
pub(super) fn freed() -> Result<Option<u64>> {
    Ok(Totals::read()?.0.get("stuck").copied())
}

/// How often, and for how long at least, a CPU is kept, and how long it is not in between.
const KEPT_TIMES: u32 = 40;
const KEPT_FOR: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(30);
/// Between two changes of masks: those that nobody may find there yet are taken out as well as those that were freed.
const FLIP: Duration = Duration::from_millis(20);

/// What the thread is told.
const SLEEP: u8 = 0;
const KEEP: u8 = 1;
const END: u8 = 2;

/// A real-time thread on that CPU, which spins there or sleeps most of the time.
struct Keeper {
    told: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start() -> Result<Self> {
        let told = Arc::new(AtomicU8::new(SLEEP));
        let theirs = Arc::clone(&told);
        let (ready, is_ready) = channel();
        let work = move || {
            let there = sched_setaffinity(None, &mask([KEPT])).context("going to a CPU");
            let _ = ready.send(there.and_then(|()| set_policy(0, libc::SCHED_FIFO, 1)));
            loop {
                match theirs.load(Ordering::Relaxed) {
                    SLEEP => std::thread::sleep(Duration::from_micros(500)),
                    KEEP => std::hint::spin_loop(),
                    _ => return,
                }
            }
        };
        let keeper = Self {
            told,
            thread: Some(std::thread::spawn(work)),
        };
        is_ready.recv().context("a thread has ended")??;
        Ok(keeper)
    }

    fn tell(&self, what: u8) {
        self.told.store(what, Ordering::Relaxed);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tell(END);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}
