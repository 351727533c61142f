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
use control_plane::classes::{self, ClassMap};
use control_plane::lifecycle::attach_error;
use control_plane::shards::{OpenTables, Shards};
use control_plane::stats::{Reading, sum};
use control_plane::{CommonOpts, Daemon, Instance, Topology};
use libbpf_rs::{Link, MapHandle, OpenObject, ProgramInput};
use log::info;
use scx_utils::{
    UserExitInfo, compat, scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_read,
};

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
            self.slice_us
        );

        let builder = BpfSkelBuilder::default();
        let open_opts = self.common.libbpf.clone().into_bpf_open_opts();
        let mut skel = scx_ops_open!(builder, object, steal_ops, open_opts)?;
        self.configure(&mut skel, &shards)?;
        let mut skel = scx_ops_load!(skel, steal_ops, uei)?;
        shards
            .fill(&skel.maps.seats, &skel.maps.shards, &skel.maps.nodes)
            .context("filling the topology tables")?;
        let classes = MapHandle::try_from(&skel.maps.classes).context("the map of classes")?;

        let shares = self
            .shares
            .enabled()
            .then(|| Shares::new(&skel.progs.read_loads));
        let shares = shares.transpose()?;
        match scx_ops_attach!(skel, steal_ops) {
            Ok(link) => Ok(Box::new(Scheduler {
                skel,
                classes: ClassMap::new(classes),
                link: Some(link),
                shares,
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
    fn configure(&self, skel: &mut OpenBpfSkel<'_>, shards: &Shards) -> Result<()> {
        let rodata = skel
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the object has no read-only data")?;
        rodata.slice_ns = self.slice_us * 1000;
        rodata.preempt_ns = self.preempt_us * 1000;
        rodata.credit_ns = self.credit_us * 1000;
        rodata.remote_wait_ns = self.remote_wait_us * 1000;
        rodata.partial = self.common.partial;
        rodata.has_shares = self.shares.enabled();
        rodata.nr_cpu_ids = shards.nr_cpu_ids();
        rodata.nr_possible = shards.possible();
        rodata.nr_shards = shards.shards().len() as u32;
        rodata.nr_nodes = shards.nodes().len() as u32;
        rodata.has_smt = shards.has_smt();
        rodata.has_classes = self.common.policy.policy.is_some();
        let maps = &mut skel.maps;
        maps.cpu_ctxs
            .set_max_entries(shards.nr_cpu_ids())
            .context("sizing the table of CPUs")?;
        maps.classes
            .set_max_entries(classes::room(&self.common))
            .and_then(|()| {
                maps.batch_state
                    .set_max_entries(shards.shards().len() as u32)
            })
            .context("sizing the tables of classes")?;
        maps.alarms
            .set_max_entries(shards.nr_cpu_ids())
            .context("sizing the table of alarms")?;
        maps.shares
            .set_max_entries(self.shares.room())
            .context("sizing the table of shares")?;
        shards
            .size(&mut OpenTables {
                seats: &mut maps.seats,
                shards: &mut maps.shards,
                shard_state: &mut maps.shard_state,
                nodes: &mut maps.nodes,
                node_state: &mut maps.node_state,
            })
            .context("sizing the topology tables")?;

        let ops = skel.struct_ops.steal_ops_mut();
        ops.exit_dump_len = self.common.exit_dump_len;
        // Flags that the running kernel doesn't know are 0.
        ops.flags = *compat::SCX_OPS_ENQ_EXITING | *compat::SCX_OPS_ENQ_MIGRATION_DISABLED;
        if self.common.partial {
            ops.flags |= *compat::SCX_OPS_SWITCH_PARTIAL;
        }
        Ok(())
    }
}

struct Scheduler<'o> {
    skel: BpfSkel<'o>,
    classes: ClassMap,
    link: Option<Link>,
    shares: Option<Shares>,
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
        if let Some(shares) = &self.shares {
            shares.tick(&self.skel.maps.shares);
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
