//! `cargo xtask`: the developer's tool. It prepares a machine, fetches or builds kernels, boots virtual machines and
//! runs the demo and the tests. It needs a Rust toolchain only, because it is what installs everything else.

mod apt;
mod bench;
mod cache;
mod ci;
mod cmd;
mod demo;
mod doctor;
mod failure;
mod host;
mod interrupt;
mod kernel;
mod qemu;
mod reliability;
mod results;
mod setup;
mod test;
mod tools;
mod ui;
mod vm;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Developer's tool of manycore: setup, kernels, virtual machines, demo and tests.
///
/// Start with `cargo xtask demo`: it prepares everything that is missing, boots a virtual machine and compares
/// scx_rr with EEVDF in it. All that is downloaded or built lies in $MANYCORE_CACHE (default:
/// $XDG_CACHE_HOME/manycore, else ~/.cache/manycore).
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install or build everything that is missing: packages, virtme-ng, QEMU, virtiofsd, a kernel
    Setup(setup::Args),
    /// Show what is there, what is missing and how to get it
    Doctor(doctor::Args),
    /// List, fetch and build the guests' kernels
    Kernel(kernel::Args),
    /// Boot a virtual machine
    Vm(vm::Args),
    /// Boot a VM, run workloads under EEVDF and then under scx_rr, and print the two side by side
    Demo(demo::Args),
    /// Measure schedulers against EEVDF: a table, results.json and report.html
    Bench(bench::Args),
    /// Build everything and run all tests, those that boot VMs included
    Test(test::Args),
    /// Write the page about faults from the results of tests
    Reliability(reliability::Args),
    /// What continuous integration runs: formatting, lints, then `cargo xtask test`
    Ci(ci::Args),
    #[command(subcommand, hide = true)]
    InGuest(bench::GuestCommand),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Setup(args) => setup::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Kernel(args) => kernel::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Reliability(args) => reliability::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::InGuest(command) => bench::run_in_guest(&command),
    };
    failure::exit_code(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
