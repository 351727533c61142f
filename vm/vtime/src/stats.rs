//! What the plugin counts, and the JSON line that it writes at exit.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Counters since the start of the VM. All are totals; times are ns of guest time.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Turns in which a vCPU executed.
    pub turns: u64,
    /// Turns of a vCPU that was the only active one.
    pub lone_turns: u64,
    /// Turns that used all their room.
    pub full_turns: u64,
    /// Turns that ended with PAUSE.
    pub pauses: u64,
    /// Turns that were interrupted by the host and continued.
    pub resumed: u64,
    /// Visits at which an active vCPU had to wait for the others or for a timer.
    pub waits: u64,
    /// Idle vCPUs woken by another vCPU's interrupt.
    pub wakes_by_vcpu: u64,
    /// Idle vCPUs woken by a timer.
    pub wakes_by_timer: u64,
    /// Idle vCPUs woken by anything else (a device served by another thread).
    pub wakes_by_other: u64,
    /// Times that QEMU skipped idle time.
    pub warps: u64,
    /// Idle time skipped.
    pub warped_ns: u64,
    /// vCPUs that were woken but stayed halted, see [`crate::clocks::Clocks::advance_to`].
    pub vain_wakes: u64,
    /// Time of executed instructions, summed over vCPUs.
    pub ran_ns: u64,
    /// Time that PAUSE skipped, summed over vCPUs.
    pub spun_ns: u64,
    skew: Histogram<u64>,
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

impl Stats {
    /// All zero.
    pub fn new() -> Self {
        // Three significant digits; the range grows on its own. Creation fails only for a precision above 5.
        let skew = Histogram::new(3).unwrap_or_else(|_| unreachable!("precision is in range"));
        Self {
            turns: 0,
            lone_turns: 0,
            full_turns: 0,
            pauses: 0,
            resumed: 0,
            waits: 0,
            wakes_by_vcpu: 0,
            wakes_by_timer: 0,
            wakes_by_other: 0,
            warps: 0,
            warped_ns: 0,
            vain_wakes: 0,
            ran_ns: 0,
            spun_ns: 0,
            skew,
        }
    }

    /// Records by how many ns a clock was ahead of the least active one.
    pub fn skew(&mut self, ns: u64) {
        self.skew.saturating_record(ns);
    }

    /// The greatest skew seen, ns.
    pub fn skew_max_ns(&self) -> u64 {
        self.skew.max()
    }

    /// The skew at quantile `q` (0 to 1), ns.
    pub fn skew_ns(&self, q: f64) -> u64 {
        self.skew.value_at_quantile(q)
    }

    /// All counters and the distribution of skew as JSON. `buckets` holds `[upper bound in ns, count]` pairs with
    /// bounds that double.
    pub fn to_json(&self) -> Value {
        let buckets: Vec<Value> = self
            .skew
            .iter_log(250, 2.0)
            .filter(|b| b.count_since_last_iteration() > 0)
            .map(|b| json!([b.value_iterated_to(), b.count_since_last_iteration()]))
            .collect();
        json!({
            "turns": self.turns,
            "lone_turns": self.lone_turns,
            "full_turns": self.full_turns,
            "pauses": self.pauses,
            "resumed": self.resumed,
            "waits": self.waits,
            "wakes": {
                "by_vcpu": self.wakes_by_vcpu,
                "by_timer": self.wakes_by_timer,
                "by_other": self.wakes_by_other,
            },
            "warps": self.warps,
            "warped_ns": self.warped_ns,
            "vain_wakes": self.vain_wakes,
            "ran_ns": self.ran_ns,
            "spun_ns": self.spun_ns,
            "skew_ns": {
                "samples": self.skew.len(),
                "p50": self.skew_ns(0.5),
                "p90": self.skew_ns(0.9),
                "p99": self.skew_ns(0.99),
                "p999": self.skew_ns(0.999),
                "max": self.skew_max_ns(),
                "buckets": buckets,
            },
        })
    }
}
