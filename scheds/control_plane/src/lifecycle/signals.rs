//! What a daemon is told by signals.

use std::thread;

use anyhow::{Context, Result};
use crossbeam::channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// All memory of some daemons is locked, so a thread costs what its stack may grow to.
const STACK: usize = 128 * 1024;

/// Channels that get a message at a signal.
#[derive(Debug)]
pub(super) struct Signals {
    /// To end: SIGINT and SIGTERM, and SIGHUP if there is nothing to read again.
    pub(super) stop: Receiver<()>,
    /// To read the policy again: SIGHUP.
    pub(super) reload: Receiver<()>,
}

impl Signals {
    /// Takes these signals from now on. `reloads`: whether there is a policy to be read again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn listen(reloads: bool) -> Result<Self> {
        let ((to_stop, stop), (to_reload, reload)) = (bounded(1), bounded(1));
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
            .context("setting the signal handlers")?;
        let work = move || {
            for signal in signals.forever() {
                // Full: one is on its way already.
                let _ = if reloads && signal == SIGHUP {
                    to_reload.try_send(())
                } else {
                    to_stop.try_send(())
                };
            }
        };
        thread::Builder::new()
            .name("signals".to_string())
            .stack_size(STACK)
            .spawn(work)
            .context("starting the thread that waits for signals")?;
        Ok(Self { stop, reload })
    }
}
