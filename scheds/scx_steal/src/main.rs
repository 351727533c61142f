//! scx_steal: work-stealing. The policy is in `bpf/steal.bpf.c`; this is its daemon.

mod bpf_intf;
mod bpf_skel;
mod options;
mod stats;

use std::mem::MaybeUninit;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use control_plane::cgroup_shares::Shares;
use control_plane::classes::ClassMap;
use control_plane::lifecycle::attach_error;
use control_plane::shards::Shards;
use control_plane::stats::{Reading, sum};
use control_plane::stuck::Freer;
use control_plane::{CommonOpts, Daemon, Instance, Topology, configure_fair};
use libbpf_rs::{Link, MapHandle, OpenObject, ProgramInput};
use log::info;
use scx_utils::{UserExitInfo, scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_read};

use bpf_skel::{BpfSkel, BpfSkelBuilder, OpenBpfSkel};
use options::Opts;

impl Daemon for Opts {
    type Stats = stats::Stats;
    const NAME: &'static str = "scx_steal";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn common(&self) -> &CommonOpts {
        &self.common
    }

    fn attach<'o>(
        &self,
        topology: &Topology,
        object: &'o mut MaybeUninit<OpenObject>,
    ) -> Result<Box<dyn Instance + 'o>> {
        let shards = Shards::new(topology);
        info!(
            "{} shards on {} nodes, slice {} us",
            shards.shards().len(),
            shards.nodes().len(),
            self.fair.slice_us
        );

        let builder = BpfSkelBuilder::default();
        let open_opts = self.common.open_opts();
        let mut skel = scx_ops_open!(builder, object, steal_ops, open_opts)?;
        self.configure(&mut skel, topology, &shards)?;
        let mut skel = scx_ops_load!(skel, steal_ops, uei)?;
        shards
            .fill(&skel.maps.seats, &skel.maps.shards, &skel.maps.nodes)
            .context("filling the topology tables")?;
        let classes = MapHandle::try_from(&skel.maps.classes).context("the map of classes")?;

        let shares = self.fair.shares.enabled().then(|| {
            let map = MapHandle::try_from(&skel.maps.shares).context("the map of shares")?;
            Shares::start(&skel.progs.read_loads, &skel.maps.share_calls, map)
        });
        let shares = shares.transpose()?;
        let freer = Freer::start(&skel.progs.find_stuck)?;
        match scx_ops_attach!(skel, steal_ops) {
            Ok(link) => Ok(Box::new(Scheduler {
                skel,
                classes: ClassMap::new(classes),
                link: Some(link),
                _shares: shares,
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
    fn configure(
        &self,
        skel: &mut OpenBpfSkel<'_>,
        topology: &Topology,
        shards: &Shards,
    ) -> Result<()> {
        configure_fair!(
            skel,
            steal_ops_mut,
            &self.fair,
            &self.common,
            topology,
            shards
        );
        let rodata = skel.maps.rodata_data.as_deref_mut();
        let rodata = rodata.context("the object has no read-only data")?;
        rodata.remote_wait_ns = self.remote_wait_us * 1000;
        Ok(())
    }
}

struct Scheduler<'o> {
    skel: BpfSkel<'o>,
    classes: ClassMap,
    link: Option<Link>,
    /// Kept for its life.
    _shares: Option<Shares>,
    _freer: Freer,
}

impl Instance for Scheduler<'_> {
    fn exited(&self) -> bool {
        uei_exited!(&self.skel, uei)
    }

    fn read(&self) -> Result<Reading> {
        // Counters first: whoever compares them over time then knows between which two the queues were looked at.
        let counters = sum(&self.skel.maps.stats)?;
        let mut gauges = vec![0];
        if self.link.is_some() {
            self.skel
                .progs
                .steal_read_queued
                .test_run(ProgramInput::default())
                .context("asking for queue lengths")?;
            let bss = self
                .skel
                .maps
                .bss_data
                .as_deref()
                .context("the object has no data")?;
            gauges = vec![bss.queued_now];
        }
        Ok(Reading {
            counters,
            gauges,
            ..Reading::default()
        })
    }

    fn classes(&self) -> Option<&ClassMap> {
        Some(&self.classes)
    }

    fn tick(&self) -> Result<()> {
        if self.link.is_some() {
            self.skel
                .progs
                .steal_call_thieves
                .test_run(ProgramInput::default())
                .context("looking for tasks that nobody sees")?;
        }
        Ok(())
    }

    fn detach(&mut self) -> UserExitInfo {
        self.link = None;
        uei_read!(&self.skel, uei)
    }
}

fn main() -> ExitCode {
    control_plane::start(&Opts::parse())
}
