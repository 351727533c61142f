/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * When does one who waits in a queue go before the one who runs? What policies
 * with queues in the order of virtual runtime (lib/fair.bpf.h) have in common.
 */
#ifndef __MANYCORE_FAIR_QUEUE_BPF_H
#define __MANYCORE_FAIR_QUEUE_BPF_H

#include "lib/fair.bpf.h"
#include "lib/late.bpf.h"

/* How long a task may run while others wait, in ns. */
const volatile u64 slice_ns = 2000000;
/* A running task is not interrupted for a woken one before it has run for this, in ns. */
const volatile u64 preempt_ns = 300000;

/* A part of what a CPU knows: the task that runs there. */
struct run_ctx {
	u64 at;			/* when it started, as p->se.exec_start */
	u64 vtime;		/* its virtual runtime then */
	u64 weight;		/* shared_weight() then */
	u64 slice_ns;		/* for how long it may run: see lib/class_place.bpf.h */
	u32 kind;		/* its class */
	u32 hurry;		/* of one that waits for its patience to end, enum hurry; others write it, too */
	u64 skew;		/* scx_bpf_now() less the time of p->se.exec_start */
	u64 rest;		/* what runs here left in fair_leave() */
	struct last_share share;
};

/* @p starts to run with this virtual runtime. */
static __always_inline void run_start(struct run_ctx *run, const struct task_struct *p, u64 vtime)
{
	run->at = p->se.exec_start;
	run->vtime = vtime;
	run->weight = shared_weight(p, &run->share, run->at);
}

/* Each tick: @p still runs. */
static __always_inline void run_tick(struct run_ctx *run, const struct task_struct *p, u64 now)
{
	run->skew = now - p->se.exec_start;
	share_tick(p, &run->share, now);
}

/* The virtual runtime of @p, which still runs. */
static __always_inline u64 run_vtime_now(const struct run_ctx *run, const struct task_struct *p)
{
	return run->vtime + virtual_ns(run->weight, p->se.exec_start - run->at);
}

/* So late an alarm may be, as a part of a slice. */
#define LATE_ALARM	32

/*
 * @p stops after @used ns: its virtual runtime now. Who ran for a slice, give or take how
 * late the alarm was, is charged with one, so that equals have the same and go in the
 * order in which they came; or each would be overtaken by those who ran for less by a
 * microsecond, and once in a while wait for another round.
 */
static __always_inline u64 run_stop(struct run_ctx *run, const struct task_struct *p, u64 used)
{
	if (run->weight == FAIR_WEIGHT && used - (slice_ns - slice_ns / LATE_ALARM) < slice_ns / LATE_ALARM * 2)
		return (p->scx.dsq_vtime & ~FAIR_QUEUED) + (slice_ns & ~FAIR_MARKS);
	return fair_leave(p, run->weight, used, &run->rest);
}

/*
 * The clock that virtual runtime @vtime was made with, which was at @from, for one that goes
 * elsewhere before the others of its queue: it is ahead of the clock by up to a slice only
 * because those who run there now are not charged with theirs yet.
 */
static __always_inline u64 when_first(u64 from, u64 vtime)
{
	s64 ahead = vtime - from;

	if (ahead <= 0)
		return from;
	return from + (ahead < (s64)slice_ns ? (u64)ahead : slice_ns);
}

/* How long the running task has run, in ns, as far as that is known. */
static __always_inline s64 run_so_far(const struct run_ctx *run, u64 now)
{
	return now - run->skew - run->at;
}

/*
 * @p comes to the policy, maybe as a new task, while others wait here. Then it is as
 * far ahead as the one that runs here, of @run, and starts it. (Where nobody waits, that
 * one is ahead of nobody.) The clock is @clock, and whose that is @frame.
 */
static __always_inline u64 fair_enable(const struct task_struct *p, const struct run_ctx *run,
				       u64 clock, u32 frame)
{
	struct task_struct *parent = bpf_get_current_task_btf();
	s64 ran = run_so_far(run, scx_bpf_now());
	u64 vtime;

	if (p->se.sum_exec_runtime || !(parent->scx.flags & SCX_TASK_QUEUED))
		return 0;
	vtime = run->vtime + virtual_ns(run->weight, ran > 0 ? ran : 0);
	return fair_marked(time_before(vtime, clock) ? clock : vtime, frame, 0);
}

/*
 * For how long the running task may go on, in ns, before one of virtual runtime
 * @vtime interrupts it; 0 or less: now. It may run for @least, since tasks that
 * pass messages to each other are done sooner if they are left alone, and until
 * it has had more than the other.
 */
static __always_inline s64 patience(const struct run_ctx *run, u64 vtime, u64 least, u64 now)
{
	s64 ahead = vtime - run->vtime;

	if (ahead > FAIR_LAG_MAX)
		ahead = FAIR_LAG_MAX;
	if (ahead > 0 && run->weight != FAIR_WEIGHT)
		ahead = (u64)ahead * run->weight / FAIR_WEIGHT;
	return (ahead > (s64)least ? ahead : (s64)least) - run_so_far(run, now);
}

/* The virtual runtime of the first in this queue. False if it is empty. */
static __always_inline bool first_vtime(u64 dsq, u64 *vtime)
{
	struct task_struct *p;
	bool any = false;

	bpf_for_each(scx_dsq, p, dsq, 0) {
		*vtime = p->scx.dsq_vtime;
		any = true;
		break;
	}
	return any;
}

/* Tasks of a queue that are looked at at most, and where it need not be exact, to tell how heavy it is. */
#define WEIGHED_MOST	32
#define WEIGHED		8

/* A queue as others see it. */
struct weighed {
	u64 first;		/* the virtual runtime of its first task */
	s64 first_weight;	/* that one's weight */
	s64 all;		/* the weights of all; like shared_weight() */
	s32 queued;
};

/*
 * What waits in queue @dsq, at @now? Up to @most are looked at, and the others taken to
 * be like these. False if nothing waits. Not static, so that it is verified once, and
 * not anew for each way to get there; and its loop is one of numbers, which the verifier
 * need not follow to the last.
 */
bool weigh_queue(u64 dsq, u64 now, u32 most, struct weighed *look __arg_nonnull)
{
	struct last_share share = {};
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	s64 weight, seen = 0;
	u32 i, n = 0;

	look->queued = scx_bpf_dsq_nr_queued(dsq);
	if (!bpf_iter_scx_dsq_new(&it, dsq, 0)) {
		bpf_for(i, 0, WEIGHED_MOST) {
			p = i < most ? bpf_iter_scx_dsq_next(&it) : NULL;
			if (!p)
				break;
			weight = shared_weight(p, &share, now);
			if (!i) {
				look->first = p->scx.dsq_vtime;
				look->first_weight = weight;
			}
			seen += weight;
			n = i + 1;
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	if (n && look->queued > (s32)n)
		seen = (u64)seen * (u32)look->queued / n;
	look->all = seen;
	return n > 0;
}

/* So far one may always be ahead, in ns of virtual runtime: two ticks and more of nice 0. */
#define AHEAD_FREE	(1ULL << 23)
/* How long one who is further ahead waits for others to catch up, about, in ns. */
#define CATCH_UP_NS	(1ULL << 32)

/*
 * The place in queue @dsq, which has @cpus CPUs and a clock of @clock, of one whose
 * virtual runtime is @vtime; tasks of this weight run there. Who is ahead, as it ran
 * for long or has little weight, waits until all others have had as much, for longer
 * the more and the heavier they are. The kernel throws a scheduler out with which a
 * task waits for 30 s, so beyond a few, weights count for less; see also below.
 */
static __noinline u64 place_within(u64 dsq, u64 vtime, u64 clock, u32 cpus, u64 running)
{
	struct weighed look = {};
	u64 most;

	if (!time_after(vtime, clock + AHEAD_FREE))
		return vtime;
	weigh_queue(dsq, 0, WEIGHED, &look);
	most = CATCH_UP_NS * cpus / (((u64)look.all + running * cpus) / FAIR_WEIGHT + 1);
	if (most < AHEAD_FREE)
		most = AHEAD_FREE;
	return time_after(vtime, clock + most) ? clock + most : vtime;
}

/*
 * How far ahead one may be placed is told by who is there when it comes. If many more
 * come then, or heavier ones, the clock goes slower than was thought, and it would wait
 * for minutes. So each CPU looks now and then at who waits in the queues that it serves:
 * lib/late.bpf.h.
 */
struct late_look {
	u64 next;		/* when to look again, as p->se.exec_start */
	u64 since;		/* when nobody was late, in jiffies */
};

/* This far apart, in ns: who was there at the last look waits for less than twice as long. */
#define LATE_LOOK_NS	(CATCH_UP_NS * 3 / 4)
/* Others want to run, too: one who is late goes first once in so many slices. */
#define LATE_SLICES	8

/* Is it time for that, when the CPU dispatches after @prev, or nothing? Then when. */
static __always_inline bool late_is_due(const struct late_look *look, const struct run_ctx *run,
					const struct task_struct *prev, u64 *now)
{
	u64 at = run->at;

	/* Or the two are read by one instruction, which the verifier refuses. */
	barrier_var(at);
	if (prev)
		at = prev->se.exec_start;
	*now = at;
	return time_after(at, look->next);
}

/* Who waits in queue @dsq for too long has caught up with its clock. */
static __always_inline bool late_catches_up(const struct late_look *look, u64 dsq, u64 clock)
{
	return forgive_late(dsq, look->since, clock, FAIR_MARKS);
}

/* It was done, and this was found. */
static __always_inline void late_looked(struct late_look *look, u64 now, bool found)
{
	if (found) {
		look->next = now + LATE_SLICES * slice_ns;
		return;
	}
	look->next = now + LATE_LOOK_NS;
	look->since = bpf_jiffies64();
}

#endif /* __MANYCORE_FAIR_QUEUE_BPF_H */
