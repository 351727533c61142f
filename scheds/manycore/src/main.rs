//! `manycore`: the operator's tool. Each subcommand is a module of its own.

mod bpf_skel;
mod observe;
mod policy;
mod stats;
mod topo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// See what a scheduler does on this machine, whichever scheduler it is.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    Observe(observe::ObserveArgs),
    Stats(stats::StatsArgs),
    Topo(topo::TopoArgs),
    Policy(policy::PolicyArgs),
}

fn main() -> ExitCode {
    let config = simplelog::ConfigBuilder::new()
        .set_time_level(simplelog::LevelFilter::Off)
        // Warns of missing frequency information in every VM; nothing here uses it.
        .add_filter_ignore_str("scx_utils::topology")
        .build();
    // A second logger can't have been set before.
    let _ = simplelog::TermLogger::init(
        simplelog::LevelFilter::Warn,
        config,
        simplelog::TerminalMode::Stderr,
        simplelog::ColorChoice::Auto,
    );
    let done = match Cli::parse().command {
        Cmd::Observe(args) => observe::run(&args),
        Cmd::Stats(args) => stats::run(&args),
        Cmd::Topo(args) => topo::run(&args),
        Cmd::Policy(args) => policy::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("manycore: {error:#}");
        ExitCode::FAILURE
    })
}
