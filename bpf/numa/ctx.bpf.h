/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What scx_numa is told at load, and what it knows of tasks, CPUs and queues.
 */
#ifndef __NUMA_CTX_BPF_H
#define __NUMA_CTX_BPF_H

#include "numa.h"

#define STATS_NR NUMA_NR_EVENTS
#include "lib/stats.bpf.h"
#include "lib/fair_queue.bpf.h"
#include "lib/shards.bpf.h"
#include "lib/room.bpf.h"
#include "lib/sync.bpf.h"
#include "lib/unserved.bpf.h"
#define STUCK_FOUND NUMA_STUCK
#define SLEEPS_ON(cpu, since) looks_busy(cpu)
#include "lib/stuck.bpf.h"

/* How long a task has to wait to be taken to another node at a distance of 20, in ns; in proportion to others. */
const volatile u64 remote_wait_ns = 2000000;
/* Tasks of other classes run beside ours: see lib/unserved.bpf.h. */
const volatile bool partial = false;
/* How long a task has to have run elsewhere, more than at home, to get a new home, in ns. */
const volatile u64 rehome_ns = 20000000;
/* Nobody ever leaves home. */
const volatile bool strict = false;

/* A shard's queue has the shard's id; a CPU's queue of pinned tasks this. */
#define PINNED_DSQ(cpu) ((1ULL << 32) | (u32)(cpu))

#define NO_HOME NO_SHARD

/* What is known of a task. */
struct task_ctx {
	u32 home;		/* shard, or NO_HOME */
	u32 node;		/* of home */
	s64 away_ns;		/* run elsewhere less run at home, never below 0 */
	s32 kernel_nid;		/* the kernel's preferred node when last looked at */
	u32 away;		/* it ran elsewhere last */
	/* When it was last asked where its memory must be, only to see a change: its policy, and its cpuset's mems. */
	u64 policy;
	u64 mems;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_ctx);
} task_ctxs SEC(".maps");

static __always_inline struct task_ctx *lookup_task(struct task_struct *p)
{
	return bpf_task_storage_get(&task_ctxs, p, NULL, 0);
}

/* What a CPU knows. Others read it, and write run.hurry and hint only. */
struct cpu_ctx {
	struct run_ctx run;	/* the task that runs */
	u64 balance_at;		/* when to compare queues next */
	u32 turn;		/* queue to compare the own one with next */
	u32 hint;		/* 1 + the shard that whoever woke this CPU points to */
	u32 from;		/* which DISP_* the next task will be, once it runs */
	struct late_look late;
	struct sync_ctx sync;
	struct room room;	/* of the node that it looks at */
} __attribute__((aligned(CACHE_PAIR)));

/* What the CPUs of a shard share. */
struct queue_ctx {
	u64 clock;		/* virtual time of its queue */
	u64 queued_at;		/* when a task came in after somebody had found the queue empty */
	u64 served_at;		/* when one of the CPUs last scheduled, roughly */
	u64 load;		/* the weights of all who run or wait: see load.bpf.h */
	u64 load_at;		/* when that was last looked at */
} __attribute__((aligned(CACHE_PAIR)));

TABLE(cpu_ctxs, struct cpu_ctx);
TABLE(queue_ctxs, struct queue_ctx);
TABLE(move_orders, struct move_order);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct node_time);
	__uint(max_entries, 1);	/* nr_nodes, set at load */
} node_times SEC(".maps");

static __always_inline struct cpu_ctx *lookup_cpu_ctx(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpu_ctxs, &key);
}

static __always_inline struct run_ctx *lookup_run(s32 cpu)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);

	return cc ? &cc->run : NULL;
}

static __always_inline struct queue_ctx *lookup_queue(u32 shard)
{
	return bpf_map_lookup_elem(&queue_ctxs, &shard);
}

/* Of those who are pinned to @cpu and those of its shard. */
static __always_inline bool first_waiting(s32 cpu, u64 *vtime)
{
	struct seat *seat = lookup_seat(cpu);
	u64 pinned = 0;
	bool any;

	if (!seat)
		return false;
	any = first_vtime(seat->shard, vtime);
	if (first_vtime(PINNED_DSQ(cpu), &pinned) && (!any || time_before(pinned, *vtime))) {
		*vtime = pinned;
		any = true;
	}
	return any;
}

/* Does a CPU whose own cache has nobody waiting have a reason to look around? */
static __always_inline bool work_elsewhere(s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct node_words *nw = n ? words_of_node(sh->node) : NULL;

	return nw && (PEEK(nw->queued) || (!strict && work_waits_far(n)));
}

#define PRESS_PREEMPTED		NUMA_PREEMPTIONS
#define PRESS_PREEMPTED_BATCH	NUMA_PREEMPT_BATCH
#define PRESS_ALARM		NUMA_ALARMS
#include "lib/press.bpf.h"

#endif /* __NUMA_CTX_BPF_H */
