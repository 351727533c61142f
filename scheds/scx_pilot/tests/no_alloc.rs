//! No heap allocation on the scheduling path: rounds of any policy, with more tasks than it may hold, tasks that come
//! again, and inputs that change.

use scx_pilot::cycle::{Arrival, Cycle, Kernel};
use scx_pilot::inputs::{Board, services};
use scx_pilot::layout::Layout;
use scx_pilot::policy::{Kind, Machine, Pick, Place};
use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

thread_local! {
    /// This thread's alone: that of the test's harness allocates whenever it likes.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

struct Counting;

// SAFETY: it passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Memory) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Memory) {
        count();
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Hands out what it was given, and counts what comes back.
struct Fake {
    arrivals: VecDeque<Arrival>,
    decided: u64,
    idle: u32,
}

impl Machine for Fake {
    fn idle_cpu(&mut self, _pid: i32, near: u32) -> Option<u32> {
        self.idle = self
            .idle
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        (self.idle >> 30 == 0).then_some(near)
    }
}

impl Kernel for Fake {
    fn next(&mut self) -> Option<Arrival> {
        self.arrivals.pop_front()
    }

    fn run(&mut self, _pick: &Pick, _place: Place) -> bool {
        self.decided += 1;
        // Now and then there is no room.
        !self.decided.is_multiple_of(1000)
    }
}

/// More tasks than a policy may hold at once, some of them twice.
fn fill(fake: &mut Fake, round: u64) {
    for number in 0..5000u64 {
        let pid = 1 + ((number * 7 + round * 13) % 4500) as i32;
        fake.arrivals.push_back(Arrival {
            pid,
            cpu: pid as u32 % 16,
            nr_allowed: if pid % 5 == 0 { 1 } else { 16 },
            weight: 1 + number % 10_000,
            ran_from_ns: round * 1_000_000,
            ran_until_ns: round * 1_000_000 + number,
            burst_ns: number,
            token: [0, 0],
        });
    }
}

#[test]
fn a_round_allocates_nothing() {
    // What others allocate meanwhile is theirs. It ends with the process.
    std::thread::spawn(|| {
        loop {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(100)));
        }
    });
    let llcs: Vec<(u32, Vec<u32>)> = (0..4)
        .map(|llc| (llc / 2, (4 * llc..4 * llc + 4).collect()))
        .collect();
    let layout = Layout::from_llcs(&llcs);
    for kind in [Kind::Fifo, Kind::Fair, Kind::Deadline] {
        let services = ["web=/web:latency:300", "logs=/logs:batch"];
        let board = Arc::new(Board::new(
            services
                .iter()
                .map(|word| services::parse(word).unwrap())
                .collect(),
        ));
        let policy = kind.build(&layout, 4_000_000);
        let mut cycle = Cycle::new(policy, Arc::clone(&board), 16);
        let mut fake = Fake {
            arrivals: VecDeque::with_capacity(10_000),
            decided: 0,
            idle: 1,
        };
        for round in 0..40 {
            fill(&mut fake, round);
            board.set_active_llcs(if round % 3 == 0 { 2 } else { u32::MAX });
            board.set_boost(0, 100 + round as u32);
            board.set_reach(1, 1 + round as u32 % 4);
            let before = ALLOCATIONS.get();
            for step in 0..10 {
                cycle.run(&mut fake, round * 200_000_000 + step);
            }
            let after = ALLOCATIONS.get();
            assert_eq!(after - before, 0, "{kind:?} allocates in round {round}");
            assert!(fake.arrivals.is_empty());
        }
        assert!(
            fake.decided > 100_000,
            "{kind:?} decided {} times",
            fake.decided
        );
    }
    // What counts, counts.
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Vec::<u8>::with_capacity(100)));
    assert_eq!(ALLOCATIONS.get() - before, 2);
}
