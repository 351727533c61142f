/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a CPU finds work in the queues of other caches: what it may take when its
 * own has run dry, in its node first; and, once a slice, one task from a queue
 * that is longer than its own.
 */
#ifndef __NUMA_SEARCH_BPF_H
#define __NUMA_SEARCH_BPF_H

#include "numa/homes.bpf.h"
#include "numa/load.bpf.h"

/* Caches that a CPU which runs dry looks at in one node. */
#define SHARDS_PER_NODE 3

static __always_inline void mark_shard_queued(struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	if (nw)
		set_bits(&nw->queued, 1ULL << (sh->index & 63));
}

static __always_inline bool is_shard_queued(const struct shard *sh)
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

/* How long a task has to wait to be taken to or from node @n, from or to the one at @slot of those near it, ns. */
static __always_inline u64 remote_wait(const struct numa_node *n, u32 slot)
{
	return remote_wait_ns * n->distance[slot & (NEAR_NODES - 1)] / 20;
}

/* Has somebody been waiting in queue @q, of @sh, for long enough to be taken to the nearest node? */
static __always_inline bool waits_long(const struct queue_ctx *q, const struct shard *sh, u64 now)
{
	struct numa_node *n = lookup_node(sh->node);

	return n && time_before(q->queued_at + remote_wait(n, 0), now);
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
	cc->from = event;
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
		wait_ns = remote_wait(n, slot);
		if (take_in_node(cc, n->near[slot], NO_SHARD, wait_ns ?: 1))
			return true;
	}
	return false;
}

/* Does anybody wait in this node, elsewhere than in this shard? */
static __always_inline bool waits_beside(struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	return nw && PEEK(nw->queued) & ~(1ULL << (sh->index & 63));
}

/* Another shard of node @n than @sh: by turns. */
static __always_inline u32 next_near(const struct numa_node *n, const struct shard *sh, u32 turn)
{
	u32 others = n->nr_shards > 1 ? n->nr_shards - 1 : 1;

	return n->first_shard + (sh->index + 1 + turn % others) % n->nr_shards;
}

/*
 * Of the nodes near node @id, the shard with the longest queue for its number of CPUs,
 * or NO_SHARD: of at most SHARDS_PER_NODE in each, by turns. Not static, so that it is
 * verified once.
 */
u32 longest_far(u32 id, u32 turn)
{
	struct numa_node *n = lookup_node(id), *there;
	u32 best = NO_SHARD, i, k, shard;
	u64 most = 0, of = 1;
	struct shard *sh;
	s32 queued;

	if (!n)
		return NO_SHARD;
	bpf_for(i, 0, NEAR_NODES) {
		if (i >= n->nr_near)
			break;
		there = lookup_node(n->near[i & (NEAR_NODES - 1)]);
		bpf_for(k, 0, SHARDS_PER_NODE) {
			if (!there || k >= there->nr_shards)
				break;
			shard = there->first_shard + (turn + k) % there->nr_shards;
			sh = lookup_shard(shard);
			queued = scx_bpf_dsq_nr_queued(shard);
			if (!sh || queued <= 0 || (u64)queued * of <= most * sh->nr_cpus)
				continue;
			best = shard;
			most = queued;
			of = sh->nr_cpus;
		}
	}
	return best;
}

/* Some shard of a node near @n, or NO_SHARD: by turns. */
static __always_inline u32 some_far(const struct numa_node *n, u32 turn)
{
	struct numa_node *there;

	if (!n->nr_near)
		return NO_SHARD;
	there = lookup_node(n->near[turn % n->nr_near & (NEAR_NODES - 1)]);
	return there && there->nr_shards ?
	       there->first_shard + turn / n->nr_near % there->nr_shards : NO_SHARD;
}

/* Where a CPU compares its queue. */
struct fair_look {
	u32 shard;		/* or NO_SHARD */
	u32 event;		/* what it is if a task is taken from there */
};

/* So many tasks more for each CPU, in quarters, is far from even. */
#define MUCH_LONGER	8

/* Do more tasks than the @mine of @sh, by this many for each CPU, in quarters, wait at @shard, which may be none? */
static __always_inline bool is_longer(const struct shard *sh, s32 mine, u32 shard, u32 quarters)
{
	struct shard *other = lookup_shard(shard);
	s32 theirs = scx_bpf_dsq_nr_queued(shard);

	return other && theirs > 0 &&
	       (u64)theirs * sh->nr_cpus > ((u64)mine + 1 + sh->nr_cpus * quarters / 4) * other->nr_cpus;
}

/*
 * Would it even out what has been to do of late, by weight, to take the first task there?
 * Or do many more wait there now: half a task for each CPU on another node, half of that
 * near? Then it is taken. A queue that is not served at all is heavier than any. Not
 * static, so that it is verified once.
 */
bool take_if_heavier(struct cpu_ctx *cc __arg_nonnull, struct seat *seat __arg_nonnull,
		     const struct fair_look *look __arg_nonnull)
{
	struct queue_ctx *own = lookup_queue(seat->shard), *q = lookup_queue(look->shard);
	struct shard *sh = lookup_shard(seat->shard), *other = lookup_shard(look->shard);
	bool far = look->event == NUMA_DISP_REMOTE;
	s32 mine = scx_bpf_dsq_nr_queued(seat->shard);
	struct weighed there = {};
	struct task_struct *p;

	if (!own || !q || !sh || !other || mine < 0)
		return false;
	if (!weigh_queue(look->shard, own->served_at, 1, &there))
		return false;
	if (!is_longer(sh, mine, look->shard, far ? 2 : 1) &&
	    !is_heavier(q, other, there.queued, own, sh, there.first_weight) &&
	    !is_unserved(q->served_at, q->queued_at, own->served_at))
		return false;
	if (far) {
		/* To stay: or it would go back after a slice, and nothing be evened out. */
		bpf_for_each(scx_dsq, p, look->shard, 0) {
			settle(p, seat->shard);
			break;
		}
	}
	if (!take(cc, look->shard, look->event))
		return false;
	move_load(q, own, there.first_weight);
	count(NUMA_BALANCED);
	return true;
}

/*
 * Keep queues about equally heavy for their number of CPUs, or tasks that never
 * sleep would get less forever on a heavier one. Once a slice, a CPU whose task
 * could go on compares its queue with the longest of other nodes, or now and then with
 * any of theirs, and with one of its own node, by turns. The near one goes first, unless
 * the other is longer by far, as when many threads of a process start at once where it is
 * at home; and every fourth time the other does.
 */
static __noinline bool balance(struct cpu_ctx *cc, struct seat *seat)
{
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct fair_look near = { .shard = NO_SHARD, .event = NUMA_DISP_NODE };
	struct fair_look far = { .shard = NO_SHARD, .event = NUMA_DISP_REMOTE };
	bool far_first;
	u32 turn;

	if (!cc || !n || !n->nr_shards)
		return false;
	turn = cc->turn++;
	if (waits_beside(sh))
		near.shard = next_near(n, sh, turn);
	if (!strict)
		far.shard = turn % 16 == 15 ? some_far(n, turn / 16) : longest_far(sh->node, turn / 4);
	far_first = turn % 4 == 3 ||
		    is_longer(sh, scx_bpf_dsq_nr_queued(seat->shard), far.shard, MUCH_LONGER);
	if (far_first && take_if_heavier(cc, seat, &far))
		return true;
	if (take_if_heavier(cc, seat, &near))
		return true;
	return !far_first && take_if_heavier(cc, seat, &far);
}

#endif /* __NUMA_SEARCH_BPF_H */
