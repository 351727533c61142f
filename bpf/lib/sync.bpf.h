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
 * Where the kernel can queue wakeups (woke_in_place()), two tasks that wake each
 * other are faster on two CPUs: neither CPU gets to be idle in between. There the
 * announcement counts for nothing, unless the user says so.
 *
 * Include after lib/shards.bpf.h.
 */
#ifndef __MANYCORE_SYNC_BPF_H
#define __MANYCORE_SYNC_BPF_H

/* Whether what a waker announces is listened to. */
const volatile bool sync_stays = true;

#define SYNC_WAKERS	64
/* Who runs for less than this from start to sleep was right, ns. */
#define SYNC_RUN_NS	100000
#define SYNC_WRONG	4
#define SYNC_TRUSTED	2	/* believed from this on */
#define SYNC_MOST	8

enum sync_state {
	SYNC_NONE,		/* the running task made no announcement */
	SYNC_SEEN,		/* it did, and the other went elsewhere */
	SYNC_STAYED,		/* it did, and the other waits on this CPU */
};

/* A part of what a CPU keeps for itself. */
struct sync_ctx {
	u32 state;
	u8 trust[SYNC_WAKERS];
};

/* A task starts to run on the CPU of @sc. */
static __always_inline void sync_start(struct sync_ctx *sc)
{
	sc->state = SYNC_NONE;
}

/* The running task wakes @p with SCX_WAKE_SYNC: may @p stay on this CPU? */
static __always_inline bool sync_may_stay(struct sync_ctx *sc, const struct task_struct *p,
					  s32 this_cpu)
{
	struct task_struct *waker = bpf_get_current_task_btf();

	if (!sync_stays)
		return false;
	/* One may: a second would wait for the first. */
	if (sc->state == SYNC_STAYED)
		return false;
	sc->state = SYNC_SEEN;
	if (sc->trust[waker->pid & (SYNC_WAKERS - 1)] < SYNC_TRUSTED ||
	    waker->flags & PF_EXITING ||
	    !(runs_anywhere(p) || bpf_cpumask_test_cpu(this_cpu, p->cpus_ptr)))
		return false;
	sc->state = SYNC_STAYED;
	return true;
}

/* @p stops after @used ns on this CPU: was what it announced true? */
static __always_inline void sync_stop(struct sync_ctx *sc, const struct task_struct *p,
				      bool sleeps, u64 used)
{
	u8 *trust = &sc->trust[p->pid & (SYNC_WAKERS - 1)];

	if (sc->state == SYNC_NONE)
		return;
	if (sleeps && used < SYNC_RUN_NS) {
		if (*trust < SYNC_MOST)
			++*trust;
	} else {
		*trust = *trust > SYNC_WRONG ? *trust - SYNC_WRONG : 0;
	}
}

#endif /* __MANYCORE_SYNC_BPF_H */
