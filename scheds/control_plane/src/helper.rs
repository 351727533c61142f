//! A thread that does something beside the scheduling, for as long as the scheduler is loaded.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// All memory of some daemons is locked, so a thread costs what its stack may grow to.
const STACK: usize = 256 * 1024;

/// Told to end when this is dropped, which waits for it.
#[derive(Debug)]
pub(crate) struct Helper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// Starts one that does `work`, which has to look often whether it is to stop: whoever unloads the scheduler waits.
    ///
    /// # Errors
    /// If the kernel refuses a thread.
    pub(crate) fn start(
        name: &str,
        work: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || work(&told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_ended_when_it_is_dropped() {
        let (done, seen) = crossbeam::channel::bounded(1);
        let helper = Helper::start("test", move |stop| {
            while !stop.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            done.send(()).unwrap();
        });
        drop(helper.unwrap());
        assert!(seen.try_recv().is_ok());
    }
}
