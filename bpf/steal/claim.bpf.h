/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a task finds a CPU: an idle one that it takes when it wakes up, nearest first;
 * one where nobody waits yet, if none idles; and, while it waits, an idle one that is
 * told to come for it.
 *
 * Where it waits matters for bursts, such as a barrier that releases a thread for
 * each CPU and more. All of them slept where their parent is, and CPUs that compare
 * queues once a slice take as long to even that out as such a burst lasts.
 */
#ifndef __STEAL_CLAIM_BPF_H
#define __STEAL_CLAIM_BPF_H

#include "steal/home.bpf.h"

/* A CPU was found for a task that wakes up; or for one that waits in a queue, which counts otherwise. */
static __always_inline void count_woken(bool woken, u32 event)
{
	if (woken)
		count(event);
}

/*
 * Take an idle CPU for @p in the node of @cpu, the nearest to it: that one too if it has
 * @woken up, and not if it waits there. Returns its id, or -EBUSY.
 */
static s32 claim_near(struct task_struct *p __arg_trusted, s32 cpu, bool woken)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh;
	bool may_stay;
	s32 idle;

	if (!seat)
		return -EBUSY;
	sh = lookup_shard(seat->shard);
	if (!sh)
		return -EBUSY;

	may_stay = woken && bpf_cpumask_test_cpu(cpu, p->cpus_ptr);
	if (may_stay && claim_cpu(seat, true)) {
		count(STEAL_WAKE_PREV);
		return cpu;
	}
	if (has_smt) {
		idle = claim_in_shard(p, seat->shard, true);
		if (idle >= 0) {
			count_woken(woken, STEAL_WAKE_LLC);
			return idle;
		}
		if (may_stay && claim_cpu(seat, false)) {
			count(STEAL_WAKE_PREV);
			return cpu;
		}
	}
	idle = claim_in_shard(p, seat->shard, false);
	if (idle >= 0) {
		count_woken(woken, STEAL_WAKE_LLC);
		return idle;
	}
	idle = claim_in_node(p, sh->node, seat->shard);
	if (idle >= 0)
		count_woken(woken, STEAL_WAKE_NODE);
	return idle;
}

/* The same in other nodes, nearest first; @woken: as it wakes up. */
static s32 claim_far(struct task_struct *p __arg_trusted, s32 cpu, bool woken)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	s32 idle;
	u32 i;

	if (!n)
		return -EBUSY;
	bpf_for(i, 0, NEAR_NODES) {
		if (i >= n->nr_near)
			break;
		idle = claim_in_node(p, n->near[i & (NEAR_NODES - 1)], NO_SHARD);
		if (idle >= 0) {
			count_woken(woken, STEAL_WAKE_REMOTE);
			return idle;
		}
	}
	return -EBUSY;
}

/* The same in the node where @p, which was just @born or ran on @prev_cpu last, is at home, unless that is this one. */
static __always_inline s32 claim_home(struct task_struct *p, s32 prev_cpu, bool born)
{
	s32 home, idle = -EBUSY;
	struct cpu_ctx *cc;

	if (born) {
		cc = lookup_cpu_ctx(bpf_get_smp_processor_id());
		if (cc)
			idle = claim_roomy(p, &cc->room, node_of(prev_cpu), 3);
		if (idle >= 0)
			count(STEAL_WAKE_REMOTE);
		return idle;
	}
	home = home_of(p, prev_cpu);
	if (home >= 0)
		idle = claim_near(p, home, true);
	if (idle >= 0)
		count(STEAL_WENT_HOME);
	return idle;
}

/* A CPU of shard @id where @p may run and nobody waits, or -1: by turns, for the @nth time. */
s32 calm_cpu(struct task_struct *p __arg_trusted, u32 id, u32 nth)
{
	struct shard_words *w = words_of_shard(id);
	struct shard *sh = lookup_shard(id);
	u64 calm;
	u32 k;

	if (!w || !sh)
		return -1;
	bpf_for(k, 0, SHARD_WORDS) {
		if (k >= sh->nr_words)
			break;
		calm = usable_word(p, sh, k) & ~PEEK(w->queued[k & (SHARD_WORDS - 1)]);
		if (calm)
			return cpu_in_turn(sh, k, calm, nth);
	}
	return -1;
}

/*
 * Of @cpu and any other one of node @id, by chance, that of which the queue is
 * shorter. Not static, so that it is verified once.
 */
s32 shorter_queue(struct task_struct *p __arg_trusted, s32 cpu, u32 id)
{
	struct numa_node *n = lookup_node(id);
	u32 chance = bpf_get_prandom_u32(), k;
	struct shard *sh;
	u64 usable;
	s32 other;

	if (!n || !n->nr_shards)
		return cpu;
	sh = lookup_shard(n->first_shard + (chance >> 8) % n->nr_shards);
	if (!sh || !sh->nr_words)
		return cpu;
	k = (chance >> 6) % sh->nr_words & (SHARD_WORDS - 1);
	usable = usable_word(p, sh, k);
	if (!usable)
		return cpu;
	other = cpu_in_turn(sh, k, usable, chance >> 16);
	return scx_bpf_dsq_nr_queued(other) < scx_bpf_dsq_nr_queued(cpu) ? other : cpu;
}

/*
 * Somebody waits everywhere, and @p has hardly run yet: it has nothing in the cache of
 * @cpu, where it was born as were many others, which may all wake up now. A look at one
 * other queue near and two far is enough for the longest to be hardly longer than the
 * mean.
 */
static __noinline s32 wait_anywhere(struct task_struct *p __arg_trusted, s32 cpu, u32 own)
{
	struct shard *sh = lookup_shard(own);
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	u32 chance = bpf_get_prandom_u32();
	struct seat *seat;

	if (!n)
		return cpu;
	cpu = shorter_queue(p, cpu, sh->node);
	if (n->nr_near) {
		cpu = shorter_queue(p, cpu, n->near[chance % n->nr_near & (NEAR_NODES - 1)]);
		cpu = shorter_queue(p, cpu, n->near[(chance >> 16) % n->nr_near & (NEAR_NODES - 1)]);
	}
	seat = lookup_seat(cpu);
	if (seat && seat->shard != own)
		count(STEAL_WAITS_ELSEWHERE);
	return cpu;
}

/* How long a CPU that found nothing calmer doesn't look again: longer each time, from this to that, ns. */
#define CROWDED_LEAST_NS 4000
#define CROWDED_MOST_NS 1000000

/*
 * Somebody waits at half of the CPUs of @cpu's shard, or more; if @full, at all of
 * them. Returns a CPU of a calmer node for @p to wait; or, if it is full, of another
 * shard of its node; or -1.
 */
static __noinline s32 wait_elsewhere(struct task_struct *p __arg_trusted, s32 cpu, bool full)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(bpf_get_smp_processor_id());
	u32 own = node_of(cpu), node, i;
	u64 now = scx_bpf_now();
	struct numa_node *n;
	s32 other = -1;

	if (!cc || time_before(now, cc->crowded_until))
		return -1;
	node = calmest_node(&cc->room, own);
	if (node == NO_SHARD && full)
		node = own;
	n = lookup_node(node);
	if (n) {
		bpf_for(i, 0, SHARDS_PER_NODE) {
			if (i >= n->nr_shards || other >= 0)
				break;
			other = calm_cpu(p, n->first_shard + (cpu + i) % n->nr_shards, cpu);
		}
	}
	if (other >= 0) {
		cc->crowded_ns = 0;
		count(STEAL_WAITS_ELSEWHERE);
		return other;
	}
	cc->crowded_ns = 2 * cc->crowded_ns + CROWDED_LEAST_NS;
	if (cc->crowded_ns > CROWDED_MOST_NS)
		cc->crowded_ns = CROWDED_MOST_NS;
	cc->crowded_until = now + cc->crowded_ns;
	return -1;
}

/*
 * No CPU is idle. Where is @p to wait? On @cpu, where it ran last, unless others
 * wait there already: then rather on one of its cache where nobody does; and
 * elsewhere, if many wait in this cache and fewer there, or if it has hardly run yet.
 */
static s32 wait_near(struct task_struct *p __arg_trusted, s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct shard_words *w = sh ? words_of_shard(seat->shard) : NULL;
	u32 k, waiting = 0;
	s32 other;

	if (!sh || !w)
		return cpu;
	for (k = 0; k < SHARD_WORDS; k++)
		waiting += __builtin_popcountll(PEEK(w->queued[k]));
	if (nr_shards > 1 && 2 * waiting >= sh->nr_cpus) {
		other = wait_elsewhere(p, cpu, waiting >= sh->nr_cpus);
		if (other >= 0)
			return other;
	}
	if (!is_marked_queued(seat))
		return cpu;
	other = calm_cpu(p, seat->shard, cpu + 1);
	if (other >= 0)
		return other;
	return p->se.sum_exec_runtime < slice_ns ? wait_anywhere(p, cpu, seat->shard) : cpu;
}

/*
 * @p waits on @cpu: let an idle CPU of its node, if there is one, come and take it; or
 * else, if @far, one of another. Not static, so that it is verified once.
 */
bool kick_idle_for(struct task_struct *p __arg_trusted, s32 cpu, bool far)
{
	s32 idle = claim_near(p, cpu, false);
	struct cpu_ctx *cc;

	if (idle < 0 && far)
		idle = claim_far(p, cpu, false);
	if (idle < 0)
		return false;
	cc = lookup_cpu_ctx(idle);
	if (cc)
		cc->hint = cpu + 1;
	scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
	count(STEAL_KICKS);
	return true;
}

/* So many of a queue are looked at for one that may run elsewhere. */
#define THIEF_LOOKS	4

/*
 * Let an idle CPU take the first task that waits on @cpu and may run elsewhere. False
 * if there is none for that one, but may be for others that wait.
 */
static __noinline bool call_thief(s32 cpu, struct seat *seat)
{
	struct task_struct *p;
	bool done = true;
	u32 looks = 0;

	if (!seat || scx_bpf_dsq_nr_queued(cpu) <= 0)
		return true;
	bpf_for_each(scx_dsq, p, cpu, 0) {
		if (!is_pinned(p, 0)) {
			mark_queued(seat);
			done = kick_idle_for(p, cpu, true) || runs_anywhere(p);
			break;
		}
		if (++looks == THIEF_LOOKS)
			break;
	}
	return done;
}

/*
 * Run by the daemon ten times a second, for CPUs that run nothing of ours, and so
 * have no ticks: a task may wait there as well, unseen, or seen by nobody who idles.
 */
SEC("syscall")
int steal_call_thieves(void *ctx)
{
	u64 now = scx_bpf_now();
	u32 cpu;

	bpf_for(cpu, 0, nr_cpu_ids) {
		struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
		struct seat *seat = lookup_seat(cpu);

		/* Seen is not yet called for: a CPU with ticks does that itself. */
		if (!seat || !cc ||
		    (is_marked_queued(seat) && !is_unserved(cc->served_at, 0, now)))
			continue;
		bpf_rcu_read_lock();
		call_thief(cpu, seat);
		bpf_rcu_read_unlock();
	}
	return 0;
}

#endif /* __STEAL_CLAIM_BPF_H */
