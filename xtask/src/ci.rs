//! `cargo xtask ci`: formatting and lints, then the tests, by the very command that the README gives.

use crate::cache::Cache;
use crate::failure::Exit;
use crate::setup;
use crate::test::{self, cargo};
use anyhow::{Context, Result};
use std::process::Command;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> Result<()> {
    let started = Instant::now();
    let lap = |what: &str| eprintln!("ci: {what} at {} s", started.elapsed().as_secs());
    cargo(&["fmt", "--all", "--check"])?;
    lap("formatted");
    // What clippy checked is beside what the tests run.
    test::need_space(test::BUILD_MIB + test::CHECK_MIB)?;
    setup::ensure(&Cache::open()?, &test::kernels()?, true)?;
    lap("set up");
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    lap("linted");
    let this = std::env::current_exe().context("finding this program's own path")?;
    let status = Command::new(this)
        // One guest at a time: whoever runs this may have more to do than this.
        .args(["test", "--yes", "--guests", "1"])
        .status()
        .context("running `cargo xtask test`")?;
    lap("tested");
    if status.success() {
        Ok(())
    } else {
        Err(Exit::with(1, "`cargo xtask test` failed").into())
    }
}
