//! Guests run in the background, two at a time where the host has two CPUs, or as many as `$MANYCORE_LANES` says. A case
//! mostly waits for a daemon that is loaded on one CPU of its guest, so two at a time take three quarters of the time on
//! 2 CPUs. Which ones may be beside each other, `Guest::may_run_beside` says.

use crate::booted::{Booted, Told};
use manycore_tests::plan::Guest;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// A guest that is to run, and its cases.
struct Job {
    guest: &'static Guest,
    cases: Vec<String>,
    results: Sender<(String, Told)>,
}

/// All guests that are to run.
pub struct Lanes {
    count: usize,
    started: OnceLock<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Vec<&'static Guest>,
}

/// Where the results of a guest's cases arrive.
pub struct Results(Mutex<Receiver<(String, Told)>>);

impl Lanes {
    /// None yet; they will run so many at a time.
    pub fn new(count: usize) -> Self {
        Self {
            count,
            started: OnceLock::new(),
            shared: Arc::default(),
        }
    }

    /// A guest that is to run these cases after those that were added before.
    pub fn add(&mut self, guest: &'static Guest, cases: Vec<String>) -> Results {
        let (results, receiver) = channel();
        if !cases.is_empty() {
            let job = Job {
                guest,
                cases,
                results,
            };
            self.shared.lock().waiting.push_back(job);
        }
        Results(Mutex::new(receiver))
    }

    /// Lets them run, if they don't already.
    pub fn start(&self) {
        self.started.get_or_init(|| {
            let lanes = self.count;
            for _ in 0..lanes {
                let shared = Arc::clone(&self.shared);
                std::thread::spawn(move || shared.run(lanes));
            }
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one guest after the other, as long as any waits.
    fn run(&self, lanes: usize) {
        while let Some((job, _running)) = self.take(lanes) {
            let mut booted = Booted::new(job.guest, job.cases.clone());
            for case in job.cases {
                let told = booted.told(&case);
                // The other end is there until all trials have ended.
                let _ = job.results.send((case, told));
            }
        }
    }

    /// The first that waits and may run beside what runs, once there is a lane for it.
    fn take(&self, lanes: usize) -> Option<(Job, Running<'_>)> {
        let mut state = self.lock();
        loop {
            if state.waiting.is_empty() {
                return None;
            }
            let State { waiting, running } = &mut *state;
            let fits = |job: &Job| {
                let mut others = running.iter();
                others.all(|other| job.guest.may_run_beside(other))
            };
            if running.len() < lanes
                && let Some(at) = waiting.iter().position(fits)
            {
                let job = waiting.remove(at)?;
                let guest = job.guest;
                running.push(guest);
                let shared = self;
                return Some((job, Running { shared, guest }));
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A guest that runs, however that ends.
struct Running<'a> {
    shared: &'a Shared,
    guest: &'static Guest,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let at = state
            .running
            .iter()
            .position(|other| std::ptr::eq(*other, self.guest));
        if let Some(at) = at {
            state.running.swap_remove(at);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Results {
    /// Waits for how a case went. Cases are to be asked for in the order in which they run.
    pub fn of(&self, case: &str) -> Told {
        let receiver = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match receiver.recv() {
            Ok((name, told)) if name == case => told,
            Ok((name, _)) => Told::broken(format!("{name} was run in its place")),
            Err(_) => Told::broken("its guest was given up, see above".into()),
        }
    }
}
