/* SPDX-License-Identifier: GPL-2.0-only */
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
#include "observe/ctx.bpf.h"
#include "observe/hists.bpf.h"
#include "observe/spans.bpf.h"
#include "observe/locks.bpf.h"

char _license[] SEC("license") = "GPL";

#define TASK_DEAD	0x80
#define PF_KTHREAD	0x00200000

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
