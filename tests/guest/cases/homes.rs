//! Where scx_numa has tasks at home.

use crate::Setting;
use crate::cases::stats::Totals;
use crate::cpus::online;
use crate::daemon::Daemon;
use crate::procs::{Procs, beside};
use crate::scene::TURN;
use anyhow::{Result, ensure};
use std::time::Duration;

/// Twice as many processes as there are CPUs, all with their memory on one node: CPUs of the other node run half of them,
/// most of the time, which would be reason enough to be at home there.
const EACH: usize = 2;
const LONG: Duration = Duration::from_secs(3);
/// Others of the guest may settle elsewhere meanwhile: 10 did so at most, on a busy host. If those with their memory on one
/// node did, all of them would.
const OTHERS: u64 = 12;

pub(crate) fn memory_home(setting: &Setting) -> Result<String> {
    let daemon = Daemon::lent(setting)?;
    let count = EACH * online()?.len();
    let before = Totals::read()?;
    // The command itself is at home on whatever node it starts; then it asks for memory of another.
    let bound = Procs::start(count, &beside("spin")?, 1, &["numactl", "--membind=1"])?;
    bound.check_progress(TURN)?;
    let begun = Totals::read()?;
    std::thread::sleep(LONG);
    bound.check_progress(TURN)?;
    let now = Totals::read()?;
    drop(bound);
    let grown = |name: &str, since: &Totals| now.0[name] - since.0[name];
    let (given, left) = (
        grown("home_memory", &before),
        grown("home_away", &begun) + grown("home_balanced", &begun),
    );
    let told = format!(
        "{count} processes, {given} homes by memory; within {} s, {left} homes left",
        LONG.as_secs()
    );
    // Half of them, more or less, started there and have it anyway.
    ensure!(
        given >= count as u64 / 4 && left <= OTHERS,
        "{told} (at most {OTHERS})"
    );
    daemon.stop()?;
    Ok(told)
}
