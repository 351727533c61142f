/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What service classes do to fair queues (lib/fair.bpf.h):
 *
 *		latency			normal		batch
 *	waits	ahead of its place	at its place	at its place
 *	preempts batch at once, normal	as ever		never
 *		ones sooner
 *	slice	as ever			as ever		four
 *	runs	near: a CPU that runs	near		anywhere
 *		batch there before an
 *		idle one far away
 *
 * Shares stay those of cpu.weight. A latency task waits ahead of its place by
 * LATENCY_HEAD_NS of virtual runtime, which is taken back when it starts to run:
 * it is charged for all that it runs. So it goes first at once, and whenever it
 * has had no more than its share; one that has had LATENCY_HEAD_NS more than
 * that waits like everybody, and batch gets its share.
 *
 * To find a CPU that runs batch, there is a word of bits for each shard, as for
 * those that are idle. They are hints: who follows one looks again at what runs
 * there before interrupting it. Bits are written only if they change, and a CPU
 * that runs nothing but batch, or none, never changes its own.
 *
 * Limits: the head start is taken back by the class that the task has by then. If
 * that has changed while it waited, it gains or loses LATENCY_HEAD_NS once.
 */
#ifndef __MANYCORE_CLASS_PLACE_BPF_H
#define __MANYCORE_CLASS_PLACE_BPF_H

#include "lib/classes.bpf.h"
#include "lib/fair_queue.bpf.h"
#include "lib/shards.bpf.h"

#define LATENCY_HEAD_NS	(1ULL << 24)	/* 17 ms; a power of two, to leave FAIR_MARKS alone */
#define LATENCY_EAGER	4		/* it lets normal tasks run for a part of preempt_ns */
#define PINNED_EAGER	8		/* so do pinned ones: long enough for who passes them a message to sleep */
#define BATCH_SLICES	4		/* a batch slice is so many of others' */

/* Which CPUs of a shard run batch. */
struct batch_words {
	u64 cpus[SHARD_WORDS];
	u64 pad[CACHE_PAIR / 8 - SHARD_WORDS];
};

TABLE(batch_state, struct batch_words);

static __always_inline struct batch_words *batch_of_shard(u32 id)
{
	return bpf_map_lookup_elem(&batch_state, &id);
}

/* A slice for a task of this class. */
static __always_inline u64 class_slice(const struct class_entry *ce)
{
	if (!ce)
		return slice_ns;
	if (ce->slice_us)
		return ce->slice_us * 1000ULL;
	return ce->kind == CLASS_BATCH ? slice_ns * BATCH_SLICES : slice_ns;
}

/* It stays near, and rather takes the place of batch than a CPU far away or one that others keep. */
static __always_inline bool class_stays_near(const struct class_entry *ce)
{
	return ce && ce->kind == CLASS_LATENCY && ce->width != WIDTH_WIDE;
}

/* By how much a task of this kind goes ahead of its place. */
static __always_inline u64 class_head(u32 kind)
{
	return kind == CLASS_LATENCY ? LATENCY_HEAD_NS : 0;
}

/* @p of this kind leaves its queue, or has left it: back to its own virtual runtime. */
static __always_inline void class_leave(struct task_struct *p, u32 kind)
{
	if (kind == CLASS_LATENCY && fair_is_queued(p->scx.dsq_vtime))
		p->scx.dsq_vtime += LATENCY_HEAD_NS;
}

/* How much of a hurry one who waits is in. */
enum hurry {
	HURRY_NOT,		/* for a slice to end */
	HURRY_WOKEN,
	HURRY_PINNED,		/* woken, and no other CPU may help it */
	HURRY_LATENCY,		/* woken, and of the latency class */
};

/* A task of this kind joins a queue. */
static __always_inline u32 hurry_of(u32 kind, bool woken, bool pinned)
{
	if (!woken || kind == CLASS_BATCH)
		return HURRY_NOT;
	if (kind == CLASS_LATENCY)
		return HURRY_LATENCY;
	return pinned ? HURRY_PINNED : HURRY_WOKEN;
}

/* How long may the running task run before one who waits in such a hurry interrupts it? See patience(). */
static __always_inline u64 hurry_least(const struct run_ctx *run, u32 hurry)
{
	if (hurry == HURRY_PINNED && (!has_classes || run->kind != CLASS_LATENCY))
		return preempt_ns / PINNED_EAGER;
	if (!has_classes)
		return hurry ? preempt_ns : slice_ns;
	if (hurry == HURRY_NOT)
		return run->slice_ns;
	if (hurry == HURRY_LATENCY && run->kind == CLASS_BATCH)
		return 0;
	return hurry == HURRY_LATENCY && run->kind == CLASS_NORMAL ?
	       preempt_ns / LATENCY_EAGER : preempt_ns;
}

/*
 * The same for one whom only a timer can help. It lets the other run for longer:
 * a switch for each one who waits would cost those that pass messages more than
 * it gives, and a third of a slice is soon enough.
 */
static __always_inline u64 alarm_least(const struct run_ctx *run, u32 hurry)
{
	u64 least = hurry_least(run, hurry);

	return hurry == HURRY_WOKEN && least < slice_ns / 3 ? slice_ns / 3 : least;
}

/* patience() for one who waits until what runs has run for @least. */
static __always_inline s64 class_patience(const struct run_ctx *run, u64 vtime, u64 least, u64 now)
{
	if (has_classes)
		vtime += class_head(run->kind);
	/* At once, also if it is not sure that the other has begun. */
	if (has_classes && !least && time_before(vtime, run->vtime))
		return 0;
	return patience(run, vtime, least, now);
}

/*
 * May a woken task of the latency class, of virtual runtime @vtime, have the CPU
 * of @run at once, past its queue? What runs there is looked at again, since the
 * bit that led to it is a hint. By the time that the other gets there, it may be
 * a third that is interrupted: then that one goes ahead of the queue again.
 */
static __always_inline bool class_takes_over(const struct run_ctx *run, u64 vtime)
{
	return has_classes && run->kind == CLASS_BATCH &&
	       class_patience(run, vtime - LATENCY_HEAD_NS,
			      hurry_least(run, HURRY_LATENCY), scx_bpf_now()) <= 0;
}

/* The CPU of this seat runs a task of this kind; CLASS_NORMAL if it is idle. */
static __always_inline void class_runs(struct seat *seat, u32 kind)
{
	struct batch_words *w;

	if (!has_classes)
		return;
	w = batch_of_shard(seat->shard);
	if (!w)
		return;
	if (kind == CLASS_BATCH)
		set_bits(&w->cpus[seat->word & (SHARD_WORDS - 1)], seat->bit);
	else
		clear_bits(&w->cpus[seat->word & (SHARD_WORDS - 1)], seat->bit);
}

/* The task that starts to run on @cpu is of this class. */
static __always_inline void class_start(struct run_ctx *run, const struct class_entry *ce, s32 cpu)
{
	struct seat *seat;

	if (!has_classes)
		return;
	run->kind = class_kind(ce);
	run->slice_ns = class_slice(ce);
	seat = lookup_seat(cpu);
	if (seat)
		class_runs(seat, run->kind);
}

/*
 * Is the first of a queue, of virtual runtime @first, so far ahead of what runs,
 * of @mine, that it must be of the latency class?
 */
static __always_inline bool class_is_urgent(u64 first, u64 mine)
{
	return has_classes && time_before(first + LATENCY_HEAD_NS / 2, mine);
}

#define BATCH_TRIES	2

/* Take a CPU of shard @id that runs batch and that @p may use. Returns its id, or -EBUSY. */
static __noinline s32 claim_batch_in_shard(const struct task_struct *p __arg_trusted, u32 id,
					   u32 from)
{
	struct batch_words *w = batch_of_shard(id);
	struct shard *sh = lookup_shard(id);
	u32 k, try;

	if (!has_classes || !w || !sh)
		return -EBUSY;
	bpf_for(k, 0, SHARD_WORDS) {
		u32 word = k & (SHARD_WORDS - 1), first;
		u64 left;

		if (k >= sh->nr_words)
			break;
		left = PEEK(w->cpus[word]);
		if (!left)
			continue;
		first = sh->first_cpu[word];
		if (!runs_anywhere(p))
			left &= allowed_word(p, first);
		left = turned(left, from);
		bpf_for(try, 0, BATCH_TRIES) {
			u32 at;

			if (!left)
				break;
			at = (lowest(left) + from) & 63;
			left &= left - 1;
			/* Each for one: the next who looks finds another. */
			if (claim_bit(&w->cpus[word], 1ULL << at))
				return first + at;
		}
	}
	return -EBUSY;
}

/* The same for @cpu itself. */
static __always_inline bool claim_batch_cpu(const struct task_struct *p, s32 cpu, struct seat *seat)
{
	struct batch_words *w = batch_of_shard(seat->shard);

	return w && bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
	       claim_bit(&w->cpus[seat->word & (SHARD_WORDS - 1)], seat->bit);
}

/*
 * No CPU near @cpu is idle. Take one for @p, of the latency class, that runs
 * batch: @cpu itself, one of its shard, or one of @others more shards of its
 * node. Returns its id, or -EBUSY.
 */
static __always_inline s32 claim_batch_near(const struct task_struct *p, s32 cpu, u32 others)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	s32 found;
	u32 i;

	if (!has_classes || !n)
		return -EBUSY;
	if (claim_batch_cpu(p, cpu, seat))
		return cpu;
	found = claim_batch_in_shard(p, seat->shard, cpu + 1);
	bpf_for(i, 0, others) {
		if (found >= 0 || i + 1 >= n->nr_shards)
			break;
		found = claim_batch_in_shard(p, n->first_shard +
					     (sh->index + i + 1) % n->nr_shards, cpu + 1);
	}
	return found;
}

#endif /* __MANYCORE_CLASS_PLACE_BPF_H */
