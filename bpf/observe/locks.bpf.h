/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Lock contention, by call site.
 */
#ifndef __OBSERVE_LOCKS_BPF_H
#define __OBSERVE_LOCKS_BPF_H

#include "observe/ctx.bpf.h"

#define LCB_F_SPIN	1

/*
 * Lock contention. A spinning lock is waited for by a CPU, a sleeping one by a task, which may spin for another lock
 * (that of its runqueue) before it sleeps: so each has its own slot, told apart by the lock's address at the end.
 * A contended spinning lock taken in an interrupt while the CPU spins for another hides that other one; it is counted.
 */
SEC("tp_btf/contention_begin")
int BPF_PROG(observe_lock_begin, void *lock, unsigned int flags)
{
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());
	u64 now = bpf_ktime_get_ns();
	struct task_ctx *t;
	s64 stack;

	if (!cs || !begin_at)
		return 0;
	stack = bpf_get_stackid(ctx, &stacks, 0);
	if (stack < 0) {
		cs->no_lock++;
		return 0;
	}
	if (flags & LCB_F_SPIN) {
		if (cs->spin_lock)
			cs->no_lock++;
		cs->spin_lock = (u64)lock;
		cs->spin_at = now;
		cs->spin_flags = flags;
		cs->spin_stack = stack;
		return 0;
	}
	t = bpf_task_storage_get(&tasks, bpf_get_current_task_btf(), NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t) {
		cs->no_lock++;
		return 0;
	}
	/* A mutex reports a new begin each time that it goes from spinning to sleeping: it is one wait. */
	if (t->lock == (u64)lock)
		return 0;
	t->lock = (u64)lock;
	t->lock_at = now;
	t->lock_flags = flags;
	t->lock_stack = stack;
	return 0;
}

static __always_inline void lock_waited(struct obs_cpu *cs, s32 stack, u32 flags, u64 ns)
{
	struct obs_lock_key key = { .stack = stack, .flags = flags };
	struct obs_lock *l = bpf_map_lookup_elem(&locks, &key), first = { 1, ns, ns };

	if (!l) {
		if (bpf_map_update_elem(&locks, &key, &first, BPF_NOEXIST))
			cs->no_lock++;
		return;
	}
	l->count++;
	l->total_ns += ns;
	if (ns > l->max_ns)
		l->max_ns = ns;
}

SEC("tp_btf/contention_end")
int BPF_PROG(observe_lock_end, void *lock)
{
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());
	u64 now = bpf_ktime_get_ns();
	struct task_ctx *t;

	if (!cs)
		return 0;
	if (cs->spin_lock == (u64)lock) {
		cs->spin_lock = 0;
		lock_waited(cs, cs->spin_stack, cs->spin_flags, now - cs->spin_at);
		return 0;
	}
	t = bpf_task_storage_get(&tasks, bpf_get_current_task_btf(), NULL, 0);
	if (t && t->lock == (u64)lock) {
		t->lock = 0;
		lock_waited(cs, t->lock_stack, t->lock_flags, now - t->lock_at);
	}
	return 0;
}

#endif /* __OBSERVE_LOCKS_BPF_H */
