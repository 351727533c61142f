//! Runs cases one after the other and reports each. A case is a process group of its own, so that one that hangs or
//! dies takes nothing with it; after each, the machine must be as it was before, but for a scheduler that the next finds
//! loaded.

use crate::cpus::{mask, online};
use crate::daemon::{Daemon, State};
use crate::kernel::Log;
use anyhow::{Context, Result, bail};
use manycore_tests::plan;
use manycore_tests::report::{ALIVE_EVERY, Event, Outcome};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::sched_setaffinity;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// For the kernel to take a scheduler out whose daemon is gone.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// How long a sleep of a millisecond may take on any CPU.
const SLEEP: Duration = Duration::from_secs(20);

pub(crate) fn run(topology: &str, cases: &[&str]) -> Result<()> {
    check_timers()?;
    // A second of a virtual clock says nothing about how long the host waits.
    if !has_virtual_clock() {
        std::thread::spawn(|| {
            while tell(&Event::Alive).is_ok() {
                std::thread::sleep(ALIVE_EVERY);
            }
        });
    }
    let mut lent = None;
    for (index, case) in cases.iter().enumerate() {
        tell(&Event::Start {
            case: (*case).to_owned(),
        })?;
        let next = cases.get(index + 1).copied();
        tell(&Event::End(run_one(topology, case, next, &mut lent)?))?;
    }
    Ok(())
}

/// Every CPU wakes who sleeps there. An emulated one may have lost its timer while the guest booted (seen once, of CPU 0 on
/// 6.12/t16-smt): what waits for time to pass there waits for ever, whatever is loaded later. The guest ends then before it has
/// said anything, and is booted again.
fn check_timers() -> Result<()> {
    let (slept, sleepers) = channel();
    let cpus = online()?;
    for &cpu in &cpus {
        let slept = slept.clone();
        let sleep = move || {
            let there = sched_setaffinity(None, &mask([cpu]));
            std::thread::sleep(Duration::from_millis(1));
            let _ = slept.send((cpu, there));
        };
        std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(sleep)
            .context("starting a thread")?;
    }
    let deadline = Instant::now() + SLEEP;
    let mut missing = cpus;
    while !missing.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((cpu, there)) = sleepers.recv_timeout(left) else {
            bail!(
                "who sleeps for a millisecond on these CPUs is not woken within {SLEEP:?}: {missing:?}"
            );
        };
        there.with_context(|| format!("going to CPU {cpu}"))?;
        missing.remove(&cpu);
    }
    Ok(())
}

/// Whether the second of two cases goes on with the daemon that the first has found.
fn goes_on_with(case: &str, next: Option<&str>) -> bool {
    let scheduler = |case: &str| case.split('/').next().map(str::to_owned);
    next.is_some_and(|next| {
        plan::daemon_of(case) == plan::Daemon::Shared
            && plan::daemon_of(next) != plan::Daemon::Own
            && scheduler(case) == scheduler(next)
    })
}

fn tell(event: &Event) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", event.line())
        .and_then(|()| out.flush())
        .context("telling the host")
}

/// Runs a case, with the daemon that those before it have used if it is one of them, and leaves it to the next.
fn run_one(
    topology: &str,
    case: &str,
    next: Option<&str>,
    lent: &mut Option<Daemon>,
) -> Result<Outcome> {
    let started = Instant::now();
    let mut log = Log::open()?;
    let shares = plan::daemon_of(case) != plan::Daemon::Own;
    if shares && lent.is_none() {
        match Daemon::to_lend(&crate::setting(topology, case)?) {
            Ok(daemon) => *lent = Some(daemon),
            Err(error) => {
                let cleaned = clean_up(State::read()?.is_loaded());
                let why = format!("{error:#}{}", cleaned.err().unwrap_or_default());
                return Ok(outcome(case, Err(why), "", &log.text(), started));
            }
        }
    }
    let limit = limit_of(case);
    let ran = run_process(topology, case, lent.as_ref(), limit, &mut log)?;
    let verdict = judge(ran.ended, &ran.said, limit);
    let left = leave(case, next, lent, &ran, verdict.is_ok());
    let complaints = log.complaints(may_stall(case));
    let verdict = verdict
        .and_then(|()| {
            if complaints.is_empty() {
                Ok(())
            } else {
                Err(format!("the kernel complained: {}", complaints.join("; ")))
            }
        })
        .and(left)
        .map(|()| ran.found.trim().to_owned());
    let kernel = format!("{}{}", log.text().trim_end(), ran.why_it_hung);
    Ok(outcome(case, verdict, &ran.said, &kernel, started))
}

fn outcome(
    case: &str,
    verdict: Result<String, String>,
    said: &str,
    kernel: &str,
    started: Instant,
) -> Outcome {
    Outcome {
        case: case.to_owned(),
        ok: verdict.is_ok(),
        output: match &verdict {
            Ok(_) => String::new(),
            Err(_) => format!(
                "--- the case and its schedulers said\n{}\n--- the kernel said\n{kernel}",
                said.trim_end()
            ),
        },
        message: verdict.unwrap_or_else(|why| why),
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// What has become of a case's process.
struct Ran {
    /// None if it had to be killed.
    ended: Option<ExitStatus>,
    found: String,
    said: String,
    why_it_hung: String,
    /// A scheduler was loaded when it ended.
    loaded: bool,
}

fn run_process(
    topology: &str,
    case: &str,
    lent: Option<&Daemon>,
    limit: Duration,
    log: &mut Log,
) -> Result<Ran> {
    let [found_path, said_path] = ["found", "said"].map(|name| format!("/tmp/case-{name}"));
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command
        .args(["case", topology, case])
        .stdin(std::process::Stdio::null())
        .stdout(File::create(&found_path).context("creating a file for the result")?)
        .stderr(File::create(&said_path).context("creating a file for the output")?)
        .process_group(0);
    if let Some(daemon) = lent {
        daemon.lend_to(&mut command);
    }
    let mut child = command.spawn().context("starting a case")?;
    let group = Pid::from_child(&child);
    let ended = ended_within(&mut child, limit)?;
    let mut why_it_hung = match ended {
        Some(_) => String::new(),
        None => crate::kernel::why_it_hangs(log),
    };
    let loaded = State::read().is_ok_and(|state| state.is_loaded());
    // Whatever the case left running.
    let _ = kill_process_group(group, Signal::KILL);
    if ended_within(&mut child, CLEAN_UP)?.is_none() {
        why_it_hung += "\n--- it can't even be killed";
    }
    Ok(Ran {
        ended,
        found: fs::read_to_string(&found_path).unwrap_or_default(),
        said: fs::read_to_string(&said_path).unwrap_or_default(),
        why_it_hung,
        loaded,
    })
}

/// How it ended; none if it has not by then.
fn ended_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        let ended = child.try_wait().context("waiting for a case")?;
        if ended.is_some() || started.elapsed() > limit {
            return Ok(ended);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sees to it that the next case finds the machine as it has to be: with the lent daemon at work, or with no scheduler.
fn leave(
    case: &str,
    next: Option<&str>,
    lent: &mut Option<Daemon>,
    ran: &Ran,
    passed: bool,
) -> Result<(), String> {
    let in_words = |error: anyhow::Error| format!("after the case: {error:#}");
    if let Some(daemon) = lent {
        if passed && goes_on_with(case, next) {
            let alive = daemon.check_alive().map_err(in_words);
            if alive.is_err() {
                // The next starts one anew.
                drop(lent.take());
                let _ = clean_up(true);
            }
            return alive;
        }
        if passed && plan::daemon_of(case) == plan::Daemon::Shared {
            return lent.take().map_or(Ok(()), Daemon::stop).map_err(in_words);
        }
        // Ended by the case, or to be ended because the case failed.
        drop(lent.take());
        if !passed {
            let _ = clean_up(true);
            return Ok(());
        }
    }
    clean_up(ran.loaded)
}

/// Whether a case, `NAME` or `SCHEDULER/NAME`, ends with its scheduler thrown out.
fn may_stall(case: &str) -> bool {
    if plan::THROWN_OUT.contains(&case) {
        return true;
    }
    case.split_once('/').is_some_and(|(scheduler, name)| {
        plan::STALLING.contains(&name)
            && plan::scheduler_named(scheduler).is_some_and(|scheduler| scheduler.by_daemon)
    })
}

fn has_virtual_clock() -> bool {
    std::env::var_os(plan::VIRTUAL_CLOCK).is_some()
}

fn limit_of(case: &str) -> Duration {
    if has_virtual_clock() {
        // The host has its own limit.
        return Duration::MAX;
    }
    plan::limit_of(case, online().map_or(1, |cpus| cpus.len()))
}

/// The case's last line says what is wrong.
fn judge(ended: Option<ExitStatus>, said: &str, limit: Duration) -> Result<(), String> {
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(said.lines().last().map_or_else(
            || format!("the case ended with {status}"),
            |line| {
                if status.code() == Some(1) {
                    line.to_owned()
                } else {
                    format!("the case ended with {status}: {line}")
                }
            },
        )),
        None => Err(format!("the case did not end within {} s", limit.as_secs())),
    }
}

/// Waits until no scheduler is loaded. A case that ends well has seen to that itself.
fn clean_up(loaded: bool) -> Result<(), String> {
    if !loaded {
        return Ok(());
    }
    let deadline = Instant::now() + CLEAN_UP;
    while Instant::now() < deadline {
        if State::read().is_ok_and(|state| !state.is_loaded()) {
            return Err("the case left a scheduler loaded".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // SysRq-S: back to the kernel's own scheduler, whatever happens.
    let _ = fs::write("/proc/sysrq-trigger", "S");
    Err("a scheduler stays loaded though its daemon is gone".into())
}
