//! A kernel of plain files, with what matters of cgroup v2: controllers make and remove files, values are normalised,
//! and writes fail when told to.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use tempfile::TempDir;

use super::machine::{Files, parent};
use super::{Error, IdSet, Journal, Machine, Policy, Report, Resolved, apply, resolve};
use crate::Topology;

/// What happens at a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    #[default]
    None,
    /// The write of that number, from 0, fails.
    Fail(usize),
    /// The process dies there.
    Die(usize),
}

#[derive(Debug, Default)]
pub(super) struct Behaviour {
    pub(super) fault: Fault,
    pub(super) writes: usize,
    /// As until 6.12: a cpuset with tasks can't be emptied.
    pub(super) strict: bool,
    /// Whether there has been a partition.
    partitions: bool,
}

#[derive(Debug)]
struct FakeFiles {
    root: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
}

const CPUSET_FILES: &[(&str, &str)] = &[
    ("cpuset.cpus", "\n"),
    ("cpuset.mems", "\n"),
    ("cpuset.cpus.exclusive", "\n"),
    ("cpuset.cpus.partition", "member\n"),
    ("cpuset.cpus.effective", "0-15\n"),
    ("cpuset.mems.effective", "0-1\n"),
];
const CPU_FILES: &[(&str, &str)] = &[
    ("cpu.weight", "100\n"),
    ("cpu.max", "max 100000\n"),
    ("cpu.idle", "0\n"),
];

fn files_of(controller: &str) -> &'static [(&'static str, &'static str)] {
    if controller == "cpu" {
        CPU_FILES
    } else {
        CPUSET_FILES
    }
}

impl Files for FakeFiles {
    fn read(&self, path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        {
            let mut behaviour = self.behaviour.lock().unwrap();
            let number = behaviour.writes;
            behaviour.writes += 1;
            match behaviour.fault {
                Fault::Fail(at) if at == number => return Err(Errno::IO.into()),
                Fault::Die(at) if at == number => {
                    drop(behaviour);
                    panic!("killed");
                }
                _ => {}
            }
        }
        let old = fs::read_to_string(path)?;
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = match name {
            "cgroup.subtree_control" => return self.subtree_control(path, &old, text),
            "cpuset.cpus" | "cpuset.mems" | "cpuset.cpus.exclusive" => {
                let strict = self.behaviour.lock().unwrap().strict && !name.ends_with("exclusive");
                let populated = fs::read_to_string(path.with_file_name("cgroup.events"))?;
                if strict && text.is_empty() && old != "\n" && populated.contains("populated 1") {
                    return Err(Errno::NOSPC.into());
                }
                let ids = IdSet::parse(text).ok_or(Errno::INVAL)?;
                if name.ends_with("exclusive") && self.siblings_have_some_of(path, &ids)? {
                    return Err(Errno::INVAL.into());
                }
                fs::write(path, format!("{ids}\n"))?;
                return self.check_partitions();
            }
            _ => text.to_owned(),
        };
        fs::write(path, format!("{text}\n"))?;
        if name == "cpuset.cpus.partition" {
            self.behaviour.lock().unwrap().partitions = true;
        }
        self.check_partitions()
    }
}

/// The ids in a file; none if there is no such file.
fn ids_in(path: &Path) -> IdSet {
    let text = fs::read_to_string(path).unwrap_or_default();
    IdSet::parse(&text).unwrap_or_default()
}

fn dirs_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.flatten();
    let dirs = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    Ok(dirs.map(|entry| entry.path()).collect())
}

impl FakeFiles {
    fn siblings_have_some_of(&self, file: &Path, ids: &IdSet) -> io::Result<bool> {
        let own = file.parent().unwrap();
        let siblings = dirs_in(own.parent().unwrap())?;
        let others = siblings.iter().filter(|dir| *dir != own);
        Ok(others
            .map(|dir| ids_in(&dir.join("cpuset.cpus.exclusive")))
            .any(|theirs| !theirs.intersection(ids).is_empty()))
    }

    /// A partition is taken apart if its CPUs are not granted to it all the way down, or, at the top, if another one has
    /// some of them. It doesn't come back by itself.
    fn check_partitions(&self) -> io::Result<()> {
        if !self.behaviour.lock().unwrap().partitions {
            return Ok(());
        }
        let mut dirs = vec![self.root.clone()];
        let mut partitions = Vec::new();
        while let Some(dir) = dirs.pop() {
            dirs.extend(dirs_in(&dir)?);
            if fs::read_to_string(dir.join("cpuset.cpus.partition")).is_ok_and(|is| is == "root\n")
            {
                partitions.push((ids_in(&dir.join("cpuset.cpus")), dir));
            }
        }
        for (cpus, dir) in &partitions {
            let lost = if dir.parent() == Some(&self.root) {
                let mut others = partitions.iter().filter(|(_, other)| other != dir);
                others.any(|(theirs, _)| !theirs.intersection(cpus).is_empty())
            } else {
                let mut above = dir.ancestors().take_while(|dir| **dir != self.root);
                above.any(|dir| !cpus.is_subset(&ids_in(&dir.join("cpuset.cpus.exclusive"))))
            };
            if lost {
                fs::write(
                    dir.join("cpuset.cpus.partition"),
                    "root invalid (it lost CPUs)\n",
                )?;
            }
        }
        Ok(())
    }

    fn subtree_control(&self, path: &Path, old: &str, text: &str) -> io::Result<()> {
        let (sign, controller) = text.split_at(1);
        let dir = path.parent().unwrap();
        let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
        if !available.split_whitespace().any(|word| word == controller) {
            return Err(Errno::NOENT.into());
        }
        // One with tasks of its own hands nothing on.
        let tasks = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        if sign == "+" && !tasks.is_empty() {
            return Err(Errno::BUSY.into());
        }
        let mut words: Vec<&str> = old
            .split_whitespace()
            .filter(|word| *word != controller)
            .collect();
        let children = fs::read_dir(dir)?
            .flatten()
            .filter(|e| e.file_type().unwrap().is_dir());
        for child in children.map(|entry| entry.path()) {
            if sign == "+" {
                hand_down(&child, controller)?;
                continue;
            }
            let enabled = fs::read_to_string(child.join("cgroup.subtree_control"))?;
            if enabled.split_whitespace().any(|word| word == controller) {
                return Err(Errno::BUSY.into());
            }
            for (file, _) in files_of(controller) {
                let _ = fs::remove_file(child.join(file));
            }
            let has = fs::read_to_string(child.join("cgroup.controllers"))?;
            let has: Vec<_> = has
                .split_whitespace()
                .filter(|word| *word != controller)
                .collect();
            fs::write(child.join("cgroup.controllers"), has.join(" ") + "\n")?;
        }
        if sign == "+" {
            words.push(controller);
        }
        words.sort_unstable();
        fs::write(path, words.join(" ") + "\n")
    }
}

fn hand_down(child: &Path, controller: &str) -> io::Result<()> {
    let has = fs::read_to_string(child.join("cgroup.controllers"))?;
    if has.split_whitespace().any(|word| word == controller) {
        return Ok(());
    }
    let mut has: Vec<&str> = has.split_whitespace().chain([controller]).collect();
    has.sort_unstable();
    fs::write(child.join("cgroup.controllers"), has.join(" ") + "\n")?;
    for (file, value) in files_of(controller) {
        fs::write(child.join(file), value)?;
    }
    Ok(())
}

/// In memory, as the real files are: thousands of small writes are slow on a disk.
fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A machine of 2 nodes of 2 LLCs of 4 CPUs, with cgroups.
#[derive(Debug)]
pub(super) struct Fake {
    dir: TempDir,
    pub(super) behaviour: Arc<Mutex<Behaviour>>,
    pub(super) topology: Topology,
}

impl Fake {
    pub(super) fn new(cgroups: &[&str]) -> Self {
        let fake = Self {
            dir: memory_dir(),
            behaviour: Arc::default(),
            topology: Topology::fake(2, 2, 4),
        };
        let random = fake.dir.path().join("proc/sys/kernel/random");
        fs::create_dir_all(&random).unwrap();
        fs::write(random.join("boot_id"), "this boot\n").unwrap();
        fs::write(random.with_file_name("numa_balancing"), "1\n").unwrap();
        let root = fake.root();
        fs::create_dir(&root).unwrap();
        fs::write(root.join("cgroup.controllers"), "cpu cpuset\n").unwrap();
        fs::write(root.join("cgroup.subtree_control"), "\n").unwrap();
        fs::write(root.join("cpuset.cpus.effective"), "0-15\n").unwrap();
        fs::write(root.join("cpuset.mems.effective"), "0-1\n").unwrap();
        for cgroup in cgroups {
            fake.mkdir(cgroup);
        }
        fake
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("cgroup")
    }

    fn path(&self, cgroup: &str) -> PathBuf {
        self.root().join(cgroup.trim_start_matches('/'))
    }

    pub(super) fn journal_path(&self) -> PathBuf {
        self.dir.path().join("run/policy.journal")
    }

    pub(super) fn mkdir(&self, cgroup: &str) {
        let path = self.path(cgroup);
        fs::create_dir(&path).unwrap();
        for (file, text) in [
            ("cgroup.controllers", "\n"),
            ("cgroup.subtree_control", "\n"),
            ("cgroup.events", "populated 1\n"),
        ] {
            fs::write(path.join(file), text).unwrap();
        }
        let above = self.get(parent(cgroup).unwrap(), "cgroup.subtree_control");
        for controller in above.split_whitespace() {
            hand_down(&path, controller).unwrap();
        }
    }

    pub(super) fn rmdir(&self, cgroup: &str) {
        fs::remove_dir_all(self.path(cgroup)).unwrap();
    }

    pub(super) fn get(&self, cgroup: &str, file: &str) -> String {
        let text = fs::read_to_string(self.path(cgroup).join(file)).unwrap();
        text.trim_end().to_owned()
    }

    /// As another owner does it.
    pub(super) fn set(&self, cgroup: &str, file: &str, value: &str) {
        let plain = FakeFiles {
            root: self.root(),
            behaviour: Arc::default(),
        };
        plain
            .write(
                &plain.root.join(cgroup.trim_start_matches('/')).join(file),
                value,
            )
            .unwrap();
    }

    pub(super) fn machine(&self) -> Machine {
        Machine::at(self.root(), self.dir.path().join("proc")).with_files(FakeFiles {
            root: self.root(),
            behaviour: Arc::clone(&self.behaviour),
        })
    }

    pub(super) fn journal(&self) -> Journal {
        Journal::open(&self.journal_path(), &self.machine()).unwrap()
    }

    pub(super) fn set_fault(&self, fault: Fault) {
        let mut behaviour = self.behaviour.lock().unwrap();
        behaviour.fault = fault;
        behaviour.writes = 0;
    }

    pub(super) fn resolve(&self, text: &str) -> (Policy, Resolved) {
        let policy = Policy::parse(Path::new("p.toml"), text).unwrap();
        let resolved = resolve(&policy, &self.topology).unwrap();
        (policy, resolved)
    }

    pub(super) fn apply(&self, text: &str) -> Result<Report, Error> {
        let (policy, resolved) = self.resolve(text);
        apply(&policy, &resolved, &self.machine(), &mut self.journal())
    }

    pub(super) fn restore(&self) -> Report {
        super::restore(&self.machine(), &mut self.journal()).unwrap()
    }

    /// All files that a policy may touch, with their contents.
    pub(super) fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.root(), self.dir.path().join("proc")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                } else {
                    found.insert(entry.path(), fs::read_to_string(entry.path()).unwrap());
                }
            }
        }
        found
    }
}
