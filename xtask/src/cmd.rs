//! Other programs, run so that their failure says what was run and what it printed.

use crate::cache::Cache;
use crate::interrupt;
use crate::ui::Step;
use anyhow::{Context, Result, bail};
use std::fmt::{self, Write as _};
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A command as a user would type it, for messages.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let _ = write!(text, " {}", arg.to_string_lossy());
    }
    text
}

/// Runs a command to its end and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running `{}`", shown(command)))?;
    if !done.status.success() {
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a long command; its output is shown as a moving detail of the step. If it fails, the error is the one line of
/// it that says why, and the path of a log with all of it. A signal ends the command, with all that it started.
pub fn run(step: &Step, command: &mut Command) -> Result<()> {
    let _held = interrupt::hold()?;
    // sudo asks for a password on the terminal, which only the foreground group may read.
    let group = command.get_program() != "sudo";
    if group {
        command.process_group(0);
    }
    let (reader, writer) = io::pipe().context("making a pipe")?;
    let text = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cloning a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("running `{text}`"))?;
    let watch = interrupt::Watch::over(&child, group);
    // The command still holds the write ends; the reader must not wait for those.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut output = String::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.with_context(|| format!("reading the output of `{text}`"))?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        step.detail(line.trim().get(..60).unwrap_or(line.trim()));
        output.push_str(line);
        output.push('\n');
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{text}`"))?;
    drop(watch);
    interrupt::check()?;
    if status.success() {
        return Ok(());
    }
    let log = Cache::open().and_then(|cache| cache.keep_log("command", &output));
    let log = log.map_or_else(
        |_| String::new(),
        |path| format!(" (all of its output: {})", path.display()),
    );
    let error = format!("`{text}` failed: {}{log}", reason(&output));
    if output.contains(FULL_DISK) {
        return Err(FullDisk(error).into());
    }
    bail!(error)
}

/// What `strerror(ENOSPC)` says; commands are run in the C locale where it matters.
const FULL_DISK: &str = "No space left on device";

/// A command failed because the disk that it wrote to is full.
#[derive(Debug)]
struct FullDisk(String);

impl fmt::Display for FullDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FullDisk {}

/// Whether it was a full disk that made this process or a command fail.
pub fn is_full_disk(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<FullDisk>()
            || cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
    })
}

/// Says what failed that uses the network, and asks for one unless the reason is another.
pub fn over_network<T>(result: Result<T>, what: &str) -> Result<T> {
    result.map_err(|error| {
        if is_full_disk(&error) {
            error.context(what.to_owned())
        } else {
            error.context(format!("{what} (is there a network?)"))
        }
    })
}

/// The line that says why: the first one that calls itself an error, else the last.
fn reason(output: &str) -> &str {
    let lines = || {
        output
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let is_error = |line: &&str| {
        let line = line.to_lowercase();
        line.starts_with("e:") || line.contains("error:") || line.contains("error ")
    };
    lines()
        .find(is_error)
        .or_else(|| lines().next_back())
        .unwrap_or("it printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_says_why_in_one_line() {
        let step = Step::start("test");
        let error = run(
            &step,
            Command::new("sh").args(["-c", "echo fine; echo E: no network >&2; echo bye; exit 3"]),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("failed: E: no network"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let step = Step::start("test");
        let fails = |why: &str| {
            let script = format!("echo 'Err:1 {why}'; exit 100");
            run(&step, Command::new("sh").args(["-c", &script])).unwrap_err()
        };
        let full = fails("Error writing to file - write (28: No space left on device)");
        assert!(is_full_disk(&full.context("the download failed")));
        assert!(!is_full_disk(&fails("Could not resolve host")));
        let written = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(is_full_disk(
            &anyhow::Error::from(written).context("writing")
        ));
    }

    #[test]
    fn without_an_error_line_the_last_one_is_the_reason() {
        assert_eq!(reason("a\nb\n\n"), "b");
        assert_eq!(reason(""), "it printed nothing");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("no-such-program")).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program"));
    }
}
