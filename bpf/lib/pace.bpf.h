/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fairness between queues: which clock ran faster of late?
 *
 * The clock of a queue (lib/fair.bpf.h) runs the slower the more wait there, and a
 * task that moves takes only its lag along. So who waited in a long queue would
 * have got less for good, and on the same machine equal tasks would end
 * milliseconds apart. Here each CPU notes where its clock was when an epoch of
 * real time began. A task that is taken from one queue to another is behind by as
 * much as the clock here has come further since than the one there.
 *
 * A clock stands while its CPU idles. That nobody needed the CPU says nothing of how
 * fast it runs, so nothing is said of a CPU that went idle in this epoch.
 *
 * Epochs are short, and what comes of them is bounded by credit_ns like any lag:
 * a CPU with many pinned tasks may be slower than the others for ever.
 */
#ifndef __MANYCORE_PACE_BPF_H
#define __MANYCORE_PACE_BPF_H

#include "lib/fair.bpf.h"

#define PACE_SHIFT	23	/* epochs of 8.4 ms; how far a clock came is told of the last one to two */

struct pace {
	u64 epoch;
	u64 then;		/* the clock when this epoch began */
	u64 before;		/* and when the last one did */
	u64 idled;		/* the last epoch in which the CPU went idle */
};

/* The clock is @clock, at @now. To be called before it is moved on. */
static __always_inline void pace_note(struct pace *pace, u64 clock, u64 now)
{
	u64 epoch = now >> PACE_SHIFT;

	if (epoch == pace->epoch)
		return;
	/* Nobody ran here for a while: the clock has not moved. */
	pace->before = epoch == pace->epoch + 1 ? pace->then : clock;
	pace->then = clock;
	pace->epoch = epoch;
}

/* The CPU has nothing to do. */
static __always_inline void pace_idle(struct pace *pace)
{
	pace->idled = pace->epoch;
}

/* By how much more than @there did the clock @here move on? In ns of virtual runtime; 0 if that is not known. */
static __always_inline s64 pace_ahead(const struct pace *here, u64 clock_here,
				      const struct pace *there, u64 clock_there)
{
	s64 ahead;

	if (here->epoch != there->epoch || here->epoch == here->idled ||
	    there->epoch == there->idled)
		return 0;
	ahead = (clock_here - here->before) - (clock_there - there->before);
	if (ahead > (s64)credit_ns)
		return credit_ns;
	return ahead < -(s64)credit_ns ? -(s64)credit_ns : ahead;
}

#endif /* __MANYCORE_PACE_BPF_H */
