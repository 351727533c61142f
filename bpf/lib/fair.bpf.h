/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fair by weight: virtual runtime, as in the kernel's own scheduler.
 *
 * A task's virtual runtime grows by the time it ran, divided by its weight
 * (100 is nice 0), which its cgroup has a part in (lib/cgroup_shares.bpf.h). In a
 * queue the least one goes first, so over time each gets a share in proportion to
 * its weight.
 *
 * Every queue has a clock: the least virtual runtime of those who run or wait
 * there, as far as it was seen; it never goes back. Whoever was first in the
 * queue, or finds it empty, moves it on, and so does one that runs on and on with
 * nobody before it; one that overtakes the queue, coming from elsewhere, doesn't.
 * Who goes to sleep moves it on as well, up to who waits first, and a new task is as
 * far ahead as the one that started it: or tasks could come and go for ever, each at
 * the clock, before one that waits just behind it.
 * Clocks of different queues run at different speeds, so what a task takes from
 * one to another is its *lag*: how far it is ahead of (positive) or behind
 * (negative) the clock that its virtual runtime was made with.
 *
 * That is kept while it sleeps, but not the clock: what others had meanwhile
 * counts as had, so a debt fades as they catch up. If nobody ran, nobody did,
 * and a nap pays nothing. Whoever is behind, as it was kept waiting, is taken to
 * be behind by credit_ns at most; who wakes up, not at all: who slept for an hour
 * can't hold the CPU for an hour.
 *
 *	p->scx.dsq_vtime	bits 63..13	virtual runtime, ns, in steps of 8 us
 *				bit 12		waits in a queue of the policy's
 *				bits 11..0	whose clock it was made with
 *
 * or 0: the task is new here, and neither ahead nor behind.
 */
#ifndef __MANYCORE_FAIR_BPF_H
#define __MANYCORE_FAIR_BPF_H

#include "lib/cgroup_shares.bpf.h"

#define FAIR_WEIGHT	(100 * SHARE_ONE) /* of nice 0, in units of shared_weight() */
#define FAIR_RUN_MAX	(1ULL << 44)	/* ns, five hours; times FAIR_WEIGHT is still a number */
#define FAIR_LAG_MAX	(1LL << 30)	/* ns, about a second; beyond, a clock was lost */

#define FAIR_SOME	(1ULL << 15)	/* ns; a clock is not moved for less when one goes to sleep */

#define FAIR_EPOCH	(1ULL << 60)	/* where clocks start */
#define FAIR_FRAME	0xfffULL	/* whose clock: 4096 CPUs or shards */
#define FAIR_QUEUED	0x1000ULL	/* in a queue of the policy's */
#define FAIR_MARKS	(FAIR_FRAME | FAIR_QUEUED)

/* The most by which a task may be behind, in ns of virtual runtime. */
const volatile u64 credit_ns = 10000000;

/* @ns of runtime in virtual runtime of a task of this weight. */
static __always_inline u64 virtual_ns(u64 weight, u64 ns)
{
	/* Who runs alone does so for days. */
	if (ns > FAIR_RUN_MAX)
		ns = FAIR_RUN_MAX;
	return weight == FAIR_WEIGHT || !weight ? ns : ns * FAIR_WEIGHT / weight;
}

static __always_inline s64 bounded_lag(s64 lag)
{
	if (lag < -(s64)credit_ns)
		return -(s64)credit_ns;
	return lag > FAIR_LAG_MAX ? FAIR_LAG_MAX : lag;
}

/* Did the task wait in a queue of the policy's, and neither run nor leave yet? */
static __always_inline bool fair_is_queued(u64 vtime)
{
	return vtime & FAIR_QUEUED;
}

/* @p leaves the queue that it waits in, if it does, without running. Did it? */
static __always_inline bool fair_left(struct task_struct *p)
{
	bool queued = fair_is_queued(p->scx.dsq_vtime);

	if (queued)
		p->scx.dsq_vtime &= ~FAIR_QUEUED;
	return queued;
}

/* Whose clock @vtime was made with. */
static __always_inline u32 fair_frame(u64 vtime)
{
	return vtime & FAIR_FRAME;
}

/* @vtime with a note of whose clock it was made with, and FAIR_QUEUED or 0. */
static __always_inline u64 fair_marked(u64 vtime, u32 frame, u64 queued)
{
	return (vtime & ~FAIR_MARKS) | (frame & FAIR_FRAME) | queued;
}

/* How far @p is ahead of @from, the clock that its virtual runtime was made with. */
static __always_inline s64 fair_lag(const struct task_struct *p, u64 from)
{
	u64 vtime = p->scx.dsq_vtime;

	return vtime ? bounded_lag(vtime - from) : 0;
}

/*
 * @p joins a queue, or starts to run, where the clock is @clock; @from as above, and
 * whether it @slept until now. Who did goes where it is anybody's turn, which is
 * soon enough. Ahead of that, those who pass messages would run for each message,
 * and not for several at once, and nobody who wakes up later could interrupt them.
 */
static __always_inline u64 fair_join(const struct task_struct *p, u64 clock, u64 from, bool slept)
{
	s64 lag = fair_lag(p, from);

	return slept && lag < 0 ? clock : clock + lag;
}

/* Is one that goes to sleep, with virtual runtime @vtime, so far ahead of this clock that it should move? */
static __always_inline bool fair_moves(u64 clock, u64 vtime)
{
	return time_after(vtime, clock + FAIR_SOME);
}

static __always_inline u64 earlier(u64 a, u64 b)
{
	return time_before(a, b) ? a : b;
}

/*
 * Have this clock show @vtime, unless it is past it. Where CPUs share it, it is written
 * only if it changes; of two that move it at once, one may not count.
 */
static __always_inline void move_clock(u64 *clock, u64 vtime)
{
	if (time_before(*clock, vtime))
		*clock = vtime;
}

/*
 * @p of this weight stops after @used ns. What is no whole step stays in @rest, for
 * whoever stops there next: who passes messages runs for less than a step each time.
 */
static __always_inline u64 fair_leave(const struct task_struct *p, u64 weight, u64 used, u64 *rest)
{
	u64 more = virtual_ns(weight, used) + *rest;

	*rest = more & FAIR_MARKS;
	return (p->scx.dsq_vtime & ~FAIR_QUEUED) + (more & ~FAIR_MARKS);
}

#endif /* __MANYCORE_FAIR_BPF_H */
