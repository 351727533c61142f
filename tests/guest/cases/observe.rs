//! `manycore observe` against workloads whose waste is known.

use crate::Setting;
use crate::broken::Broken;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};

/// For how long two threads spin, seconds.
const SECONDS: f64 = 1.0;
/// Of that time: starting threads takes some of it, and other tasks have some waits.
const TOLERANCE: f64 = 0.05;
/// The faulty scheduler's (`tests/broken_scheds/src/bpf/broken.bpf.c`).
const SLICE_MS: f64 = 5.0;
const REPORT: &str = "/tmp/observed.json";
/// Neither the first, which has most to do for the kernel, nor one of another node.
const CPU: &str = "1";

/// Nothing is wasted by two threads that are pinned to one CPU, all of the second one's time by a scheduler that holds
/// two free threads on one, and little by the kernel's own.
pub(crate) fn waste(_setting: &Setting) -> Result<String> {
    let pinned = observed(&["taskset", "-c", CPU, "spin"])?;
    let share = wasted(&pinned)? / SECONDS;
    ensure!(
        share < TOLERANCE,
        "two threads pinned to one CPU waste nothing, but {share:.3} of their time was told"
    );
    let waited = pinned["runqueue_wait"]["p99_us"]
        .as_f64()
        .unwrap_or_default();
    ensure!(
        waited > 500.0,
        "of two threads on one CPU one always waits, but the 99th percentile of waits was {waited} us"
    );
    let free = wasted(&observed(&["spin"])?)? / SECONDS;
    ensure!(
        free < TOLERANCE,
        "the kernel's own scheduler wasted {free:.3} of the time of two free threads"
    );
    let broken = Broken::load(&["--hold", "spin", "--cpu", CPU])?;
    let report = observed(&["spin"]);
    broken.unload()?;
    let report = report?;
    ensure!(
        report["scheduler"]
            .as_str()
            .is_some_and(|name| name.contains("broken")),
        "the scheduler is said to be {}",
        report["scheduler"]
    );
    let held = wasted(&report)? / SECONDS;
    ensure!(
        (held - 1.0).abs() < TOLERANCE,
        "a scheduler that held two free threads on one CPU wasted all of one's time, but {held:.3} of it was told"
    );
    // A wait counts for violations from 100 us after its begin, and the two take turns: it is at least a slice.
    let longest = report["wasted"]["longest_violation_ms"]
        .as_f64()
        .context("no longest violation is told")?;
    ensure!(
        longest > SLICE_MS * 0.9,
        "one of two waits for a slice of {SLICE_MS} ms at a time, but the longest violation was {longest} ms"
    );
    Ok(format!(
        "wasted of 1: {share:.4} by two pinned threads, {free:.4} by two free ones, {held:.4} by two that are held"
    ))
}

/// The meter's report of a command that spins.
fn observed(command: &[&str]) -> Result<Value> {
    // One that is left from before must not be taken for this run's.
    let _ = fs::remove_file(REPORT);
    let status = Command::new("manycore")
        .args(["observe", "--json", "-o", REPORT, "--"])
        .args(command)
        .args(["--threads", "2", "--seconds", &SECONDS.to_string()])
        .stdin(Stdio::null())
        .status()
        .context("running manycore")?;
    ensure!(status.success(), "manycore observe ended with {status}");
    let text = fs::read_to_string(REPORT).context("reading the report")?;
    serde_json::from_str(&text).context("understanding the report")
}

fn wasted(report: &Value) -> Result<f64> {
    report["wasted"]["seconds"]
        .as_f64()
        .with_context(|| format!("no waste is told: {}", report["warnings"]))
}
