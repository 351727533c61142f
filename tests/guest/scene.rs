//! What a fault breaks into: a scheduler at work, a mix of load on it, and the checker. At the end everything must have
//! gone on, nothing have been violated, and the machine be as it was.

use crate::Setting;
use crate::cases::stats::Totals;
use crate::checker::Checker;
use crate::cpus::{Cpus, online, read};
use crate::daemon::{Daemon, State, start_limit};
use crate::load::{Load, Random, Work};
use anyhow::{Context, Result, ensure};
use manycore_tests::plan::FEW_CPUS;
use std::fs;
use std::time::{Duration, Instant};

/// For each task to get a turn, whatever goes on.
pub(crate) const TURN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) load: Load,
    /// Those that are online in the beginning, and must be in the end.
    pub(crate) cpus: Cpus,
    pub(crate) random: Random,
    checker: Checker,
    totals: Totals,
    machine: Machine,
}

impl Scene {
    pub(crate) fn new(setting: &Setting) -> Result<Self> {
        Self::around(setting, || Daemon::start(setting, &[]))
    }

    /// With a daemon that is started so.
    pub(crate) fn around(
        setting: &Setting,
        start: impl FnOnce() -> Result<Daemon>,
    ) -> Result<Self> {
        let machine = Machine::read()?;
        let cpus = online()?;
        // Before the load: see its documentation.
        let checker = Checker::start(setting.scheduler()?.bounds)?;
        let daemon = start()?;
        // As much as the CPUs can do, and where they take turns on the host's few, half of it: a part of them idles, and
        // the rest gets on twice as fast.
        let much = if cpus.len() > FEW_CPUS {
            cpus.len() / 2
        } else {
            cpus.len()
        };
        let mut load = Load::start(much, Work::Spin)?;
        load.add(Load::start(much, Work::Sleep)?);
        load.add(Load::start(much.div_ceil(2), Work::Yield)?);
        load.add(Load::start(2, Work::Fork)?);
        load.check_progress(TURN)?;
        let totals = Totals::read()?;
        Ok(Self {
            daemon,
            load,
            cpus,
            random: Random::new(11),
            checker,
            totals,
            machine,
        })
    }

    /// The scheduler is there, and every thread of the load gets on.
    pub(crate) fn check(&mut self) -> Result<()> {
        // One that loads itself anew needs a moment.
        let deadline = Instant::now() + start_limit();
        while State::read()?.state != "enabled" && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.daemon.check_alive()?;
        self.load.check_progress(TURN)
    }

    /// Ends the scheduler as a user does.
    pub(crate) fn end(mut self) -> Result<String> {
        self.check()?;
        let now = Totals::read()?;
        now.check_grown_since(&self.totals)?;
        let Self {
            daemon,
            load,
            checker,
            machine,
            ..
        } = self;
        drop(load);
        let findings = checker.stop()?;
        daemon.stop()?;
        machine.check_same()?;
        findings.check()?;
        Ok(findings.to_string())
    }

    /// The scheduler is gone already. Returns the rest of it as well.
    pub(crate) fn end_without_scheduler(self) -> Result<(String, Daemon)> {
        let Self {
            daemon,
            load,
            checker,
            machine,
            ..
        } = self;
        load.check_progress(TURN)?;
        drop(load);
        let findings = checker.stop()?;
        machine.check_same()?;
        findings.check()?;
        Ok((findings.to_string(), daemon))
    }
}

/// What a fault may not leave changed.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    online: String,
    own_mask: String,
    cgroups: Vec<String>,
    controllers: String,
}

impl Machine {
    fn read() -> Result<Self> {
        const ROOT: &str = "/sys/fs/cgroup";
        let mut cgroups: Vec<_> = fs::read_dir(ROOT)
            .context("reading the cgroups")?
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        cgroups.sort();
        let status = read("/proc/self/status")?;
        let own_mask = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .context("no Cpus_allowed_list")?;
        Ok(Self {
            online: read("/sys/devices/system/cpu/online")?,
            own_mask: own_mask.trim().to_owned(),
            cgroups,
            controllers: read(&format!("{ROOT}/cgroup.subtree_control"))?,
        })
    }

    fn check_same(&self) -> Result<()> {
        let now = Self::read()?;
        ensure!(now == *self, "the machine is {now:?}, not {self:?}");
        Ok(())
    }
}
