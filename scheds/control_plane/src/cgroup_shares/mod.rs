//! Shares of cgroups by `cpu.weight`, for policies that queue tasks and know no groups (`bpf/lib/cgroup_shares.bpf.h`): from who
//! runs or waits, and from the tree of cgroups, to a factor for each cgroup.

mod factors;
mod tree;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::{Iter, IterOpts, Link, MapCore, MapFlags, ProgramMut};
use log::warn;

use crate::cgroup_shares_intf::{MAX_SHARES, SHARE_ONE};
use factors::{Group, factors};
use tree::Node;

const ROOT: &str = "/sys/fs/cgroup";
/// Over about this long loads are averaged.
const MEMORY: Duration = Duration::from_millis(500);
/// How often weights are read again. A cgroup that is not known yet is looked for at once.
const REREAD: Duration = Duration::from_secs(2);
/// Fewer tasks, on average, are none.
const NOBODY: f64 = 0.001;
/// A factor that has changed by less than this part of it is left as it is; that of a cgroup without tasks by less than
/// the second.
const SAME: (f64, f64) = (1.0 / 64.0, 1.0 / 8.0);

/// Tasks of a cgroup, not of those below it, that run or wait.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Load {
    tasks: f64,
    weight: f64,
}

/// A load, averaged since then at most.
#[derive(Clone, Copy, Debug)]
struct Mean {
    load: Load,
    since: Instant,
}

impl Mean {
    /// How much of the mean stays after this long. One that is new is seen while its tasks come one by one: the first looks
    /// count for little as soon as there are others.
    fn keep(&self, passed: Duration, now: Instant) -> f64 {
        let age = now.duration_since(self.since);
        let memory = MEMORY.min(age / 2).as_secs_f64();
        if memory > 0.0 {
            (-passed.as_secs_f64() / memory).exp()
        } else {
            0.0
        }
    }
}

/// The options of a daemon whose policy shares by cgroups.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ShareOpts {
    /// Share CPU time among threads alone, by their nice levels, and ignore the cpu.weight of cgroups
    #[arg(long)]
    pub no_cgroup_weight: bool,
}

impl ShareOpts {
    /// Whether there are shares to follow: they are wanted, and this is cgroup v2 with the cpu controller.
    pub fn enabled(self) -> bool {
        !self.no_cgroup_weight
            && std::fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|name| name == "cpu"))
    }

    /// For how many cgroups the map is to have room.
    pub fn room(self) -> u32 {
        if self.enabled() { MAX_SHARES } else { 1 }
    }
}

/// Keeps the map of shares of a loaded scheduler.
#[derive(Debug)]
pub struct Shares {
    tasks: Link,
    follower: RefCell<Follower>,
    failed: Cell<bool>,
}

impl Shares {
    /// With the iterator of the scheduler's object that tells which tasks run or wait.
    ///
    /// # Errors
    /// If the kernel refuses to attach it.
    pub fn new(read_loads: &ProgramMut<'_>) -> Result<Self> {
        Ok(Self {
            tasks: read_loads
                .attach_iter_with_opts(IterOpts::None)
                .context("attaching the iterator of tasks")?,
            follower: RefCell::new(Follower::below(Path::new(ROOT))),
            failed: Cell::new(false),
        })
    }

    /// Looks at the tasks and brings the map up to date. To be called about ten times a second. If that fails, it is
    /// logged, and shares stay as they are from then on.
    pub fn tick(&self, map: &impl MapCore) {
        if self.failed.get() {
            return;
        }
        if let Err(err) = self.update(map) {
            warn!("shares of cgroups stay as they are: {err:#}");
            self.failed.set(true);
        }
    }

    fn update(&self, map: &impl MapCore) -> Result<()> {
        let mut bytes = Vec::new();
        Iter::new(&self.tasks)
            .context("starting the iterator of tasks")?
            .read_to_end(&mut bytes)
            .context("reading the iterator of tasks")?;
        for (id, share) in self.follower.borrow_mut().observe(&bytes, Instant::now())? {
            let key = id.to_ne_bytes();
            match share {
                Some(share) => map.update(&key, &share.to_ne_bytes(), MapFlags::ANY),
                None => map.delete(&key),
            }
            .context("writing a share")?;
        }
        Ok(())
    }
}

/// From loads and weights to changes of the map.
#[derive(Debug)]
struct Follower {
    root: PathBuf,
    tree: Vec<Node>,
    tree_read: Option<Instant>,
    loads: HashMap<u64, Mean>,
    loads_read: Option<Instant>,
    /// What the map has.
    written: HashMap<u64, u32>,
}

impl Follower {
    fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            tree: Vec::new(),
            tree_read: None,
            loads: HashMap::new(),
            loads_read: None,
            written: HashMap::new(),
        }
    }

    /// What to change in the map, now that these tasks run or wait.
    fn observe(&mut self, tasks: &[u8], now: Instant) -> Result<Vec<(u64, Option<u32>)>> {
        self.average(&sums(tasks), now);
        let stale = self
            .tree_read
            .is_none_or(|at| now.duration_since(at) >= REREAD);
        let known: HashSet<u64> = self.tree.iter().map(|node| node.id).collect();
        if stale || self.loads.keys().any(|id| !known.contains(id)) {
            self.tree = tree::read(&self.root)
                .with_context(|| format!("reading the cgroups in {}", self.root.display()))?;
            self.tree_read = Some(now);
        }
        Ok(self.changes())
    }

    fn average(&mut self, sums: &HashMap<u64, Load>, now: Instant) {
        let passed = self
            .loads_read
            .map_or(Duration::ZERO, |at| now.duration_since(at));
        self.loads_read = Some(now);
        for (id, mean) in &mut self.loads {
            let keep = mean.keep(passed, now);
            let sum = sums.get(id).copied().unwrap_or_default();
            mean.load.tasks = mean.load.tasks * keep + sum.tasks * (1.0 - keep);
            mean.load.weight = mean.load.weight * keep + sum.weight * (1.0 - keep);
        }
        for (&id, &load) in sums {
            // What is new counts in full, or it would look idle at first.
            self.loads.entry(id).or_insert(Mean { load, since: now });
        }
        self.loads.retain(|_, mean| mean.load.tasks >= NOBODY);
    }

    fn changes(&mut self) -> Vec<(u64, Option<u32>)> {
        let groups: Vec<Group> = self
            .tree
            .iter()
            .map(|node| {
                let load = self
                    .loads
                    .get(&node.id)
                    .map_or_else(Load::default, |mean| mean.load);
                Group {
                    parent: node.parent,
                    weight: node.weight,
                    load: load.weight,
                    tasks: load.tasks,
                }
            })
            .collect();
        let mut changes = Vec::new();
        let known: HashSet<u64> = self.tree.iter().map(|node| node.id).collect();
        self.written.retain(|&id, _| {
            let there = known.contains(&id);
            if !there {
                changes.push((id, None));
            }
            there
        });
        for ((node, group), factor) in self.tree.iter().zip(&groups).zip(factors(&groups)) {
            let share = factor * f64::from(SHARE_ONE);
            let same = if group.tasks > 0.0 { SAME.0 } else { SAME.1 };
            let old = self.written.get(&node.id).map(|&old| f64::from(old));
            if old.is_none() && self.written.len() >= MAX_SHARES as usize {
                // No room: its tasks keep their weights.
                continue;
            }
            if old.is_none_or(|old| (share - old).abs() > old * same) {
                let share = share.round().max(1.0) as u32;
                self.written.insert(node.id, share);
                changes.push((node.id, Some(share)));
            }
        }
        changes
    }
}

/// Adds up `struct share_load`s.
fn sums(tasks: &[u8]) -> HashMap<u64, Load> {
    let mut sums: HashMap<u64, Load> = HashMap::new();
    let (words, _) = tasks.as_chunks::<8>();
    let (records, _) = words.as_chunks::<2>();
    for [cgroup, weight] in records {
        let load = sums.entry(u64::from_ne_bytes(*cgroup)).or_default();
        load.tasks += 1.0;
        load.weight += u64::from_ne_bytes(*weight) as f64;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use tempfile::TempDir;

    struct Machine {
        root: TempDir,
        shares: Follower,
        now: Instant,
    }

    impl Machine {
        /// With a cgroup of this weight for each.
        fn new(cgroups: &[(&str, u32)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let machine = Self {
                shares: Follower::below(root.path()),
                root,
                now: Instant::now(),
            };
            for (name, weight) in cgroups {
                machine.create(name, *weight);
            }
            machine
        }

        fn create(&self, name: &str, weight: u32) {
            let folder = self.root.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("cpu.weight"), weight.to_string()).unwrap();
        }

        fn id(&self, name: &str) -> u64 {
            fs::metadata(self.root.path().join(name)).unwrap().ino()
        }

        /// A tenth of a second later, with so many tasks of nice 0 in these cgroups.
        fn observe(&mut self, tasks: &[(&str, usize)]) -> Vec<(u64, Option<u32>)> {
            let bytes: Vec<u8> = tasks
                .iter()
                .flat_map(|&(name, count)| vec![[self.id(name), 100]; count])
                .flatten()
                .flat_map(u64::to_ne_bytes)
                .collect();
            self.now += Duration::from_millis(100);
            self.shares.observe(&bytes, self.now).unwrap()
        }

        fn share(&self, name: &str) -> f64 {
            f64::from(self.shares.written[&self.id(name)])
        }
    }

    #[test]
    fn the_first_look_is_enough() {
        let mut machine = Machine::new(&[("a", 100), ("b", 200)]);
        machine.observe(&[("a", 4), ("b", 4)]);
        let ratio = machine.share("b") / machine.share("a");
        assert!((ratio - 2.0).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn what_hardly_changes_is_not_written() {
        let mut machine = Machine::new(&[("a", 100), ("b", 100)]);
        assert!(!machine.observe(&[("a", 4), ("b", 4)]).is_empty());
        assert_eq!(machine.observe(&[("a", 4), ("b", 4)]), []);
    }

    #[test]
    fn new_cgroups_are_found_at_once_and_gone_ones_leave_the_map() {
        let mut machine = Machine::new(&[("a", 100)]);
        machine.observe(&[("a", 1)]);
        machine.create("b", 300);
        machine.observe(&[("a", 1), ("b", 1)]);
        assert!(machine.share("b") > 2.5 * machine.share("a"));
        let gone = machine.id("b");
        fs::remove_dir_all(machine.root.path().join("b")).unwrap();
        machine.now += REREAD;
        let changes = machine.observe(&[("a", 1)]);
        assert!(changes.contains(&(gone, None)), "{changes:?}");
    }

    #[test]
    fn a_share_follows_the_number_of_tasks() {
        let mut machine = Machine::new(&[("a", 100), ("b", 100)]);
        machine.observe(&[("a", 1), ("b", 1)]);
        for _ in 0..50 {
            machine.observe(&[("a", 1), ("b", 9)]);
        }
        let ratio = machine.share("a") / machine.share("b");
        assert!((ratio - 9.0).abs() < 0.3, "{ratio}");
    }

    /// It is first seen when one of its four tasks is there.
    #[test]
    fn what_starts_gets_its_share_soon() {
        let mut machine = Machine::new(&[("a", 100), ("b", 100)]);
        machine.observe(&[("a", 4)]);
        machine.observe(&[("a", 4), ("b", 1)]);
        machine.observe(&[("a", 4), ("b", 4)]);
        let ratio = machine.share("a") / machine.share("b");
        assert!((ratio - 1.0).abs() < 0.15, "{ratio}");
    }

    #[test]
    fn a_new_weight_is_read() {
        let mut machine = Machine::new(&[("a", 100), ("b", 100)]);
        machine.observe(&[("a", 1), ("b", 1)]);
        fs::write(machine.root.path().join("b/cpu.weight"), "400").unwrap();
        machine.now += REREAD;
        machine.observe(&[("a", 1), ("b", 1)]);
        let ratio = machine.share("b") / machine.share("a");
        assert!((ratio - 4.0).abs() < 0.1, "{ratio}");
    }
}
