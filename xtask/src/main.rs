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
mod markdown;
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
    Demo(demo::Args),
    Bench(bench::Args),
    Test(test::Args),
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

    /// A variant's own documentation would hide that of its arguments, which has examples.
    #[test]
    fn the_help_of_what_boots_guests_has_examples() {
        let mut cli = Cli::command();
        for path in ["vm run", "demo", "bench", "test", "reliability"] {
            let command = path
                .split(' ')
                .try_fold(&mut cli, |command, name| command.find_subcommand_mut(name));
            let help = command.unwrap().render_long_help().to_string();
            assert!(help.contains("Example"), "{path}: {help}");
            let wide = help.lines().find(|line| line.len() > 100);
            assert_eq!(wide, None, "{path}");
        }
    }
}
