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
#include "lib/room.bpf.h"
#include "lib/pace.bpf.h"
#include "lib/sync.bpf.h"
#include "lib/unserved.bpf.h"
#define STUCK_FOUND STEAL_STUCK
#define SLEEPS_ON(cpu, since) looks_busy(cpu)
#include "lib/stuck.bpf.h"

/* How long a task has to wait, for each 10 of distance, to be taken to another node, in ns. */
const volatile u64 remote_wait_ns = 50000;
/* Tasks of other classes run beside ours: see lib/unserved.bpf.h. */
const volatile bool partial = false;

/* Caches that are looked at in one node. */
#define SHARDS_PER_NODE 3

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
	u32 after;		/* with which number to begin, counts up */
	u32 hint;		/* 1 + the CPU that whoever woke this one points to */
	u8 filled;		/* its queue may have tasks; written with its runqueue locked, so there 0 is sure */
	u8 from;		/* which DISP_* the next task will be, once it runs */
	u8 goes_far;		/* it took a task from another node when it compared queues last */
	struct late_look late;
	struct sync_ctx sync;
	u64 crowded_until;	/* nothing is calmer than where it is: until when not to look again */
	u64 crowded_ns;		/* how long that was to be */
	struct room room;	/* of the node that it looks at */
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

/* Is anything queued in the shard or node of this seat, or in the queue of its CPU? */
static __always_inline bool work_waits(const struct cpu_ctx *cc, struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);
	struct shard *sh = lookup_shard(seat->shard);
	struct node_words *nw = sh ? words_of_node(sh->node) : NULL;

	if (w && any_bit(w->queued))
		return true;
	if (nw && PEEK(nw->queued) & ~(1ULL << (sh->index & 63)))
		return true;
	return PEEK(cc->filled);
}

/* The same for what other nodes have, too: does a CPU with one task or none have a reason to look around? */
static __always_inline bool work_elsewhere(s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);

	return n && cc && (work_waits(cc, seat) || work_waits_far(n));
}

#define PRESS_PREEMPTED		STEAL_PREEMPTIONS
#define PRESS_PREEMPTED_BATCH	STEAL_PREEMPT_BATCH
#define PRESS_ALARM		STEAL_ALARMS
#include "lib/press.bpf.h"

#endif /* __STEAL_CTX_BPF_H */
