//! `cargo xtask test`: everything built, every test run, those that boot VMs included.

use crate::cache::Cache;
use crate::failure::Exit;
use crate::workspace;
use crate::{cmd, kernel, setup};
use anyhow::{Context, Result};
use std::process::Command;

/// The kernels that the VM tests boot, beside the default one: the oldest that the schedulers support.
const OLDEST_KERNEL: &str = "6.12";

/// Build everything and run all tests, those that boot VMs included.
///
/// What is missing is installed, fetched or built first: on a machine with a Rust toolchain only, that takes about
/// half an hour on 2 cores, a kernel's build being the longest part; afterwards it is all in the cache.
///
/// Examples:
///   cargo xtask test
///   cargo xtask test -- 6.12/t8           only tests whose name contains this
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
    /// Passed on to the tests: a filter, --nocapture, ...
    #[arg(last = true)]
    pass: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    setup::ensure(&cache, &kernels()?, args.yes)?;
    // `cargo test` builds a package's programs for that package's tests only; the guests run those of all.
    cargo(&["build", "--workspace", "--bins"])?;
    let mut test = vec!["test", "--workspace"];
    if !args.pass.is_empty() {
        test.push("--");
        test.extend(args.pass.iter().map(String::as_str));
    }
    cargo(&test)
}

pub fn kernels() -> Result<Vec<String>> {
    Ok(vec![
        kernel::Catalogue::load()?.default,
        OLDEST_KERNEL.into(),
    ])
}

/// Runs cargo in the checkout, its output passed on. Its failure was said by itself.
pub fn cargo(args: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(args).current_dir(workspace::root());
    eprintln!("running `{}`", cmd::shown(&command));
    let status = command.status().context("running cargo")?;
    if status.success() {
        Ok(())
    } else {
        Err(Exit::with(1, format!("`cargo {}` failed", args.join(" "))).into())
    }
}
