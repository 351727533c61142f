/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shares of cgroups: cpu.weight, nested.
 *
 * Queues here hold tasks and know no groups. What comes to the same is a factor
 * for each cgroup, by which the weights of its tasks are multiplied: it depends
 * on its cpu.weight, on how many tasks of it compete, and on the same of its
 * siblings and ancestors. The daemon computes it, ten times a second, from who
 * runs or waits then, which it learns from the iterator below, so a wakeup or a
 * switch pays for no more than one look into a map. It is called where a task has
 * run for a tick with a share that is a guess. If the daemon is stopped, the last
 * factors stay.
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

/* The share that a CPU looked up last. Tasks that take turns are often of one cgroup. */
struct last_share {
	u64 cgroup;		/* the address: another at the same place has its share for SHARE_KEPT_NS at most */
	u64 until;
	u32 share;
	bool guessed;
};

#define SHARE_KEPT_NS	4000000

/* The weight of @p with its cgroup's share, in units of 1 / SHARE_ONE. */
static __always_inline u64 shared_weight(const struct task_struct *p, struct last_share *last,
					 u64 now)
{
	u64 cgroup, id;
	u32 *share;

	if (!has_shares)
		return (u64)p->scx.weight * SHARE_ONE;
	cgroup = (u64)p->cgroups->dfl_cgrp;
	if (cgroup != last->cgroup || time_after(now, last->until)) {
		id = p->cgroups->dfl_cgrp->kn->id;
		share = bpf_map_lookup_elem(&shares, &id);
		last->cgroup = cgroup;
		last->until = now + SHARE_KEPT_NS;
		last->share = share ? *share & ~SHARE_GUESSED : SHARE_ONE;
		last->guessed = !share || (*share & SHARE_GUESSED);
	}
	return p->scx.weight * last->share;
}

/* Has something in it when the daemon is called. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} share_calls SEC(".maps");

/* How often it may be, ns. Some have no share for ever: see MAX_SHARES. */
#define SHARE_CALL_NS	5000000

/* When it was, last. Two CPUs may call it at once, which does no harm. */
static u64 share_called_at;

/* Each tick: if nobody knows what @p, which runs, is entitled to, the daemon is to look. @last is what its CPU knows. */
static __always_inline void share_tick(const struct task_struct *p, struct last_share *last, u64 now)
{
	u64 none = 0;

	if (!last->guessed)
		return;
	last->cgroup = 0;
	shared_weight(p, last, now);
	if (!last->guessed || time_before(now, share_called_at + SHARE_CALL_NS))
		return;
	share_called_at = now;
	bpf_ringbuf_output(&share_calls, &none, sizeof(none), 0);
}

/* Tells the daemon which tasks run or wait, but for itself, who runs to ask. */
SEC("iter/task")
int read_loads(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task;
	struct share_load load = {};

	if (!p || !p->pid || p == bpf_get_current_task_btf() || !(p->scx.flags & SCX_TASK_QUEUED))
		return 0;
	load.cgroup = p->cgroups->dfl_cgrp->kn->id;
	load.weight = p->scx.weight;
	bpf_seq_write(ctx->meta->seq, &load, sizeof(load));
	return 0;
}

#endif /* __MANYCORE_CGROUP_SHARES_BPF_H */
