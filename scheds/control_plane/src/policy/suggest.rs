//! A policy file to start from.

use std::fmt::Write;

use super::machine::{Machine, parent};
use super::resolve::{memory_nodes, online};
use super::{Error, IdSet, plan::scan_error};
use crate::topology::Topology;

/// How many services to list.
const MOST: usize = 12;

/// A policy file for this machine and what runs on it. All of it is commented out: it changes nothing until the `#` of
/// a line is removed.
///
/// # Errors
/// If the cgroups can't be read.
pub fn suggest(topology: &Topology, machine: &Machine) -> Result<String, Error> {
    let mut text = String::from(
        "# A policy for `manycore policy apply FILE`, or for the --policy of a scheduler. Nothing is in force yet: remove the\n\
         # `#` before the lines that you want. `manycore policy check FILE` says whether it can be applied.\n#\n",
    );
    describe(&mut text, topology);
    text.push_str(
        "\n#[machine]\n# Whether the kernel moves memory to the nodes that use it. Off if services have a fixed place.\n\
         #numa_balancing = false\n",
    );
    let services = busiest(machine)?;
    if services.is_empty() {
        text.push_str("\n# No cgroup below the root has used a CPU. An example:\n");
        service(&mut text, "/system.slice/example.service", None);
    }
    for (path, usage_us) in services.iter().take(MOST) {
        text.push('\n');
        service(&mut text, path, Some(*usage_us));
    }
    if let Some(rest @ 1..) = services.len().checked_sub(MOST) {
        let _ = writeln!(text, "\n# {rest} more cgroups have used less.");
    }
    Ok(text)
}

fn describe(text: &mut String, topology: &Topology) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "# This machine: {topology}");
    let _ = writeln!(text, "#   CPUs   {}", online(topology));
    for llc in topology.llcs() {
        let cpus: IdSet = llc.cpus.iter().map(|cpu| cpu.0).collect();
        let _ = writeln!(text, "#   LLC {:<3} node {}, CPUs {cpus}", llc.id, llc.node);
    }
    let _ = writeln!(text, "#   memory on nodes {}", memory_nodes(topology));
    if topology.llcs().len() == 1 && topology.nr_online() > 32 {
        text.push_str(
            "# That many CPUs hardly share one cache: the host of this guest may hide the structure. Name `cpus` then, as\n\
             # `narrow` and `node` mean the whole machine.\n",
        );
    }
}

fn service(text: &mut String, path: &str, usage_us: Option<u64>) {
    if let Some(usage_us) = usage_us {
        let _ = writeln!(
            text,
            "# has used {:.1} s of CPU time",
            usage_us as f64 / 1e6
        );
    }
    let unit = path.rsplit('/').next().unwrap_or(path);
    let by = if unit.ends_with(".service") && !unit.contains(['*', '?', '[']) {
        format!("unit = {}", quoted(unit))
    } else {
        format!("cgroup = {}", quoted(&escape(path)))
    };
    let _ = writeln!(
        text,
        "#[[service]]\n#{by}\n#width = \"narrow\"     # or \"node\", \"wide\"; or nodes, llcs, cpus = \"0-3\"\n\
         #memory = \"local\"     # or nodes: \"0-1\"\n#class = \"latency\"    # or \"normal\", \"batch\"\n\
         #weight = 100         # 1 to 10000: its share where CPUs are contended"
    );
}

/// A literal string of TOML, where a backslash of systemd's stands for itself; where that can't be, another.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A path as a glob that matches only it.
fn escape(path: &str) -> String {
    glob::Pattern::escape(path)
}

/// Cgroups with processes, or with nothing below them, by CPU time used, most first.
fn busiest(machine: &Machine) -> Result<Vec<(String, u64)>, Error> {
    let cgroups = machine.cgroups().map_err(|err| scan_error(machine, err))?;
    let usage = |path: &str| {
        let stat = machine.text(path, "cpu.stat").ok()?;
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))?;
        line.trim().parse::<u64>().ok()
    };
    let is_leaf = |path: &str| !cgroups.keys().any(|other| parent(other) == Some(path));
    let mut found: Vec<(String, u64)> = cgroups
        .keys()
        .filter(|path| is_leaf(path))
        .filter_map(|path| Some((path.clone(), usage(path)?)))
        .filter(|(_, usage)| *usage > 0)
        .collect();
    found.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Policy, resolve};
    use std::path::Path;

    /// Removes the `#` of what can be switched on.
    fn switched_on(text: &str) -> String {
        let on = |line: &str| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        };
        text.lines().map(on).collect()
    }

    #[test]
    fn it_changes_nothing_as_it_is_and_is_right_when_switched_on() {
        let dir = tempfile::tempdir().unwrap();
        for (path, usage) in [
            ("system.slice/db.service", 900),
            (r"a\x2db/w[1]", 5000),
            ("idle", 0),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("cpu.stat"), format!("usage_usec {usage}\n")).unwrap();
        }
        let machine = Machine::at(dir.path(), "/proc");
        let topology = Topology::fake(2, 2, 4);
        let text = suggest(&topology, &machine).unwrap();
        assert!(text.contains("LLC 3   node 1, CPUs 12-15"), "{text}");
        let quiet = Policy::parse(Path::new("p"), &text).unwrap();
        assert!(quiet.services.is_empty() && quiet.numa_balancing.is_none());
        let on = Policy::parse(Path::new("p"), &switched_on(&text)).unwrap();
        assert!(resolve(&on, &topology).is_ok());
        assert_eq!(on.numa_balancing.as_ref().unwrap().value, 0);
        assert_eq!(on.service_of(r"/a\x2db/w[1]"), Some(0));
        assert_eq!(on.service_of("/system.slice/db.service"), Some(1));
        assert_eq!(on.services.len(), 2);
    }
}
