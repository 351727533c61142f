//! What a daemon is told by signals.
//!
//! They are blocked in every thread, and read by one from a descriptor. So none is lost when a program takes the place of
//! this one: what nobody has read waits for that.

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use crossbeam::channel::{Receiver, Sender, bounded, never};
use log::warn;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::helper::Helper;

/// How long until the thread that reads has noticed that it is to end, ms.
const NOTICE_MS: u16 = 100;

/// Channels that get a message at a signal.
#[derive(Debug)]
pub(super) struct Signals {
    /// To end: SIGINT and SIGTERM, and SIGHUP if there is nothing to read again.
    pub(super) stop: Receiver<()>,
    /// To read the policy again: SIGHUP.
    pub(super) reload: Receiver<()>,
    reader: Option<Helper>,
}

/// Leaves the signals that a daemon is told by to [`Signals`], in this thread and all that it starts from now on. Until
/// those listen, they wait.
///
/// To be called before there are other threads: a signal that one of them takes ends the process.
pub fn block_signals() {
    let all = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // It can't fail, but for a mistake in the call.
    let _ = all.thread_block();
}

impl Signals {
    /// Takes these signals from now on. `reloads`: whether there is a policy to be read again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn listen(reloads: bool) -> Result<Self> {
        block_signals();
        let ((to_stop, stop), (to_reload, reload)) = (bounded(1), bounded(1));
        let mut taken = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        // nohup(1): the terminal may go.
        if reloads || !ignores_hangup(&status) {
            taken.add(Signal::SIGHUP);
        }
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let queue = SignalFd::with_flags(&taken, flags).context("taking signals")?;
        let (on_hangup, reload) = if reloads {
            (to_reload, reload)
        } else {
            // Not one without a sender, which would always be ready.
            (to_stop.clone(), never())
        };
        let reader = Helper::start("signals", move |end| {
            while !end.load(Ordering::Relaxed) {
                match read(&queue, &to_stop, &on_hangup) {
                    Ok(ControlFlow::Continue(())) => {}
                    // There is no more to hear.
                    Ok(ControlFlow::Break(())) => return,
                    Err(err) => return warn!("signals are no longer heard: {err}"),
                }
            }
        });
        Ok(Self {
            stop,
            reload,
            reader: Some(reader.context("starting the thread that waits for signals")?),
        })
    }

    /// Takes no more of them: those that come wait for who listens next. Says whether one was to end.
    pub(super) fn hold(&mut self) -> bool {
        self.reader = None;
        self.stop.try_recv().is_ok()
    }
}

/// Waits a moment for a signal, and passes it on. Is there more to come?
fn read(
    queue: &SignalFd,
    stop: &Sender<()>,
    hangup: &Sender<()>,
) -> Result<ControlFlow<()>, Errno> {
    let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(NOTICE_MS)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(err) => return Err(err),
    }
    while let Some(info) = queue.read_signal()? {
        // Full: one is on its way already.
        if info.ssi_signo == Signal::SIGHUP as u32 {
            let _ = hangup.try_send(());
        } else {
            let _ = stop.try_send(());
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// By the text of `/proc/self/status`.
fn ignores_hangup(status: &str) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (Signal::SIGHUP as u32 - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::TryRecvError;

    /// Or whoever waits for both would never sleep.
    #[test]
    fn without_a_policy_nothing_is_ever_to_be_read_again() {
        let signals = Signals::listen(false).unwrap();
        assert_eq!(signals.reload.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(signals.stop.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn nohup_is_told_by_the_mask_of_ignored_signals() {
        assert!(ignores_hangup(
            "SigBlk:\t0000000000004003\nSigIgn:\t0000000000001001\n"
        ));
        assert!(!ignores_hangup("SigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
