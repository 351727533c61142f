//! The guest itself.

use crate::Setting;
use crate::cpus::{Cpus, online, read, read_list};
use crate::daemon::{printed, run};
use anyhow::{Context, Result, ensure};
use manycore_tests::machine::Machine;
use manycore_tests::plan::SCHEDULERS;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";

/// Reads back what `vm/topologies.toml` promises.
pub(crate) fn topology(setting: &Setting) -> Result<String> {
    let machine = Machine::read(&setting.topology)?;
    let all: Cpus = (0..machine.cpus()).collect();
    same("the CPUs online", &online()?, &all)?;
    for node in 0..machine.node_count() {
        check_node(&machine, node)?;
    }
    let nodes = read_list(&format!("{NODE}/online"))?;
    same("the nodes", &nodes, &(0..machine.node_count()).collect())?;
    for &cpu in &all {
        check_cpu(&machine, cpu)?;
    }
    Ok(format!(
        "{} CPUs in {} nodes, {} caches a socket, {} threads a core",
        all.len(),
        machine.node_count(),
        machine.dies,
        machine.threads
    ))
}

/// stress-ng has functions in several builds, of which one is chosen by the CPU's model: the wrong one dies of an unknown
/// instruction. It goes through all its ways to burn time, once or for as long as it may.
pub(crate) fn programs(_: &Setting) -> Result<String> {
    let output = Command::new("stress-ng")
        .args(["--cpu", "1", "--cpu-ops", "100", "--timeout", "20"])
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .output()
        .context("starting stress-ng")?;
    printed(&output).context("stress-ng")?;
    Ok("stress-ng runs".into())
}

/// How many programs run at a time.
const STARTERS: usize = 4;

/// Programs run from what is in their files, though the memory they are read into held other programs before: while they
/// are started again and again, all that was read from files is thrown away.
pub(crate) fn page_cache(_: &Setting) -> Result<String> {
    let mut programs = vec!["stress-ng", "perf", "manycore"];
    programs.extend(SCHEDULERS.iter().map(|scheduler| scheduler.name));
    let runs = STARTERS * programs.len();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let starters: Vec<_> = (0..STARTERS)
            .map(|first| {
                let mut programs = programs.clone();
                programs.rotate_left(first);
                scope.spawn(|| programs.into_iter().try_for_each(says_its_version))
            })
            .collect();
        let thrower = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")?;
                std::thread::sleep(Duration::from_millis(300));
            }
            anyhow::Ok(())
        });
        let results: Vec<_> = starters.into_iter().map(ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for result in results.into_iter().chain([thrower.join()]) {
            result.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(format!("{runs} runs of {} programs", programs.len()))
    })
}

fn says_its_version(program: &str) -> Result<()> {
    let output = run(program, &["--version"], true)?;
    printed(&output).with_context(|| format!("{program} --version"))?;
    Ok(())
}

fn check_node(machine: &Machine, node: usize) -> Result<()> {
    let dir = format!("{NODE}/node{node}");
    let cpus = read_list(&format!("{dir}/cpulist"))?;
    same(
        &format!("the CPUs of node {node}"),
        &cpus,
        &machine.cpus_of_node(node).collect(),
    )?;
    let distances: Vec<u32> = read(&format!("{dir}/distance"))?
        .split_whitespace()
        .map(|word| word.parse().context("a distance"))
        .collect::<Result<_>>()?;
    ensure!(
        distances == machine.distances[node],
        "the distances of node {node} are {distances:?}, not {:?}",
        machine.distances[node]
    );
    // The kernel keeps a part for itself, the more so on the first node.
    let mib = memory_mib(&dir)?;
    let promised = machine.memory_mib_of_node(node);
    // Of a small one, the kernel's own share is large.
    ensure!(
        mib <= promised && mib * 10 >= promised * 7 - 1280,
        "node {node} has {mib} MiB, not about {promised}"
    );
    Ok(())
}

fn memory_mib(dir: &str) -> Result<usize> {
    let text = read(&format!("{dir}/meminfo"))?;
    let kib: usize = text
        .lines()
        .find_map(|line| line.split_once("MemTotal:"))
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no MemTotal in {dir}/meminfo"))?;
    Ok(kib / 1024)
}

fn check_cpu(machine: &Machine, cpu: usize) -> Result<()> {
    let siblings = read_list(&format!("{CPU}/cpu{cpu}/topology/thread_siblings_list"))?;
    same(
        &format!("the CPUs of the core of CPU {cpu}"),
        &siblings,
        &machine.cpus_of_core(cpu).collect(),
    )?;
    let mut levels = Vec::new();
    for index in 0.. {
        let dir = format!("{CPU}/cpu{cpu}/cache/index{index}");
        if !Path::new(&dir).exists() {
            break;
        }
        let level = read(&format!("{dir}/level"))?;
        let shared = read_list(&format!("{dir}/shared_cpu_list"))?;
        let promised = if level == "3" {
            machine.cpus_of_die(cpu)
        } else {
            machine.cpus_of_core(cpu)
        };
        same(
            &format!("the CPUs that share a cache of level {level} with CPU {cpu}"),
            &shared,
            &promised.collect(),
        )?;
        levels.push(level);
    }
    ensure!(
        levels.contains(&"3".to_owned()),
        "CPU {cpu} has no cache of level 3, only {levels:?}"
    );
    let node = (0..machine.node_count())
        .find(|node| machine.cpus_of_node(*node).contains(&cpu))
        .with_context(|| format!("CPU {cpu} is promised to no node"))?;
    let node = format!("node{node}");
    let linked = fs::exists(format!("{CPU}/cpu{cpu}/{node}")).context("looking for a node")?;
    ensure!(linked, "CPU {cpu} is not on {node}");
    Ok(())
}

fn same(what: &str, found: &Cpus, promised: &Cpus) -> Result<()> {
    ensure!(found == promised, "{what} are {found:?}, not {promised:?}");
    Ok(())
}
