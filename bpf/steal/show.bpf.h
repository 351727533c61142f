/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What scx_steal shows of itself: to the kernel's dump, and to the daemon.
 */
#ifndef __STEAL_SHOW_BPF_H
#define __STEAL_SHOW_BPF_H

#include "steal/ctx.bpf.h"

/* What the kernel prints when it throws a scheduler out, or on SysRq-D. */
void BPF_STRUCT_OPS(steal_dump, struct scx_dump_ctx *dctx)
{
	u32 i;

	bpf_for(i, 0, nr_shards) {
		struct shard_words *w = words_of_shard(i);
		struct shard *sh = lookup_shard(i);

		if (w && sh)
			scx_bpf_dump("shard %u: node %u, CPUs from %u, idle %llx, queued %llx\n",
				     i, sh->node, sh->first_cpu[0], w->idle[0], w->queued[0]);
	}
}

void BPF_STRUCT_OPS(steal_dump_cpu, struct scx_dump_ctx *dctx, s32 cpu, bool idle)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	s32 queued = scx_bpf_dsq_nr_queued(cpu);

	if (!cc || (idle && !queued))
		return;
	scx_bpf_dump("%d queued, clock=%llu run_vtime=%llu run_at=%llu hint=%u",
		     queued, cc->clock, cc->run.vtime, cc->run.at, cc->hint);
}

void BPF_STRUCT_OPS(steal_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	scx_bpf_dump("vtime=%lld slice_ns=%llu allowed=%d migration_disabled=%d",
		     p->scx.dsq_vtime, p->scx.slice, p->nr_cpus_allowed,
		     is_migration_disabled(p));
}

/* Run by the daemon when it reads the counters: how many tasks are queued. */
u64 queued_now;

SEC("syscall")
int steal_read_queued(void *ctx)
{
	u64 queued = 0;
	s32 nr;
	u32 i;

	bpf_for(i, 0, nr_cpu_ids) {
		nr = scx_bpf_dsq_nr_queued(i);
		queued += nr > 0 ? nr : 0;
	}
	queued_now = queued;
	return 0;
}

#endif /* __STEAL_SHOW_BPF_H */
