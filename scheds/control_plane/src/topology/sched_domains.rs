//! The kernel's own scheduling domains, within which EEVDF balances load. The kernel has no stable interface for them:
//! `/proc/schedstat` has their CPUs (with `CONFIG_SCHEDSTATS`), debugfs their names and flags (for root).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use scx_utils::compat::ROOT_PREFIX;

use super::CpuId;

/// A scheduling domain of one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedDomain {
    /// `SMT`, `MC`, `NUMA`, ...; `None` where neither file says it.
    pub name: Option<String>,
    /// CPUs within which load is balanced, in order; `None` where the kernel doesn't say.
    pub cpus: Option<Vec<CpuId>>,
    /// `SD_BALANCE_NEWIDLE`, ...; empty where the kernel doesn't say.
    pub flags: Vec<String>,
}

/// Reads the domains of each CPU, the narrowest first, of this machine or of that below `$SCX_SYSFS_PREFIX`. Empty
/// where the kernel shows none to this user; a CPU that is alone has none.
pub fn read() -> BTreeMap<CpuId, Vec<SchedDomain>> {
    let root = PathBuf::from(format!("{}/", *ROOT_PREFIX));
    let mut domains = fs::read_to_string(root.join("proc/schedstat"))
        .map(|text| from_schedstat(&text))
        .unwrap_or_default();
    for (cpu, named) in from_debugfs(&root.join("sys/kernel/debug/sched/domains")) {
        let own = domains.entry(cpu).or_default();
        own.resize(own.len().max(named.len()), SchedDomain::default());
        for (domain, from) in own.iter_mut().zip(named) {
            domain.name = from.name.or(domain.name.take());
            domain.flags = from.flags;
        }
    }
    domains.retain(|_, domains| !domains.is_empty());
    domains
}

/// Each `cpuN` line is followed by its domains: `domain0 MC ff ...` since version 17, before that `domain0 ff ...`.
fn from_schedstat(text: &str) -> BTreeMap<CpuId, Vec<SchedDomain>> {
    let mut domains: BTreeMap<CpuId, Vec<SchedDomain>> = BTreeMap::new();
    let mut current = None;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("version ")?.trim().parse::<u32>().ok());
    let named = version.is_some_and(|version| version >= 17);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some(id) = first.strip_prefix("cpu") {
            current = id.parse().ok().map(CpuId);
        } else if let (true, Some(cpu)) = (first.starts_with("domain"), current) {
            let name = if named {
                words.next().map(str::to_string)
            } else {
                None
            };
            domains.entry(cpu).or_default().push(SchedDomain {
                name,
                cpus: words.next().and_then(parse_mask),
                flags: Vec::new(),
            });
        }
    }
    domains
}

/// Parses the kernel's mask format: hexadecimal words of 32 bits, the highest first: `1,0000000f`.
fn parse_mask(mask: &str) -> Option<Vec<CpuId>> {
    let mut cpus = Vec::new();
    for (index, word) in (0..).zip(mask.split(',').rev()) {
        let bits = u32::from_str_radix(word, 16).ok()?;
        cpus.extend(
            (0..32)
                .filter(|bit| bits & (1 << bit) != 0)
                .map(|bit| CpuId(index * 32 + bit)),
        );
    }
    Some(cpus)
}

fn from_debugfs(dir: &Path) -> BTreeMap<CpuId, Vec<SchedDomain>> {
    let mut domains = BTreeMap::new();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(cpu) = name
            .to_str()
            .and_then(|name| name.strip_prefix("cpu")?.parse().ok())
        else {
            continue;
        };
        let mut own = Vec::new();
        for index in 0.. {
            let dir = entry.path().join(format!("domain{index}"));
            let Ok(name) = fs::read_to_string(dir.join("name")) else {
                break;
            };
            let flags = fs::read_to_string(dir.join("flags")).unwrap_or_default();
            own.push(SchedDomain {
                name: Some(name.trim().to_string()),
                cpus: None,
                flags: flags.split_ascii_whitespace().map(str::to_string).collect(),
            });
        }
        domains.insert(CpuId(cpu), own);
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(ids: &[u32]) -> Option<Vec<CpuId>> {
        Some(ids.iter().copied().map(CpuId).collect())
    }

    #[test]
    fn masks() {
        assert_eq!(parse_mask("f"), cpus(&[0, 1, 2, 3]));
        assert_eq!(parse_mask("1,80000000"), cpus(&[31, 32]));
        assert_eq!(parse_mask("x"), None);
    }

    #[test]
    fn schedstat_of_old_and_new_kernels() {
        let old = "version 16\ntimestamp 1\ncpu0 0 0\ndomain0 3 1 2\ndomain1 f 1 2\ncpu1 0 0\n";
        let found = from_schedstat(old);
        assert_eq!(found[&CpuId(0)][1].cpus, cpus(&[0, 1, 2, 3]));
        assert_eq!(found[&CpuId(0)][0].name, None);
        assert_eq!(found.len(), 1);
        let new = "version 17\ncpu2 0\ndomain0 MC 00000000,0000000c 1 2\n";
        let found = from_schedstat(new);
        assert_eq!(found[&CpuId(2)][0].name.as_deref(), Some("MC"));
        assert_eq!(found[&CpuId(2)][0].cpus, cpus(&[2, 3]));
    }
}
