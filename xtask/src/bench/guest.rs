//! Inside the guest: carries out a plan and reports each step to the host as it happens.

use super::event::{Done, Event, Machine};
use super::force::{self, Loaded, State};
use super::order::OBSERVED;
use super::plan::{Plan, Purpose, Run, Scheduler, Turn};
use super::provision::{Home, provision, quieten};
use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A multiple of every tick rate's period, and of the load balancer's intervals.
const BEAT: Duration = Duration::from_millis(512);
/// The kernel's load averages halve every 32 ms.
const SETTLE: Duration = Duration::from_millis(512);
/// Of a run's output.
const OUTPUT_MAX: usize = 4 * 1024 * 1024;

/// Reads the plan from stdin, writes events to stdout.
pub fn run() -> Result<()> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("reading the plan")?;
    let plan: Plan = serde_json::from_str(&text).context("understanding the plan")?;
    quieten();
    let home = provision(&plan)?;
    std::env::set_current_dir(&home.dir)
        .with_context(|| format!("going to {}", home.dir.display()))?;
    report(&Event::Machine(machine()))?;
    let mut out = HashSet::new();
    for turn in &plan.turns {
        let scheduler = plan
            .scheduler(&turn.scheduler)
            .with_context(|| format!("the plan has no scheduler {}", turn.scheduler))?;
        if out.contains(&scheduler.name) {
            continue;
        }
        match take_turn(scheduler, turn, &home)? {
            After::GoOn => {}
            After::LeaveOut => {
                out.insert(scheduler.name.clone());
            }
            After::Stop => break,
        }
    }
    report(&Event::End)
}

fn report(event: &Event) -> Result<()> {
    let mut line = serde_json::to_string(event).context("writing an event")?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(line.as_bytes())
        .and_then(|()| stdout.flush())
        .context("reporting to the host")
}

/// What to do after a turn.
#[derive(Debug, PartialEq, Eq)]
enum After {
    GoOn,
    /// The scheduler gets no other turn.
    LeaveOut,
    /// The clock can't be trusted.
    Stop,
}

fn take_turn(scheduler: &Scheduler, turn: &Turn, home: &Home) -> Result<After> {
    let name = || scheduler.name.clone();
    let mut loaded = match Loaded::load(scheduler) {
        Ok(loaded) => loaded,
        Err(why) => {
            report(&Event::NotLoaded {
                scheduler: name(),
                why,
            })?;
            return Ok(After::LeaveOut);
        }
    };
    report(&Event::Loaded {
        scheduler: name(),
        ops: State::read().ops,
    })?;
    for run in &turn.runs {
        report(&Event::Started { run: run.id })?;
        let done = perform(scheduler, run, home);
        let distrust = run.purpose == Purpose::Check && done.code != Some(0);
        report(&Event::Done(done))?;
        if distrust {
            return Ok(After::Stop);
        }
        if let Some(why) = loaded.ended() {
            report(&Event::Ejected {
                scheduler: name(),
                why,
            })?;
            return Ok(After::LeaveOut);
        }
    }
    match loaded.unload() {
        Ok(()) => {
            report(&Event::Unloaded { scheduler: name() })?;
            Ok(After::GoOn)
        }
        Err(why) => {
            report(&Event::Ejected {
                scheduler: name(),
                why,
            })?;
            Ok(After::LeaveOut)
        }
    }
}

fn perform(scheduler: &Scheduler, run: &Run, home: &Home) -> Done {
    settle(run);
    let before = State::read();
    let started = Instant::now();
    let result = output_of(&run.command, home);
    let seconds = started.elapsed().as_secs_f64();
    let after = State::read();
    let (code, output) = result.unwrap_or_else(|error| (None, format!("{error:#}")));
    Done {
        run: run.id,
        code,
        output,
        observed: observed(run),
        seconds,
        lapse: force::lapse(scheduler, &before, &after),
    }
}

/// Makes the start of a run depend as little as possible on what came before, which may depend on the host, as that serves
/// the guest's files: the machine idles until its load averages have decayed, the workload starts from the first CPU, and at
/// an offset from a beat that comes from the seed.
fn settle(run: &Run) {
    let here = sched_getaffinity(None);
    let mut first = CpuSet::new();
    first.set(0);
    // Where this isn't possible, the start is only less alike.
    let _ = sched_setaffinity(None, &first);
    let rest = SETTLE + until_beat(since_boot() + SETTLE);
    std::thread::sleep(rest + Duration::from_micros(run.offset_us));
    if let Ok(here) = here {
        let _ = sched_setaffinity(None, &here);
    }
}

/// How long until the clock reads a multiple of [`BEAT`].
fn until_beat(now: Duration) -> Duration {
    let into = now.as_nanos() % BEAT.as_nanos();
    BEAT - Duration::from_nanos(into as u64)
}

/// What the kernel's ticks are counted by.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

/// What `manycore observe` wrote, if it was asked to.
fn observed(run: &Run) -> Option<serde_json::Value> {
    if !run.command.iter().any(|word| word == OBSERVED) {
        return None;
    }
    let text = fs::read_to_string(OBSERVED).ok()?;
    // A later run's must not be taken for this one's.
    let _ = fs::remove_file(OBSERVED);
    serde_json::from_str(&text).ok()
}

/// The exit code and both streams of a command.
fn output_of(command: &[String], home: &Home) -> Result<(Option<i32>, String)> {
    let (program, args) = command.split_first().context("an empty command")?;
    let (mut reader, writer) = std::io::pipe().context("making a pipe")?;
    let mut command = Command::new(program);
    // The program is looked up in this PATH.
    command
        .args(args)
        // A terminal's width or a locale must not change what is printed.
        .env("LC_ALL", "C")
        .env("PATH", &home.path)
        .env("LD_LIBRARY_PATH", &home.libraries)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cloning a pipe")?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    // It holds the write ends, which would keep the reader from seeing the end.
    drop(command);
    let mut output = Vec::new();
    reader
        .read_to_end(&mut output)
        .with_context(|| format!("reading the output of {program}"))?;
    let status = child
        .wait()
        .with_context(|| format!("waiting for {program}"))?;
    output.truncate(OUTPUT_MAX);
    Ok((status.code(), String::from_utf8_lossy(&output).into_owned()))
}

fn machine() -> Machine {
    let read =
        |path: &str| fs::read_to_string(path).map_or(String::new(), |text| text.trim().to_owned());
    let names = |dir: &str| -> Vec<String> {
        fs::read_dir(dir).map_or(Vec::new(), |entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect()
        })
    };
    let numbered = |dir: &str, prefix: &str| {
        names(dir)
            .iter()
            .filter(|name| {
                name.strip_prefix(prefix)
                    .is_some_and(|rest| rest.parse::<usize>().is_ok())
            })
            .count()
    };
    const DEBUG: &str = "/sys/kernel/debug/sched";
    Machine {
        release: read("/proc/sys/kernel/osrelease"),
        cmdline: read("/proc/cmdline"),
        cpus: numbered("/sys/devices/system/cpu", "cpu"),
        nodes: numbered("/sys/devices/system/node", "node"),
        smt: read("/sys/devices/system/cpu/smt/active") == "1",
        governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        sched_debug: names(DEBUG)
            .into_iter()
            // A full dump of all runqueues.
            .filter(|name| name != "debug")
            .map(|name| {
                let value = read(&format!("{DEBUG}/{name}"));
                (name, value)
            })
            .filter(|(_, value)| !value.is_empty() && value.len() < 2000)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        Home {
            path: std::env::var_os("PATH").unwrap_or_default(),
            libraries: "/nonexistent".into(),
            dir: "/tmp".into(),
        }
    }

    #[test]
    fn both_streams_and_the_code_are_kept() {
        let words = ["sh", "-c", "echo out; echo err >&2; exit 3"].map(String::from);
        let (code, output) = output_of(&words, &home()).unwrap();
        assert_eq!((code, output.as_str()), (Some(3), "out\nerr\n"));
    }

    #[test]
    fn the_beat_is_met() {
        let ms = Duration::from_millis;
        assert_eq!(until_beat(ms(1_024)), BEAT);
        assert_eq!(until_beat(ms(1_030)), ms(506));
    }

    #[test]
    fn a_signal_is_no_exit_code() {
        let words = ["sh", "-c", "kill -9 $$"].map(String::from);
        assert_eq!(output_of(&words, &home()).unwrap().0, None);
        assert!(output_of(&["no-such-program".to_owned()], &home()).is_err());
    }
}
