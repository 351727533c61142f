//! scx_rr: round-robin, the readable baseline. The policy is in `bpf/rr.bpf.c`; this is its daemon.

mod bpf_intf;
mod bpf_skel;
mod options;
mod stats;

use std::mem::MaybeUninit;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use control_plane::domains::Domains;
use control_plane::lifecycle::attach_error;
use control_plane::stats::{Hist, Reading, sum};
use control_plane::stuck::Freer;
use control_plane::{CommonOpts, Daemon, Instance, Topology};
use libbpf_rs::{Link, OpenObject, ProgramInput};
use log::info;
use scx_utils::{
    UserExitInfo, compat, scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_read,
};

use bpf_skel::{BpfSkel, BpfSkelBuilder, OpenBpfSkel};
use options::Opts;

impl Daemon for Opts {
    type Stats = stats::Stats;
    const NAME: &'static str = "scx_rr";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn common(&self) -> &CommonOpts {
        &self.common
    }

    fn attach<'o>(
        &self,
        topology: &Topology,
        object: &'o mut MaybeUninit<OpenObject>,
    ) -> Result<Box<dyn Instance + 'o>> {
        let domains = Domains::new(topology, self.queues);
        info!(
            "{} queues for {:?}, slice {} us",
            domains.len(),
            self.queues,
            self.slice_us
        );

        let builder = BpfSkelBuilder::default();
        let open_opts = self.common.open_opts();
        let mut skel = scx_ops_open!(builder, object, rr_ops, open_opts)?;
        self.configure(&mut skel, &domains)?;
        if let Some(seq) = topology.hotplug_seq() {
            skel.struct_ops.rr_ops_mut().hotplug_seq = seq;
        }
        let mut skel = scx_ops_load!(skel, rr_ops, uei)?;
        domains
            .fill(&skel.maps.cpus, &skel.maps.domains)
            .context("filling the topology tables")?;
        let freer = Freer::start(&skel.progs.find_stuck)?;

        match scx_ops_attach!(skel, rr_ops) {
            Ok(link) => Ok(Box::new(Scheduler {
                skel,
                link: Some(link),
                _freer: freer,
            })),
            Err(err) => Err(attach_error(err, &uei_read!(&skel, uei))),
        }
    }

    fn stats(reading: &Reading) -> Self::Stats {
        stats::Stats::new(reading)
    }
}

impl Opts {
    /// Sets what can only be set before the object is loaded.
    fn configure(&self, skel: &mut OpenBpfSkel<'_>, domains: &Domains) -> Result<()> {
        let rodata = skel
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the object has no read-only data")?;
        rodata.slice_ns = self.slice_us * 1000;
        rodata.partial = self.common.partial;
        rodata.nr_cpu_ids = domains.nr_cpu_ids();
        rodata.nr_domains = domains.len();
        let maps = &mut skel.maps;
        domains
            .size(&mut maps.cpus, &mut maps.domains, &mut maps.domain_masks)
            .context("sizing the topology tables")?;

        let ops = skel.struct_ops.rr_ops_mut();
        ops.exit_dump_len = self.common.exit_dump_len;
        ops.flags = self.common.ops_flags()
            | *compat::SCX_OPS_KEEP_BUILTIN_IDLE
            | *compat::SCX_OPS_BUILTIN_IDLE_PER_NODE;
        Ok(())
    }
}

struct Scheduler<'o> {
    skel: BpfSkel<'o>,
    link: Option<Link>,
    /// Kept for its life.
    _freer: Freer,
}

impl Instance for Scheduler<'_> {
    fn exited(&self) -> bool {
        uei_exited!(&self.skel, uei)
    }

    fn read(&self) -> Result<Reading> {
        // Counters first: whoever compares them over time then knows between which two the queues were looked at.
        let counters = sum(&self.skel.maps.stats)?;
        let hists = Hist::read(&self.skel.maps.hists)?;
        let mut gauges = vec![0, 0];
        if self.link.is_some() {
            self.skel
                .progs
                .rr_read_queued
                .test_run(ProgramInput::default())
                .context("asking for queue lengths")?;
            let bss = self
                .skel
                .maps
                .bss_data
                .as_deref()
                .context("the object has no data")?;
            gauges = vec![bss.queued_shared, bss.queued_pinned];
        }
        Ok(Reading {
            counters,
            gauges,
            hists,
            ..Reading::default()
        })
    }

    fn detach(&mut self) -> UserExitInfo {
        self.link = None;
        uei_read!(&self.skel, uei)
    }
}

fn main() -> ExitCode {
    control_plane::start(&Opts::parse())
}
