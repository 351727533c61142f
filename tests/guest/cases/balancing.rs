//! The kernel's own NUMA balancing, which moves tasks whoever schedules them.

use crate::Setting;
use crate::cases::stats;
use crate::cpus::online;
use crate::daemon::Daemon;
use crate::kernel::{TRACING, debugfs};
use crate::load::{Load, Work};
use crate::scene::TURN;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// How often it looks at a process's memory, in ms: soon and often, but marking takes an emulated guest some time, too.
const EAGER: [(&str, &str); 3] = [
    ("scan_delay_ms", "50"),
    ("scan_period_min_ms", "200"),
    ("scan_period_max_ms", "400"),
];
/// Long enough for all memory to be marked a few times.
const MARKING: Duration = Duration::from_secs(2);
const TRIES: usize = 5;

/// Files with a value for a while.
struct Tuned(Vec<(PathBuf, String)>);

impl Tuned {
    fn set(&mut self, path: PathBuf, value: &str) -> Result<()> {
        let context = || path.display().to_string();
        let before = fs::read_to_string(&path).with_context(context)?;
        fs::write(&path, value).with_context(context)?;
        self.0.push((path, before));
        Ok(())
    }
}

impl Drop for Tuned {
    fn drop(&mut self) {
        for (path, before) in self.0.iter().rev() {
            // The guest goes on with other cases, each with its own idea of what it needs.
            let _ = fs::write(path, before);
        }
    }
}

/// Under the kernel's scheduler, memory is marked; who touches a mark is moved to the node of what it used most. Marks
/// outlast that scheduler: whoever touches the rest of them under another one is taken out of the queue where it waits,
/// by the kernel, which tells the new scheduler nothing. Nobody may be lost by that, and all must still be counted.
pub(crate) fn numa_balancing(setting: &Setting) -> Result<String> {
    let mut tuned = Tuned(Vec::new());
    tuned.set("/proc/sys/kernel/numa_balancing".into(), "1")?;
    let settings = debugfs()?.join("sched/numa_balancing");
    for (name, value) in EAGER {
        tuned.set(settings.join(name), value)?;
    }
    tuned.set(
        format!("{TRACING}/events/sched/sched_move_numa/enable").into(),
        "1",
    )?;
    let mut moves = 0;
    for tries in 1..=TRIES {
        let load = Load::start(online()?.len(), Work::Touch)?;
        std::thread::sleep(MARKING);
        let daemon = Daemon::start(setting, &[])?;
        let before = moves_by_kernel()?;
        load.check_progress(TURN)?;
        std::thread::sleep(Duration::from_secs(1));
        load.check_progress(TURN)?;
        moves += moves_by_kernel()? - before;
        drop(load);
        let totals = stats::on_quiet_machine()?;
        daemon.stop()?;
        if moves > 0 {
            return Ok(format!(
                "{moves} tasks moved by the kernel in {tries} tries; {totals}"
            ));
        }
    }
    // Whether it does is up to what it finds: often on 6.12, seldom on 7.3.
    Ok(format!(
        "nobody was lost in {TRIES} tries, but nobody moved by the kernel"
    ))
}

/// How many tasks it has moved since the trace began.
fn moves_by_kernel() -> Result<usize> {
    let trace = fs::read_to_string(format!("{TRACING}/trace")).context("reading the trace")?;
    Ok(trace.matches("sched_move_numa:").count())
}
