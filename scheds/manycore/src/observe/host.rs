//! What the meter asks of the running kernel, BPF apart.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys;

/// The kernel's release, as `uname -r` prints it.
pub(super) fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Major and minor version of a release; (0, 0) if it doesn't begin with them.
pub(super) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    }
}

/// Which scheduler runs the normal tasks: the sched_ext one that is loaded, else the kernel's own.
pub(super) fn scheduler() -> String {
    let base = Path::new("/sys/kernel/sched_ext");
    let read = |name| fs::read_to_string(base.join(name)).map(|s| s.trim().to_owned());
    if read("state").is_ok_and(|state| state == "enabled") {
        return read("root/ops").unwrap_or_else(|_| "sched_ext".to_owned());
    }
    // EEVDF replaced CFS in 6.6.
    let fair = if version(&release()) < (6, 6) {
        "CFS"
    } else {
        "EEVDF"
    };
    fair.to_owned()
}

/// The list of online CPUs, as the kernel prints it.
pub(super) fn online() -> String {
    let list = fs::read_to_string("/sys/devices/system/cpu/online");
    list.map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// The counters of /proc/vmstat; empty if there is none.
pub(super) fn vmstat() -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    parse_vmstat(&text)
}

fn parse_vmstat(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// CPU time of this process' main thread so far, in nanoseconds; 0 if the kernel doesn't tell.
pub(super) fn own_cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0)
}

/// Asks the kernel to time BPF programs while the returned descriptor is open.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn enable_bpf_stats() -> Result<OwnedFd> {
    // SAFETY: the call takes no pointer; it returns a new descriptor or a negative error.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(-fd))
            .context("the kernel refused to time BPF programs");
    }
    // SAFETY: fd was just made by the kernel for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes this thread SCHED_FIFO, and no child of it: the reader must get its CPU when the scheduler under test is the
/// very thing that doesn't give CPUs, or the rings overflow.
///
/// # Errors
/// If the kernel refuses; the meter works without, but may lose records under load.
pub(super) fn become_realtime() -> std::io::Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: param is a valid sched_param that outlives the call; 0 is this thread.
    let ret = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param)
    };
    if ret == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The paths of all cgroups below the cgroup v2 root, by id.
pub(super) fn cgroup_names() -> BTreeMap<u64, String> {
    let root = Path::new("/sys/fs/cgroup");
    let mut names = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        let Ok(meta) = fs::metadata(&dir) else {
            continue;
        };
        let path = dir.strip_prefix(root).unwrap_or(&dir);
        names.insert(meta.ino(), format!("/{}", path.display()));
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        open.extend(
            entries
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases() {
        assert_eq!(version("7.3.4+deb13-cloud-amd64"), (7, 3));
        assert_eq!(version("6.12.117"), (6, 12));
        assert_eq!(version("6.1-rc2"), (6, 1));
        assert_eq!(version("next"), (0, 0));
    }

    #[test]
    fn vmstat_is_names_and_numbers() {
        let v = parse_vmstat("nr_free_pages 12\nodd line\nnuma_pages_migrated 7\n");
        assert_eq!(v.get("numa_pages_migrated"), Some(&7));
        assert_eq!(v.len(), 2);
    }
}
