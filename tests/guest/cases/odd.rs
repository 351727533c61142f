//! Machines as nobody builds them.

use crate::Setting;
use crate::cases::stats::Totals;
use crate::cpus::{Cpus, idle_shares, online, set_online};
use crate::daemon::Daemon;
use crate::load::{Load, Work};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

const TURN: Duration = Duration::from_secs(60);
/// How much of the time a CPU may idle with two tasks for each that never sleep.
const IDLE: f64 = 0.1;
/// A busy host takes CPUs away: the best of so many counts.
const TRIES: usize = 5;

/// The scheduler loads, serves everybody with every CPU, counts, and ends well: on all CPUs, and with every second one
/// offline.
pub(crate) fn odd(setting: &Setting) -> Result<String> {
    let all = online()?;
    let idle = serve(setting).context("on all CPUs")?;
    let mut told = format!("{} CPUs, the idlest idled {:.1} %", all.len(), 100.0 * idle);
    let second: Vec<_> = all.iter().copied().skip(1).step_by(2).collect();
    if second.is_empty() {
        return Ok(told);
    }
    second.iter().try_for_each(|cpu| set_online(*cpu, false))?;
    let served = serve(setting).context("with every second CPU offline");
    second.iter().try_for_each(|cpu| set_online(*cpu, true))?;
    let idle = served?;
    let same: Cpus = online()?;
    ensure!(same == all, "{same:?} are online, not {all:?}");
    told += &format!(
        "; {} CPUs with gaps, {:.1} %",
        all.len() - second.len(),
        100.0 * idle
    );
    Ok(told)
}

fn serve(setting: &Setting) -> Result<f64> {
    let cpus = online()?.len();
    let mut daemon = Daemon::start(setting, &[])?;
    let before = Totals::read()?;
    let mut load = Load::start(2 * cpus, Work::Spin)?;
    load.add(Load::start(cpus, Work::Sleep)?);
    load.check_progress(TURN)?;
    let mut least = 1.0_f64;
    for _ in 0..TRIES {
        let shares = idle_shares(Duration::from_secs(1))?;
        let idlest = shares.values().copied().fold(0.0, f64::max);
        least = least.min(idlest);
        if least <= IDLE {
            break;
        }
    }
    ensure!(
        least <= IDLE,
        "a CPU idles {:.0} % of the time while tasks wait",
        100.0 * least
    );
    load.check_progress(TURN)?;
    Totals::read()?.check_grown_since(&before)?;
    daemon.check_alive()?;
    drop(load);
    daemon.stop()?;
    Ok(least)
}
