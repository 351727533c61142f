//! A QEMU TCG plugin that gives every vCPU its own virtual clock, so that N busy vCPUs advance together as N real
//! CPUs do, however few cores the host has.
//!
//! `-accel tcg,thread=single -icount shift=0,sleep=off` makes guest time a count of instructions, and runs the vCPUs
//! one after the other. But it is one count, so that N busy vCPUs look like one CPU that is N times slower. The plugin
//! keeps a clock for each, and lets nobody be more than a quantum ahead. `docs/method.md` says what may be concluded
//! from it.
//!
//! * [`clocks`]: who may run, from which time, and for how long. No QEMU in it.
//! * [`options`]: the arguments.
//! * `plugin`: the hooks into QEMU. `symbols`, `probe` and `patch`: how they get there, and why it is safe to trust
//!   them.

pub mod clocks;
pub mod heap;
pub mod options;
mod patch;
mod plugin;
mod probe;
pub mod profile;
pub mod stats;
mod symbols;

/// Versions of QEMU that this was tried with.
pub const KNOWN_VERSIONS: [[i64; 3]; 2] = [[10, 0, 2], [10, 0, 13]];

/// Why the plugin doesn't run. It never measures with a QEMU that it doesn't fully understand.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A function or variable of QEMU's is not exported.
    #[error("this QEMU does not export {0}")]
    Symbol(String),
    /// Something inside of QEMU is not as expected.
    #[error("this QEMU is built differently: {0}")]
    Layout(String),
    /// A version that nobody has tried.
    #[error(
        "QEMU {0} is not a version that this clock is known to be right with ({known}); \
         docs/method.md says how to add it",
        known = known_versions()
    )]
    Version(String),
    /// QEMU was started with options that leave guest time to the host.
    #[error("start QEMU with -accel tcg,thread=single -icount shift=0,sleep=off: {0}")]
    Setup(&'static str),
    /// The code of QEMU could not be changed.
    #[error("cannot write to QEMU's code: {0}")]
    Patch(#[source] std::io::Error),
    /// A wrong argument.
    #[error("argument {0}: {1}")]
    Argument(String, &'static str),
}

fn known_versions() -> String {
    KNOWN_VERSIONS
        .map(|[major, minor, micro]| format!("{major}.{minor}.{micro}"))
        .join(", ")
}
