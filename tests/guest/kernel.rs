//! What the kernel says.

use anyhow::{Context, Result, ensure};
use libbpf_rs::ProgramType;
use libbpf_rs::query::ProgInfoIter;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) const TRACING: &str = "/sys/kernel/tracing";

/// Where debugfs is, mounted.
pub(crate) fn debugfs() -> Result<PathBuf> {
    let dir = Path::new("/sys/kernel/debug");
    if !dir.join("sched").exists() {
        let mount = Command::new("mount")
            .args(["-t", "debugfs", "none"])
            .arg(dir)
            .status();
        ensure!(
            mount.context("running mount")?.success(),
            "debugfs can't be mounted"
        );
    }
    Ok(dir.to_path_buf())
}

/// The kernel's messages from now on.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    lines: Vec<String>,
}

/// What none of the cases provokes.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "blocked for more than",
    "soft lockup",
];

/// What the kernel says when it throws out a scheduler, or before: who waits may do so while it reads what RCU keeps.
const STALLS: &[&str] = &[
    "rcu_preempt detected",
    "rcu_sched detected",
    "runnable task stall",
    "watchdog failed to check in",
    "runtime error",
];

/// Complaints that are the kernel's own affair. Its server for fair tasks, a deadline entity, warns when a CPU goes down
/// on 6.12 (`dl_rq->running_bw > old`, in `dl_server_stop`), with and without a BPF scheduler.
const KNOWN: &[&str] = &["at kernel/sched/deadline.c"];

impl Log {
    pub(crate) fn open() -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("opening /dev/kmsg")?;
        file.seek(SeekFrom::End(0))
            .context("going to the end of /dev/kmsg")?;
        Ok(Self {
            file,
            lines: Vec::new(),
        })
    }

    fn read_on(&mut self) {
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => return,
                // PRIORITY,SEQUENCE,TIME,FLAGS;TEXT, one record each
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]).into_owned();
                    let line = text.split_once(';').map_or(text.as_str(), |(_, line)| line);
                    self.lines
                        .push(line.lines().next().unwrap_or_default().to_owned());
                }
                // Overwritten before it was read: go on with what is there.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    pub(crate) fn text(&mut self) -> String {
        self.read_on();
        self.lines.join("\n")
    }

    /// `stalls`: whether a scheduler is meant to be thrown out.
    pub(crate) fn complaints(&mut self, stalls: bool) -> Vec<String> {
        self.read_on();
        let unwanted = if stalls { &[][..] } else { STALLS };
        self.lines
            .iter()
            .filter(|line| {
                COMPLAINTS
                    .iter()
                    .chain(unwanted)
                    .any(|word| line.contains(word))
            })
            .filter(|line| !KNOWN.iter().any(|word| line.contains(word)))
            .cloned()
            .collect()
    }
}

/// What the verifier looked at to admit the BPF programs of schedulers that are loaded now.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    pub(crate) programs: usize,
    /// In all of them.
    pub(crate) instructions: u64,
    /// The name of the one that took most, and how many.
    pub(crate) largest: (String, u32),
}

impl Verified {
    pub(crate) fn read() -> Self {
        let mut all = Self::default();
        for program in ProgInfoIter::default() {
            if program.ty != ProgramType::StructOps {
                continue;
            }
            all.programs += 1;
            all.instructions += u64::from(program.verified_insns);
            if program.verified_insns > all.largest.1 {
                let name = program.name.to_string_lossy().into_owned();
                all.largest = (name, program.verified_insns);
            }
        }
        all
    }
}

/// What a hanging case waits for: blocked tasks, the kernel's threads that load and unload schedulers, and the
/// scheduler's own dump.
pub(crate) fn why_it_hangs(log: &mut Log) -> String {
    let before = log.text().lines().count();
    // `w`: blocked tasks; `l`: what each CPU runs.
    for key in ["w", "l"] {
        let _ = fs::write("/proc/sysrq-trigger", key);
    }
    let dump = scheduler_dump();
    let blocked: Vec<_> = log.text().lines().skip(before).map(String::from).collect();
    format!(
        "\n--- blocked tasks and CPUs when it hung\n{}\n--- sched_ext's threads\n{}\n--- the scheduler then\n{dump}",
        blocked.join("\n"),
        sched_ext_threads().join("\n")
    )
}

/// The threads that run a scheduler's enabling and disabling: state, CPU, and where they are in the kernel.
fn sched_ext_threads() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let dir = entry.path();
            let comm = fs::read_to_string(dir.join("comm")).ok()?;
            (comm.contains("scx") || comm.contains("sched_ext")).then(|| {
                let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
                let stack = fs::read_to_string(dir.join("stack")).unwrap_or_default();
                format!("{}{}", stat, stack.trim_end())
            })
        })
        .collect()
}

/// What SysRq-D makes the kernel and the BPF scheduler tell of queues and tasks. It goes to the trace buffer.
pub(crate) fn scheduler_dump() -> String {
    let event = format!("{TRACING}/events/sched_ext/sched_ext_dump/enable");
    if let Err(error) = fs::write(&event, "1").and_then(|()| fs::write("/proc/sysrq-trigger", "D"))
    {
        return format!("no dump: {error}");
    }
    std::thread::sleep(Duration::from_secs(1));
    let text = fs::read_to_string(format!("{TRACING}/trace")).unwrap_or_default();
    let lines: Vec<_> = text
        .lines()
        .filter_map(|line| Some(line.split_once("sched_ext_dump: ")?.1))
        .collect();
    lines.join("\n")
}
