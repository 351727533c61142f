//! `manycore topo`, beside what others say of the same machine.

use crate::Setting;
use crate::daemon::{Daemon, check_refusal, printed, run};
use crate::load::{Load, Work};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

/// For each task to get a turn.
const TURN: Duration = Duration::from_secs(10);

/// CPUs by what they share.
type Groups = BTreeSet<BTreeSet<u64>>;

/// It shows what `lscpu -e` and `numactl -H` show, to any user.
pub(crate) fn topo(_: &Setting) -> Result<String> {
    let topo = json(&run("manycore", &["topo", "--json"], false)?)?;
    let drawing = printed(&run("manycore", &["topo"], false)?)?;
    check_lscpu(
        &topo,
        &json(&run(
            "lscpu",
            &["-J", "-e=CPU,NODE,SOCKET,CORE,CACHE,ONLINE"],
            true,
        )?)?,
    )?;
    check_numactl(&topo, &printed(&run("numactl", &["-H"], true)?)?)?;
    check_domains(topo["online"].as_u64().unwrap_or(0))?;
    let summary = drawing.lines().next().unwrap_or_default();
    for node in array(&topo, "nodes")? {
        // One that has memory only is in no socket.
        let socket = if array(node, "llcs")?.is_empty() {
            ""
        } else {
            "socket"
        };
        let title = format!("node {} · {socket}", number(node, "id")?);
        ensure!(
            drawing.contains(&title),
            "no {title:?} in the drawing: {drawing}"
        );
    }
    Ok(summary.to_owned())
}

/// Root is shown the kernel's scheduling domains, if the kernel is told to.
fn check_domains(online: u64) -> Result<()> {
    fs::write(crate::kernel::debugfs()?.join("sched/verbose"), "Y")
        .context("asking for domains")?;
    let topo = json(&run("manycore", &["topo", "--json"], true)?)?;
    let domains = array(&topo, "sched_domains")?;
    // A single CPU has nobody to balance with.
    ensure!(
        domains.is_empty() == (online <= 1),
        "{} scheduling domains of {online} CPUs are shown",
        domains.len()
    );
    for domain in domains {
        ensure!(
            domain["name"].is_string(),
            "a domain without name: {domain}"
        );
    }
    let widest = domains
        .last()
        .and_then(|domain| domain["sizes"][1].as_u64());
    // Without CONFIG_SCHEDSTATS no CPUs are shown.
    if let Some(widest) = widest {
        ensure!(
            widest == online,
            "the widest domain has {widest} of {online} CPUs"
        );
    }
    Ok(())
}

fn check_lscpu(topo: &Value, lscpu: &Value) -> Result<()> {
    let (ours, theirs) = (array(topo, "cpus")?, array(lscpu, "cpus")?);
    let last_cache = |cpu: &Value| -> Option<u64> {
        let caches = cpu
            .as_object()?
            .iter()
            .find(|(name, _)| name.starts_with("l1"))?
            .1;
        caches.as_str()?.rsplit(':').next()?.parse().ok()
    };
    let by = |name: &'static str| move |cpu: &Value| cpu[name].as_u64();
    same(
        "online CPUs",
        &groups(ours, by_bool)?,
        &groups(theirs, by_bool)?,
    )?;
    same(
        "nodes",
        &named(ours, by("node"))?,
        &named(theirs, by("node"))?,
    )?;
    same(
        "sockets",
        &groups(ours, by("socket"))?,
        &groups(theirs, by("socket"))?,
    )?;
    same(
        "cores",
        &groups(ours, by("core"))?,
        &groups(theirs, by("core"))?,
    )?;
    same(
        "caches",
        &groups(ours, by("llc"))?,
        &groups(theirs, last_cache)?,
    )
}

fn by_bool(cpu: &Value) -> Option<u64> {
    cpu["online"].as_bool().map(u64::from)
}

fn named(
    cpus: &[Value],
    by: impl Fn(&Value) -> Option<u64>,
) -> Result<BTreeMap<u64, BTreeSet<u64>>> {
    let mut groups: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for cpu in cpus {
        let group = by(cpu).with_context(|| format!("a CPU without a place: {cpu}"))?;
        groups.entry(group).or_default().insert(number(cpu, "cpu")?);
    }
    Ok(groups)
}

/// The same where each numbers in its own way.
fn groups(cpus: &[Value], by: impl Fn(&Value) -> Option<u64>) -> Result<Groups> {
    Ok(named(cpus, by)?.into_values().collect())
}

/// `node 0 cpus: 0 1 2`, `node 0 size: 1480 MB`, and a table of distances.
fn check_numactl(topo: &Value, shown: &str) -> Result<()> {
    let numbers = |text: &str| -> Vec<u64> {
        text.split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    let after = |start: &str| {
        let line = shown.lines().find_map(|line| line.strip_prefix(start));
        line.with_context(|| format!("no {start:?} in: {shown}"))
    };
    let nodes = array(topo, "nodes")?;
    let available = after("available: ")?;
    ensure!(
        numbers(available)[0] == nodes.len() as u64,
        "{} nodes, not {available}",
        nodes.len()
    );
    for node in nodes {
        let id = number(node, "id")?;
        let mut cpus = BTreeSet::new();
        for core in array(node, "llcs")?
            .iter()
            .flat_map(|llc| llc["cores"].as_array())
            .flatten()
        {
            cpus.extend(
                core.as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_u64),
            );
        }
        let theirs = numbers(after(&format!("node {id} cpus:"))?)
            .into_iter()
            .collect();
        same(&format!("the CPUs of node {id}"), &cpus, &theirs)?;
        let mib = number(node, "memory_bytes")? >> 20;
        let size = numbers(after(&format!("node {id} size:"))?);
        same(
            &format!("the memory of node {id} in MiB"),
            &vec![mib],
            &size,
        )?;
        let distances: Vec<u64> = nodes
            .iter()
            .map(|to| number(&node["distances"], &number(to, "id")?.to_string()))
            .collect::<Result<_>>()?;
        let row = shown
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&format!("{id}: ")));
        let row = numbers(row.context("no row of distances")?);
        same(&format!("the distances of node {id}"), &distances, &row)?;
    }
    Ok(())
}

/// Where CPUs are emulated, or more than the host has, latencies mean nothing: it says so and writes nothing.
pub(crate) fn probe(_: &Setting) -> Result<String> {
    let path = "/tmp/probed.toml";
    let output = run("manycore", &["topo", "--probe", "--out", path], true)?;
    let said = String::from_utf8_lossy(&output.stderr)
        .trim_end()
        .to_owned();
    if output.status.success() {
        // A host with CPUs enough.
        return Ok(said);
    }
    check_refusal(
        &output,
        1,
        &["can't be trusted here", "Nothing was written"],
    )?;
    ensure!(!Path::new(path).exists(), "it wrote {path}");
    Ok(said)
}

/// Each scheduler goes by the file, and refuses one that doesn't fit before it loads anything.
pub(crate) fn topology_file(setting: &Setting) -> Result<String> {
    let topo = json(&run("manycore", &["topo", "--json"], true)?)?;
    // Each core a cache of its own: more of them than the kernel knows.
    let mut file = "version = 1\n".to_owned();
    let mut caches = 0;
    for node in array(&topo, "nodes")? {
        // Other ids than the kernel's.
        file += &format!("[[node]]\nid = {}\n", number(node, "id")? + 500);
        for core in array(node, "llcs")?
            .iter()
            .flat_map(|llc| llc["cores"].as_array())
            .flatten()
        {
            let cpus: Vec<String> = core
                .as_array()
                .into_iter()
                .flatten()
                .map(Value::to_string)
                .collect();
            file += &format!("[[node.llc]]\ncpus = \"{}\"\n", cpus.join(","));
            caches += 1;
        }
    }
    let path = "/tmp/caches.toml";
    fs::write(path, &file).context("writing a topology file")?;
    let daemon = Daemon::start(setting, &["--topology", path])?;
    let said = daemon.stderr();
    let words = format!("{caches} LLCs");
    ensure!(said.contains(&words), "it doesn't say {words:?}: {said}");
    let load = Load::start(2 * caches, Work::Spin)?;
    load.check_progress(TURN)?;
    drop(load);
    daemon.stop()?;

    fs::write(path, file.replacen("cpus = \"0", "cpus = \"9999,0", 1))
        .context("writing a topology file")?;
    let name = setting.scheduler()?.name;
    check_refusal(
        &run(name, &["--topology", path], true)?,
        1,
        &["caches.toml:5: there is no CPU 9999"],
    )?;
    Ok(format!("{caches} caches"))
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_str(&printed(output)?).context("not JSON")
}

fn array<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    value[name]
        .as_array()
        .with_context(|| format!("no list {name}"))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name]
        .as_u64()
        .with_context(|| format!("no number {name} in {value}"))
}

fn same<T: PartialEq + Debug>(what: &str, ours: &T, theirs: &T) -> Result<()> {
    ensure!(
        ours == theirs,
        "{what}: {ours:?}, but others say {theirs:?}"
    );
    Ok(())
}
