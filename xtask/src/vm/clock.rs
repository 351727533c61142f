//! The guest's clock: real time, or virtual time, in which each of its CPUs advances by the instructions that it
//! executes (`vm/vtime`), so that N busy ones advance together however few this machine has.

use super::run::Accel;
use crate::failure::Usage;
use crate::workspace;
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use std::path::Path;

/// Measured on t8: latencies are the same with half of it, and costs grow below.
const DEFAULT_QUANTUM_US: f64 = 2.0;
/// The plugin's limits.
const QUANTUM_US: std::ops::RangeInclusive<f64> = 0.1..=1_000_000.0;
pub const PLUGIN: &str = "libvtime.so";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// The host's
    Real,
    /// One that counts each CPU's instructions: comparisons hold on any machine
    Virtual,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ClockArgs {
    /// The guest's clock: that of this machine, or one that counts the instructions of each of the guest's CPUs, so
    /// that they advance together however few CPUs this machine has (implies --accel tcg; docs/method.md)
    #[arg(long, value_enum, value_name = "CLOCK")]
    pub clock: Option<Choice>,
    /// By how much the clocks of two busy CPUs of the guest may differ, microseconds, from 0.1 [default: 2]
    #[arg(long, value_name = "Q", value_parser = parse_quantum)]
    pub quantum_us: Option<f64>,
}

fn parse_quantum(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|us| QUANTUM_US.contains(us))
        .ok_or_else(|| {
            format!(
                "expected microseconds from {} to {}",
                QUANTUM_US.start(),
                QUANTUM_US.end()
            )
        })
}

impl ClockArgs {
    /// The clock that was asked for, else this one.
    pub fn or(&self, default: Choice) -> Result<Clock> {
        match self.clock.unwrap_or(default) {
            Choice::Real if self.quantum_us.is_some() => {
                Err(Usage("--quantum-us is for --clock virtual".into()).into())
            }
            Choice::Real => Ok(Clock::Real),
            Choice::Virtual => Ok(Clock::Virtual {
                quantum_ns: (self.quantum_us.unwrap_or(DEFAULT_QUANTUM_US) * 1000.0).round() as u64,
            }),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Clock {
    Real,
    Virtual { quantum_ns: u64 },
}

impl Clock {
    /// Builds what the clock needs.
    pub fn ensure(self) -> Result<()> {
        match self {
            Self::Real => Ok(()),
            Self::Virtual { .. } => workspace::build("vtime", &["--lib"]),
        }
    }

    /// For reports: what a figure's unit of time is.
    pub fn describe(self, accel: Accel) -> String {
        match self {
            Self::Real => format!("real, {}", accel.describe()),
            Self::Virtual { quantum_ns } => format!(
                "virtual: 1 ns is 1 instruction of a CPU, and busy CPUs are at most {} us apart",
                quantum_ns as f64 / 1000.0
            ),
        }
    }

    /// QEMU's options for it, with the plugin in that folder. That writes its statistics when QEMU ends, which it does when
    /// `monitor::quit` asks for it.
    pub fn qemu_options(self, programs: &Path, stats: &Path) -> Vec<String> {
        let Self::Virtual { quantum_ns } = self else {
            return Vec::new();
        };
        let plugin = programs.join(PLUGIN);
        [
            // What a guest draws from RDRAND: the same each time.
            "-seed",
            "1",
            "-icount",
            "shift=0,sleep=off",
            // Any date: the same for each run, which the host's is not.
            "-rtc",
            "base=2026-01-01T00:00:00,clock=vm",
            "-plugin",
            &format!(
                "{},quantum_ns={quantum_ns},stats={}{}",
                plugin.display(),
                stats.display(),
                profile_option()
            ),
        ]
        .map(String::from)
        .to_vec()
    }
}

/// The file that gets the number of executions of each block of guest code between two `xtask in-guest mark`, if the
/// user names one.
const PROFILE_VARIABLE: &str = "MANYCORE_PROFILE";

fn profile_option() -> String {
    std::env::var(PROFILE_VARIABLE)
        .map_or_else(|_| String::new(), |path| format!(",profile={path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(clock: Option<Choice>, quantum_us: Option<f64>) -> ClockArgs {
        ClockArgs { clock, quantum_us }
    }

    #[test]
    fn a_quantum_needs_a_virtual_clock() {
        let error = args(None, Some(1.0)).or(Choice::Real).unwrap_err();
        assert!(error.is::<Usage>());
        assert_eq!(
            args(Some(Choice::Virtual), Some(0.5))
                .or(Choice::Real)
                .unwrap(),
            Clock::Virtual { quantum_ns: 500 }
        );
        assert_eq!(args(None, None).or(Choice::Real).unwrap(), Clock::Real);
    }

    #[test]
    fn a_quantum_has_limits() {
        assert_eq!(parse_quantum("2"), Ok(2.0));
        for wrong in ["0", "0.05", "-1", "x", "nan", "inf"] {
            assert!(parse_quantum(wrong).is_err(), "{wrong}");
        }
    }
}
