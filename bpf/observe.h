/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bpf/observe.bpf.c and `manycore observe` agree on. The Rust side (scheds/manycore/src/observe/wire.rs) reads
 * these records by offset and checks their sizes, so fields are ordered to leave no padding.
 *
 * All times are CLOCK_MONOTONIC nanoseconds.
 */
#ifndef __MANYCORE_OBSERVE_H
#define __MANYCORE_OBSERVE_H

/*
 * Log-linear histogram: values below 16 ns exactly, then 16 equal steps in each power of two up to 2^40 ns (18 min).
 * A bucket is at most 1/16 of its lower bound wide, so a percentile read at the middle is within 3.2%.
 */
#define HIST_STEP_BITS	4
#define HIST_STEPS	(1 << HIST_STEP_BITS)
#define HIST_MAX_BITS	40
#define HIST_BUCKETS	((HIST_MAX_BITS - HIST_STEP_BITS + 1) * HIST_STEPS)

struct obs_hist {
	__u64 sum_ns;
	__u64 max_ns;
	__u64 buckets[HIST_BUCKETS];
};

/* Two histograms for every group: index 2 * group + one of these. */
#define HIST_WAKE	0	/* from the waker's call to the first instruction on a CPU */
#define HIST_WAIT	1	/* every stay on a runqueue, after a wakeup or a preemption */

/* Groups: all tasks, the ones for which no slot was left, then one for each cgroup or command. */
#define GROUP_ALL	0
#define GROUP_OTHER	1
#define GROUP_FIRST	2

struct obs_group_key {
	__u64 cgroup;		/* cgroup v2 id, or 0 */
	char comm[16];		/* or all zero */
};

/* Migrations: how far the CPU is that the task ran on before. */
enum obs_distance {
	DIST_SMT,		/* another hardware thread of the same core */
	DIST_LLC,		/* same last-level cache */
	DIST_NODE,		/* same NUMA node, another cache */
	DIST_REMOTE,		/* another NUMA node */
	DIST_NR,
};

/*
 * One for each CPU, written by that CPU alone but for idle_acc, which the program that closes a period also writes.
 * The first cache line is only read once all is set up, by any CPU; the others belong to this one, hence the padding.
 */
struct obs_cpu {
	__u32 core, llc, node;
	__u32 known;		/* has switched since the programs were attached */
	__u64 pad[6];

	__u64 idle_since;	/* 0: not idle */
	__u64 idle_acc;		/* start of the part of the idle time that hasn't been sent yet; 0: not idle */

	__u64 switches;		/* a task was switched in or out; idle to idle doesn't occur */
	__u64 voluntary;	/* the task that left had blocked or exited */
	__u64 preempted;	/* the task that left was still runnable */
	__u64 wakeups;
	__u64 moves;		/* sched_migrate_task: the kernel or the scheduler set another CPU for a task */
	__u64 migrations[DIST_NR];

	__u64 busy_ns;		/* time during which a task ran, as counted at its switch-out */
	__u64 home_ns;		/* of user threads: on the node where they first ran while observed */
	__u64 away_ns;		/* of user threads: on another node */

	__u64 balance_calls;
	__u64 throttles;	/* times that a CPU bandwidth limit stopped a runqueue of a cgroup here */

	/* Loss: any of these makes some figure untrue, so they are reported. */
	__u64 dropped;		/* spans or task records for which the ring had no room */
	__u64 no_storage;	/* a task for which the kernel had no room for our state */
	__u64 no_origin;	/* a task was switched in, and we hadn't seen it become runnable */
	__u64 no_mask;		/* more different affinity masks than MAX_MASKS */
	__u64 no_lock;		/* a lock contention whose end or site couldn't be recorded */

	__u64 spin_lock;	/* contended spinning lock that this CPU is waiting for, and since when, and where */
	__u64 spin_at;
	__u32 spin_flags;
	__s32 spin_stack;
};

/*
 * Who a span is about: the kind in the top bits, a CPU or a mask in the rest.
 * An idle span is a CPU running its idle task; the others are a runnable task that isn't running.
 */
#define WHO_SHIFT	28
#define WHO_IDLE	0U	/* CPU n was idle */
#define WHO_ANY		1U	/* a task that may run on every CPU waited */
#define WHO_PIN		2U	/* a task that may run on CPU n alone waited */
#define WHO_MASK	3U	/* a task that may run on the CPUs of mask n waited */

struct obs_span {
	__u64 since;		/* when the idle time or the wait began */
	__u64 start;		/* begin of the part that this record is about: later than since if cut by a period's end */
	__u64 end;
	__u32 who;
	__u32 cpu;		/* of a wait: the CPU on whose queue the kernel had put it last */
};

struct obs_task {
	__u32 pid;
	__u32 tgid;
	__u32 who;		/* affinity, as above */
	__u32 weight;		/* nice weight (1024 is nice 0), not the cgroup's */
	__u32 policy;		/* SCHED_* */
	__u32 exited;
	__u64 first;		/* first seen */
	__u64 last;		/* now, or when it exited */
	__u64 run_ns;
	__u64 wait_ns;
	char comm[16];
};

#define MAX_MASKS	256
#define MASK_WORDS	64	/* up to 4096 CPUs */

struct obs_mask {
	__u64 words[MASK_WORDS];
};

struct obs_lock_key {
	__s32 stack;
	__u32 flags;
};

struct obs_lock {
	__u64 count;
	__u64 total_ns;
	__u64 max_ns;
};

#define LOCK_STACK_DEPTH 16

/* What the task iterator does on a pass. */
enum obs_pass {
	PASS_INIT,		/* note what runs and what waits as the measurement begins */
	PASS_CUT,		/* send the open part of every wait and idle time up to cut_at */
	PASS_TASKS,		/* the same, and write one struct obs_task for each task seen */
};

#endif /* __MANYCORE_OBSERVE_H */
