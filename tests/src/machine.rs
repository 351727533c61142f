//! `vm/topologies.toml`, read for what it promises. Read apart from xtask's own reader, so that a mistake there is seen.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The top of the checkout.
pub fn checkout() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// A machine of `vm/topologies.toml`. CPUs are numbered by socket, die, core and thread, the last one fastest.
#[derive(Debug, Clone, Deserialize)]
pub struct Machine {
    pub sockets: usize,
    pub dies: usize,
    pub cores: usize,
    pub threads: usize,
    pub memory_mib: usize,
    pub distances: Vec<Vec<u32>>,
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default)]
    absent: usize,
}

/// A NUMA node of a machine whose nodes are not a socket each.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Node {
    cpus: usize,
    memory_mib: usize,
}

#[derive(Debug, Deserialize)]
struct File {
    topology: BTreeMap<String, Machine>,
}

impl Machine {
    /// Reads the one of that name.
    ///
    /// # Errors
    /// If the file can't be read or has none of that name.
    pub fn read(name: &str) -> Result<Self> {
        Self::all()?
            .remove(name)
            .with_context(|| format!("no topology {name} in vm/topologies.toml"))
    }

    /// Reads all of them, by name.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn all() -> Result<BTreeMap<String, Self>> {
        let path = checkout().join("vm/topologies.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let file: File =
            toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(file.topology)
    }

    /// Those that are there.
    pub fn cpus(&self) -> usize {
        self.possible_cpus() - self.absent
    }

    pub fn possible_cpus(&self) -> usize {
        self.sockets * self.dies * self.cores * self.threads
    }

    pub fn node_count(&self) -> usize {
        if self.nodes.is_empty() {
            self.sockets
        } else {
            self.nodes.len()
        }
    }

    /// Those of its CPUs that are there.
    pub fn cpus_of_node(&self, node: usize) -> Range<usize> {
        let range = if self.nodes.is_empty() {
            let each = self.possible_cpus() / self.sockets;
            node * each..(node + 1) * each
        } else {
            let first = self.nodes[..node].iter().map(|node| node.cpus).sum();
            first..first + self.nodes[node].cpus
        };
        range.start.min(self.cpus())..range.end.min(self.cpus())
    }

    pub fn memory_mib_of_node(&self, node: usize) -> usize {
        self.nodes
            .get(node)
            .map_or(self.memory_mib, |node| node.memory_mib)
    }

    /// The CPUs that share a last-level cache with this one.
    pub fn cpus_of_die(&self, cpu: usize) -> Range<usize> {
        self.present(group(cpu, self.cores * self.threads))
    }

    /// The CPUs that share a core with this one.
    pub fn cpus_of_core(&self, cpu: usize) -> Range<usize> {
        self.present(group(cpu, self.threads))
    }

    fn present(&self, range: Range<usize>) -> Range<usize> {
        range.start..range.end.min(self.cpus())
    }
}

fn group(cpu: usize, size: usize) -> Range<usize> {
    let first = cpu / size * size;
    first..first + size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::GUESTS;

    #[test]
    fn cpus_are_grouped_as_promised() {
        let machine = Machine::read("t16-smt").unwrap();
        assert_eq!(machine.cpus(), 16);
        assert_eq!(machine.cpus_of_node(1), 8..16);
        assert_eq!(machine.cpus_of_die(5), 4..8);
        assert_eq!(machine.cpus_of_core(5), 4..6);
        let machine = Machine::read("t12-unequal").unwrap();
        assert_eq!(machine.cpus_of_node(2), 6..12);
        let machine = Machine::read("t6-absent").unwrap();
        assert_eq!((machine.cpus(), machine.cpus_of_die(5)), (6, 4..6));
    }

    #[test]
    fn every_planned_guest_exists() {
        let all = Machine::all().unwrap();
        for guest in GUESTS {
            assert!(all.contains_key(guest.topology), "{}", guest.name());
        }
    }
}
