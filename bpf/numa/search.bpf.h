/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a CPU finds work in the queues of other caches: what it may take when its
 * own has run dry, in its node first; and, once a slice, one task from a queue
 * that is longer than its own.
 */
#ifndef __NUMA_SEARCH_BPF_H
#define __NUMA_SEARCH_BPF_H

#include "numa/homes.bpf.h"

/* Caches that a CPU which runs dry looks at in one node. */
#define SHARDS_PER_NODE 3

static __always_inline void mark_shard_queued(struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	if (nw)
		set_bits(&nw->queued, 1ULL << (sh->index & 63));
}

static __always_inline bool is_shard_queued(struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	return nw && PEEK(nw->queued) & (1ULL << (sh->index & 63));
}

/* Nothing was found in the queue of shard @id: say so, unless it filled up. */
static __always_inline void mark_shard_drained(u32 id, struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	if (!nw)
		return;
	clear_bits(&nw->queued, 1ULL << (sh->index & 63));
	if (scx_bpf_dsq_nr_queued(id) > 0)
		set_bits(&nw->queued, 1ULL << (sh->index & 63));
}

/* Take the first task of shard @id that may run here. */
static __noinline bool take(struct cpu_ctx *cc, u32 id, u32 event)
{
	struct shard *sh = lookup_shard(id);

	if (!cc || !sh)
		return false;
	if (!scx_bpf_dsq_move_to_local(id, 0)) {
		if (scx_bpf_dsq_nr_queued(id) <= 0)
			mark_shard_drained(id, sh);
		return false;
	}
	cc->from_own = event == NUMA_DISP_OWN;
	count(event);
	return true;
}

/* Take from the caches of a node, but not from shard @except, after @wait_ns. */
static __noinline bool take_in_node(struct cpu_ctx *cc, u32 id, u32 except, u64 wait_ns)
{
	struct numa_node *n = lookup_node(id);
	struct node_words *nw = words_of_node(id);
	u32 try, from = (except - (n ? n->first_shard : 0) + 1) & 63;
	u64 left;

	if (!n || !nw || !cc)
		return false;
	left = turned(PEEK(nw->queued), from);
	bpf_for(try, 0, SHARDS_PER_NODE) {
		struct queue_ctx *q;
		u32 shard;

		if (!left)
			return false;
		shard = n->first_shard + ((lowest(left) + from) & 63);
		left &= left - 1;
		if (shard == except)
			continue;
		q = lookup_queue(shard);
		if (wait_ns && q && time_after(q->queued_at + wait_ns, scx_bpf_now())) {
			count(NUMA_TOO_FRESH);
			continue;
		}
		if (take(cc, shard, wait_ns ? NUMA_DISP_REMOTE : NUMA_DISP_NODE))
			return true;
	}
	return false;
}

/* This CPU has run dry: look elsewhere in the node, then, for who has waited, on others. */
static __noinline bool take_elsewhere(struct cpu_ctx *cc, struct seat *seat)
{
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	u32 i, hint;

	if (!cc || !n)
		return false;
	hint = cc->hint;
	cc->hint = 0;
	if (hint && hint - 1 != seat->shard) {
		struct shard *there = lookup_shard(hint - 1);

		if (there && take(cc, hint - 1, there->node == sh->node ?
				  NUMA_DISP_NODE : NUMA_DISP_REMOTE))
			return true;
	}
	if (take_in_node(cc, sh->node, seat->shard, 0))
		return true;
	if (strict)
		return false;
	bpf_for(i, 0, NEAR_NODES) {
		u32 slot = i & (NEAR_NODES - 1);
		u64 wait_ns;

		if (i >= n->nr_near)
			break;
		wait_ns = remote_wait_ns * (n->distance[slot] - 10) / 10;
		if (take_in_node(cc, n->near[slot], NO_SHARD, wait_ns ?: 1))
			return true;
	}
	return false;
}

/*
 * Keep queues about equally long for their number of CPUs, or tasks that never
 * sleep would get less forever on a longer one. Once a slice, a CPU whose task
 * could go on compares its queue with one other, taking turns: with those of its
 * node, and every fourth time with one of another node. There it takes a whole
 * task more for each CPU: that much less is worth a move, and a new home. A queue
 * that is not served at all is longer than any.
 */
static __noinline bool balance(struct cpu_ctx *cc, struct seat *seat)
{
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL, *other;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct queue_ctx *own, *q;
	u32 id, turn, near, margin, event = NUMA_DISP_NODE;
	struct task_struct *p;
	s32 mine, theirs;

	if (!cc || !n)
		return false;
	turn = cc->turn++;
	margin = sh->nr_cpus / 4;
	/* With one cache in its node there is nobody else to compare with. */
	if ((turn % 4 == 3 || n->nr_shards == 1) && n->nr_near && !strict) {
		if (n->nr_shards > 1)
			turn /= 4;
		near = turn % n->nr_near;
		turn /= n->nr_near;
		n = lookup_node(n->near[near & (NEAR_NODES - 1)]);
		margin = sh->nr_cpus;
		event = NUMA_DISP_REMOTE;
	}
	if (!n || !n->nr_shards)
		return false;
	id = n->first_shard + turn % n->nr_shards;
	other = lookup_shard(id);
	if (!other || id == seat->shard)
		return false;
	mine = scx_bpf_dsq_nr_queued(seat->shard);
	theirs = scx_bpf_dsq_nr_queued(id);
	own = lookup_queue(seat->shard);
	q = lookup_queue(id);
	if (mine < 0 || theirs <= 0 || !own || !q)
		return false;
	if ((u64)theirs * sh->nr_cpus <= ((u64)mine + 1 + margin) * other->nr_cpus &&
	    !is_unserved(q->served_at, q->queued_at, own->served_at))
		return false;
	if (event == NUMA_DISP_REMOTE) {
		/* To stay: or it would go back after a slice, and nothing be evened out. */
		bpf_for_each(scx_dsq, p, id, 0) {
			settle(p, seat->shard);
			break;
		}
	}
	if (!take(cc, id, event))
		return false;
	count(NUMA_BALANCED);
	return true;
}

#endif /* __NUMA_SEARCH_BPF_H */
