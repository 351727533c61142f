//! `cargo xtask test`: everything built, every test run, those that boot VMs included.

use crate::cache::Cache;
use crate::failure::Exit;
use crate::results;
use crate::workspace;
use crate::{cmd, kernel, setup};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// The kernels that the VM tests boot, beside the default one: the oldest that the schedulers support.
const OLDEST_KERNEL: &str = "6.12";
/// And with `--full` the one on which 256 emulated CPUs get anywhere.
const SLOW_TICKS_KERNEL: &str = "6.12-hz100";

/// Room for a first build of all programs and tests, and for what clippy keeps beside it (1460 MiB when measured).
pub const BUILD_MIB: u64 = 5000;
pub const CHECK_MIB: u64 = 2000;

/// Build everything and run all tests, those that boot VMs included
///
/// What is missing is installed, fetched or built first: on a machine with a Rust toolchain
/// only, that takes about half an hour on 2 cores, a kernel's build being the longest part;
/// afterwards it is all in the cache.
///
/// Examples:
///   cargo xtask test
///   cargo xtask test -- 6.12/t8           only tests whose name contains this
///   cargo xtask test --guests 1           one guest at a time
///   cargo xtask test --full               faults and up to 256 CPUs too: hours; can be continued
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
    /// Run the full set but for what has passed since anything other than pages changed, here or
    /// as docs/reliability.jsonl has it, and show a table of all cases
    #[arg(long)]
    full: bool,
    /// With --full: run everything again
    #[arg(long, requires = "full")]
    fresh: bool,
    /// Guests that run at a time, each on its share of the host: 2 if not given, or 1 on a single CPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    guests: Option<u8>,
    /// Passed on to the tests: a filter, --nocapture, ...
    #[arg(last = true)]
    pass: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    need_space(BUILD_MIB)?;
    let mut kernels = kernels()?;
    if args.full {
        kernels.push(SLOW_TICKS_KERNEL.into());
    }
    setup::ensure(&cache, &kernels, args.yes)?;
    // `cargo test` builds a package's programs for that package's tests only; the guests run those of all. With the tests,
    // which it finds built then: all at once keeps the host's CPUs busy.
    cargo(&["build", "--workspace", "--bins", "--tests"])?;
    // All that is wrong is to be seen at once: the guests take the time, not the rest.
    let mut test = vec!["test", "--workspace", "--no-fail-fast"];
    if args.full || !args.pass.is_empty() {
        test.push("--");
    }
    if args.full {
        test.push("--include-ignored");
    }
    test.extend(args.pass.iter().map(String::as_str));
    let mut envs = Vec::new();
    if let Some(guests) = args.guests {
        envs.push(("MANYCORE_LANES", guests.to_string().into()));
    }
    if !args.full {
        let scratch = tempfile::tempdir().context("making a folder for results")?;
        let dir = named_folder().unwrap_or_else(|| scratch.path().to_path_buf());
        envs.push(("MANYCORE_RESULTS", dir.clone().into_os_string()));
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let tested = cargo_with(&test, &envs);
        if tested.is_err() {
            say_failed(&results::read(&dir)?);
        }
        return tested;
    }
    let (dir, keep) = keeping(&cache, args.fresh)?;
    envs.extend(keep);
    let tested = cargo_with(&test, &envs);
    // Also if nothing at all was run.
    let records = results::read(&dir)?;
    println!("{}", results::cells(&records));
    say_failed(&records);
    println!("results are in {}", dir.display());
    tested
}

/// What failed in guests and why, once more at the very end: what was said of it is far above by then.
fn say_failed(records: &[results::Record]) {
    for record in results::failed(records) {
        eprintln!("failed: {}: {}", record.trial(), record.message);
    }
}

/// Where the user wants results.
fn named_folder() -> Option<PathBuf> {
    std::env::var_os("MANYCORE_RESULTS")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
}

/// Where results of this version go, and what tells the tests so.
fn keeping(cache: &Cache, fresh: bool) -> Result<(PathBuf, Vec<(&'static str, OsString)>)> {
    let version = results::version();
    let name = version.as_deref().unwrap_or("unknown").to_owned();
    let dir = named_folder().unwrap_or_else(|| cache.path("results").join(&name));
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let mut envs = vec![
        ("MANYCORE_RESULTS", dir.clone().into_os_string()),
        ("MANYCORE_VERSION", OsString::from(&name)),
    ];
    // What has changed since a commit may have changed since a run, too.
    let is_commit = version.is_some_and(|version| !version.ends_with("-dirty"));
    if is_commit && !fresh {
        results::take_over(&dir, &results::kept(), &name)?;
        envs.push(("MANYCORE_RESUME", "1".into()));
    }
    Ok((dir, envs))
}

/// That a first build will fit, before anything is fetched.
pub fn need_space(mib: u64) -> Result<()> {
    workspace::need_space(mib, "manycore-guest", "the first build of all tests")
}

pub fn kernels() -> Result<Vec<String>> {
    Ok(vec![
        kernel::Catalogue::load()?.default,
        OLDEST_KERNEL.into(),
    ])
}

/// Runs cargo in the checkout, its output passed on. Its failure was said by itself.
pub fn cargo(args: &[&str]) -> Result<()> {
    cargo_with(args, &[])
}

fn cargo_with(args: &[&str], envs: &[(&str, OsString)]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command
        .args(args)
        .envs(envs.iter().map(|(name, value)| (name, value)))
        .current_dir(workspace::root());
    eprintln!("running `{}`", cmd::shown(&command));
    let status = command.status().context("running cargo")?;
    if status.success() {
        Ok(())
    } else {
        Err(Exit::with(1, format!("`cargo {}` failed", args.join(" "))).into())
    }
}
