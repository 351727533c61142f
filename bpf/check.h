/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the checker tells: violations of what every scheduler owes its tasks. Shared with its user in Rust, which reads
 * them from the object's data section.
 */
#ifndef __MANYCORE_CHECK_H
#define __MANYCORE_CHECK_H

enum chk_kind {
	CHK_MASK,		/* runs on a CPU outside its mask */
	CHK_WAIT,		/* runnable, and waits for longer than the bound */
	CHK_IDLE,		/* waits while a CPU that it may use idles, for longer than the bound */
	CHK_TWICE,		/* runs on two CPUs at once */
	CHK_NR_KINDS,
};

/* Of each kind so many are kept; all are counted. */
#define CHK_KEPT	32
#define CHK_COMM	16
#define CHK_NO_CPU	0xffffffffU

struct chk_violation {
	__u64 at;		/* CLOCK_MONOTONIC, ns, when it was seen */
	__u64 ns;		/* for how long it had been so, ns */
	__u64 mask;		/* the CPUs from 0 to 63 that the task may use */
	__u32 pid;
	__u32 tgid;
	__u32 cpu;		/* where it runs or waits */
	__u32 other_cpu;	/* the one that idles, or where it runs as well */
	__u32 policy;		/* SCHED_* */
	__u32 open;		/* it still waited when last looked at */
	__u64 valid;		/* written last */
	char comm[CHK_COMM];
};

/* The longest wait that was seen, whether or not it was too long. */
struct chk_longest {
	__u64 ns;
	__u32 pid;
	__u32 cpu;
	char comm[CHK_COMM];
};

#endif /* __MANYCORE_CHECK_H */
