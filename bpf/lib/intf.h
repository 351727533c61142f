/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the BPF side and the control plane agree on: the shape of the tables
 * that userspace fills before a scheduler is attached. bindgen turns this file
 * into Rust, so that the two sides cannot drift apart.
 */
#ifndef __MANYCORE_INTF_H
#define __MANYCORE_INTF_H

#ifndef __VMLINUX_H__
typedef unsigned int u32;
typedef unsigned long long u64;
#endif

enum {
	/* A CPU whose place is not known: it was offline at load. */
	NO_DOMAIN	= 0xffffffff,
	/*
	 * How many other domains a CPU looks at when its own has no work. A
	 * constant, so that going idle costs the same on 8 CPUs and on 4096.
	 */
	MAX_NEAR	= 16,
	/* Of a histogram: up to 2^35 ns, 34 s, longer than the kernel allows. */
	HIST_BUCKETS	= 37,
};

/* Where a CPU is; index: CPU id. */
struct cpu_place {
	u32 domain;		/* NO_DOMAIN if not known */
	u32 node;		/* for comparing; may be of a topology file */
	u32 kernel_node;	/* for kfuncs that take a node */
	u32 leaving;		/* went offline after load */
};

/* CPUs that share a queue; index: domain id. */
struct domain {
	u32 node;		/* for comparing; may be of a topology file */
	u32 kernel_node;	/* for kfuncs that take a node */
	u32 nr_cpus;		/* online now; kept up to date on hotplug */
	u32 nr_near;		/* entries used in near[] */
	u64 served_at;		/* when one of its CPUs last scheduled, roughly */
	u32 near[MAX_NEAR];	/* the nearest other domains, nearest first */
};

#endif /* __MANYCORE_INTF_H */
