//! One who computes beside others who run for moments only: each of these moments counts, or they would have the CPU to
//! themselves.

use crate::Setting;
use crate::cpus::Cpus;
use crate::daemon::Daemon;
use crate::load::{Load, Work};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// Where all of them are.
const CPU: usize = 1;
/// How much of it the one who computes gets at least. Beside two of whom one runs at a time, each of whom is owed as much,
/// it is owed a third to a half.
const LEAST: f64 = 0.25;
const SETTLED: Duration = Duration::from_millis(300);
const WATCHED: Duration = Duration::from_secs(1);

/// Two threads that pass a byte to and fro through pipes, whose wakeups say that the waker is about to sleep; two that wake
/// each other with futexes, which don't; and processes that start the next one and end.
pub(crate) fn beside_messages(setting: &Setting) -> Result<String> {
    let daemon = Daemon::start(setting, &[])?;
    let hog = Load::start_on(1, Work::Spin, Some(&Cpus::from([CPU])))?;
    let shares = [
        ("pipes", share_beside(&hog, Pipes::start)?),
        ("futexes", share_beside(&hog, Futexes::start)?),
        ("processes", share_beside(&hog, Chain::start)?),
    ];
    drop(hog);
    daemon.stop()?;
    let told = shares.map(|(what, share)| format!("{:.0} % beside {what}", 100.0 * share));
    let told = told.join(", ");
    ensure!(
        shares.iter().all(|(_, share)| *share >= LEAST),
        "who computes gets {told} of its CPU, not {:.0} %",
        100.0 * LEAST
    );
    Ok(told)
}

/// What part of the time the hog ran beside those.
fn share_beside<T>(hog: &Load, start: impl FnOnce() -> Result<T>) -> Result<f64> {
    let others = start()?;
    std::thread::sleep(SETTLED);
    let used = || -> Result<u64> { Ok(hog.runtimes()?.values().sum()) };
    let before = used()?;
    std::thread::sleep(WATCHED);
    let ran = Duration::from_nanos(used()? - before);
    drop(others);
    Ok(ran.as_secs_f64() / WATCHED.as_secs_f64())
}

/// A thread there.
fn on_the_cpu(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let body = move || {
        let cpus = crate::cpus::mask([CPU]);
        match rustix::thread::sched_setaffinity(None, &cpus) {
            Ok(()) => work(),
            Err(error) => eprintln!("going to CPU {CPU}: {error}"),
        }
    };
    std::thread::Builder::new()
        .spawn(body)
        .context("starting a thread")
}

struct Pipes {
    first: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Pipes {
    fn start() -> Result<Self> {
        let (from_second, to_first) = pipe().context("making a pipe")?;
        let (from_first, to_second) = pipe().context("making a pipe")?;
        let first = to_first.try_clone().context("copying a pipe")?;
        let pass = |mut from: PipeReader, mut to: PipeWriter| {
            move || {
                let mut byte = [0];
                while from.read_exact(&mut byte).is_ok() && byte[0] == GO {
                    if to.write_all(&byte).is_err() {
                        return;
                    }
                }
                let _ = to.write_all(&[END]);
            }
        };
        let threads = vec![
            on_the_cpu(pass(from_second, to_second))?,
            on_the_cpu(pass(from_first, to_first))?,
        ];
        let mut pair = Self {
            first: Some(first),
            threads,
        };
        pair.send(GO);
        Ok(pair)
    }

    fn send(&mut self, byte: u8) {
        if let Some(first) = &mut self.first {
            // Nobody reads any more: they have ended.
            let _ = first.write_all(&[byte]);
        }
    }
}

const GO: u8 = 1;
const END: u8 = 0;

impl Drop for Pipes {
    fn drop(&mut self) {
        self.send(END);
        self.first = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Futexes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Futexes {
    fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let second_is_next = Arc::new(AtomicBool::new(true));
        // Each waits until it is its turn, and wakes the other.
        let pass = |is_second: bool, other: mpsc::Receiver<Thread>| {
            let (stop, next) = (Arc::clone(&stop), Arc::clone(&second_is_next));
            move || {
                let Ok(other) = other.recv() else { return };
                while !stop.load(Ordering::Relaxed) {
                    if next.load(Ordering::Acquire) == is_second {
                        next.store(!is_second, Ordering::Release);
                        other.unpark();
                    } else {
                        std::thread::park();
                    }
                }
            }
        };
        let ((to_first, for_first), (to_second, for_second)) = (mpsc::channel(), mpsc::channel());
        let first = on_the_cpu(pass(false, for_first))?;
        let second = on_the_cpu(pass(true, for_second))?;
        // They are there, so that these arrive.
        let _ = to_first.send(second.thread().clone());
        let _ = to_second.send(first.thread().clone());
        Ok(Self {
            stop,
            threads: vec![first, second],
        })
    }
}

impl Drop for Futexes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Each process of a chain computes a bit, starts the next and ends.
struct Chain {
    first: Child,
}

/// The chain ends where this is.
const STOP: &str = "/tmp/chain-ends";

impl Chain {
    fn start() -> Result<Self> {
        let _ = fs::remove_file(STOP);
        let link = format!(
            "link() {{ n=0; while [ $n -lt 100 ]; do n=$((n+1)); done; [ -e {STOP} ] || link & }}; link"
        );
        let cpu = CPU.to_string();
        let first = Command::new("taskset")
            .args(["-c", &cpu, "sh", "-c", &link])
            .stdin(Stdio::null())
            .spawn()
            .context("starting a chain of processes")?;
        Ok(Self { first })
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if let Err(error) = File::create(STOP) {
            eprintln!("{STOP}: {error}");
        }
        let _ = self.first.wait();
        std::thread::sleep(SETTLED);
    }
}
