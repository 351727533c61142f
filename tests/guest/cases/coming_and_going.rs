//! Schedulers that come and go, and CPUs that do.

use crate::Setting;
use crate::cases::stats::{Totals, are_served};
use crate::cpus::{Cpus, idle_shares, online, set_online};
use crate::daemon::{Daemon, State, enabled_times, start_limit, switches_all, wait_until_unloaded};
use crate::kernel::Verified;
use crate::load::{Load, Work, is_on_sched_ext};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// For each of a few tasks a CPU to get a turn, also while a scheduler comes or goes.
const TURN: Duration = Duration::from_secs(60);

fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// A few threads that must go on whatever happens. Few, because the kernel loads a BPF program only after all tasks
/// passed a point where none can be using an older one (RCU tasks), which takes half a minute with many that spin.
fn some_load() -> Result<Load> {
    let mut load = Load::start(1, Work::Spin)?;
    load.add(Load::start(online()?.len().div_ceil(4), Work::Sleep)?);
    Ok(load)
}

/// How many instructions the verifier may look at to admit one of our programs. A kernel that follows some branches more
/// often must admit it, too. What it takes in all is looked at by the case `verified`, on one topology; this on each.
const VERIFIED_MOST: u32 = 100_000;

/// How long a thread sleeps for each CPU of the machine: so one for each of them wakes up 250 times a second in all, for
/// which an emulator on a single thread has time whatever the machine's size.
const DOZE: Duration = Duration::from_millis(4);

pub(crate) fn loads(setting: &Setting) -> Result<String> {
    let cpus = online()?;
    let doze = DOZE * u32::try_from(cpus.len())?;
    let mut load = Load::start(cpus.len(), Work::Doze(doze))?;
    // They run already when the scheduler takes them over, which happens on another CPU than theirs, and neither ever
    // sleeps: the other gets its turns only if the first one's running time is known.
    let last: Cpus = cpus.last().copied().into_iter().collect();
    load.add(Load::start_on(2, Work::Spin, Some(&last))?);
    ensure!(!is_on_sched_ext(own_tid())?, "sched_ext is at work already");
    let enabled = enabled_times()?;
    let started = Instant::now();
    let mut daemon = Daemon::start(setting, &[])?;
    let took = started.elapsed();
    let state = State::read()?;
    ensure!(state.state == "enabled", "state is {:?}", state.state);
    ensure!(switches_all()?, "switch_all is 0");
    ensure!(
        enabled_times()? == enabled + 1,
        "enable_seq grew by {}, not by 1",
        enabled_times()? - enabled
    );
    ensure!(
        is_on_sched_ext(own_tid())? && load.workers[0].is_on_sched_ext()?,
        "tasks are not scheduled by it"
    );
    load.check_progress(TURN)?;
    if !setting.scheduler()?.by_daemon {
        daemon.check_idles()?;
    }
    let verified = Verified::read();
    let (largest, most) = &verified.largest;
    ensure!(verified.programs > 0, "no BPF program of its is loaded");
    ensure!(
        *most <= VERIFIED_MOST,
        "the verifier looked at {most} instructions of {largest} (its own limit is a million, ours {VERIFIED_MOST})"
    );
    daemon.check_alive()?;
    let status = daemon.signal(Signal::INT)?;
    ensure!(
        status.code() == Some(0),
        "it ended with {status} after SIGINT"
    );
    ensure!(
        daemon.stderr().contains("unregistered"),
        "it does not say why it ended: {:?}",
        daemon.stderr()
    );
    back_to_normal(&load)?;
    ensure!(
        !are_served(),
        "somebody still serves statistics after the daemon's end"
    );
    Ok(format!(
        "{} after {:.1} s; {} programs, {} instructions verified, {most} of them in {largest}",
        state.ops.unwrap_or_default(),
        took.as_secs_f64(),
        verified.programs,
        verified.instructions,
    ))
}

/// The kernel's own scheduler is back, and all tasks go on.
fn back_to_normal(load: &Load) -> Result<()> {
    wait_until_unloaded()?;
    ensure!(
        !is_on_sched_ext(own_tid())? && !load.workers[0].is_on_sched_ext()?,
        "tasks are still on sched_ext"
    );
    load.check_progress(TURN)
}

pub(crate) fn unloads_on_sigterm(setting: &Setting) -> Result<String> {
    let mut daemon = Daemon::start(setting, &[])?;
    let load = some_load()?;
    load.check_progress(TURN)?;
    let started = Instant::now();
    let status = daemon.signal(Signal::TERM)?;
    ensure!(
        status.code() == Some(0),
        "it ended with {status} after SIGTERM"
    );
    back_to_normal(&load)?;
    Ok(format!("{:.1} s", started.elapsed().as_secs_f64()))
}

pub(crate) fn unloads_on_sigkill(setting: &Setting) -> Result<String> {
    let daemon = Daemon::lent(setting)?;
    let load = some_load()?;
    load.check_progress(TURN)?;
    let started = Instant::now();
    daemon.send(Signal::KILL)?;
    back_to_normal(&load)?;
    let took = started.elapsed();
    // What the dead one left (a socket) must not be in the way of the next.
    let next = Daemon::start(setting, &[]).context("starting again after SIGKILL")?;
    load.check_progress(TURN)?;
    Totals::read().context("asking for statistics after a restart")?;
    next.stop()?;
    Ok(format!("{:.1} s", took.as_secs_f64()))
}

/// A daemon that doesn't get to run. One that only looks on is not missed; if it is the one that schedules, the kernel
/// finds tasks that wait for too long, and takes over.
pub(crate) fn stopped_daemon(setting: &Setting) -> Result<String> {
    /// The kernel's watchdog throws a scheduler out when a task has waited for 30 s, and looks every 15 s.
    const WATCHDOG: Duration = Duration::from_secs(60);
    const WORKS_WITHOUT: Duration = Duration::from_secs(5);
    let mut daemon = Daemon::lent(setting)?;
    let mut load = Load::start(2 * online()?.len(), Work::Spin)?;
    load.add(Load::start(online()?.len(), Work::Sleep)?);
    load.check_progress(TURN)?;
    let started = Instant::now();
    daemon.send(Signal::STOP)?;
    load.check_progress(WATCHDOG)?;
    let took = started.elapsed();
    let by_daemon = setting.scheduler()?.by_daemon;
    // Long enough for the watchdog to find somebody who waits, if anybody can; who is not needed is not missed sooner.
    std::thread::sleep(if by_daemon { TURN } else { WORKS_WITHOUT });
    load.check_progress(TURN)?;
    let thrown_out = !State::read()?.is_loaded();
    ensure!(thrown_out == by_daemon, "thrown out: {thrown_out}");
    let outcome = if thrown_out {
        back_to_normal(&load)?;
        let status = daemon.signal(Signal::CONT)?;
        ensure!(
            status.code() == Some(1) && daemon.stderr().contains("stall"),
            "it ended with {status} and does not say why: {}",
            daemon.stderr()
        );
        "thrown out, and it says so"
    } else {
        daemon.send(Signal::CONT)?;
        daemon.check_alive()?;
        load.check_progress(TURN)?;
        drop(load);
        daemon.stop()?;
        "not missed"
    };
    Ok(format!(
        "{outcome}; all went on within {:.1} s",
        took.as_secs_f64()
    ))
}

pub(crate) fn hotplug(setting: &Setting) -> Result<String> {
    const ROUNDS: usize = 2;
    let started = Instant::now();
    let mut daemon = Daemon::lent(setting)?;
    let all = online()?;
    let last = *all.last().context("no CPU online")?;
    let mut load = Load::start(4 * all.len(), Work::Spin)?;
    load.add(Load::start(all.len(), Work::Sleep)?);
    let pinned = Load::start_on(1, Work::Spin, Some(&Cpus::from([last])))?;
    pinned.check_progress(TURN)?;
    // The kernel lets it run anywhere once its only CPU is gone.
    pinned.workers[0].expect_any_cpu();
    let enabled = enabled_times()?;
    let mut totals = Totals::read()?;
    for round in 0..ROUNDS {
        for up in [false, true] {
            eprintln!("at {:.1} s", started.elapsed().as_secs_f64());
            let what = format!(
                "round {round}, CPU {last} {}",
                if up { "up" } else { "down" }
            );
            set_online(last, up)?;
            wait_until_enabled(&mut daemon).with_context(|| what.clone())?;
            load.check_progress(TURN).with_context(|| what.clone())?;
            pinned.check_progress(TURN).with_context(|| what.clone())?;
            let now = Totals::read().with_context(|| what.clone())?;
            now.check_grown_since(&totals)
                .with_context(|| what.clone())?;
            totals = now;
        }
    }
    check_busy(last)?;
    drop((load, pinned));
    eprintln!("stopping at {:.1} s", started.elapsed().as_secs_f64());
    daemon.stop()?;
    Ok(format!(
        "{ROUNDS} rounds, {} restarts",
        enabled_times()? - enabled
    ))
}

/// A CPU that was offline when the scheduler was loaded, on a node with several caches: nobody could know to which it
/// belongs, so the scheduler has to find out, by loading itself anew if need be.
pub(crate) fn unknown_cpu(setting: &Setting) -> Result<String> {
    let last = *online()?.last().context("no CPU online")?;
    set_online(last, false)?;
    let mut daemon = Daemon::start(setting, &[])?;
    let load = some_load()?;
    load.check_progress(TURN)?;
    let enabled = enabled_times()?;
    let before = Totals::read()?;
    set_online(last, true)?;
    wait_until_enabled(&mut daemon)?;
    load.check_progress(TURN)?;
    Totals::read()?
        .check_grown_since(&before)
        .context("after the CPU came")?;
    let for_all = Load::start(2 * online()?.len(), Work::Spin)?;
    for_all.check_progress(TURN)?;
    check_busy(last)?;
    drop((load, for_all));
    daemon.stop()?;
    Ok(format!("{} restarts", enabled_times()? - enabled))
}

/// A daemon may load its scheduler anew when CPUs come or go.
fn wait_until_enabled(daemon: &mut Daemon) -> Result<()> {
    let deadline = Instant::now() + start_limit();
    // What the kernel does about a hotplug, it starts at once, but the daemon needs a moment to see it.
    std::thread::sleep(Duration::from_secs(1));
    while State::read()?.state != "enabled" && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.check_alive()
}

/// A CPU takes part again: under a load that is enough for all, it hardly idles.
fn check_busy(cpu: usize) -> Result<()> {
    let share = idle_shares(Duration::from_secs(1))?
        .get(&cpu)
        .copied()
        .with_context(|| format!("/proc/stat does not list CPU {cpu}"))?;
    ensure!(
        share < 0.1,
        "CPU {cpu} is back but idles {:.0} % of the time under load",
        100.0 * share
    );
    Ok(())
}
