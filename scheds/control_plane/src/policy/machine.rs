//! The kernel's files that a policy is applied through. The only part that touches them; tests put their own behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::IdSet;

/// A controller of cgroup v2 that a policy needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    Cpuset,
    Cpu,
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpuset => "cpuset",
            Self::Cpu => "cpu",
        })
    }
}

/// A file of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CgroupFile {
    #[serde(rename = "cpuset.mems")]
    Mems,
    #[serde(rename = "cpuset.cpus")]
    Cpus,
    #[serde(rename = "cpuset.cpus.exclusive")]
    Exclusive,
    #[serde(rename = "cpuset.cpus.partition")]
    Partition,
    #[serde(rename = "cpu.weight")]
    Weight,
}

impl CgroupFile {
    pub fn name(self) -> &'static str {
        match self {
            Self::Mems => "cpuset.mems",
            Self::Cpus => "cpuset.cpus",
            Self::Exclusive => "cpuset.cpus.exclusive",
            Self::Partition => "cpuset.cpus.partition",
            Self::Weight => "cpu.weight",
        }
    }

    pub fn controller(self) -> Controller {
        match self {
            Self::Weight => Controller::Cpu,
            _ => Controller::Cpuset,
        }
    }

    /// What a new cgroup says, or one whose controller has just been enabled.
    pub(super) fn default_value(self) -> &'static str {
        match self {
            Self::Mems | Self::Cpus | Self::Exclusive => "",
            Self::Partition => "member",
            Self::Weight => "100",
        }
    }
}

/// Something that a policy sets. Cgroups are named by their path from the cgroup root, which is `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A controller for the children of a cgroup: `on` or `off`.
    Controller {
        cgroup: String,
        controller: Controller,
    },
    File {
        cgroup: String,
        file: CgroupFile,
    },
    /// `kernel.numa_balancing`
    NumaBalancing,
}

impl Target {
    pub(super) fn file(cgroup: &str, file: CgroupFile) -> Self {
        Self::File {
            cgroup: cgroup.to_owned(),
            file,
        }
    }

    /// The cgroup that it belongs to.
    pub fn cgroup(&self) -> Option<&str> {
        match self {
            Self::Controller { cgroup, .. } | Self::File { cgroup, .. } => Some(cgroup),
            Self::NumaBalancing => None,
        }
    }

    /// Whether two texts mean the same value to the kernel, which prints lists in its own way, and says `root invalid
    /// (...)` of a partition that lost its CPUs.
    pub(super) fn same(&self, one: &str, other: &str) -> bool {
        match self {
            Self::File {
                file: CgroupFile::Mems | CgroupFile::Cpus | CgroupFile::Exclusive,
                ..
            } => {
                one == other
                    || IdSet::parse(one).is_some_and(|set| IdSet::parse(other) == Some(set))
            }
            Self::File {
                file: CgroupFile::Partition,
                ..
            } => one.split(' ').next() == other.split(' ').next(),
            _ => one == other,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller { cgroup, controller } => {
                write!(f, "{cgroup} cgroup.subtree_control:{controller}")
            }
            Self::File { cgroup, file } => write!(f, "{cgroup} {}", file.name()),
            Self::NumaBalancing => f.write_str("kernel.numa_balancing"),
        }
    }
}

/// How files are read and written. Tests have a kernel of their own.
pub(super) trait Files: fmt::Debug + Send {
    fn read(&self, path: &Path) -> io::Result<String>;
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
}

#[derive(Debug)]
struct KernelFiles;

impl Files for KernelFiles {
    fn read(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        let nofollow = OFlags::NOFOLLOW.bits() as i32;
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nofollow)
            .open(path)?;
        file.read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let nofollow = OFlags::NOFOLLOW.bits() as i32;
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .custom_flags(nofollow)
            .open(path)?;
        // The kernel takes a value in one write.
        let line = format!("{text}\n");
        match file.write(line.as_bytes())? {
            written if written == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// Where the kernel's files are.
#[derive(Debug)]
pub struct Machine {
    cgroup_root: PathBuf,
    proc_root: PathBuf,
    files: Box<dyn Files>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::at("/sys/fs/cgroup", "/proc")
    }
}

impl Machine {
    /// With the cgroup root and `/proc` elsewhere.
    pub fn at(cgroup_root: impl Into<PathBuf>, proc_root: impl Into<PathBuf>) -> Self {
        Self {
            cgroup_root: cgroup_root.into(),
            proc_root: proc_root.into(),
            files: Box::new(KernelFiles),
        }
    }

    #[cfg(test)]
    pub(super) fn with_files(mut self, files: impl Files + 'static) -> Self {
        self.files = Box::new(files);
        self
    }

    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    pub(super) fn dir(&self, cgroup: &str) -> PathBuf {
        self.cgroup_root.join(cgroup.trim_start_matches('/'))
    }

    fn numa_balancing(&self) -> PathBuf {
        self.proc_root.join("sys/kernel/numa_balancing")
    }

    /// Reads a target's value, without its last newline.
    ///
    /// # Errors
    /// The kernel's; `NotFound` if the cgroup is gone or its controller is not enabled.
    pub fn read(&self, target: &Target) -> io::Result<String> {
        match target {
            Target::Controller { cgroup, controller } => {
                let enabled = self.words(cgroup, "cgroup.subtree_control")?;
                let on = enabled.contains(&controller.to_string());
                Ok(if on { "on" } else { "off" }.to_owned())
            }
            Target::File { cgroup, file } => self.line(&self.dir(cgroup).join(file.name())),
            Target::NumaBalancing => self.line(&self.numa_balancing()),
        }
    }

    /// Writes a target's value.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn write(&self, target: &Target, value: &str) -> io::Result<()> {
        match target {
            Target::Controller { cgroup, controller } => {
                let sign = if value == "on" { '+' } else { '-' };
                let path = self.dir(cgroup).join("cgroup.subtree_control");
                self.files.write(&path, &format!("{sign}{controller}"))
            }
            Target::File { cgroup, file } => {
                self.files.write(&self.dir(cgroup).join(file.name()), value)
            }
            Target::NumaBalancing => self.files.write(&self.numa_balancing(), value),
        }
    }

    fn line(&self, path: &Path) -> io::Result<String> {
        let mut text = self.files.read(path)?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(text)
    }

    /// The text of any file of a cgroup.
    pub(super) fn text(&self, cgroup: &str, file: &str) -> io::Result<String> {
        self.line(&self.dir(cgroup).join(file))
    }

    /// The words of a file of a cgroup.
    pub(super) fn words(&self, cgroup: &str, file: &str) -> io::Result<BTreeSet<String>> {
        let text = self.text(cgroup, file)?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// The id of this boot: values of an earlier one are gone, whatever a journal says. Empty if it isn't known.
    pub(super) fn boot_id(&self) -> String {
        let path = self.proc_root.join("sys/kernel/random/boot_id");
        self.line(&path).unwrap_or_default()
    }

    /// A cgroup's id.
    ///
    /// # Errors
    /// `NotFound` if it is gone.
    pub fn cgroup_id(&self, cgroup: &str) -> io::Result<u64> {
        Ok(fs::symlink_metadata(self.dir(cgroup))?.ino())
    }

    /// All cgroups below the root, with their ids. Those that come or go meanwhile may be among them or not.
    ///
    /// # Errors
    /// If the root can't be read.
    pub fn cgroups(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![(self.cgroup_root.clone(), String::new())];
        while let Some((dir, path)) = dirs.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(err) if path.is_empty() => return Err(err),
                // Gone since it was listed.
                Err(_) => continue,
            };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let (Ok(name), Ok(about)) = (entry.file_name().into_string(), entry.metadata())
                else {
                    continue;
                };
                let child = format!("{path}/{name}");
                found.insert(child.clone(), about.ino());
                // A folder has a link from its name, from its own `.`, and from the `..` of each folder in it. One
                // without any need not be listed, which has dozens of files in it.
                if about.nlink() != 2 {
                    dirs.push((entry.path(), child));
                }
            }
        }
        Ok(found)
    }
}

/// The cgroup above, `/` above the topmost; `None` above that.
pub(super) fn parent(cgroup: &str) -> Option<&str> {
    if cgroup == "/" {
        return None;
    }
    let (above, _) = cgroup.rsplit_once('/')?;
    Some(if above.is_empty() { "/" } else { above })
}

/// All cgroups above, from `/` down.
pub(super) fn ancestors(cgroup: &str) -> Vec<&str> {
    let mut above: Vec<&str> = std::iter::successors(parent(cgroup), |path| parent(path)).collect();
    above.reverse();
    above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above() {
        assert_eq!(ancestors("/a/b/c"), ["/", "/a", "/a/b"]);
        assert_eq!(ancestors("/a"), ["/"]);
        assert_eq!(parent("/"), None);
    }

    #[test]
    fn values_are_compared_as_the_kernel_means_them() {
        let file = |file| Target::file("/a", file);
        assert!(file(CgroupFile::Cpus).same("0,1,2", "0-2"));
        assert!(!file(CgroupFile::Cpus).same("0-2", ""));
        assert!(file(CgroupFile::Partition).same(
            "root",
            "root invalid (Cpu list in cpuset.cpus not exclusive)"
        ));
        assert!(!file(CgroupFile::Partition).same("root", "member"));
        assert!(!file(CgroupFile::Weight).same("100", "10"));
    }

    #[test]
    fn cgroups_are_found_with_their_ids() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("a/cpu.weight"), "100\n").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let machine = Machine::at(dir.path(), "/proc");
        let found = machine.cgroups().unwrap();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            ["/a", "/a/b", "/a/b/c", "/d"]
        );
        assert_eq!(found["/a/b"], machine.cgroup_id("/a/b").unwrap());
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("victim"), "precious").unwrap();
        std::os::unix::fs::symlink("../victim", dir.path().join("a/cpu.weight")).unwrap();
        let machine = Machine::at(dir.path(), "/proc");
        let target = Target::file("/a", CgroupFile::Weight);
        assert!(machine.write(&target, "1").is_err() && machine.read(&target).is_err());
        assert_eq!(
            fs::read_to_string(dir.path().join("victim")).unwrap(),
            "precious"
        );
    }
}
