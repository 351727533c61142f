//! What an operation costs in instructions, those of all CPUs together: a command is run with few and with many
//! operations, and the difference is the operations'. The virtual clock counts them; it is told when by a mark.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::{Command, Stdio};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Operations of the short and of the long run
    #[arg(long, num_args = 2)]
    ops: Vec<u64>,
    /// To which the number of operations is appended
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// How many marks this guest has made.
const COUNT: &str = "/tmp/manycore-marks";

pub fn run(args: &Args) -> Result<()> {
    let [few, many] = args.ops.as_slice() else {
        anyhow::bail!("two numbers of operations are needed");
    };
    ensure!(few < many, "the second run must be the longer one");
    let first: usize = fs::read_to_string(COUNT)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default();
    // All three are made whatever happens, so that the next run's are where they are expected. One between the runs: of two
    // without a jump between them, the clock would see one.
    mark();
    let results: Vec<Result<()>> = [few, many]
        .map(|ops| {
            let result = once(&args.command, *ops);
            mark();
            result
        })
        .into();
    fs::write(COUNT, (first + 3).to_string()).context("counting the marks")?;
    results.into_iter().collect::<Result<Vec<()>>>()?;
    println!("first_mark {first}");
    println!("operations {}", many - few);
    Ok(())
}

fn once(command: &[String], ops: u64) -> Result<()> {
    let (program, rest) = command.split_first().context("no command")?;
    let status = Command::new(program)
        .args(rest)
        .arg(ops.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("running {program}"))?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}

/// An instruction that does nothing on any machine, and that the virtual clock's plugin knows (`vm/vtime`).
fn mark() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a NOP with an unused displacement.
    unsafe {
        std::arch::asm!("nop dword ptr [rax + 0x6d63766d]", options(nomem, nostack));
    }
}
