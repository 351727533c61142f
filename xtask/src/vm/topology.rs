//! `vm/topologies.toml`: the machines that guests see.

use crate::failure::Usage;
use crate::workspace;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;

/// The distance of a node to itself, by the ACPI specification (SLIT).
const LOCAL: u32 = 10;

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    #[serde(skip_deserializing)]
    pub name: String,
    pub summary: String,
    /// Each a NUMA node.
    pub sockets: usize,
    /// In each socket, each with its own last-level cache.
    pub dies: usize,
    /// In each die.
    pub cores: usize,
    /// Of each core.
    pub threads: usize,
    /// Of each node.
    pub memory_mib: usize,
    pub distances: Vec<Vec<u32>>,
    /// If nodes are not a socket each: what they are.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// So many CPUs, the last ones, could be plugged in and are not.
    #[serde(default)]
    pub absent: usize,
    /// Nobody's machine, but one that must work: listed last.
    #[serde(default)]
    pub odd: bool,
}

/// A NUMA node; its CPUs follow those of the one before.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// None if it is memory only.
    pub cpus: usize,
    pub memory_mib: usize,
}

impl Topology {
    fn cpus_per_socket(&self) -> usize {
        self.dies * self.cores * self.threads
    }

    fn possible_cpus(&self) -> usize {
        self.sockets * self.cpus_per_socket()
    }

    /// Those that are there.
    pub fn cpus(&self) -> usize {
        self.possible_cpus() - self.absent
    }

    fn all_nodes(&self) -> Vec<Node> {
        if !self.nodes.is_empty() {
            return self.nodes.clone();
        }
        let node = Node {
            cpus: self.cpus_per_socket(),
            memory_mib: self.memory_mib,
        };
        vec![node; self.sockets]
    }

    pub fn describe(&self) -> String {
        format!("{} ({})", self.name, self.summary)
    }

    fn check(&self) -> Result<()> {
        if [
            self.sockets,
            self.dies,
            self.cores,
            self.threads,
            self.memory_mib,
        ]
        .contains(&0)
        {
            bail!("a count or a size of 0");
        }
        let nodes = self.all_nodes();
        let count = nodes.len();
        if self.distances.len() != count || self.distances.iter().any(|row| row.len() != count) {
            bail!("distances is not a table of {count} by {count}");
        }
        let cpus: usize = nodes.iter().map(|node| node.cpus).sum();
        if cpus != self.possible_cpus() || nodes.iter().any(|node| node.memory_mib == 0) {
            bail!(
                "its nodes have {cpus} CPUs, not {}, or one has no memory",
                self.possible_cpus()
            );
        }
        if self.absent >= self.possible_cpus() {
            bail!("no CPU is there");
        }
        for (i, row) in self.distances.iter().enumerate() {
            for (j, &distance) in row.iter().enumerate() {
                let fits = if i == j {
                    distance == LOCAL
                } else {
                    (LOCAL + 1..255).contains(&distance)
                };
                if !fits || self.distances[j][i] != distance {
                    bail!(
                        "the distance between nodes {i} and {j} must be 10 to itself, 11 to 254 to others, and the same both ways"
                    );
                }
            }
        }
        Ok(())
    }

    /// Of all nodes.
    pub fn memory_mib(&self) -> usize {
        self.all_nodes().iter().map(|node| node.memory_mib).sum()
    }

    /// virtme-run's arguments for CPUs, memory and nodes.
    pub fn virtme_args(&self) -> Vec<String> {
        let mut cpus = format!(
            "{},sockets={},dies={},cores={},threads={}",
            self.cpus(),
            self.sockets,
            self.dies,
            self.cores,
            self.threads
        );
        if self.absent > 0 {
            cpus += &format!(",maxcpus={}", self.possible_cpus());
        }
        let mut args = vec![
            "--cpus".into(),
            cpus,
            "--memory".into(),
            format!("{}M", self.memory_mib()),
        ];
        let mut first = 0;
        for node in self.all_nodes() {
            args.push("--numa".into());
            args.push(match node.cpus {
                0 => format!("{}M", node.memory_mib),
                cpus => format!("{}M,cpus={first}-{}", node.memory_mib, first + cpus - 1),
            });
            first += node.cpus;
        }
        for (src, row) in self.distances.iter().enumerate() {
            for (dst, distance) in row.iter().enumerate().filter(|(dst, _)| *dst != src) {
                args.push("--numa-distance".into());
                args.push(format!("src={src},dst={dst},val={distance}"));
            }
        }
        args
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topologies {
    pub default: String,
    topology: BTreeMap<String, Topology>,
}

impl Topologies {
    pub fn load() -> Result<Self> {
        let path = workspace::root().join("vm/topologies.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut all: Self = toml::from_str(text)?;
        for (name, topology) in &mut all.topology {
            topology.name = name.clone();
            topology
                .check()
                .with_context(|| format!("topology {name}"))?;
        }
        Ok(all)
    }

    /// From the smallest to the largest, the odd ones last.
    pub fn all(&self) -> Vec<&Topology> {
        let mut list: Vec<_> = self.topology.values().collect();
        list.sort_by_key(|topology| (topology.odd, topology.cpus()));
        list
    }

    pub fn get(&self, name: &str) -> Result<&Topology> {
        self.topology.get(name).ok_or_else(|| {
            let known: Vec<_> = self.all().iter().map(|t| t.name.as_str()).collect();
            Usage(format!(
                "no topology {name:?} in vm/topologies.toml; known: {}",
                known.join(", ")
            ))
            .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_valid_and_has_the_sizes_of_its_names() {
        let all = Topologies::load().unwrap();
        all.get(&all.default).unwrap();
        for topology in all.all() {
            let digits: String = topology.name.chars().filter(char::is_ascii_digit).collect();
            assert_eq!(digits.parse(), Ok(topology.cpus()), "{}", topology.name);
        }
    }

    #[test]
    fn an_unknown_topology_lists_the_known_ones() {
        let error = Topologies::load().unwrap().get("t7").unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("t2, t8, t16-smt"));
    }

    #[test]
    fn an_asymmetric_or_short_table_is_refused() {
        let text = |distances: &str| {
            format!(
                "default = \"a\"\n[topology.a]\nsummary = \"\"\nsockets = 2\ndies = 1\ncores = 1\nthreads = 1\n\
                 memory_mib = 1\ndistances = {distances}\n"
            )
        };
        assert!(Topologies::parse(&text("[[10, 21], [21, 10]]")).is_ok());
        for bad in [
            "[[10, 21], [20, 10]]",
            "[[10, 21]]",
            "[[11, 21], [21, 10]]",
            "[[10, 10], [10, 10]]",
        ] {
            assert!(Topologies::parse(&text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn nodes_are_ranges_of_cpus() {
        let all = Topologies::load().unwrap();
        let args = all.get("t16-smt").unwrap().virtme_args().join(" ");
        assert!(args.contains("--cpus 16,sockets=2,dies=2,cores=2,threads=2"));
        assert!(args.contains("--numa 1536M,cpus=0-7 --numa 1536M,cpus=8-15"));
        assert!(args.contains("--numa-distance src=0,dst=1,val=21"));
        let args = all.get("t4-memory").unwrap().virtme_args().join(" ");
        assert!(args.contains("--numa 1024M,cpus=2-3 --numa 512M --numa-distance"));
        let args = all.get("t6-absent").unwrap().virtme_args().join(" ");
        assert!(args.contains("--cpus 6,sockets=2,dies=1,cores=4,threads=1,maxcpus=8"));
    }
}
