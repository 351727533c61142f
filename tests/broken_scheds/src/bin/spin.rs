//! Threads that use all CPU time that they get, for a fixed time: a workload whose need is known.

use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// Spin with some threads for some seconds, free to run anywhere; use taskset(1) to restrict them.
#[derive(Debug, Parser)]
struct Opts {
    /// How many threads spin
    #[arg(long, default_value_t = 2)]
    threads: usize,

    /// For how long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

fn main() {
    let opts = Opts::parse();
    let end = Instant::now() + Duration::from_secs_f64(opts.seconds.clamp(0.0, 3600.0));
    // The main thread is one of them, so that no idle thread is around.
    let others: Vec<_> = (1..opts.threads)
        .map(|_| thread::spawn(move || spin(end)))
        .collect();
    spin(end);
    for thread in others {
        // A thread that panicked would have printed why.
        let _ = thread.join();
    }
}

fn spin(end: Instant) {
    while Instant::now() < end {
        for _ in 0..10_000 {
            std::hint::spin_loop();
        }
    }
}
