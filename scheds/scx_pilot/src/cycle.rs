//! One round of scheduling: take in who wants to run, ask the policy, hand on what it says.
//!
//! The kernel's side is behind a trait, so that the tests put a simulated machine in its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::inputs::Board;
use crate::policy::{MAX_WAITING, Machine, Pick, Place, Policy, Task};

/// How many tasks to take in before deciding. The kernel's queue of decisions holds more.
const BATCH: usize = 1024;
/// How often a policy's `tick` is called, in nanoseconds.
const TICK_NS: u64 = 100_000_000;

/// A task that wants to run, as the kernel describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    pub pid: i32,
    /// The CPU where it ran last.
    pub cpu: u32,
    /// How many CPUs it may use.
    pub nr_allowed: u64,
    /// 1 to 10000; 100 is nice 0.
    pub weight: u64,
    /// From when to when it ran last, in nanoseconds of the kernel's clock.
    pub ran_from_ns: u64,
    pub ran_until_ns: u64,
    /// How long it has run since it last slept, in nanoseconds.
    pub burst_ns: u64,
    /// To be handed back with the decision.
    pub token: [u64; 2],
}

/// The kernel's side.
pub trait Kernel: Machine {
    /// The next task that wants to run; `None` if there is none at the moment.
    fn next(&mut self) -> Option<Arrival>;

    /// Hands over a decision. `false` if there is no room for it now.
    fn run(&mut self, pick: &Pick, place: Place) -> bool;
}

/// What is counted, in the order of [`Cycle::counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Tasks that came in.
    Entered,
    /// Decisions for a certain CPU, and for any.
    ToCpu,
    ToAny,
    /// Tasks that came again before they were picked, or that were gone by then.
    Withdrawn,
    /// Rounds.
    Rounds,
    /// Tasks that belong to a service.
    OfService,
}

/// How many events there are.
pub const NR_EVENTS: usize = 6;

/// The rounds of one scheduler.
pub struct Cycle {
    policy: Box<dyn Policy>,
    board: Arc<Board>,
    /// How many CPUs a task may use that may use all.
    nr_cpus: u64,
    counters: [u64; NR_EVENTS],
    /// Decided, and not handed over yet.
    held: Option<(Pick, Place)>,
    next_tick_ns: u64,
}

impl std::fmt::Debug for Cycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cycle")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Cycle {
    /// `nr_cpus`: how many CPUs a task may use that may use all.
    pub fn new(policy: Box<dyn Policy>, board: Arc<Board>, nr_cpus: u32) -> Self {
        Self {
            policy,
            board,
            nr_cpus: u64::from(nr_cpus),
            counters: [0; NR_EVENTS],
            held: None,
            next_tick_ns: 0,
        }
    }

    /// One round. Returns how many tasks wait that could not be handed over yet. Allocates nothing and waits for nothing.
    ///
    /// `now_ns`: any clock that never goes back.
    pub fn run(&mut self, kernel: &mut impl Kernel, now_ns: u64) -> usize {
        if now_ns >= self.next_tick_ns {
            self.next_tick_ns = now_ns + TICK_NS;
            self.policy.tick(now_ns, self.board.active_llcs());
            while let Some(pid) = self.board.next_gone() {
                self.policy.exit(pid);
            }
        }
        let mut room = BATCH.min(MAX_WAITING - self.policy.waiting().min(MAX_WAITING));
        while room > 0
            && let Some(arrival) = kernel.next()
        {
            let task = self.describe(&arrival);
            self.policy.enqueue(task, now_ns);
            self.count(Event::Entered, 1);
            room -= 1;
        }
        self.hand_over(kernel, now_ns);
        self.count(Event::Rounds, 1);
        let waiting = self.waiting();
        // Whatever the policy didn't give back one by one.
        self.counters[Event::Withdrawn as usize] = self.counters[Event::Entered as usize]
            - self.counters[Event::ToCpu as usize]
            - self.counters[Event::ToAny as usize]
            - waiting as u64;
        waiting
    }

    fn hand_over(&mut self, kernel: &mut impl Kernel, now_ns: u64) {
        loop {
            let (pick, place) = match self.held.take() {
                Some(held) => held,
                None => {
                    let Some(pick) = self.policy.pick() else {
                        return;
                    };
                    let place = self.policy.place(&pick, now_ns, kernel);
                    (pick, place)
                }
            };
            if !kernel.run(&pick, place) {
                self.held = Some((pick, place));
                return;
            }
            self.count(
                match place {
                    Place::Cpu(_) => Event::ToCpu,
                    Place::Any => Event::ToAny,
                },
                1,
            );
        }
    }

    fn describe(&mut self, arrival: &Arrival) -> Task {
        let service = self.board.service_of(arrival.pid);
        if service.known {
            self.count(Event::OfService, 1);
        }
        let weight = arrival.weight.clamp(1, 10_000) * u64::from(service.weight_percent) / 100;
        Task {
            pid: arrival.pid,
            cpu: arrival.cpu,
            anywhere: arrival.nr_allowed >= self.nr_cpus,
            weight: weight.clamp(1, 1_000_000) as u32,
            class: service.class,
            home: service.home,
            reach: service.reach,
            ran_from_ns: arrival.ran_from_ns,
            ran_until_ns: arrival.ran_until_ns,
            burst_ns: arrival.burst_ns,
            token: arrival.token,
        }
    }

    fn count(&mut self, event: Event, by: u64) {
        self.counters[event as usize] += by;
    }

    /// How many tasks wait to be handed over.
    pub fn waiting(&self) -> usize {
        self.policy.waiting() + usize::from(self.held.is_some())
    }

    /// Totals, by [`Event`].
    pub fn counters(&self) -> &[u64; NR_EVENTS] {
        &self.counters
    }
}

/// Figures that one thread publishes and others read, all of the same moment, without ever keeping the writer waiting.
#[derive(Debug)]
pub struct Published<const N: usize> {
    /// Odd while being written.
    version: AtomicU64,
    figures: [AtomicU64; N],
}

impl<const N: usize> Default for Published<N> {
    fn default() -> Self {
        Self {
            version: AtomicU64::new(0),
            figures: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl<const N: usize> Published<N> {
    /// Writes all figures. For one thread only.
    pub fn write(&self, figures: &[u64; N]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (slot, figure) in self.figures.iter().zip(figures) {
            slot.store(*figure, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    /// Reads them as they were written together.
    pub fn read(&self) -> [u64; N] {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let figures = std::array::from_fn(|index| self.figures[index].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return figures;
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_they_were_written_together() {
        let published = Arc::new(Published::<4>::default());
        let writer = {
            let published = Arc::clone(&published);
            std::thread::spawn(move || {
                for round in 1..100_000u64 {
                    published.write(&[round; 4]);
                }
            })
        };
        let mut last = 0;
        while !writer.is_finished() {
            let figures = published.read();
            assert_eq!(figures, [figures[0]; 4]);
            assert!(figures[0] >= last);
            last = figures[0];
        }
        writer.join().unwrap();
        assert_eq!(published.read(), [99_999; 4]);
    }
}
