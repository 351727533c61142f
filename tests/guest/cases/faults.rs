//! Faults of the machine and of its users, each under a mix of load and with the checker on (see `Scene`).

use crate::Setting;
use crate::cgroup::{Cgroup, Controllers};
use crate::cpus::{Cpus, mask, set_online};
use crate::load::{Load, RealTime, Work, set_policy};
use crate::procs::{Procs, beside};
use crate::scene::{Scene, TURN};
use anyhow::{Context, Result, anyhow, ensure};
use manycore_tests::plan::FEW_CPUS;
use rustix::thread::{gettid, sched_setaffinity};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Fault = fn(&mut Scene, Duration) -> Result<String>;

/// How long a fault goes on.
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(1500);

fn under(setting: &Setting, fault: Fault) -> Result<String> {
    let mut scene = Scene::new(setting)?;
    let done = fault(&mut scene, LONG)?;
    let checked = scene.end()?;
    Ok(format!("{done}; {checked}"))
}

pub(crate) fn hotplug(setting: &Setting) -> Result<String> {
    under(setting, hotplug_for)
}

pub(crate) fn one_cpu(setting: &Setting) -> Result<String> {
    under(setting, one_cpu_for)
}

pub(crate) fn cpuset(setting: &Setting) -> Result<String> {
    under(setting, cpuset_for)
}

pub(crate) fn cgroups(setting: &Setting) -> Result<String> {
    under(setting, cgroups_for)
}

pub(crate) fn affinity(setting: &Setting) -> Result<String> {
    under(setting, affinity_for)
}

pub(crate) fn forks(setting: &Setting) -> Result<String> {
    under(setting, forks_for)
}

pub(crate) fn exec(setting: &Setting) -> Result<String> {
    under(setting, exec_for)
}

pub(crate) fn rt(setting: &Setting) -> Result<String> {
    under(setting, rt_for)
}

pub(crate) fn memory(setting: &Setting) -> Result<String> {
    under(setting, memory_for)
}

/// A short turn of several, one after the other on one scheduler.
pub(crate) fn several(setting: &Setting) -> Result<String> {
    let mut scene = Scene::new(setting)?;
    let mut done = Vec::new();
    let faults: [(&str, Fault); 6] = [
        ("hotplug", hotplug_for),
        ("cpuset", cpuset_for),
        ("affinity", affinity_for),
        ("forks", forks_for),
        ("exec", exec_for),
        ("rt", rt_for),
    ];
    for (name, fault) in faults {
        let started = Instant::now();
        done.push(fault(&mut scene, SHORT).with_context(|| name.to_owned())?);
        eprintln!("{name} took {:.1} s", started.elapsed().as_secs_f64());
    }
    let checked = scene.end()?;
    Ok(format!("{}; {checked}", done.join(", ")))
}

/// Ten thousand threads are there when the scheduler takes over, run with it, and run on without it.
pub(crate) fn threads(setting: &Setting) -> Result<String> {
    const THREADS: usize = 10_000;
    // Each waits for a turn of the thread that it starts.
    const STARTERS: usize = 20;
    let started = Instant::now();
    let loads = std::thread::scope(|scope| -> Result<Vec<Load>> {
        let starters: Vec<_> = (0..STARTERS)
            .map(|_| scope.spawn(|| Load::start(THREADS / STARTERS, Work::Nap)))
            .collect();
        starters
            .into_iter()
            .map(|starter| starter.join().map_err(|_| anyhow!("a starter panicked"))?)
            .collect()
    })?;
    let mut load = Load::default();
    loads.into_iter().for_each(|more| load.add(more));
    eprintln!("all there after {:.1} s", started.elapsed().as_secs_f64());
    let mut scene = Scene::new(setting)?;
    let on_it = load.workers[THREADS - 1].is_on_sched_ext()?;
    ensure!(
        on_it,
        "a thread that was there before is not scheduled by it"
    );
    load.check_progress(TURN)?;
    scene.check()?;
    let checked = scene.end()?;
    load.check_progress(TURN)?;
    Ok(format!("{} threads; {checked}", load.workers.len()))
}

/// All CPUs but the first, which can't go offline.
fn removable(scene: &Scene) -> Result<Vec<usize>> {
    let cpus: Vec<_> = scene.cpus.iter().copied().skip(1).collect();
    ensure!(!cpus.is_empty(), "there is one CPU only");
    Ok(cpus)
}

/// CPUs that come back when this goes, whatever happens.
struct Offline(Cpus);

impl Offline {
    fn take(cpus: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut offline = Self(Cpus::new());
        for cpu in cpus {
            set_online(cpu, false)?;
            offline.0.insert(cpu);
        }
        Ok(offline)
    }

    fn give_back(&mut self) -> Result<()> {
        while let Some(cpu) = self.0.pop_first() {
            set_online(cpu, true)?;
        }
        Ok(())
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        if let Err(error) = self.give_back() {
            eprintln!("a CPU stays offline: {error:#}");
        }
    }
}

/// One to three CPUs go and come back, in no order.
fn hotplug_for(scene: &mut Scene, time: Duration) -> Result<String> {
    let cpus = removable(scene)?;
    // One alone may take half a minute where there are many.
    let least = if cpus.len() > FEW_CPUS { 4 } else { 10 };
    let deadline = Instant::now() + time;
    let mut times = 0;
    while Instant::now() < deadline || times < least {
        let count = 1 + scene.random.below(3.min(cpus.len()));
        let gone: Cpus = (0..count)
            .map(|_| cpus[scene.random.below(cpus.len())])
            .collect();
        times += gone.len();
        let mut offline = Offline::take(gone)?;
        std::thread::sleep(Duration::from_millis(20));
        offline.give_back()?;
    }
    scene.check().context("after CPUs came and went")?;
    Ok(format!("{times} times a CPU went and came back"))
}

/// All but one CPU go, and come back.
fn one_cpu_for(scene: &mut Scene, time: Duration) -> Result<String> {
    let cpus = removable(scene)?;
    let least = if cpus.len() > FEW_CPUS { 1 } else { 3 };
    let deadline = Instant::now() + time;
    let mut rounds = 0;
    while Instant::now() < deadline || rounds < least {
        let mut offline = Offline::take(cpus.iter().copied())?;
        scene.check().context("with one CPU left")?;
        offline.give_back()?;
        scene.check().context("with all CPUs back")?;
        rounds += 1;
    }
    Ok(format!(
        "{rounds} times all CPUs but one went and came back"
    ))
}

fn list(cpus: &Cpus) -> String {
    let all: Vec<_> = cpus.iter().map(usize::to_string).collect();
    all.join(",")
}

/// A cpuset shrinks to one CPU and widens again, with processes in it.
fn cpuset_for(scene: &mut Scene, time: Duration) -> Result<String> {
    let _controllers = Controllers::enable(&["cpuset"])?;
    let all = scene.cpus.clone();
    let cgroup = Cgroup::new("fault-cpuset")?;
    let procs = Procs::spin(all.len().div_ceil(2))?;
    procs.pids().try_for_each(|pid| cgroup.add(pid))?;
    let deadline = Instant::now() + time;
    let mut times = 0;
    while Instant::now() < deadline {
        let cpus: Vec<_> = all.iter().copied().collect();
        let one = cpus[scene.random.below(cpus.len())];
        for cpus in [Cpus::from([one]), scene.random.some_of(&all), all.clone()] {
            cgroup.set("cpuset.cpus", &list(&cpus))?;
            std::thread::sleep(Duration::from_millis(20));
            times += 1;
        }
    }
    // Within one CPU everybody still gets on.
    cgroup.set("cpuset.cpus", &list(&Cpus::from([0])))?;
    procs.check_progress(TURN).context("all on one CPU")?;
    cgroup.set("cpuset.cpus", &list(&all))?;
    procs.check_progress(TURN).context("on all CPUs again")?;
    scene.check()?;
    Ok(format!("{times} cpusets"))
}

/// Processes move between cgroups of unequal weight.
fn cgroups_for(scene: &mut Scene, time: Duration) -> Result<String> {
    let _controllers = Controllers::enable(&["cpu"])?;
    let cgroups: Vec<_> = ["1", "100", "10000"]
        .iter()
        .map(|weight| {
            let cgroup = Cgroup::new(&format!("fault-weight-{weight}"))?;
            cgroup.set("cpu.weight", weight)?;
            Ok(cgroup)
        })
        .collect::<Result<_>>()?;
    let procs = Procs::spin(scene.cpus.len())?;
    let pids: Vec<_> = procs.pids().collect();
    let own = RealTime::begin()?;
    let deadline = Instant::now() + time;
    let mut moves = 0;
    while Instant::now() < deadline {
        let cgroup = &cgroups[scene.random.below(cgroups.len())];
        cgroup.add(pids[scene.random.below(pids.len())])?;
        std::thread::sleep(Duration::from_millis(2));
        moves += 1;
    }
    // Back, with equal weights, so that nobody's turn is long in coming.
    let last = &cgroups[1];
    pids.iter().try_for_each(|pid| last.add(*pid))?;
    drop(own);
    procs.check_progress(TURN)?;
    scene.check()?;
    Ok(format!("{moves} moves between cgroups"))
}

/// stress-ng for so long, within a cgroup if there is one.
fn stress(args: &[&str], time: Duration, cgroup: Option<&Cgroup>) -> Command {
    let mut command = match cgroup {
        Some(cgroup) => cgroup.entering("stress-ng"),
        None => Command::new("stress-ng"),
    };
    // It counts whole seconds.
    let seconds = time.as_secs().max(1).to_string();
    command
        .args(args)
        .args(["--timeout", &seconds, "--temp-path", "/tmp"])
        .current_dir("/tmp")
        .stdin(Stdio::null());
    command
}

fn stressed(args: &[&str], time: Duration) -> Result<()> {
    let output = stress(args, time, None)
        .output()
        .context("starting stress-ng")?;
    ensure!(
        output.status.success(),
        "stress-ng {} ended with {}: {}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

/// Processes that change their own affinity all the time.
fn affinity_for(scene: &mut Scene, time: Duration) -> Result<String> {
    // Sixteen each, which start in step: hundreds may meet on one CPU, of which an emulator with many has little.
    let cpus = scene.cpus.len();
    let groups = if cpus > FEW_CPUS { cpus / 4 } else { cpus };
    stressed(
        &["--affinity", &groups.to_string(), "--affinity-rand"],
        time,
    )?;
    scene.check()?;
    Ok(format!("{} processes changed their affinity", 16 * groups))
}

/// A fork bomb within a limit.
fn forks_for(scene: &mut Scene, time: Duration) -> Result<String> {
    const LIMIT: u32 = 150;
    let _controllers = Controllers::enable(&["pids"])?;
    let cgroup = Cgroup::new("fault-forks")?;
    cgroup.set("pids.max", &LIMIT.to_string())?;
    let mut bomb = cgroup
        .entering(&beside("manycore-guest")?.to_string_lossy())
        .arg("bomb")
        .stdin(Stdio::null())
        .spawn()
        .context("starting a fork bomb")?;
    let started = Instant::now();
    loop {
        scene.check().context("beside a fork bomb")?;
        let refused = !cgroup.get("pids.events")?.ends_with("max 0");
        if started.elapsed() > time && (refused || started.elapsed() > time + TURN) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let peak = cgroup.get("pids.peak")?;
    let refused = cgroup.get("pids.events")?;
    cgroup.kill()?;
    bomb.wait().context("waiting for the fork bomb")?;
    scene.check().context("after a fork bomb")?;
    ensure!(
        !refused.ends_with("max 0"),
        "the bomb did not reach its limit, but {peak} tasks"
    );
    Ok(format!("a fork bomb of {peak} tasks"))
}

/// Processes that only start programs, and end.
fn exec_for(scene: &mut Scene, time: Duration) -> Result<String> {
    let count = scene.cpus.len().to_string();
    stressed(&["--exec", &count], time)?;
    stressed(&["--vfork", &count], time)?;
    scene.check()?;
    Ok(format!("{count} processes that fork and exec"))
}

/// Real-time tasks that leave their CPU to others for a ms of 50.
struct Hogs {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hogs {
    fn on(cpus: &[usize]) -> Result<Self> {
        const PRIORITY: i32 = 10;
        let mut hogs = Self {
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for &cpu in cpus {
            let stop = Arc::clone(&hogs.stop);
            let (sender, receiver) = channel();
            let hog = move || {
                let own = gettid().as_raw_nonzero().get();
                let started = sched_setaffinity(None, &mask([cpu]))
                    .context("setting a mask")
                    .and_then(|()| set_policy(own, libc::SCHED_FIFO, PRIORITY));
                let good = started.is_ok();
                if sender.send(started).is_err() || !good {
                    return;
                }
                while !stop.load(Ordering::Relaxed) {
                    let until = Instant::now() + Duration::from_millis(50);
                    while Instant::now() < until {
                        std::hint::spin_loop();
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            let thread = std::thread::Builder::new().name("hog".into()).spawn(hog);
            hogs.threads.push(thread.context("starting a thread")?);
            receiver.recv().context("a hog did not start")??;
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}

/// Real-time tasks take half of the CPUs, and others, by turns.
fn rt_for(scene: &mut Scene, time: Duration) -> Result<String> {
    let cpus: Vec<_> = scene.cpus.iter().copied().collect();
    let deadline = Instant::now() + time;
    let mut rounds = 0;
    while Instant::now() < deadline {
        let half: Vec<_> = cpus
            .iter()
            .copied()
            .filter(|cpu| (cpu + rounds) % 2 == 0)
            .collect();
        let hogs = Hogs::on(&half)?;
        std::thread::sleep(time / 4);
        scene.check().context("beside real-time tasks")?;
        drop(hogs);
        scene.check().context("after real-time tasks")?;
        rounds += 1;
    }
    Ok(format!(
        "{rounds} times real-time tasks on half of the CPUs"
    ))
}

/// Processes that want more memory than they may have, are killed and begin again. The limit is low, since a loaded guest of
/// 32 emulated CPUs takes minutes to touch 100 MiB.
fn memory_for(scene: &mut Scene, time: Duration) -> Result<String> {
    let _controllers = Controllers::enable(&["memory"])?;
    let cgroup = Cgroup::new("fault-memory")?;
    cgroup.set("memory.max", "32M")?;
    let args = ["--vm", "2", "--vm-bytes", "64M", "--vm-keep"];
    let mut hungry = stress(&args, time + TURN, Some(&cgroup))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting stress-ng")?;
    let started = Instant::now();
    let count = |events: &str, name: &str| -> u64 {
        let line = events.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse().ok())
            .unwrap_or_default()
    };
    let events = loop {
        scene.check().context("without memory")?;
        std::thread::sleep(Duration::from_millis(200));
        let events = cgroup.get("memory.events")?;
        let enough = count(&events, "max ") > 0 || started.elapsed() > time + TURN;
        if started.elapsed() > time && enough {
            break events;
        }
    };
    cgroup.kill()?;
    // Whether it could do what it wanted is not the question.
    hungry.wait().context("waiting for stress-ng")?;
    scene.check()?;
    ensure!(
        count(&events, "max ") > 0,
        "the limit was never reached: {}",
        events.replace('\n', ", ")
    );
    Ok(format!(
        "{} times at the limit of memory, {} tasks killed",
        count(&events, "max "),
        count(&events, "oom_kill ")
    ))
}
