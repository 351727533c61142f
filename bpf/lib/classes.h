/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the BPF side and the control plane agree on about service classes: the
 * entries of the map from cgroup ids to classes, which the daemon fills as
 * cgroups come and go.
 */
#ifndef __MANYCORE_CLASSES_H
#define __MANYCORE_CLASSES_H

#ifndef __VMLINUX_H__
typedef unsigned int u32;
typedef unsigned long long u64;
#endif

enum {
	/* Cgroups that can have a class, with a policy. */
	MAX_CLASSED	= 16384,
};

enum task_class {
	CLASS_NORMAL,
	CLASS_LATENCY,
	CLASS_BATCH,
};

/* How far the tasks of a cgroup may be spread. */
enum class_width {
	WIDTH_BY_CLASS,		/* the policy file doesn't say */
	WIDTH_NARROW,		/* a last-level cache */
	WIDTH_NODE,
	WIDTH_WIDE,		/* everywhere */
};

/* Key: cgroup id, the inode number of the cgroup's folder. */
struct class_entry {
	u32 kind;		/* enum task_class */
	u32 width;		/* enum class_width */
	u32 slice_us;		/* 0: the scheduler's own */
	u32 pad;
};

#endif /* __MANYCORE_CLASSES_H */
