//! Cutting the machine into domains, the groups of CPUs that share a queue, and the tables that tell the BPF side
//! about them (`bpf/lib/domains.bpf.h`).

use std::collections::BTreeMap;
use std::mem;

use libbpf_rs::{MapCore, MapFlags, OpenMapMut};

use crate::bpf_intf;
use crate::topology::{CpuId, LlcId, NodeId, Topology};

/// What the CPUs of one domain share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// One queue for each group of CPUs that share a last-level cache
    #[default]
    Llc,
    /// One queue for each NUMA node
    Node,
    /// One queue for the whole machine
    Global,
}

/// A group of CPUs that share a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub node: NodeId,
    /// The same as the kernel numbers it.
    pub kernel_node: NodeId,
    /// CPUs online when the topology was read, in order.
    pub cpus: Vec<CpuId>,
    /// The other domains, nearest first, by index.
    pub near: Vec<u32>,
}

/// The machine cut into domains. A domain is named by its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains {
    domains: Vec<Domain>,
    /// By CPU id; `None` where neither the CPU's cache nor its node is known.
    place: Vec<CpuPlace>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuPlace {
    domain: Option<u32>,
    node: NodeId,
    kernel_node: NodeId,
}

impl Domains {
    /// Cuts the machine at a level.
    ///
    /// A CPU that is offline has a place if there can be no doubt of it: its node is known and has one cache, or the
    /// level is no finer than its node. Otherwise its place is left open, and a scheduler has to be loaded anew when
    /// that CPU comes online.
    pub fn new(topology: &Topology, level: Level) -> Self {
        let groups = match level {
            Level::Llc => llc_domains(topology),
            Level::Node => node_domains(topology),
            Level::Global => vec![global_domain(topology)],
        };
        let nowhere = CpuPlace {
            domain: None,
            node: NodeId(0),
            kernel_node: NodeId(0),
        };
        let mut place = vec![nowhere; topology.nr_cpu_ids() as usize];
        for cpu in topology.cpus() {
            let domain = match (cpu.online, cpu.node) {
                (true, _) => groups
                    .iter()
                    .position(|domain| domain.cpus.contains(&cpu.id)),
                (false, _) if level == Level::Global => Some(0),
                (false, Some(node)) => only_domain_of(&groups, node),
                (false, None) => None,
            };
            place[cpu.id.0 as usize] = CpuPlace {
                domain: domain.map(|index| index as u32),
                node: cpu.node.unwrap_or(NodeId(0)),
                kernel_node: topology.kernel_node(cpu.id),
            };
        }
        Self {
            domains: groups,
            place,
        }
    }

    /// All domains; their index is their id.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// The domain of a CPU; `None` if it is not known or if no such CPU is possible.
    pub fn domain_of(&self, cpu: CpuId) -> Option<u32> {
        self.place
            .get(cpu.0 as usize)
            .and_then(|place| place.domain)
    }

    /// How many domains there are; never 0.
    pub fn len(&self) -> u32 {
        self.domains.len() as u32
    }

    /// Never true: a machine has at least one CPU.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// The highest possible CPU id, plus one.
    pub fn nr_cpu_ids(&self) -> u32 {
        self.place.len() as u32
    }

    /// Sizes the tables of an object that is open and not loaded yet.
    ///
    /// # Errors
    /// If libbpf refuses the size.
    pub fn size(
        &self,
        cpus: &mut OpenMapMut<'_>,
        domains: &mut OpenMapMut<'_>,
        masks: &mut OpenMapMut<'_>,
    ) -> libbpf_rs::Result<()> {
        cpus.set_max_entries(self.nr_cpu_ids())?;
        domains.set_max_entries(self.len())?;
        masks.set_max_entries(self.len())
    }

    /// Fills the tables of a loaded object. Call it before attaching.
    ///
    /// # Errors
    /// If a table can't be written.
    pub fn fill(&self, cpus: &impl MapCore, domains: &impl MapCore) -> libbpf_rs::Result<()> {
        for (id, place) in (0u32..).zip(&self.place) {
            let row = bpf_intf::cpu_place {
                domain: place.domain.unwrap_or(bpf_intf::NO_DOMAIN),
                node: place.node.0,
                kernel_node: place.kernel_node.0,
                leaving: 0,
            };
            cpus.update(&id.to_ne_bytes(), as_bytes(&row), MapFlags::ANY)?;
        }
        for (id, domain) in (0u32..).zip(&self.domains) {
            let mut row = bpf_intf::domain {
                node: domain.node.0,
                kernel_node: domain.kernel_node.0,
                nr_cpus: domain.cpus.len() as u32,
                served_at: 0,
                nr_near: domain.near.len().min(bpf_intf::MAX_NEAR as usize) as u32,
                near: [0; bpf_intf::MAX_NEAR as usize],
            };
            for (slot, &other) in row.near.iter_mut().zip(&domain.near) {
                *slot = other;
            }
            domains.update(&id.to_ne_bytes(), as_bytes(&row), MapFlags::ANY)?;
        }
        Ok(())
    }
}

fn llc_domains(topology: &Topology) -> Vec<Domain> {
    let domain = |llc: &crate::topology::Llc| Domain {
        node: llc.node,
        kernel_node: kernel_node(topology, &llc.cpus),
        cpus: llc.cpus.clone(),
        near: others(&topology.llcs_by_distance(llc.id), |&LlcId(id)| id),
    };
    topology.llcs().iter().map(domain).collect()
}

fn node_domains(topology: &Topology) -> Vec<Domain> {
    let with_cpus: Vec<_> = topology
        .nodes()
        .filter(|node| !node.cpus.is_empty())
        .collect();
    let index: BTreeMap<NodeId, u32> = with_cpus
        .iter()
        .zip(0..)
        .map(|(node, index)| (node.id, index))
        .collect();
    let domain = |node: &&crate::topology::Node| Domain {
        node: node.id,
        kernel_node: kernel_node(topology, &node.cpus),
        cpus: node.cpus.clone(),
        near: others(&topology.nodes_by_distance(node.id), |id| index[id]),
    };
    with_cpus.iter().map(domain).collect()
}

fn global_domain(topology: &Topology) -> Domain {
    let online: Vec<_> = topology.cpus().filter(|cpu| cpu.online).collect();
    let cpus: Vec<_> = online.iter().map(|cpu| cpu.id).collect();
    Domain {
        node: online.first().and_then(|cpu| cpu.node).unwrap_or(NodeId(0)),
        kernel_node: kernel_node(topology, &cpus),
        cpus,
        near: Vec::new(),
    }
}

/// That of the first CPU.
fn kernel_node(topology: &Topology, cpus: &[CpuId]) -> NodeId {
    cpus.first()
        .map_or(NodeId(0), |&cpu| topology.kernel_node(cpu))
}

/// All but the first, which is the domain itself.
fn others<T>(order: &[T], index: impl Fn(&T) -> u32) -> Vec<u32> {
    order.iter().skip(1).map(index).collect()
}

fn only_domain_of(domains: &[Domain], node: NodeId) -> Option<usize> {
    let mut on_node = (0..domains.len()).filter(|&index| domains[index].node == node);
    let only = on_node.next()?;
    on_node.next().is_none().then_some(only)
}

/// The bytes of a row as the BPF side reads it.
fn as_bytes<T: Copy>(row: &T) -> &[u8] {
    // SAFETY: only called with rows of `intf.h`, which consist of u32 and so have no padding; the slice borrows `row`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(row).cast(), mem::size_of::<T>()) }
}
