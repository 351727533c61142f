//! `manycore policy` on real cgroups: what it applies is what the kernel says, and when it is undone, after whatever
//! went wrong, each file is byte for byte what it was.

use crate::Setting;
use crate::cpus::read_list;
use crate::daemon::{check_refusal, run};
use anyhow::{Context, Result, bail, ensure};
use manycore_tests::machine::Machine;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const ROOT: &str = "/sys/fs/cgroup";
const SYSCTL: &str = "/proc/sys/kernel/numa_balancing";
/// Where an apply notes what there was, before it writes anything.
pub(crate) const JOURNAL: &str = "/run/manycore/policy.journal";
/// How often an apply is killed: before its first write, and then ever later, up to half of the time that it takes.
const KILLS: u32 = 7;
const CGROUPS: &[&str] = &[
    "latency",
    "tenant",
    "tenant/db",
    "batch",
    "other",
    "tenant/cache",
];
/// Who has which CPUs for itself, in turn: no two may have the same at any time.
const TRADES: [[(&str, &str); 3]; 3] = [
    [
        ("tenant/db", "0"),
        ("tenant/cache", "1"),
        ("latency", "2-3"),
    ],
    [
        ("tenant/db", "2-3"),
        ("tenant/cache", "0"),
        ("latency", "1"),
    ],
    [
        ("tenant/db", "1,3"),
        ("tenant/cache", "2"),
        ("latency", "0"),
    ],
];

pub(crate) fn policy(setting: &Setting) -> Result<String> {
    let machine = Machine::read(&setting.topology)?;
    let mut writes = 0;
    // First with controllers that the policy has to enable, then with those that somebody else has enabled.
    for enabled in [false, true] {
        let world = World::new(enabled)?;
        let before = world.snapshot()?;
        world.check_applied(&machine)?;
        world.restore(&before).context("after restore")?;
        writes += world.check_killed(&before)?;
        world.check_reload(&machine, &before)?;
        world.check_others(&before)?;
    }
    Ok(format!(
        "applied, killed {writes} times, reloaded and restored, with controllers off and on before"
    ))
}

/// Exclusive CPUs change hands, and all stay partitions.
pub(crate) fn policy_trade(_: &Setting) -> Result<String> {
    let world = World::new(false)?;
    let before = world.snapshot()?;
    for trade in TRADES.iter().chain(&TRADES) {
        let service = |(cgroup, cpus): &(&str, &str)| {
            format!("[[service]]\ncgroup = \"/{cgroup}\"\ncpus = \"{cpus}\"\nexclusive = true\n")
        };
        apply(&trade.iter().map(service).collect::<String>())?;
        for (cgroup, cpus) in trade {
            same(&format!("{cgroup}/cpuset.cpus.partition"), "root")?;
            same(&format!("{cgroup}/cpuset.cpus.effective"), cpus)?;
        }
    }
    world.restore(&before).context("after a trade")?;
    Ok(format!("{} trades among three services", 2 * TRADES.len()))
}

/// Cgroups with a task in each, removed at the end.
pub(crate) struct World {
    tasks: Vec<Child>,
    enabled: bool,
}

impl World {
    pub(crate) fn new(enabled: bool) -> Result<Self> {
        let mut world = Self {
            tasks: Vec::new(),
            enabled,
        };
        if enabled {
            control("", "+cpuset +cpu")?;
        }
        for cgroup in CGROUPS {
            let dir = format!("{ROOT}/{cgroup}");
            fs::create_dir(&dir).with_context(|| format!("making {dir}"))?;
        }
        if enabled {
            control("tenant", "+cpuset +cpu")?;
        }
        for cgroup in CGROUPS.iter().filter(|cgroup| **cgroup != "tenant") {
            let task = Command::new("sleep")
                .arg("1000")
                .stdin(Stdio::null())
                .spawn()
                .context("starting a task")?;
            let procs = format!("{ROOT}/{cgroup}/cgroup.procs");
            fs::write(&procs, task.id().to_string()).with_context(|| format!("writing {procs}"))?;
            world.tasks.push(task);
        }
        Ok(world)
    }

    /// All files that can be set, as they are. Those that a controller brings are there only while it is on.
    pub(crate) fn snapshot(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut files = BTreeMap::from([(SYSCTL.into(), fs::read(SYSCTL)?)]);
        for cgroup in CGROUPS.iter().chain(&[""]) {
            let dir = Path::new(ROOT).join(cgroup);
            for entry in fs::read_dir(&dir)?.flatten() {
                let name = entry.file_name().into_string().unwrap_or_default();
                let is_set = [
                    "cpuset.",
                    "cpu.weight",
                    "cpu.max",
                    "cgroup.subtree",
                    "cgroup.controllers",
                ];
                if is_set.iter().any(|prefix| name.starts_with(prefix)) {
                    files.insert(entry.path(), fs::read(entry.path())?);
                }
            }
        }
        Ok(files)
    }

    pub(crate) fn check_same(&self, before: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
        let now = self.snapshot()?;
        for path in before.keys().chain(now.keys()) {
            let text = |files: &BTreeMap<PathBuf, Vec<u8>>| {
                files
                    .get(path)
                    .map(|text| String::from_utf8_lossy(text).into_owned())
            };
            let (was, is) = (text(before), text(&now));
            ensure!(was == is, "{} is {is:?}, not {was:?}", path.display());
        }
        ensure!(!Path::new(JOURNAL).exists(), "the journal is still there");
        Ok(())
    }

    fn check_applied(&self, machine: &Machine) -> Result<()> {
        apply(&policy_text(machine))?;
        let node = machine.cpus_of_node(1);
        let die = machine.cpus_of_die(0);
        let range = |cpus: std::ops::Range<usize>| format!("{}-{}", cpus.start, cpus.end - 1);
        for (file, value) in [
            ("latency/cpuset.cpus", range(die.clone())),
            ("latency/cpuset.cpus.effective", range(die)),
            ("latency/cpuset.cpus.partition", "root".into()),
            ("latency/cpuset.mems", "0".into()),
            ("latency/cpu.weight", "1000".into()),
            ("tenant/db/cpuset.cpus.effective", range(node)),
            ("tenant/db/cpuset.mems.effective", "1".into()),
            ("batch/cpu.weight", "10".into()),
        ] {
            same(file, &value)?;
        }
        ensure!(
            fs::read_to_string(SYSCTL)?.trim() == "0",
            "numa_balancing is not off"
        );
        // What is there is what a task may use: the batch job is not on the exclusive CPUs.
        let batch = self.tasks.get(2).context("no batch task")?.id();
        let status = fs::read_to_string(format!("/proc/{batch}/status"))?;
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .context("no Cpus_allowed_list")?;
        let exclusive = read_list(&format!("{ROOT}/latency/cpuset.cpus"))?;
        let shared = read_list(&format!("{ROOT}/batch/cpuset.cpus.effective"))?;
        ensure!(
            shared.is_disjoint(&exclusive),
            "the batch job may use {allowed}, of which {exclusive:?} are not its own"
        );
        let again = manycore(&["policy", "diff", FILE])?;
        ensure!(
            again.trim() == "no difference",
            "there is a difference: {again}"
        );
        Ok(())
    }

    fn restore(&self, before: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
        let output = run("manycore", &["policy", "restore"], true)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && said.is_empty(), "{said}");
        self.check_same(before)?;
        // Again, with nothing to do.
        manycore(&["policy", "restore"])?;
        self.check_same(before)
    }

    /// Kills an apply before its first write, which the journal comes before, and then ever later after that. How often
    /// there was something to undo.
    fn check_killed(&self, before: &BTreeMap<PathBuf, Vec<u8>>) -> Result<usize> {
        let started = Instant::now();
        manycore(&["policy", "apply", FILE])?;
        let whole = started.elapsed();
        self.restore(before).context("before any kill")?;
        let mut with_journal = 0;
        for step in 1..=KILLS {
            let mut child = Command::new("manycore")
                .args(["policy", "apply", FILE])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .context("starting manycore")?;
            if step > 1 {
                wait_for_journal(&mut child)?;
            }
            std::thread::sleep(whole * (step - 1) / (2 * KILLS));
            child.kill().context("killing manycore")?;
            child.wait().context("waiting for manycore")?;
            with_journal += usize::from(Path::new(JOURNAL).exists());
            self.restore(before).with_context(|| {
                format!(
                    "after kill -9 {step} of {KILLS}, an apply taking {} ms",
                    whole.as_millis()
                )
            })?;
        }
        ensure!(with_journal > 0, "no kill came after the first write");
        Ok(with_journal)
    }

    fn check_reload(&self, machine: &Machine, before: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
        apply(&policy_text(machine))?;
        let in_force = fs::read("/run/manycore/policy.journal").context("reading the journal")?;
        let applied = self.snapshot()?;
        for (mistake, word) in [
            (
                "[[service]]\ncgroup = \"/batch\"\nwieght = 1\n",
                ":3: unknown field `wieght`",
            ),
            (
                "[[service]]\ncgroup = \"/batch\"\ncpus = 4000\n",
                ":3: CPU 4000 doesn't exist",
            ),
            (
                "[[service]]\ncgroup = \"/batch\"\ncpus = []\n",
                ":3: `cpus` is an empty set",
            ),
            (
                "[[service]]\ncgroup = \"/latency\"\ncpus = 1\nexclusive = true\n\
                 [[service]]\ncgroup = \"/batch\"\ncpus = 1\nexclusive = true\n",
                ":7: CPUs 1 are exclusively those of",
            ),
        ] {
            fs::write(FILE, mistake)?;
            check_refusal(
                &run("manycore", &["policy", "apply", FILE], true)?,
                1,
                &[FILE, word],
            )?;
            ensure!(
                self.snapshot()? == applied,
                "a mistake changed something: {mistake}"
            );
            let journal = fs::read("/run/manycore/policy.journal")?;
            ensure!(
                journal == in_force,
                "a mistake changed the journal: {mistake}"
            );
        }
        // What the next policy doesn't want is put back, or as wide as the kernel allows.
        apply("[[service]]\ncgroup = \"/latency\"\ncpus = 1\nweight = 7\n")?;
        same("latency/cpuset.cpus.partition", "member")?;
        same("latency/cpu.weight", "7")?;
        self.restore(before).context("after a reload")
    }

    /// What somebody else sets in the meantime is not undone.
    fn check_others(&self, before: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
        apply(
            "[[service]]\ncgroup = \"/latency\"\nweight = 1000\n[[service]]\ncgroup = \"/batch\"\nweight = 10\n",
        )?;
        fs::write(format!("{ROOT}/batch/cpu.weight"), "42")?;
        let output = run("manycore", &["policy", "restore"], true)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success() && said.contains("left alone: /batch cpu.weight is \"42\""),
            "it says {said}"
        );
        same("batch/cpu.weight", "42")?;
        same("latency/cpu.weight", "100")?;
        fs::write(format!("{ROOT}/batch/cpu.weight"), "100")?;
        if !self.enabled {
            control("", "-cpu")?;
        }
        self.check_same(before)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Best effort: after a failure, what is left goes with the guest.
        for task in &mut self.tasks {
            let _ = task.kill();
            let _ = task.wait();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        for cgroup in CGROUPS.iter().rev() {
            while fs::remove_dir(format!("{ROOT}/{cgroup}")).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if self.enabled {
            let _ = control("", "-cpuset -cpu");
        }
    }
}

pub(crate) const FILE: &str = "/tmp/policy.toml";

pub(crate) fn policy_text(machine: &Machine) -> String {
    format!(
        "[machine]\nnuma_balancing = false\n\
         [[service]]\ncgroup = \"/latency\"\nwidth = \"narrow\"\nmemory = \"local\"\nclass = \"latency\"\nweight = 1000\n\
         exclusive = true\n\
         [[service]]\ncgroup = \"/tenant/db\"\nnodes = {}\nmemory = \"local\"\n\
         [[service]]\ncgroup = \"/batch\"\nwidth = \"wide\"\nclass = \"batch\"\nweight = 10\n",
        1.min(machine.node_count() - 1)
    )
}

fn apply(text: &str) -> Result<()> {
    fs::write(FILE, text).context("writing a policy")?;
    manycore(&["policy", "apply", FILE]).map(drop)
}

/// Runs it, and fails if it fails.
pub(crate) fn manycore(args: &[&str]) -> Result<String> {
    let output = run("manycore", args, true)?;
    if !output.status.success() {
        bail!(
            "manycore {} ended with {}: {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn control(cgroup: &str, words: &str) -> Result<()> {
    let path = Path::new(ROOT).join(cgroup).join("cgroup.subtree_control");
    fs::write(&path, words).with_context(|| format!("writing {words} to {}", path.display()))
}

pub(crate) fn same(file: &str, value: &str) -> Result<()> {
    let path = format!("{ROOT}/{file}");
    let now = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    ensure!(
        now.trim() == value,
        "{file} is {:?}, not {value:?}",
        now.trim()
    );
    Ok(())
}

/// Waits until an apply has written its journal, or has ended.
fn wait_for_journal(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !Path::new(JOURNAL).exists() && child.try_wait().context("waiting")?.is_none() {
        ensure!(Instant::now() < deadline, "no journal within 60 s");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
