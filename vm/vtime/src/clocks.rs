//! The scheduling of clocks, apart from QEMU: which vCPU may run, from which time, and for how long.
//!
//! # Model
//!
//! Every vCPU has a local clock, in ns of guest time. A vCPU is *active* while it executes instructions and *idle*
//! while it is halted; an idle vCPU has no say in time. Let `R` be the smallest clock of the active ones. The rules:
//!
//! 1. **Quantum.** An active vCPU may run until its clock is `R + q`, never further. When it is the only active one
//!    there is nobody to keep pace with, and it runs to the next timer ([`LONE_TURN_NS`] at most).
//! 2. **Between turns the clock reads `R`.** Timers are run there, so that none fires before every active vCPU has
//!    reached it, and as no turn is let past the next timer (the caller clips it), none fires late on a vCPU that was
//!    active.
//! 3. **Waking.** An idle vCPU that is woken by another joins at `max(own last clock, waker's clock)`; one that is
//!    woken by a timer or a device joins at `max(own last clock, R)`.
//! 4. **Spinning.** PAUSE gives the turn away and moves the vCPU's clock to where the turn would have ended, as if
//!    it had spun until then.
//! 5. **All idle.** Then QEMU moves the clock to the next timer ([`Clocks::advance_to`]).
//!
//! # What follows
//!
//! * No clock ever goes back: 1 and 4 only add, 3 takes a maximum.
//! * `R` never goes back: who joins does so at `R` or later.
//! * Two active clocks never differ by more than `q`: running keeps to `R + q` by 1; a waker's clock and an idle
//!   vCPU's last clock are at most `R + q`, as `R` has only grown since.

use crate::heap::MinHeap;
use crate::stats::Stats;

/// Longest turn of a vCPU that is the only active one, in ns. It bounds how long QEMU's other threads may have to
/// wait for a vCPU thread that missed their kick.
pub const LONE_TURN_NS: i64 = 1_000_000;

/// A vCPU, numbered in the order of first appearance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What a vCPU may do when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// It is halted.
    Idle,
    /// It is ahead of the others, or another vCPU's turn has to be completed first.
    Wait,
    /// It may run for up to `room_ns`, from `start_ns` on its clock.
    Run {
        /// The vCPU's clock at the start of the turn, ns.
        start_ns: i64,
        /// The longest that the turn may last, ns, above 0.
        room_ns: i64,
    },
}

/// How a turn went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Time that the instructions executed took, ns.
    pub ran_ns: i64,
    /// The room that the turn had: [`Visit::Run`]'s, or less if a timer was due before, ns.
    pub room_ns: i64,
    /// The turn ended with PAUSE.
    pub paused: bool,
    /// The vCPU is halted, and nothing is pending for it.
    pub idle: bool,
    /// The turn was cut short from outside of the guest (another thread of QEMU wanted attention): it is to be
    /// continued before anybody else's, so that the order of events doesn't depend on the host.
    pub interrupted: bool,
}

/// The clocks of all vCPUs.
#[derive(Debug)]
pub struct Clocks {
    quantum_ns: i64,
    local: Vec<i64>,
    active: MinHeap,
    /// What the clock reads between turns, ns.
    now_ns: i64,
    /// Idle vCPUs that the running one has woken.
    woken: Vec<Slot>,
    /// The vCPU whose turn was interrupted, and how many visits have been declined since.
    resume: Option<(Slot, usize)>,
    /// Counters and distributions.
    pub stats: Stats,
}

impl Clocks {
    /// Clocks that may differ by up to `quantum_ns` (above 0).
    pub fn new(quantum_ns: i64) -> Self {
        Self {
            quantum_ns: quantum_ns.max(1),
            local: Vec::new(),
            active: MinHeap::new(),
            now_ns: 0,
            woken: Vec::new(),
            resume: None,
            stats: Stats::new(),
        }
    }

    /// Adds a vCPU, idle, at clock 0.
    pub fn add(&mut self) -> Slot {
        self.local.push(0);
        Slot(self.local.len() as u32 - 1)
    }

    /// What the clock reads between turns, ns: the least clock of an active vCPU or, when all are idle, the time at
    /// which the last one became so plus what has been warped since.
    pub fn now_ns(&self) -> i64 {
        self.now_ns
    }

    /// The quantum, ns.
    pub fn quantum_ns(&self) -> i64 {
        self.quantum_ns
    }

    /// Number of vCPUs known.
    pub fn len(&self) -> usize {
        self.local.len()
    }

    /// Whether no vCPU is known.
    pub fn is_empty(&self) -> bool {
        self.local.is_empty()
    }

    /// The clock of a vCPU, ns.
    pub fn local_ns(&self, slot: Slot) -> i64 {
        self.local[slot.0 as usize]
    }

    /// Whether the vCPU is active.
    pub fn is_active(&self, slot: Slot) -> bool {
        self.active.contains(slot.0)
    }

    /// QEMU has moved the clock to `ns`, which it does only when it finds all vCPUs idle.
    ///
    /// A vCPU that counts as active here was then woken in vain (its interrupts are masked); it is idle.
    pub fn advance_to(&mut self, ns: i64) {
        if ns <= self.now_ns {
            return;
        }
        self.stats.warps += 1;
        self.stats.warped_ns += (ns - self.now_ns) as u64;
        self.stats.vain_wakes += self.active.len() as u64;
        self.active.clear();
        self.now_ns = ns;
    }

    /// Between turns, a timer raised an interrupt on `slot`.
    pub fn wake(&mut self, slot: Slot) {
        if !self.is_active(slot) {
            self.stats.wakes_by_timer += 1;
            self.join(slot, self.now_ns);
        }
    }

    /// During a turn, the running vCPU raised an interrupt on `slot`. Returns whether that woke it: then the turn
    /// should end as soon as possible, as its end is taken for the time of the wakeup.
    pub fn wake_by_running(&mut self, slot: Slot) -> bool {
        let wakes = !self.is_active(slot);
        if wakes && !self.woken.contains(&slot) {
            self.stats.wakes_by_vcpu += 1;
            self.woken.push(slot);
        }
        wakes
    }

    /// It is the turn of `slot`; `idle` says whether it is halted with nothing pending.
    pub fn visit(&mut self, slot: Slot, idle: bool) -> Visit {
        if let Some((owner, declined)) = self.resume
            && owner != slot
        {
            // An owner that isn't visited any more (stopped, unplugged) must not hold up the others.
            self.resume = (declined < self.local.len()).then_some((owner, declined + 1));
            return if idle { Visit::Idle } else { Visit::Wait };
        }
        self.resume = None;
        if idle {
            self.leave(slot);
            return Visit::Idle;
        }
        if !self.is_active(slot) {
            self.stats.wakes_by_other += 1;
            self.join(slot, self.now_ns);
        }
        let start_ns = self.local_ns(slot);
        let least = self.active.min().unwrap_or(start_ns);
        let room_ns = if self.active.len() == 1 {
            LONE_TURN_NS
        } else {
            least + self.quantum_ns - start_ns
        };
        if room_ns <= 0 {
            return Visit::Wait;
        }
        Visit::Run { start_ns, room_ns }
    }

    /// The turn of `slot` has ended.
    pub fn finish(&mut self, slot: Slot, turn: Turn) {
        let used_ns = if turn.paused {
            turn.ran_ns.max(turn.room_ns.min(self.quantum_ns))
        } else {
            turn.ran_ns
        };
        let end_ns = self.local_ns(slot) + used_ns;
        self.local[slot.0 as usize] = end_ns;
        self.active.set(slot.0, end_ns);
        self.count(&turn, used_ns);
        if turn.interrupted {
            self.resume = Some((slot, 0));
        }
        for slot in std::mem::take(&mut self.woken) {
            self.join(slot, end_ns);
        }
        if turn.idle {
            self.leave(slot);
        } else {
            self.update_now(end_ns);
            self.record_skew(end_ns);
        }
    }

    fn count(&mut self, turn: &Turn, used_ns: i64) {
        self.stats.turns += 1;
        self.stats.ran_ns += turn.ran_ns as u64;
        self.stats.spun_ns += (used_ns - turn.ran_ns) as u64;
        self.stats.lone_turns += u64::from(self.active.len() == 1);
        self.stats.full_turns += u64::from(turn.ran_ns >= turn.room_ns);
        self.stats.pauses += u64::from(turn.paused);
        self.stats.resumed += u64::from(turn.interrupted);
    }

    fn join(&mut self, slot: Slot, at_ns: i64) {
        let local = &mut self.local[slot.0 as usize];
        *local = at_ns.max(*local);
        let local = *local;
        self.active.set(slot.0, local);
        self.update_now(local);
        self.record_skew(local);
    }

    fn leave(&mut self, slot: Slot) {
        if self.is_active(slot) {
            self.active.remove(slot.0);
            self.update_now(self.local_ns(slot));
        }
    }

    /// `fallback_ns` is the time if nobody is active.
    fn update_now(&mut self, fallback_ns: i64) {
        self.now_ns = self.now_ns.max(self.active.min().unwrap_or(fallback_ns));
    }

    /// How far a clock at `local_ns` is ahead of the least active one; nothing to record if it is alone.
    fn record_skew(&mut self, local_ns: i64) {
        if self.active.len() > 1
            && let Some(least) = self.active.min()
        {
            self.stats.skew((local_ns - least) as u64);
        }
    }
}
