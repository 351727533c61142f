/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who is called for a task that waits: an idle CPU at home, then of the node, then,
 * where the wait has become long, of another one.
 */
#ifndef __NUMA_CALL_BPF_H
#define __NUMA_CALL_BPF_H

#include "numa/homes.bpf.h"

/* A CPU of this shard that @p may run on, or -1: by turns, for the @nth time. */
static __always_inline s32 some_cpu(const struct task_struct *p, const struct shard *sh, u32 nth)
{
	u64 cpus;
	u32 k;

	bpf_for(k, 0, SHARD_WORDS) {
		if (k >= sh->nr_words)
			break;
		cpus = usable_word(p, sh, k);
		if (cpus)
			return cpu_in_turn(sh, k, cpus, nth);
	}
	return -1;
}

/* Wake this CPU, which was idle and is claimed, for a task that waits at shard @home. */
static __always_inline void kick_for(s32 idle, u32 home)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(idle);

	if (cc)
		cc->hint = home + 1;
	scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
	count(NUMA_KICKS);
}

/*
 * @p waits at shard @home: wake an idle CPU of its cache or node, if there is one.
 * This and the next are not static, so that they are verified once.
 */
bool kick_near(struct task_struct *p __arg_trusted, u32 home)
{
	struct shard *sh = lookup_shard(home);
	s32 idle = claim_in_shard(p, home, false);

	if (idle < 0 && sh)
		idle = claim_in_node(p, sh->node, home);
	if (idle < 0)
		return false;
	kick_for(idle, home);
	return true;
}

/* The same in other nodes, nearest first. */
bool kick_remote(struct task_struct *p __arg_trusted, u32 home)
{
	struct shard *sh = lookup_shard(home);
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	u32 i;

	if (!n || strict)
		return false;
	bpf_for(i, 0, NEAR_NODES) {
		s32 idle;

		if (i >= n->nr_near)
			break;
		idle = claim_in_node(p, n->near[i & (NEAR_NODES - 1)], NO_SHARD);
		if (idle < 0)
			continue;
		kick_for(idle, home);
		count(NUMA_KICKS_REMOTE);
		return true;
	}
	return false;
}

/*
 * A task waits at shard @sh, as @queued others do, and nobody idles who could come. The CPU
 * whose turn it is by that number, of this node first, then of those near, looks around when
 * its slice ends, even if nobody waits in its own cache: the next tick may be later than that
 * by two slices.
 */
static __always_inline void alarm_in_turn(const struct shard *sh, u32 queued, u64 now)
{
	struct numa_node *n = lookup_node(sh->node);
	u32 id, k, far;
	struct shard_words *w;
	struct shard *there;
	struct cpu_ctx *cc;
	u64 busy;
	s64 left;
	s32 cpu;

	if (!n || !n->nr_shards || !sh->nr_cpus)
		return;
	far = strict ? 0 : queued / (sh->nr_cpus * n->nr_shards) % (n->nr_near + 1);
	if (far)
		n = lookup_node(n->near[(far - 1) & (NEAR_NODES - 1)]);
	if (!n || !n->nr_shards)
		return;
	id = n->first_shard + queued / sh->nr_cpus % n->nr_shards;
	there = lookup_shard(id);
	w = words_of_shard(id);
	if (!there || !w || !there->nr_words)
		return;
	k = queued % there->nr_words & (SHARD_WORDS - 1);
	busy = there->cpus[k] & ~PEEK(w->idle[k]);
	if (!busy)
		return;
	cpu = cpu_in_turn(there, k, busy, queued);
	cc = lookup_cpu_ctx(cpu);
	if (!cc)
		return;
	left = hurry_least(&cc->run, HURRY_NOT) - run_so_far(&cc->run, now);
	/* It ended, and nobody looked? */
	if (left > 0 || time_after(now - cc->run.skew, cc->balance_at))
		set_alarm(cpu, now, left);
}

/* @p waits at shard @home, where the wait has become long if @late: let somebody come who would not do so anyway. */
static __always_inline void call_for(struct task_struct *p, u32 home, struct shard *sh, u32 kind,
				     bool late, u64 now)
{
	s32 queued;

	if (kick_near(p, home))
		return;
	/* More wait than there are CPUs to serve them soon: that is worth a move. Batch is wide anyway. */
	queued = scx_bpf_dsq_nr_queued(home);
	if ((late || kind == CLASS_BATCH || queued >= (s32)sh->nr_cpus) && kick_remote(p, home))
		return;
	if (queued > 0)
		alarm_in_turn(sh, queued - 1, now);
}

/* Let an idle CPU of any node come for the first who waits in this queue, if none of its own CPUs has served it for long. */
static __noinline void call_if_unserved(u32 id, struct queue_ctx *q)
{
	struct task_struct *first;

	if (!q || !is_unserved(q->served_at, q->queued_at, scx_bpf_now()))
		return;
	bpf_for_each(scx_dsq, first, id, 0) {
		if (!kick_near(first, id))
			kick_remote(first, id);
		break;
	}
}

/*
 * Run by the daemon ten times a second, for caches whose CPUs run nothing of ours, and
 * so have no ticks: idle CPUs of other nodes don't look there by themselves.
 */
SEC("syscall")
int numa_call_for_unserved(void *ctx)
{
	u32 id;

	bpf_for(id, 0, nr_shards) {
		if (scx_bpf_dsq_nr_queued(id) <= 0)
			continue;
		bpf_rcu_read_lock();
		call_if_unserved(id, lookup_queue(id));
		bpf_rcu_read_unlock();
	}
	return 0;
}

#endif /* __NUMA_CALL_BPF_H */
