/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a CPU finds work in the queues of others: all that it may take when it runs
 * dry, nearest first; and, once a slice, one task from a queue longer than its own.
 */
#ifndef __STEAL_SEARCH_BPF_H
#define __STEAL_SEARCH_BPF_H

#include "steal/ctx.bpf.h"

/* Queues that a CPU which runs dry looks at in one cache, and caches in one node. */
#define PROBES_PER_SHARD 3
#define SHARDS_PER_NODE 3

/* Nobody could take from the queue of this seat: say so, unless it filled up. */
static __always_inline void drained(struct seat *seat, s32 cpu)
{
	mark_drained(seat);
	if (scx_bpf_dsq_nr_queued(cpu) > 0)
		mark_queued(seat);
}

/*
 * Take the first task of @victim that may run here. The kernel skips those that
 * may not, under the locks that keep affinity stable.
 */
static __noinline bool steal_from(struct cpu_ctx *cc, u32 victim, u32 event)
{
	struct seat *seat = lookup_seat(victim);

	if (!cc || !seat)
		return false;
	count(STEAL_PROBES);
	if (!scx_bpf_dsq_move_to_local(victim, 0)) {
		drained(seat, victim);
		count(STEAL_PROBES_EMPTY);
		return false;
	}
	count(event);
	if (scx_bpf_dsq_nr_queued(victim) <= 0)
		drained(seat, victim);
	return true;
}

/* What a CPU that looks for work is after. */
struct hunt {
	s32 cpu;		/* the thief */
	u32 event;		/* to count if it succeeds */
	u64 wait_ns;		/* how long its prey has to have waited */
};

/* Has the first task of @victim waited long enough to be taken that far? */
static __always_inline bool worth_it(u32 victim, u64 wait_ns)
{
	struct cpu_ctx *vc = lookup_cpu_ctx(victim);

	if (!wait_ns)
		return true;
	if (!vc || time_after(vc->queued_at + wait_ns, scx_bpf_now())) {
		count(STEAL_TOO_FRESH);
		return false;
	}
	return true;
}

/* Steal within shard @id, starting after the thief's number and going around. */
static __noinline bool steal_in_shard(struct cpu_ctx *cc, u32 id, const struct hunt *h)
{
	struct shard *sh = lookup_shard(id);
	struct shard_words *w = words_of_shard(id);
	u32 k, probe, from = (h->cpu + 1) & 63;

	if (!sh || !w || !cc)
		return false;
	bpf_for(k, 0, SHARD_WORDS) {
		u64 left;
		u32 first;

		if (k >= sh->nr_words)
			break;
		left = turned(PEEK(w->queued[k & (SHARD_WORDS - 1)]), from);
		first = sh->first_cpu[k & (SHARD_WORDS - 1)];
		bpf_for(probe, 0, PROBES_PER_SHARD) {
			u32 victim;

			if (!left)
				break;
			victim = first + ((lowest(left) + from) & 63);
			left &= left - 1;
			if (victim != h->cpu && worth_it(victim, h->wait_ns) &&
			    steal_from(cc, victim, h->event))
				return true;
		}
	}
	return false;
}

/* Steal within a node, but not from shard @except. */
static __noinline bool steal_in_node(struct cpu_ctx *cc, u32 id, u32 except,
				     const struct hunt *h)
{
	struct numa_node *n = lookup_node(id);
	struct node_words *nw = words_of_node(id);
	u32 try, from = (except - (n ? n->first_shard : 0) + 1) & 63;
	u64 left;

	if (!n || !nw)
		return false;
	left = turned(PEEK(nw->queued), from);
	bpf_for(try, 0, SHARDS_PER_NODE) {
		struct shard_words *w;
		u32 index, shard;

		if (!left)
			return false;
		index = (lowest(left) + from) & 63;
		left &= left - 1;
		shard = n->first_shard + index;
		if (shard == except)
			continue;
		if (steal_in_shard(cc, shard, h))
			return true;
		w = words_of_shard(shard);
		if (w && !(PEEK(w->queued[0]) | PEEK(w->queued[1]) | PEEK(w->queued[2]) | PEEK(w->queued[3]))) {
			clear_bits(&nw->queued, 1ULL << index);
			/* It may have got some in between. */
			if (PEEK(w->queued[0]) | PEEK(w->queued[1]) | PEEK(w->queued[2]) | PEEK(w->queued[3]))
				set_bits(&nw->queued, 1ULL << index);
		}
	}
	return false;
}

/* This CPU has run dry: look for work elsewhere, nearest first. */
static __noinline bool steal_anywhere(struct cpu_ctx *cc, s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct hunt h = { .cpu = cpu };
	struct shard_words *w;
	struct shard *sh;
	struct numa_node *n;
	u32 i, hint;

	if (!cc || !seat)
		return false;
	sh = lookup_shard(seat->shard);
	w = words_of_shard(seat->shard);
	if (!sh || !w)
		return false;

	if (has_smt && PEEK(w->queued[seat->sibling_word & (SHARD_WORDS - 1)]) & seat->sibling_bit &&
	    steal_from(cc, seat->sibling, STEAL_DISP_SMT))
		return true;
	h.event = STEAL_DISP_LLC;
	if (steal_in_shard(cc, seat->shard, &h))
		return true;

	hint = cc->hint;
	cc->hint = 0;
	if (hint && hint - 1 != cpu) {
		struct seat *there = lookup_seat(hint - 1);
		struct shard *sh2 = there ? lookup_shard(there->shard) : NULL;

		if (sh2 && steal_from(cc, hint - 1, sh2->node == sh->node ?
				      STEAL_DISP_NODE : STEAL_DISP_REMOTE))
			return true;
	}
	h.event = STEAL_DISP_NODE;
	if (steal_in_node(cc, sh->node, seat->shard, &h))
		return true;
	n = lookup_node(sh->node);
	if (!n)
		return false;
	h.event = STEAL_DISP_REMOTE;
	bpf_for(i, 0, NEAR_NODES) {
		u32 slot = i & (NEAR_NODES - 1);

		if (i >= n->nr_near)
			break;
		h.wait_ns = remote_wait_ns * (n->distance[slot] - 10) / 10;
		if (steal_in_node(cc, n->near[slot], NO_SHARD, &h))
			return true;
	}
	return false;
}

/* Is anything queued in this CPU's shard or node, or in its own queue? */
static __always_inline bool work_waits(struct seat *seat, s32 cpu)
{
	struct shard_words *w = words_of_shard(seat->shard);
	struct shard *sh = lookup_shard(seat->shard);
	struct node_words *nw = sh ? words_of_node(sh->node) : NULL;

	if (w && (PEEK(w->queued[0]) | PEEK(w->queued[1]) | PEEK(w->queued[2]) | PEEK(w->queued[3])))
		return true;
	if (nw && PEEK(nw->queued) & ~(1ULL << (sh->index & 63)))
		return true;
	return scx_bpf_dsq_nr_queued(cpu) > 0;
}

/*
 * Keep queues about equally long: tasks that never sleep stay where they are, so
 * without this those on a longer queue would get a smaller share forever. Once
 * a slice, a CPU whose task could go on compares its queue with that of another
 * which has work, taking turns, and takes a task from a longer one.
 *
 * A difference of one is enough within a node, though that only passes the extra
 * task around: then each gets its share of the good places. Between nodes it
 * takes two, so that equal queues pass nothing to and fro. A queue that is not
 * served at all is longer than any.
 */
static __noinline bool balance(struct cpu_ctx *cc, s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct shard *other_sh;
	struct node_words *nw;
	struct shard_words *w;
	struct cpu_ctx *vc;
	u32 turn, node, other, k, first, victim, event;
	s32 mine, theirs, margin = 0;
	u64 left;

	if (!cc || !n)
		return false;
	turn = cc->turn++;
	node = sh->node;
	other = seat->shard;
	event = STEAL_DISP_LLC;
	if (turn % 8 == 7 && n->nr_near) {
		/* Now and then, a node. */
		u32 slot = (turn / 8) % n->nr_near;

		node = n->near[slot & (NEAR_NODES - 1)];
		n = lookup_node(node);
		if (!n)
			return false;
		margin = 1;
		event = STEAL_DISP_REMOTE;
	}
	if (node != sh->node || (turn % 2 && n->nr_shards > 1)) {
		/* Every other time, another cache. */
		u32 from = (turn / 2) & 63;

		nw = words_of_node(node);
		left = nw ? turned(PEEK(nw->queued), from) : 0;
		if (!left)
			return false;
		other = n->first_shard + ((lowest(left) + from) & 63);
		if (node == sh->node && other != seat->shard)
			event = STEAL_DISP_NODE;
	}
	other_sh = lookup_shard(other);
	w = words_of_shard(other);
	if (!other_sh || !w || !other_sh->nr_words)
		return false;
	k = (turn % other_sh->nr_words) & (SHARD_WORDS - 1);
	left = PEEK(w->queued[k]);
	if (other == seat->shard && k == seat->word)
		left &= ~seat->bit;
	if (!left)
		return false;
	first = cc->after & 63;
	victim = other_sh->first_cpu[k] + ((lowest(turned(left, first)) + first) & 63);
	cc->after = victim + 1;

	mine = scx_bpf_dsq_nr_queued(cpu);
	theirs = scx_bpf_dsq_nr_queued(victim);
	vc = lookup_cpu_ctx(victim);
	if (mine < 0 || !vc ||
	    (theirs <= mine + margin && !is_unserved(vc->served_at, vc->queued_at, cc->served_at)))
		return false;
	if (!steal_from(cc, victim, event))
		return false;
	count(STEAL_BALANCED);
	return true;
}

#endif /* __STEAL_SEARCH_BPF_H */
