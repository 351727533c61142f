//! A machine with no kernel: CPUs, tasks, and what the BPF side of `scx_rustland_core` does with decisions. A CPU serves
//! what was sent to it, then what was sent to any CPU and may run on it, each by rank. It checks as it goes that no task
//! is lost, none runs twice at once, and none where it must not.

use scx_pilot::cycle::{Arrival, Cycle, Kernel};
use scx_pilot::inputs::Board;
use scx_pilot::policy::{Machine, Pick, Place, Policy};
use std::collections::VecDeque;
use std::sync::Arc;

pub const SLICE_NS: u64 = 4_000_000;

/// What a task does, over and over.
#[derive(Clone, Debug)]
pub struct Job {
    /// When it first wants to run.
    pub start_ns: u64,
    pub run_ns: u64,
    /// 0: it never sleeps.
    pub sleep_ns: u64,
    pub weight: u64,
    /// Which CPUs it may use, as bits; at least one of the machine's.
    pub mask: u64,
}

#[derive(Clone, Debug)]
enum State {
    Asleep {
        until_ns: u64,
    },
    /// With the policy, or handed back.
    Waiting {
        since_ns: u64,
    },
    Running {
        since_ns: u64,
        slice_ns: u64,
    },
}

#[derive(Clone, Debug)]
pub struct Task {
    pub job: Job,
    state: State,
    cpu: u32,
    /// What it has to run before it sleeps.
    left_ns: u64,
    ran: (u64, u64),
    burst_ns: u64,
    /// How often it wanted to run, was decided on, and ran.
    pub wanted: u64,
    pub decided: u64,
    pub total_ns: u64,
    pub longest_wait_ns: u64,
    /// A decision that has been made and not carried out.
    placed: Option<(Place, u64, u64)>,
}

pub struct Sim {
    pub now_ns: u64,
    pub tasks: Vec<Task>,
    pub cpus: u32,
    running: Vec<Option<usize>>,
    /// Which idle CPUs can be taken.
    idle: Vec<bool>,
    arrivals: VecDeque<Arrival>,
    /// How many decisions there is room for in a round.
    pub room: usize,
    left: usize,
    /// Tasks that are taken out and put back while they wait, one at each such step of time.
    pub disturb_every: Option<u64>,
    steps: u64,
    /// The most tasks that wanted to run at once.
    pub most: usize,
}

impl Sim {
    pub fn new(cpus: u32, jobs: &[Job]) -> Self {
        let task = |job: &Job| Task {
            job: job.clone(),
            state: State::Asleep {
                until_ns: job.start_ns,
            },
            cpu: job.mask.trailing_zeros(),
            left_ns: 0,
            ran: (0, 0),
            burst_ns: 0,
            wanted: 0,
            decided: 0,
            total_ns: 0,
            longest_wait_ns: 0,
            placed: None,
        };
        Self {
            now_ns: 0,
            tasks: jobs.iter().map(task).collect(),
            cpus,
            running: vec![None; cpus as usize],
            idle: vec![true; cpus as usize],
            arrivals: VecDeque::new(),
            room: usize::MAX,
            left: usize::MAX,
            disturb_every: None,
            steps: 0,
            most: 0,
        }
    }

    /// Runs a policy on it for some time.
    pub fn run(mut self, policy: Box<dyn Policy>, for_ns: u64) -> Self {
        let board = Arc::new(Board::new(Vec::new()));
        let mut cycle = Cycle::new(policy, board, self.cpus);
        while self.now_ns < for_ns {
            self.wake();
            self.disturb();
            self.decide(&mut cycle);
            self.dispatch();
            let runnable = |task: &&Task| !matches!(task.state, State::Asleep { .. });
            self.most = self.most.max(self.tasks.iter().filter(runnable).count());
            self.check();
            self.advance(for_ns);
        }
        // What came at the last moment.
        self.decide(&mut cycle);
        let counters = cycle.counters();
        assert_eq!(counters[0], counters[1] + counters[2] + counters[3]);
        // Those that still wait have waited, too.
        for task in &mut self.tasks {
            if let State::Waiting { since_ns } = task.state {
                task.longest_wait_ns = task.longest_wait_ns.max(self.now_ns - since_ns);
            }
        }
        self
    }

    fn decide(&mut self, cycle: &mut Cycle) {
        loop {
            self.left = self.room;
            let now_ns = self.now_ns;
            let waiting = cycle.run(self, now_ns);
            if waiting == 0 && self.arrivals.is_empty() {
                return;
            }
        }
    }

    fn wake(&mut self) {
        for index in 0..self.tasks.len() {
            let task = &mut self.tasks[index];
            if matches!(task.state, State::Asleep { until_ns } if until_ns <= self.now_ns) {
                task.left_ns = task.job.run_ns;
                task.burst_ns = 0;
                task.state = State::Waiting {
                    since_ns: self.now_ns,
                };
                self.arrive(index);
            }
        }
    }

    fn arrive(&mut self, index: usize) {
        let task = &mut self.tasks[index];
        task.wanted += 1;
        task.placed = None;
        self.arrivals.push_back(Arrival {
            pid: index as i32 + 1,
            cpu: task.cpu,
            nr_allowed: u64::from(task.job.mask.count_ones()),
            weight: task.job.weight,
            ran_from_ns: task.ran.0,
            ran_until_ns: task.ran.1,
            burst_ns: task.burst_ns,
            token: [0, task.wanted],
        });
    }

    /// What a change of affinity does to a task that waits: it comes again.
    fn disturb(&mut self) {
        self.steps += 1;
        let Some(every) = self.disturb_every else {
            return;
        };
        let index = (self.steps / every) as usize % self.tasks.len();
        if self.steps.is_multiple_of(every)
            && matches!(self.tasks[index].state, State::Waiting { .. })
        {
            // Its earlier arrival may still be unread: then the policy gets both.
            self.arrive(index);
        }
    }

    fn dispatch(&mut self) {
        for cpu in 0..self.cpus {
            if self.running[cpu as usize].is_some() {
                continue;
            }
            let now_ns = self.now_ns;
            let own = self.first(|place| place == Place::Cpu(cpu), cpu);
            let Some(index) = own.or_else(|| self.first(|place| place == Place::Any, cpu)) else {
                self.idle[cpu as usize] = true;
                continue;
            };
            let task = &mut self.tasks[index];
            let State::Waiting { since_ns } = task.state else {
                panic!("task {index} is to run and does not wait: {:?}", task.state);
            };
            let (_, _, slice_ns) = task.placed.take().expect("it has a place");
            task.longest_wait_ns = task.longest_wait_ns.max(now_ns - since_ns);
            task.state = State::Running {
                since_ns: now_ns,
                slice_ns,
            };
            task.cpu = cpu;
            self.running[cpu as usize] = Some(index);
            self.idle[cpu as usize] = false;
        }
    }

    fn first(&self, here: impl Fn(Place) -> bool, cpu: u32) -> Option<usize> {
        self.tasks
            .iter()
            .enumerate()
            .filter(|(_, task)| task.job.mask >> cpu & 1 == 1)
            .filter_map(|(index, task)| {
                let (place, rank, _) = task.placed?;
                here(place).then_some((rank, index))
            })
            .min()
            .map(|(_, index)| index)
    }

    /// No CPU idles while a task waits for it, and every task that waits has been decided on.
    fn check(&self) {
        for (index, task) in self.tasks.iter().enumerate() {
            if matches!(task.state, State::Waiting { .. }) {
                assert!(task.placed.is_some(), "task {index} is lost");
                for cpu in 0..self.cpus {
                    assert!(
                        task.job.mask >> cpu & 1 == 0 || self.running[cpu as usize].is_some(),
                        "CPU {cpu} idles while task {index} waits at {:?}",
                        task.placed
                    );
                }
            }
        }
    }

    /// To the next moment at which something happens.
    fn advance(&mut self, for_ns: u64) {
        let next = |task: &Task| match task.state {
            State::Asleep { until_ns } => until_ns,
            State::Waiting { .. } => u64::MAX,
            State::Running { since_ns, slice_ns } => since_ns + slice_ns.min(task.left_ns),
        };
        self.now_ns = self
            .tasks
            .iter()
            .map(next)
            .min()
            .unwrap_or(u64::MAX)
            .min(for_ns);
        for cpu in 0..self.cpus as usize {
            let Some(index) = self.running[cpu] else {
                continue;
            };
            let task = &mut self.tasks[index];
            let State::Running { since_ns, slice_ns } = task.state else {
                panic!("task {index} runs and does not");
            };
            if self.now_ns < since_ns + slice_ns.min(task.left_ns) {
                continue;
            }
            let ran = self.now_ns - since_ns;
            task.ran = (since_ns, self.now_ns);
            task.total_ns += ran;
            task.burst_ns += ran;
            task.left_ns -= ran;
            self.running[cpu] = None;
            if task.left_ns > 0 || task.job.sleep_ns == 0 {
                if task.left_ns == 0 {
                    task.left_ns = task.job.run_ns;
                }
                task.state = State::Waiting {
                    since_ns: self.now_ns,
                };
                self.arrive(index);
            } else {
                task.state = State::Asleep {
                    until_ns: self.now_ns + task.job.sleep_ns,
                };
            }
        }
    }
}

impl Machine for Sim {
    fn idle_cpu(&mut self, pid: i32, near: u32) -> Option<u32> {
        let mask = self.tasks[pid as usize - 1].job.mask;
        // As on 6.12: the one asked for is given without a look at whether the task may use it.
        let found = if self.idle[near as usize] {
            Some(near)
        } else {
            (0..self.cpus).find(|&cpu| self.idle[cpu as usize] && mask >> cpu & 1 == 1)
        };
        if let Some(cpu) = found {
            self.idle[cpu as usize] = false;
        }
        found
    }
}

impl Kernel for Sim {
    fn next(&mut self) -> Option<Arrival> {
        self.arrivals.pop_front()
    }

    fn run(&mut self, pick: &Pick, place: Place) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let task = &mut self.tasks[pick.task.pid as usize - 1];
        assert_eq!(
            pick.task.token[1], task.wanted,
            "a decision about what has been taken back"
        );
        assert!(task.placed.is_none(), "decided on twice");
        assert!(pick.slice_ns > 0);
        task.decided += 1;
        if let Place::Cpu(cpu) = place {
            assert!(
                task.job.mask >> cpu & 1 == 1,
                "sent to CPU {cpu}, which it may not use"
            );
        }
        task.placed = Some((place, pick.rank, pick.slice_ns));
        true
    }
}
