//! Logs go to stderr, so that stdout is left to data; by way of a thread of their own, as whoever reads stderr, a pager or
//! a stopped terminal for example, may stop reading for as long as it likes.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use libbpf_rs::{PrintLevel, set_print};
use log::{Level, Log, Metadata, Record};
use simplelog::{ColorChoice, ConfigBuilder, LevelFilter, LevelPadding, TermLogger, TerminalMode};

/// How many messages may wait to be printed; more are left out.
const ROOM: usize = 512;
/// How long to wait for them at the end.
const LAST: Duration = Duration::from_millis(500);
/// All memory of some daemons is locked, so a thread costs what its stack may grow to.
const STACK: usize = 128 * 1024;

/// Starts logging: warnings and progress; with one `-v` also what libbpf says and the details, with two everything.
/// Does nothing the second time.
pub fn init(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let config = ConfigBuilder::new()
        .set_time_level(LevelFilter::Debug)
        .set_location_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Debug)
        .set_thread_level(LevelFilter::Off)
        .set_level_padding(LevelPadding::Right)
        // Warns of missing frequency information in every VM; no scheduler here uses it.
        .add_filter_ignore_str("scx_utils::topology")
        .build();
    let color = if std::io::stderr().is_terminal() {
        ColorChoice::Auto
    } else {
        ColorChoice::Never
    };
    let terminal = TermLogger::new(level, config, TerminalMode::Stderr, color);
    let Some(apart) = Apart::start(terminal) else {
        return;
    };
    if log::set_boxed_logger(Box::new(apart)).is_ok() {
        log::set_max_level(level);
        set_print(Some((PrintLevel::Debug, libbpf)));
    }
}

/// Waits until what was logged so far is printed, but not for long.
pub(crate) fn flush() {
    log::logger().flush();
}

/// A logger that never waits for the one that it hands everything to.
struct Apart {
    queue: Sender<Message>,
    level: LevelFilter,
    lost: &'static AtomicU64,
}

enum Message {
    Line {
        level: Level,
        target: String,
        text: String,
    },
    /// Tells when all before it are printed.
    Flush(Sender<()>),
}

impl Apart {
    /// `None` if the kernel refuses a thread.
    fn start<L: Log + simplelog::SharedLogger + ?Sized + 'static>(printer: Box<L>) -> Option<Self> {
        let (queue, messages) = bounded(ROOM);
        let level = printer.level();
        // One for the life of the process.
        let lost: &'static AtomicU64 = Box::leak(Box::default());
        thread::Builder::new()
            .name("log".to_string())
            .stack_size(STACK)
            .spawn(move || print(&messages, printer.as_ref(), lost))
            .ok()?;
        Some(Self { queue, level, lost })
    }
}

impl Log for Apart {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = Message::Line {
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
        };
        if self.queue.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let deadline = Instant::now() + LAST;
        let (done, is_done) = bounded(1);
        if self
            .queue
            .send_deadline(Message::Flush(done), deadline)
            .is_ok()
        {
            let _ = is_done.recv_deadline(deadline);
        }
    }
}

fn print(messages: &Receiver<Message>, printer: &(impl Log + ?Sized), lost: &AtomicU64) {
    let tell = |level, target: &str, text: std::fmt::Arguments<'_>| {
        printer.log(
            &Record::builder()
                .level(level)
                .target(target)
                .args(text)
                .build(),
        );
    };
    for message in messages {
        match message {
            Message::Line {
                level,
                target,
                text,
            } => tell(level, &target, format_args!("{text}")),
            Message::Flush(done) => {
                printer.flush();
                let _ = done.try_send(());
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tell(
                Level::Warn,
                module_path!(),
                format_args!("{lost} messages are left out here, as stderr wasn't read"),
            );
        }
    }
}

/// What libbpf tells a user who did not ask is hardly ever of use, so its information counts as detail.
fn libbpf(level: PrintLevel, message: String) {
    let message = message.trim_end();
    // The operations are attached apart from the skeleton, for the sake of the link that this gives.
    let expected = message.contains("skeleton link is uninitialized");
    match level {
        PrintLevel::Warn if expected => log::debug!("{message}"),
        PrintLevel::Warn => log::warn!("{message}"),
        PrintLevel::Info => log::debug!("{message}"),
        PrintLevel::Debug => log::trace!("{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simplelog::{Config, WriteLogger};
    use std::io::{PipeReader, Read, pipe};

    /// One that prints into a pipe.
    fn apart() -> (PipeReader, Apart) {
        let (reader, writer) = pipe().unwrap();
        let printer = WriteLogger::new(LevelFilter::Info, Config::default(), writer);
        (reader, Apart::start(printer).unwrap())
    }

    fn say(logger: &impl Log, text: &str) {
        logger.log(
            &Record::builder()
                .level(Level::Info)
                .args(format_args!("{text}"))
                .build(),
        );
    }

    #[test]
    fn what_was_logged_is_printed_when_it_is_flushed() {
        let (mut reader, apart) = apart();
        say(&apart, "a word");
        apart.flush();
        let mut text = [0; 256];
        let len = reader.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..len]).into_owned();
        assert!(text.ends_with("[INFO] a word\n"), "{text}");
    }

    /// A pipe takes 64 KiB; whoever logs goes on all the same, and hears later that something is missing.
    #[test]
    fn a_reader_that_stops_holds_nobody_up() {
        let (mut reader, apart) = apart();
        let line = "x".repeat(1000);
        let started = Instant::now();
        for _ in 0..2 * ROOM {
            say(&apart, &line);
        }
        apart.flush();
        assert!(started.elapsed() < 20 * LAST);
        let reading = thread::spawn(move || {
            let mut all = String::new();
            reader.read_to_string(&mut all).unwrap();
            all
        });
        // Its thread ends when it is gone, and closes the pipe.
        drop(apart);
        let all = reading.join().unwrap();
        let printed = all.lines().filter(|text| text.ends_with(&line)).count();
        assert!((ROOM..2 * ROOM).contains(&printed), "{printed} lines");
        assert!(all.contains("messages are left out here"));
    }
}
