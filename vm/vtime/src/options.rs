//! The plugin's arguments, as in `-plugin libvtime.so,quantum_ns=2000,stats=/tmp/clock.json`.

use crate::Refusal;
use std::path::PathBuf;

/// How the clock is to behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `quantum_ns`: how far the clocks of two busy vCPUs may be apart, ns, 100 to 10^9.
    pub quantum_ns: i64,
    /// `stats`: the file that gets a JSON line at exit.
    pub stats: Option<PathBuf>,
    /// `profile`: the file that gets the number of executions of each block of guest code at exit.
    pub profile: Option<PathBuf>,
    /// `untested=on`: try a version of QEMU that is not known. All probes still have to succeed.
    pub untested: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            quantum_ns: 10_000,
            stats: None,
            profile: None,
            untested: false,
        }
    }
}

impl Options {
    /// Parses `name=value` arguments.
    ///
    /// # Errors
    /// [`Refusal::Argument`] names the first one that is unknown or out of range.
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for argument in arguments {
            let refuse = |why| Err(Refusal::Argument(argument.into(), why));
            match argument.split_once('=') {
                Some(("quantum_ns", value)) => match value.parse() {
                    Ok(ns @ 100..=1_000_000_000) => options.quantum_ns = ns,
                    _ => return refuse("expected 100 to 1000000000"),
                },
                Some(("stats", path)) if !path.is_empty() => options.stats = Some(path.into()),
                Some(("profile", path)) if !path.is_empty() => options.profile = Some(path.into()),
                Some(("untested", value)) => match value {
                    "on" => options.untested = true,
                    "off" => options.untested = false,
                    _ => return refuse("expected on or off"),
                },
                _ => {
                    return refuse(
                        "expected quantum_ns=N, stats=PATH, profile=PATH or untested=on",
                    );
                }
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_parsed() {
        assert_eq!(Options::parse([]).unwrap(), Options::default());
        let options = Options::parse(["quantum_ns=2000", "stats=/tmp/a=b", "untested=on"]).unwrap();
        assert_eq!(
            options,
            Options {
                quantum_ns: 2000,
                stats: Some("/tmp/a=b".into()),
                profile: None,
                untested: true
            }
        );
    }

    #[test]
    fn wrong_arguments_are_named() {
        for wrong in [
            "quantum_ns=99",
            "quantum_ns=x",
            "quantum_ns",
            "quantum=1000",
            "stats=",
            "untested=1",
            "",
        ] {
            let message = Options::parse([wrong]).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("argument {wrong}: expected")),
                "{message}"
            );
        }
    }
}
