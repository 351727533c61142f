//! A scheduler's daemon, run as a user runs it.

use crate::Setting;
use crate::cpus::{online, read};
use crate::load::runtimes;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const SYSFS: &str = "/sys/kernel/sched_ext";
/// From the start of a daemon to a loaded scheduler; 3 s is usual on 8 emulated CPUs, more on more, and over 60 s were seen on
/// 32 with the host's two cores shared with three other guests.
const START: Duration = Duration::from_secs(180);
/// The same here. Beyond 64 CPUs, emulated ones each get so little of the host that it takes that much longer.
pub(crate) fn start_limit() -> Duration {
    START * online().map_or(1, |cpus| cpus.len().div_ceil(64)) as u32
}

/// From a signal to a daemon's end.
const END: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// The kernel's own, for schedulers that ask for less: an emulated guest on a busy host can stand still for seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the kernel says of sched_ext.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) state: String,
    /// The name of the loaded scheduler.
    pub(crate) ops: Option<String>,
}

impl State {
    pub(crate) fn read() -> Result<Self> {
        Ok(Self {
            state: read(&format!("{SYSFS}/state"))?,
            ops: read(&format!("{SYSFS}/root/ops")).ok(),
        })
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.state != "disabled" || self.ops.is_some()
    }
}

/// How often a scheduler was enabled since boot.
pub(crate) fn enabled_times() -> Result<u64> {
    read(&format!("{SYSFS}/enable_seq"))?
        .parse()
        .context("enable_seq is not a number")
}

/// Whether all tasks are the loaded scheduler's, or only those of the SCHED_EXT policy.
pub(crate) fn switches_all() -> Result<bool> {
    Ok(read(&format!("{SYSFS}/switch_all"))? == "1")
}

/// Waits until no scheduler is loaded.
pub(crate) fn wait_until_unloaded() -> Result<()> {
    let deadline = Instant::now() + END;
    loop {
        let state = State::read()?;
        if !state.is_loaded() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "a scheduler is still loaded after {} s: {state:?}",
            END.as_secs()
        );
        std::thread::sleep(POLL);
    }
}

/// A running daemon. Its standard error goes to a file, and to this process' own when it is over.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Process,
    stdout: PathBuf,
    stderr: PathBuf,
}

#[derive(Debug)]
enum Process {
    Own(Child),
    /// Somebody else's child, who ends it and learns how it ended.
    Lent(Pid),
}

/// What part of a CPU a daemon may use at most that is asked for nothing; a fiftieth is usual.
const IDLE_SHARE: f64 = 0.5;
/// How many seconds it has for that. What the host takes of a virtual CPU counts as its thread's time.
const IDLE_SECONDS: u32 = 5;
/// Set for cases that find a scheduler loaded: the daemon's process, and where its output goes, with spaces between.
const LENT: &str = "MANYCORE_TEST_DAEMON";
/// What the statistics' case wants to see of a daemon, and no other minds.
const LENT_ARGS: &[&str] = &["--stats", "0.5", "--json"];

impl Daemon {
    /// The setting's scheduler, loaded: the one that is lent to this case, or its own.
    pub(crate) fn lent(setting: &Setting) -> Result<Self> {
        let Some(text) = std::env::var_os(LENT) else {
            return Self::to_lend(setting);
        };
        let text = text.to_string_lossy();
        let words: Vec<_> = text.split(' ').collect();
        let &[pid, stdout, stderr] = words.as_slice() else {
            bail!("{LENT} is {text:?}");
        };
        let pid = pid.parse().ok().and_then(Pid::from_raw);
        let mut daemon = Self {
            process: Process::Lent(pid.with_context(|| format!("{LENT} is {text:?}"))?),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        daemon.check_alive()?;
        Ok(daemon)
    }

    /// Starts one as cases find it that don't start their own.
    pub(crate) fn to_lend(setting: &Setting) -> Result<Self> {
        Self::start(setting, LENT_ARGS)
    }

    /// Lets this case find it.
    pub(crate) fn lend_to(&self, case: &mut Command) {
        let [out, err] = [self.stdout.display(), self.stderr.display()];
        case.env(LENT, format!("{} {out} {err}", self.pid()));
    }

    /// Starts the setting's scheduler and waits until it is loaded.
    pub(crate) fn start(setting: &Setting, args: &[&str]) -> Result<Self> {
        Self::start_for(setting, args, PATIENCE)
    }

    /// The same, with another time after which the kernel ends a scheduler that leaves a task waiting, if it asks for one.
    pub(crate) fn start_for(setting: &Setting, args: &[&str], patience: Duration) -> Result<Self> {
        let scheduler = setting.scheduler()?;
        ensure!(
            !State::read()?.is_loaded(),
            "a scheduler is loaded already: {:?}",
            State::read()?
        );
        let enabled = enabled_times()?;
        let mut daemon = Self::spawn_for(scheduler.name, args, patience)?;
        let deadline = Instant::now() + start_limit();
        loop {
            let state = State::read()?;
            // The kernel sets the state first and counts last.
            if state.state == "enabled" && enabled_times()? > enabled {
                let ops = state.ops.unwrap_or_default();
                ensure!(
                    ops == scheduler.ops || ops.starts_with(&format!("{}_", scheduler.ops)),
                    "{} is loaded, but root/ops says {ops:?}, not {:?}",
                    scheduler.name,
                    scheduler.ops
                );
                return Ok(daemon);
            }
            if let Some(status) = daemon.ended()? {
                bail!(
                    "{} {} ended with {status} instead of loading: {}",
                    scheduler.name,
                    args.join(" "),
                    daemon.stderr().trim_end()
                );
            }
            ensure!(
                Instant::now() < deadline,
                "{} is not loaded after {} s: {state:?}",
                scheduler.name,
                start_limit().as_secs()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Starts it without waiting: a client, for example.
    pub(crate) fn spawn(name: &str, args: &[&str]) -> Result<Self> {
        Self::spawn_for(name, args, PATIENCE)
    }

    fn spawn_for(name: &str, args: &[&str], patience: Duration) -> Result<Self> {
        let id = unique();
        let stdout = PathBuf::from(format!("/tmp/{name}-{id}.out"));
        let stderr = PathBuf::from(format!("/tmp/{name}-{id}.err"));
        let child = Command::new(name)
            .args(args)
            .env("SCX_TIMEOUT_MS", patience.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).context("creating a daemon's output")?)
            .stderr(File::create(&stderr).context("creating a daemon's log")?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            process: Process::Own(child),
            stdout,
            stderr,
        })
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.process {
            Process::Own(child) => child.try_wait().context("waiting for a daemon"),
            Process::Lent(pid) => {
                // A dead one stays until its parent has asked for it.
                let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
                let stat = fs::read_to_string(path).unwrap_or_default();
                let state = stat.rsplit_once(") ").map_or("Z", |(_, rest)| rest);
                ensure!(!state.starts_with('Z'), "the daemon has ended");
                Ok(None)
            }
        }
    }

    fn process_id(&self) -> Pid {
        match &self.process {
            Process::Own(child) => Pid::from_child(child),
            Process::Lent(pid) => *pid,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process_id().as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn stdout(&self) -> String {
        text_of(&self.stdout)
    }

    pub(crate) fn stderr(&self) -> String {
        text_of(&self.stderr)
    }

    /// Fails if it has ended, or if its scheduler was thrown out.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!(
                "the daemon has ended with {status}: {}",
                self.stderr().trim_end()
            );
        }
        let state = State::read()?;
        ensure!(
            state.state == "enabled" && state.ops.is_some(),
            "the scheduler is no longer loaded: {state:?}; its daemon says: {}",
            self.stderr().trim_end()
        );
        Ok(())
    }

    /// Fails if it keeps a CPU busy though nobody asks it for anything.
    pub(crate) fn check_idles(&self) -> Result<()> {
        let pid = self.pid();
        let ran = || -> Result<Duration> {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).context("its threads")?;
            let names = threads.flatten().map(|thread| thread.file_name());
            let tids = names.filter_map(|name| name.to_str()?.parse().ok());
            Ok(Duration::from_nanos(runtimes(tids)?.values().sum()))
        };
        let mut least = f64::INFINITY;
        for _second in 0..IDLE_SECONDS {
            let (before, started) = (ran()?, Instant::now());
            std::thread::sleep(Duration::from_secs(1));
            let share = (ran()? - before).as_secs_f64() / started.elapsed().as_secs_f64();
            least = least.min(share);
            if least < IDLE_SHARE {
                return Ok(());
            }
        }
        bail!(
            "the daemon keeps a CPU busy for {:.0} % of a second, in the least of {IDLE_SECONDS}",
            100.0 * least
        )
    }

    /// Sends a signal.
    pub(crate) fn send(&self, signal: Signal) -> Result<()> {
        kill_process(self.process_id(), signal).context("signalling a daemon")
    }

    /// Sends a signal and waits for its end.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.send(signal)?;
        self.wait().with_context(|| format!("after {signal:?}"))
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon still runs after {} s",
                END.as_secs()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Ends it as a user does, with Ctrl-C: it must end well, and the kernel's own scheduler be back. One that is lent
    /// goes on.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.check_alive()?;
        if matches!(self.process, Process::Lent(_)) {
            return Ok(());
        }
        let status = self.signal(Signal::INT)?;
        ensure!(
            status.code() == Some(0),
            "the daemon ended with {status} after SIGINT: {}",
            self.stderr().trim_end()
        );
        wait_until_unloaded()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Process::Own(child) = &mut self.process {
            // Ended by the case, or to be ended because the case failed.
            let _ = child.kill();
            let _ = child.wait();
        }
        // Those of libbpf's that `-vv` adds are too many.
        for line in self
            .stderr()
            .lines()
            .filter(|line| !line.contains("[TRACE]"))
        {
            eprintln!("{line}");
        }
    }
}

fn text_of(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Runs a program to its end, as root or as a user who is not.
pub(crate) fn run(name: &str, args: &[&str], as_root: bool) -> Result<Output> {
    let mut command = if as_root {
        Command::new(name)
    } else {
        let mut setpriv = Command::new("setpriv");
        setpriv
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["--inh-caps=-all", "--bounding-set=-all", "--"])
            .arg(name);
        setpriv
    };
    command
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {name}"))
}

/// What a program printed; fails unless it ended with 0.
pub(crate) fn printed(output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Fails unless a program ended with this code, printed nothing, and complained in one line with all these words.
pub(crate) fn check_refusal(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "it ended with {}, not with exit code {code}: {said}",
        output.status
    );
    ensure!(
        output.stdout.is_empty(),
        "it printed on standard output: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    for word in words {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    Ok(())
}
