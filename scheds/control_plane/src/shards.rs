//! Cutting the machine into shards, groups of CPUs of one last-level cache that share words of bits, and the tables that
//! tell the BPF side about them (`bpf/lib/shards.bpf.h`).
//!
//! A cache with many CPUs is cut into several shards, so that no line is written by more than [`MAX_CPUS`]. The threads
//! of a core stay together. A node with more caches than a word has bits gets several caches to a shard.

use std::collections::BTreeMap;
use std::mem;

use libbpf_rs::{MapCore, MapFlags, OpenMapMut};

use crate::shards_intf as intf;
use crate::topology::{CpuId, LlcId, NodeId, Topology};

/// The most CPUs in one shard.
pub const MAX_CPUS: usize = intf::SHARD_MAX_CPUS as usize;
const MAX_WORDS: usize = intf::SHARD_WORDS as usize;
const MAX_SHARDS: usize = intf::NODE_MAX_SHARDS as usize;
const NEAR: usize = intf::NEAR_NODES as usize;

/// CPUs that share words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its node, by index in [`Shards::nodes`].
    pub node: u32,
    /// Its cache; the first of them if it has several.
    pub llc: LlcId,
    /// In order. Those that were online when the topology was read, and offline ones that can be nowhere else.
    pub cpus: Vec<CpuId>,
    /// Those of them that were offline.
    pub offline: Vec<CpuId>,
}

impl Shard {
    /// Those of its CPUs that were online.
    pub fn online(&self) -> impl Iterator<Item = CpuId> {
        let online = |cpu: &CpuId| !self.offline.contains(cpu);
        self.cpus.iter().copied().filter(online)
    }
}

/// A node that has CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeShards {
    pub id: NodeId,
    /// The kernel's node of its CPUs: another one if the topology comes from a file.
    pub kernel_node: NodeId,
    /// The index of its first shard; its others follow.
    pub first: u32,
    pub count: u32,
    /// The other nodes by index, nearest first, with their distance.
    pub near: Vec<(u32, u32)>,
}

/// The machine cut into shards. A shard and a node are named by their index.
#[derive(Clone)]
pub struct Shards {
    shards: Vec<Shard>,
    nodes: Vec<NodeShards>,
    /// By CPU id.
    seats: Vec<intf::seat>,
    possible: u32,
    smt: bool,
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shards")
            .field("shards", &self.shards)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl Shards {
    /// Cuts the machine.
    pub fn new(topology: &Topology) -> Self {
        let with_cpus: Vec<_> = topology
            .nodes()
            .filter(|node| !node.cpus.is_empty())
            .collect();
        let index: BTreeMap<NodeId, u32> =
            with_cpus.iter().zip(0..).map(|(n, i)| (n.id, i)).collect();
        let mut shards = Vec::new();
        let mut nodes = Vec::new();
        for (node, number) in with_cpus.iter().zip(0..) {
            let first = shards.len() as u32;
            shards.extend(shards_of(topology, node.id, number));
            let near = topology.nodes_by_distance(node.id);
            nodes.push(NodeShards {
                id: node.id,
                kernel_node: topology.kernel_node(node.cpus[0]),
                first,
                count: shards.len() as u32 - first,
                near: near
                    .iter()
                    .skip(1)
                    .map(|id| (index[id], topology.distance(node.id, *id)))
                    .collect(),
            });
        }
        add_offline(topology, &nodes, &mut shards);
        let seats = seats(topology, &shards);
        Self {
            shards,
            nodes,
            seats,
            possible: topology.cpus().count() as u32,
            smt: topology.cpus().any(|cpu| !cpu.siblings.is_empty()),
        }
    }

    /// All shards; their index is their id. Those of a node follow each other.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// All nodes that have CPUs.
    pub fn nodes(&self) -> &[NodeShards] {
        &self.nodes
    }

    /// The shard of a CPU; `None` if it is not known or if no such CPU is possible.
    pub fn shard_of(&self, cpu: CpuId) -> Option<u32> {
        let seat = self.seats.get(cpu.0 as usize)?;
        (seat.shard != intf::NO_SHARD).then_some(seat.shard)
    }

    /// The highest possible CPU id, plus one.
    pub fn nr_cpu_ids(&self) -> u32 {
        self.seats.len() as u32
    }

    /// How many CPUs are possible.
    pub fn possible(&self) -> u32 {
        self.possible
    }

    /// Whether any core has more than one thread.
    pub fn has_smt(&self) -> bool {
        self.smt
    }

    /// Sizes the tables of an object that is open and not loaded yet.
    ///
    /// # Errors
    /// If libbpf refuses the size.
    pub fn size(&self, maps: &mut OpenTables<'_, '_>) -> libbpf_rs::Result<()> {
        let (shards, nodes) = (self.shards.len() as u32, self.nodes.len() as u32);
        maps.seats.set_max_entries(self.nr_cpu_ids())?;
        maps.shards.set_max_entries(shards)?;
        maps.shard_state.set_max_entries(shards)?;
        maps.nodes.set_max_entries(nodes)?;
        maps.node_state.set_max_entries(nodes)
    }

    /// Fills the tables of a loaded object. Call it before attaching.
    ///
    /// # Errors
    /// If a table can't be written.
    pub fn fill(
        &self,
        seats: &impl MapCore,
        shards: &impl MapCore,
        nodes: &impl MapCore,
    ) -> libbpf_rs::Result<()> {
        for (id, seat) in (0u32..).zip(&self.seats) {
            seats.update(&id.to_ne_bytes(), as_bytes(seat), MapFlags::ANY)?;
        }
        for (id, shard) in (0u32..).zip(&self.shards) {
            let row = self.shard_row(id, shard);
            shards.update(&id.to_ne_bytes(), as_bytes(&row), MapFlags::ANY)?;
        }
        for (id, node) in (0u32..).zip(&self.nodes) {
            nodes.update(&id.to_ne_bytes(), as_bytes(&node_row(node)), MapFlags::ANY)?;
        }
        Ok(())
    }

    fn shard_row(&self, id: u32, shard: &Shard) -> intf::shard {
        let words = words(&shard.cpus);
        let mut first_cpu = [0; MAX_WORDS];
        for (slot, word) in first_cpu.iter_mut().zip(&words) {
            *slot = word * 64;
        }
        let mut cpus = [0; MAX_WORDS];
        for cpu in shard.online() {
            if let Some(word) = words.iter().position(|word| *word == cpu.0 / 64) {
                cpus[word] |= bit(cpu);
            }
        }
        intf::shard {
            node: shard.node,
            llc: shard.llc.0,
            index: id - self.nodes[shard.node as usize].first,
            nr_words: words.len() as u32,
            first_cpu,
            nr_cpus: shard.online().count() as u32,
            pad: 0,
            cpus,
        }
    }
}

/// The tables of an object that is not loaded yet.
#[derive(Debug)]
pub struct OpenTables<'a, 'o> {
    pub seats: &'a mut OpenMapMut<'o>,
    pub shards: &'a mut OpenMapMut<'o>,
    pub shard_state: &'a mut OpenMapMut<'o>,
    pub nodes: &'a mut OpenMapMut<'o>,
    pub node_state: &'a mut OpenMapMut<'o>,
}

fn node_row(node: &NodeShards) -> intf::numa_node {
    let mut row = intf::numa_node {
        kernel_node: node.kernel_node.0,
        first_shard: node.first,
        nr_shards: node.count,
        nr_near: node.near.len().min(NEAR) as u32,
        near: [0; NEAR],
        distance: [0; NEAR],
    };
    for (slot, (other, distance)) in node.near.iter().take(NEAR).enumerate() {
        row.near[slot] = *other;
        row.distance[slot] = *distance;
    }
    row
}

/// The shards of a node: each cache in as few equal parts as it takes, and caches together where there are too many.
fn shards_of(topology: &Topology, node: NodeId, number: u32) -> Vec<Shard> {
    let llcs: Vec<_> = topology
        .llcs()
        .iter()
        .filter(|llc| llc.node == node)
        .collect();
    let cores = |llc: &crate::topology::Llc| by_core(topology, &llc.cpus);
    let parts: Vec<(LlcId, Vec<Vec<CpuId>>)> = llcs
        .iter()
        .flat_map(|llc| {
            split(cores(llc))
                .into_iter()
                .map(move |part| (llc.id, part))
        })
        .collect();
    let together = parts.len().div_ceil(MAX_SHARDS).max(1);
    parts
        .chunks(together)
        .map(|group| {
            let mut cpus: Vec<_> = group
                .iter()
                .flat_map(|(_, cores)| cores.iter().flatten().copied())
                .collect();
            cpus.sort_unstable();
            Shard {
                node: number,
                llc: group[0].0,
                offline: Vec::new(),
                cpus,
            }
        })
        .collect()
}

/// The CPUs core by core, in the order of each core's first CPU.
fn by_core(topology: &Topology, cpus: &[CpuId]) -> Vec<Vec<CpuId>> {
    let mut cores: BTreeMap<CpuId, Vec<CpuId>> = BTreeMap::new();
    for &cpu in cpus {
        let siblings = topology.cpu(cpu).map_or(&[][..], |cpu| &cpu.siblings);
        let first = siblings.iter().copied().chain([cpu]).min().unwrap_or(cpu);
        cores.entry(first).or_default().push(cpu);
    }
    cores.into_values().collect()
}

/// Cuts a list of cores into parts that fit into a shard: few enough CPUs, from few enough words.
fn split(cores: Vec<Vec<CpuId>>) -> Vec<Vec<Vec<CpuId>>> {
    let cpus: usize = cores.iter().map(Vec::len).sum();
    let count = cpus.div_ceil(MAX_CPUS).max(1);
    let size = cores.len().div_ceil(count).max(1);
    let mut parts = Vec::new();
    let mut part: Vec<Vec<CpuId>> = Vec::new();
    for core in cores {
        let with: Vec<_> = part.iter().flatten().chain(&core).copied().collect();
        if part.len() == size || with.len() > MAX_CPUS || words(&with).len() > MAX_WORDS {
            parts.push(mem::take(&mut part));
        }
        part.push(core);
    }
    parts.push(part);
    parts
}

/// The 64-CPU stretches that these CPUs come from, in order.
fn words(cpus: &[CpuId]) -> Vec<u32> {
    let mut words: Vec<_> = cpus.iter().map(|cpu| cpu.0 / 64).collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// An offline CPU has a place if there can be no doubt of it: its node is known and has one shard, with room. Else a
/// scheduler has to be loaded anew when that CPU comes online.
fn add_offline(topology: &Topology, nodes: &[NodeShards], shards: &mut [Shard]) {
    for cpu in topology.cpus().filter(|cpu| !cpu.online) {
        let only = nodes
            .iter()
            .find(|node| Some(node.id) == cpu.node && node.count == 1)
            .map(|node| &mut shards[node.first as usize]);
        if let Some(shard) = only
            && shard.cpus.len() < MAX_CPUS
        {
            shard.cpus.push(cpu.id);
            shard.cpus.sort_unstable();
            if words(&shard.cpus).len() > MAX_WORDS {
                shard.cpus.retain(|id| *id != cpu.id);
            } else {
                shard.offline.push(cpu.id);
            }
        }
    }
}

fn seats(topology: &Topology, shards: &[Shard]) -> Vec<intf::seat> {
    let nowhere = intf::seat {
        shard: intf::NO_SHARD,
        word: 0,
        sibling: intf::NO_CPU,
        sibling_word: 0,
        core_word: 0,
        leaving: 0,
        bit: 0,
        sibling_bit: 0,
        core_bit: 0,
    };
    let mut seats = vec![nowhere; topology.nr_cpu_ids() as usize];
    for (id, shard) in (0u32..).zip(shards) {
        let words = words(&shard.cpus);
        let word = |cpu: CpuId| words.iter().position(|w| *w == cpu.0 / 64).unwrap_or(0) as u32;
        for &cpu in &shard.cpus {
            // Of more than two threads to a core, a neighbour is enough of a hint.
            let siblings = topology.cpu(cpu).map_or(&[][..], |cpu| &cpu.siblings);
            let sibling = siblings.iter().copied().find(|s| shard.cpus.contains(s));
            let first = siblings.iter().copied().chain([cpu]).min().unwrap_or(cpu);
            seats[cpu.0 as usize] = intf::seat {
                shard: id,
                word: word(cpu),
                sibling: sibling.map_or(intf::NO_CPU, |sibling| sibling.0),
                sibling_word: sibling.map_or(0, word),
                core_word: word(first),
                leaving: u32::from(shard.offline.contains(&cpu)),
                bit: bit(cpu),
                sibling_bit: sibling.map_or(0, bit),
                core_bit: bit(first),
            };
        }
    }
    seats
}

/// The bit of a CPU in its word.
fn bit(cpu: CpuId) -> u64 {
    1 << (cpu.0 % 64)
}

/// The bytes of a row as the BPF side reads it.
fn as_bytes<T: Copy>(row: &T) -> &[u8] {
    // SAFETY: only called with rows of `shards.h`, which have no padding that is not named; the slice borrows `row`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(row).cast(), mem::size_of::<T>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the BPF side relies on, whatever the machine.
    fn check(topology: &Topology, shards: &Shards) {
        let mut seen = Vec::new();
        for (id, shard) in (0u32..).zip(shards.shards()) {
            let row = shards.shard_row(id, shard);
            let node = &shards.nodes()[shard.node as usize];
            assert!((node.first..node.first + node.count).contains(&id));
            assert!(row.index < intf::NODE_MAX_SHARDS && row.nr_words <= intf::SHARD_WORDS);
            assert_eq!(
                row.cpus.iter().map(|w| w.count_ones()).sum::<u32>() as usize,
                shard.online().count()
            );
            for &cpu in &shard.cpus {
                let seat = &shards.seats[cpu.0 as usize];
                assert_eq!(seat.shard, id);
                // The bit means this CPU, found as the BPF side does.
                let word = seat.word as usize;
                assert_eq!(row.first_cpu[word] + seat.bit.trailing_zeros(), cpu.0);
                assert_ne!(row.cpus[word] & seat.bit, 0);
                if seat.sibling != intf::NO_CPU {
                    let other = &shards.seats[seat.sibling as usize];
                    assert_eq!(
                        (other.shard, other.word, other.bit),
                        (id, seat.sibling_word, seat.sibling_bit)
                    );
                    assert_eq!(
                        (other.core_word, other.core_bit),
                        (seat.core_word, seat.core_bit)
                    );
                }
                seen.push(cpu);
            }
        }
        seen.sort_unstable();
        let online: Vec<_> = topology.cpus().filter(|c| c.online).map(|c| c.id).collect();
        assert!(online.iter().all(|cpu| seen.binary_search(cpu).is_ok()));
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]));
        for node in shards.nodes() {
            assert_eq!(node.near.len() + 1, shards.nodes().len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_cpu_has_one_seat_on_any_machine(nodes in 1_u32..9, llcs in 1_u32..70, cpus in 1_u32..100, smt: bool) {
            prop_assume!(nodes * llcs * cpus <= 2048);
            let flat = Topology::fake(nodes, llcs, cpus);
            let topology = if smt { flat.with_far_threads() } else { flat };
            let shards = Shards::new(&topology);
            prop_assert_eq!(shards.has_smt(), smt);
            check(&topology, &shards);
        }
    }

    #[test]
    fn a_cache_is_a_shard_and_a_big_one_is_several() {
        assert_eq!(Shards::new(&Topology::fake(2, 2, 8)).shards().len(), 4);
        // 166 CPUs of one cache: 6 shards of 27 or 28.
        let shards = Shards::new(&Topology::fake(1, 1, 166));
        assert_eq!(shards.shards().len(), 6);
        assert!(
            shards
                .shards()
                .iter()
                .all(|s| s.llc == LlcId(0) && s.cpus.len() >= 26)
        );
    }

    #[test]
    fn threads_of_a_core_stay_together() {
        let topology = Topology::fake(2, 2, 48).with_far_threads();
        let shards = Shards::new(&topology);
        for cpu in topology.cpus() {
            assert_eq!(shards.shard_of(cpu.id), shards.shard_of(cpu.siblings[0]));
        }
    }

    #[test]
    fn an_offline_cpu_has_a_seat_only_where_there_is_no_doubt() {
        let one = Shards::new(&Topology::fake(2, 1, 4).without(5));
        assert_eq!(one.shard_of(CpuId(5)), Some(1));
        assert_eq!(one.shards()[1].online().count(), 3);
        let row = one.shard_row(1, &one.shards()[1]);
        assert_eq!((row.nr_cpus, row.cpus[0].count_ones()), (3, 3));
        let leaving = one.seats.iter().filter(|seat| seat.leaving == 1).count();
        assert_eq!(leaving, 1, "the one that is offline and has a place");
        let two = Shards::new(&Topology::fake(2, 2, 4).without(5));
        assert_eq!(two.shard_of(CpuId(5)), None);
        assert_eq!((two.nr_cpu_ids(), two.possible()), (16, 16));
    }

    #[test]
    fn a_node_of_memory_only_has_no_shards() {
        let shards = Shards::new(&Topology::fake(2, 1, 4).with_memory(2, 1 << 30));
        assert_eq!(shards.nodes().len(), 2);
    }
}
