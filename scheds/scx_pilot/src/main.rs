//! scx_pilot: the policy in plain Rust, in userspace. The policies are in the library; this is their daemon.

mod bpf;
mod bpf_intf;
mod bpf_skel;
mod hasten;
mod hasten_skel;
mod memory;
mod options;
mod scheduler;
mod stats;

use std::mem::MaybeUninit;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use clap::Parser;
use control_plane::lifecycle::block_signals;
use control_plane::stats::Reading;
use control_plane::{CommonOpts, Daemon, Instance, Topology};
use crossbeam::channel::unbounded;
use libbpf_rs::OpenObject;
use log::{info, warn};
use scx_pilot::inputs::load::Load;
use scx_pilot::inputs::power::Power;
use scx_pilot::inputs::psi::{PolicyPsi, Psi};
use scx_pilot::inputs::watch::Watch;
use scx_pilot::inputs::{Board, Readers, Source};

use options::Opts;
use scheduler::Remote;

/// The daemon, as the control plane sees it.
struct Pilot {
    opts: Opts,
    /// Why some of its memory is still shared with other programs, if it is.
    shares: Option<anyhow::Error>,
    remote: Remote,
}

impl Daemon for Pilot {
    type Stats = stats::Stats;
    const NAME: &'static str = "scx_pilot";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn common(&self) -> &CommonOpts {
        &self.opts.common
    }

    fn attach<'o>(
        &self,
        topology: &Topology,
        _object: &'o mut MaybeUninit<OpenObject>,
    ) -> Result<Box<dyn Instance + 'o>> {
        let opts = &self.opts;
        info!(
            "policy {:?}, slice {} us, {} services; wakeups onto idle CPUs {}",
            opts.policy_kind,
            opts.slice_us,
            opts.service.len(),
            if opts.kernel_places_idle() {
                "are the kernel's"
            } else {
                "are the policy's"
            }
        );
        if let Some(err) = &self.shares {
            warn!(
                "memory is shared with other programs ({err:#}): while the kernel moves that to other nodes, nothing is \
                 scheduled, up to the watchdog's time"
            );
        }
        let board = Arc::new(Board::new(opts.service.clone()));
        let watch = Watch::new(Path::new("/proc"));
        let readers = Readers::start(&board, watch, self.sources(topology))
            .context("starting the threads that read inputs")?;
        self.remote.attach(opts, topology, &board, readers)
    }

    fn stats(reading: &Reading) -> Self::Stats {
        stats::Stats::new(reading)
    }
}

impl Pilot {
    /// The inputs that the options ask for.
    fn sources(&self, topology: &Topology) -> Vec<Box<dyn Source>> {
        let opts = &self.opts;
        let nr_llcs = topology.llcs().len().max(1) as u32;
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for (index, service) in opts.service.iter().enumerate() {
            let psi = Psi::new(index, &opts.cgroup_root, &service.cgroup);
            sources.push(Box::new(psi));
        }
        if opts.common.policy.policy.is_some() {
            sources.push(Box::new(PolicyPsi::new(&opts.cgroup_root)));
        }
        if let Some(path) = &opts.load {
            sources.push(Box::new(Load::new(path, nr_llcs)));
        }
        if let Some(budget_w) = opts.power_budget {
            sources.push(Box::new(Power::new(&opts.powercap_root, budget_w, nr_llcs)));
        }
        sources
    }
}

fn main() -> ExitCode {
    let opts = Opts::parse();
    let prints = opts.common.only_prints();
    let schedules = !prints && opts.common.monitor.is_none();
    // While there is no other thread.
    if !prints {
        block_signals();
    }
    // As after it was started by another name, "/proc/self/exe".
    let _ = rustix::thread::set_name(c"scx_pilot");
    let shares = schedules.then(memory::share_nothing);
    let (orders, inbox) = unbounded();
    let pilot = Pilot {
        opts,
        shares: shares.and_then(Result::err),
        remote: Remote::new(orders),
    };
    let control = thread::Builder::new()
        .name("pilot-control".to_string())
        .spawn(move || control_plane::start(&pilot));
    match control {
        Ok(control) => {
            scheduler::serve(&inbox);
            control.join().unwrap_or(ExitCode::FAILURE)
        }
        Err(err) => {
            eprintln!("scx_pilot: cannot start a thread: {err}");
            ExitCode::FAILURE
        }
    }
}
