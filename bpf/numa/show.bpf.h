/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What scx_numa shows of itself: to the kernel's dump, and to the daemon.
 */
#ifndef __NUMA_SHOW_BPF_H
#define __NUMA_SHOW_BPF_H

#include "numa/ctx.bpf.h"

/* What the kernel prints when it throws a scheduler out, or on SysRq-D. */
void BPF_STRUCT_OPS(numa_dump, struct scx_dump_ctx *dctx)
{
	u32 i;

	bpf_for(i, 0, nr_shards) {
		struct shard_words *w = words_of_shard(i);
		struct shard *sh = lookup_shard(i);

		if (w && sh)
			scx_bpf_dump("shard %u: node %u, %u CPUs, idle %llx, %d queued\n",
				     i, sh->node, sh->nr_cpus, w->idle[0],
				     scx_bpf_dsq_nr_queued(i));
	}
}

void BPF_STRUCT_OPS(numa_dump_cpu, struct scx_dump_ctx *dctx, s32 cpu, bool idle)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	s32 pinned = scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu));

	if (!cc || (idle && !pinned))
		return;
	scx_bpf_dump("%d pinned tasks queued, run_vtime=%llu run_at=%llu hint=%u",
		     pinned, cc->run.vtime, cc->run.at, cc->hint);
}

void BPF_STRUCT_OPS(numa_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	struct task_ctx *tc = lookup_task(p);

	scx_bpf_dump("vtime=%lld slice_ns=%llu allowed=%d home=%d away_ns=%lld",
		     p->scx.dsq_vtime, p->scx.slice, p->nr_cpus_allowed,
		     tc ? (s32)tc->home : -1, tc ? tc->away_ns : 0);
}

/* Run by the daemon: how many tasks are queued, and how many at each node. */
u64 queued_home, queued_pinned;
u64 queued_at_node[NUMA_MAX_NODES];

SEC("syscall")
int numa_read_queued(void *ctx)
{
	u64 home = 0, pinned = 0;
	s32 nr;
	u32 i;

	bpf_for(i, 0, nr_nodes) {
		if (i < NUMA_MAX_NODES)
			queued_at_node[i] = 0;
	}
	bpf_for(i, 0, nr_shards) {
		struct shard *sh = lookup_shard(i);

		nr = scx_bpf_dsq_nr_queued(i);
		if (!sh || nr <= 0)
			continue;
		home += nr;
		queued_at_node[sh->node & (NUMA_MAX_NODES - 1)] += nr;
	}
	bpf_for(i, 0, nr_cpu_ids) {
		nr = scx_bpf_dsq_nr_queued(PINNED_DSQ(i));
		pinned += nr > 0 ? nr : 0;
	}
	queued_home = home;
	queued_pinned = pinned;
	return 0;
}

#endif /* __NUMA_SHOW_BPF_H */
