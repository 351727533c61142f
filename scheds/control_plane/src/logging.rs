//! Logs go to stderr, so that stdout is left to data.

use std::io::IsTerminal;

use libbpf_rs::{PrintLevel, set_print};
use simplelog::{ColorChoice, ConfigBuilder, LevelFilter, LevelPadding, TermLogger, TerminalMode};

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
    if TermLogger::init(level, config, TerminalMode::Stderr, color).is_ok() {
        set_print(Some((PrintLevel::Debug, libbpf)));
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
