//! What the meter needs of the machine's topology: where each CPU is.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use scx_utils::Topology;

/// Where a CPU is. Numbers are unique over the machine, but not dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub core: u32,
    pub llc: u32,
    pub node: u32,
}

/// The online CPUs and their places.
#[derive(Debug, Clone)]
pub(super) struct Places {
    by_cpu: BTreeMap<u32, Place>,
}

impl Places {
    /// Reads the topology of this machine.
    ///
    /// # Errors
    /// If sysfs can't be read.
    pub(super) fn read() -> Result<Self> {
        let topology =
            Topology::new().context("can't read the CPU topology from /sys/devices/system")?;
        let by_cpu = topology.all_cpus.values().map(|cpu| {
            let place = Place {
                core: cpu.core_id as u32,
                llc: cpu.llc_id as u32,
                node: cpu.node_id as u32,
            };
            (cpu.id as u32, place)
        });
        Ok(Self {
            by_cpu: by_cpu.collect(),
        })
    }

    /// Online CPUs by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Place)> {
        self.by_cpu.iter().map(|(&cpu, &place)| (cpu, place))
    }

    /// How many CPUs are online.
    pub(super) fn cpus(&self) -> usize {
        self.by_cpu.len()
    }

    /// How many nodes have CPUs that are online.
    pub(super) fn nodes(&self) -> usize {
        self.node_indices()
            .into_values()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    }

    /// The dense index of each online CPU's node.
    fn node_indices(&self) -> BTreeMap<u32, usize> {
        let mut dense = BTreeMap::new();
        for (_, place) in self.iter() {
            let next = dense.len();
            dense.entry(place.node).or_insert(next);
        }
        self.iter()
            .map(|(cpu, place)| (cpu, dense[&place.node]))
            .collect()
    }

    /// The dense index of the node of each CPU number up to `cpus`; 0 for those that aren't online.
    pub(super) fn node_of(&self, cpus: u32) -> Vec<usize> {
        let known = self.node_indices();
        (0..cpus)
            .map(|cpu| known.get(&cpu).copied().unwrap_or(0))
            .collect()
    }
}
