//! From wishes to sets: which CPUs and which memory each service gets on this machine.
//!
//! Pure, and the same for the same policy and machine: it doesn't depend on which cgroups there are. A service of
//! which no cgroup exists yet keeps its place, so that one which starts doesn't move others.
//!
//! Places are given out in this order, within each in the order of the file:
//! 1. what is named (`cpus`, `llcs`, `nodes`);
//! 2. exclusive ones, which take caches and nodes that nobody has been given;
//! 3. `narrow`: the cache with the fewest services on it, then the node with the fewest, then the lowest id;
//! 4. `node`: the node with the fewest services on it, then the lowest id;
//! 5. `wide`: all CPUs.
//!
//! CPUs of exclusive services are left out of all others' sets.

use super::schema::{Memory, Mistake, Place, Policy, Service, Width};
use super::{ClassEntry, IdSet};
use crate::topology::{CpuId, Llc, Node, NodeId, Topology};

/// What a service gets. Nothing in it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// For `cpuset.cpus`: CPUs that are online.
    pub cpus: Option<Share>,
    /// For `cpuset.mems`: nodes that have memory, as the kernel numbers them.
    pub mems: Option<Share>,
    /// For `cpu.weight`.
    pub weight: Option<u32>,
    /// Whether its CPUs are a partition of their own.
    pub exclusive: bool,
    /// What BPF policies are told of its tasks.
    pub class: ClassEntry,
}

/// A part of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub ids: IdSet,
    /// Whether that is all there is for it, so that a cgroup without a limit needs none.
    pub whole: bool,
}

/// A policy on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// By the index of the service.
    pub services: Vec<Assignment>,
    /// What is likely not meant, but can be done.
    pub warnings: Vec<Mistake>,
}

/// Finds a place for each service.
///
/// # Errors
/// All mistakes: what the machine doesn't have, sets that turn out empty, exclusive services that overlap others.
pub fn resolve(policy: &Policy, topology: &Topology) -> Result<Resolved, Vec<Mistake>> {
    let mut resolver = Resolver::new(policy, topology);
    resolver.place_all();
    resolver.check_exclusive();
    let services = resolver.assignments();
    if resolver.mistakes.is_empty() {
        Ok(Resolved {
            services,
            warnings: resolver.warnings,
        })
    } else {
        resolver.mistakes.sort_by_key(|mistake| mistake.line);
        Err(resolver.mistakes)
    }
}

struct Resolver<'a> {
    policy: &'a Policy,
    topology: &'a Topology,
    online: IdSet,
    /// By service; those without a place, or with a mistake in it, have none.
    cpus: Vec<Option<IdSet>>,
    /// CPUs that are exclusively somebody's.
    taken: IdSet,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl<'a> Resolver<'a> {
    fn new(policy: &'a Policy, topology: &'a Topology) -> Self {
        Self {
            policy,
            topology,
            online: online(topology),
            cpus: vec![None; policy.services.len()],
            taken: IdSet::default(),
            mistakes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn place_all(&mut self) {
        let is = |width, exclusive| {
            move |service: &Service| {
                service.exclusive == exclusive
                    && matches!(&service.place, Some(at) if at.value == Place::Width(width))
            }
        };
        self.place_some(
            |service| matches!(&service.place, Some(at) if !matches!(at.value, Place::Width(_))),
        );
        self.place_some(is(Width::Narrow, true));
        self.place_some(is(Width::Node, true));
        self.place_some(is(Width::Narrow, false));
        self.place_some(is(Width::Node, false));
        self.place_some(is(Width::Wide, false));
    }

    fn place_some(&mut self, whom: impl Fn(&Service) -> bool) {
        for (index, service) in self.policy.services.iter().enumerate() {
            let Some(place) = service.place.as_ref().filter(|_| whom(service)) else {
                continue;
            };
            let cpus = match &place.value {
                Place::Width(Width::Narrow) => self.narrow(service),
                Place::Width(Width::Node) => self.node(service),
                Place::Width(Width::Wide) => Ok(self.online.difference(&self.taken)),
                named => self.named(named),
            };
            let cpus = cpus.and_then(|cpus| {
                if cpus.is_empty() {
                    Err("no CPU is left for it: exclusive services have them all".to_owned())
                } else {
                    Ok(cpus)
                }
            });
            match cpus {
                Ok(cpus) => {
                    if service.exclusive {
                        self.taken.extend(&cpus);
                    }
                    self.cpus[index] = Some(cpus);
                }
                Err(reason) => self.mistakes.push(self.policy.mistake(place.line, reason)),
            }
        }
    }

    /// The online CPUs among those that are named.
    fn named(&self, place: &Place) -> Result<IdSet, String> {
        let (what, wanted, there, cpus) = match place {
            Place::Cpus(ids) => {
                let there = self.topology.cpus().map(|cpu| cpu.id.0).collect();
                ("CPU", ids, there, ids.clone())
            }
            Place::Llcs(ids) => {
                let llcs = || self.topology.llcs().iter();
                let wanted = llcs().filter(|llc| ids.contains(llc.id.0));
                let cpus = wanted.flat_map(|llc| &llc.cpus).map(|cpu| cpu.0).collect();
                ("LLC", ids, llcs().map(|llc| llc.id.0).collect(), cpus)
            }
            Place::Nodes(ids) => {
                let nodes = || self.topology.nodes();
                let wanted = nodes().filter(|node| ids.contains(node.id.0));
                let cpus = wanted
                    .flat_map(|node| &node.cpus)
                    .map(|cpu| cpu.0)
                    .collect();
                ("node", ids, nodes().map(|node| node.id.0).collect(), cpus)
            }
            Place::Width(_) => (
                "CPU",
                &self.online,
                self.online.clone(),
                self.online.clone(),
            ),
        };
        check_exist(what, wanted, &there)?;
        let cpus = cpus.intersection(&self.online);
        if cpus.is_empty() {
            return Err(format!(
                "an empty set: {what} {wanted} has no CPU that is online"
            ));
        }
        Ok(cpus)
    }

    /// How many services were placed on any of these CPUs.
    fn load(&self, cpus: &IdSet) -> usize {
        let placed = self.cpus.iter().flatten();
        placed
            .filter(|theirs| !theirs.intersection(cpus).is_empty())
            .count()
    }

    fn narrow(&mut self, service: &Service) -> Result<IdSet, String> {
        let free = |llc: &&Llc| !self.free(&ids_of(&llc.cpus)).is_empty();
        let key = |llc: &&Llc| {
            let node = self.topology.node(llc.node);
            let on_node = node.map_or(0, |node| self.load(&ids_of(&node.cpus)));
            (self.load(&ids_of(&llc.cpus)), on_node, llc.id)
        };
        let best = self.topology.llcs().iter().filter(free).min_by_key(key);
        let Some(best) = best else {
            return Ok(IdSet::default());
        };
        let cpus = ids_of(&best.cpus);
        if service.exclusive && self.load(&cpus) > 0 {
            return Err("no LLC is left that no other service was given".to_owned());
        }
        if self.topology.llcs().len() == 1 {
            self.warn_flat(service, "LLC");
        }
        Ok(self.free(&cpus))
    }

    fn node(&mut self, service: &Service) -> Result<IdSet, String> {
        let free = |node: &&Node| !self.free(&ids_of(&node.cpus)).is_empty();
        let key = |node: &&Node| (self.load(&ids_of(&node.cpus)), node.id);
        let Some(best) = self.topology.nodes().filter(free).min_by_key(key) else {
            return Ok(IdSet::default());
        };
        let cpus = ids_of(&best.cpus);
        if service.exclusive && self.load(&cpus) > 0 {
            return Err("no node is left that no other service was given".to_owned());
        }
        if self
            .topology
            .nodes()
            .filter(|node| !node.cpus.is_empty())
            .count()
            == 1
        {
            self.warn_flat(service, "node");
        }
        Ok(self.free(&cpus))
    }

    /// Those that nobody has for himself.
    fn free(&self, cpus: &IdSet) -> IdSet {
        cpus.difference(&self.taken)
    }

    fn warn_flat(&mut self, service: &Service, what: &str) {
        let line = service
            .place
            .as_ref()
            .map_or(service.line, |place| place.line);
        let reason = format!(
            "this machine has one {what}, so this service is no narrower than the machine; if its host hides the \
             structure, name `cpus`"
        );
        self.warnings.push(self.policy.mistake(line, reason));
    }

    /// Exclusive CPUs must be nobody else's, and not all there are.
    fn check_exclusive(&mut self) {
        let services = &self.policy.services;
        for (index, service) in services.iter().enumerate() {
            let Some(own) = self.cpus[index].as_ref().filter(|_| service.exclusive) else {
                continue;
            };
            for (other, theirs) in services.iter().zip(&self.cpus) {
                // Between two exclusive ones, the later line is told.
                let Some(theirs) = theirs.as_ref().filter(|_| {
                    !std::ptr::eq(other, service) && (!other.exclusive || other.line > service.line)
                }) else {
                    continue;
                };
                let both = own.intersection(theirs);
                if !both.is_empty() {
                    let line = other.place.as_ref().map_or(other.line, |place| place.line);
                    let reason = format!(
                        "CPUs {both} are exclusively those of {:?} (line {})",
                        service.name, service.line
                    );
                    self.mistakes.push(self.policy.mistake(line, reason));
                }
            }
        }
        if self.online.is_subset(&self.taken) {
            let last = services.iter().rfind(|service| service.exclusive);
            let reason =
                "exclusive services have all CPUs, and leave none to the rest of the system";
            if let Some(service) = last {
                self.mistakes
                    .push(self.policy.mistake(service.line, reason));
            }
        }
    }

    fn assignments(&mut self) -> Vec<Assignment> {
        let policy = self.policy;
        let one = |(index, service): (usize, &Service)| Assignment {
            cpus: self.cpus[index].clone().map(|ids| Share {
                whole: self.online.difference(&self.taken).is_subset(&ids),
                ids,
            }),
            mems: self.memory(index, service),
            weight: service.weight,
            exclusive: service.exclusive,
            class: ClassEntry {
                class: service.class,
                slice_us: service.slice_us,
                width: match service.place.as_ref().map(|place| &place.value) {
                    Some(Place::Width(width)) => Some(*width),
                    _ => None,
                },
            },
        };
        policy.services.iter().enumerate().map(one).collect()
    }

    fn memory(&mut self, index: usize, service: &Service) -> Option<Share> {
        let wish = service.memory.as_ref()?;
        let all = memory_nodes(self.topology);
        let ids = match &wish.value {
            Memory::Nodes(nodes) => {
                let there = self.topology.nodes().map(|node| node.id.0).collect();
                check_exist("node", nodes, &there).and_then(|()| {
                    let without = nodes.difference(&all);
                    if without.is_empty() {
                        Ok(nodes.clone())
                    } else {
                        Err(format!("node {without} has no memory"))
                    }
                })
            }
            Memory::Local => match (&self.cpus[index], &service.place) {
                (Some(cpus), _) => Ok(local_memory(self.topology, cpus, &all)),
                // Its place was a mistake already.
                (None, Some(_)) => return None,
                (None, None) => Err(
                    "`memory = \"local\"` needs `nodes`, `llcs`, `cpus` or `width` to be local to"
                        .to_owned(),
                ),
            },
        };
        match ids {
            Ok(ids) => {
                let kernel = |ids| as_kernel_nodes(self.topology, ids);
                Some(Share {
                    whole: kernel(&all).is_subset(&kernel(&ids)),
                    ids: kernel(&ids),
                })
            }
            Err(reason) => {
                self.mistakes.push(self.policy.mistake(wish.line, reason));
                None
            }
        }
    }
}

/// The CPUs that are online.
pub(super) fn online(topology: &Topology) -> IdSet {
    let online = topology.cpus().filter(|cpu| cpu.online);
    online.map(|cpu| cpu.id.0).collect()
}

/// All nodes that have memory.
pub(super) fn memory_nodes(topology: &Topology) -> IdSet {
    topology.memory_nodes().iter().map(|node| node.0).collect()
}

/// These nodes as the kernel numbers them.
fn as_kernel_nodes(topology: &Topology, nodes: &IdSet) -> IdSet {
    let each = nodes
        .iter()
        .flat_map(|node| topology.kernel_nodes(NodeId(node)));
    each.map(|node| node.0).collect()
}

/// The nodes of these CPUs; in place of one without memory, the nearest that has some.
fn local_memory(topology: &Topology, cpus: &IdSet, with_memory: &IdSet) -> IdSet {
    let nodes = topology
        .nodes()
        .filter(|node| node.cpus.iter().any(|cpu| cpus.contains(cpu.0)));
    let nearest = |node: &Node| {
        with_memory
            .iter()
            .min_by_key(|&id| (topology.distance(node.id, NodeId(id)), id))
    };
    nodes.filter_map(nearest).collect()
}

fn check_exist(what: &str, wanted: &IdSet, there: &IdSet) -> Result<(), String> {
    let missing = wanted.difference(there);
    if missing.is_empty() {
        return Ok(());
    }
    let verb = if missing.len() == 1 {
        "doesn't exist"
    } else {
        "don't exist"
    };
    Err(format!("{what} {missing} {verb}: this machine has {there}"))
}

fn ids_of(cpus: &[CpuId]) -> IdSet {
    cpus.iter().map(|cpu| cpu.0).collect()
}
