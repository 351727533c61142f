//! Wasted CPU time, computed from spans.
//!
//! A CPU second is wasted while a CPU is idle and a task that may run there waits on a queue. With I(t) the number of
//! idle CPUs and Q(t) the number of waiting tasks that may run on at least one of them, the waste is the integral of
//! min(I, Q); a violation of work conservation is a maximal interval in which it isn't 0 (Lozi et al., "The Linux
//! Scheduler: a Decade of Wasted Cores", EuroSys'16; Lepers et al., "Provable Multicore Schedulers with Ipanema",
//! EuroSys'20).
//!
//! min(I, Q) is an upper bound of what a perfect matching of waiting tasks to idle CPUs could have run: two tasks that
//! are both pinned to the one of two idle CPUs count as two.

use std::collections::BTreeSet;

/// What a [`Span`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Who {
    /// This CPU was idle.
    Idle(u32),
    /// A task that may run on every CPU waited.
    Any,
    /// A task that may run on this CPU alone waited.
    Pin(u32),
    /// A task that may run on the CPUs of this mask waited. See [`Sweep::set_mask`].
    Mask(u32),
}

/// A time during which a CPU was idle or a runnable task waited. Times are nanoseconds of one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// When the idle time or the wait began.
    pub since: u64,
    /// Begin of the part that this span is about; later than `since` where a long one was sent in parts.
    pub start: u64,
    /// End of that part, exclusive.
    pub end: u64,
    pub who: Who,
    /// Of a wait: the CPU on whose queue the task was.
    pub cpu: u32,
}

impl Span {
    /// The part of this span that is later than `transient_ns` after its beginning, or `None` if nothing is.
    pub(super) fn settled(self, transient_ns: u64) -> Option<Self> {
        let start = self.start.max(self.since.saturating_add(transient_ns));
        (start < self.end).then_some(Self { start, ..self })
    }
}

/// The result of a [`Sweep`] so far. Times are nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Sum of all CPUs' idle time.
    pub idle: u64,
    /// Sum of all tasks' waiting time.
    pub wait: u64,
    /// The integral of min(I, Q).
    pub wasted: u64,
    /// The part of it that was wasted inside nodes: the sum over nodes of min(idle CPUs there, tasks queued there).
    /// The rest could only have been saved by moving a task to another node.
    pub wasted_in_node: u64,
    /// Time during which min(I, Q) wasn't 0.
    pub violated: u64,
    /// How many such intervals there were, a still open one included.
    pub violations: u64,
    /// The longest of them.
    pub longest: u64,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    at: u64,
    starts: bool,
    who: Who,
    cpu: u32,
}

/// The waiting tasks of one affinity, by the node of their queue, and the idle CPUs among those that they may use.
#[derive(Debug, Clone, Default)]
struct Class {
    queued: Vec<u64>,
    idle: u64,
}

/// A sweep over the starts and ends of spans in the order of time.
///
/// Spans may be added in any order, as long as all that begin before a horizon are there when [`Sweep::settle`] is
/// called with it.
#[derive(Debug)]
pub(super) struct Sweep {
    node_of: Vec<usize>,
    nodes: usize,
    masks: Vec<BTreeSet<u32>>,
    edges: Vec<Edge>,
    now: u64,
    idle: Vec<u64>,
    idle_in: Vec<u64>,
    /// Waiting tasks that may run on some idle CPU, by the node of their queue: Q is the sum.
    eligible_in: Vec<u64>,
    any: Class,
    pinned: Vec<Class>,
    masked: Vec<Class>,
    waiting: u64,
    violated_since: Option<u64>,
    totals: Totals,
}

impl Sweep {
    /// Starts at time `now`. `node_of` gives the index of each CPU's node, by CPU number; numbers past its end are node 0.
    pub(super) fn new(now: u64, node_of: Vec<usize>) -> Self {
        let nodes = node_of.iter().max().map_or(1, |n| n + 1);
        let cpus = node_of.len();
        let class = Class {
            queued: vec![0; nodes],
            idle: 0,
        };
        Self {
            node_of,
            nodes,
            masks: Vec::new(),
            edges: Vec::new(),
            now,
            idle: vec![0; cpus],
            idle_in: vec![0; nodes],
            eligible_in: vec![0; nodes],
            any: class.clone(),
            pinned: vec![class; cpus],
            masked: Vec::new(),
            waiting: 0,
            violated_since: None,
            totals: Totals::default(),
        }
    }

    /// Says which CPUs mask `id` holds. Needed before the first [`Sweep::settle`] after a span that names it.
    pub(super) fn set_mask(&mut self, id: u32, cpus: BTreeSet<u32>) {
        let id = id as usize;
        while self.masks.len() <= id {
            self.masks.push(BTreeSet::new());
            self.masked.push(Class {
                queued: vec![0; self.nodes],
                idle: 0,
            });
        }
        // Nothing of this mask waits yet, so what counts doesn't change.
        self.masked[id].idle = cpus.iter().filter(|&&c| self.is_idle(c)).count() as u64;
        self.masks[id] = cpus;
    }

    /// Number of masks known.
    pub(super) fn masks(&self) -> usize {
        self.masks.len()
    }

    /// Adds a span. What lies before the time up to which all is settled no longer counts.
    pub(super) fn add(&mut self, span: Span) {
        let start = span.start.max(self.now);
        if span.end <= start {
            return;
        }
        let Span { who, cpu, .. } = span;
        self.edges.push(Edge {
            at: start,
            starts: true,
            who,
            cpu,
        });
        self.edges.push(Edge {
            at: span.end,
            starts: false,
            who,
            cpu,
        });
    }

    /// Computes everything up to `horizon` and returns the totals since the beginning.
    pub(super) fn settle(&mut self, horizon: u64) -> Totals {
        let mut edges = std::mem::take(&mut self.edges);
        edges.sort_unstable_by_key(|e| e.at);
        let due = edges.partition_point(|e| e.at < horizon);
        for edge in edges.drain(..due) {
            self.advance(edge.at);
            self.apply(edge);
        }
        self.advance(horizon);
        self.edges = edges;

        let mut totals = self.totals;
        if let Some(since) = self.violated_since {
            totals.longest = totals.longest.max(self.now - since);
        }
        totals
    }

    fn is_idle(&self, cpu: u32) -> bool {
        self.idle.get(cpu as usize).is_some_and(|&n| n > 0)
    }

    fn node(&self, cpu: u32) -> usize {
        self.node_of.get(cpu as usize).copied().unwrap_or(0)
    }

    /// Accounts for the time from `now` to `to`, in which nothing changed.
    fn advance(&mut self, to: u64) {
        let span = to.saturating_sub(self.now);
        if span == 0 {
            return;
        }
        let idle = self.any.idle;
        let (wasted, in_node) = if idle == 0 || self.waiting == 0 {
            (0, 0)
        } else {
            self.wasted_now()
        };
        self.totals.idle += idle * span;
        self.totals.wait += self.waiting * span;
        self.totals.wasted += wasted * span;
        self.totals.wasted_in_node += in_node * span;
        if wasted > 0 {
            self.totals.violated += span;
            if self.violated_since.is_none() {
                self.violated_since = Some(self.now);
                self.totals.violations += 1;
            }
        } else if let Some(since) = self.violated_since.take() {
            self.totals.longest = self.totals.longest.max(self.now - since);
        }
        self.now = to;
    }

    /// min(I, Q) now, and the sum of the same over nodes.
    fn wasted_now(&self) -> (u64, u64) {
        let wasted = self.any.idle.min(self.eligible_in.iter().sum());
        let by_node = self.idle_in.iter().zip(&self.eligible_in);
        (wasted, by_node.map(|(i, q)| *i.min(q)).sum())
    }

    fn apply(&mut self, edge: Edge) {
        let node = self.node(edge.cpu);
        let class = match edge.who {
            Who::Idle(cpu) => return self.count_idle(cpu, edge.starts),
            Who::Any => Some(&mut self.any),
            Who::Pin(cpu) => self.pinned.get_mut(cpu as usize),
            Who::Mask(id) => self.masked.get_mut(id as usize),
        };
        let Some(class) = class else { return };
        step(&mut class.queued[node], edge.starts);
        step(&mut self.waiting, edge.starts);
        if class.idle > 0 {
            step(&mut self.eligible_in[node], edge.starts);
        }
    }

    /// Counts a CPU's idle spans, so that of two that overlap by a clock's error the first to end doesn't end the other.
    fn count_idle(&mut self, cpu: u32, starts: bool) {
        let Some(spans) = self.idle.get_mut(cpu as usize) else {
            return;
        };
        let before = *spans > 0;
        step(spans, starts);
        let idle = *spans > 0;
        if idle == before {
            return;
        }
        let node = self.node(cpu);
        step(&mut self.idle_in[node], idle);
        let eligible = &mut self.eligible_in;
        self.any.step_idle(idle, eligible);
        self.pinned[cpu as usize].step_idle(idle, eligible);
        for (mask, class) in self.masks.iter().zip(&mut self.masked) {
            if mask.contains(&cpu) {
                class.step_idle(idle, eligible);
            }
        }
    }
}

impl Class {
    /// One of this class's CPUs became idle or busy. With the first one its waiting tasks begin to count.
    fn step_idle(&mut self, idle: bool, eligible_in: &mut [u64]) {
        let had_none = self.idle == 0;
        step(&mut self.idle, idle);
        if had_none == (self.idle == 0) {
            return;
        }
        for (eligible, queued) in eligible_in.iter_mut().zip(&self.queued) {
            if idle {
                *eligible += queued;
            } else {
                *eligible -= queued;
            }
        }
    }
}

/// One more, or one less.
fn step(count: &mut u64, up: bool) {
    if up {
        *count += 1;
    } else {
        *count -= 1;
    }
}

#[cfg(test)]
#[path = "waste_tests.rs"]
mod tests;
