//! `cargo xtask vm run` as a user sees it: exit codes, streams, and that nothing is left, however a guest ends. Each case
//! boots a small guest, or two.

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use manycore_tests::boot::{Space, finish, finish_child, guests_at_a_time, need_kernel};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const KERNEL: &str = "6.12";
/// For a guest that is to end by itself.
const LIMIT: Duration = Duration::from_secs(400);

type Case = fn(&Space) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("passes_streams_and_code_on", passes_streams_and_code_on),
    ("ends_at_the_timeout", ends_at_the_timeout),
    ("reports_a_kernel_panic", reports_a_kernel_panic),
    ("ends_at_an_interrupt", ends_at_an_interrupt),
    ("ends_with_its_parent", ends_with_its_parent),
    (
        "clears_what_a_killed_one_left",
        clears_what_a_killed_one_left,
    ),
    (
        "boots_again_if_the_emulator_fails",
        boots_again_if_the_emulator_fails,
    ),
    ("runs_two_at_once", runs_two_at_once),
    ("ends_if_its_cpus_stand_still", ends_if_its_cpus_stand_still),
];
/// In the full set only: it waits for more than a minute.
const FULL: &[&str] = &["ends_if_its_cpus_stand_still"];

fn main() -> Result<()> {
    let mut args = Arguments::from_args();
    // Each has a guest at a time, but for the one that is about two.
    args.test_threads = Some(guests_at_a_time()?);
    let trials = CASES
        .iter()
        .map(|(name, case)| {
            Trial::test(format!("vm_run/{name}"), move || {
                run(*case).map_err(|error| Failed::from(format!("{error:#}")))
            })
            .with_ignored_flag(FULL.contains(name))
        })
        .collect();
    libtest_mimic::run(&args, trials).exit();
}

fn run(case: Case) -> Result<()> {
    need_kernel(KERNEL)?;
    let space = Space::new()?;
    case(&space)?;
    space.check_clean()
}

/// A guest that runs this line of shell.
fn guest(space: &Space, options: &[&str], line: &str) -> Result<Command> {
    let mut command = space.xtask(["vm", "run", "--kernel", KERNEL, "--topology", "t2"])?;
    command.args(options).args(["--", line]);
    Ok(command)
}

fn check_code(output: &Output, code: i32) -> Result<()> {
    ensure!(
        output.status.code() == Some(code),
        "it ended with {}, not with exit code {code}: {}",
        output.status,
        stderr(output)
    );
    Ok(())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn passes_streams_and_code_on(space: &Space) -> Result<()> {
    // More than any pipe or port holds at once, with all byte values.
    let input: Vec<u8> = (0..200_000u32).map(|i| (i * 7 % 251) as u8).collect();
    let path = space.path().join("input");
    fs::write(&path, &input).context("writing the input")?;
    let line = "cat; seq 50000 >&2; exit 37";
    let mut command = guest(space, &[], line)?;
    command.stdin(fs::File::open(&path).context("opening the input")?);
    let output = finish(&mut command, LIMIT)?;
    fs::remove_file(&path).context("removing the input")?;
    check_code(&output, 37)?;
    ensure!(
        output.stdout == input,
        "of {} bytes on standard input, {} came back on standard output{}",
        input.len(),
        output.stdout.len(),
        if input.starts_with(&output.stdout) {
            ""
        } else {
            ", changed"
        }
    );
    let numbers: Vec<_> = (1..=50_000).map(|i| i.to_string()).collect();
    let printed = stderr(&output);
    let other: Vec<_> = printed
        .lines()
        .filter(|line| line.parse::<u32>().is_err())
        .collect();
    ensure!(
        printed.lines().eq(&numbers),
        "standard error is not what the command printed there: {} lines, not {}; others than numbers: {other:?}",
        printed.lines().count(),
        numbers.len()
    );
    Ok(())
}

fn ends_at_the_timeout(space: &Space) -> Result<()> {
    // The boot is part of it: 10 s on two idle cores, three times that beside other guests.
    const TIMEOUT_S: u64 = 45;
    let started = Instant::now();
    let timeout = TIMEOUT_S.to_string();
    let mut command = guest(space, &["--timeout", &timeout], "echo up; sleep 1000")?;
    let output = finish(&mut command, LIMIT)?;
    check_code(&output, 124)?;
    let took = started.elapsed();
    let said = stderr(&output);
    // Each boot has as much time.
    let boots = 1 + said.matches("booting it again").count() as u64;
    ensure!(
        took < Duration::from_secs(boots * TIMEOUT_S + 30),
        "a timeout of {TIMEOUT_S} s took {} s: {said}",
        took.as_secs()
    );
    ensure!(output.stdout == b"up\n", "what it printed before is lost");
    ensure!(
        said.contains("where its CPUs are, look 3: "),
        "it is not said where its CPUs are: {said}"
    );
    check_console(&output, "timeout of 45 s")
}

fn reports_a_kernel_panic(space: &Space) -> Result<()> {
    let mut command = guest(
        space,
        &[],
        "echo before; echo c >/proc/sysrq-trigger; sleep 100",
    )?;
    let output = finish(&mut command, LIMIT)?;
    check_code(&output, 255)?;
    ensure!(
        output.stdout == b"before\n",
        "what it printed before is lost"
    );
    let console = check_console(&output, "panicked");
    ensure!(
        stderr(&output).contains("sysrq triggered crash"),
        "the reason of the panic is not shown: {}",
        stderr(&output)
    );
    console
}

/// The message says what happened and names a file that has the whole console.
fn check_console(output: &Output, what: &str) -> Result<()> {
    let said = stderr(output);
    ensure!(said.contains(what), "it does not say {what:?}: {said}");
    let path = said
        .split_once("console (")
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(path, _)| path)
        .with_context(|| format!("it names no console log: {said}"))?;
    let console = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    ensure!(
        console.contains("Linux version"),
        "{path} is not the guest's console"
    );
    let last = said.trim_end().lines().last().unwrap_or_default().trim();
    ensure!(
        !last.is_empty() && console.contains(last),
        "its last line is not of the console: {last}"
    );
    Ok(())
}

/// Starts a guest and waits until its command runs.
fn start(space: &Space, line: &str) -> Result<Child> {
    wait_until_up(guest(space, &[], &format!("echo up; {line}"))?)
}

/// Starts what boots a guest, and waits until its command says "up".
fn wait_until_up(mut command: Command) -> Result<Child> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting xtask")?;
    let mut first = String::new();
    // The guest prints nothing more, so nothing is lost in the buffer.
    let stdout = child.stdout.as_mut().context("a pipe was asked for")?;
    BufReader::new(stdout)
        .read_line(&mut first)
        .context("reading from the guest")?;
    if first != "up\n" {
        let output = finish_child(child, Duration::from_secs(20))?;
        anyhow::bail!("the guest printed {first:?}: {}", stderr(&output));
    }
    Ok(child)
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    kill_process(Pid::from_child(child), signal).context("signalling xtask")
}

fn ends_at_an_interrupt(space: &Space) -> Result<()> {
    let child = start(space, "sleep 1000")?;
    ensure!(
        space.leftovers().len() >= 3,
        "a running guest should have a folder, a QEMU and a virtiofsd: {:?}",
        space.leftovers()
    );
    signal(&child, Signal::INT)?;
    let output = finish_child(child, Duration::from_secs(90))?;
    check_code(&output, 130)?;
    check_console(&output, "interrupted")
}

fn ends_with_its_parent(space: &Space) -> Result<()> {
    let run = guest(space, &["--with-parent"], "echo up; sleep 1000")?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\" & wait", "sh"]);
    shell.arg(run.get_program()).args(run.get_args());
    for (name, value) in run.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    if let Some(dir) = run.get_current_dir() {
        shell.current_dir(dir);
    }
    let mut parent = wait_until_up(shell)?;
    parent.kill().context("killing the parent")?;
    parent.wait().context("waiting for the parent")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !space.leftovers().is_empty() {
        ensure!(
            Instant::now() < deadline,
            "its parent is gone, but it is not: {:?}",
            space.leftovers()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn clears_what_a_killed_one_left(space: &Space) -> Result<()> {
    let mut child = start(space, "sleep 1000")?;
    child.kill().context("killing xtask")?;
    child.wait().context("waiting for xtask")?;
    let left = space.leftovers();
    ensure!(
        !left.is_empty(),
        "a killed xtask can't have cleaned up, so this looks for the wrong things"
    );
    check_code(&finish(&mut guest(space, &[], "true")?, LIMIT)?, 0)
}

fn boots_again_if_the_emulator_fails(space: &Space) -> Result<()> {
    let child = guest(space, &["--accel", "tcg"], "echo up")?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting xtask")?;
    // It takes seconds until the command starts. The first one dies, and the next one's CPUs stand still.
    let killed = emulator(space, None)?;
    kill_process(killed, Signal::KILL).context("killing QEMU")?;
    let stopped = emulator(space, Some(killed))?;
    kill_process(stopped, Signal::STOP).context("stopping QEMU")?;
    let output = finish_child(child, LIMIT)?;
    check_code(&output, 0)?;
    ensure!(output.stdout == b"up\n", "its command's output is lost");
    for failed in ["died", "stood still"] {
        ensure!(
            stderr(&output).contains(&format!("the guest {failed} before its command started")),
            "it does not say that the guest {failed}: {}",
            stderr(&output)
        );
    }
    Ok(())
}

fn ends_if_its_cpus_stand_still(space: &Space) -> Result<()> {
    let child = wait_until_up(guest(space, &["--accel", "tcg"], "echo up; sleep 1000")?)?;
    kill_process(emulator(space, None)?, Signal::STOP).context("stopping QEMU")?;
    let output = finish_child(child, LIMIT)?;
    check_code(&output, 124)?;
    check_console(&output, "the emulated CPUs stood still for 60 s")
}

/// The QEMU of the guest that is started from here, other than an earlier one.
fn emulator(space: &Space, earlier: Option<Pid>) -> Result<Pid> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = space.leftovers();
        let pids = left.iter().filter_map(|l| {
            let pid = l.strip_prefix("qemu-system-x86 ")?;
            Pid::from_raw(pid.parse().ok()?)
        });
        if let Some(pid) = pids.into_iter().find(|pid| Some(*pid) != earlier) {
            return Ok(pid);
        }
        ensure!(Instant::now() < deadline, "there is no QEMU: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn runs_two_at_once(space: &Space) -> Result<()> {
    // Each waits for a line that comes when both are up.
    let guests = ["one", "two"].map(|name| -> Result<Child> {
        guest(space, &[], &format!("read line; echo {name} $line"))?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting xtask")
    });
    let mut both = Vec::new();
    for (child, line) in guests.into_iter().zip(["eins", "zwei"]) {
        both.push((child?, line));
    }
    let deadline = Instant::now() + LIMIT;
    while space
        .leftovers()
        .iter()
        .filter(|l| l.starts_with("qemu"))
        .count()
        < 2
    {
        ensure!(Instant::now() < deadline, "there are never two QEMUs");
        std::thread::sleep(Duration::from_millis(50));
    }
    for (child, line) in &mut both {
        let mut stdin = child.stdin.take().context("a pipe was asked for")?;
        writeln!(stdin, "{line}").context("writing to a guest")?;
    }
    let mut printed = Vec::new();
    for (child, _) in both {
        let output = finish_child(child, LIMIT)?;
        check_code(&output, 0)?;
        printed.push(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    ensure!(
        printed == ["one eins\n", "two zwei\n"],
        "they printed {printed:?}"
    );
    Ok(())
}
