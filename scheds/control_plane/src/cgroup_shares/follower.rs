//! From who runs or waits, look by look, to changes of the map of shares; and when to look again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::factors::{Group, factors};
use super::tree::{self, Node};
use crate::cgroup_shares_intf::{MAX_SHARES, SHARE_GUESSED, SHARE_ONE};

/// Over about this long loads are averaged.
const MEMORY: Duration = Duration::from_millis(500);
/// How often weights are read again. A cgroup that is not known yet is looked for at once.
const REREAD: Duration = Duration::from_secs(2);
/// How long until the next look, at most.
pub(super) const EVERY: Duration = Duration::from_millis(100);
/// And at least, while a cgroup that is new is filling: a look that sees half of its tasks gives each of them twice its share.
const SOON: Duration = Duration::from_millis(5);
/// So many looks a second may come sooner, and as many can be saved up: on some machines cgroups come all the time.
const EARLY: f64 = 20.0;
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
    /// Tasks in the last look.
    seen: f64,
    /// Those are more than in the one before.
    grew: bool,
}

impl Mean {
    /// How much of the mean stays after this long. One that is new is seen while its tasks come one by one: the first looks
    /// count for little as soon as there are others.
    fn keep(&self, passed: Duration, now: Instant) -> f64 {
        let age = now.duration_since(self.since);
        let memory = MEMORY.min(age / 4).as_secs_f64();
        if memory > 0.0 {
            (-passed.as_secs_f64() / memory).exp()
        } else {
            0.0
        }
    }
}

/// Between two looks.
#[derive(Debug)]
pub(super) struct Pause {
    pub(super) wait: Duration,
    /// Unless it is called before.
    pub(super) listens: bool,
}

/// Of looks that come sooner than they must.
#[derive(Debug)]
struct Budget {
    left: f64,
    counted: Option<Instant>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            left: EARLY,
            counted: None,
        }
    }
}

impl Budget {
    fn has(&mut self, now: Instant) -> bool {
        let last = self.counted.replace(now).unwrap_or(now);
        let more = now.duration_since(last).as_secs_f64() * EARLY;
        self.left = (self.left + more).min(EARLY);
        self.left >= 1.0
    }

    fn take(&mut self, now: Instant) {
        if self.has(now) {
            self.left -= 1.0;
        }
    }
}

/// From loads and weights to changes of the map.
#[derive(Debug)]
pub(super) struct Follower {
    root: PathBuf,
    tree: Vec<Node>,
    tree_read: Option<Instant>,
    /// Cgroups with a load that were not found when the tree was read: they are gone, or too deep in it.
    missed: HashSet<u64>,
    loads: HashMap<u64, Mean>,
    loads_read: Option<Instant>,
    budget: Budget,
    /// What the map has.
    written: HashMap<u64, u32>,
}

impl Follower {
    pub(super) fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            tree: Vec::new(),
            tree_read: None,
            missed: HashSet::new(),
            loads: HashMap::new(),
            loads_read: None,
            budget: Budget::default(),
            written: HashMap::new(),
        }
    }

    /// What to change in the map, now that these tasks run or wait.
    pub(super) fn observe(
        &mut self,
        tasks: &[u8],
        now: Instant,
    ) -> Result<Vec<(u64, Option<u32>)>> {
        self.average(&sums(tasks), now);
        let stale = self
            .tree_read
            .is_none_or(|at| now.duration_since(at) >= REREAD);
        let is_new = |id: &u64| !self.missed.contains(id);
        if stale || self.unknown().iter().any(is_new) {
            self.tree = tree::read(&self.root)
                .with_context(|| format!("reading the cgroups in {}", self.root.display()))?;
            self.tree_read = Some(now);
            self.missed = self.unknown();
        }
        Ok(self.changes())
    }

    /// Cgroups with a load that are not in the tree.
    fn unknown(&self) -> HashSet<u64> {
        let known: HashSet<u64> = self.tree.iter().map(|node| node.id).collect();
        let ids = self.loads.keys().copied();
        ids.filter(|id| !known.contains(id)).collect()
    }

    fn average(&mut self, sums: &HashMap<u64, Load>, now: Instant) {
        let passed = self
            .loads_read
            .map_or(Duration::ZERO, |at| now.duration_since(at));
        self.loads_read = Some(now);
        for (id, mean) in &mut self.loads {
            let keep = mean.keep(passed, now);
            let sum = sums.get(id).copied().unwrap_or_default();
            mean.grew = sum.tasks > mean.seen;
            mean.seen = sum.tasks;
            mean.load.tasks = mean.load.tasks * keep + sum.tasks * (1.0 - keep);
            mean.load.weight = mean.load.weight * keep + sum.weight * (1.0 - keep);
        }
        for (&id, &load) in sums {
            // What is new counts in full, or it would look idle at first.
            self.loads.entry(id).or_insert(Mean {
                load,
                since: now,
                seen: load.tasks,
                grew: true,
            });
        }
        self.loads.retain(|_, mean| mean.load.tasks >= NOBODY);
    }

    /// What to do after the look of `now`: to wait, where a cgroup is being filled, for as long as it is there by then.
    pub(super) fn pause(&mut self, now: Instant) -> Pause {
        if !self.budget.has(now) {
            return Pause {
                wait: EVERY,
                listens: false,
            };
        }
        let growing = self.loads.values().filter(|mean| mean.grew);
        let newest = growing.map(|mean| now.duration_since(mean.since)).min();
        Pause {
            wait: newest.map_or(EVERY, |age| age.clamp(SOON, EVERY)),
            listens: true,
        }
    }

    /// That was before it had to.
    pub(super) fn looked_early(&mut self, now: Instant) {
        self.budget.take(now);
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
            // What has no weight gives its tasks what its parent does, however many they are.
            let (factor, same, guessed) = if group.tasks > 0.0 || group.weight.is_none() {
                (factor, SAME.0, 0)
            } else {
                // What the first who comes may have, many might come with.
                (factor.min(1.0), SAME.1, SHARE_GUESSED)
            };
            let share = factor * f64::from(SHARE_ONE);
            let old = self.written.get(&node.id).copied();
            if old.is_none() && self.written.len() >= MAX_SHARES as usize {
                // No room: its tasks keep their weights.
                continue;
            }
            let is_same = |old: u32| {
                let before = f64::from(old & !SHARE_GUESSED);
                old & SHARE_GUESSED == guessed && (share - before).abs() <= before * same
            };
            if !old.is_some_and(is_same) {
                let share = share.round().max(1.0) as u32 | guessed;
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
            self.observe_after(Duration::from_millis(100), tasks)
        }

        fn observe_after(
            &mut self,
            passed: Duration,
            tasks: &[(&str, usize)],
        ) -> Vec<(u64, Option<u32>)> {
            let bytes: Vec<u8> = tasks
                .iter()
                .flat_map(|&(name, count)| vec![[self.id(name), 100]; count])
                .flatten()
                .flat_map(u64::to_ne_bytes)
                .collect();
            self.now += passed;
            self.shares.observe(&bytes, self.now).unwrap()
        }

        fn share(&self, name: &str) -> f64 {
            f64::from(self.shares.written[&self.id(name)] & !SHARE_GUESSED)
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

    /// It is gone, or deeper than anybody looks: the tree is read for it once, and then with the weights.
    #[test]
    fn what_is_not_there_is_looked_for_once() {
        let mut machine = Machine::new(&[("a", 100), ("b", 100)]);
        machine.observe(&[("a", 1), ("b", 1)]);
        // Away, not removed: a file system may give its number to the next one, which the kernel's doesn't.
        let elsewhere = tempfile::tempdir_in(machine.root.path().parent().unwrap()).unwrap();
        let gone = machine.root.path().join("b");
        fs::rename(gone, elsewhere.path().join("b")).unwrap();
        machine.now += REREAD;
        machine.observe(&[("a", 1)]);
        let read = machine.shares.tree_read;
        assert_eq!(read, Some(machine.now));
        for _ in 0..5 {
            machine.observe(&[("a", 1)]);
        }
        assert_eq!(machine.shares.tree_read, read);
        machine.create("c", 100);
        machine.observe(&[("a", 1), ("c", 1)]);
        assert_eq!(machine.shares.tree_read, Some(machine.now));
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

    /// The 24 tasks of three cgroups of the same weight come one after the other. However early the first look is, a fifth of
    /// the time between looks after the last task came the shares are right.
    #[test]
    fn cgroups_that_fill_are_looked_at_sooner() {
        const TASK: Duration = Duration::from_millis(2);
        let end = TASK * 24 + EVERY / 5;
        for early in 1..24 {
            let mut machine = Machine::new(&[("a", 100), ("b", 100), ("c", 100)]);
            let mut wait = TASK * early;
            let mut passed = wait;
            while passed <= end {
                let started = (passed.as_millis() / TASK.as_millis()) as usize;
                let here = |before: usize| started.saturating_sub(before).min(8);
                machine.observe_after(wait, &[("a", here(0)), ("b", here(8)), ("c", here(16))]);
                wait = machine.shares.pause(machine.now).wait;
                passed += wait;
            }
            let shares = ["a", "b", "c"].map(|name| machine.share(name) / f64::from(SHARE_ONE));
            for share in shares {
                assert!((share - 1.0).abs() < 0.1, "{early}: {shares:?}");
            }
        }
    }

    /// Of cgroups that come all the time, or of tasks that sleep again before it looks.
    #[test]
    fn whoever_calls_all_the_time_is_not_heard_all_the_time() {
        let names: Vec<String> = (0..500).map(|at| at.to_string()).collect();
        for calls in [false, true] {
            let mut machine = Machine::new(&[]);
            let (mut looks, mut wait) = (0, EVERY);
            let began = machine.now;
            while machine.now < began + Duration::from_secs(4) {
                if calls {
                    machine.observe_after(wait, &[]);
                } else {
                    machine.create(&names[looks], 100);
                    machine.observe_after(wait, &[(&names[looks], 1)]);
                }
                let pause = machine.shares.pause(machine.now);
                wait = pause.wait;
                if calls && pause.listens {
                    wait = SOON;
                }
                if wait < EVERY {
                    machine.shares.looked_early(machine.now);
                }
                looks += 1;
            }
            let least = 4.0 * EARLY;
            assert!(
                looks as f64 > least && (looks as f64) < least + 80.0,
                "{looks} looks in 4 s"
            );
        }
    }

    #[test]
    fn the_share_of_a_cgroup_without_tasks_is_a_guess() {
        let mut machine = Machine::new(&[("a", 100), ("b", 100)]);
        let guessed = |machine: &Machine, name| {
            machine.shares.written[&machine.id(name)] & SHARE_GUESSED != 0
        };
        machine.observe(&[("a", 1)]);
        assert!(!guessed(&machine, "a") && guessed(&machine, "b"));
        machine.observe(&[("a", 1), ("b", 1)]);
        assert!(!guessed(&machine, "b"));
        for _ in 0..100 {
            machine.observe(&[("a", 1)]);
        }
        assert!(guessed(&machine, "b"));
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
