/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the meter is told at load, and what it keeps of CPUs and tasks.
 */
#ifndef __OBSERVE_CTX_BPF_H
#define __OBSERVE_CTX_BPF_H

#include "observe.h"

const volatile __u32 nr_cpu_ids = 1;	/* one more than the highest possible CPU */
const volatile __u32 nr_possible = 1;	/* possible CPUs: a mask of so many allows every CPU */
const volatile __u32 mask_words = 1;	/* 64-bit words that hold nr_cpu_ids bits */
const volatile __u32 nr_groups = GROUP_FIRST;
const volatile __u64 min_span_ns = 0;	/* shorter spans aren't sent */
const volatile bool by_cgroup = false;
const volatile bool by_comm = false;

/* Set by userspace before each pass of the iterator. */
__u32 pass = PASS_INIT;
__u64 cut_at = 0;

/* Set once the measurement has begun: tracepoints before that only keep state. */
__u64 begin_at = 0;

__u32 next_mask = 0;
__u32 next_group = GROUP_FIRST;

struct task_ctx {
	u64 first;
	u64 waking_at;		/* sched_waking seen, not yet queued */
	u64 wake_from;		/* queued by a wakeup that began then */
	u64 queued_since;	/* 0: not waiting */
	u64 acc_since;		/* start of the part of the wait that hasn't been sent yet; 0: not waiting */
	u64 run_since;		/* 0: not running */
	u64 run_ns;
	u64 wait_ns;
	u64 lock;		/* sleeping lock it is waiting for, since when, and where */
	u64 lock_at;
	u32 lock_flags;
	s32 lock_stack;
	u32 who;		/* while waiting */
	u32 cpu;		/* while waiting: whose queue */
	s32 last_cpu;		/* ran there last */
	s32 home;		/* node where it first ran */
	u32 mask;
	bool mask_known;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_ctx);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);		/* nr_cpu_ids */
	__type(key, u32);
	__type(value, struct obs_cpu);
} cpus SEC(".maps");

/* One ring for each CPU, made by userspace, which knows how many there are. */
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);		/* nr_cpu_ids */
	__type(key, u32);
	__array(values, struct ring);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);		/* 2 * nr_groups */
	__type(key, u32);
	__type(value, struct obs_hist);
} hists SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);		/* nr_groups */
	__type(key, struct obs_group_key);
	__type(value, u32);
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_MASKS);
	__type(key, u32);
	__type(value, struct obs_mask);
} masks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_MASKS);
	__type(key, u64);		/* hash of the mask */
	__type(value, u32);		/* index in masks */
} mask_ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct obs_mask);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1);		/* 8192 if locks are watched */
	__uint(key_size, sizeof(u32));
	__uint(value_size, LOCK_STACK_DEPTH * sizeof(u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1);		/* 8192 if locks are watched */
	__type(key, struct obs_lock_key);
	__type(value, struct obs_lock);
} locks SEC(".maps");

static __always_inline struct obs_cpu *cpu_of(u32 cpu)
{
	return bpf_map_lookup_elem(&cpus, &cpu);
}

static __always_inline struct task_ctx *task_of(struct obs_cpu *cs, struct task_struct *p, u64 now)
{
	struct task_ctx *t;

	t = bpf_task_storage_get(&tasks, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t) {
		cs->no_storage++;
		return NULL;
	}
	if (!t->first) {
		t->first = now;
		t->last_cpu = -1;
		t->home = -1;
	}
	return t;
}

/* Position of the highest bit that is set; v isn't 0. */

#endif /* __OBSERVE_CTX_BPF_H */
