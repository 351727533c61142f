//! One guest, from its boot to its end: runs the cases that it was booted for.

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Failed;
use manycore_tests::boot::{Space, need_kernel};
use manycore_tests::plan::{self, Guest, VIRTUAL_CLOCK};
use manycore_tests::report::{Event, Outcome};
use manycore_tests::results::{NOT_RUN, Record};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a case went: what is said of it in any case, and whether it passed.
pub struct Told {
    pub line: Option<String>,
    pub result: Result<(), Failed>,
}

impl Told {
    /// It can't be told how it went, and why.
    pub fn broken(why: String) -> Self {
        Self {
            line: None,
            result: Err(why.into()),
        }
    }
}

/// A guest, booted when its first case is due.
pub struct Booted {
    guest: &'static Guest,
    /// Its cases that are to run.
    selected: Vec<String>,
    state: State,
    /// How often QEMU itself has failed in booting it.
    crashes: u32,
}

/// QEMU 10.0.2 fails now and then in an assertion about a device's interrupts when several vCPUs boot on a busy host
/// (`msix_table_mmio_write`), or its guest never comes up. No scheduler was loaded by then, so that says nothing of what
/// is tested: so many times, the guest is booted again. So it is for a crash that only an emulator can cause.
const CRASHES_MAX: u32 = 2;

/// The kernel changes its code while other CPUs run it, by way of breakpoints. An emulated CPU may hit one that the kernel
/// has taken away already, and takes that for a crash (seen on 7.3 while a scheduler was loaded, which changes much
/// code). A real CPU can't, and no BPF program can set a breakpoint.
const STALE_BREAKPOINT: &str = "(int3: ";
/// What xtask says if all CPUs have halted and not even the kernel's timers wake them: no scheduler can do that.
const STOOD_STILL: &str = "the emulated CPUs stood still";

enum State {
    NotYet,
    Up(Box<Running>),
    /// It can't run any more cases, and why.
    Down(String),
}

struct Running {
    space: Space,
    child: Child,
    events: Receiver<Event>,
    errors: JoinHandle<String>,
    /// The guest has said something.
    heard: bool,
}

impl Booted {
    pub fn new(guest: &'static Guest, selected: Vec<String>) -> Self {
        Self {
            guest,
            selected,
            state: State::NotYet,
            crashes: 0,
        }
    }

    /// How a case went. They are to be asked for in the order in which they were selected.
    pub fn told(&mut self, case: &str) -> Told {
        loop {
            let mut line = None;
            match self.try_result(case, &mut line) {
                Err(why) if matches!(self.state, State::NotYet) => {
                    let why = why.message().unwrap_or_default();
                    eprintln!("{} crashed by itself, so again: {why}", self.guest.name());
                }
                result => return Told { line, result },
            }
        }
    }

    /// Its result, but with nothing booted afterwards if it is worth another try.
    fn try_result(&mut self, case: &str, line: &mut Option<String>) -> Result<(), Failed> {
        if let State::NotYet = self.state {
            let left = self.selected.iter().position(|one| one == case);
            let left = &self.selected[left.unwrap_or(0)..];
            self.state = match Running::boot(self.guest, left) {
                Ok(running) => State::Up(Box::new(running)),
                Err(error) => State::Down(format!("{error:#}")),
            };
        }
        let outcome = match &mut self.state {
            State::Up(running) => running.wait_for(case, self.guest, self.crashes),
            State::Down(why) => return Err(why.as_str().into()),
            State::NotYet => unreachable!("it was just booted"),
        };
        let heard = matches!(&self.state, State::Up(running) if running.heard);
        let last = self.selected.last().is_some_and(|last| last == case);
        let ended = if last || outcome.is_err() {
            self.shut_down()
        } else {
            Ok(())
        };
        let told = match &outcome {
            Ok(outcome) => Ok(outcome.clone()),
            // What happens while it boots says nothing of the case.
            Err(error) if !heard => Err(format!("{NOT_RUN}{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        if let Err(error) = Record::new(self.guest, case, &told).keep() {
            eprintln!("the result is not kept: {error:#}");
        }
        if let Ok(outcome) = &outcome {
            *line = Some(format!("{} ({:.1} s)", outcome.message, outcome.seconds));
        }
        match outcome {
            Ok(outcome) if outcome.ok => {
                Ok(ended.map_err(|error| format!("after the last case: {error:#}"))?)
            }
            Ok(outcome) => {
                Err(format!("{}\n{}", outcome.message, outcome.output.trim_end()).into())
            }
            Err(error) => {
                let why = match ended {
                    Ok(()) => format!("{error:#}"),
                    Err(end) => format!("{error:#}: {end:#}"),
                };
                let own_fault = !heard
                    || why.contains(STALE_BREAKPOINT)
                    || why.contains(STOOD_STILL)
                    || (why.contains(SILENT) && !plan::loads_a_scheduler(case));
                self.state = if own_fault && self.crashes < CRASHES_MAX {
                    self.crashes += 1;
                    State::NotYet
                } else {
                    State::Down(format!("{NOT_RUN}in {case}, {why}"))
                };
                Err(why.into())
            }
        }
    }

    /// Waits for the guest's end, which is due.
    fn shut_down(&mut self) -> Result<()> {
        let down = State::Down("the guest has ended".into());
        let State::Up(running) = std::mem::replace(&mut self.state, down) else {
            return Ok(());
        };
        running.end()
    }
}

/// How long a case may take, seen from here: a boot may come first, and the guest has its own limit.
fn limit_of(case: &str, guest: &Guest) -> Duration {
    silence_limit(guest, CRASHES_MAX) + plan::limit_of(case, guest.cpus()) + Duration::from_secs(60)
}

/// What is said of a guest that says nothing any more.
const SILENT: &str = "the guest says nothing";

/// How long a guest may say nothing, at the first try and at each of those after. Most that are silent for so long never
/// come up: on two cores one of 8 CPUs takes 10 s, three times that beside others. Each further try is given twice the time.
/// Once it is up, it says that it is alive every 5 s, so one that is silent as long as the first boot may take has hung, with
/// whatever it ran: the kernel itself throws out a scheduler that lets a task wait for 30 s.
fn silence_limit(guest: &Guest, tries: u32) -> Duration {
    let slowness = if guest.virtual_clock { 3 } else { 1 };
    Duration::from_secs(slowness * (70 + 2 * guest.cpus() as u64)) * 2u32.pow(tries)
}

impl Running {
    fn boot(guest: &Guest, cases: &[String]) -> Result<Self> {
        need_kernel(guest.kernel)?;
        let space = Space::new()?;
        let total: u64 = cases
            .iter()
            .map(|case| limit_of(case, guest).as_secs())
            .sum();
        let timeout = total.to_string();
        let mut command = space.xtask(["vm", "run", "--kernel", guest.kernel])?;
        command.args(["--topology", guest.topology, "--timeout", &timeout]);
        // Killed tests leave no guest.
        command.arg("--with-parent");
        if guest.virtual_clock {
            let mark = format!("{VIRTUAL_CLOCK}=1");
            command.args(["--clock", "virtual", "--", "env", &mark]);
        } else {
            command.arg("--");
        }
        command
            .arg(env!("CARGO_BIN_EXE_manycore-guest"))
            .args(["run", guest.topology])
            .args(cases);
        let started = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting xtask")?;
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        let mut stderr = child.stderr.take().context("a pipe was asked for")?;
        let (sender, events) = channel();
        let name = guest.name();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match Event::parse(&line) {
                    // Nobody waits any more: read on all the same, so that the guest isn't blocked.
                    Some(event) => drop(sender.send(event)),
                    None => eprintln!("{name}: {line}"),
                }
            }
        });
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        eprintln!(
            "booting {} (xtask up after {} ms)",
            guest.name(),
            started.elapsed().as_millis()
        );
        Ok(Self {
            space,
            child,
            events,
            errors,
            heard: false,
        })
    }

    /// The outcome of a case. An error if the guest ends or says nothing for too long.
    fn wait_for(&mut self, case: &str, guest: &Guest, tries: u32) -> Result<Outcome> {
        let started = Instant::now();
        let mut heard_at = started;
        loop {
            let silence = match (self.heard, guest.virtual_clock) {
                (false, _) => silence_limit(guest, tries),
                (true, false) => silence_limit(guest, 0),
                // It isn't asked to say that it is alive.
                (true, true) => limit_of(case, guest),
            };
            let due = (heard_at + silence).min(started + limit_of(case, guest));
            let event = self
                .events
                .recv_timeout(due.saturating_duration_since(Instant::now()));
            if event.is_ok() {
                heard_at = Instant::now();
            }
            match event {
                Ok(Event::End(outcome)) if outcome.case == case => {
                    self.heard = true;
                    return Ok(outcome);
                }
                Ok(_) => self.heard = true,
                Err(RecvTimeoutError::Disconnected) => bail!("the guest died"),
                Err(RecvTimeoutError::Timeout) => {
                    self.interrupt();
                    let silent = heard_at.elapsed();
                    ensure!(silent < silence, "{SILENT} for {} s", silent.as_secs());
                    bail!(
                        "the case did not end within {} s",
                        started.elapsed().as_secs()
                    )
                }
            }
        }
    }

    fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended in this moment.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// Waits for xtask to end, which it must do well and leave nothing.
    fn end(mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.child.try_wait().context("waiting for xtask")? {
                break status;
            }
            if Instant::now() > deadline {
                self.interrupt();
                let _ = self.child.wait();
                bail!("the guest did not end by itself");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let errors = self.errors.join().unwrap_or_default();
        ensure!(
            status.success(),
            "`xtask vm run` ended with {status}: {}",
            errors.trim_end()
        );
        self.space.check_clean()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // A filter that changed its mind, or a panic above: leave no guest behind.
        if let State::Up(running) = &mut self.state {
            running.interrupt();
            let _ = running.child.wait();
        }
    }
}
