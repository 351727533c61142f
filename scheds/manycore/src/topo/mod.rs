//! `manycore topo`: what the machine is made of, as the kernel says or, with `--probe`, as it turns out to be.

mod draw;
mod probe;
mod svg;
mod view;

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use control_plane::Topology;
use control_plane::topology::sched_domains;

use view::View;

/// Where standard output is no terminal and `$COLUMNS` doesn't say.
const WIDTH: usize = 100;

/// Draw the machine: nodes, sockets, caches, cores and threads; or find out what the kernel doesn't know of it.
///
/// Needs no root; but the kernel shows its own scheduling domains to root only, if at all.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(crate) struct TopoArgs {
    /// Print JSON; with --probe, the latencies and what was found in them
    #[arg(long)]
    json: bool,

    /// Write the picture to this file, as SVG
    #[arg(long, value_name = "FILE", conflicts_with = "probe")]
    svg: Option<PathBuf>,

    /// Take caches and nodes from this file instead of the kernel
    #[arg(long, value_name = "FILE", conflicts_with = "probe")]
    topology: Option<PathBuf>,

    /// Measure core-to-core latencies and find the groups of CPUs that they show
    #[arg(long)]
    probe: bool,

    /// Write the topology file here instead of to standard output
    #[arg(short, long, value_name = "FILE", requires = "probe")]
    out: Option<PathBuf>,
}

const HELP: &str = "\
Examples:
  manycore topo                           draw this machine
  manycore topo --svg machine.svg --json  the same as a picture and for programs
  manycore topo --probe --out hidden.toml what does the host hide from this guest?
  manycore topo --topology hidden.toml    draw what the file says
  sudo scx_rr --topology hidden.toml      schedule by it

--probe keeps two CPUs busy at a time for some milliseconds per pair of CPUs, minutes in all on a large machine (it says
how long). Run it on a quiet machine.

Exit codes: 0 done, 1 failed or (with --probe) the measurement can't be trusted here, 2 wrong use.";

/// Runs `manycore topo`.
///
/// # Errors
/// If the topology can't be read or the output can't be written.
pub(crate) fn run(args: &TopoArgs) -> Result<ExitCode> {
    if args.probe {
        return probe::run(args.out.as_deref(), args.json);
    }
    let topology = Topology::read_with(args.topology.as_deref())?;
    let view = View::new(&topology, &sched_domains::read());
    if let Some(path) = &args.svg {
        fs::write(path, svg::svg(&view)).with_context(|| format!("writing {}", path.display()))?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &view)?;
        writeln!(out)?;
    } else if args.svg.is_none() {
        out.write_all(draw::draw(&view, width()).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How many columns there are.
fn width() -> usize {
    let stdout = std::io::stdout();
    if stdout.is_terminal()
        && let Ok(size) = rustix::termios::tcgetwinsize(&stdout)
        && size.ws_col > 0
    {
        return size.ws_col.into();
    }
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .unwrap_or(WIDTH)
}
