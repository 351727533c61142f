//! The checker sees what it is there for: for each of its rules a scheduler that breaks it.

use crate::Setting;
use crate::broken::Broken;
use crate::checker::{Checker, Findings, Kind};
use crate::cpus::online;
use crate::load::{Load, Work};
use crate::procs::{Procs, beside};
use anyhow::{Context, Result, ensure};
use manycore_tests::plan::Bounds;
use std::path::PathBuf;
use std::time::Duration;

/// The name of the tasks that the broken schedulers treat wrongly.
pub(super) const HELD: &str = "held";
/// For what is not looked for.
const NEVER_MS: u64 = 1_000_000;
const TURN: Duration = Duration::from_secs(60);

/// Spinning threads of that name.
pub(super) fn held(threads: usize, by: &[&str]) -> Result<Procs> {
    let path = PathBuf::from(format!("/tmp/{HELD}"));
    let _ = std::fs::remove_file(&path);
    std::os::unix::fs::symlink(beside("spin")?, &path).context("naming a program")?;
    Procs::start(1, &path, threads, by)
}

/// Exactly what was provoked was seen.
fn seen(findings: &Findings, kind: Kind) -> Result<String> {
    let example = findings.of_kind(kind).next();
    let example =
        example.with_context(|| format!("{kind:?} was not seen, but {}", findings.told()))?;
    let wrong = findings
        .violations
        .iter()
        .find(|violation| violation.kind != kind || violation.comm != HELD);
    ensure!(wrong.is_none(), "besides: {}", findings.told());
    Ok(format!("{} seen: {example}", findings.violations.len()))
}

/// Tasks that run every 3 s only, though no CPU is idle that could have run them instead.
pub(crate) fn wait(_: &Setting) -> Result<String> {
    let mut checker = Checker::start(Bounds {
        wait_ms: 1500,
        idle_ms: NEVER_MS,
    })?;
    let broken = Broken::load(&["--fault", "wait", "--hold", HELD])?;
    let load = Load::start(2 * online()?.len(), Work::Spin)?;
    let held = held(2, &[])?;
    std::thread::sleep(Duration::from_secs(10));
    let findings = checker.finish()?;
    load.check_progress(TURN)?;
    drop(load);
    broken.unload()?;
    held.check_progress(TURN)?;
    drop(held);
    seen(&findings, Kind::Wait)
}

/// Two threads on one CPU, taking turns of 3 s, while all others idle.
pub(crate) fn idle(_: &Setting) -> Result<String> {
    let mut checker = Checker::start(Bounds {
        wait_ms: NEVER_MS,
        idle_ms: 1000,
    })?;
    let broken = Broken::load(&["--fault", "hold", "--hold", HELD, "--slice-ms", "3000"])?;
    let held = held(2, &[])?;
    std::thread::sleep(Duration::from_secs(8));
    let findings = checker.finish()?;
    broken.unload()?;
    held.check_progress(TURN)?;
    drop(held);
    seen(&findings, Kind::Idle)
}

/// A task that never runs again, and has waited for less than the bound when the checker is told to end.
pub(crate) fn lost(_: &Setting) -> Result<String> {
    let mut checker = Checker::start(Bounds {
        wait_ms: 4000,
        idle_ms: NEVER_MS,
    })?;
    let broken = Broken::load(&["--fault", "lost", "--hold", HELD])?;
    let load = Load::start(online()?.len(), Work::Sleep)?;
    let held = held(1, &[])?;
    std::thread::sleep(Duration::from_millis(1500));
    let findings = checker.finish()?;
    load.check_progress(TURN)?;
    broken.unload()?;
    held.check_progress(TURN)?;
    drop(held);
    ensure!(
        findings.of_kind(Kind::Wait).all(|violation| violation.open),
        "it has run after all: {}",
        findings.told()
    );
    seen(&findings, Kind::Wait)
}

/// The kernel itself refuses to run a task outside its mask, and throws out the scheduler that asks for it: there the
/// checker has nothing to see. That it would see it is shown with tasks for which it takes a CPU for excluded.
pub(crate) fn mask(_: &Setting) -> Result<String> {
    let bounds = Bounds {
        wait_ms: NEVER_MS,
        idle_ms: NEVER_MS,
    };
    let checker = Checker::start(bounds)?;
    let broken = Broken::load(&["--fault", "mask", "--hold", HELD, "--cpu", "1"])?;
    let there = held(1, &["taskset", "-c", "0"])?;
    let said = broken.wait_until_thrown_out(TURN)?;
    there.check_progress(TURN)?;
    let findings = checker.stop()?;
    findings.check().context("before the kernel refused")?;
    let reason = said
        .lines()
        .find(|line| line.contains("not allowed") || line.contains("target cpu"))
        .with_context(|| format!("the kernel's reason is another: {said}"))?
        .trim()
        .to_owned();
    drop(there);

    let checker = Checker::start_pretending(bounds, Some((HELD, 1)))?;
    // Two that share it, or none would be put onto it again where there is nothing else to do.
    let there = held(2, &["taskset", "-c", "1"])?;
    there.check_progress(TURN)?;
    std::thread::sleep(Duration::from_secs(1));
    drop(there);
    let seen = seen(&checker.stop()?, Kind::Mask)?;
    Ok(format!("the kernel refuses ({reason}); pretended, {seen}"))
}

/// A scheduler that loses a task is thrown out, and says so with its dump, which names the task.
pub(crate) fn watchdog(_: &Setting) -> Result<String> {
    let load = Load::start(online()?.len(), Work::Sleep)?;
    let args = ["--fault", "lost", "--hold", HELD, "--timeout-ms", "4000"];
    let broken = Broken::load(&args)?;
    let held = held(1, &[])?;
    let said = broken.wait_until_thrown_out(TURN)?;
    load.check_progress(TURN)?;
    held.check_progress(TURN)?;
    ensure!(said.contains("stall"), "it does not say why: {said}");
    let in_dump = said.lines().filter(|line| line.contains(HELD)).count();
    ensure!(
        in_dump > 1,
        "neither the reason nor the dump names the task: {said}"
    );
    let reason = said.lines().find(|line| line.contains("stall"));
    Ok(format!(
        "{}, with a dump of {} lines",
        reason.unwrap_or_default().trim(),
        said.lines().count()
    ))
}
