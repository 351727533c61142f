//! Faults of the daemon: stopped, killed for memory, told to go by the kernel, started over and over.

use crate::Setting;
use crate::cases::stats::Totals;
use crate::cpus::online;
use crate::daemon::{Daemon, State, enabled_times, start_limit, wait_until_unloaded};
use crate::load::{Load, Work};
use crate::scene::{Scene, TURN};
use anyhow::{Context, Result, bail, ensure};
use manycore_tests::plan::FEW_CPUS;
use rustix::process::Signal;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

const SYSRQ: &str = "/proc/sysrq-trigger";

/// SIGSTOP for some time: who only looks on isn't missed, and who decides is thrown out, before anybody has waited for longer
/// than the scheduler's bound.
pub(crate) fn stop(setting: &Setting) -> Result<String> {
    const STOPPED: Duration = Duration::from_secs(10);
    if setting.scheduler()?.by_daemon {
        return stop_who_decides(setting);
    }
    let scene = Scene::new(setting)?;
    scene.daemon.send(Signal::STOP)?;
    let deadline = Instant::now() + STOPPED;
    while Instant::now() < deadline {
        scene
            .load
            .check_progress(TURN)
            .context("without its daemon")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    scene.daemon.send(Signal::CONT)?;
    let checked = scene.end()?;
    Ok(format!("stopped for {} s; {checked}", STOPPED.as_secs()))
}

/// The kernel ends a scheduler whose daemon doesn't decide, and the daemon says so once it runs again.
fn stop_who_decides(setting: &Setting) -> Result<String> {
    /// What such a scheduler asks the kernel for, unless told otherwise.
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut scene = Scene::around(setting, || Daemon::start_for(setting, &[], PATIENCE))?;
    scene.check().context("before it was stopped")?;
    scene.daemon.send(Signal::STOP)?;
    let started = Instant::now();
    wait_until_unloaded().context("without its daemon")?;
    let took = started.elapsed();
    scene.load.check_progress(TURN).context("without it")?;
    scene.daemon.send(Signal::CONT)?;
    let status = wait_for_end(&mut scene.daemon)?;
    let (checked, daemon) = scene.end_without_scheduler()?;
    ensure!(
        status.code() == Some(1) && daemon.stderr().contains("stall"),
        "it ended with {status} and does not say why: {}",
        daemon.stderr()
    );
    Ok(format!(
        "thrown out after {:.1} s, and it says so; {checked}",
        took.as_secs_f64()
    ))
}

fn wait_for_end(daemon: &mut Daemon) -> Result<ExitStatus> {
    let deadline = Instant::now() + start_limit();
    loop {
        if let Some(status) = daemon.ended()? {
            return Ok(status);
        }
        ensure!(
            Instant::now() < deadline,
            "the daemon still runs after {} s",
            start_limit().as_secs()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// SysRq-S gives the machine back to the kernel's own scheduler, and the daemon says that this was why.
pub(crate) fn sysrq(setting: &Setting) -> Result<String> {
    let mut scene = Scene::new(setting)?;
    let started = Instant::now();
    fs::write(SYSRQ, "S").context("writing to sysrq-trigger")?;
    let status = wait_for_end(&mut scene.daemon)?;
    wait_until_unloaded()?;
    let took = started.elapsed();
    let (checked, daemon) = scene.end_without_scheduler()?;
    let said = daemon.stderr();
    let last = said.trim_end().lines().last().unwrap_or_default();
    ensure!(
        status.code() == Some(1) && last.to_lowercase().contains("sysrq"),
        "it ended with {status} and does not say why: {said}"
    );
    again(setting)?;
    Ok(format!(
        "back after {:.1} s, and it says {last:?}; {checked}",
        took.as_secs_f64()
    ))
}

/// The kernel kills the daemon for want of memory.
pub(crate) fn oom(setting: &Setting) -> Result<String> {
    let mut scene = Scene::new(setting)?;
    let pid = scene.daemon.pid();
    fs::write(format!("/proc/{pid}/oom_score_adj"), "1000").context("making it the first to go")?;
    let started = Instant::now();
    fs::write(SYSRQ, "f").context("writing to sysrq-trigger")?;
    let status = wait_for_end(&mut scene.daemon)?;
    ensure!(
        status.signal() == Some(Signal::KILL.as_raw()),
        "it ended with {status}"
    );
    wait_until_unloaded()?;
    let took = started.elapsed();
    let (checked, _) = scene.end_without_scheduler()?;
    again(setting)?;
    Ok(format!("back after {:.1} s; {checked}", took.as_secs_f64()))
}

/// What the last one left behind is not in the way of the next.
fn again(setting: &Setting) -> Result<()> {
    let next = Daemon::start(setting, &[]).context("starting again")?;
    let load = Load::start(8, Work::Sleep)?;
    load.check_progress(TURN)?;
    Totals::read().context("asking for statistics after a restart")?;
    next.stop()
}

/// Loaded and unloaded many times in a row, and by two at once, of which one wins and the other says who did.
pub(crate) fn reload(setting: &Setting) -> Result<String> {
    const AT_ONCE: u32 = 5;
    // With four schedulers and two kernels, that is 200 times. Once takes a quarter of a minute where many CPUs take turns
    // on the host's few.
    let times = if online()?.len() > FEW_CPUS { 10 } else { 25 };
    let started = Instant::now();
    let load = Load::start(2, Work::Spin)?;
    let enabled = enabled_times()?;
    for time in 0..times {
        let daemon = Daemon::start(setting, &[]).with_context(|| format!("time {time}"))?;
        load.check_progress(TURN)?;
        daemon.stop().with_context(|| format!("time {time}"))?;
    }
    let name = setting.scheduler()?.name;
    for time in 0..AT_ONCE {
        two_at_once(name, &load).with_context(|| format!("two at once, time {time}"))?;
    }
    load.check_progress(TURN)?;
    let more = enabled_times()? - enabled;
    ensure!(
        more == u64::from(times + AT_ONCE),
        "a scheduler was enabled {more} times"
    );
    Ok(format!(
        "{times} times in a row and {AT_ONCE} times two at once in {:.0} s",
        started.elapsed().as_secs_f64()
    ))
}

fn two_at_once(name: &str, load: &Load) -> Result<()> {
    let mut two = [Daemon::spawn(name, &[])?, Daemon::spawn(name, &[])?];
    let deadline = Instant::now() + start_limit();
    let loser = loop {
        let ended = [two[0].ended()?, two[1].ended()?];
        match ended {
            [None, None] => {}
            [Some(status), None] => break (0, status),
            [None, Some(status)] => break (1, status),
            [Some(_), Some(_)] => bail!(
                "both have ended: {}, and {}",
                two[0].stderr().trim_end(),
                two[1].stderr().trim_end()
            ),
        }
        ensure!(Instant::now() < deadline, "neither is refused");
        std::thread::sleep(Duration::from_millis(50));
    };
    let (index, status) = loser;
    let said = two[index].stderr();
    ensure!(
        status.code() == Some(1) && !said.trim().is_empty(),
        "the one that is refused ended with {status} and says {said:?}"
    );
    let [first, second] = two;
    let mut winner = if index == 0 { second } else { first };
    while State::read()?.state != "enabled" || !winner.stderr().contains("is scheduling") {
        ensure!(
            winner.ended()?.is_none(),
            "both were refused: {}",
            winner.stderr()
        );
        ensure!(Instant::now() < deadline, "neither is loaded");
        std::thread::sleep(Duration::from_millis(50));
    }
    load.check_progress(TURN)?;
    winner.stop()
}
