/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a CPU finds work in the queues of others: all that it may take when it runs
 * dry, nearest first; and, once a slice, one task from a heavier queue.
 */
#ifndef __STEAL_SEARCH_BPF_H
#define __STEAL_SEARCH_BPF_H

#include "steal/ctx.bpf.h"

/* Queues that a CPU which runs dry looks at in one cache. */
#define PROBES_PER_SHARD 3

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
	cc->from = event;
	if (scx_bpf_dsq_nr_queued(victim) <= 0)
		drained(seat, victim);
	return true;
}

/* What a CPU that looks for work is after. */
struct hunt {
	s32 cpu;		/* the thief */
	u32 event;		/* what it is if it succeeds */
	u64 wait_ns;		/* how long its prey has to have waited */
	u64 again_ns;		/* when one that was too fresh will have; 0: there was none */
};

/* Has the first task of @victim waited long enough to be taken that far? */
static __always_inline bool has_waited(u32 victim, struct hunt *h)
{
	struct cpu_ctx *vc = lookup_cpu_ctx(victim);
	u64 now, from;

	if (!h->wait_ns)
		return true;
	if (!vc)
		return false;
	now = scx_bpf_now();
	from = vc->queued_at + h->wait_ns;
	if (!time_after(from, now))
		return true;
	if (!h->again_ns || h->again_ns > from - now)
		h->again_ns = from - now;
	count(STEAL_TOO_FRESH);
	return false;
}

/*
 * Steal within shard @id, starting with another CPU for each thief. This and the next
 * are not static, so that they are verified once.
 */
bool steal_in_shard(struct cpu_ctx *cc __arg_nonnull, u32 id, struct hunt *h __arg_nonnull)
{
	struct shard *sh = lookup_shard(id);
	struct shard_words *w = words_of_shard(id);
	u32 k, probe, from;

	if (!sh || !w || !any_bit(w->queued))
		return false;
	bpf_for(k, 0, SHARD_WORDS) {
		u64 left;
		u32 first;

		if (k >= sh->nr_words)
			break;
		from = first_in_turn(sh, k, h->cpu + 1);
		left = turned(PEEK(w->queued[k & (SHARD_WORDS - 1)]), from);
		first = sh->first_cpu[k & (SHARD_WORDS - 1)];
		bpf_for(probe, 0, PROBES_PER_SHARD) {
			u32 victim;

			if (!left)
				break;
			victim = first + ((lowest(left) + from) & 63);
			left &= left - 1;
			if (victim != h->cpu && has_waited(victim, h) &&
			    steal_from(cc, victim, h->event))
				return true;
		}
	}
	return false;
}

/* Steal within a node, but not from shard @except. */
bool steal_in_node(struct cpu_ctx *cc __arg_nonnull, u32 id, u32 except,
		   struct hunt *h __arg_nonnull)
{
	struct numa_node *n = lookup_node(id);
	struct node_words *nw = words_of_node(id);
	u32 try, from = (except - (n ? n->first_shard : 0) + 1) & 63;
	u64 left;

	if (!n || !nw)
		return false;
	left = turned(PEEK(nw->queued), from);
	if (!left)
		return false;
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
		if (w && !any_bit(w->queued)) {
			clear_bits(&nw->queued, 1ULL << index);
			/* It may have got some in between. */
			if (any_bit(w->queued))
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
	if (!n || !work_waits_far(n))
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
	/* Nobody would tell this CPU when it has waited long enough. */
	if (h.again_ns)
		set_alarm(cpu, scx_bpf_now(), h.again_ns);
	return false;
}

/* What waits at @cpu, and runs there? False if nothing waits. */
static __always_inline bool weigh(s32 cpu, struct weighed *look)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	bool any;

	if (!cc)
		return false;
	any = weigh_queue(cpu, cc->run.at, WEIGHED, look);
	look->all += cc->run.weight;
	return any;
}

/* This part of a task of nice 0, in ns of a slice. */
static __always_inline s64 in_slices(s64 weight)
{
	s64 half = slice_ns / 2;

	return weight < 0 ? -(s64)((u64)-weight * half / FAIR_WEIGHT) : (s64)((u64)weight * half / FAIR_WEIGHT);
}

/*
 * How much does @cpu, of queue @own, gain in fairness by taking the first task of
 * @victim, in ns: by how much that task is further behind than the one of virtual
 * runtime @mine that would run here next, and half a slice for each task of nice 0
 * by which its queue is the heavier one. Not static, so that it is verified once.
 */
s64 worth_of(s32 cpu, struct weighed *own __arg_nonnull, u64 mine, u32 victim)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu), *vc = lookup_cpu_ctx(victim);
	struct weighed look = {};
	s64 pace, more;

	if (!cc || !vc || !weigh(victim, &look))
		return 0;
	if (is_unserved(vc->served_at, vc->queued_at, cc->served_at))
		return FAIR_LAG_MAX;
	pace = pace_ahead(&cc->pace, cc->clock, &vc->pace, vc->clock);
	more = look.all - own->all;
	/* Not a heavier queue, but whoever waits there got much less than here. */
	if (more < -FAIR_WEIGHT || (more <= 0 && pace < (s64)(slice_ns * 3 / 2)))
		return 0;
	/* It stays the heavier one, or they get equal: that is right however clocks went of late. */
	if (4 * more >= 7 * look.first_weight)
		pace = (pace > 0 ? pace : 0) + slice_ns;
	/* Then the heavier one would be this. */
	if (more > 0 && look.first_weight > more)
		more -= look.first_weight - more;
	return (s64)(mine - cc->clock) - bounded_lag(look.first - vc->clock) + pace + in_slices(more);
}

/* Does anybody wait in the shard of this seat, elsewhere than there? */
static __always_inline bool waits_beside(const struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);
	u32 k, word = seat->word & (SHARD_WORDS - 1);

	if (!w)
		return false;
	if (PEEK(w->queued[word]) & ~seat->bit)
		return true;
	for (k = 0; k < SHARD_WORDS; k++)
		if (k != word && PEEK(w->queued[k]))
			return true;
	return false;
}

/* Where to compare queues this time. */
struct fair_look {
	u32 shard;		/* or NO_SHARD */
	u32 round;		/* how often all shards have had their turn: which word of this one's */
	u32 event;		/* what it is if a task is taken from there */
	s64 least;		/* what that has to be worth, ns */
};

/*
 * A shard of this node other than @except where somebody waits, or NO_SHARD: by
 * turns, one after the other. Not static, so that it is verified once.
 */
u32 waiting_shard(u32 node, u32 except, u32 turn)
{
	struct node_words *nw = words_of_node(node);
	struct numa_node *n = lookup_node(node);
	u32 from;
	u64 left;

	if (!nw || !n || !n->nr_shards)
		return NO_SHARD;
	from = turn % n->nr_shards & 63;
	left = PEEK(nw->queued);
	if (except != NO_SHARD)
		left &= ~(1ULL << ((except - n->first_shard) & 63));
	left = turned(left, from);
	return left ? n->first_shard + ((lowest(left) + from) & 63) : NO_SHARD;
}

/* So, in this node, whose turn it is for the @turn'th time. */
static __always_inline void look_in_node(struct fair_look *look, const struct numa_node *n, u32 node,
					 u32 except, u32 turn)
{
	look->shard = waiting_shard(node, except, turn);
	look->round = turn / (n->nr_shards ?: 1);
}

/* A queue to take from. */
struct prey {
	u32 victim;
	s64 worth;
};

/* In another node. It takes more than near, or equal queues would pass tasks to and fro. */
static __always_inline void look_far(struct fair_look *look, struct cpu_ctx *cc,
				     const struct numa_node *n, u32 own)
{
	struct numa_node *there;
	u32 node, turn = cc->node_turn;

	if (!n->nr_near)
		return;
	cc->node_turn++;
	node = busiest_node(&cc->room, own);
	if (node == NO_SHARD)
		node = n->near[turn % n->nr_near & (NEAR_NODES - 1)];
	there = lookup_node(node);
	if (!there)
		return;
	look->event = STEAL_DISP_REMOTE;
	look->least = slice_ns;
	look_in_node(look, there, node, NO_SHARD, turn / n->nr_near);
}

/*
 * The own cache, every other time another one, now and then another node, and that
 * again as long as it pays. Where nobody waits near, further away at once: there may
 * be three tasks to a CPU while each has its own here.
 */
static __always_inline void look_where(struct fair_look *look, struct cpu_ctx *cc,
				       const struct seat *seat, const struct shard *sh)
{
	struct numa_node *n = lookup_node(sh->node);
	u32 turn = cc->turn++;
	bool near = waits_beside(seat);

	look->shard = NO_SHARD;
	if (!n)
		return;
	if (cc->goes_far || turn % 4 == 3)
		look_far(look, cc, n, sh->node);
	if (look->shard == NO_SHARD && n->nr_shards > 1 && (turn % 2 || !near)) {
		look->event = STEAL_DISP_NODE;
		look->least = slice_ns / 2;
		look_in_node(look, n, sh->node, seat->shard, turn / 4);
	}
	if (look->shard == NO_SHARD && near) {
		look->event = STEAL_DISP_LLC;
		look->least = slice_ns / 2;
		look->shard = seat->shard;
		look->round = turn / 2;
	}
	if (look->shard == NO_SHARD)
		look_far(look, cc, n, sh->node);
}

/*
 * For @cpu, of queue @own, where virtual runtime @mine would run next: take what is worth
 * most, of a few queues of the shard where it looks. Not static, so that it is verified once.
 */
bool take_worthiest(struct cpu_ctx *cc __arg_nonnull, s32 cpu, u64 mine,
		    struct weighed *own __arg_nonnull, const struct fair_look *look __arg_nonnull)
{
	struct shard_words *w = words_of_shard(look->shard);
	struct shard *other = lookup_shard(look->shard);
	struct seat *seat = lookup_seat(cpu);
	struct prey best = {}, next = {};
	u32 k, first, probe;
	u64 left;

	if (!other || !w || !seat || !other->nr_words)
		return false;
	k = (look->round % other->nr_words) & (SHARD_WORDS - 1);
	left = PEEK(w->queued[k]);
	if (look->shard == seat->shard && k == seat->word)
		left &= ~seat->bit;
	first = first_in_turn(other, k, cc->after++);
	left = turned(left, first);
	bpf_for(probe, 0, PROBES_PER_SHARD) {
		u32 victim;
		s64 worth;

		if (!left)
			break;
		victim = other->first_cpu[k] + ((lowest(left) + first) & 63);
		left &= left - 1;
		worth = worth_of(cpu, own, mine, victim);
		if (worth > best.worth) {
			next = best;
			best.worth = worth;
			best.victim = victim;
		} else if (worth > next.worth) {
			next.worth = worth;
			next.victim = victim;
		}
	}
	/* Ticks come to all CPUs at once: another may be faster. */
	if ((best.worth <= look->least || !steal_from(cc, best.victim, look->event)) &&
	    (next.worth <= look->least || !steal_from(cc, next.victim, look->event)))
		return false;
	count(STEAL_BALANCED);
	return true;
}

/*
 * Even out who gets how much: tasks that never sleep stay where they are, so
 * without this those on a longer queue would get a smaller share forever. Once a
 * slice, a CPU whose task could go on compares its queue with a few that are heavier
 * or much slower, taking turns, and takes the task that is worth most; of those in
 * other nodes, if there is none near.
 *
 * One task more is enough for that, unless the one that is next there has had more.
 * So an extra task is passed around, and each gets its share of the good places. A
 * queue that is not served at all is always worth it.
 */
static __noinline bool balance(struct cpu_ctx *cc, s32 cpu, u64 mine)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct fair_look look = {};
	struct weighed own = {};
	bool found;

	if (!cc || !n)
		return false;
	look_where(&look, cc, seat, sh);
	weigh(cpu, &own);
	found = take_worthiest(cc, cpu, mine, &own, &look);
	if (!found && look.event != STEAL_DISP_REMOTE) {
		look.shard = NO_SHARD;
		look_far(&look, cc, n, sh->node);
		found = take_worthiest(cc, cpu, mine, &own, &look);
	}
	cc->goes_far = found && look.event == STEAL_DISP_REMOTE;
	/* The next tick may be two slices away. */
	if (!found && own.queued <= 0 && work_elsewhere(cpu))
		set_alarm(cpu, scx_bpf_now(), slice_ns);
	return found;
}

#endif /* __STEAL_SEARCH_BPF_H */
