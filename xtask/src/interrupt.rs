//! Ctrl-C and its kin (SIGINT, SIGTERM, SIGHUP) while something is under way that has to be put back in order first: a
//! half-made folder, a child process, a guest. At all other times they end this process at once, as usual.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fmt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);
/// For a child to end after SIGTERM, before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A signal came while a [`Held`] lived.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted; nothing half-done was left, so run it again to start anew")
    }
}

impl std::error::Error for Interrupted {}

#[derive(Debug)]
struct State {
    /// The number of the last signal; 0 for none.
    received: Arc<AtomicUsize>,
    /// Whether a signal ends this process at once.
    at_once: Arc<AtomicBool>,
    holders: Mutex<usize>,
}

impl State {
    fn get() -> &'static Self {
        static STATE: OnceLock<State> = OnceLock::new();
        STATE.get_or_init(|| Self {
            received: Arc::default(),
            at_once: Arc::new(AtomicBool::new(true)),
            holders: Mutex::new(0),
        })
    }

    fn holders(&self) -> MutexGuard<'_, usize> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn catch(&self) -> Result<()> {
        static CAUGHT: OnceLock<Result<(), String>> = OnceLock::new();
        let caught = CAUGHT.get_or_init(|| {
            for number in [SIGINT, SIGTERM, SIGHUP] {
                let value = as_received(number);
                signal_hook::flag::register_conditional_default(number, Arc::clone(&self.at_once))
                    .and_then(|_| {
                        signal_hook::flag::register_usize(number, Arc::clone(&self.received), value)
                    })
                    .map_err(|error| error.to_string())?;
            }
            Ok(())
        });
        caught
            .clone()
            .map_err(anyhow::Error::msg)
            .context("catching signals")
    }
}

fn as_received(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}

/// What [`received`] says of SIGHUP, by which a terminal says that it is gone.
pub fn hangup() -> usize {
    as_received(SIGHUP)
}

/// While one lives, signals are only noted: whoever holds it looks at [`received`], puts things in order and ends.
#[derive(Debug)]
pub struct Held(());

/// Holds signals off.
///
/// # Errors
/// [`Interrupted`] if one came during an earlier hold: it is no time to begin something new.
pub fn hold() -> Result<Held> {
    let state = State::get();
    state.catch()?;
    let mut holders = state.holders();
    *holders += 1;
    state.at_once.store(false, Ordering::SeqCst);
    drop(holders);
    let held = Held(());
    check()?;
    Ok(held)
}

impl Drop for Held {
    fn drop(&mut self) {
        let state = State::get();
        let mut holders = state.holders();
        *holders -= 1;
        if *holders == 0 {
            state.at_once.store(true, Ordering::SeqCst);
        }
    }
}

/// The number of the signal that came during a hold, if one did.
pub fn received() -> Option<usize> {
    match State::get().received.load(Ordering::SeqCst) {
        0 => None,
        number => Some(number),
    }
}

/// Fails if a signal came during a hold.
pub fn check() -> Result<()> {
    match received() {
        None => Ok(()),
        Some(_) => Err(Interrupted.into()),
    }
}

/// Ends a child when a signal comes, until dropped.
#[derive(Debug)]
pub struct Watch {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// `group`: the child leads a process group of its own, which is ended as a whole.
    pub fn over(child: &Child, group: bool) -> Self {
        let pid = Pid::from_child(child);
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let thread = std::thread::spawn(move || end_when_interrupted(pid, group, &seen));
        Self {
            done,
            thread: Some(thread),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn end_when_interrupted(pid: Pid, group: bool, done: &AtomicBool) {
    let mut kill_at = None;
    while !done.load(Ordering::SeqCst) {
        if received().is_some() {
            let now = Instant::now();
            let signal = if *kill_at.get_or_insert(now + GRACE) > now {
                Signal::TERM
            } else {
                Signal::KILL
            };
            // It may have ended in this moment; and one that runs as another user gets the terminal's signal only.
            let _ = if group {
                kill_process_group(pid, signal)
            } else {
                kill_process(pid, signal)
            };
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_nest() {
        let at_once = || State::get().at_once.load(Ordering::SeqCst);
        let outer = hold().unwrap();
        drop(hold().unwrap());
        assert!(!at_once());
        drop(outer);
    }
}
