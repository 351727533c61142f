/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Synchronous wakeups: is the waker really about to sleep?
 *
 * A waker says with SCX_WAKE_SYNC that it is. If that is true, the woken task is
 * best off on the waker's CPU: it starts there as soon as elsewhere, finds its
 * data in the cache, and no idle CPU has to be woken. If it is not, it waits for
 * nothing: nobody can steal it there. Pipes and sockets always say so, and a
 * sender with many receivers is wrong each time.
 *
 * So every CPU remembers of its wakers how often they were right, and believes
 * those who were so before. A wrong announcement weighs SYNC_WRONG right ones. The
 * memory is a few bytes by the lowest bits of the waker's pid, per CPU: two wakers
 * may share one, and one that moved starts anew; either costs a wrong guess or two.
 *
 * While a task stays, its CPU asks for no other: two that wake each other could keep
 * it for ever. So if others wait there, no more than SYNC_ROW stay in a row.
 *
 * Where the kernel can queue wakeups (woke_in_place()), two tasks that wake each
 * other are faster on two CPUs: neither CPU gets to be idle in between. There no
 * task stays for an announcement, unless the user says so.
 *
 * A waker that was wrong sends on, and the later its receiver comes, the more it
 * finds at once. If no CPU is idle, a policy may let such a receiver wait a bit
 * behind its place, STREAM_BACK_NS of virtual runtime, which is taken back when it
 * starts to run. That it is one is noted in p->scx.slice: by select_cpu, since only
 * that one sees the waker, and in the queue by an odd slice.
 *
 * Limits: a wakeup by an interrupt, as of who waits for a packet, counts as one by
 * the task that was interrupted.
 *
 * Include after lib/shards.bpf.h and lib/fair.bpf.h.
 */
#ifndef __MANYCORE_SYNC_BPF_H
#define __MANYCORE_SYNC_BPF_H

/* Whether a task may stay with a waker that announces to sleep. */
const volatile bool sync_stays = true;

#define SYNC_WAKERS	64
/* Who runs for less than this from start to sleep was right, ns. */
#define SYNC_RUN_NS	100000
#define SYNC_WRONG	4
#define SYNC_TRUSTED	2	/* believed from this on */
#define SYNC_MOST	8
#define SYNC_ROW	16	/* each runs for less than SYNC_RUN_NS, or isn't trusted for long */
#define SYNC_CAUGHT	(-1)	/* it was wrong last; 0: nothing is known of it */

#define STREAM_BACK_NS	(1ULL << 18)	/* 262 us; a power of two, to leave FAIR_MARKS alone */
#define STREAM_WOKEN	1	/* a slice, ns: next to nobody has just that left */
#define STREAM_QUEUED	1	/* a bit: slices are whole microseconds */

enum sync_state {
	SYNC_NONE,		/* the running task made no announcement */
	SYNC_SEEN,		/* it did, and the other went elsewhere */
	SYNC_STAYED,		/* it did, and the other waits on this CPU */
};

/* A part of what a CPU keeps for itself. */
struct sync_ctx {
	u32 state;
	u32 row;		/* so many stayed since this CPU last asked for a task */
	s8 trust[SYNC_WAKERS];
};

/* What the CPU of @sc remembers of this waker, up to SYNC_MOST. */
static __always_inline s8 *sync_trust(struct sync_ctx *sc, const struct task_struct *waker)
{
	return &sc->trust[waker->pid & (SYNC_WAKERS - 1)];
}

/* The CPU of @sc asks for a task. */
static __always_inline void sync_asks(struct sync_ctx *sc)
{
	if (sc->row)
		sc->row = 0;
}

/* Have so many stayed in a row that who waits for the CPU of @sc comes first? */
static __always_inline bool sync_is_long(const struct sync_ctx *sc)
{
	return sc->row >= SYNC_ROW;
}

/* A task starts to run on the CPU of @sc. */
static __always_inline void sync_start(struct sync_ctx *sc)
{
	sc->state = SYNC_NONE;
}

/*
 * The running task wakes @p with SCX_WAKE_SYNC: may @p stay on this CPU? @others: there are
 * such that wait for it, which is asked if sync_is_long() only.
 */
static __always_inline bool sync_may_stay(struct sync_ctx *sc, const struct task_struct *p,
					  s32 this_cpu, bool others)
{
	struct task_struct *waker = bpf_get_current_task_btf();

	/* One may: a second would wait for the first. */
	if (sc->state == SYNC_STAYED)
		return false;
	sc->state = SYNC_SEEN;
	if (!sync_stays)
		return false;
	if (sync_is_long(sc)) {
		if (others)
			return false;
		sc->row = 0;
	}
	if (*sync_trust(sc, waker) < SYNC_TRUSTED ||
	    waker->flags & PF_EXITING ||
	    !(runs_anywhere(p) || bpf_cpumask_test_cpu(this_cpu, p->cpus_ptr)))
		return false;
	sc->state = SYNC_STAYED;
	sc->row++;
	return true;
}

/* @p stops after @used ns on this CPU: was what it announced true? */
static __always_inline void sync_stop(struct sync_ctx *sc, const struct task_struct *p,
				      bool sleeps, u64 used)
{
	s8 *trust = sync_trust(sc, p);

	if (sc->state == SYNC_NONE)
		return;
	if (sleeps && used < SYNC_RUN_NS) {
		if (*trust < SYNC_MOST)
			++*trust;
	} else {
		*trust = *trust > SYNC_WRONG ? *trust - SYNC_WRONG : SYNC_CAUGHT;
	}
}

/* The running task wakes @p with SCX_WAKE_SYNC, and no CPU is idle: mark @p if that one sends on and on. */
static __always_inline void sync_mark(struct sync_ctx *sc, struct task_struct *p)
{
	if (*sync_trust(sc, bpf_get_current_task_btf()) == SYNC_CAUGHT)
		p->scx.slice = STREAM_WOKEN;	/* scx_bpf_task_set_slice() wants the run queue locked */
}

/* Was @p, which wakes up and has no new slice yet, marked so? */
static __always_inline bool sync_is_stream(const struct task_struct *p)
{
	return p->scx.slice == STREAM_WOKEN;
}

/* Where in a queue a task of virtual runtime @vtime waits, with @slice, if it is a @stream's receiver. */
static __always_inline u64 stream_place(u64 vtime, bool stream, u64 *slice)
{
	if (!stream)
		return vtime;
	*slice |= STREAM_QUEUED;
	return vtime + STREAM_BACK_NS;
}

/* @p leaves its queue, or has left it: back to its own virtual runtime. */
static __always_inline void stream_leave(struct task_struct *p)
{
	if (fair_is_queued(p->scx.dsq_vtime) && p->scx.slice & STREAM_QUEUED)
		p->scx.dsq_vtime -= STREAM_BACK_NS;
}

#endif /* __MANYCORE_SYNC_BPF_H */
