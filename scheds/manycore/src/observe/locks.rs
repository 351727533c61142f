//! Names the places in the kernel that wait for locks.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use super::meter::LockSite;

/// Contention of one call site.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct HotLock {
    /// The function that asked for the lock, and the offset in it.
    pub site: String,
    pub kind: &'static str,
    pub waits: u64,
    pub total_ms: f64,
    pub mean_us: f64,
    pub max_us: f64,
}

/// The kernel's functions by address.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    by_address: BTreeMap<u64, String>,
}

impl Symbols {
    /// Reads /proc/kallsyms.
    ///
    /// # Errors
    /// If it can't be read.
    pub(super) fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/kallsyms").context("can't read /proc/kallsyms")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?;
            let name = words.next()?;
            let is_text = kind.eq_ignore_ascii_case("t") || kind.eq_ignore_ascii_case("w");
            (is_text && address != 0).then(|| (address, name.to_owned()))
        };
        Self {
            by_address: text.lines().filter_map(symbol).collect(),
        }
    }

    /// The function that holds this address, and the offset in it.
    fn lookup(&self, address: u64) -> Option<(&str, u64)> {
        let (start, name) = self.by_address.range(..=address).next_back()?;
        Some((name, address - start))
    }
}

/// Whether a function is part of a lock's implementation or of the meter, rather than somebody who wants the lock.
fn is_plumbing(function: &str) -> bool {
    const PREFIXES: [&str; 26] = [
        "bpf_prog_",
        "bpf_trace_run",
        "bpf_get_stackid",
        "bpf_trampoline",
        "__bpf_trace",
        "__traceiter_",
        "trace_contention",
        "queued_spin_lock",
        "native_queued_",
        "__pv_queued_",
        "queued_read_lock",
        "queued_write_lock",
        "_raw_",
        "__raw_",
        "raw_spin_rq_lock",
        "mutex_lock",
        "__mutex_lock",
        "rwsem_",
        "down_",
        "__down",
        "percpu_rwsem_wait",
        "__percpu_down",
        "percpu_down",
        "rtlock_",
        "rt_mutex_",
        "__rt_mutex",
    ];
    PREFIXES.iter().any(|p| function.starts_with(p))
}

/// What kind of lock the flags of contention_begin (LCB_F_*) tell of.
fn kind(flags: u32) -> &'static str {
    const SPIN: u32 = 1;
    const READ: u32 = 2;
    const WRITE: u32 = 4;
    const RT: u32 = 8;
    const PERCPU: u32 = 16;
    const MUTEX: u32 = 32;
    if flags & MUTEX != 0 {
        "mutex"
    } else if flags & PERCPU != 0 {
        "percpu-rwsem"
    } else if flags & RT != 0 {
        "rt-mutex"
    } else if flags & SPIN != 0 && flags & (READ | WRITE) != 0 {
        "rwlock"
    } else if flags & SPIN != 0 {
        "spinlock"
    } else if flags & (READ | WRITE) != 0 {
        "rwsem"
    } else {
        "semaphore"
    }
}

fn site_name(stack: &[u64], symbols: &Symbols) -> String {
    let mut named = stack.iter().filter_map(|&ip| symbols.lookup(ip));
    match named.find(|(function, _)| !is_plumbing(function)) {
        Some((function, offset)) => format!("{function}+{offset:#x}"),
        None => "unknown".to_owned(),
    }
}

/// Sums up stacks by the call site, worst first.
pub(super) fn hot_locks(sites: &[LockSite], symbols: &Symbols) -> Vec<HotLock> {
    let mut merged: BTreeMap<(String, &'static str), (u64, u64, u64)> = BTreeMap::new();
    for site in sites {
        let key = (site_name(&site.stack, symbols), kind(site.flags));
        let sum = merged.entry(key).or_default();
        sum.0 += site.count;
        sum.1 += site.total_ns;
        sum.2 = sum.2.max(site.max_ns);
    }
    let mut hot: Vec<HotLock> = merged
        .into_iter()
        .map(|((site, kind), (waits, total_ns, max_ns))| HotLock {
            site,
            kind,
            waits,
            total_ms: total_ns as f64 / 1e6,
            mean_us: total_ns as f64 / 1e3 / waits.max(1) as f64,
            max_us: max_ns as f64 / 1e3,
        })
        .collect();
    hot.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
    hot
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t native_queued_spin_lock_slowpath
ffffffff81000200 T _raw_spin_lock
ffffffff81000300 T try_to_wake_up
ffffffff81000400 D some_data
ffffffff81000500 t mutex_lock
ffffffff81000600 T pipe_write
";

    fn site(stack: &[u64], flags: u32, total_ns: u64) -> LockSite {
        LockSite {
            stack: stack.to_vec(),
            flags,
            count: 2,
            total_ns,
            max_ns: total_ns,
        }
    }

    #[test]
    fn the_site_is_the_caller_of_the_lock() {
        let symbols = Symbols::parse(KALLSYMS);
        let stack = [
            0xffff_ffff_8100_0110,
            0xffff_ffff_8100_0205,
            0xffff_ffff_8100_0310,
        ];
        assert_eq!(site_name(&stack, &symbols), "try_to_wake_up+0x10");
        assert_eq!(site_name(&stack[..2], &symbols), "unknown");
    }

    #[test]
    fn stacks_of_one_site_are_one_row() {
        let symbols = Symbols::parse(KALLSYMS);
        let wake = 0xffff_ffff_8100_0310;
        let sites = [
            site(&[0xffff_ffff_8100_0110, wake], 1, 1000),
            site(&[0xffff_ffff_8100_0205, wake], 1, 3000),
            site(&[0xffff_ffff_8100_0501, 0xffff_ffff_8100_0620], 32, 2000),
        ];
        let hot = hot_locks(&sites, &symbols);
        assert_eq!(hot.len(), 2);
        assert_eq!(
            (hot[0].site.as_str(), hot[0].kind, hot[0].waits),
            ("try_to_wake_up+0x10", "spinlock", 4)
        );
        assert_eq!(hot[0].max_us, 3.0);
        assert_eq!(
            (hot[1].site.as_str(), hot[1].kind),
            ("pipe_write+0x20", "mutex")
        );
    }
}
