/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the BPF side and the control plane agree on about cgroups' shares.
 */
#ifndef __MANYCORE_CGROUP_SHARES_H
#define __MANYCORE_CGROUP_SHARES_H

#ifndef __VMLINUX_H__
typedef unsigned int u32;
typedef unsigned long long u64;
#endif

enum {
	/* A share that leaves the weights of a cgroup's tasks as they are. */
	SHARE_ONE	= 1024,
	/* Set in the share of a cgroup in which nobody ran or waited of late. It is a guess. */
	SHARE_GUESSED	= 1 << 30,
	/* Cgroups that have one; tasks of any more keep their weights. */
	MAX_SHARES	= 16384,
};

/* A task that runs or waits, as the iterator tells it. */
struct share_load {
	u64 cgroup;		/* id, the inode number of the cgroup's folder */
	u64 weight;		/* the task's own, 100 is nice 0 */
};

#endif /* __MANYCORE_CGROUP_SHARES_H */
