//! Reading the topology. `scx_utils::Topology` tells cores and caches apart; the rest comes from sysfs itself: which
//! CPUs are possible and present, distances by node id (the kernel lists online nodes only, so the position in the
//! list is not the id), the nodes of offline CPUs, memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scx_utils::compat::ROOT_PREFIX;

use super::{
    CoreId, Cpu, CpuId, Error, Llc, LlcId, MAX_CPU_IDS, Node, NodeId, Place, SocketId, Topology,
};

/// How often to read it if CPUs come or go meanwhile, with whose files the reading fails, and how long to wait in between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn topology() -> Result<Topology, Error> {
    let sys = sys();
    let mut tries = 1;
    loop {
        match read_once(&sys) {
            Err(Error::Read { .. } | Error::Sysfs(_)) if tries < TRIES => tries += 1,
            result => return result,
        }
        std::thread::sleep(PAUSE);
    }
}

fn sys() -> PathBuf {
    PathBuf::from(format!("{}/sys", *ROOT_PREFIX))
}

/// How many times CPUs have come or gone by now, as the kernel counts. `None` if it doesn't say.
pub fn hotplug_seq() -> Option<u64> {
    hotplug_seq_in(&sys())
}

fn hotplug_seq_in(sys: &Path) -> Option<u64> {
    let seq = read(&sys.join("kernel/sched_ext/hotplug_seq"));
    seq.ok()?.trim().parse().ok()
}

fn read_once(sys: &Path) -> Result<Topology, Error> {
    let root = sys.join("devices/system");
    // First, so that what happens from here on is seen.
    let hotplug_seq = hotplug_seq_in(sys);
    let mut nodes = nodes(&root.join("node"))?;
    let mut cpus = cpus(&root.join("cpu"), &nodes)?;
    let groups = scx_utils::Topology::new().map_err(|err| Error::Sysfs(format!("{err:#}")))?;
    // One that has come since the first look is left out.
    let was_online = |id: usize| cpus.get(&CpuId(id as u32)).is_some_and(|cpu| cpu.online);
    let known: BTreeMap<usize, _> = groups
        .all_cpus
        .values()
        .filter(|cpu| was_online(cpu.id))
        .map(|cpu| (cpu.id, cpu))
        .collect();

    let cores = renumber(known.values().map(|cpu| (cpu.id, cpu.core_id)));
    let caches = renumber(known.values().map(|cpu| (cpu.id, cpu.llc_id)));
    let mut llcs: Vec<Llc> = Vec::new();
    for group in known.values() {
        let id = CpuId(group.id as u32);
        let node = NodeId(group.node_id as u32);
        let llc = LlcId(caches[&group.llc_id]);
        let siblings = groups
            .all_cores
            .get(&group.core_id)
            .map(|core| core.cpus.keys());
        let siblings = siblings
            .into_iter()
            .flatten()
            .filter(|&&sibling| sibling != group.id && known.contains_key(&sibling));
        let Some(cpu) = cpus.get_mut(&id) else {
            continue;
        };
        cpu.node = Some(node);
        cpu.kernel_node = Some(node);
        cpu.socket = socket(&root.join("cpu"), id);
        cpu.place = Some(Place {
            core: CoreId(cores[&group.core_id]),
            llc,
        });
        cpu.siblings = siblings.map(|&sibling| CpuId(sibling as u32)).collect();
        if llcs.len() <= llc.0 as usize {
            llcs.push(Llc {
                id: llc,
                node,
                cpus: Vec::new(),
            });
        }
        llcs[llc.0 as usize].cpus.push(id);
        nodes
            .entry(node)
            .or_insert_with(|| memoryless(node))
            .cpus
            .push(id);
    }
    for cpu in cpus.values_mut() {
        // One that came online between two reads: its place is not known yet.
        cpu.online &= cpu.place.is_some();
    }
    if llcs.is_empty() {
        return Err(Error::NoCpu(root.join("cpu/online").display().to_string()));
    }
    attach_cpuless(&mut nodes);
    Ok(Topology {
        hotplug_seq,
        cpus,
        llcs,
        nodes,
    })
}

/// Numbers groups 0, 1, ... in the order of their lowest CPU. The input is in the order of CPUs.
fn renumber(groups: impl Iterator<Item = (usize, usize)>) -> BTreeMap<usize, u32> {
    let mut numbers = BTreeMap::new();
    for (_cpu, group) in groups {
        let next = numbers.len() as u32;
        numbers.entry(group).or_insert(next);
    }
    numbers
}

/// All possible CPUs, with what is known of those that are not online.
fn cpus(dir: &Path, nodes: &BTreeMap<NodeId, Node>) -> Result<BTreeMap<CpuId, Cpu>, Error> {
    let online = read_list(&dir.join("online"))?;
    // Kernels without hotplug have no such files: all CPUs are online then.
    let present = read_list(&dir.join("present")).unwrap_or_else(|_| online.clone());
    let possible = read_list(&dir.join("possible")).unwrap_or_else(|_| present.clone());
    if let Some(&id) = possible.iter().find(|&&id| id >= MAX_CPU_IDS) {
        return Err(Error::TooManyCpus(id));
    }
    let only = if nodes.len() == 1 {
        nodes.keys().next().copied()
    } else {
        None
    };
    let cpu = |id| {
        // An offline CPU that is present still has a link to its node.
        let linked = |node: &NodeId| dir.join(format!("cpu{id}/node{node}")).exists();
        let node = only.or_else(|| nodes.keys().copied().find(linked));
        let cpu = Cpu {
            id: CpuId(id),
            node,
            kernel_node: node,
            socket: None,
            place: None,
            siblings: Vec::new(),
            present: present.binary_search(&id).is_ok(),
            online: online.binary_search(&id).is_ok(),
        };
        (cpu.id, cpu)
    };
    Ok(possible.iter().copied().map(cpu).collect())
}

/// The socket of an online CPU. Some architectures know none and say -1.
fn socket(dir: &Path, cpu: CpuId) -> Option<SocketId> {
    let path = dir.join(format!("cpu{cpu}/topology/physical_package_id"));
    read(&path).ok()?.trim().parse().ok().map(SocketId)
}

/// All online nodes, without their CPUs. A kernel without `CONFIG_NUMA` has none; then there is node 0.
fn nodes(dir: &Path) -> Result<BTreeMap<NodeId, Node>, Error> {
    let ids = match read_list(&dir.join("online")) {
        Ok(ids) => ids,
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok([(NodeId(0), memoryless(NodeId(0)))].into());
        }
        Err(err) => return Err(err),
    };
    let mut nodes = BTreeMap::new();
    for &id in &ids {
        let node = dir.join(format!("node{id}"));
        let row = read_distances(&node.join("distance"))?;
        nodes.insert(
            NodeId(id),
            Node {
                distances: ids.iter().copied().map(NodeId).zip(row).collect(),
                memory_bytes: read_memory(&node.join("meminfo"))?,
                ..memoryless(NodeId(id))
            },
        );
    }
    Ok(nodes)
}

fn memoryless(id: NodeId) -> Node {
    Node {
        id,
        cpus: Vec::new(),
        memory_bytes: 0,
        distances: [(id, 10)].into(),
        attached_to: id,
    }
}

/// Attaches each node without CPUs to the nearest that has some; of equally near ones, to the lowest.
pub(super) fn attach_cpuless(nodes: &mut BTreeMap<NodeId, Node>) {
    let with_cpus: Vec<NodeId> = nodes
        .values()
        .filter(|n| !n.cpus.is_empty())
        .map(|n| n.id)
        .collect();
    for node in nodes.values_mut().filter(|node| node.cpus.is_empty()) {
        let distance = |id: &NodeId| node.distances.get(id).copied().unwrap_or(u32::MAX);
        if let Some(&nearest) = with_cpus.iter().min_by_key(|id| (distance(id), **id)) {
            node.attached_to = nearest;
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.display().to_string(),
        source,
    })
}

fn parse_error(path: &Path, content: &str, expected: &'static str) -> Error {
    Error::Parse {
        path: path.display().to_string(),
        content: content.trim().to_string(),
        expected,
    }
}

fn read_list(path: &Path) -> Result<Vec<u32>, Error> {
    let content = read(path)?;
    parse_list(&content).ok_or_else(|| parse_error(path, &content, "a list like 0-3,8"))
}

/// Parses the kernel's list format: `0-3,8`. An empty list is a list.
///
/// Returns the ids in order, each once; `None` if it is no such list.
pub fn parse_list(content: &str) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for range in content.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // The bound keeps a garbled line from filling the memory.
        if first > last || last - first > 1 << 20 {
            return None;
        }
        ids.extend(first..=last);
    }
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// Writes ids in the kernel's list format: `0-3,8`. They must be in order.
pub fn format_list(ids: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    let range = |&(first, last): &(u32, u32)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

fn read_distances(path: &Path) -> Result<Vec<u32>, Error> {
    let content = read(path)?;
    let row: Result<Vec<u32>, _> = content.split_whitespace().map(str::parse).collect();
    row.map_err(|_| parse_error(path, &content, "a list of distances"))
}

/// The `MemTotal` of a node in bytes; 0 if it has no such line.
fn read_memory(path: &Path) -> Result<u64, Error> {
    let content = read(path)?;
    let Some(line) = content.lines().find(|line| line.contains("MemTotal:")) else {
        return Ok(0);
    };
    let kib = line
        .split_whitespace()
        .rev()
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| parse_error(path, line, "a line like `Node 0 MemTotal: 1024 kB`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_list("5\n"), Some(vec![5]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("8,0-1,1"), Some(vec![0, 1, 8]));
        for garbled in ["3-1", "a", "1-", "0-4294967295"] {
            assert_eq!(parse_list(garbled), None, "{garbled}");
        }
        for list in ["0-3,8", "5", "", "0,2,4-5"] {
            assert_eq!(format_list(parse_list(list).unwrap()), list);
        }
    }

    #[test]
    fn groups_are_numbered_by_their_lowest_cpu() {
        let numbers = renumber([(0, 7), (1, 3), (2, 7), (5, 9)].into_iter());
        assert_eq!(numbers, [(7, 0), (3, 1), (9, 2)].into());
    }
}
