//! Daemons that keep a policy in force: cgroups are served and classed as they come and go, a mistake changes nothing, and
//! whatever ends the daemon, each file is byte for byte what it was.

use crate::Setting;
use crate::cases::policy::{FILE, JOURNAL, ROOT, World, manycore, policy_text, same};
use crate::cases::stats::Totals;
use crate::cpus::{online, set_online};
use crate::daemon::{
    Daemon, State, check_refusal, enabled_times, run, start_limit, wait_until_unloaded,
};
use crate::load::{Load, Work};
use anyhow::{Context, Result, ensure};
use manycore_tests::machine::Machine;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// From a signal or a new cgroup to its effect, on a busy host.
const SOON: Duration = Duration::from_secs(60);
const MISTAKE: &str = "[[service]]\ncgroup = \"/batch\"\nwieght = 1\n";
/// Where it is.
const WHERE: &str = ":3: unknown field `wieght`";
/// How many cgroups the policy has classes for: /latency, /tenant/db, /batch.
const CLASSED: u64 = 3;

type Files = BTreeMap<PathBuf, Vec<u8>>;

pub(crate) fn policy_daemon(setting: &Setting) -> Result<String> {
    let machine = Machine::read(&setting.topology)?;
    let text = format!(
        "{}[[service]]\ncgroup = \"/new-*\"\nclass = \"latency\"\nweight = 50\n",
        policy_text(&machine)
    );
    let world = World::new(false)?;
    let before = world.snapshot()?;
    check_refused(setting).context("a mistake at the start")?;
    world.check_same(&before)?;

    let mut daemon = start(setting, &text)?;
    check_followed().context("a cgroup that came later")?;
    check_reloaded(&world, &mut daemon).context("SIGHUP")?;
    let status = daemon.signal(Signal::TERM)?;
    ensure!(
        status.code() == Some(0),
        "it ended with {status} after SIGTERM"
    );
    world.check_same(&before).context("after SIGTERM")?;

    check_killed(setting, &world, &text, &before).context("kill -9")?;
    check_killed_for_good(setting, &world, &text, &before)
        .context("kill -9, and no start after")?;
    check_thrown_out(setting, &world, &text, &before).context("thrown out by the kernel")?;
    // With one cache in a node, the place of a CPU that was offline is known.
    let restarts = if machine.dies > 1 {
        check_restarted(setting, &world, &text, &before).context("a CPU that came")?
    } else {
        0
    };
    Ok(format!(
        "followed, reloaded, and undone after SIGTERM, kill -9 and SysRq-S; kept over {restarts} restarts"
    ))
}

/// Starts the daemon, and waits until the policy is in force.
fn start(setting: &Setting, text: &str) -> Result<Daemon> {
    fs::write(FILE, text).context("writing a policy")?;
    let daemon = Daemon::start(setting, &["--policy", FILE])?;
    in_force()?;
    Ok(daemon)
}

fn in_force() -> Result<()> {
    wait_for("latency is exclusive", || {
        same("latency/cpuset.cpus.partition", "root")
    })?;
    classed(CLASSED)
}

/// Waits until so many cgroups are classed.
pub(crate) fn classed(count: u64) -> Result<()> {
    wait_for("its classes are known", || {
        let now = Totals::read()?.0["classed_cgroups"];
        ensure!(now == count, "{now} cgroups are classed, not {count}");
        Ok(())
    })
}

/// Tries until it works.
fn wait_for(what: &str, check: impl Fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        match check() {
            Ok(()) => return Ok(()),
            Err(err) if Instant::now() > deadline => {
                return Err(err).with_context(|| format!("waiting until {what}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn check_refused(setting: &Setting) -> Result<()> {
    let enabled = enabled_times()?;
    fs::write(FILE, MISTAKE).context("writing a policy")?;
    let output = run(setting.scheduler()?.name, &["--policy", FILE], true)?;
    check_refusal(&output, 2, &[FILE, WHERE])?;
    ensure!(enabled_times()? == enabled, "it was loaded all the same");
    Ok(())
}

fn check_followed() -> Result<()> {
    let dir = format!("{ROOT}/new-1");
    fs::create_dir(&dir).context("making a cgroup")?;
    let followed = wait_for("it has its weight", || same("new-1/cpu.weight", "50"));
    let followed = followed.and_then(|()| classed(CLASSED + 1));
    fs::remove_dir(&dir).context("removing a cgroup")?;
    followed?;
    classed(CLASSED)
}

fn check_reloaded(world: &World, daemon: &mut Daemon) -> Result<()> {
    let in_force = world.snapshot()?;
    fs::write(FILE, MISTAKE)?;
    daemon.send(Signal::HUP)?;
    wait_for("it says what is wrong", || {
        let said = daemon.stderr();
        for word in [FILE, WHERE, "the policy in force stays"] {
            ensure!(said.contains(word), "it does not say {word:?}: {said}");
        }
        Ok(())
    })?;
    classed(CLASSED)?;
    ensure!(world.snapshot()? == in_force, "a mistake changed something");
    fs::write(FILE, "[[service]]\ncgroup = \"/batch\"\nweight = 5\n")?;
    daemon.send(Signal::HUP)?;
    wait_for("it is applied", || same("batch/cpu.weight", "5"))?;
    classed(1)?;
    ensure!(
        !Path::new(ROOT).join("latency/cpuset.cpus").exists(),
        "what only the earlier policy wanted is still there"
    );
    daemon.check_alive()
}

fn check_killed(setting: &Setting, world: &World, text: &str, before: &Files) -> Result<()> {
    let mut daemon = start(setting, text)?;
    daemon.signal(Signal::KILL)?;
    wait_until_unloaded()?;
    same("batch/cpu.weight", "10")?;
    ensure!(Path::new(JOURNAL).exists(), "there is no journal");
    // The next start undoes what the last one did.
    fs::write(FILE, "[[service]]\ncgroup = \"/batch\"\nweight = 7\n")?;
    let mut daemon = Daemon::start(setting, &["--policy", FILE])?;
    wait_for("it is applied", || same("batch/cpu.weight", "7"))?;
    ensure!(
        !Path::new(ROOT).join("latency/cpuset.cpus").exists(),
        "what the one that was killed did is still there"
    );
    daemon.signal(Signal::KILL)?;
    wait_until_unloaded()?;
    manycore(&["policy", "restore"])?;
    world.check_same(before)
}

/// What one that was killed left is undone also by a start that gets no further.
fn check_killed_for_good(
    setting: &Setting,
    world: &World,
    text: &str,
    before: &Files,
) -> Result<()> {
    let name = setting.scheduler()?.name;
    let taken = TcpListener::bind("127.0.0.1:0").context("taking a port")?;
    let address = taken.local_addr()?.to_string();
    let leave = || {
        let mut daemon = start(setting, text)?;
        daemon.signal(Signal::KILL)?;
        wait_until_unloaded()?;
        same("batch/cpu.weight", "10")
    };
    leave()?;
    let with_metrics = ["--policy", FILE, "--metrics", &address];
    let output = run(name, &with_metrics, true)?;
    check_refusal(&output, 1, &[&address])?;
    world.check_same(before).context("a port in use")?;

    leave()?;
    let other = Daemon::start(setting, &[])?;
    let output = run(name, &["--policy", FILE], true)?;
    check_refusal(&output, 1, &["another scheduler is loaded"])?;
    other.stop()?;
    world.check_same(before).context("another scheduler")
}

fn check_thrown_out(setting: &Setting, world: &World, text: &str, before: &Files) -> Result<()> {
    let mut daemon = start(setting, text)?;
    fs::write("/proc/sysrq-trigger", "S").context("asking the kernel to throw it out")?;
    wait_until_unloaded()?;
    let status = daemon.wait()?;
    ensure!(
        status.code() == Some(1),
        "it ended with {status} after SysRq-S"
    );
    world.check_same(before)
}

/// A CPU comes whose place could not be known: the scheduler restarts in the daemon.
fn check_restarted(setting: &Setting, world: &World, text: &str, before: &Files) -> Result<u64> {
    let last = *online()?.last().context("no CPU online")?;
    set_online(last, false)?;
    let mut daemon = start(setting, text)?;
    let enabled = enabled_times()?;
    set_online(last, true)?;
    let deadline = Instant::now() + start_limit();
    while enabled_times()? == enabled || State::read()?.state != "enabled" {
        ensure!(Instant::now() < deadline, "it doesn't restart");
        std::thread::sleep(Duration::from_millis(50));
    }
    in_force()?;
    daemon.check_alive()?;
    let restarts = enabled_times()? - enabled;
    daemon.stop()?;
    world.check_same(before)?;
    Ok(restarts)
}

/// A thousand cgroups come and go under load: each gets its class soon, and nothing is left of those that went.
pub(crate) fn classes(setting: &Setting) -> Result<String> {
    const CGROUPS: usize = 1000;
    const ROUNDS: usize = 2;
    let dir = |n: usize| format!("{ROOT}/classes/{n}");
    fs::write(
        FILE,
        "[[service]]\ncgroup = \"/classes/*\"\nclass = \"batch\"\nslice_us = 20000\n",
    )
    .context("writing a policy")?;
    fs::create_dir(format!("{ROOT}/classes")).context("making a cgroup")?;
    let mut daemon = Daemon::start(setting, &["--policy", FILE])?;
    classed(0)?;
    let load = Load::start(2 * online()?.len(), Work::Spin)?;
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        for n in 0..CGROUPS {
            fs::create_dir(dir(n)).with_context(|| format!("making {}", dir(n)))?;
        }
        let made = Instant::now();
        classed(CGROUPS as u64).with_context(|| format!("round {round}"))?;
        slowest = slowest.max(made.elapsed());
        load.check_progress(SOON)?;
        for n in 0..CGROUPS {
            fs::remove_dir(dir(n)).with_context(|| format!("removing {}", dir(n)))?;
        }
        classed(0).with_context(|| format!("after round {round}"))?;
    }
    daemon.check_alive()?;
    drop(load);
    daemon.stop()?;
    fs::remove_dir(format!("{ROOT}/classes")).context("removing a cgroup")?;
    ensure!(
        slowest < Duration::from_secs(1),
        "the last were classed {slowest:?} after they were made"
    );
    Ok(format!(
        "{ROUNDS} x {CGROUPS} cgroups, all classed {:.2} s after the last was made",
        slowest.as_secs_f64()
    ))
}
