/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the BPF side and the control plane agree on about shards: the tables
 * that userspace fills before a scheduler is attached.
 */
#ifndef __MANYCORE_SHARDS_H
#define __MANYCORE_SHARDS_H

#ifndef __VMLINUX_H__
typedef unsigned int u32;
typedef unsigned long long u64;
#endif

enum {
	/* A CPU whose place is not known: it was offline at load. */
	NO_SHARD	= 0xffffffff,
	/* A CPU without an SMT sibling. */
	NO_CPU		= 0xffffffff,
	/* CPUs that write to the same words: more would fight over the line. */
	SHARD_MAX_CPUS	= 32,
	/* 64-CPU stretches of CPU ids that the CPUs of a shard come from. */
	SHARD_WORDS	= 4,
	/* Shards of a node, as many as there are bits in a word. */
	NODE_MAX_SHARDS	= 64,
	/* Nodes that a search visits after its own, nearest first. */
	NEAR_NODES	= 8,
};

/* Where a CPU sits; index: CPU id. */
struct seat {
	u32 shard;		/* NO_SHARD if not known */
	u32 word;		/* which of the shard's words has its bit */
	u32 sibling;		/* the other thread of its core, or NO_CPU */
	u32 sibling_word;	/* the other thread's word */
	u32 core_word;		/* that of the core's first thread */
	u32 leaving;		/* offline, or about to be */
	u64 bit;		/* its bit in its word */
	u64 sibling_bit;	/* the other thread's; 0 without one */
	u64 core_bit;		/* that of the core's first thread */
};

/* CPUs of one last-level cache, or a part of them; index: shard id. */
struct shard {
	u32 node;		/* index of its node, see below */
	u32 llc;
	u32 index;		/* its bit in the node's words */
	u32 nr_words;
	u32 first_cpu[SHARD_WORDS];	/* the CPU id of bit 0 of each word */
	u32 nr_cpus;		/* online now; kept up to date on hotplug */
	u32 pad;
	u64 cpus[SHARD_WORDS];	/* those that are online */
};

/* A node that has CPUs; index: 0, 1, ... without gaps. */
struct numa_node {
	u32 kernel_node;	/* where its queues' memory is to be */
	u32 first_shard;	/* its shards follow each other */
	u32 nr_shards;
	u32 nr_near;
	u32 near[NEAR_NODES];		/* the nearest other nodes */
	u32 distance[NEAR_NODES];	/* to each, 10 is local */
};

#endif /* __MANYCORE_SHARDS_H */
