/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How much there is to do in a cache, by weight: who runs or waits there shares its
 * CPUs by weight, so where it is more for each CPU, everybody gets less.
 *
 * A mean over some 12 ms, of looks every 3: at any moment somebody is on the way.
 * Whoever takes a task from one cache to another corrects both at once.
 */
#ifndef __NUMA_LOAD_BPF_H
#define __NUMA_LOAD_BPF_H

#include "numa/ctx.bpf.h"

/* How often the load of a shard is looked at, about, in ns; and a mean is of so many looks. */
#define LOAD_EVERY_NS	3000000ULL
#define LOAD_LOOKS	4
/* Tasks of a queue that are looked at for it. */
#define LOAD_TASKS	32

/* The weights of those who run on CPUs of shard @sh. */
static __always_inline u64 running_weight(const struct shard *sh, const struct shard_words *w)
{
	u64 weight = 0, busy = 0;
	struct cpu_ctx *cc;
	u32 i, k = 0;

	bpf_for(i, 0, SHARD_MAX_CPUS + SHARD_WORDS) {
		if (!busy) {
			if (i && ++k >= SHARD_WORDS)
				break;
			busy = sh->cpus[k] & ~PEEK(w->idle[k]);
			continue;
		}
		cc = lookup_cpu_ctx(sh->first_cpu[k] + lowest(busy));
		busy &= busy - 1;
		weight += cc ? cc->run.weight : 0;
	}
	return weight;
}

/*
 * The weights of those who wait in queue @dsq; many are taken to be like the first few.
 * The loop is one of numbers, which the verifier need not follow to the last.
 */
static __always_inline u64 waiting_weight(u64 dsq, u64 now)
{
	s32 queued = scx_bpf_dsq_nr_queued(dsq);
	struct last_share share = {};
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u64 weight = 0;
	u32 i;

	if (!bpf_iter_scx_dsq_new(&it, dsq, 0)) {
		bpf_for(i, 0, LOAD_TASKS) {
			p = bpf_iter_scx_dsq_next(&it);
			if (!p)
				break;
			weight += shared_weight(p, &share, now);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return queued > LOAD_TASKS ? weight * (u32)queued / LOAD_TASKS : weight;
}

/* Now and then: how much do all weigh who run or wait in shard @id? Not static, so that it is verified once. */
int note_load(u32 id, u64 now)
{
	struct shard_words *w = words_of_shard(id);
	struct shard *sh = lookup_shard(id);
	struct queue_ctx *q = lookup_queue(id);
	u64 weight;

	if (!sh || !q || !w || time_before(now, q->load_at + LOAD_EVERY_NS))
		return 0;
	weight = waiting_weight(id, now) + running_weight(sh, w);
	/* Of long ago: nobody ran since. */
	if (time_after(now, q->load_at + LOAD_LOOKS * LOAD_LOOKS * LOAD_EVERY_NS))
		q->load = weight;
	else
		q->load += ((s64)weight - (s64)q->load) / LOAD_LOOKS;
	q->load_at = now;
	return 0;
}

/* The weight of the first in queue @dsq, 0 if it is empty. */
static __always_inline u64 first_weight(u64 dsq, u64 now)
{
	struct last_share share = {};
	struct task_struct *p;
	u64 weight = 0;

	bpf_for_each(scx_dsq, p, dsq, 0) {
		weight = shared_weight(p, &share, now);
		break;
	}
	return weight;
}

/* @weight goes from the queue @from to @to. Somebody may look at the same time, and the mean forget it. */
static __always_inline void move_load(struct queue_ctx *from, struct queue_ctx *to, u64 weight)
{
	to->load += weight;
	from->load -= weight < from->load ? weight : from->load;
}

/*
 * Would queues @q, of @other, and @own, of @sh, be closer in load if a task of this
 * weight went from there to here, by as much as half a mean task? So moves come to an
 * end. Not where few wait, as tasks that sleep now and then do for a moment: they get
 * what they need.
 */
static __always_inline bool is_heavier(const struct queue_ctx *q, const struct shard *other, u32 waiting,
				       const struct queue_ctx *own, const struct shard *sh, u64 weight)
{
	u64 mean = q->load / (waiting + other->nr_cpus);

	return waiting * 2 >= other->nr_cpus &&
	       q->load * sh->nr_cpus > own->load * other->nr_cpus +
				       (weight + mean / 2) * (sh->nr_cpus + other->nr_cpus) / 2;
}

#endif /* __NUMA_LOAD_BPF_H */
