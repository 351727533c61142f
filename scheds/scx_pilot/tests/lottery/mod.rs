//! Lottery: whoever wants to run draws a number, and the lowest runs next. Weight buys lower numbers.

use scx_pilot::policy::{Pick, Policy, Ready, Task};

/// The highest number for a weight of 100, in nanoseconds: no draw keeps a task waiting longer than this.
const STAKE_NS: u64 = 20_000_000;

#[derive(Debug)]
pub struct Lottery {
    ready: Ready,
    slice_ns: u64,
    seed: u64,
}

impl Lottery {
    pub fn new(slice_ns: u64) -> Self {
        Self {
            ready: Ready::new(),
            slice_ns,
            seed: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A pseudo-random number (xorshift), 0 or more and less than `below`.
    fn draw(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below.max(1)
    }
}

impl Policy for Lottery {
    fn enqueue(&mut self, task: Task, now_ns: u64) {
        let stake_ns = STAKE_NS * 100 / u64::from(task.weight.max(1));
        // What came earlier has an advantage, so nobody draws blanks for ever.
        let rank = now_ns + self.draw(stake_ns.min(STAKE_NS * 100));
        self.ready.push(task, rank);
    }

    fn pick(&mut self) -> Option<Pick> {
        let (task, rank) = self.ready.pop()?;
        Some(Pick {
            task,
            rank,
            slice_ns: self.slice_ns,
        })
    }

    fn exit(&mut self, pid: i32) {
        self.ready.withdraw(pid);
    }

    fn waiting(&self) -> usize {
        self.ready.len()
    }
}
