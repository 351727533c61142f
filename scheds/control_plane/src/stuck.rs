//! Frees tasks that are stuck in the local queue of a CPU that a task of a higher class keeps, and wakes a CPU that sleeps on
//! though it was picked for a task (`bpf/lib/stuck.bpf.h`).
//!
//! Such a CPU is woken as soon as it is found. A task no BPF program can take out of there, but the kernel itself dequeues it and
//! enqueues it anew whenever its scheduling attributes are set, and so the policy decides again.

use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{Iter, IterOpts, Link, ProgramMut};
use log::{debug, warn};

use crate::helper::Helper;

/// How often it looks. Who has waited since the last time is stuck.
const EVERY: Duration = Duration::from_millis(100);
/// The lowest that a real-time thread can have.
const PRIORITY: u32 = 1;

/// Frees whoever is stuck, in a thread of its own.
#[derive(Debug)]
pub struct Freer(#[expect(dead_code, reason = "kept for its life")] Helper);

impl Freer {
    /// With what the scheduler's object has of `bpf/lib/stuck.bpf.h`.
    ///
    /// If later the kernel refuses something, that is logged, and nobody is freed from then on.
    ///
    /// # Errors
    /// If the kernel refuses to attach the iterator, or has no thread to spare.
    pub fn start(find_stuck: &ProgramMut<'_>) -> Result<Self> {
        let found = find_stuck
            .attach_iter_with_opts(IterOpts::None)
            .context("attaching the iterator of stuck tasks")?;
        Helper::start("stuck", move |stop| {
            // Or it might be stuck like those that it looks for.
            if let Err(err) = become_real_time() {
                debug!("who looks for stuck tasks is an ordinary thread: {err}");
            }
            while !stop.load(Ordering::Relaxed) {
                if let Err(err) = free(&found) {
                    warn!("nobody looks for stuck tasks any more: {err:#}");
                    break;
                }
                thread::sleep(EVERY);
            }
        })
        .map(Self)
        .context("starting the thread that looks for stuck tasks")
    }
}

/// Has the kernel enqueue anew whom this iterator finds.
fn free(found: &Link) -> Result<()> {
    let mut bytes = Vec::new();
    Iter::new(found)
        .context("starting the iterator of stuck tasks")?
        .read_to_end(&mut bytes)
        .context("reading the iterator of stuck tasks")?;
    let (tids, _) = bytes.as_chunks::<4>();
    for tid in tids.iter().map(|tid| i32::from_ne_bytes(*tid)) {
        if tid < 0 {
            debug!("CPU {} slept on, and was woken", -1 - tid);
            continue;
        }
        match enqueue_anew(tid) {
            Ok(()) => debug!("task {tid} was stuck on a CPU that another class keeps"),
            // It may have ended.
            Err(err) => debug!("task {tid} is stuck on a CPU that another class keeps: {err}"),
        }
    }
    Ok(())
}

fn become_real_time() -> io::Result<()> {
    let attr = libc::sched_attr {
        sched_policy: libc::SCHED_FIFO as u32,
        sched_priority: PRIORITY,
        ..attributes(OWN)?
    };
    set_attributes(OWN, &attr)
}

/// The thread that asks.
const OWN: i32 = 0;

/// Sets the attributes of a task to what they are already, but for one: with `sched_runtime` of 0 its slice in the fair class,
/// where it doesn't run, is what it is by default. The kernel takes the shortcut for no change at all. (Of a task of
/// `SCHED_IDLE` it doesn't look at the slice: that one stays where it is.)
fn enqueue_anew(tid: i32) -> io::Result<()> {
    let before = attributes(tid)?;
    set_attributes(
        tid,
        &libc::sched_attr {
            sched_runtime: 0,
            ..before
        },
    )?;
    // One that somebody had chosen.
    if attributes(tid)?.sched_runtime != before.sched_runtime {
        set_attributes(tid, &before)?;
    }
    Ok(())
}

fn attributes(tid: i32) -> io::Result<libc::sched_attr> {
    // SAFETY: all of its fields are numbers.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the pointer is to a struct of this size, to which the kernel writes during the call only.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) };
    if done == 0 {
        Ok(attr)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set_attributes(tid: i32, attr: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the pointer is to a struct that has its own size, which the kernel reads during the call only.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const *attr, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can be seen of its attributes.
    fn seen() -> (u32, u64, i32, u64) {
        let attr = attributes(OWN).unwrap();
        let policy = attr.sched_policy;
        (
            policy,
            attr.sched_flags,
            attr.sched_nice,
            attr.sched_runtime,
        )
    }

    /// In a thread, as this changes its attributes.
    fn unchanged(change: impl FnOnce(&mut libc::sched_attr) + Send + 'static) {
        let thread = std::thread::spawn(move || {
            let mut attr = attributes(OWN).unwrap();
            change(&mut attr);
            set_attributes(OWN, &attr).unwrap();
            let before = seen();
            enqueue_anew(OWN).unwrap();
            assert_eq!(seen(), before);
        });
        thread.join().unwrap();
    }

    #[test]
    fn attributes_stay_as_they_are() {
        unchanged(|_| {});
        unchanged(|attr| attr.sched_nice = 7);
        unchanged(|attr| attr.sched_policy = libc::SCHED_BATCH as u32);
        unchanged(|attr| attr.sched_policy = libc::SCHED_IDLE as u32);
        unchanged(|attr| attr.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64);
    }

    /// Before Linux 6.12 the fair class has no slices of a task's own.
    #[test]
    fn a_slice_of_its_own_stays_what_it_is() {
        unchanged(|attr| attr.sched_runtime = 7_000_000);
    }

    #[test]
    fn one_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let tid = child.id() as i32;
        child.wait().unwrap();
        assert_eq!(
            enqueue_anew(tid).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
    }
}
