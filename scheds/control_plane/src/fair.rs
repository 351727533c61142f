//! What policies with queues in the order of virtual runtime (`bpf/lib/fair_queue.bpf.h`) have in common: options, and what
//! their BPF objects are told before they are loaded.

use crate::cgroup_shares::ShareOpts;
use clap::ValueEnum;
use scx_utils::compat;

/// Where a task wakes up whose waker says that it is about to sleep, as pipes and sockets do.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncWakeups {
    /// As `apart` where the kernel can queue wakeups (Linux 6.15), else as `stay`
    Auto,
    /// On the waker's CPU, if that waker was right before
    Stay,
    /// On an idle CPU, as others
    Apart,
}

impl SyncWakeups {
    /// Whether tasks stay on the waker's CPU, on the running kernel.
    pub fn stay(self) -> bool {
        match self {
            Self::Auto => *compat::SCX_OPS_ALLOW_QUEUED_WAKEUP == 0,
            Self::Stay => true,
            Self::Apart => false,
        }
    }
}

/// The options of such a policy.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct FairOpts {
    /// How long a task may run while others wait, in microseconds, 100 to 100000
    #[arg(short, long, value_name = "US", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=100_000))]
    pub slice_us: u64,

    /// How long a task runs before a woken one with a better claim may interrupt it, in microseconds, 0 to 100000: less
    /// makes wakeups faster, and tasks that pass messages to each other slower, as they are switched more often
    #[arg(long, value_name = "US", default_value_t = 300, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub preempt_us: u64,

    /// How much a task that had to wait may be ahead of the others in its queue, in microseconds, 0 to 1000000; one that
    /// wakes up never is
    #[arg(long, value_name = "US", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub credit_us: u64,

    /// Where a task wakes up whose waker says that it is about to sleep, as pipes and sockets do
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = SyncWakeups::Auto)]
    pub sync_wakeups: SyncWakeups,

    #[command(flatten)]
    pub shares: ShareOpts,
}

/// Sets in an open object `$skel`, whose operations are `$ops` (`steal_ops_mut`), what [`FairOpts`], [`CommonOpts`],
/// [`Topology`] and [`Shards`] say. In a function that returns [`anyhow::Result`]: it fails if libbpf refuses a size.
///
/// A macro, since each object's tables have types of their own, with the same names.
///
/// [`CommonOpts`]: crate::CommonOpts
/// [`Topology`]: crate::Topology
/// [`Shards`]: crate::shards::Shards
#[macro_export]
macro_rules! configure_fair {
    ($skel:expr, $ops:ident, $fair:expr, $common:expr, $topology:expr, $shards:expr) => {{
        use ::anyhow::Context as _;
        let (fair, common, topology, shards): (
            &$crate::fair::FairOpts,
            &$crate::CommonOpts,
            &$crate::Topology,
            &$crate::shards::Shards,
        ) = ($fair, $common, $topology, $shards);
        let (cpus, queues) = (shards.nr_cpu_ids(), shards.shards().len() as u32);
        let rodata = $skel
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the object has no read-only data")?;
        rodata.slice_ns = fair.slice_us * 1000;
        rodata.preempt_ns = fair.preempt_us * 1000;
        rodata.credit_ns = fair.credit_us * 1000;
        rodata.sync_stays = fair.sync_wakeups.stay();
        rodata.partial = common.partial;
        rodata.has_shares = fair.shares.enabled();
        rodata.has_classes = common.policy.policy.is_some();
        rodata.has_smt = shards.has_smt();
        rodata.nr_cpu_ids = cpus;
        rodata.nr_possible = shards.possible();
        rodata.nr_shards = queues;
        rodata.nr_nodes = shards.nodes().len() as u32;

        let maps = &mut $skel.maps;
        maps.cpu_ctxs
            .set_max_entries(cpus)
            .and_then(|()| maps.alarms.set_max_entries(cpus))
            .context("sizing the tables of CPUs")?;
        maps.shares
            .set_max_entries(fair.shares.room())
            .context("sizing the table of shares")?;
        maps.classes
            .set_max_entries($crate::classes::room(common))
            .and_then(|()| maps.batch_state.set_max_entries(queues))
            .context("sizing the tables of classes")?;
        shards
            .size(&mut $crate::shards::OpenTables {
                seats: &mut maps.seats,
                shards: &mut maps.shards,
                shard_state: &mut maps.shard_state,
                nodes: &mut maps.nodes,
                node_state: &mut maps.node_state,
            })
            .context("sizing the topology tables")?;

        let ops = $skel.struct_ops.$ops();
        ops.exit_dump_len = common.exit_dump_len;
        ops.flags = common.ops_flags();
        if let Some(seq) = topology.hotplug_seq() {
            ops.hotplug_seq = seq;
        }
    }};
}
