//! The schedulers with known faults of `tests/broken_scheds`.

use crate::daemon::{Daemon, State, start_limit, wait_until_unloaded};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// One that is loaded.
#[derive(Debug)]
pub(crate) struct Broken(Daemon);

impl Broken {
    pub(crate) fn load(args: &[&str]) -> Result<Self> {
        let mut broken = Self(Daemon::spawn("broken_scheds", args)?);
        let deadline = Instant::now() + start_limit();
        loop {
            let state = State::read()?;
            let name = state.ops.as_deref().unwrap_or_default();
            if state.state == "enabled" && name.starts_with("broken") {
                return Ok(broken);
            }
            ensure!(
                broken.0.ended()?.is_none(),
                "broken_scheds has ended: {}",
                broken.0.stderr()
            );
            ensure!(
                Instant::now() < deadline,
                "broken_scheds is not loaded after {} s: {state:?}",
                start_limit().as_secs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn stderr(&self) -> String {
        self.0.stderr()
    }

    /// Ends it by itself: it must not have been thrown out.
    pub(crate) fn unload(mut self) -> Result<()> {
        let status = self.0.signal(Signal::INT)?;
        ensure!(
            status.success(),
            "broken_scheds ended with {status}: {}",
            self.0.stderr()
        );
        wait_until_unloaded()
    }

    /// Waits until the kernel has thrown it out. Returns what it said of that.
    pub(crate) fn wait_until_thrown_out(mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        while self
            .0
            .ended()
            .context("waiting for broken_scheds")?
            .is_none()
        {
            ensure!(
                Instant::now() < deadline,
                "broken_scheds was not thrown out within {} s",
                limit.as_secs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        wait_until_unloaded()?;
        Ok(self.0.stderr())
    }
}
