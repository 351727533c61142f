/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What scx_steal is told at load, and what its CPUs know.
 */
#ifndef __STEAL_CTX_BPF_H
#define __STEAL_CTX_BPF_H

#include "steal.h"

#define STATS_NR STEAL_NR_EVENTS
#include "lib/stats.bpf.h"
#include "lib/fair_queue.bpf.h"
#include "lib/shards.bpf.h"
#include "lib/pace.bpf.h"
#include "lib/sync.bpf.h"
#include "lib/unserved.bpf.h"

/* How long a task has to wait, for each 10 of distance, to be taken to another node, in ns. */
const volatile u64 remote_wait_ns = 50000;
/* Tasks of other classes run beside ours: see lib/unserved.bpf.h. */
const volatile bool partial = false;

/* What a CPU knows; its queue has its id. Others read it, and write filled, queued_at, run.hurry and hint only. */
struct cpu_ctx {
	u64 clock;		/* virtual time of its queue */
	struct pace pace;	/* how fast that goes */
	struct run_ctx run;	/* the task that runs */
	u64 queued_at;		/* when a free task came into the empty queue */
	u64 served_at;		/* when this CPU last scheduled, roughly */
	u64 balance_at;		/* when to compare queues next */
	u32 turn;		/* where to find a queue to compare the own one with next */
	u32 node_turn;		/* and in which node */
	u32 after;		/* 1 + the CPU whose queue it was last time */
	u32 hint;		/* 1 + the CPU that whoever woke this one points to */
	u8 filled;		/* its queue may have tasks */
	u8 from_own;		/* the next task was the first of its queue */
	struct sync_ctx sync;
} __attribute__((aligned(CACHE_PAIR)));

TABLE(cpu_ctxs, struct cpu_ctx);

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

static __always_inline bool first_waiting(s32 cpu, u64 *vtime)
{
	return first_vtime(cpu, vtime);
}

#define PRESS_PREEMPTED		STEAL_PREEMPTIONS
#define PRESS_PREEMPTED_BATCH	STEAL_PREEMPT_BATCH
#define PRESS_ALARM		STEAL_ALARMS
#include "lib/press.bpf.h"

#endif /* __STEAL_CTX_BPF_H */
