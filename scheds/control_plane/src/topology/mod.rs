//! The machine as schedulers see it: nodes, last-level caches, cores and CPUs, and how far apart they are.
//!
//! CPU ids may have gaps, and not every *possible* CPU is *present*, nor every present one *online*. Which core and
//! which cache an offline CPU belongs to is not known, as the kernel only says so for those that are online. A node
//! may have memory and no CPU (CXL, GPUs); it is attached to the nearest one that has.
//!
//! A guest may not be told its structure. Then a [file](File) says what it is, for example one that
//! `manycore topo --probe` wrote; see [`Topology::read_with`].

pub mod cluster;
#[cfg(test)]
mod fake;
mod file;
mod read;
pub mod sched_domains;
pub mod structure;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

pub use file::{File, FileCore, FileError, FileLlc, FileNode};
pub use read::{format_list, hotplug_seq, parse_list};

/// The most CPU ids that a machine may have: the largest `CONFIG_NR_CPUS` that distributions build with is 8192, and
/// the tables of the BPF side are meant for half of that.
pub const MAX_CPU_IDS: u32 = 4096;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A CPU's id, as the kernel numbers it. Ids may have gaps.
    CpuId
);
id!(
    /// A NUMA node's id, as the kernel numbers it. Ids may have gaps.
    NodeId
);
id!(
    /// A last-level cache: 0, 1, ... in the order of its lowest CPU, without gaps, unlike the kernel's cache ids.
    LlcId
);
id!(
    /// A physical core: 0, 1, ... in the order of its lowest CPU, without gaps, unlike the kernel's `core_id`.
    CoreId
);

id!(
    /// A socket (package), as the kernel numbers it. Ids may have gaps.
    SocketId
);

/// What went wrong in reading the topology.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} says {content:?}, which is not {expected}")]
    Parse {
        path: String,
        content: String,
        expected: &'static str,
    },
    #[error("cannot read the topology from sysfs: {0}")]
    Sysfs(String),
    #[error("CPU id {0} is beyond the {MAX_CPU_IDS} that are supported")]
    TooManyCpus(u32),
    #[error("no CPU is online according to {0}")]
    NoCpu(String),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Where an online CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub core: CoreId,
    pub llc: LlcId,
}

/// A possible CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    pub id: CpuId,
    /// `None` if the kernel doesn't say, as for CPUs that are possible but not present.
    pub node: Option<NodeId>,
    /// The same as the kernel numbers it, which is another only where a file says so. Kernel functions that take a
    /// node take this one.
    pub kernel_node: Option<NodeId>,
    /// `None` while the CPU is offline.
    pub socket: Option<SocketId>,
    /// `None` while the CPU is offline.
    pub place: Option<Place>,
    /// The other online CPUs of its core, in order.
    pub siblings: Vec<CpuId>,
    pub present: bool,
    pub online: bool,
}

/// CPUs that share a last-level cache, within one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Llc {
    pub id: LlcId,
    pub node: NodeId,
    /// Online CPUs, in order.
    pub cpus: Vec<CpuId>,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    /// Online CPUs, in order; empty for a node of memory only.
    pub cpus: Vec<CpuId>,
    /// Where a file cuts a node of the kernel's in parts: each part's share by its number of CPUs.
    pub memory_bytes: u64,
    /// Distance to each node, itself included, in the firmware's unit (10 is local).
    pub distances: BTreeMap<NodeId, u32>,
    /// The node whose CPUs are nearest: itself, unless it has none.
    pub attached_to: NodeId,
}

/// The machine. Read-only: after a CPU came or went, read it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// As in [`Topology::hotplug_seq`].
    hotplug_seq: Option<u64>,
    cpus: BTreeMap<CpuId, Cpu>,
    llcs: Vec<Llc>,
    nodes: BTreeMap<NodeId, Node>,
}

impl Topology {
    /// Reads the topology of this machine, or of the one that is described below `$SCX_SYSFS_PREFIX/sys`.
    ///
    /// # Errors
    /// If sysfs can't be read or makes no sense, or if there are more than [`MAX_CPU_IDS`] CPU ids.
    pub fn read() -> Result<Self, Error> {
        read::topology()
    }

    /// Reads it, and puts the structure that a file gives, if any, in place of the kernel's.
    ///
    /// # Errors
    /// As [`Topology::read`], or if the file can't be read or doesn't fit the machine.
    pub fn read_with(file: Option<&Path>) -> Result<Self, Error> {
        let kernel = Self::read()?;
        match file {
            None => Ok(kernel),
            Some(path) => Ok(File::apply(path, &kernel)?),
        }
    }

    /// How many times CPUs had come or gone before any of this was read, as the kernel counts (`hotplug_seq`): it refuses a
    /// scheduler that tells it this number if more have since. `None` if it doesn't say.
    pub fn hotplug_seq(&self) -> Option<u64> {
        self.hotplug_seq
    }

    /// All possible CPUs, in order.
    pub fn cpus(&self) -> impl Iterator<Item = &Cpu> {
        self.cpus.values()
    }

    /// `None` if no such CPU is possible.
    pub fn cpu(&self, id: CpuId) -> Option<&Cpu> {
        self.cpus.get(&id)
    }

    /// The highest possible CPU id, plus one: the size of a table that is indexed by CPU.
    pub fn nr_cpu_ids(&self) -> u32 {
        self.cpus.keys().next_back().map_or(0, |id| id.0 + 1)
    }

    /// How many CPUs are online; never 0.
    pub fn nr_online(&self) -> usize {
        self.cpus.values().filter(|cpu| cpu.online).count()
    }

    /// All caches, in the order of their ids.
    pub fn llcs(&self) -> &[Llc] {
        &self.llcs
    }

    /// All nodes, those without CPUs included.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// `None` if there is no such node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The kernel's node of a CPU; node 0 if it is not known.
    pub fn kernel_node(&self, cpu: CpuId) -> NodeId {
        self.cpu(cpu)
            .and_then(|cpu| cpu.kernel_node)
            .unwrap_or(NodeId(0))
    }

    /// The kernel's nodes that one is made of. It is itself one of them, unless a file says otherwise.
    pub fn kernel_nodes(&self, node: NodeId) -> BTreeSet<NodeId> {
        let cpus = self.cpus().filter(|cpu| cpu.node == Some(node));
        let of_cpus: BTreeSet<NodeId> = cpus.filter_map(|cpu| cpu.kernel_node).collect();
        if of_cpus.is_empty() {
            // Those without CPUs are the kernel's in any case.
            [node].into()
        } else {
            of_cpus
        }
    }

    /// All nodes that have memory. A kernel that knows no nodes doesn't say how much it is, but there is some.
    pub fn memory_nodes(&self) -> BTreeSet<NodeId> {
        let with_memory = self.nodes().filter(|node| node.memory_bytes > 0);
        let ids: BTreeSet<NodeId> = with_memory.map(|node| node.id).collect();
        if ids.is_empty() {
            self.nodes.keys().copied().collect()
        } else {
            ids
        }
    }

    /// The first 64 of the kernel's nodes that have memory, a bit for each.
    pub fn kernel_memory_mask(&self) -> u64 {
        let with_memory = self.memory_nodes().into_iter();
        with_memory
            .flat_map(|node| self.kernel_nodes(node))
            .fold(0, |all, node| all | 1_u64.checked_shl(node.0).unwrap_or(0))
    }

    /// This node of the kernel's, or, if it has no CPUs, the one of the nearest CPUs.
    pub fn kernel_node_with_cpus(&self, kernel: NodeId) -> NodeId {
        let nearest = self
            .node(kernel)
            .filter(|node| node.cpus.is_empty())
            .and_then(|node| self.node(node.attached_to)?.cpus.first());
        nearest.map_or(kernel, |&cpu| self.kernel_node(cpu))
    }

    /// Distance between two nodes in the firmware's unit: 10 is local, 20 and more remote. Where the firmware gives
    /// none, 10 and 20, as the kernel assumes.
    pub fn distance(&self, from: NodeId, to: NodeId) -> u32 {
        let given = self
            .nodes
            .get(&from)
            .and_then(|node| node.distances.get(&to));
        given.copied().unwrap_or(if from == to { 10 } else { 20 })
    }

    /// All caches as one of them sees them: itself, then those of its node, then those of other nodes by distance.
    ///
    /// Equally near ones are in turn, starting after `from`: if all began with the lowest id, everybody who looks
    /// for work would look there first. Empty if there is no such cache.
    pub fn llcs_by_distance(&self, from: LlcId) -> Vec<LlcId> {
        let Some(own) = self.llcs.get(from.0 as usize) else {
            return Vec::new();
        };
        let mut order: Vec<&Llc> = self.llcs.iter().collect();
        order.sort_by_key(|llc| {
            let turn = (llc.id.0 as usize + self.llcs.len() - from.0 as usize) % self.llcs.len();
            (
                llc.id != from,
                llc.node != own.node,
                self.distance(own.node, llc.node),
                turn,
            )
        });
        order.iter().map(|llc| llc.id).collect()
    }

    /// All nodes with CPUs as one of them sees them: itself, then the others by distance, equally near ones in turn.
    pub fn nodes_by_distance(&self, from: NodeId) -> Vec<NodeId> {
        let with_cpus: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|n| !n.cpus.is_empty())
            .map(|n| n.id)
            .collect();
        let start = with_cpus.iter().position(|&id| id == from).unwrap_or(0);
        let mut order: Vec<(usize, NodeId)> = with_cpus
            .iter()
            .enumerate()
            .map(|(i, &id)| ((i + with_cpus.len() - start) % with_cpus.len(), id))
            .collect();
        order.sort_by_key(|&(turn, id)| (id != from, self.distance(from, id), turn));
        order.into_iter().map(|(_, id)| id).collect()
    }
}

impl fmt::Display for Topology {
    /// One line, for logs: `8 CPUs online of 16 possible, 4 cores, 2 LLCs, 2 nodes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cores: Vec<CoreId> = self
            .cpus()
            .filter_map(|cpu| cpu.place.map(|place| place.core))
            .collect();
        cores.sort();
        cores.dedup();
        write!(
            f,
            "{} CPUs online of {} possible, {} cores, {} LLCs, {} nodes",
            self.nr_online(),
            self.cpus.len(),
            cores.len(),
            self.llcs.len(),
            self.nodes.len()
        )
    }
}
