//! What a policy may know beyond what the kernel tells it. All of it is read by other threads, at their leisure; the
//! thread that schedules only loads words from a [`Board`].
//!
//! An input that is missing, stale or malformed is reported once, when that begins, and has no effect until it is good
//! again. The scheduler goes on whatever happens to its inputs.

pub mod load;
pub mod power;
pub mod psi;
pub mod services;
pub mod watch;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use control_plane::policy::Policy;
use crossbeam::queue::ArrayQueue;
use log::{info, warn};

use crate::policy::Class;
use services::{Directory, Service};
use watch::Watch;

/// The most services that can be told apart.
pub const MAX_SERVICES: usize = 64;
/// How often inputs are looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// Pids are told apart up to this many; beyond, two may take turns in a place.
const PLACES: usize = 1 << 16;
/// How many pids may be on their way to or from the thread that looks after them.
const IN_TRANSIT: usize = 4096;
/// In a place: nobody has asked yet, somebody has, it belongs to no service. Above: to the service of that number less 3.
const ASKED: u32 = 1;
const NONE: u32 = 2;
const FIRST: u32 = 3;

/// How a task is to be treated for the sake of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// Whether it belongs to one.
    pub known: bool,
    pub class: Class,
    /// By what its weight is multiplied, in percent.
    pub weight_percent: u32,
    /// See [`crate::policy::Task`].
    pub home: u32,
    pub reach: u32,
}

const PLAIN: Treatment = Treatment {
    known: false,
    class: Class::Normal,
    weight_percent: 100,
    home: 0,
    reach: u32::MAX,
};

/// What is known of a service, as words that are written by some threads and read by the one that schedules.
#[derive(Debug)]
struct Slot {
    class: AtomicU32,
    /// Of its own, in percent.
    weight: AtomicU32,
    /// In percent: how much more its tasks count because they are under pressure, 100 for no more.
    boost: AtomicU32,
    /// To how many caches it is to be kept.
    reach: AtomicU32,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            class: AtomicU32::new(PLAIN.class as u32),
            weight: AtomicU32::new(PLAIN.weight_percent),
            boost: AtomicU32::new(100),
            reach: AtomicU32::new(PLAIN.reach),
        }
    }
}

impl Slot {
    fn class(&self) -> Class {
        let code = self.class.load(Ordering::Relaxed);
        let all = [Class::Latency, Class::Batch];
        let found = all.into_iter().find(|class| *class as u32 == code);
        found.unwrap_or(Class::Normal)
    }
}

/// What inputs say.
#[derive(Debug)]
pub struct Board {
    /// By a service's number.
    slots: Vec<Slot>,
    /// Never locked by the thread that schedules.
    directory: Mutex<Directory>,
    /// How often the services have changed.
    version: AtomicU32,
    active_llcs: AtomicU32,
    /// By pid modulo their number: the pid, and what is known of it.
    places: Vec<AtomicU64>,
    asked: ArrayQueue<i32>,
    gone: ArrayQueue<i32>,
}

impl Board {
    /// With these services, of which the first [`MAX_SERVICES`] count.
    pub fn new(services: Vec<Service>) -> Self {
        let board = Self {
            slots: (0..MAX_SERVICES).map(|_| Slot::default()).collect(),
            directory: Mutex::new(Directory::new(services)),
            version: AtomicU32::new(0),
            active_llcs: AtomicU32::new(u32::MAX),
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            asked: ArrayQueue::new(IN_TRANSIT),
            gone: ArrayQueue::new(IN_TRANSIT),
        };
        board.write_treatments(&board.directory());
        board
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Treats the services of this policy as it says, beside those that it was made with and instead of an earlier
    /// policy's. Those beyond [`MAX_SERVICES`] are reported and treated like no service.
    pub fn follow(&self, policy: &Policy) {
        let mut directory = self.directory();
        directory.follow(policy);
        for name in self.write_treatments(&directory) {
            warn!("{name} is treated like no service: there is room for {MAX_SERVICES}");
        }
        drop(directory);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns the names of services without a slot.
    fn write_treatments<'d>(&self, directory: &'d Directory) -> Vec<&'d str> {
        let (treatments, without_room) = directory.treatments();
        for (number, class, weight) in treatments {
            self.slots[number]
                .class
                .store(class as u32, Ordering::Relaxed);
            self.slots[number].weight.store(weight, Ordering::Relaxed);
        }
        without_room
    }

    /// Another number each time the services have changed.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// A service's name, if there is one of this number.
    pub(crate) fn name_of(&self, service: usize) -> Option<String> {
        self.directory().name_of(service).map(str::to_owned)
    }

    /// The number of the service of this name.
    pub(crate) fn number_of(&self, name: &str) -> Option<usize> {
        self.directory().number_of(name)
    }

    /// The service to which a cgroup belongs, by its path.
    pub(crate) fn service_at(&self, cgroup: &str) -> Option<usize> {
        self.directory().service_of(cgroup)
    }

    /// Those of these cgroups that are services of the policy, each with its service.
    pub(crate) fn policys_among(
        &self,
        cgroups: impl Iterator<Item = String>,
    ) -> Vec<(usize, String)> {
        let directory = self.directory();
        cgroups
            .filter_map(|cgroup| Some((directory.policys_that_is(&cgroup)?, cgroup)))
            .collect()
    }

    /// How a task is to be treated. The first time, somebody else starts to look that up.
    pub fn service_of(&self, pid: i32) -> Treatment {
        let place = &self.places[pid as u32 as usize % PLACES];
        let word = place.load(Ordering::Relaxed);
        if (word >> 32) as u32 != pid as u32 {
            // If there is no room, it asks again next time.
            if self.asked.push(pid).is_ok() {
                place.store(pack(pid, ASKED), Ordering::Relaxed);
            }
            return PLAIN;
        }
        let Some(index) = (word as u32).checked_sub(FIRST).map(|index| index as usize) else {
            return PLAIN;
        };
        let Some(slot) = self.slots.get(index) else {
            return PLAIN;
        };
        let [weight, boost] = [&slot.weight, &slot.boost].map(|word| word.load(Ordering::Relaxed));
        Treatment {
            known: true,
            class: slot.class(),
            weight_percent: weight * boost / 100,
            home: index as u32,
            reach: slot.reach.load(Ordering::Relaxed),
        }
    }

    /// In how many caches work is to be packed; more than there are for no limit.
    pub fn active_llcs(&self) -> u32 {
        self.active_llcs.load(Ordering::Relaxed)
    }

    /// A task that is gone.
    pub fn next_gone(&self) -> Option<i32> {
        self.gone.pop()
    }

    pub(crate) fn next_asked(&self) -> Option<i32> {
        self.asked.pop()
    }

    /// Says to which service a task belongs.
    pub(crate) fn assign(&self, pid: i32, service: Option<usize>) {
        let code = service.map_or(NONE, |index| index as u32 + FIRST);
        self.places[pid as u32 as usize % PLACES].store(pack(pid, code), Ordering::Relaxed);
    }

    /// Says that a task is gone. `false` if there is no room for that now.
    pub(crate) fn retire(&self, pid: i32) -> bool {
        if self.gone.push(pid).is_err() {
            return false;
        }
        let place = &self.places[pid as u32 as usize % PLACES];
        let word = place.load(Ordering::Relaxed);
        if (word >> 32) as u32 == pid as u32 {
            place.store(0, Ordering::Relaxed);
        }
        true
    }

    /// Sets how much more a service counts, in percent.
    pub fn set_boost(&self, service: usize, percent: u32) {
        if let Some(slot) = self.slots.get(service) {
            slot.boost.store(percent, Ordering::Relaxed);
        }
    }

    /// How much more a service counts, in percent.
    pub fn boost(&self, service: usize) -> u32 {
        self.slots
            .get(service)
            .map_or(100, |slot| slot.boost.load(Ordering::Relaxed))
    }

    /// Sets to how many caches a service is to be kept.
    pub fn set_reach(&self, service: usize, llcs: u32) {
        if let Some(slot) = self.slots.get(service) {
            slot.reach.store(llcs, Ordering::Relaxed);
        }
    }

    /// To how many caches a service is to be kept.
    pub fn reach(&self, service: usize) -> u32 {
        self.slots
            .get(service)
            .map_or(u32::MAX, |slot| slot.reach.load(Ordering::Relaxed))
    }

    /// Packs work into this many caches.
    pub fn set_active_llcs(&self, llcs: u32) {
        self.active_llcs.store(llcs, Ordering::Relaxed);
    }
}

fn pack(pid: i32, code: u32) -> u64 {
    u64::from(pid as u32) << 32 | u64::from(code)
}

/// Something to be looked at from time to time.
pub trait Source: Send {
    /// What it is, in a report.
    fn name(&self) -> String;

    /// Looks and writes what it finds onto the board. Never waits for long.
    ///
    /// # Errors
    /// What is wrong with it, in words that stay the same for as long as that doesn't change. It must have taken back
    /// what it had written.
    fn poll(&mut self, now: Instant, board: &Board) -> Result<(), String>;
}

/// Reports what is wrong once, and once that it is over.
#[derive(Debug, Default)]
pub struct Reporter {
    wrong: Option<String>,
}

impl Reporter {
    /// Takes in how a look at something went. Returns what is to be said about it, if anything.
    pub fn note(&mut self, name: &str, result: Result<(), String>) -> Option<String> {
        let said = match (&self.wrong, &result) {
            (None, Err(now)) => Some(format!("{name} is ignored: {now}")),
            (Some(_), Ok(())) => Some(format!("{name} is in use again")),
            _ => None,
        };
        self.wrong = result.err();
        said
    }

    fn is_wrong(&self) -> bool {
        self.wrong.is_some()
    }
}

/// The threads that read the inputs. They end when this goes.
#[derive(Debug)]
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts them: one that looks after tasks, and one for everything else.
    ///
    /// # Errors
    /// If a thread can't be started.
    pub fn start(
        board: &Arc<Board>,
        watch: Watch,
        mut sources: Vec<Box<dyn Source>>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut readers = Self {
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_string())
                // All memory is locked, so a thread costs what its stack may grow to.
                .stack_size(256 * 1024)
                .spawn(work)
        };
        {
            let (board, stop) = (Arc::clone(board), Arc::clone(&stop));
            let mut watch = watch;
            let work = move || {
                while !stop.load(Ordering::Relaxed) {
                    watch.poll(Instant::now(), &board);
                    thread::sleep(Duration::from_millis(20));
                }
            };
            readers.threads.push(spawn("pilot-tasks", Box::new(work))?);
        }
        if !sources.is_empty() {
            let board = Arc::clone(board);
            let work = move || {
                let mut reporters: Vec<Reporter> =
                    sources.iter().map(|_| Reporter::default()).collect();
                while !stop.load(Ordering::Relaxed) {
                    for (source, reporter) in sources.iter_mut().zip(&mut reporters) {
                        let result = source.poll(Instant::now(), &board);
                        match reporter.note(&source.name(), result) {
                            Some(said) if reporter.is_wrong() => warn!("{said}"),
                            Some(said) => info!("{said}"),
                            None => {}
                        }
                    }
                    thread::sleep(INTERVAL);
                }
            };
            readers.threads.push(spawn("pilot-inputs", Box::new(work))?);
        }
        Ok(readers)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_asked_about_once_and_treated_like_its_service() {
        let board = Board::new(vec![
            services::parse("web=/web:latency:300").unwrap(),
            services::parse("logs=/logs:batch").unwrap(),
        ]);
        assert_eq!(board.service_of(70_000), PLAIN);
        assert_eq!(board.service_of(70_000), PLAIN);
        assert_eq!(
            (board.next_asked(), board.next_asked()),
            (Some(70_000), None)
        );
        board.assign(70_000, Some(0));
        board.set_boost(0, 200);
        let treatment = board.service_of(70_000);
        assert_eq!(
            (treatment.class, treatment.weight_percent, treatment.known),
            (Class::Latency, 600, true)
        );
        // Another task whose pid has the same place.
        assert_eq!(board.service_of(70_000 - PLACES as i32), PLAIN);
        assert!(board.retire(70_000));
        assert_eq!(board.next_gone(), Some(70_000));
        assert_eq!(board.next_asked(), Some(70_000 - PLACES as i32));
    }

    #[test]
    fn a_full_queue_only_delays() {
        let board = Board::new(Vec::new());
        for pid in 1..=(IN_TRANSIT as i32 + 1) {
            board.service_of(pid);
        }
        while board.next_asked().is_some() {}
        board.service_of(1);
        board.service_of(IN_TRANSIT as i32 + 1);
        assert_eq!(board.next_asked(), Some(IN_TRANSIT as i32 + 1));
        assert_eq!(board.next_asked(), None);
    }

    #[test]
    fn what_is_wrong_is_said_once_and_that_it_is_over_once() {
        let mut reporter = Reporter::default();
        let wrong = || Err("no such file".to_string());
        assert_eq!(
            reporter.note("x", wrong()).as_deref(),
            Some("x is ignored: no such file")
        );
        assert_eq!(reporter.note("x", wrong()), None);
        assert_eq!(reporter.note("x", Err("else".into())), None);
        assert_eq!(
            reporter.note("x", Ok(())).as_deref(),
            Some("x is in use again")
        );
        assert_eq!(reporter.note("x", Ok(())), None);
        assert!(reporter.note("x", wrong()).is_some());
    }
}
