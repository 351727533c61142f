//! Progress for people: a spinner with the time on a terminal, plain lines elsewhere. All of it goes to stderr.

use anyhow::Result;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// An empty table as all commands print them: columns set apart by spaces, no frame.
pub fn table<const N: usize>(headers: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headers);
    table
}

/// A step of longer work, from its start to its end.
#[derive(Debug)]
pub struct Step {
    label: String,
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Step {
    pub fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner().with_message(label.clone());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            eprintln!("  ... {label}");
            None
        };
        Self {
            label,
            bar,
            started: Instant::now(),
        }
    }

    /// What is being done right now, shown on a terminal only.
    pub fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} {text}", self.label));
        }
    }

    fn finish(self, mark: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        eprintln!("  {mark} {} ({seconds:.0} s)", self.label);
    }
}

/// Runs one step of longer work and says how it ended and how long it took.
pub fn step<T>(label: impl Into<String>, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let step = Step::start(label);
    let result = work(&step);
    step.finish(if result.is_ok() { "ok " } else { "FAILED" });
    result
}

/// Asks a yes-or-no question on the terminal. Without a terminal there is nobody to say yes.
pub fn confirm(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
