//! Services as a scheduler sees them whose policy is in userspace: what is known of them from outside changes how they are
//! served.

use crate::Setting;
use crate::cases::policy::FILE;
use crate::cases::policy_daemon::classed;
use crate::cgroup::Cgroup;
use crate::cpus::{Cpus, online};
use crate::daemon::Daemon;
use crate::load::{Load, Work};
use crate::procs::{Procs, Running, beside, children_of, last_cpu};
use anyhow::{Context, Result, ensure};
use manycore_tests::machine::Machine;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// From the moment a service is under pressure until it must be served better.
const SOON: Duration = Duration::from_secs(1);
/// For so long it is looked at then.
const WHILE: Duration = Duration::from_secs(1);
/// Threads of the service for each CPU, and of all others.
const OWN: usize = 1;
const OTHERS: usize = 3;
/// By its weight the service is entitled to a quarter. Under pressure all the time it counts four times that, so to 4 of 7.
const MORE: f64 = 1.5;

/// Threads of a service keep all CPUs busy, and then three times as many others come. Without being a service it gets its
/// quarter. As a service it is under pressure, and must have more, and wait less, within a second.
pub(crate) fn pressure(setting: &Setting) -> Result<String> {
    let plain = squeezed(setting, &[]).context("not being a service")?;
    let text = "[[service]]\ncgroup = \"/web\"\nname = \"web\"\n";
    fs::write(FILE, text).context("writing a policy")?;
    let served = squeezed(setting, &["--policy", FILE]).context("as a service")?;
    let told = format!(
        "{:.0} % of the CPUs and {:.0} % of the time waiting, as a service under pressure {:.0} % and {:.0} %",
        100.0 * plain.share,
        100.0 * plain.waited,
        100.0 * served.share,
        100.0 * served.waited
    );
    ensure!(
        served.share >= MORE * plain.share && served.waited < plain.waited,
        "{told}: it must have {MORE} times as much within {} s, and wait less",
        SOON.as_secs()
    );
    Ok(told)
}

/// How threads were served.
struct Served {
    /// Of all CPUs.
    share: f64,
    /// The part of the time that a thread waited.
    waited: f64,
}

fn squeezed(setting: &Setting, args: &[&str]) -> Result<Served> {
    let cpus = online()?.len();
    let [web, rest] = ["web", "rest"].map(Cgroup::new);
    let (web, rest) = (web?, rest?);
    let mut daemon = Daemon::start(setting, args)?;
    if !args.is_empty() {
        classed(1)?;
    }
    let spin = beside("spin")?;
    let own = Procs::start(1, &spin, OWN * cpus, &[])?;
    own.pids().try_for_each(|pid| web.add(pid))?;
    // Long enough to be known as a service.
    std::thread::sleep(Duration::from_secs(4));
    let started = Instant::now();
    let others = Procs::start(1, &spin, OTHERS * cpus, &[])?;
    others.pids().try_for_each(|pid| rest.add(pid))?;
    std::thread::sleep(SOON.saturating_sub(started.elapsed()));
    let (before, from) = (own.times()?, Instant::now());
    std::thread::sleep(WHILE);
    let (after, elapsed) = (own.times()?, from.elapsed());
    daemon.check_alive()?;
    drop((own, others));
    daemon.stop()?;
    let sum = |of: fn(&(u64, u64)) -> u64| {
        let [then, now] = [&before, &after].map(|times| times.values().map(of).sum::<u64>());
        now.saturating_sub(then) as f64 / elapsed.as_nanos() as f64
    };
    ensure!(
        after.len() == OWN * cpus,
        "the service has {} threads, not {}",
        after.len(),
        OWN * cpus
    );
    Ok(Served {
        share: sum(|(ran, _)| *ran) / cpus as f64,
        waited: sum(|(_, waited)| *waited) / after.len() as f64,
    })
}

/// The part of the time that a service that is kept to a cache must be there.
const AT_HOME: f64 = 0.9;

/// Two services sleep and wake up in the last cache. A stream from outside says that each needs little: they go to caches
/// of their own, and when nothing is said any more they may stay wherever they are.
pub(crate) fn outside_load(setting: &Setting) -> Result<String> {
    const STREAM: &str = "/tmp/load";
    let machine = Machine::read(&setting.topology)?;
    let all = online()?;
    let last = *all.last().context("no CPU online")?;
    let cache: Cpus = machine.cpus_of_die(last).collect();
    let [web, db] = ["web", "db"].map(Cgroup::new);
    let services = [web?, db?];
    let _ = fs::remove_file(STREAM);
    fs::write(STREAM, "").context("making a stream")?;
    let args = ["--service", "web=/web:normal", "--service", "db=/db:batch"];
    let args = [&args[..], &["--load", STREAM]].concat();
    let mut daemon = Daemon::start(setting, &args)?;
    let mut running = Vec::new();
    for cgroup in &services {
        let mut command = cgroup.entering("stress-ng");
        command.args(["--cpu", "2", "--cpu-load", "30", "--cpu-load-slice", "-50"]);
        command.args(["--timeout", "1000", "--temp-path", "/tmp"]);
        running.push(Running::start(&mut command)?);
    }
    let pids: Vec<u32> = running.iter().map(Running::pid).collect();
    started(&pids)?;
    move_to(&pids, &cache)?;
    std::thread::sleep(Duration::from_millis(500));
    // From here on they may run anywhere, and stay where their caches are warm.
    move_to(&pids, &all)?;
    let before = at_home(&machine, &pids)?;
    fs::write(
        STREAM,
        "{\"service\":\"web\",\"load\":0.1}\n{\"service\":\"db\",\"load\":0.1}\n",
    )
    .context("writing into the stream")?;
    std::thread::sleep(SOON);
    let after = at_home(&machine, &pids)?;
    daemon.check_alive()?;
    drop(running);
    daemon.stop()?;
    let percent = |parts: &[f64]| -> Vec<String> {
        let parts = parts.iter().map(|part| format!("{:.0} %", 100.0 * part));
        parts.collect()
    };
    let told = format!(
        "at home before {}, after {}",
        percent(&before).join(" and "),
        percent(&after).join(" and ")
    );
    ensure!(
        before.iter().all(|part| *part < 0.5) && after.iter().all(|part| *part >= AT_HOME),
        "{told}: after it must be {:.0} % within {} s",
        100.0 * AT_HOME,
        SOON.as_secs()
    );
    Ok(told)
}

/// Waits until each has two children that compute.
fn started(pids: &[u32]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let counts: Vec<usize> = pids
            .iter()
            .map(|pid| children_of(*pid).map(|children| children.len()))
            .collect::<Result<_>>()?;
        if counts.iter().all(|count| *count == 2) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "stress-ng has {counts:?} workers, not 2 each"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn move_to(pids: &[u32], cpus: &Cpus) -> Result<()> {
    for pid in pids {
        for child in children_of(*pid)? {
            let child = rustix::process::Pid::from_raw(child);
            rustix::thread::sched_setaffinity(child, &crate::cpus::mask(cpus.iter().copied()))
                .context("setting the mask of a worker")?;
        }
    }
    Ok(())
}

/// For each service, the part of the next second that its workers were seen in its own cache: the first of the machine is
/// the first service's, and so on.
fn at_home(machine: &Machine, pids: &[u32]) -> Result<Vec<f64>> {
    let size = machine.cpus_of_die(0).len();
    let mut seen = vec![(0_u32, 0_u32); pids.len()];
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        for (index, pid) in pids.iter().enumerate() {
            for child in children_of(*pid)? {
                if let Some(cpu) = last_cpu(child) {
                    seen[index].0 += u32::from(cpu / size == index);
                    seen[index].1 += 1;
                }
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(seen
        .into_iter()
        .map(|(home, all)| f64::from(home) / f64::from(all.max(1)))
        .collect())
}

/// How long it must hold out.
const TEN_MINUTES: Duration = Duration::from_secs(600);
/// For each of the tasks that are looked at to get a turn.
const TURN: Duration = Duration::from_secs(60);

/// Four tasks a CPU that compute, talk through pipes and futexes, switch and fork, for ten minutes: the scheduler stays
/// loaded, and everybody makes progress all the time.
pub(crate) fn ten_minutes(setting: &Setting) -> Result<String> {
    let cpus = online()?.len();
    let mut daemon = Daemon::start(setting, &[])?;
    // Looked at, beside what stress-ng does.
    let mut load = Load::start(cpus.div_ceil(4), Work::Spin)?;
    load.add(Load::start(cpus.div_ceil(4), Work::Sleep)?);
    // Of those with two tasks, one for two CPUs.
    let [one, half] = [cpus, cpus.div_ceil(2)].map(|count| count.to_string());
    let seconds = TEN_MINUTES.as_secs().to_string();
    let log = "/tmp/stress-ng.log";
    let said = fs::File::create(log).context("making a file for stress-ng")?;
    let mut stress = Command::new("stress-ng")
        .args(["--cpu", &one, "--pipe", &half, "--switch", &half])
        .args(["--futex", &half, "--fork", "1", "--timeout", &seconds])
        .args(["--metrics-brief", "--temp-path", "/tmp"])
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(said.try_clone().context("a second handle")?)
        .stderr(said)
        .spawn()
        .context("starting stress-ng")?;
    let started = Instant::now();
    let mut looks = 0;
    let status = loop {
        if let Some(status) = stress.try_wait().context("waiting for stress-ng")? {
            break status;
        }
        let looked = load.check_progress(TURN);
        let alive = looked.and_then(|()| daemon.check_alive());
        if let Err(why) = alive {
            let _ = stress.kill();
            let _ = stress.wait();
            return Err(why).with_context(|| format!("after {} s", started.elapsed().as_secs()));
        }
        looks += 1;
        std::thread::sleep(Duration::from_secs(2));
    };
    let lasted = started.elapsed();
    let said = fs::read_to_string(log).context("reading what stress-ng said")?;
    ensure!(status.success(), "stress-ng ended with {status}: {said}");
    ensure!(
        lasted >= TEN_MINUTES,
        "stress-ng ended after {} s: {said}",
        lasted.as_secs()
    );
    load.check_progress(TURN)?;
    drop(load);
    daemon.stop()?;
    Ok(format!(
        "{} s, everybody made progress in each of {looks} looks",
        lasted.as_secs()
    ))
}
