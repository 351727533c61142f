//! What the guest tells the host: one line of JSON per event on its standard output.

use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A case starts; it is over before the next one does.
    Start {
        case: String,
    },
    End(Outcome),
    /// Nothing else is new, but the guest's programs run. One with the real clock says so every [`ALIVE_EVERY`].
    Alive,
}

pub const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// How a case went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub case: String,
    pub ok: bool,
    /// What was measured, or what is wrong and what was expected.
    pub message: String,
    /// What the case, the scheduler and the kernel said meanwhile; empty if all is well.
    pub output: String,
    pub seconds: f64,
}

impl Event {
    /// Reads a line; `None` if it is something else that the guest printed.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// The line, without its end.
    pub fn line(&self) -> String {
        // A struct of strings and numbers has no reason to fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_way() {
        let end = Event::End(Outcome {
            case: "scx_rr/loads".into(),
            ok: false,
            message: "two\nlines, \"quoted\"".into(),
            output: String::new(),
            seconds: 1.5,
        });
        assert!(!end.line().contains('\n'));
        assert_eq!(Event::parse(&end.line()), Some(end));
        assert_eq!(Event::parse(&Event::Alive.line()), Some(Event::Alive));
        assert_eq!(Event::parse("hello"), None);
    }
}
