//! What a user asks for, rightly or wrongly.

use super::stats;
use super::stuck::freed;
use crate::Setting;
use crate::cpus::{Cpus, online};
use crate::daemon::{Daemon, State, check_refusal, printed, run, switches_all};
use crate::load::{Load, Work, set_policy};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// For each to get a turn when half of the CPUs are somebody else's: well below the watchdog's 30 s.
const WITHOUT_HALF: Duration = Duration::from_secs(20);
/// For each of a few tasks a CPU to get a turn.
const TURN: Duration = Duration::from_secs(60);

pub(crate) fn help(setting: &Setting) -> Result<String> {
    let name = setting.scheduler()?.name;
    let version = printed(&run(name, &["-V"], false)?)?;
    ensure!(
        version.starts_with(&format!("{name} ")) && version.lines().count() == 1,
        "-V prints {version:?}"
    );
    let help = printed(&run(name, &["--help"], false)?)?;
    for option in [
        "--partial",
        "--stats",
        "--monitor",
        "--json",
        "--exit-dump-len",
    ] {
        ensure!(help.contains(option), "--help does not mention {option}");
    }
    let stats = printed(&run(name, &["--help-stats"], false)?)?;
    ensure!(stats.lines().count() >= 5, "--help-stats prints {stats:?}");
    Ok(version.trim().to_owned())
}

pub(crate) fn refuses_bad_use(setting: &Setting) -> Result<String> {
    let name = setting.scheduler()?.name;
    let not_root = run(name, &[], false)?;
    check_refusal(&not_root, 1, &["root"]).context("started by a user who is not root")?;
    let lines = String::from_utf8_lossy(&not_root.stderr).lines().count();
    ensure!(
        lines == 1,
        "it takes {lines} lines to say that root is needed"
    );
    for slice in ["0", "3600000000", "-1", "4ms", "18446744073709551616"] {
        let arg = format!("--slice-us={slice}");
        check_refusal(&run(name, &[&arg], true)?, 2, &["--slice-us"])
            .with_context(|| format!("started with {arg}"))?;
    }
    for args in [&["--no-such-option"][..], &["--stats", "0"], &["argument"]] {
        check_refusal(&run(name, args, true)?, 2, &[])
            .with_context(|| format!("started with {args:?}"))?;
    }
    let state = State::read()?;
    ensure!(!state.is_loaded(), "something is loaded now: {state:?}");
    Ok("9 refusals".into())
}

pub(crate) fn refuses_a_second(setting: &Setting) -> Result<String> {
    let mut first = Daemon::lent(setting)?;
    let ops = State::read()?.ops.context("no name in root/ops")?;
    let load = Load::start(online()?.len(), Work::Spin)?;
    let second = run(setting.scheduler()?.name, &[], true)?;
    check_refusal(&second, 1, &[&ops])?;
    let lines = String::from_utf8_lossy(&second.stderr).lines().count();
    ensure!(lines == 1, "it takes {lines} lines to say so");
    first.check_alive()?;
    let after = State::read()?.ops.unwrap_or_default();
    ensure!(after == ops, "{after} is loaded now, not {ops}");
    load.check_progress(TURN)?;
    first.stop()?;
    Ok(format!("it names {ops}"))
}

pub(crate) fn variants(setting: &Setting) -> Result<String> {
    let cpus = online()?.len();
    let variants = setting.scheduler()?.variants;
    for args in variants {
        serve_with(setting, args, cpus).with_context(|| format!("with {}", args.join(" ")))?;
    }
    Ok(format!("{} variants", variants.len()))
}

fn serve_with(setting: &Setting, args: &[&str], cpus: usize) -> Result<()> {
    let mut daemon = Daemon::start(setting, args)?;
    let mut load = Load::start(2 * cpus, Work::Spin)?;
    load.add(Load::start(cpus, Work::Sleep)?);
    load.check_progress(TURN)?;
    std::thread::sleep(Duration::from_millis(500));
    load.check_progress(TURN)?;
    daemon.check_alive()?;
    drop(load);
    daemon.stop()
}

pub(crate) fn partial(setting: &Setting) -> Result<String> {
    let daemon = Daemon::start(setting, &["--partial"])?;
    ensure!(!switches_all()?, "switch_all is 1");
    // Half of the CPUs, a whole node of two, are lost to a class that goes first.
    let cpus = online()?;
    let taken: Vec<usize> = cpus.iter().copied().take(cpus.len() / 2).collect();
    let mut others = Load::default();
    for &cpu in &taken {
        others.add(Load::start_on(1, Work::Spin, Some(&Cpus::from([cpu])))?);
    }
    let mut its_own = Load::start(2 * cpus.len(), Work::Spin)?;
    for worker in &its_own.workers {
        set_policy(worker.tid.as_raw_nonzero().get(), SCHED_EXT, 0)?;
        ensure!(
            worker.is_on_sched_ext()?,
            "a task of the SCHED_EXT policy is not scheduled by it"
        );
    }
    ensure!(
        !others.workers[0].is_on_sched_ext()?,
        "a task of the normal policy is scheduled by it"
    );
    // Nobody waits for a CPU that is lost, and not just once.
    for _ in 0..3 {
        its_own.check_progress(WITHOUT_HALF)?;
    }
    others.check_progress(TURN)?;
    let back = &its_own.workers[0];
    set_policy(back.tid.as_raw_nonzero().get(), libc::SCHED_OTHER, 0)?;
    ensure!(
        !back.is_on_sched_ext()?,
        "a task that went back to the normal policy is still scheduled by it"
    );
    its_own.check_progress(TURN)?;
    // Who was stuck on a CPU that was lost in that moment has been counted as often as others.
    let tasks = its_own.workers.len();
    its_own.workers.truncate(2);
    drop(others);
    let freed = freed()?.map_or(String::new(), |tasks| format!(", {tasks} freed there"));
    let counted = stats::on_quiet_machine()?;
    daemon.stop()?;
    // Without a scheduler, SCHED_EXT is as good as the normal policy.
    its_own.check_progress(TURN)?;
    Ok(format!(
        "{tasks} tasks its own, {} CPUs lost to others{freed}; {counted}",
        taken.len(),
    ))
}

/// `include/uapi/linux/sched.h`
const SCHED_EXT: i32 = 7;
