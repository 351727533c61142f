//! Printing beside the scheduling: whoever reads stdout, a pager for example, may stop reading for as long as it likes.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, never};
use log::warn;
use serde_json::Value;

/// How long the last sample may take to be printed, at the end.
const LAST: Duration = Duration::from_millis(500);
/// All memory of some daemons is locked, so a thread costs what its stack may grow to.
const STACK: usize = 128 * 1024;

/// A thread that prints samples. While one can't be printed, later ones are left out.
#[derive(Debug)]
pub struct BackgroundPrinter {
    /// `None` once no more can be printed.
    samples: Option<Sender<(Instant, Value)>>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
    /// Whether samples were left out, so that it is warned of once.
    behind: bool,
}

impl BackgroundPrinter {
    /// Starts the thread, which prints by `print`, told when each sample was taken, until that fails.
    ///
    /// # Errors
    /// If the kernel refuses a thread.
    pub fn start(
        mut print: impl FnMut(Instant, Value) -> io::Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (samples, inbox) = bounded::<(Instant, Value)>(1);
        let (end, ended) = bounded::<()>(0);
        let work = move || {
            let _end = end;
            for (at, sample) in inbox {
                if let Err(err) = print(at, sample) {
                    warn!("printing no more statistics: {err}");
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("printer".to_string())
            .stack_size(STACK)
            .spawn(work)
            .context("starting the thread that prints statistics")?;
        Ok(Self {
            samples: Some(samples),
            ended,
            behind: false,
        })
    }

    /// Has a sample printed, and returns whether it makes sense to come with another some time. Never waits.
    pub fn print(&mut self, sample: Value) -> bool {
        let Some(samples) = &self.samples else {
            return false;
        };
        match samples.try_send((Instant::now(), sample)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                if !self.behind {
                    warn!("stdout isn't read, so some statistics are not printed");
                }
                self.behind = true;
            }
            Err(TrySendError::Disconnected(_)) => self.samples = None,
        }
        self.samples.is_some()
    }
}

impl Drop for BackgroundPrinter {
    fn drop(&mut self) {
        self.samples = None;
        let ended = std::mem::replace(&mut self.ended, never());
        let _ = ended.recv_timeout(LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reader_that_stops_holds_nobody_up() {
        let (go, may_go) = bounded::<()>(0);
        let (printed, seen) = bounded(9);
        let mut printer = BackgroundPrinter::start(move |_, sample| {
            let _ = may_go.recv();
            printed.send(sample).map_err(io::Error::other)
        })
        .unwrap();
        let start = Instant::now();
        for number in 0..50 {
            assert!(printer.print(json!(number)));
        }
        assert!(start.elapsed() < LAST && printer.behind);
        drop(go);
        drop(printer);
        let seen: Vec<Value> = seen.iter().collect();
        assert_eq!(seen[0], json!(0), "the first was under way");
        assert!(seen.len() <= 2, "{seen:?}");
    }

    #[test]
    fn a_reader_that_is_gone_ends_it() {
        let mut printer =
            BackgroundPrinter::start(|_, _| Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        assert!(printer.print(json!(1)));
        let _ = printer.ended.recv_timeout(Duration::from_secs(10));
        assert!(!printer.print(json!(2)) && !printer.print(json!(3)));
    }
}
