//! A sched_ext scheduler with a fault that is known, so that a meter's figure can be checked. See `bpf/broken.bpf.c`.

mod bpf_skel;

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use control_plane::stuck::Freer;
use scx_utils::{
    NR_CPU_IDS, UserExitInfo, scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_report,
};
use simplelog::{ColorChoice, Config, LevelFilter, TermLogger, TerminalMode};

use bpf_skel::BpfSkelBuilder;

/// What is done to the tasks, in the order of `enum broken_fault`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Fault {
    /// Keep them on one CPU, though they may run on others that are idle
    Hold,
    /// Let one of them run every 3 s only
    Wait,
    /// Never let them run
    Lost,
    /// Send those that may not run on the CPU there all the same
    Mask,
    /// Send each to the CPU once, whatever runs there
    Strand,
    /// Queue them for the CPU, which is not woken for them
    Unwoken,
}

/// Schedule all tasks of one command wrongly. For tests only.
#[derive(Debug, Parser)]
struct Opts {
    /// What is wrong
    #[arg(long, value_enum, default_value = "hold")]
    fault: Fault,

    /// How long a task runs while others wait
    #[arg(long, default_value_t = 5)]
    slice_ms: u64,

    /// For how long a task may wait before the kernel steps in
    #[arg(long)]
    timeout_ms: Option<u32>,

    /// Free those that are stuck in the local queue of a CPU, and wake one that sleeps on, as the real daemons do, and tell so
    #[arg(long)]
    free: bool,

    /// Command name of the tasks
    #[arg(long, default_value = "spin", value_parser = comm)]
    hold: String,

    /// CPU to hold them on, or to send them to
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
    let level = if opts.free {
        LevelFilter::Debug
    } else {
        LevelFilter::Warn
    };
    TermLogger::init(
        level,
        Config::default(),
        TerminalMode::Stderr,
        ColorChoice::Never,
    )?;
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
    ro.fault = opts.fault as u32;
    ro.slice_ns = opts.slice_ms * 1_000_000;
    ro.held_cpu = opts.cpu;
    ro.nr_cpu_ids = *NR_CPU_IDS as u32;
    for (to, from) in ro.held_comm.iter_mut().zip(opts.hold.bytes()) {
        *to = from as _;
    }
    if let Some(ms) = opts.timeout_ms {
        skel.struct_ops.broken_ops_mut().timeout_ms = ms;
    }
    let mut skel = scx_ops_load!(skel, broken_ops, uei)?;
    let freer = opts.free.then(|| Freer::start(&skel.progs.find_stuck));
    let _freer = freer.transpose()?;
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
