//! What cgroups get.

use crate::Setting;
use crate::cgroup::{Cgroup, Controllers};
use crate::cpus::online;
use crate::daemon::Daemon;
use crate::procs::Procs;
use anyhow::{Result, ensure};
use std::time::Duration;

/// For each of some tasks a CPU to get a turn.
const TURN: Duration = Duration::from_secs(60);
/// Until nothing is known of how many tasks a cgroup has.
const FORGOTTEN: Duration = Duration::from_secs(6);
/// For so long they are looked at, from their first moment on.
const WATCHED: Duration = Duration::from_millis(150);
const ROUNDS: usize = 8;
/// What the one with fewer tasks may get of what both get. It is entitled to a half. As long as nobody has looked at how many
/// tasks there are, it gets a quarter, and with a look each tenth of a second alone 40 %.
const SHARE: std::ops::RangeInclusive<f64> = 0.43..=0.57;

/// Two cgroups of the same weight, of which one has three times the tasks, begin at the same moment: each gets half from then
/// on, not only once the daemon has come round to it.
pub(crate) fn cgroup_shares(setting: &Setting) -> Result<String> {
    let cpus = online()?.len();
    let _controllers = Controllers::enable(&["cpu"])?;
    let daemon = Daemon::start(setting, &[])?;
    let groups = [
        Group::start("shares-few", cpus)?,
        Group::start("shares-many", 3 * cpus)?,
    ];
    let mut got = [0, 0];
    for _ in 0..ROUNDS {
        groups.iter().try_for_each(|group| group.freeze(true))?;
        std::thread::sleep(FORGOTTEN);
        let before = [groups[0].used()?, groups[1].used()?];
        groups.iter().try_for_each(|group| group.freeze(false))?;
        std::thread::sleep(WATCHED);
        for (at, group) in groups.iter().enumerate() {
            got[at] += group.used()? - before[at];
        }
    }
    let [few, many] = got.map(|ns| ns as f64);
    let share = few / (few + many);
    let told = format!(
        "{:.1} % for {cpus} tasks beside {}, in the first {} ms of {ROUNDS} times",
        100.0 * share,
        3 * cpus,
        WATCHED.as_millis()
    );
    ensure!(SHARE.contains(&share), "{told} (50 by weight)");
    drop(groups);
    daemon.stop()?;
    Ok(told)
}

/// Tasks that never sleep, in a cgroup of weight 100.
struct Group {
    procs: Procs,
    cgroup: Cgroup,
}

impl Group {
    fn start(name: &str, tasks: usize) -> Result<Self> {
        let cgroup = Cgroup::new(name)?;
        let procs = Procs::spin(tasks)?;
        procs.check_progress(TURN)?;
        procs.pids().try_for_each(|pid| cgroup.add(pid))?;
        Ok(Self { procs, cgroup })
    }

    fn freeze(&self, on: bool) -> Result<()> {
        self.cgroup.set("cgroup.freeze", if on { "1" } else { "0" })
    }

    fn used(&self) -> Result<u64> {
        Ok(self.procs.runtimes()?.values().sum())
    }
}
