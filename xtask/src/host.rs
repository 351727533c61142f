//! What this machine is.

use crate::cmd;
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The distribution, from `/etc/os-release`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distro {
    pub id: String,
    pub codename: String,
    pub name: String,
}

impl Distro {
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let fields: HashMap<_, _> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key, value.trim_matches('"')))
            .collect();
        let get = |key| fields.get(key).copied().unwrap_or_default().to_owned();
        Self {
            id: get("ID"),
            codename: get("VERSION_CODENAME"),
            name: get("PRETTY_NAME"),
        }
    }

    pub fn is_debian(&self) -> bool {
        self.id == "debian"
    }

    /// Packages are installed through apt on these.
    pub fn has_apt(&self) -> bool {
        matches!(self.id.as_str(), "debian" | "ubuntu")
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory of this machine; 0 if it can't be told.
pub fn memory_mib() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok())
        .map_or(0, |kib| kib / 1024)
}

/// Refuses to start what won't fit: an error that names the folder, what is free, what is needed, and the variable that
/// sets another folder.
pub fn need_space(dir: &Path, mib: u64, what: &str, variable: &str) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)
        .with_context(|| format!("reading the free space of {}", dir.display()))?;
    let free = stat.f_bavail * stat.f_frsize / (1024 * 1024);
    if free < mib {
        bail!(
            "{what} needs {mib} MiB in {}, where {free} MiB are free: make room, or set {variable} to a folder on \
             another disk",
            dir.display()
        );
    }
    Ok(())
}

/// One line for reports: processor, CPUs and kernel.
pub fn describe() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("?", |rest| rest.trim_start_matches([' ', '\t', ':']));
    format!("{model}, {} CPUs, Linux {}", cpus(), kernel_release())
}

/// Whether guests can run under KVM here, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    Usable,
    No(String),
}

/// A `/dev/kvm` that opens is not enough: without the processor's extension QEMU aborts, and under some nested
/// hypervisors guest kernels run at a crawl. So the flag must be there, and a real kernel must get through its boot
/// within seconds.
pub fn kvm(probe: impl FnOnce() -> Result<bool>) -> Kvm {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_virtualization_flag(&cpuinfo) {
        return Kvm::No("the CPU shows neither vmx nor svm".into());
    }
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        return Kvm::No(format!("/dev/kvm: {error}"));
    }
    match probe() {
        Ok(true) => Kvm::Usable,
        Ok(false) => Kvm::No("a probe guest did not get through its boot within seconds".into()),
        Err(error) => Kvm::No(format!("no probe guest could be started: {error:#}")),
    }
}

fn has_virtualization_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

/// The version of the running kernel.
pub fn kernel_release() -> String {
    cmd::output(Command::new("uname").arg("-r")).map_or_else(|_| "?".into(), |s| s.trim().into())
}

pub fn running_kernel_has_sched_ext() -> bool {
    Path::new("/sys/kernel/sched_ext/state").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_os_release() {
        let distro = Distro::parse(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_CODENAME=bookworm\n",
        );
        assert_eq!(distro.codename, "bookworm");
        assert!(distro.is_debian() && distro.has_apt());
        assert!(!Distro::parse("ID=fedora\n").has_apt());
    }

    #[test]
    fn flags_are_whole_words() {
        assert!(has_virtualization_flag("flags\t\t: fpu vmx sse"));
        assert!(has_virtualization_flag("flags\t\t: fpu svm"));
        assert!(!has_virtualization_flag("flags\t\t: fpu vmxnet\nbugs: vmx"));
    }

    #[test]
    fn kvm_needs_a_guest_that_boots() {
        if let Kvm::No(why) = kvm(|| Ok(false)) {
            assert!(!why.is_empty());
        } else {
            panic!("a failed probe must not count as usable");
        }
    }
}
