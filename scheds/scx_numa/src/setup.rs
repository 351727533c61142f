//! What the BPF object is told before it is loaded.

use anyhow::{Context, Result};
use control_plane::classes;
use control_plane::shards::{OpenTables, Shards};
use scx_utils::compat;

use crate::bpf_skel::OpenBpfSkel;
use crate::options::Opts;

impl Opts {
    /// Sets what can only be set before the object is loaded.
    pub(crate) fn configure(&self, skel: &mut OpenBpfSkel<'_>, shards: &Shards) -> Result<()> {
        let rodata = skel
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the object has no read-only data")?;
        let nodes = shards.nodes().len() as u32;
        rodata.slice_ns = self.slice_us * 1000;
        rodata.preempt_ns = self.preempt_us * 1000;
        rodata.credit_ns = self.credit_us * 1000;
        rodata.remote_wait_ns = self.remote_wait_us * 1000;
        rodata.rehome_ns = self.rehome_ms * 1_000_000;
        rodata.strict = self.strict;
        rodata.partial = self.common.partial;
        rodata.has_shares = self.shares.enabled();
        rodata.nr_cpu_ids = shards.nr_cpu_ids();
        rodata.nr_possible = shards.possible();
        rodata.nr_shards = shards.shards().len() as u32;
        rodata.nr_nodes = nodes;
        rodata.has_smt = shards.has_smt();
        rodata.has_classes = self.common.policy.policy.is_some();
        let maps = &mut skel.maps;
        maps.cpu_ctxs
            .set_max_entries(shards.nr_cpu_ids())
            .context("sizing the table of CPUs")?;
        maps.alarms
            .set_max_entries(shards.nr_cpu_ids())
            .context("sizing the table of alarms")?;
        maps.shares
            .set_max_entries(self.shares.room())
            .context("sizing the table of shares")?;
        maps.queue_ctxs
            .set_max_entries(shards.shards().len() as u32)
            .context("sizing the table of queues")?;
        maps.move_orders
            .set_max_entries(nodes)
            .and_then(|()| maps.node_times.set_max_entries(nodes))
            .context("sizing the tables of nodes")?;
        maps.classes
            .set_max_entries(classes::room(&self.common))
            .and_then(|()| {
                maps.batch_state
                    .set_max_entries(shards.shards().len() as u32)
            })
            .context("sizing the tables of classes")?;
        shards
            .size(&mut OpenTables {
                seats: &mut maps.seats,
                shards: &mut maps.shards,
                shard_state: &mut maps.shard_state,
                nodes: &mut maps.nodes,
                node_state: &mut maps.node_state,
            })
            .context("sizing the topology tables")?;

        let ops = skel.struct_ops.numa_ops_mut();
        ops.exit_dump_len = self.common.exit_dump_len;
        // Flags that the running kernel doesn't know are 0.
        ops.flags = *compat::SCX_OPS_ENQ_EXITING | *compat::SCX_OPS_ENQ_MIGRATION_DISABLED;
        if self.common.partial {
            ops.flags |= *compat::SCX_OPS_SWITCH_PARTIAL;
        }
        Ok(())
    }
}
