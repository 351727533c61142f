/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The meter behind `manycore observe`: it watches the core scheduler's tracepoints, so it measures EEVDF, CFS and any
 * sched_ext scheduler by the same definitions.
 *
 * How wasted CPU time is measured. At any moment it is min(idle CPUs, queued tasks that may run on one of them). To add
 * this up in the kernel, every wakeup and switch on every CPU would have to update one shared state, affinity masks
 * included. Instead each CPU sends *spans* to a ring of its own: "CPU 3 was idle from a to b", "a task that may run
 * anywhere waited from a to b". A span says all that there is to know about it, so spans may arrive in any order, clocks
 * of two CPUs that differ by a microsecond cost a microsecond of error and no confusion, nothing is shared between CPUs,
 * and userspace computes the exact integral from them, affinity and all (scheds/manycore/src/observe/waste.rs).
 *
 * A span is sent when it ends. To account for those that are still open (a hog that never lets a task run is the very
 * thing to find), userspace closes each period with one pass of the task iterator, which sends the open part of each.
 *
 * Where the state of a task changes hands: sched_switch and sched_wakeup run under the lock of the task's runqueue, so
 * for one task they come one after the other, and its storage needs no lock. The one exception is the iterator, hence
 * the atomic exchange on acc_since.
 *
 * What it can't see: a task of a cgroup that is throttled by cpu.max is on a queue and may not run; it counts as waiting,
 * and the throttles are counted so that the reader is warned. Core scheduling's forced idle counts as idle.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "observe.h"

char _license[] SEC("license") = "GPL";

#define TASK_DEAD	0x80
#define PF_KTHREAD	0x00200000
#define LCB_F_SPIN	1

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
static __always_inline u32 log2_u64(u64 v)
{
	u32 r = 0;

	if (v >> 32) { v >>= 32; r += 32; }
	if (v >> 16) { v >>= 16; r += 16; }
	if (v >> 8) { v >>= 8; r += 8; }
	if (v >> 4) { v >>= 4; r += 4; }
	if (v >> 2) { v >>= 2; r += 2; }
	if (v >> 1) r += 1;
	return r;
}

static __always_inline u32 hist_bucket(u64 ns)
{
	u32 msb;

	if (ns < HIST_STEPS)
		return ns;
	if (ns >= 1ULL << HIST_MAX_BITS)
		return HIST_BUCKETS - 1;
	msb = log2_u64(ns);
	return (msb - HIST_STEP_BITS + 1) * HIST_STEPS + ((ns >> (msb - HIST_STEP_BITS)) & (HIST_STEPS - 1));
}

static __always_inline void hist_add(u32 group, u32 which, u64 ns)
{
	u32 key = 2 * group + which, bucket = hist_bucket(ns);
	struct obs_hist *h = bpf_map_lookup_elem(&hists, &key);

	if (!h || bucket >= HIST_BUCKETS)
		return;
	h->buckets[bucket]++;
	h->sum_ns += ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
}

static __noinline u32 group_of(struct task_struct *p)
{
	struct obs_group_key key = {};
	u32 *found, slot;

	if (by_cgroup)
		key.cgroup = BPF_CORE_READ(p, cgroups, dfl_cgrp, kn, id);
	else
		bpf_probe_read_kernel_str(key.comm, sizeof(key.comm), p->comm);

	found = bpf_map_lookup_elem(&groups, &key);
	if (found)
		return *found;
	if (next_group >= nr_groups)
		return GROUP_OTHER;
	slot = __sync_fetch_and_add(&next_group, 1);
	if (slot >= nr_groups)
		return GROUP_OTHER;
	/* Another CPU may have been first; our slot then stays empty, which costs nothing but the slot. */
	bpf_map_update_elem(&groups, &key, &slot, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&groups, &key);
	return found ? *found : GROUP_OTHER;
}

static __always_inline void record(struct task_struct *p, u32 which, u64 ns)
{
	hist_add(GROUP_ALL, which, ns);
	if (by_cgroup || by_comm)
		hist_add(group_of(p), which, ns);
}

static __always_inline void send(struct obs_cpu *cs, void *data, u64 size)
{
	u32 cpu = bpf_get_smp_processor_id();
	void *ring = bpf_map_lookup_elem(&rings, &cpu);

	/* Userspace looks at the rings by itself: a wakeup from here would be a wakeup in what is measured. */
	if (!ring || bpf_ringbuf_output(ring, data, size, BPF_RB_NO_WAKEUP))
		cs->dropped++;
}

static __always_inline void send_span(struct obs_cpu *cs, u64 since, u64 start, u64 end, u32 who, u32 cpu)
{
	struct obs_span span = { .since = since, .start = start, .end = end, .who = who, .cpu = cpu };

	if (!begin_at || end <= start || end - since < min_span_ns)
		return;
	send(cs, &span, sizeof(span));
}

/* Number of the mask that p may run on, a new one if it hasn't been seen before. */
static __noinline u32 mask_of(struct obs_cpu *cs, struct task_struct *p)
{
	u64 hash = 0xcbf29ce484222325ULL;
	u32 zero = 0, words = mask_words, id, *found, i;
	struct obs_mask *m = bpf_map_lookup_elem(&scratch, &zero);
	const void *bits = p->cpus_ptr;

	if (!m || words > MASK_WORDS)
		return MAX_MASKS;
	/* The rest of the scratch mask was never written: it is 0. */
	if (bpf_probe_read_kernel(m, words * sizeof(u64), bits))
		return MAX_MASKS;
	for (i = 0; i < MASK_WORDS; i++) {
		if (i >= words)
			break;
		hash = (hash ^ m->words[i]) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 29;
	}

	found = bpf_map_lookup_elem(&mask_ids, &hash);
	if (found)
		return *found;
	if (next_mask >= MAX_MASKS)
		return MAX_MASKS;
	id = __sync_fetch_and_add(&next_mask, 1);
	if (id >= MAX_MASKS || bpf_map_update_elem(&masks, &id, m, BPF_ANY))
		return MAX_MASKS;
	bpf_map_update_elem(&mask_ids, &hash, &id, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&mask_ids, &hash);
	return found ? *found : MAX_MASKS;
}

/*
 * Running a BPF program disables the migration of the task that is current, in recent kernels of a tracepoint's too. So of
 * a task that is being switched out one such level is ours; where it isn't, a task that is preempted in the short stretches
 * in which it must not migrate is taken for free.
 */
static __always_inline bool migration_disabled(struct task_struct *p)
{
	if (!bpf_core_field_exists(p->migration_disabled))
		return false;
	return p->migration_disabled > (p == bpf_get_current_task_btf() ? 1 : 0);
}

/* Where p may run. A task with migration disabled stays where it is, whatever its mask says. */
static __always_inline u32 who_of(struct obs_cpu *cs, struct task_ctx *t, struct task_struct *p, u32 cpu)
{
	u32 allowed = p->nr_cpus_allowed;

	if (allowed == 1 || migration_disabled(p))
		return WHO_PIN << WHO_SHIFT | cpu;
	if (allowed >= nr_possible)
		return WHO_ANY << WHO_SHIFT;
	if (!t->mask_known) {
		t->mask = mask_of(cs, p);
		t->mask_known = t->mask < MAX_MASKS;
	}
	if (!t->mask_known) {
		cs->no_mask++;
		return WHO_ANY << WHO_SHIFT;
	}
	return WHO_MASK << WHO_SHIFT | t->mask;
}

static __always_inline void start_wait(struct obs_cpu *cs, struct task_ctx *t, struct task_struct *p, u32 cpu, u64 now)
{
	t->who = who_of(cs, t, p, cpu);
	t->cpu = cpu;
	t->queued_since = now;
	t->acc_since = now;
}

static __always_inline void fill_task(struct obs_cpu *cs, struct task_ctx *t, struct task_struct *p, u64 now,
				      struct obs_task *r)
{
	u64 begin = begin_at, since;

	r->pid = p->pid;
	r->tgid = p->tgid;
	r->who = who_of(cs, t, p, 0);
	r->weight = p->se.load.weight >> 10;
	r->policy = p->policy;
	r->first = t->first > begin ? t->first : begin;
	r->last = now;
	r->run_ns = t->run_ns;
	since = t->run_since;
	if (since && since < now)
		r->run_ns += now - since;
	r->wait_ns = t->wait_ns;
	since = t->queued_since;
	if (since && since < now)
		r->wait_ns += now - since;
	bpf_probe_read_kernel_str(r->comm, sizeof(r->comm), p->comm);
}

static __always_inline void switch_out(struct obs_cpu *cs, struct task_struct *p, u32 cpu, bool preempt, u64 now)
{
	struct task_ctx *t = task_of(cs, p, now);
	/*
	 * The tracepoint's prev_state is stale if a signal turned a sleep into a yield (before 6.16), so ask the task: at
	 * this point its state is TASK_RUNNING unless it has been dequeued. A preempted task may have any state.
	 */
	u32 state = preempt ? 0 : p->__state;
	u64 ran;

	if (state)
		cs->voluntary++;
	else
		cs->preempted++;
	if (!t)
		return;

	if (t->run_since) {
		ran = now - t->run_since;
		t->run_ns += ran;
		t->run_since = 0;
		cs->busy_ns += ran;
		if (!(p->flags & PF_KTHREAD)) {
			if (t->home == (s32)cs->node)
				cs->home_ns += ran;
			else
				cs->away_ns += ran;
		}
	}
	t->last_cpu = cpu;
	t->wake_from = 0;
	if (!state) {
		start_wait(cs, t, p, cpu, now);
		return;
	}
	t->queued_since = 0;
	t->acc_since = 0;
	if (state & TASK_DEAD && begin_at) {
		struct obs_task r = { .exited = 1 };

		fill_task(cs, t, p, now, &r);
		send(cs, &r, sizeof(r));
	}
}

static __always_inline void count_migration(struct obs_cpu *cs, u32 from)
{
	struct obs_cpu *old = cpu_of(from);

	if (!old)
		return;
	if (old->node != cs->node)
		cs->migrations[DIST_REMOTE]++;
	else if (old->llc != cs->llc)
		cs->migrations[DIST_NODE]++;
	else if (old->core != cs->core)
		cs->migrations[DIST_LLC]++;
	else
		cs->migrations[DIST_SMT]++;
}

static __always_inline void switch_in(struct obs_cpu *cs, struct task_struct *p, u32 cpu, u64 now)
{
	struct task_ctx *t = task_of(cs, p, now);
	u64 from;

	if (!t)
		return;

	from = __sync_lock_test_and_set(&t->acc_since, 0);
	if (from && t->queued_since) {
		send_span(cs, t->queued_since, from, now, t->who, t->cpu);
		if (now > t->queued_since) {
			t->wait_ns += now - t->queued_since;
			record(p, HIST_WAIT, now - t->queued_since);
		}
	} else if (begin_at) {
		cs->no_origin++;
	}
	if (t->wake_from) {
		record(p, HIST_WAKE, now > t->wake_from ? now - t->wake_from : 0);
		t->wake_from = 0;
	}
	t->queued_since = 0;
	t->run_since = now;
	if (t->last_cpu >= 0 && t->last_cpu != (s32)cpu)
		count_migration(cs, t->last_cpu);
	if (t->home < 0)
		t->home = cs->node;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(observe_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u64 now = bpf_ktime_get_ns(), from;
	u32 cpu = bpf_get_smp_processor_id();
	struct obs_cpu *cs = cpu_of(cpu);

	if (!cs)
		return 0;
	cs->switches++;
	if (prev->pid) {
		switch_out(cs, prev, cpu, preempt, now);
	} else {
		from = __sync_lock_test_and_set(&cs->idle_acc, 0);
		if (from)
			send_span(cs, cs->idle_since, from, now, WHO_IDLE << WHO_SHIFT | cpu, cpu);
		cs->idle_since = 0;
	}
	if (next->pid) {
		switch_in(cs, next, cpu, now);
	} else {
		cs->idle_since = now;
		cs->idle_acc = now;
	}
	if (!cs->known)
		cs->known = 1;
	return 0;
}

/* The waker has chosen to wake p; which CPU it will run on, and whether it slept at all, isn't known yet. */
SEC("tp_btf/sched_waking")
int BPF_PROG(observe_waking, struct task_struct *p)
{
	u64 now = bpf_ktime_get_ns();
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());
	struct task_ctx *t;

	if (!cs)
		return 0;
	t = task_of(cs, p, now);
	if (t)
		t->waking_at = now;
	return 0;
}

static __always_inline int woken(struct task_struct *p)
{
	u64 now = bpf_ktime_get_ns();
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());
	struct task_ctx *t;
	u64 from;

	if (!cs)
		return 0;
	t = task_of(cs, p, now);
	if (!t)
		return 0;
	from = t->waking_at;
	t->waking_at = 0;
	/* Woken on its way to sleep: it never left the CPU. Or preempted on that way: it never left the queue. */
	if (t->run_since || t->queued_since)
		return 0;
	cs->wakeups++;
	t->wake_from = from ? from : now;
	start_wait(cs, t, p, BPF_CORE_READ(p, thread_info.cpu), now);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(observe_wakeup, struct task_struct *p)
{
	return woken(p);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(observe_wakeup_new, struct task_struct *p)
{
	return woken(p);
}

SEC("tp_btf/sched_migrate_task")
int BPF_PROG(observe_migrate, struct task_struct *p, int dest_cpu)
{
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());
	struct task_ctx *t;

	if (!cs)
		return 0;
	cs->moves++;
	t = bpf_task_storage_get(&tasks, p, NULL, 0);
	if (t)
		t->cpu = dest_cpu;
	return 0;
}

/* Every scheduling class changes the mask in this function. If p is waiting, its wait goes on under the new mask. */
SEC("fexit/set_cpus_allowed_common")
int BPF_PROG(observe_affinity, struct task_struct *p)
{
	u64 now = bpf_ktime_get_ns(), from;
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());
	struct task_ctx *t;
	u32 who;

	if (!cs)
		return 0;
	t = bpf_task_storage_get(&tasks, p, NULL, 0);
	if (!t)
		return 0;
	t->mask_known = false;
	if (!t->queued_since)
		return 0;
	who = t->who;
	t->who = who_of(cs, t, p, BPF_CORE_READ(p, thread_info.cpu));
	if (t->who == who)
		return 0;
	from = __sync_lock_test_and_set(&t->acc_since, now);
	send_span(cs, t->queued_since, from, now, who, t->cpu);
	return 0;
}

/* The attach target is set to whichever name this kernel has. */
SEC("fentry/sched_balance_rq")
int BPF_PROG(observe_balance)
{
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());

	if (cs)
		cs->balance_calls++;
	return 0;
}

SEC("fentry/throttle_cfs_rq")
int BPF_PROG(observe_throttle)
{
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());

	if (cs)
		cs->throttles++;
	return 0;
}

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

/* These two are ints in 6.12 and bytes in 7.3: read what this kernel has. */
static __always_inline bool on_cpu(struct task_struct *p)
{
	return BPF_CORE_READ_BITFIELD_PROBED(p, on_cpu);
}

static __always_inline bool on_rq(struct task_struct *p)
{
	return BPF_CORE_READ_BITFIELD_PROBED(p, on_rq);
}

/* A task about which no tracepoint has said anything yet: what does it do as the measurement begins? */
static __always_inline void init_task(struct obs_cpu *cs, struct task_struct *p)
{
	u64 now = cut_at;
	struct task_ctx *t;
	u32 cpu;

	t = bpf_task_storage_get(&tasks, p, NULL, 0);
	if (t)
		return;
	if (!on_cpu(p) && (!on_rq(p) || p->__state))
		return;
	t = task_of(cs, p, now);
	if (!t)
		return;
	cpu = BPF_CORE_READ(p, thread_info.cpu);
	/*
	 * It may be switched in or out between the look and these writes. Such a state mends itself at its next switch, and
	 * the passes below look at on_cpu too, so no wait that isn't one is ever sent.
	 */
	if (on_cpu(p)) {
		struct obs_cpu *on = cpu_of(cpu);

		t->run_since = now;
		t->last_cpu = cpu;
		t->home = on ? (s32)on->node : -1;
	} else {
		start_wait(cs, t, p, cpu, now);
	}
}

static __always_inline void cut_task(struct obs_cpu *cs, struct task_ctx *t, struct task_struct *p)
{
	u64 from = t->acc_since;

	if (!from || from >= cut_at || on_cpu(p) || p->__state)
		return;
	if (__sync_val_compare_and_swap(&t->acc_since, from, cut_at) == from)
		send_span(cs, t->queued_since, from, cut_at, t->who, t->cpu);
}

extern const struct rq runqueues __ksym __weak;

static long pass_cpu(u32 cpu, void *arg)
{
	struct obs_cpu *cs = cpu_of(cpu), *own = cpu_of(bpf_get_smp_processor_id());
	struct rq *rq;
	u64 from;

	if (!cs || !own)
		return 1;
	if (pass == PASS_INIT) {
		/* A CPU that hasn't switched since the programs were attached: idle if it runs its idle task. */
		if (cs->known || !bpf_ksym_exists(&runqueues))
			return 0;
		rq = bpf_per_cpu_ptr(&runqueues, cpu);
		if (rq && BPF_CORE_READ(rq, curr) == BPF_CORE_READ(rq, idle)) {
			cs->idle_since = cut_at;
			cs->idle_acc = cut_at;
		}
		return 0;
	}
	from = cs->idle_acc;
	if (!from || from >= cut_at)
		return 0;
	if (__sync_val_compare_and_swap(&cs->idle_acc, from, cut_at) == from)
		send_span(own, cs->idle_since, from, cut_at, WHO_IDLE << WHO_SHIFT | cpu, cpu);
	return 0;
}

SEC("iter/task")
int observe_pass(struct bpf_iter__task *ctx)
{
	struct obs_cpu *cs = cpu_of(bpf_get_smp_processor_id());
	struct task_struct *p = ctx->task;
	struct task_ctx *t;

	if (!cs)
		return 0;
	if (!p) {
		/* After the last task: the CPUs. */
		bpf_loop(nr_cpu_ids, pass_cpu, NULL, 0);
		return 0;
	}
	if (!p->pid)
		return 0;
	if (pass == PASS_INIT) {
		init_task(cs, p);
		return 0;
	}
	t = bpf_task_storage_get(&tasks, p, NULL, 0);
	if (!t || !t->first)
		return 0;
	cut_task(cs, t, p);
	if (pass == PASS_TASKS) {
		struct obs_task r = {};

		fill_task(cs, t, p, cut_at, &r);
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	}
	return 0;
}
