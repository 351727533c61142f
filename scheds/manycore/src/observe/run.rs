//! The three ways to run the meter: for a time, while a command runs, or live.

use std::fs;
use std::io::{IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::ObserveArgs;
use super::meter::Config;
use super::report::Report;
use super::session::Session;
use super::table;

/// How often the rings are emptied.
const DRAIN: Duration = Duration::from_millis(50);
/// How long a period of the waste's computation is, where nobody waits for its result: bounds memory.
const PERIOD: Duration = Duration::from_secs(1);

/// Runs `manycore observe`.
///
/// # Errors
/// If the meter can't be loaded here, or the command can't be started, or the output can't be written.
pub(crate) fn run(args: &ObserveArgs) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    // Which of these, or 0: that is for the command, too.
    let told = Arc::new(AtomicUsize::new(0));
    let handled = || -> std::io::Result<()> {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&stop))?;
        }
        for signal in [SIGTERM, SIGHUP] {
            flag::register_usize(signal, Arc::clone(&told), signal as usize)?;
        }
        Ok(())
    };
    handled().context("can't handle signals")?;

    let config = Config {
        by: args.by,
        locks: args.locks,
        cost: args.cost,
        min_span_ns: args.min_span_us * 1000,
        ring_bytes: args.ring_mib << 20,
    };
    let mut object = MaybeUninit::uninit();
    let mut session = Session::begin(&mut object, config, args.transient_us * 1000)?;

    if !args.command.is_empty() {
        return during_command(args, &mut session, &told);
    }
    match args.duration {
        Some(seconds) => {
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            measure(&mut session, |left| {
                std::thread::sleep(left.min(end.saturating_duration_since(Instant::now())));
                Ok(Instant::now() >= end || stop.load(Ordering::Relaxed))
            })?;
            finish(args, &mut session)?;
        }
        None => live(args, &mut session, &stop)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps the rings empty until `wait`, which is given how long it may sleep, says that it's over.
fn measure(
    session: &mut Session<'_>,
    mut wait: impl FnMut(Duration) -> Result<bool>,
) -> Result<()> {
    let mut period = Instant::now();
    while !wait(DRAIN)? {
        if period.elapsed() >= PERIOD {
            session.close_period(false)?;
            period = Instant::now();
        } else {
            session.drain()?;
        }
    }
    Ok(())
}

/// Ends the measurement and prints its report.
fn finish(args: &ObserveArgs, session: &mut Session<'_>) -> Result<()> {
    let samples = session.close_period(true)?;
    print(args, &session.report(&samples)?)
}

/// Ctrl-C reaches the command too; other signals, which `told` has the number of, are passed on. This process then waits for
/// its end as usual.
fn during_command(
    args: &ObserveArgs,
    session: &mut Session<'_>,
    told: &AtomicUsize,
) -> Result<ExitCode> {
    let (program, rest) = args.command.split_first().context("no command")?;
    let mut child = Command::new(program)
        .args(rest)
        .spawn()
        .with_context(|| format!("can't start {}", program.to_string_lossy()))?;
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("the command has no pid")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("can't watch the command")?;
    let watched = measure(session, |left| {
        if let Some(signal) = Signal::from_named_raw(told.swap(0, Ordering::Relaxed) as i32) {
            // It may have ended in this moment.
            let _ = pidfd_send_signal(&pidfd, signal);
        }
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(left).context("bad timeout")?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error).context("can't wait for the command"),
        }
    });
    // Close the period before the command is reaped: what comes later isn't its doing.
    let reported = watched.and_then(|()| finish(args, session));
    let status = reap(&mut child)?;
    reported?;
    Ok(exit_code(status))
}

fn reap(child: &mut Child) -> Result<ExitStatus> {
    child.wait().context("can't wait for the command")
}

/// What a shell would exit with.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|n| 128 + n));
    ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}

/// Shows the last interval until Ctrl-C, on a terminal always in the same place.
fn live(args: &ObserveArgs, session: &mut Session<'_>, stop: &AtomicBool) -> Result<()> {
    let interval = Duration::from_secs_f64(args.interval);
    let redraw = std::io::stdout().is_terminal() && !args.json && args.output.is_none();
    let mut before = session.first().clone();
    while !stop.load(Ordering::Relaxed) {
        let end = Instant::now() + interval;
        measure(session, |left| {
            std::thread::sleep(left.min(end.saturating_duration_since(Instant::now())));
            Ok(Instant::now() >= end || stop.load(Ordering::Relaxed))
        })?;
        let samples = session.close_period(true)?;
        let now = session.snapshot()?;
        let report = session.report_since(&before, &now, &samples)?;
        if redraw {
            // Home, and clear from there to the end.
            let mut out = std::io::stdout().lock();
            write!(out, "\x1b[H\x1b[2J").context("can't write to the terminal")?;
        }
        print(args, &report)?;
        before = now;
    }
    Ok(())
}

fn print(args: &ObserveArgs, report: &Report) -> Result<()> {
    let text = if !args.json {
        table::render(report)
    } else if args.duration.is_none() && args.command.is_empty() {
        serde_json::to_string(report)? + "\n"
    } else {
        serde_json::to_string_pretty(report)? + "\n"
    };
    match &args.output {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
        }
        None => std::io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .context("can't write to stdout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(raw: i32) -> String {
        format!("{:?}", exit_code(ExitStatus::from_raw(raw)))
    }

    #[test]
    fn exit_codes_are_passed_on_as_a_shell_does() {
        let expect = |n: u8| format!("{:?}", ExitCode::from(n));
        assert_eq!(code(0), expect(0));
        assert_eq!(code(3 << 8), expect(3));
        assert_eq!(code(9), expect(137));
    }
}
