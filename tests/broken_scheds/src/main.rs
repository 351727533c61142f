//! A sched_ext scheduler with a fault that is known, so that a meter's figure can be checked. See `bpf/broken.bpf.c`.

mod bpf_skel;

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use scx_utils::{UserExitInfo, scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_report};

use bpf_skel::BpfSkelBuilder;

/// Keep all tasks of one command on one CPU, though they may run on others that are idle. For tests only.
#[derive(Debug, Parser)]
struct Opts {
    /// Command name of the tasks to hold
    #[arg(long, default_value = "spin", value_parser = comm)]
    hold: String,

    /// CPU to hold them on
    #[arg(long, default_value_t = 1)]
    cpu: i32,
}

/// A command name as the kernel keeps it: at most 15 bytes.
fn comm(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 15 {
        return Err("a command name has 1 to 15 bytes".to_owned());
    }
    Ok(text.to_owned())
}

fn main() -> Result<()> {
    let opts = Opts::parse();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("can't handle Ctrl-C")?;

    let builder = BpfSkelBuilder::default();
    let mut object = MaybeUninit::uninit();
    let mut skel = scx_ops_open!(builder, &mut object, broken_ops, None)?;
    let ro = skel
        .maps
        .rodata_data
        .as_mut()
        .context("the BPF object has no .rodata")?;
    ro.held_cpu = opts.cpu;
    for (to, from) in ro.held_comm.iter_mut().zip(opts.hold.bytes()) {
        *to = from as _;
    }
    let mut skel = scx_ops_load!(skel, broken_ops, uei)?;
    let link = scx_ops_attach!(skel, broken_ops)?;
    while !stop.load(Ordering::Relaxed) && !uei_exited!(&skel, uei) {
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(link);
    let exit: UserExitInfo = uei_report!(&skel, uei)?;
    if !stop.load(Ordering::Relaxed) {
        bail!("the kernel ejected the scheduler: {exit:?}");
    }
    Ok(())
}
