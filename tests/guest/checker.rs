//! The checker of `bpf/check.bpf.c`: started before a fault and stopped after it, it tells whether a task ran where it
//! may not, waited for too long, waited beside an idle CPU, or ran twice at once.

use crate::bpf_skel::{BpfSkel, BpfSkelBuilder, types};
use crate::load::set_policy;
use anyhow::{Context, Result, bail, ensure};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Iter, IterOpts, Link};
use manycore_tests::plan::Bounds;
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::io::Read;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two passes over all tasks.
const PASS: Duration = Duration::from_millis(50);
/// The checker is a real-time task: if it is so late, the host didn't run this guest.
const LATE_NS: u64 = 200_000_000;
/// `CHK_KEPT` of `bpf/check.h`.
const KEPT: usize = 32;

/// What can be violated, in the order of `enum chk_kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Mask,
    Wait,
    Idle,
    Twice,
}

const KINDS: [Kind; 4] = [Kind::Mask, Kind::Wait, Kind::Idle, Kind::Twice];

#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) comm: String,
    pid: u32,
    cpu: u32,
    /// The one that idles, or on which it runs as well.
    other_cpu: u32,
    /// The CPUs from 0 to 63 that it may use.
    mask: u64,
    /// SCHED_*
    policy: u32,
    /// When it was seen, on the clock of uptime, and for how long it had been so.
    at_ns: u64,
    ns: u64,
    /// A wait that had not ended when the checker did.
    pub(crate) open: bool,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            comm,
            pid,
            cpu,
            other_cpu,
            mask,
            policy,
            ..
        } = self;
        let ms = self.ns / 1_000_000;
        let at = self.at_ns as f64 / 1e9;
        write!(f, "at {at:.3} s, {comm} ({pid}, policy {policy}) ")?;
        match self.kind {
            Kind::Mask => write!(f, "ran on CPU {cpu}, which its mask excludes"),
            Kind::Wait if self.open => {
                write!(f, "had waited on CPU {cpu} for {ms} ms, and still did")
            }
            Kind::Wait => write!(f, "waited on CPU {cpu} for {ms} ms"),
            Kind::Idle => write!(
                f,
                "waited on CPU {cpu} while CPU {other_cpu}, which it may use, idled for {ms} ms"
            ),
            Kind::Twice => write!(
                f,
                "began to run on CPU {cpu} while it ran on CPU {other_cpu}, for {ms} ms"
            ),
        }?;
        write!(f, " (mask {mask:x})")
    }
}

/// What a checker has seen.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) violations: Vec<Violation>,
    /// How many more there were.
    more: u64,
    /// Violations that the host explains: it ran none of this guest for most of their time.
    excused: usize,
    longest_ms: u64,
    longest_of: String,
    /// The longest that the checker itself was kept from running.
    late_ms: u64,
    bounds: Bounds,
}

impl Findings {
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Violation> {
        self.violations.iter().filter(move |v| v.kind == kind)
    }

    /// Fails if anything was violated.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.violations.is_empty(),
            "{} violations: {}",
            self.violations.len() as u64 + self.more,
            self.told()
        );
        Ok(())
    }

    /// The first few.
    pub(crate) fn told(&self) -> String {
        let told: Vec<_> = self
            .violations
            .iter()
            .take(8)
            .map(Violation::to_string)
            .collect();
        told.join("; ")
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no violation, longest wait {} ms of {} ({})",
            self.longest_ms, self.bounds.wait_ms, self.longest_of
        )?;
        if self.late_ms > LATE_NS / 1_000_000 {
            write!(f, ", the host stood still for up to {} ms", self.late_ms)?;
        }
        if self.excused > 0 {
            write!(f, ", which explains {} waits", self.excused)?;
        }
        Ok(())
    }
}

/// One that runs.
#[derive(Debug)]
pub(crate) struct Checker {
    stop: Arc<AtomicBool>,
    findings: Receiver<Result<Findings>>,
    thread: Option<JoinHandle<()>>,
    /// The findings were asked for.
    told: bool,
}

/// To see what the kernel prevents: tasks of this name count as outside their mask on this CPU.
pub(crate) type Pretence<'a> = Option<(&'a str, u32)>;

impl Checker {
    /// Loads it, best before a load: the kernel waits for all tasks to pass a point before it lets a program in.
    pub(crate) fn start(bounds: Bounds) -> Result<Self> {
        Self::start_pretending(bounds, None)
    }

    pub(crate) fn start_pretending(bounds: Bounds, pretence: Pretence<'_>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let pretence = pretence.map(|(comm, cpu)| (comm.to_owned(), cpu));
        let (ready, is_ready) = channel();
        let (sender, findings) = channel();
        let thread = std::thread::Builder::new()
            .name("checker".into())
            .spawn(move || {
                let send = |found| {
                    // Nobody waits for it any more.
                    let _ = sender.send(found);
                };
                if let Err(error) = watch(bounds, pretence, &theirs, &ready, send) {
                    send(Err(error));
                }
            })
            .context("starting a thread")?;
        let mut checker = Self {
            stop,
            findings,
            thread: Some(thread),
            told: false,
        };
        if is_ready.recv().is_err() {
            // It has failed, and says why.
            checker.finish()?;
            bail!("the checker ended before it began");
        }
        Ok(checker)
    }

    /// Waits until every task that waits now has run, or has waited for too long, and tells what was seen. The programs
    /// are still there until this goes: for that, the kernel waits until every task, also one that waits, has run and slept.
    pub(crate) fn finish(&mut self) -> Result<Findings> {
        self.told = true;
        self.stop.store(true, Ordering::Relaxed);
        let found = self.findings.recv().context("the checker panicked")?;
        found.context("the checker failed")
    }

    /// The same, and then takes the programs out.
    pub(crate) fn stop(mut self) -> Result<Findings> {
        self.finish()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        if !self.told {
            // Of a case that failed: what was seen helps to tell why.
            match self.finish() {
                Ok(findings) => eprintln!("the checker saw: {findings}; {}", findings.told()),
                Err(error) => eprintln!("{error:#}"),
            }
        }
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}

/// CLOCK_MONOTONIC, as in the BPF programs.
fn now_ns() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The loaded programs, and when they were not run as they should have been.
struct Watch<'obj> {
    skel: BpfSkel<'obj>,
    pass: Link,
    bounds: Bounds,
    /// Begins and ends of times in which no pass could run.
    late: Vec<(u64, u64)>,
    last_ns: u64,
}

fn watch(
    bounds: Bounds,
    pretence: Option<(String, u32)>,
    stop: &AtomicBool,
    ready: &Sender<()>,
    found: impl FnOnce(Result<Findings>),
) -> Result<()> {
    let mut object = MaybeUninit::uninit();
    let mut open = BpfSkelBuilder::default()
        .open(&mut object)
        .context("opening the checker")?;
    let cpus = libbpf_rs::num_possible_cpus().context("counting the possible CPUs")? as u32;
    let ro = open
        .maps
        .rodata_data
        .as_mut()
        .context("the checker has no .rodata")?;
    ro.nr_cpu_ids = cpus;
    ro.wait_bound_ns = bounds.wait_ms * 1_000_000;
    ro.idle_bound_ns = bounds.idle_ms * 1_000_000;
    if let Some((comm, cpu)) = &pretence {
        ro.pretend_cpu = *cpu;
        for (to, from) in ro.pretend_comm.iter_mut().zip(comm.bytes()) {
            *to = from as _;
        }
    }
    open.maps.cpus.set_max_entries(cpus)?;
    open.progs.check_pass.set_autoattach(false);
    let mut skel = open.load().context("the kernel refused the checker")?;
    skel.attach().context("attaching the checker")?;
    let pass = skel
        .progs
        .check_pass
        .attach_iter_with_opts(IterOpts::None)
        .context("attaching the checker's pass")?;
    let mut watch = Watch {
        skel,
        pass,
        bounds,
        late: Vec::new(),
        last_ns: now_ns(),
    };
    watch.run_pass(true, 0)?;
    // Above whatever is tested, and above its real-time hogs.
    set_policy(gettid().as_raw_nonzero().get(), libc::SCHED_FIFO, 90)?;
    ready.send(()).context("nobody waits for the checker")?;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PASS);
        watch.run_pass(false, 0)?;
    }
    watch.finish()?;
    found(watch.findings());
    Ok(())
}

impl Watch<'_> {
    /// Looks at all tasks. Returns how many have been waiting since before a time.
    fn run_pass(&mut self, first: bool, waiting_since: u64) -> Result<u64> {
        let now = now_ns();
        if now - self.last_ns > PASS.as_nanos() as u64 + LATE_NS {
            self.late.push((self.last_ns, now));
        }
        self.last_ns = now;
        let bss = self.bss()?;
        bss.pass_at = now;
        bss.pass_first = first.into();
        bss.waiting_since = waiting_since;
        bss.nr_waiting = 0;
        let mut tasks = Iter::new(&self.pass).context("starting a pass")?;
        let mut nothing = Vec::new();
        tasks.read_to_end(&mut nothing).context("in a pass")?;
        Ok(self.bss()?.nr_waiting)
    }

    fn bss(&mut self) -> Result<&mut types::bss> {
        let bss = self.skel.maps.bss_data.as_mut();
        Ok(bss.context("the checker has no .bss")?)
    }

    /// Whoever waits now must run at last, or is lost.
    fn finish(&mut self) -> Result<()> {
        let since = now_ns();
        let limit = since + (self.bounds.wait_ms + 2 * PASS.as_millis() as u64) * 1_000_000;
        while self.run_pass(false, since)? > 0 && now_ns() < limit {
            std::thread::sleep(PASS);
        }
        Ok(())
    }

    /// How much of a time the host kept this guest from running.
    fn late_in(&self, from: u64, to: u64) -> u64 {
        self.late
            .iter()
            .map(|(begin, end)| to.min(*end).saturating_sub(from.max(*begin)))
            .sum()
    }

    fn findings(&mut self) -> Result<Findings> {
        let (mut violations, mut excused, mut more) = (Vec::new(), 0, 0);
        let bounds = self.bounds;
        for (index, kind) in KINDS.into_iter().enumerate() {
            let bss = self.bss()?;
            let count = bss.nr_violations[index];
            more += count.saturating_sub(KEPT as u64);
            let kept: Vec<_> = bss.violations[index * KEPT..][..KEPT]
                .iter()
                .filter(|v| v.valid != 0)
                .map(|v| violation(kind, v))
                .collect();
            for found in kept {
                let bound_ms = match kind {
                    Kind::Wait => bounds.wait_ms,
                    Kind::Idle => bounds.idle_ms,
                    Kind::Mask | Kind::Twice => 0,
                };
                let late = self.late_in(found.at_ns.saturating_sub(found.ns), found.at_ns);
                if late > 0 && found.ns.saturating_sub(late) <= bound_ms * 1_000_000 && bound_ms > 0
                {
                    excused += 1;
                } else {
                    violations.push(found);
                }
            }
        }
        let late_ms = self.late.iter().map(|(begin, end)| end - begin).max();
        let bss = self.bss()?;
        ensure!(bss.switches > 0, "the checker has seen nothing");
        if bss.no_storage > 0 {
            eprintln!("{} events of tasks could not be followed", bss.no_storage);
        }
        let longest = bss.longest;
        Ok(Findings {
            violations,
            more,
            excused,
            longest_ms: longest.ns / 1_000_000,
            longest_of: format!(
                "{} {}, CPU {}",
                comm(&longest.comm),
                longest.pid,
                longest.cpu
            ),
            late_ms: late_ms.unwrap_or_default() / 1_000_000,
            bounds,
        })
    }
}

fn violation(kind: Kind, v: &types::chk_violation) -> Violation {
    Violation {
        kind,
        comm: comm(&v.comm),
        pid: v.pid,
        cpu: v.cpu,
        other_cpu: v.other_cpu,
        mask: v.mask,
        policy: v.policy,
        at_ns: v.at,
        ns: v.ns,
        open: v.open != 0,
    }
}

fn comm(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes
        .iter()
        .map(|byte| *byte as u8)
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
