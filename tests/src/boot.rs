//! The host's side: runs xtask as a user would, with a temporary folder of its own, so that what it leaves behind can
//! be told from what others have there.

use crate::machine::checkout;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Names an xtask to test instead of building the checkout's. The schedulers are expected beside it.
const XTASK: &str = "MANYCORE_XTASK";
/// How many guests run at a time.
const LANES: &str = "MANYCORE_LANES";
/// If that isn't set and the host has as many CPUs: with more, each gets so little that cases run into their limits.
const USUAL_LANES: usize = 2;
/// The mark that xtask puts on all processes of a guest.
const MARK: &str = "MANYCORE_VM=";

/// The folder of the programs under test, which are built first: guests run what lies there, and `cargo test` alone
/// would build this package's only.
///
/// # Errors
/// If they can't be built, or if those named by `$MANYCORE_XTASK` are not there.
pub fn programs() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| find_programs().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn find_programs() -> Result<PathBuf> {
    if let Some(xtask) = std::env::var_os(XTASK) {
        let xtask = PathBuf::from(xtask);
        ensure!(
            xtask.is_absolute() && xtask.is_file(),
            "{XTASK} is {}, which is not the absolute path of a file",
            xtask.display()
        );
        return Ok(xtask.parent().context("a file has a parent")?.to_owned());
    }
    let own = std::env::current_exe().context("finding this test's own path")?;
    // TARGET/PROFILE/deps/THIS
    let dir = own
        .ancestors()
        .nth(2)
        .context("this test is not in a target folder")?
        .to_owned();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--workspace", "--bins"]);
    if dir.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo
        .current_dir(checkout())
        .output()
        .context("running cargo")?;
    ensure!(
        output.status.success(),
        "the programs to test could not be built (`cargo xtask setup` installs what that needs; to test others, set \
         {XTASK}):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(dir)
}

/// The path of a program under test.
///
/// # Errors
/// As [`programs`], or if it isn't there.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

/// Makes sure that a kernel can be booted at once: a test must neither build one for ten minutes nor be left out.
///
/// # Errors
/// If the cache does not have it; says how to get it.
pub fn need_kernel(name: &str) -> Result<()> {
    let output = Command::new(program("xtask")?)
        .args(["kernel", "list", "--json"])
        .output()
        .context("listing the kernels")?;
    let list: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("reading the list of kernels")?;
    let entry = list
        .as_array()
        .and_then(|list| list.iter().find(|kernel| kernel["name"] == name))
        .with_context(|| format!("no kernel {name} in vm/kernels.toml"))?;
    ensure!(
        !entry["cached"].is_null(),
        "the kernel {name} is not in the cache: run `cargo xtask setup --kernel {name}` first, or all tests by \
         `cargo xtask test` (`--full` for all kernels), which does"
    );
    Ok(())
}

/// How many guests are to run at a time.
///
/// # Errors
/// If `$MANYCORE_LANES` isn't a number from 1 on.
pub fn guests_at_a_time() -> Result<usize> {
    let Ok(text) = std::env::var(LANES) else {
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        return Ok(USUAL_LANES.min(cpus));
    };
    match text.parse() {
        Ok(lanes) if lanes > 0 => Ok(lanes),
        _ => bail!("${LANES} is a number of guests, not {text:?}"),
    }
}

/// A temporary folder for the xtasks of one test.
#[derive(Debug)]
pub struct Space {
    dir: TempDir,
}

impl Space {
    /// # Errors
    /// If the folder can't be made.
    pub fn new() -> Result<Self> {
        // Short, because guests' sockets lie in it.
        let dir = tempfile::Builder::new()
            .prefix("mct-")
            .tempdir_in("/tmp")
            .context("making a temporary folder")?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// An xtask with these arguments, in the checkout, with no input.
    ///
    /// # Errors
    /// As [`programs`].
    pub fn xtask<I, S>(&self, args: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        let mut command = Command::new(program("xtask")?);
        command
            .args(args.into_iter().map(Into::into))
            .current_dir(checkout())
            .env("TMPDIR", self.path())
            .stdin(Stdio::null());
        Ok(command)
    }

    /// What guests that were started from here have left: processes and folders.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = processes_of(self.path());
        let runs = fs::read_dir(self.path()).into_iter().flatten().flatten();
        for base in runs.map(|entry| entry.path()) {
            // xtask keeps one folder per user, empty between runs.
            let inside = fs::read_dir(&base).into_iter().flatten().flatten();
            left.extend(inside.map(|entry| entry.path().display().to_string()));
            if !base.is_dir() {
                left.push(base.display().to_string());
            }
        }
        left
    }

    /// Fails if anything is left.
    ///
    /// # Errors
    /// Names what is left.
    pub fn check_clean(&self) -> Result<()> {
        let left = self.leftovers();
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok(())
    }
}

/// Processes with the mark of a run below this folder, by name and id.
fn processes_of(space: &Path) -> Vec<String> {
    let wanted = format!("{MARK}{}/", space.display());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|proc| {
            fs::read(proc.join("environ")).is_ok_and(|environ| {
                environ
                    .split(|byte| *byte == 0)
                    .any(|var| var.starts_with(wanted.as_bytes()))
            })
        })
        .map(|proc| {
            let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            let pid = proc.file_name().unwrap_or_default().to_string_lossy();
            format!("{} {pid}", name.trim())
        })
        .collect()
}

/// Runs a command to its end, which must come in time.
///
/// # Errors
/// If it can't be started or does not end; it is then killed.
pub fn finish(command: &mut Command, limit: Duration) -> Result<Output> {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {command:?}"))?;
    finish_child(child, limit)
}

/// The same for one that was started with pipes. What it prints must fit into those unless somebody reads them.
///
/// # Errors
/// If it does not end; it is then killed.
pub fn finish_child(mut child: Child, limit: Duration) -> Result<Output> {
    let readers = [
        child.stdout.take().map(read_all),
        child.stderr.take().map(read_all),
    ];
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a command")? {
            break status;
        }
        if Instant::now() > deadline {
            // SIGTERM first: xtask then ends its guest.
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            std::thread::sleep(Duration::from_secs(10));
            let _ = child.kill();
            let _ = child.wait();
            bail!("it did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut texts = readers
        .into_iter()
        .map(|reader| reader.map_or_else(Vec::new, |r| r.join().unwrap_or_default()));
    Ok(Output {
        status,
        stdout: texts.next().unwrap_or_default(),
        stderr: texts.next().unwrap_or_default(),
    })
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        // What came before an error is still worth showing.
        let _ = from.read_to_end(&mut all);
        all
    })
}
