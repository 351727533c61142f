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

/* Now and then: how much do all weigh who run or wait in shard @id? Not static, so that it is verified once. */
int note_load(u32 id, u64 now)
{
	struct shard_words *w = words_of_shard(id);
	struct shard *sh = lookup_shard(id);
	struct queue_ctx *q = lookup_queue(id);
	struct weighed look = {};
	u64 weight;

	if (!sh || !q || !w || time_before(now, q->load_at + LOAD_EVERY_NS))
		return 0;
	weigh_queue(id, now, WEIGHED_MOST, &look);
	weight = look.all + running_weight(sh, w);
	/* Of long ago: nobody ran since. */
	if (time_after(now, q->load_at + LOAD_LOOKS * LOAD_LOOKS * LOAD_EVERY_NS))
		q->load = weight;
	else
		q->load += ((s64)weight - (s64)q->load) / LOAD_LOOKS;
	q->load_at = now;
	return 0;
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
