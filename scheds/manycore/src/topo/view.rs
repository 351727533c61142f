//! What is shown of a machine, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};

use control_plane::Topology;
use control_plane::topology::sched_domains::SchedDomain;
use control_plane::topology::{CoreId, Cpu, CpuId, Llc, Node, format_list};
use serde::Serialize;

/// A machine.
#[derive(Debug, Clone, Serialize)]
pub(super) struct View {
    pub possible: usize,
    pub present: usize,
    pub online: usize,
    pub sockets: usize,
    pub cores: usize,
    pub llcs: usize,
    pub memory_bytes: u64,
    pub nodes: Vec<NodeView>,
    /// Possible CPUs of no known node, none of them online.
    pub elsewhere: Vec<u32>,
    pub cpus: Vec<CpuView>,
    /// By level, the narrowest first; empty where the kernel shows none.
    pub sched_domains: Vec<DomainView>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct NodeView {
    pub id: u32,
    pub sockets: Vec<u32>,
    pub memory_bytes: u64,
    /// By node id.
    pub distances: BTreeMap<u32, u32>,
    /// The node whose CPUs are nearest: itself, unless it has none.
    pub attached_to: u32,
    pub llcs: Vec<LlcView>,
    /// CPUs of this node that are present and offline.
    pub offline: Vec<u32>,
    /// CPUs of this node that may come and aren't there.
    pub absent: Vec<u32>,
}

impl NodeView {
    pub(super) fn cpus(&self) -> usize {
        self.llcs.iter().map(LlcView::cpus).sum()
    }
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct LlcView {
    pub id: u32,
    /// Online CPUs of each core.
    pub cores: Vec<Vec<u32>>,
}

impl LlcView {
    pub(super) fn cpus(&self) -> usize {
        self.cores.iter().map(Vec::len).sum()
    }
}

/// A possible CPU; `null` where it isn't known.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CpuView {
    pub cpu: u32,
    pub online: bool,
    pub present: bool,
    pub node: Option<u32>,
    pub socket: Option<u32>,
    pub llc: Option<u32>,
    pub core: Option<u32>,
}

/// The domains of one level, which are alike.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DomainView {
    pub name: Option<String>,
    pub flags: Vec<String>,
    /// Each distinct domain's CPUs; empty where the kernel doesn't say.
    pub domains: Vec<String>,
    /// CPUs of the smallest and the largest domain.
    pub sizes: Option<(usize, usize)>,
}

impl View {
    pub(super) fn new(topology: &Topology, domains: &BTreeMap<CpuId, Vec<SchedDomain>>) -> Self {
        let distinct =
            |ids: Vec<Option<u32>>| ids.into_iter().flatten().collect::<BTreeSet<_>>().len();
        let cpus: Vec<CpuView> = topology.cpus().map(cpu_view).collect();
        Self {
            possible: cpus.len(),
            present: cpus.iter().filter(|cpu| cpu.present).count(),
            online: topology.nr_online(),
            sockets: distinct(cpus.iter().map(|cpu| cpu.socket).collect()),
            cores: distinct(cpus.iter().map(|cpu| cpu.core).collect()),
            llcs: topology.llcs().len(),
            memory_bytes: topology.nodes().map(|node| node.memory_bytes).sum(),
            nodes: topology
                .nodes()
                .map(|node| node_view(topology, node))
                .collect(),
            elsewhere: topology
                .cpus()
                .filter(|cpu| cpu.node.is_none())
                .map(|cpu| cpu.id.0)
                .collect(),
            cpus,
            sched_domains: domain_views(domains),
        }
    }

    /// The most threads of a core.
    pub(super) fn threads(&self) -> usize {
        self.nodes
            .iter()
            .flat_map(|node| &node.llcs)
            .flat_map(|llc| &llc.cores)
            .map(Vec::len)
            .max()
            .unwrap_or(1)
    }
}

fn cpu_view(cpu: &Cpu) -> CpuView {
    CpuView {
        cpu: cpu.id.0,
        online: cpu.online,
        present: cpu.present,
        node: cpu.node.map(|node| node.0),
        socket: cpu.socket.map(|socket| socket.0),
        llc: cpu.place.map(|place| place.llc.0),
        core: cpu.place.map(|place| place.core.0),
    }
}

fn node_view(topology: &Topology, node: &Node) -> NodeView {
    let own = || topology.cpus().filter(|cpu| cpu.node == Some(node.id));
    let sockets: BTreeSet<u32> = own()
        .filter_map(|cpu| cpu.socket)
        .map(|socket| socket.0)
        .collect();
    let llcs = topology.llcs().iter().filter(|llc| llc.node == node.id);
    NodeView {
        id: node.id.0,
        sockets: sockets.into_iter().collect(),
        memory_bytes: node.memory_bytes,
        distances: topology
            .nodes()
            .map(|to| (to.id.0, topology.distance(node.id, to.id)))
            .collect(),
        attached_to: node.attached_to.0,
        llcs: llcs.map(|llc| llc_view(topology, llc)).collect(),
        offline: own()
            .filter(|cpu| cpu.present && !cpu.online)
            .map(|cpu| cpu.id.0)
            .collect(),
        absent: own()
            .filter(|cpu| !cpu.present)
            .map(|cpu| cpu.id.0)
            .collect(),
    }
}

fn llc_view(topology: &Topology, llc: &Llc) -> LlcView {
    let mut cores: BTreeMap<CoreId, Vec<u32>> = BTreeMap::new();
    for &id in &llc.cpus {
        if let Some(place) = topology.cpu(id).and_then(|cpu| cpu.place) {
            cores.entry(place.core).or_default().push(id.0);
        }
    }
    LlcView {
        id: llc.id.0,
        cores: cores.into_values().collect(),
    }
}

/// CPUs may have different domains at the same depth, where a level would have been the same as the one below it and
/// was left out. So levels are told apart by name, where there is one.
fn domain_views(domains: &BTreeMap<CpuId, Vec<SchedDomain>>) -> Vec<DomainView> {
    let mut levels: Vec<(Option<String>, usize, Vec<&SchedDomain>)> = Vec::new();
    for own in domains.values() {
        // Domains of the same name follow each other, the narrower first: NUMA, NUMA.
        let mut seen: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        for domain in own {
            let nth = seen.entry(domain.name.as_deref()).or_default();
            match levels
                .iter_mut()
                .find(|(name, n, _)| *name == domain.name && n == nth)
            {
                Some((_, _, all)) => all.push(domain),
                None => levels.push((domain.name.clone(), *nth, vec![domain])),
            }
            *nth += 1;
        }
    }
    let mut views: Vec<DomainView> = levels
        .into_iter()
        .map(|(name, _, all)| domain_view(name, &all))
        .collect();
    views.sort_by_key(|view| view.sizes.map_or((0, 0), |(least, most)| (most, least)));
    views
}

fn domain_view(name: Option<String>, all: &[&SchedDomain]) -> DomainView {
    let spans: BTreeSet<&Vec<CpuId>> = all
        .iter()
        .filter_map(|domain| domain.cpus.as_ref())
        .collect();
    let sizes = spans.iter().map(|span| span.len());
    DomainView {
        name,
        flags: all
            .first()
            .map(|domain| domain.flags.clone())
            .unwrap_or_default(),
        domains: spans
            .iter()
            .map(|span| format_list(span.iter().map(|cpu| cpu.0)))
            .collect(),
        sizes: sizes.clone().min().zip(sizes.max()),
    }
}

/// `1.5 GiB`; nothing below half a MiB.
pub(super) fn memory(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1023.5 {
        format!("{:.1} GiB", mib / 1024.0)
    } else {
        format!("{mib:.0} MiB")
    }
}

/// `1 node`, `2 nodes`.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
