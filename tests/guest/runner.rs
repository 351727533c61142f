//! Runs cases one after the other and reports each. A case is a process group of its own, so that one that hangs or
//! dies takes nothing with it; after each, the machine must be as it was before.

use crate::daemon::State;
use crate::kernel::Log;
use anyhow::{Context, Result};
use manycore_tests::plan;
use manycore_tests::report::{Event, Outcome};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// For the kernel to take a scheduler out whose daemon is gone.
const CLEAN_UP: Duration = Duration::from_secs(20);

pub(crate) fn run(topology: &str, cases: &[&str]) -> Result<()> {
    for case in cases {
        tell(&Event::Start {
            case: (*case).to_owned(),
        })?;
        tell(&Event::End(run_one(topology, case)?))?;
    }
    Ok(())
}

fn tell(event: &Event) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", event.line())
        .and_then(|()| out.flush())
        .context("telling the host")
}

fn run_one(topology: &str, case: &str) -> Result<Outcome> {
    let started = Instant::now();
    let mut log = Log::open()?;
    let [found_path, said_path] = ["found", "said"].map(|name| format!("/tmp/case-{name}"));
    let mut child = Command::new(std::env::current_exe().context("finding this program")?)
        .args(["case", topology, case])
        .stdin(std::process::Stdio::null())
        .stdout(File::create(&found_path).context("creating a file for the result")?)
        .stderr(File::create(&said_path).context("creating a file for the output")?)
        .process_group(0)
        .spawn()
        .context("starting a case")?;
    let group = Pid::from_child(&child);
    let limit = limit_of(case);
    let ended = loop {
        if let Some(status) = child.try_wait().context("waiting for a case")? {
            break Some(status);
        }
        if started.elapsed() > limit {
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let seconds = started.elapsed().as_secs_f64();
    let state = State::read();
    let hung = ended
        .is_none()
        .then(|| crate::kernel::why_it_hangs(&mut log));
    // Whatever the case left running.
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
    let found = fs::read_to_string(&found_path).unwrap_or_default();
    let said = fs::read_to_string(&said_path).unwrap_or_default();
    let cleaned = clean_up(state.as_ref().is_ok_and(State::is_loaded));
    let complaints = log.complaints(may_stall(case));
    let verdict = judge(ended, &said, limit)
        .and_then(|()| {
            if complaints.is_empty() {
                Ok(())
            } else {
                Err(format!("the kernel complained: {}", complaints.join("; ")))
            }
        })
        .and(cleaned);
    let output = match &verdict {
        Ok(()) => String::new(),
        Err(_) => format!(
            "--- the case and its schedulers said\n{}\n--- the kernel said\n{}{}",
            said.trim_end(),
            log.text().trim_end(),
            hung.unwrap_or_default()
        ),
    };
    Ok(Outcome {
        case: case.to_owned(),
        ok: verdict.is_ok(),
        message: match verdict {
            Ok(()) => found.trim().to_owned(),
            Err(why) => why,
        },
        output,
        seconds,
    })
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

fn limit_of(case: &str) -> Duration {
    if std::env::var_os(plan::VIRTUAL_CLOCK).is_some() {
        // The host has its own limit.
        return Duration::MAX;
    }
    let name = case.rsplit('/').next().unwrap_or(case);
    Duration::from_secs(plan::case(name).map_or(60, |case| case.limit_s))
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
