//! Machines that don't exist, for tests.

use std::collections::BTreeMap;

use super::{CoreId, Cpu, CpuId, Llc, LlcId, Node, NodeId, Place, SocketId, Topology};

impl Topology {
    /// Nodes of so many LLCs of so many CPUs each, all online, one thread a core, 1 GiB a node.
    pub(crate) fn fake(nodes: u32, llcs_per_node: u32, cpus_per_llc: u32) -> Self {
        let mut topology = Self {
            hotplug_seq: None,
            cpus: BTreeMap::new(),
            llcs: Vec::new(),
            nodes: BTreeMap::new(),
        };
        for llc in 0..nodes * llcs_per_node {
            let node = NodeId(llc / llcs_per_node);
            let cpus: Vec<CpuId> = (0..cpus_per_llc)
                .map(|cpu| CpuId(llc * cpus_per_llc + cpu))
                .collect();
            for &id in &cpus {
                let place = Place {
                    core: CoreId(id.0),
                    llc: LlcId(llc),
                };
                let cpu = Cpu {
                    id,
                    node: Some(node),
                    kernel_node: Some(node),
                    socket: Some(SocketId(node.0)),
                    place: Some(place),
                    siblings: Vec::new(),
                    present: true,
                    online: true,
                };
                topology.cpus.insert(id, cpu);
            }
            let entry = topology.nodes.entry(node).or_insert_with(|| Node {
                id: node,
                cpus: Vec::new(),
                memory_bytes: 1 << 30,
                distances: (0..nodes)
                    .map(|to| (NodeId(to), if to == node.0 { 10 } else { 20 }))
                    .collect(),
                attached_to: node,
            });
            entry.cpus.extend(&cpus);
            topology.llcs.push(Llc {
                id: LlcId(llc),
                node,
                cpus,
            });
        }
        topology
    }

    /// The same as a file cuts it out of one node of the kernel's.
    pub(crate) fn cut_from_one(mut self) -> Self {
        for cpu in self.cpus.values_mut() {
            cpu.kernel_node = Some(NodeId(0));
        }
        self
    }

    /// The same with a second thread for each core, numbered after all first ones, as firmware often does.
    pub(crate) fn with_far_threads(mut self) -> Self {
        let first: Vec<Cpu> = self.cpus.values().cloned().collect();
        let count = self.nr_cpu_ids();
        for cpu in first {
            let twin = CpuId(cpu.id.0 + count);
            self.cpus.insert(
                twin,
                Cpu {
                    id: twin,
                    siblings: vec![cpu.id],
                    ..cpu.clone()
                },
            );
            if let Some(cpu) = self.cpus.get_mut(&cpu.id) {
                cpu.siblings = vec![twin];
            }
        }
        let twins = |cpus: &mut Vec<CpuId>| {
            let more: Vec<_> = cpus.iter().map(|cpu| CpuId(cpu.0 + count)).collect();
            cpus.extend(more);
        };
        self.llcs.iter_mut().for_each(|llc| twins(&mut llc.cpus));
        self.nodes
            .values_mut()
            .for_each(|node| twins(&mut node.cpus));
        self
    }

    /// The same with a CPU taken offline.
    pub(crate) fn without(mut self, offline: u32) -> Self {
        let id = CpuId(offline);
        if let Some(cpu) = self.cpus.get_mut(&id) {
            cpu.online = false;
            cpu.place = None;
        }
        for llc in &mut self.llcs {
            llc.cpus.retain(|&cpu| cpu != id);
        }
        for node in self.nodes.values_mut() {
            node.cpus.retain(|&cpu| cpu != id);
        }
        self
    }

    /// The same with so much memory on a node, which is added without CPUs if there is none of that id.
    pub(crate) fn with_memory(mut self, node: u32, bytes: u64) -> Self {
        let id = NodeId(node);
        let entry = self.nodes.entry(id).or_insert_with(|| Node {
            id,
            cpus: Vec::new(),
            memory_bytes: 0,
            distances: BTreeMap::new(),
            attached_to: NodeId(0),
        });
        entry.memory_bytes = bytes;
        self
    }
}
