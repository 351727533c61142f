//! `manycore stats`: the statistics of whatever scheduler serves them on the socket of `scx_stats`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use control_plane::stats::{Printer, Schema, once};

/// Print the statistics of the scheduler that runs, also of upstream's that serve them
///
/// Ours are totals since the daemon was started, so everybody who asks sees the same;
/// upstream's are differences since the same client asked before. Only root and the group of
/// the socket's directory may ask.
///
/// Examples:
///   manycore stats
///   manycore stats --watch 1  each second, and how much each figure grows
///   manycore stats --json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct StatsArgs {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,

    /// Print again every SECONDS, and how much each figure grows
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    watch: Option<Duration>,

    /// Print the page of the documentation that describes the statistics of these daemons
    #[arg(long, value_name = "DAEMON", num_args = 1.., conflicts_with_all = ["json", "watch"])]
    docs: Vec<PathBuf>,
}

/// Runs `manycore stats`.
///
/// # Errors
/// If no scheduler serves statistics, or this user may not read them.
pub(crate) fn run(args: &StatsArgs) -> Result<ExitCode> {
    if !args.docs.is_empty() {
        print!("{}", page(&args.docs)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut printer = Printer::new("totals", args.json);
    loop {
        if let Err(err) = printer.print(Instant::now(), once()?) {
            // `manycore stats --watch 1 | head`
            ensure!(err.kind() == std::io::ErrorKind::BrokenPipe, err);
            return Ok(ExitCode::SUCCESS);
        }
        match args.watch {
            Some(interval) => thread::sleep(interval),
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// `docs/stats.md`: what is the same for all, then a table for each daemon.
fn page(daemons: &[PathBuf]) -> Result<String> {
    let mut text = include_str!("stats_page.md").to_string();
    for daemon in daemons {
        let shown = daemon.display();
        let output = Command::new(daemon)
            .args(["--help-stats", "--json"])
            .output()
            .with_context(|| format!("starting {shown}"))?;
        ensure!(
            output.status.success(),
            "{shown} --help-stats --json ended with {}",
            output.status
        );
        let schema = Schema::parse(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("what {shown} says"))?;
        let name = daemon.file_name().unwrap_or(daemon.as_os_str()).display();
        text += &format!("\n## {name}\n\n{}", schema.markdown());
    }
    Ok(text)
}

/// A number of seconds, 0.1 to 86400.
fn seconds(word: &str) -> Result<Duration, String> {
    match word.parse::<f64>() {
        Ok(n) if (0.1..=86400.0).contains(&n) => Ok(Duration::from_secs_f64(n)),
        _ => Err("give a number of seconds from 0.1 to 86400".to_string()),
    }
}
