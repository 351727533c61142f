//! How far a plan is, and how long the rest will take: a bar on a terminal, lines elsewhere.

use super::event::Event;
use super::plan::Plan;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Progress {
    /// Tells this guest from others that run at the same time; may be empty.
    label: String,
    bar: ProgressBar,
    lines: bool,
    total: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    done: u64,
    /// When the guest came up: the boot says nothing about the rest.
    up: Option<Instant>,
}

impl Progress {
    pub fn new(plan: &Plan, label: &str, all: &MultiProgress) -> Self {
        // A load counts as much as a run: in an emulated guest, verifying and compiling its programs takes about as long.
        let loads = plan.turns.iter().filter(|turn| plan.loads(turn)).count();
        let total = (plan.runs() + loads) as u64;
        let lines = !std::io::stderr().is_terminal();
        let bar = if lines {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        } else {
            all.add(ProgressBar::new(total))
        };
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} [{elapsed}] {wide_bar} {pos}/{len} {msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        let progress = Self {
            label: if label.is_empty() {
                String::new()
            } else {
                format!("{label}: ")
            },
            bar,
            lines,
            total,
            state: Mutex::default(),
        };
        progress.say("booting the guest", None);
        progress
    }

    pub fn note(&self, plan: &Plan, event: &Event) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        let left = |state: &State| {
            let per_step = state
                .up?
                .elapsed()
                .checked_div(u32::try_from(state.done).ok()?)?;
            per_step.checked_mul(u32::try_from(self.total.saturating_sub(state.done)).ok()?)
        };
        match event {
            Event::Machine(_) => state.up = Some(Instant::now()),
            Event::Loaded { ops, .. } if ops.is_empty() => {}
            Event::Loaded { .. } | Event::Done(_) => state.done += 1,
            Event::Started { run } => {
                if let Some((turn, run)) = plan.run(*run) {
                    let title = plan.scheduler(&turn.scheduler).map_or("?", |s| &s.title);
                    let text = format!("{title}: {}", run.workload);
                    self.say(&text, left(&state));
                }
            }
            Event::NotLoaded { scheduler, why } | Event::Ejected { scheduler, why } => {
                self.bar.println(format!("  {scheduler}: {why}"));
                if self.lines {
                    eprintln!("  {scheduler}: {why}");
                }
            }
            Event::Unloaded { .. } | Event::End => {}
        }
        self.bar.set_position(state.done);
    }

    fn say(&self, what: &str, left: Option<Duration>) {
        let left = left.map_or(String::new(), |left| {
            format!(", about {} left", rough(left.as_secs()))
        });
        let label = &self.label;
        self.bar.set_message(format!("{label}{what}{left}"));
        if self.lines {
            eprintln!("  ... {label}{what}{left}");
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A time as people say it.
fn rough(seconds: u64) -> String {
    if seconds < 90 {
        format!("{seconds} s")
    } else {
        format!("{} min", (seconds + 30) / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rough() {
        assert_eq!(rough(5), "5 s");
        assert_eq!(rough(89), "89 s");
        assert_eq!(rough(90), "2 min");
        assert_eq!(rough(3600), "60 min");
    }
}
