//! A topology file: the structure of a machine whose kernel doesn't know it.
//!
//! ```toml
//! version = 1
//!
//! [[node]]
//! id = 0
//! distances = [10, 21]      # to all nodes, in the order of this file; optional
//!
//! [[node.llc]]
//! cpus = "0-3,8"            # as the kernel writes lists
//! cores = ["0,8", "1,2,3"]  # CPUs that share a core; optional: as the kernel says
//! ```
//!
//! It must name each online CPU once and none that isn't possible. It says which CPUs share a cache and a node; which
//! of them are present and online, the sockets and the memory stay the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::read::{attach_cpuless, format_list, parse_list};
use super::{CoreId, Cpu, CpuId, Llc, LlcId, Node, NodeId, Place, Topology};

const VERSION: u32 = 1;
/// The kernel keeps distances in a byte, and 255 means unreachable.
const MAX_DISTANCE: u32 = 254;
const LOCAL: u32 = 10;

/// What is wrong with a topology file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), At(*line))]
pub struct FileError {
    pub path: PathBuf,
    /// From 1; `None` if it is about the file as a whole.
    pub line: Option<usize>,
    pub reason: String,
}

struct At(Option<usize>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}

/// A structure, to be written to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub nodes: Vec<FileNode>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileNode {
    pub id: NodeId,
    /// To each node, in the order of the file; 10 is local, at most 254.
    pub distances: Vec<u32>,
    pub llcs: Vec<FileLlc>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLlc {
    /// In order.
    pub cpus: Vec<CpuId>,
    /// Empty: as the kernel says.
    pub cores: Vec<FileCore>,
}

/// The CPUs of a core, in order.
pub type FileCore = Vec<CpuId>;

impl File {
    /// The file's text, headed by comments, one a line.
    pub fn text<'a>(&self, comments: impl IntoIterator<Item = &'a str>) -> String {
        let mut text = String::new();
        for comment in comments {
            text += format!("# {comment}").trim_end();
            text += "\n";
        }
        text += &format!("version = {VERSION}\n");
        let list = |cpus: &[CpuId]| format!("\"{}\"", format_list(cpus.iter().map(|cpu| cpu.0)));
        for node in &self.nodes {
            text += &format!(
                "\n[[node]]\nid = {}\ndistances = {:?}\n",
                node.id, node.distances
            );
            for llc in &node.llcs {
                text += &format!("\n[[node.llc]]\ncpus = {}\n", list(&llc.cpus));
                if !llc.cores.is_empty() {
                    let cores: Vec<String> = llc.cores.iter().map(|core| list(core)).collect();
                    text += &format!("cores = [{}]\n", cores.join(", "));
                }
            }
        }
        text
    }

    /// Reads a file and puts its structure in place of the kernel's.
    ///
    /// # Errors
    /// If it can't be read, is not such a file, or doesn't fit the machine: with the line and the reason.
    pub(super) fn apply(path: &Path, kernel: &Topology) -> Result<Topology, FileError> {
        let fail = |line, reason| FileError {
            path: path.to_path_buf(),
            line,
            reason,
        };
        let text =
            fs::read_to_string(path).map_err(|err| fail(None, format!("cannot read it: {err}")))?;
        parse(&text, kernel).map_err(|Wrong { span, reason }| {
            fail(span.map(|span| line_of(&text, span.start)), reason)
        })
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    before.filter(|&&byte| byte == b'\n').count() + 1
}

/// What is wrong, and where in the text.
#[derive(Debug)]
struct Wrong {
    span: Option<Range<usize>>,
    reason: String,
}

fn wrong<T>(at: &Spanned<T>, reason: String) -> Wrong {
    Wrong {
        span: Some(at.span()),
        reason,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    version: Spanned<u32>,
    #[serde(default)]
    node: Vec<RawNode>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    id: Spanned<u32>,
    distances: Option<Spanned<Vec<u32>>>,
    #[serde(default)]
    llc: Vec<RawLlc>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLlc {
    cpus: Spanned<String>,
    cores: Option<Vec<Spanned<String>>>,
}

fn parse(text: &str, kernel: &Topology) -> Result<Topology, Wrong> {
    let raw: RawFile = toml::from_str(text).map_err(|err| Wrong {
        span: err.span(),
        reason: err.message().to_string(),
    })?;
    if *raw.version.get_ref() != VERSION {
        let reason = format!("this is not version {VERSION}, the only one known here");
        return Err(wrong(&raw.version, reason));
    }
    let mut builder = Builder::new(kernel);
    builder.check_nodes(&raw)?;
    for node in &raw.node {
        for llc in &node.llc {
            builder.add_llc(NodeId(*node.id.get_ref()), llc)?;
        }
    }
    builder.finish(&raw)
}

/// An LLC of the file.
struct Group {
    node: NodeId,
    cpus: Vec<CpuId>,
    cores: Vec<Vec<CpuId>>,
}

struct Builder<'a> {
    kernel: &'a Topology,
    groups: Vec<Group>,
    seen: BTreeSet<CpuId>,
}

impl<'a> Builder<'a> {
    fn new(kernel: &'a Topology) -> Self {
        Self {
            kernel,
            groups: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    fn check_nodes(&self, raw: &RawFile) -> Result<(), Wrong> {
        let mut ids = BTreeSet::new();
        for node in &raw.node {
            let id = *node.id.get_ref();
            if !ids.insert(id) {
                return Err(wrong(&node.id, format!("node {id} is there twice")));
            }
            if node.llc.is_empty() {
                return Err(wrong(&node.id, format!("node {id} has no [[node.llc]]")));
            }
            if self.memory_nodes().any(|memory| memory.id.0 == id) {
                let reason =
                    format!("node {id} is one of the kernel's that has no CPU: take another id");
                return Err(wrong(&node.id, reason));
            }
        }
        for (index, node) in raw.node.iter().enumerate() {
            let Some(distances) = &node.distances else {
                continue;
            };
            let row = distances.get_ref();
            if row.len() != raw.node.len() {
                let reason = format!("{} distances for {} nodes", row.len(), raw.node.len());
                return Err(wrong(distances, reason));
            }
            for (to, &distance) in row.iter().enumerate() {
                let fits = if to == index {
                    distance == LOCAL
                } else {
                    (LOCAL..=MAX_DISTANCE).contains(&distance)
                };
                if !fits {
                    let reason = format!(
                        "distance {distance}: a node is {LOCAL} from itself, and {LOCAL} to {MAX_DISTANCE} from others"
                    );
                    return Err(wrong(distances, reason));
                }
            }
        }
        Ok(())
    }

    /// The kernel's nodes without CPUs. They stay as they are.
    fn memory_nodes(&self) -> impl Iterator<Item = &'a Node> {
        let has_cpus = |node: &&Node| {
            self.kernel
                .cpus()
                .any(|cpu| cpu.kernel_node == Some(node.id))
        };
        self.kernel
            .nodes()
            .filter(move |node| !has_cpus(node))
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn add_llc(&mut self, node: NodeId, raw: &RawLlc) -> Result<(), Wrong> {
        let cpus = list(&raw.cpus)?;
        for &cpu in &cpus {
            if self.kernel.cpu(cpu).is_none() {
                let possible = format_list(self.kernel.cpus().map(|cpu| cpu.id.0));
                let reason = format!("there is no CPU {cpu}: possible are {possible}");
                return Err(wrong(&raw.cpus, reason));
            }
            if !self.seen.insert(cpu) {
                return Err(wrong(&raw.cpus, format!("CPU {cpu} is in two caches")));
            }
        }
        let kernel: BTreeSet<NodeId> = cpus
            .iter()
            .filter_map(|&cpu| self.kernel.cpu(cpu)?.kernel_node)
            .collect();
        if kernel.len() > 1 {
            let nodes = format_list(kernel.iter().map(|node| node.0));
            let reason =
                format!("a cache can't be on several nodes, and these CPUs are on {nodes}");
            return Err(wrong(&raw.cpus, reason));
        }
        let cores = self.cores(raw, &cpus)?;
        self.groups.push(Group { node, cpus, cores });
        Ok(())
    }

    fn cores(&self, raw: &RawLlc, cpus: &[CpuId]) -> Result<Vec<Vec<CpuId>>, Wrong> {
        let Some(raw) = &raw.cores else {
            return Ok(self.kernel_cores(cpus));
        };
        let mut seen = BTreeSet::new();
        let mut cores = Vec::new();
        for raw in raw {
            let core = list(raw)?;
            for &cpu in &core {
                if !cpus.contains(&cpu) {
                    return Err(wrong(raw, format!("CPU {cpu} is not in this cache")));
                }
                if !seen.insert(cpu) {
                    return Err(wrong(raw, format!("CPU {cpu} is in two cores")));
                }
            }
            cores.push(core);
        }
        // Whoever is in none is a core of its own.
        let alone = cpus.iter().filter(|cpu| !seen.contains(cpu));
        cores.extend(alone.map(|&cpu| vec![cpu]));
        Ok(cores)
    }

    fn kernel_cores(&self, cpus: &[CpuId]) -> Vec<Vec<CpuId>> {
        let mut cores: BTreeMap<(Option<CoreId>, Option<CpuId>), Vec<CpuId>> = BTreeMap::new();
        for &cpu in cpus {
            let core = self
                .kernel
                .cpu(cpu)
                .and_then(|cpu| cpu.place)
                .map(|place| place.core);
            let alone = core.is_none().then_some(cpu);
            cores.entry((core, alone)).or_default().push(cpu);
        }
        cores.into_values().collect()
    }

    fn finish(mut self, raw: &RawFile) -> Result<Topology, Wrong> {
        let missing: Vec<u32> = self
            .kernel
            .cpus()
            .filter(|cpu| cpu.online && !self.seen.contains(&cpu.id))
            .map(|cpu| cpu.id.0)
            .collect();
        if !missing.is_empty() {
            return Err(Wrong {
                span: None,
                reason: format!("online CPUs are in no cache: {}", format_list(missing)),
            });
        }
        let mut cpus: BTreeMap<CpuId, Cpu> = self
            .kernel
            .cpus()
            .map(|cpu| (cpu.id, cpu.clone()))
            .collect();
        let llcs = self.place(&mut cpus);
        let nodes = self.nodes(raw, &llcs);
        Ok(Topology {
            hotplug_seq: self.kernel.hotplug_seq,
            cpus,
            llcs,
            nodes,
        })
    }

    /// Puts CPUs in their places and returns the caches that have online ones.
    fn place(&mut self, cpus: &mut BTreeMap<CpuId, Cpu>) -> Vec<Llc> {
        let online = |cpu: &CpuId| self.kernel.cpu(*cpu).is_some_and(|cpu| cpu.online);
        let first = |cpus: &[CpuId]| cpus.iter().copied().find(online);
        let mut groups: Vec<(CpuId, &Group)> = self
            .groups
            .iter()
            .filter_map(|group| Some((first(&group.cpus)?, group)))
            .collect();
        groups.sort_by_key(|(cpu, _)| *cpu);
        let mut cores: Vec<(CpuId, &Vec<CpuId>)> = groups
            .iter()
            .flat_map(|(_, group)| &group.cores)
            .filter_map(|core| Some((first(core)?, core)))
            .collect();
        cores.sort_by_key(|(cpu, _)| *cpu);
        for group in &self.groups {
            for cpu in &group.cpus {
                if let Some(cpu) = cpus.get_mut(cpu) {
                    cpu.node = Some(group.node);
                }
            }
        }
        let mut llcs = Vec::new();
        for (id, (_, group)) in (0..).map(LlcId).zip(&groups) {
            let own: Vec<CpuId> = group
                .cpus
                .iter()
                .copied()
                .filter(|cpu| online(cpu))
                .collect();
            for (core, (_, members)) in (0..).map(CoreId).zip(&cores) {
                let members: Vec<CpuId> = members
                    .iter()
                    .copied()
                    .filter(|cpu| own.contains(cpu))
                    .collect();
                for &member in &members {
                    if let Some(cpu) = cpus.get_mut(&member) {
                        cpu.place = Some(Place { core, llc: id });
                        cpu.siblings = members
                            .iter()
                            .copied()
                            .filter(|&other| other != member)
                            .collect();
                    }
                }
            }
            llcs.push(Llc {
                id,
                node: group.node,
                cpus: own,
            });
        }
        llcs
    }

    fn nodes(&self, raw: &RawFile, llcs: &[Llc]) -> BTreeMap<NodeId, Node> {
        let ids: Vec<NodeId> = raw
            .node
            .iter()
            .map(|node| NodeId(*node.id.get_ref()))
            .collect();
        let mut nodes: BTreeMap<NodeId, Node> = BTreeMap::new();
        for (node, &id) in raw.node.iter().zip(&ids) {
            let mut cpus: Vec<CpuId> = llcs
                .iter()
                .filter(|llc| llc.node == id)
                .flat_map(|llc| llc.cpus.iter().copied())
                .collect();
            cpus.sort_unstable();
            let distances = match &node.distances {
                Some(row) => ids
                    .iter()
                    .copied()
                    .zip(row.get_ref().iter().copied())
                    .collect(),
                None => [(id, LOCAL)].into(),
            };
            let own = Node {
                id,
                memory_bytes: self.memory(&cpus),
                cpus,
                distances,
                attached_to: id,
            };
            nodes.insert(id, own);
        }
        for memory in self.memory_nodes() {
            // Its distances are to the kernel's nodes, so what is left of them is only to which it is attached.
            let near = self.groups.iter().find(|group| {
                let first = group.cpus.first().map(|&cpu| self.kernel.kernel_node(cpu));
                first == Some(memory.attached_to)
            });
            let attached_to = near.map_or(memory.attached_to, |group| group.node);
            let distances = [(memory.id, LOCAL)].into();
            let kept = Node {
                attached_to,
                distances,
                ..memory.clone()
            };
            nodes.insert(memory.id, kept);
        }
        // A node whose CPUs are all offline.
        if nodes
            .values()
            .any(|node| node.cpus.is_empty() && node.attached_to == node.id)
        {
            attach_cpuless(&mut nodes);
        }
        nodes
    }

    /// The share that these CPUs have in the memory of the kernel's nodes.
    fn memory(&self, cpus: &[CpuId]) -> u64 {
        let mut bytes = 0.0;
        for node in self.kernel.nodes().filter(|node| !node.cpus.is_empty()) {
            let own = cpus.iter().filter(|cpu| node.cpus.contains(cpu)).count();
            bytes += node.memory_bytes as f64 * own as f64 / node.cpus.len() as f64;
        }
        bytes as u64
    }
}

fn list(raw: &Spanned<String>) -> Result<Vec<CpuId>, Wrong> {
    match parse_list(raw.get_ref()) {
        None => {
            let reason = format!("{:?} is not a list of CPUs like \"0-3,8\"", raw.get_ref());
            Err(wrong(raw, reason))
        }
        Some(ids) if ids.is_empty() => Err(wrong(raw, "an empty list of CPUs".to_string())),
        Some(ids) => Ok(ids.into_iter().map(CpuId).collect()),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
