//! scx_numa: NUMA-local. The policy is in `bpf/numa.bpf.c`; this is its daemon, which also evens out nodes that have been
//! unequally busy for long (`balance`).

mod balance;
mod bpf_intf;
mod bpf_skel;
mod options;
mod orders;
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
use control_plane::topology::NodeId;
use control_plane::{CommonOpts, Daemon, Instance, Topology, configure_fair};
use libbpf_rs::{Link, MapHandle, OpenObject, ProgramInput};
use log::info;
use scx_utils::{UserExitInfo, scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_read};

use bpf_skel::{BpfSkel, BpfSkelBuilder, OpenBpfSkel, types};
use options::Opts;
use orders::{Orders, times};

impl Daemon for Opts {
    type Stats = stats::Stats;
    const NAME: &'static str = "scx_numa";
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
            "{} nodes, {} queues, slice {} us{}",
            shards.nodes().len(),
            shards.shards().len(),
            self.fair.slice_us,
            if self.strict { ", strict" } else { "" }
        );

        let builder = BpfSkelBuilder::default();
        let open_opts = self.common.open_opts();
        let mut skel = scx_ops_open!(builder, object, numa_ops, open_opts)?;
        self.configure(&mut skel, topology, &shards)?;
        let mut skel = scx_ops_load!(skel, numa_ops, uei)?;
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
        match scx_ops_attach!(skel, numa_ops) {
            Ok(link) => Ok(Box::new(Scheduler {
                skel,
                classes: ClassMap::new(classes),
                link: Some(link),
                _shares: shares,
                _freer: freer,
                orders: Orders::new(&shards),
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
            numa_ops_mut,
            &self.fair,
            &self.common,
            topology,
            shards
        );
        let maps = &mut skel.maps;
        let rodata = maps.rodata_data.as_deref_mut();
        let rodata = rodata.context("the object has no read-only data")?;
        rodata.remote_wait_ns = self.remote_wait_us * 1000;
        rodata.rehome_ns = self.rehome_ms * 1_000_000;
        rodata.strict = self.strict;
        rodata.memory_nodes = topology.kernel_memory_mask();
        for (kernel, attached) in (0..).zip(&mut rodata.attached_to) {
            *attached = topology.kernel_node_with_cpus(NodeId(kernel)).0;
        }
        let nodes = shards.nodes().len() as u32;
        maps.queue_ctxs
            .set_max_entries(shards.shards().len() as u32)
            .and_then(|()| maps.move_orders.set_max_entries(nodes))
            .and_then(|()| maps.node_times.set_max_entries(nodes))
            .context("sizing the tables of queues and nodes")
    }
}

struct Scheduler<'o> {
    skel: BpfSkel<'o>,
    classes: ClassMap,
    link: Option<Link>,
    /// Kept for its life.
    _shares: Option<Shares>,
    _freer: Freer,
    orders: Orders,
}

impl Scheduler<'_> {
    /// Has the BPF side look at the lengths of its queues.
    fn look(&self) -> Result<&types::bss> {
        self.skel
            .progs
            .numa_read_queued
            .test_run(ProgramInput::default())
            .context("asking for queue lengths")?;
        self.skel
            .maps
            .bss_data
            .as_deref()
            .context("the object has no data")
    }
}

impl Instance for Scheduler<'_> {
    fn exited(&self) -> bool {
        uei_exited!(&self.skel, uei)
    }

    fn read(&self) -> Result<Reading> {
        // Counters first: whoever compares them over time then knows between which two the queues were looked at.
        let mut counters = sum(&self.skel.maps.stats)?;
        let nodes = times(&self.skel.maps.node_times, self.orders.nodes())?;
        counters.push(nodes.iter().map(|node| node.home_ns).sum());
        counters.push(nodes.iter().map(|node| node.away_ns).sum());
        let mut gauges = vec![0, 0];
        if self.link.is_some() {
            let bss = self.look()?;
            gauges = vec![bss.queued_home, bss.queued_pinned];
        }
        Ok(Reading {
            counters,
            gauges,
            ..Reading::default()
        })
    }

    fn tick(&self) -> Result<()> {
        self.skel
            .progs
            .numa_call_for_unserved
            .test_run(ProgramInput::default())
            .context("looking for tasks that nobody serves")?;
        let maps = &self.skel.maps;
        self.orders.tick(
            &self.look()?.queued_at_node,
            &maps.node_times,
            &maps.move_orders,
        )
    }

    fn classes(&self) -> Option<&ClassMap> {
        Some(&self.classes)
    }

    fn detach(&mut self) -> UserExitInfo {
        self.link = None;
        uei_read!(&self.skel, uei)
    }
}

fn main() -> ExitCode {
    control_plane::start(&Opts::parse())
}
