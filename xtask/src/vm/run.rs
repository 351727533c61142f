//! Boots one guest, watches it, and makes sure that nothing of it is left.

use super::clock::Clock;
use super::monitor;
use super::processes::{self, MARK};
use super::rundir::RunDir;
use super::stillness::Stillness;
use super::topology::Topology;
use crate::cache::Cache;
use crate::interrupt;
use crate::kernel::Kernel;
use crate::{qemu, tools, workspace};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, getppid};
use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(30);
/// For a guest to end by itself once it said how its command ended: waiting for a power-off can take minutes.
const GRACE: Duration = Duration::from_secs(3);
/// For QEMU to end in order, with what a virtual clock says of itself written, on a machine with other things to do.
const QUIT_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG (emulated)",
        }
    }
}

/// What to boot and what to run in it.
#[derive(Debug, Clone)]
pub struct Spec {
    pub kernel: Kernel,
    pub topology: Topology,
    pub accel: Accel,
    pub clock: Clock,
    /// Where the programs of this checkout are, first in the guest's PATH, and the clock's plugin.
    pub programs: PathBuf,
    /// From the start of the boot to the end of the command.
    pub timeout: Option<Duration>,
    /// The guest ends when this process is no longer the parent of this one.
    pub parent: Option<Pid>,
    /// A shell script; none for an interactive shell.
    pub script: Option<String>,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The command ended with this code.
    Exited(u8),
    /// The kernel panicked with this message, or QEMU ended before the command did.
    Died {
        panic: Option<String>,
    },
    /// The guest did not start the command in time.
    NoBoot(Duration),
    /// Its emulated CPUs all stood still for this long.
    StoodStill(Duration),
    Timeout(Duration),
    /// A signal of this number ended the run.
    Interrupted(usize),
}

#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    /// What the guest's kernel and console said.
    pub console: String,
    /// What the virtual clock says of itself.
    pub clock_stats: Option<serde_json::Value>,
}

/// Where a guest's output goes.
pub type Sink = Box<dyn Write + Send>;

/// How often a guest is booted at most. QEMU fails an assertion about its devices' interrupts now and then while several
/// emulated CPUs boot on a busy host, or loses one and all CPUs halt, and a kernel may panic over an instruction that the
/// emulator got wrong. Nothing has been run by then.
const BOOTS_MAX: u32 = 3;
/// How long all emulated CPUs may stand still before the script starts: a boot computes all the time.
const STILL_MAX: Duration = Duration::from_secs(10);
/// And afterwards, when they may have nothing to do but to serve the kernel's timers: on two idle CPUs, that is 240 ms of the
/// host's time in a minute with 6.12, and 400 with 7.3.
const STILL_IDLE_MAX: Duration = Duration::from_secs(60);

/// Boots the guest and runs its script to the end. An emulated one that dies, or stands still, before its script has
/// started is booted again.
pub fn run(cache: &Cache, spec: &Spec, stdout: Sink, stderr: Sink) -> Result<Outcome> {
    let _held = interrupt::hold()?;
    let mut sinks = [stdout, stderr];
    let mut boots = 1;
    loop {
        let (outcome, started, back) = once(cache, spec, sinks)?;
        let failed = match outcome.end {
            End::Died { .. } => "died",
            End::StoodStill(_) => "stood still",
            _ => return Ok(outcome),
        };
        if started || spec.accel == Accel::Kvm || boots == BOOTS_MAX {
            return Ok(outcome);
        }
        let path = cache.keep_log("console", &outcome.console)?;
        eprintln!(
            "the guest {failed} before its command started, as emulated ones do now and then ({}); booting it again",
            path.display()
        );
        sinks = back;
        boots += 1;
    }
}

/// Boots it once. Also says whether its script has started, and gives back where its output went.
fn once(cache: &Cache, spec: &Spec, sinks: [Sink; 2]) -> Result<(Outcome, bool, [Sink; 2])> {
    let dir = RunDir::create()?;
    let script = spec.script.as_deref().unwrap_or_default();
    dir.prepare(&qemu::path(cache), &spec.kernel, script)?;
    let mut command = virtme(cache, spec, &dir)?;
    let began = Instant::now();
    // A group of its own: a Ctrl-C is for this process, which then ends the guest in order.
    let mut child = command
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting virtme-run")?;
    let [stdout, stderr] = sinks;
    let pumps = [
        pump(child.stdout.take(), stdout),
        pump(child.stderr.take(), stderr),
    ];
    let end = watch(spec, &dir, &mut child, began)?;
    let place = hangs(&end).then(|| place(spec, &dir));
    stop(spec, &dir, &mut child)?;
    // A pump ends by itself when the last process of the run has closed its end.
    let sinks = pumps.map(|pump| pump.join().unwrap_or_else(|_| Box::new(std::io::sink())));
    let console = fs::read(dir.console()).unwrap_or_default();
    let stats = fs::read_to_string(dir.clock_stats()).unwrap_or_default();
    let outcome = Outcome {
        end,
        console: String::from_utf8_lossy(&console).into_owned() + &place.unwrap_or_default(),
        clock_stats: serde_json::from_str(&stats).ok(),
    };
    Ok((outcome, has_started(&said(&dir)), sinks))
}

/// Boots the guest with a shell on this terminal, and returns when the user leaves it.
pub fn shell(cache: &Cache, spec: &Spec) -> Result<()> {
    let _held = interrupt::hold()?;
    let dir = RunDir::create()?;
    dir.prepare(
        &qemu::path(cache),
        &spec.kernel,
        &shell_script(&spec.programs)?,
    )?;
    let mut child = virtme(cache, spec, &dir)?
        .spawn()
        .context("starting virtme-run")?;
    // A Ctrl-C is a key for the guest; what comes here is from outside, or the terminal is gone.
    let watch = interrupt::Watch::over(&child, false);
    let status = child.wait().context("waiting for virtme-run")?;
    drop(watch);
    if let Some(signal) = interrupt::received() {
        return Err(super::interrupted(signal).into());
    }
    if !status.success() {
        bail!("the guest ended with {status}");
    }
    Ok(())
}

/// What every script starts with: the host's working folder, the programs of this checkout on the path, and where the
/// Python is that has more than the system's.
pub fn script_prelude(programs: &Path) -> Result<String> {
    let cwd = std::env::current_dir().context("finding the working folder")?;
    Ok(format!(
        "cd {} 2>/dev/null || cd /\nexport PATH={}:\"$PATH\" MANYCORE_PYTHON={}\n",
        quote(&cwd.to_string_lossy()),
        quote(&programs.to_string_lossy()),
        quote(&tools::python(&Cache::open()?).to_string_lossy()),
    ))
}

fn shell_script(programs: &Path) -> Result<String> {
    Ok(script_prelude(programs)? + "exec bash --norc -i\n")
}

/// Quotes a word for a POSIX shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn virtme(cache: &Cache, spec: &Spec, dir: &RunDir) -> Result<Command> {
    let guest = format!("sh {0}/guest.sh {0}", quote(&dir.path().to_string_lossy()));
    let mut path = vec![tools::virtiofsd_dir(cache)];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let mut command = Command::new(tools::virtme_run(cache));
    command
        .env("PATH", std::env::join_paths(path).context("building PATH")?)
        .env(MARK, dir.path())
        .env("TMPDIR", dir.path())
        .arg("--kimg")
        .arg(spec.kernel.image())
        .args(["--mods=auto", "--user", "root", "--overlay-rwdir", "/tmp"])
        .args(["--name", &spec.topology.name])
        .arg("--qemu-bin")
        .arg(dir.qemu())
        .args(spec.topology.virtme_args());
    for hidden in hidden_in_guest(spec, dir) {
        command.arg("--rodir").arg(hidden);
    }
    if spec.accel == Accel::Tcg {
        command.arg("--disable-kvm");
    }
    for option in kernel_options(spec) {
        command.args(["--kopt", &option]);
    }
    if spec.script.is_some() {
        command.args(["--script-sh", &guest]);
        // A terminal would be put into raw mode by QEMU; a command's input is a pipe or nothing.
        if std::io::stdin().is_terminal() {
            command.stdin(Stdio::null());
        }
    } else {
        command.args(["--shell", &dir.shell()?]);
    }
    command
        .arg("--qemu-opts")
        .args(qemu_options(spec, dir))
        .args(monitor::qemu_options(&dir.control()))
        .args(spec.clock.qemu_options(&spec.programs, &dir.clock_stats()));
    Ok(command)
}

/// Folders of ours that lie where virtme-ng mounts empty ones in the guest.
fn hidden_in_guest(spec: &Spec, dir: &RunDir) -> Vec<PathBuf> {
    const COVERED: [&str; 4] = ["/run", "/var/tmp", "/var/log", "/var/cache"];
    let ours = [
        dir.path().to_owned(),
        workspace::root().to_owned(),
        spec.programs.clone(),
    ];
    ours.into_iter()
        .filter(|path| COVERED.iter().any(|covered| path.starts_with(covered)))
        .collect()
}

fn kernel_options(spec: &Spec) -> Vec<String> {
    let mut options = vec![
        "mitigations=off",
        "nokaslr",
        "random.trust_cpu=on",
        "loglevel=6",
    ];
    if spec.accel == Accel::Tcg {
        // What an emulated clock can't be calibrated by, and a watchdog that would bark at slowness.
        options.extend([
            "nowatchdog",
            "tsc=reliable",
            "lpj=10000000",
            "no_timer_check",
            "rcupdate.rcu_expedited=1",
            // virtiofsd writes files into the guest's memory where QEMU doesn't see it. Had a page held a program before, the
            // emulator would go on with what it translated then; zeroed by the guest, that is forgotten.
            "init_on_alloc=1",
        ]);
    }
    let many = spec.topology.cpus() > MULTI_THREAD_MAX;
    if spec.accel == Accel::Tcg && spec.clock == Clock::Real && many {
        // vm/guest.sh brings the others online.
        options.push("maxcpus=1");
    }
    if spec.clock != Clock::Real {
        // One thing less that differs from run to run.
        options.push("norandmaps");
    }
    options.into_iter().map(String::from).collect()
}

fn qemu_options(spec: &Spec, dir: &RunDir) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| options.extend(words.iter().map(|w| (*w).to_owned()));
    let status = format!("file,id=mcstatus,path={}", dir.status().display());
    add(&["-chardev", &status]);
    add(&[
        "-device",
        "virtserialport,name=manycore.status,chardev=mcstatus",
    ]);
    let threads = if spec.clock == Clock::Real && spec.topology.cpus() <= MULTI_THREAD_MAX {
        "multi"
    } else {
        "single"
    };
    let cpu = match spec.accel {
        Accel::Kvm => "host",
        Accel::Tcg => EMULATED_CPU,
    };
    add(&["-cpu", cpu]);
    if spec.accel == Accel::Tcg {
        add(&["-accel", &format!("tcg,thread={threads}")]);
    }
    let caches: Vec<_> = [
        ("l3", "die"),
        ("l2", "core"),
        ("l1d", "core"),
        ("l1i", "core"),
    ]
    .iter()
    .enumerate()
    .map(|(i, (cache, level))| {
        format!("smp-cache.{i}.cache={cache},smp-cache.{i}.topology={level}")
    })
    .collect();
    add(&["-machine", &caches.join(",")]);
    if spec.topology.cpus() > X2APIC_FROM {
        add(&["-device", "intel-iommu,intremap=on,eim=on"]);
    }
    options
}

/// A model that shows the guest its topology of caches; TCG lacks some of its features and says so at length.
///
/// GCC's function clones go by the model's number, not by features: those for the real one's would be taken and die of
/// AVX-512. 60 is Haswell, all of whose features TCG has.
///
/// It has no fast string instructions: TCG executes REP MOVSB and REP STOSB a byte at a time, by the virtual clock a
/// nanosecond for each. The kernel, and the C library, would zero and copy pages by them; without, 8 bytes and more at a time.
const EMULATED_CPU: &str = "SapphireRapids,check=off,model=60,-erms,-fsrm,-fsrs,-fzrm";

/// Above this many vCPUs, one thread that emulates them all in turn boots faster than one thread each on few cores.
const MULTI_THREAD_MAX: usize = 16;
/// APIC ids above this need interrupt remapping.
const X2APIC_FROM: usize = 254;

fn pump(from: Option<impl Read + Send + 'static>, mut to: Sink) -> JoinHandle<Sink> {
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        let Some(mut from) = from else { return to };
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
        {
            // Nobody reads any more: keep the guest from blocking on a full pipe all the same.
            let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
        }
        to
    })
}

/// What the guest has said of its script so far.
fn said(dir: &RunDir) -> String {
    fs::read_to_string(dir.status()).unwrap_or_default()
}

fn has_started(status: &str) -> bool {
    status.starts_with("start")
}

fn watch(spec: &Spec, dir: &RunDir, child: &mut Child, began: Instant) -> Result<End> {
    // Measured: 64 vCPUs take 15 s under TCG, 256 take 183 s, on 2 cores with nothing beside.
    let slowness = if spec.clock == Clock::Real { 1 } else { 3 };
    let boot_limit = Duration::from_secs(slowness * (120 + 4 * spec.topology.cpus() as u64));
    let mut stillness = Stillness::new();
    loop {
        let status = said(dir);
        if let Some(code) = exit_code(&status) {
            return Ok(End::Exited(code));
        }
        if child
            .try_wait()
            .context("waiting for virtme-run")?
            .is_some()
        {
            // The last words may have arrived since the status was read.
            return Ok(exit_code(&said(dir)).map_or_else(|| died(dir), End::Exited));
        }
        let elapsed = began.elapsed();
        if let Some(number) = interrupt::received() {
            return Ok(End::Interrupted(number));
        }
        if spec.parent.is_some() && getppid() != spec.parent {
            return Ok(End::Interrupted(interrupt::hangup()));
        }
        if let Some(limit) = spec.timeout
            && elapsed > limit
        {
            return Ok(End::Timeout(limit));
        }
        let booting = !has_started(&status);
        if booting && elapsed > boot_limit {
            return Ok(End::NoBoot(boot_limit));
        }
        let still_max = if booting { STILL_MAX } else { STILL_IDLE_MAX };
        if spec.accel == Accel::Tcg && stillness.lasts(dir.path()) > still_max {
            return Ok(End::StoodStill(still_max));
        }
        std::thread::sleep(POLL);
    }
}

/// Was it ended, and not by its command?
fn hangs(end: &End) -> bool {
    !matches!(end, End::Exited(_) | End::Died { .. })
}

/// Where its CPUs are, for the end of the console.
fn place(spec: &Spec, dir: &RunDir) -> String {
    // It may be in the middle of its end.
    monitor::where_cpus_are(&dir.control(), &spec.kernel.symbols()).map_or_else(
        |error| format!("\nwhere its CPUs are isn't known: {error:#}\n"),
        |text| format!("\n{text}"),
    )
}

fn died(dir: &RunDir) -> End {
    let console = fs::read(dir.console()).unwrap_or_default();
    End::Died {
        panic: why_it_panicked(&String::from_utf8_lossy(&console)),
    }
}

/// The message of the panic, and of the first oops before it, which says more.
fn why_it_panicked(console: &str) -> Option<String> {
    let after = |mark: &str| {
        let line = console.lines().find_map(|line| line.split_once(mark));
        line.map(|(_, text)| text.trim())
    };
    let panic = after("Kernel panic - ")?;
    Some(match after("Oops: ") {
        Some(oops) => format!("{panic} ({oops})"),
        None => panic.to_owned(),
    })
}

fn exit_code(status: &str) -> Option<u8> {
    let line = status.lines().last()?;
    // Only a whole line counts: the guest may be writing it right now.
    status.ends_with('\n').then_some(())?;
    line.strip_prefix("exit ")?.trim().parse().ok()
}

/// Ends the guest. QEMU is killed rather than asked: it has nothing to save but a virtual clock's statistics.
/// virtme-run sees its end and cleans up.
fn stop(spec: &Spec, dir: &RunDir, child: &mut Child) -> Result<()> {
    let asked = spec.clock != Clock::Real && monitor::quit(&dir.control()).is_ok();
    if !asked && let Some(qemu) = processes::qemu_of_run(dir.path()) {
        // It may be gone already.
        let _ = rustix::process::kill_process(qemu, rustix::process::Signal::KILL);
    }
    let deadline = Instant::now() + if asked { QUIT_MAX } else { GRACE };
    while Instant::now() < deadline
        && child
            .try_wait()
            .context("waiting for virtme-run")?
            .is_none()
    {
        std::thread::sleep(POLL);
    }
    processes::end_run(dir.path(), GRACE);
    child.wait().context("waiting for virtme-run")?;
    Ok(())
}

/// The last lines of a console, without the terminal's control characters.
pub fn tail(console: &str, lines: usize) -> String {
    let all: Vec<_> = console
        .lines()
        .map(|line| line.trim_end().replace(|c: char| c.is_control(), ""))
        .filter(|line| !line.is_empty())
        .collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_last_line_is_an_exit_code() {
        assert_eq!(exit_code("start\nexit 7\n"), Some(7));
        assert_eq!(exit_code("start\nexit 12"), None);
        assert_eq!(exit_code("start\n"), None);
        assert_eq!(exit_code(""), None);
    }

    #[test]
    fn words_survive_the_shell() {
        for word in ["plain", "two words", "it's", "$HOME `x` \"q\"", ""] {
            let script = format!("printf %s {}", quote(word));
            let out = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
    }

    #[test]
    fn a_panic_is_told_with_the_oops_before_it() {
        let oops = "[ 1.0] Oops: int3: 0000 [#1] SMP NOPTI\n[ 1.1] CPU: 0\n";
        let panic = "[ 1.2] Kernel panic - not syncing: Fatal exception in interrupt\n";
        assert_eq!(
            why_it_panicked(&format!("{oops}{panic}")).as_deref(),
            Some("not syncing: Fatal exception in interrupt (int3: 0000 [#1] SMP NOPTI)")
        );
        assert_eq!(
            why_it_panicked(panic).as_deref(),
            Some("not syncing: Fatal exception in interrupt")
        );
        assert_eq!(why_it_panicked(oops), None);
    }

    #[test]
    fn the_tail_is_clean() {
        assert_eq!(tail("a\r\n\x1b\n b \r\nc\n", 2), " b\nc");
    }
}
