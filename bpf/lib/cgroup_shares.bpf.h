/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shares of cgroups: cpu.weight, nested.
 *
 * Queues here hold tasks and know no groups. What comes to the same is a factor
 * for each cgroup, by which the weights of its tasks are multiplied: it depends
 * on its cpu.weight, on how many tasks of it compete, and on the same of its
 * siblings and ancestors. The daemon computes it, ten times a second, from who
 * runs or waits then, which it learns from the iterator below, so a wakeup or a
 * switch pays for no more than one look into a map. If the daemon is stopped, the
 * last factors stay.
 */
#ifndef __MANYCORE_CGROUP_SHARES_BPF_H
#define __MANYCORE_CGROUP_SHARES_BPF_H

#include "lib/cgroup_shares.h"

/* Cgroups have shares. */
const volatile bool has_shares = false;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u64);
	__type(value, u32);
	__uint(max_entries, 1);		/* MAX_SHARES with shares, set at load */
} shares SEC(".maps");

/* The weight of @p with its cgroup's share, in units of 1 / SHARE_ONE. */
static __always_inline u64 shared_weight(const struct task_struct *p)
{
	u64 weight = p->scx.weight, id;
	u32 *share;

	if (!has_shares)
		return weight * SHARE_ONE;
	id = p->cgroups->dfl_cgrp->kn->id;
	share = bpf_map_lookup_elem(&shares, &id);
	return weight * (share ? *share : SHARE_ONE);
}

/* Tells the daemon which tasks run or wait. */
SEC("iter/task")
int read_loads(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task;
	struct share_load load = {};

	if (!p || !p->pid || !(p->scx.flags & SCX_TASK_QUEUED))
		return 0;
	load.cgroup = p->cgroups->dfl_cgrp->kn->id;
	load.weight = p->scx.weight;
	bpf_seq_write(ctx->meta->seq, &load, sizeof(load));
	return 0;
}

#endif /* __MANYCORE_CGROUP_SHARES_BPF_H */
