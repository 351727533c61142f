//! The records that `bpf/observe.bpf.c` sends, as `bpf/observe.h` lays them out.

use super::waste::{Span, Who};

/// Size of `struct obs_span`.
pub(super) const SPAN_BYTES: usize = 32;
/// Size of `struct obs_task`.
pub(super) const TASK_BYTES: usize = 72;
/// Size of `struct obs_cpu`.
pub(super) const CPU_BYTES: usize = 256;

const WHO_SHIFT: u32 = 28;

/// One thread, as `struct obs_task` tells of it. Times are CLOCK_MONOTONIC nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TaskSample {
    pub pid: u32,
    pub tgid: u32,
    pub who: Who,
    /// Nice weight; 1024 is nice 0.
    pub weight: u32,
    pub policy: u32,
    pub exited: bool,
    pub first_ns: u64,
    pub last_ns: u64,
    pub run_ns: u64,
    pub wait_ns: u64,
    pub comm: String,
}

/// What one ring record holds; a record's size tells which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Span(Span),
    Task(TaskSample),
}

/// A cursor over native-endian fields. Reading past the end gives `None`.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }
}

fn who(word: u32) -> Who {
    let n = word & ((1 << WHO_SHIFT) - 1);
    match word >> WHO_SHIFT {
        0 => Who::Idle(n),
        2 => Who::Pin(n),
        3 => Who::Mask(n),
        _ => Who::Any,
    }
}

/// Reads one ring record, or `None` if its size is neither kind's.
pub(super) fn parse(bytes: &[u8]) -> Option<Record> {
    match bytes.len() {
        SPAN_BYTES => span(bytes).map(Record::Span),
        TASK_BYTES => task(bytes).map(Record::Task),
        _ => None,
    }
}

fn span(bytes: &[u8]) -> Option<Span> {
    let mut f = Fields(bytes);
    Some(Span {
        since: f.u64()?,
        start: f.u64()?,
        end: f.u64()?,
        who: who(f.u32()?),
        cpu: f.u32()?,
    })
}

/// Reads one `struct obs_task`.
pub(super) fn task(bytes: &[u8]) -> Option<TaskSample> {
    let mut f = Fields(bytes);
    Some(TaskSample {
        pid: f.u32()?,
        tgid: f.u32()?,
        who: who(f.u32()?),
        weight: f.u32()?,
        policy: f.u32()?,
        exited: f.u32()? != 0,
        first_ns: f.u64()?,
        last_ns: f.u64()?,
        run_ns: f.u64()?,
        wait_ns: f.u64()?,
        comm: comm(&f.take::<16>()?),
    })
}

/// A command name as the kernel keeps it: up to the first NUL.
pub(super) fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The counters of `struct obs_cpu`, of one CPU or summed over CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CpuCounters {
    pub switches: u64,
    pub voluntary: u64,
    pub preempted: u64,
    pub wakeups: u64,
    pub moves: u64,
    /// By distance: SMT sibling, same LLC, same node, another node.
    pub migrations: [u64; 4],
    pub busy_ns: u64,
    pub home_ns: u64,
    pub away_ns: u64,
    pub balance_calls: u64,
    pub throttles: u64,
    pub dropped: u64,
    pub no_storage: u64,
    pub no_origin: u64,
    pub no_mask: u64,
    pub no_lock: u64,
}

impl CpuCounters {
    /// Reads the counters of one `struct obs_cpu`.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != CPU_BYTES {
            return None;
        }
        // Before the counters: a cache line of topology, idle_since and idle_acc.
        let mut f = Fields(&bytes[80..]);
        let mut c = Self::default();
        for field in c.fields_mut() {
            *field = f.u64()?;
        }
        Some(c)
    }

    /// Every field, in the order of `struct obs_cpu`.
    fn fields_mut(&mut self) -> [&mut u64; 19] {
        let [smt, llc, node, remote] = &mut self.migrations;
        [
            &mut self.switches,
            &mut self.voluntary,
            &mut self.preempted,
            &mut self.wakeups,
            &mut self.moves,
            smt,
            llc,
            node,
            remote,
            &mut self.busy_ns,
            &mut self.home_ns,
            &mut self.away_ns,
            &mut self.balance_calls,
            &mut self.throttles,
            &mut self.dropped,
            &mut self.no_storage,
            &mut self.no_origin,
            &mut self.no_mask,
            &mut self.no_lock,
        ]
    }

    /// Adds another CPU's counters to these.
    pub(super) fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        for (a, b) in self.fields_mut().into_iter().zip(other.fields_mut()) {
            *a += *b;
        }
    }

    /// What was counted since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let (mut now, mut earlier) = (self.clone(), earlier.clone());
        for (a, b) in now.fields_mut().into_iter().zip(earlier.fields_mut()) {
            *a = a.saturating_sub(*b);
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn a_span_is_read_by_its_size() {
        let mut bytes = bytes_of(&[10, 20, 30]);
        bytes.extend((2u32 << WHO_SHIFT | 7).to_ne_bytes());
        bytes.extend(5u32.to_ne_bytes());
        let span = Span {
            since: 10,
            start: 20,
            end: 30,
            who: Who::Pin(7),
            cpu: 5,
        };
        assert_eq!(parse(&bytes), Some(Record::Span(span)));
        assert_eq!(parse(&bytes[1..]), None);
    }

    #[test]
    fn a_command_name_ends_at_its_nul() {
        assert_eq!(comm(b"kworker/0:1\0\0\0\0\0"), "kworker/0:1");
        assert_eq!(comm(b"sixteen_chars_xx"), "sixteen_chars_xx");
    }

    #[test]
    fn counters_are_read_in_order_and_subtract() {
        let words: Vec<u64> = (0..32).collect();
        let c = CpuCounters::parse(&bytes_of(&words)).unwrap();
        assert_eq!(c.switches, 10);
        assert_eq!(c.migrations, [15, 16, 17, 18]);
        assert_eq!(c.no_lock, 28);
        let mut twice = c.clone();
        twice.add(&c);
        assert_eq!(twice.since(&c), c);
        assert_eq!(CpuCounters::parse(&bytes_of(&words[1..])), None);
    }
}
