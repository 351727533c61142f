/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Homes: which cache, and with it which node, a task belongs to, and when that
 * changes.
 */
#ifndef __NUMA_HOMES_BPF_H
#define __NUMA_HOMES_BPF_H

#include "numa/ctx.bpf.h"

static __always_inline void set_home(struct task_ctx *tc, u32 shard, u32 event)
{
	struct shard *sh = lookup_shard(shard);

	if (!sh || tc->home == shard)
		return;
	tc->home = shard;
	tc->node = sh->node;
	tc->away_ns = 0;
	tc->away = 0;
	count(event);
}

/* Of a node of the kernel's with memory only, that of the nearest CPUs; of others, themselves. */
const volatile u32 attached_to[NUMA_MAX_NODES] = {};

/* The index of the node with this id of the kernel's, or NO_SHARD. At most 64 nodes are looked at. */
static __noinline u32 node_index(u32 kernel_node)
{
	u32 i;

	kernel_node = attached_to[kernel_node & (NUMA_MAX_NODES - 1)];
	bpf_for(i, 0, NUMA_MAX_NODES) {
		struct numa_node *n;

		if (i >= nr_nodes)
			break;
		n = lookup_node(i);
		if (n && n->kernel_node == kernel_node)
			return i;
	}
	return NO_SHARD;
}

/* A shard of the node, spread by pid so that processes don't all get the first. */
static __always_inline u32 some_shard(u32 node, const struct task_struct *p)
{
	struct numa_node *n = lookup_node(node);

	return n && n->nr_shards ? n->first_shard + (u32)p->tgid % n->nr_shards : NO_HOME;
}

#define MPOL_PREFERRED_	1	/* enumerators of the kernel's, not bits */
#define MPOL_BIND_	2
#define MPOL_PREFERRED_MANY_ 5

/* The kernel's nodes that have memory, of the first 64. */
const volatile u64 memory_nodes = 0;

/*
 * The one node of the kernel's that this task's memory must or should be on, by
 * its cpuset or its mempolicy; or NUMA_NO_NODE if there is no such, or several, or
 * if that is where all memory is.
 */
static __noinline s32 memory_node(struct task_struct *p __arg_trusted)
{
	struct mempolicy *pol = BPF_CORE_READ(p, mempolicy);
	u64 mems = 0;

	bpf_probe_read_kernel(&mems, sizeof(mems), &p->mems_allowed.bits[0]);
	if (pol) {
		u16 mode = BPF_CORE_READ(pol, mode);
		u64 nodes = 0;

		if (mode == MPOL_PREFERRED_ || mode == MPOL_BIND_ || mode == MPOL_PREFERRED_MANY_) {
			bpf_probe_read_kernel(&nodes, sizeof(nodes), &pol->nodes.bits[0]);
			if (nodes)
				mems = nodes;
		}
	}
	if (nr_nodes < 2 || !mems || (mems & (mems - 1)) || mems == memory_nodes)
		return NUMA_NO_NODE;
	return lowest(mems);
}

/* May the answer of memory_node() be another than it was? */
static __always_inline bool memory_node_changed(const struct task_struct *p, struct task_ctx *tc)
{
	u64 mems = p->mems_allowed.bits[0];

	if (tc->policy == (u64)p->mempolicy && tc->mems == mems)
		return false;
	tc->policy = (u64)p->mempolicy;
	tc->mems = mems;
	return true;
}

/* May @p leave its home for good, for shard @shard? Not if its memory has to stay behind. */
static __noinline bool may_settle(struct task_struct *p __arg_trusted, u32 shard)
{
	return !strict && p->nr_cpus_allowed > 1 && may_run_in(p, shard) && memory_node(p) < 0;
}

/*
 * The shard whose queue @p waits in, now that it is born or about to wait and its
 * CPU is of shard @here: its home, which is decided here if it has none, or if its
 * memory must now be somewhere else.
 */
static __noinline u32 home_of(struct task_struct *p __arg_trusted, struct task_ctx *tc, u32 here)
{
	struct move_order *order;
	u32 node;
	u64 left;
	s32 nid;

	if (!tc)
		return here;
	if (memory_node_changed(p, tc)) {
		nid = memory_node(p);
		node = nid >= 0 ? node_index(nid) : NO_SHARD;
		if (node != NO_SHARD && (tc->home == NO_HOME || node != tc->node) &&
		    may_run_in(p, some_shard(node, p)))
			set_home(tc, some_shard(node, p), NUMA_HOME_MEMORY);
	}
	if (tc->home == NO_HOME)
		set_home(tc, here, NUMA_HOME_FIRST);
	if (tc->home == NO_HOME)
		return here;
	if (!may_run_in(p, tc->home)) {
		set_home(tc, here, NUMA_HOME_AFFINITY);
		return tc->home;
	}
	/* AutoNUMA has a new opinion. */
	nid = p->numa_preferred_nid;
	if (nid != tc->kernel_nid) {
		node = nid >= 0 ? node_index(nid) : NO_SHARD;
		tc->kernel_nid = nid;
		if (!strict && node != NO_SHARD && node != tc->node &&
		    may_run_in(p, some_shard(node, p)))
			set_home(tc, some_shard(node, p), NUMA_HOME_KERNEL);
		return tc->home;
	}
	order = bpf_map_lookup_elem(&move_orders, &tc->node);
	left = order ? PEEK(order->budget) : 0;
	if (left && may_settle(p, some_shard(order->to, p))) {
		/* A race of two spends one too few: the daemon gives another. */
		order->budget = left - 1;
		set_home(tc, some_shard(order->to, p), NUMA_HOME_ORDERED);
	}
	return tc->home;
}

/* @p is given a home at @shard, as there are too many tasks where it has been. */
static __always_inline void settle(struct task_struct *p, u32 shard)
{
	struct task_ctx *tc = lookup_task(p);

	if (tc && tc->home != NO_HOME && may_settle(p, shard))
		set_home(tc, shard, NUMA_HOME_BALANCED);
}

/* @p ran @used ns on a CPU of this shard: account it to its home, and to its wish for another. */
static __always_inline void account_home(struct task_struct *p, struct shard *sh, u32 shard,
					 u64 used)
{
	struct task_ctx *tc = lookup_task(p);
	struct node_time *nt;
	bool settles = false;

	if (!tc || tc->home == NO_HOME)
		return;
	nt = bpf_map_lookup_elem(&node_times, &tc->node);
	if (!nt)
		return;
	if (sh->node == tc->node) {
		nt->home_ns += used;
		tc->away_ns = tc->away_ns > (s64)used ? tc->away_ns - used : 0;
		tc->away = 0;
		return;
	}
	nt->away_ns += used;
	tc->away_ns += used;
	if (!tc->away) {
		tc->away = 1;
		settles = trip_settles(tc->node);
	}
	if ((settles || tc->away_ns > (s64)rehome_ns) && may_settle(p, shard))
		set_home(tc, shard, NUMA_HOME_AWAY);
}

/*
 * Take an idle CPU at the home of @p: the previous one, one of its cache, or one
 * of its node. Returns its id, or -EBUSY.
 */
static __noinline s32 claim_at_home(struct task_struct *p __arg_trusted, struct task_ctx *tc, s32 prev_cpu)
{
	struct seat *seat = lookup_seat(prev_cpu);
	struct shard *sh;
	s32 idle;

	if (!tc || !seat)
		return -EBUSY;
	sh = lookup_shard(seat->shard);
	if (sh && sh->node == tc->node && bpf_cpumask_test_cpu(prev_cpu, p->cpus_ptr)) {
		if (claim_cpu(seat, true)) {
			count(NUMA_WAKE_PREV);
			return prev_cpu;
		}
		if (has_smt) {
			idle = claim_in_shard(p, tc->home, true);
			if (idle >= 0) {
				count(NUMA_WAKE_LLC);
				return idle;
			}
			if (claim_cpu(seat, false)) {
				count(NUMA_WAKE_PREV);
				return prev_cpu;
			}
		}
	}
	idle = claim_in_shard(p, tc->home, false);
	if (idle >= 0) {
		count(NUMA_WAKE_LLC);
		return idle;
	}
	idle = claim_in_node(p, tc->node, tc->home);
	if (idle >= 0)
		count(NUMA_WAKE_NODE);
	return idle;
}

/*
 * @p was just born, and less than a quarter of its home idles. If more does elsewhere,
 * it starts there and stays: a process, or a build, that is wider than its node would
 * else send tasks to and fro. Returns the CPU's id, or -EBUSY.
 */
static __noinline s32 claim_new_home(struct task_struct *p __arg_trusted, struct task_ctx *tc)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(bpf_get_smp_processor_id());
	struct seat *seat;
	s32 idle;

	if (!tc || !cc || strict || memory_node(p) >= 0)
		return -EBUSY;
	idle = claim_roomy(p, &cc->room, tc->node, 1);
	seat = idle >= 0 ? lookup_seat(idle) : NULL;
	if (seat)
		set_home(tc, seat->shard, NUMA_HOME_WIDE);
	return idle;
}

#endif /* __NUMA_HOMES_BPF_H */
