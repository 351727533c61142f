//! The machine as policies see it: which CPU belongs to which cache and node.

use std::collections::{BTreeMap, BTreeSet};

use control_plane::Topology;

/// Tables by CPU id, and by cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    llc_of: Vec<u32>,
    node_of: Vec<u32>,
    llcs: Vec<Vec<u32>>,
    nr_nodes: u32,
    nr_online: u32,
}

impl Layout {
    /// Tables of a machine as it was when its topology was read.
    pub fn new(topology: &Topology) -> Self {
        let llcs: Vec<(u32, Vec<u32>)> = topology
            .llcs()
            .iter()
            .map(|llc| (llc.node.0, llc.cpus.iter().map(|cpu| cpu.0).collect()))
            .collect();
        Self::from_llcs(&llcs)
    }

    /// Tables of a machine made of these caches: for each the id of its node, and its CPUs. At least one CPU must be there.
    pub fn from_llcs(caches: &[(u32, Vec<u32>)]) -> Self {
        // Ids may be few and far between, and policies have a queue for each node.
        let nodes: BTreeSet<u32> = caches.iter().map(|&(node, _)| node).collect();
        let index: BTreeMap<u32, u32> = nodes.into_iter().zip(0..).collect();
        let ids = caches
            .iter()
            .flat_map(|(_, cpus)| cpus)
            .max()
            .map_or(1, |&max| max as usize + 1);
        let mut layout = Self {
            llc_of: vec![0; ids],
            node_of: vec![0; ids],
            llcs: caches.iter().map(|(_, cpus)| cpus.clone()).collect(),
            nr_nodes: index.len().max(1) as u32,
            nr_online: caches.iter().map(|(_, cpus)| cpus.len() as u32).sum(),
        };
        for (llc, (node, cpus)) in (0..).zip(caches) {
            for &cpu in cpus {
                layout.llc_of[cpu as usize] = llc;
                layout.node_of[cpu as usize] = index[node];
            }
        }
        layout
    }

    /// The cache of a CPU; the first one for a CPU that was not online.
    pub fn llc_of(&self, cpu: u32) -> u32 {
        self.llc_of.get(cpu as usize).copied().unwrap_or(0)
    }

    /// The node of a CPU, as its place among the nodes that have CPUs, by id; the first one for a CPU that was not online.
    pub fn node_of(&self, cpu: u32) -> u32 {
        self.node_of.get(cpu as usize).copied().unwrap_or(0)
    }

    /// The CPUs of a cache, in order; none if there is no such cache.
    pub fn cpus_of(&self, llc: u32) -> &[u32] {
        self.llcs.get(llc as usize).map_or(&[], Vec::as_slice)
    }

    /// How many caches there are; never 0.
    pub fn nr_llcs(&self) -> u32 {
        self.llcs.len().max(1) as u32
    }

    /// How many nodes have CPUs; never 0.
    pub fn nr_nodes(&self) -> u32 {
        self.nr_nodes
    }

    /// The highest CPU id that was online, plus one.
    pub fn nr_cpu_ids(&self) -> u32 {
        self.llc_of.len() as u32
    }

    /// Whether a CPU was online.
    pub fn is_online(&self, cpu: u32) -> bool {
        self.cpus_of(self.llc_of(cpu)).contains(&cpu)
    }

    /// How many CPUs were online.
    pub fn nr_online(&self) -> u32 {
        self.nr_online
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_whatever_their_ids() {
        let layout = Layout::from_llcs(&[(501, vec![0, 1]), (500, vec![2]), (501, vec![3])]);
        assert_eq!(layout.nr_nodes(), 2);
        assert_eq!([0, 1, 2, 3].map(|cpu| layout.node_of(cpu)), [1, 1, 0, 1]);
        assert_eq!([0, 1, 2, 3].map(|cpu| layout.llc_of(cpu)), [0, 0, 1, 2]);
    }
}
