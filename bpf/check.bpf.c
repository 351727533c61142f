/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A checker of what every scheduler owes its tasks, from outside: it knows nothing of any policy, watches the core
 * scheduler's tracepoints, and can run beside any scheduler, the kernel's own included. For tests.
 *
 *	mask	no task runs on a CPU outside its mask
 *	wait	no runnable task waits for longer than a bound; one that is lost waits for ever
 *	idle	no CPU idles for longer than a bound beside work that waits and that it could run
 *	twice	no task runs on two CPUs at once
 *
 * The tracepoints keep, for each task, since when it waits or where it runs, and for each CPU, since when it idles. What
 * ends at a switch is judged there. What does not end, or concerns a task and a CPU that do nothing, is found by passes
 * of the task iterator, which userspace starts every few dozen milliseconds: so a violation that lasts for the bound and
 * a pass more is always seen.
 *
 * The mask is the kernel's own, cpus_ptr. Whoever changes it does so under the lock of the task's runqueue and moves the
 * task before it lets go, except that a running task goes on until the stopper has come; and going offline, the kernel
 * overrides masks. So for GRACE_NS after a change nothing counts.
 *
 * sched_switch and sched_wakeup of one task come one after the other, under the lock of its runqueue: its storage needs no
 * lock. The iterator only reads, but for marks that nobody else writes.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "check.h"

char _license[] SEC("license") = "GPL";

#define GRACE_NS	200000000ULL	/* after a change of its mask, where a task is counts neither way */

const volatile __u32 nr_cpu_ids = 1;		/* one more than the highest possible CPU */
const volatile __u64 wait_bound_ns = 5000000000ULL;
const volatile __u64 idle_bound_ns = 2000000000ULL;
/*
 * To prove that what is outside a mask is seen, which the kernel prevents: for tasks of this name, take this CPU for
 * excluded from every mask.
 */
const volatile char pretend_comm[CHK_COMM] = {};
const volatile __u32 pretend_cpu = CHK_NO_CPU;

struct chk_violation violations[CHK_NR_KINDS * CHK_KEPT];
__u64 nr_violations[CHK_NR_KINDS];
struct chk_longest longest;
__u64 switches;			/* roughly: of one CPU */
__u64 no_storage;		/* tasks that could not be followed for a moment */

/* Set before each pass: when it began, whether it is the first, and since when a wait is to be reported as waiting. */
__u64 pass_at;
__u32 pass_first;
__u64 waiting_since;
/* What a pass found: tasks that have waited since before waiting_since. */
__u64 nr_waiting;

struct task_ctx {
	u64 queued_since;	/* 0: not waiting */
	u64 run_since;
	u64 mask_at;		/* its mask last changed */
	u32 on;			/* 1 + the CPU that it runs on; 0: none */
	u32 cpu;		/* while waiting: whose queue the kernel has put it on */
	u32 seeded;		/* queued_since is a first pass's guess */
	u64 told_wait;		/* queued_since, or run_since, of what was told already */
	u64 told_idle;
	u64 told_mask;
	u32 slot_wait;		/* 1 + the violation that says so, and may end */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_ctx);
} tasks SEC(".maps");

struct cpu_ctx {
	u64 idle_since;		/* 0: busy, or not known */
	u64 known;		/* has switched since the programs were attached */
} __attribute__((aligned(128)));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);		/* nr_cpu_ids */
	__type(key, u32);
	__type(value, struct cpu_ctx);
} cpus SEC(".maps");

extern const struct rq runqueues __ksym;

static __always_inline struct cpu_ctx *cpu_of(u32 cpu)
{
	return bpf_map_lookup_elem(&cpus, &cpu);
}

static __always_inline struct task_ctx *find(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, NULL, 0);
}

static __always_inline struct task_ctx *follow(struct task_struct *p)
{
	struct task_ctx *t = bpf_task_storage_get(&tasks, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!t)
		__sync_fetch_and_add(&no_storage, 1);
	return t;
}

/* ints in 6.12, bytes in 7.3: read what this kernel has. */
static __always_inline bool on_cpu(struct task_struct *p)
{
	return BPF_CORE_READ_BITFIELD_PROBED(p, on_cpu);
}

/* 1: on a runqueue. 2: being moved from one to another. */
static __always_inline u32 on_rq(struct task_struct *p)
{
	return BPF_CORE_READ_BITFIELD_PROBED(p, on_rq);
}

/*
 * A BPF program disables the migration of the task that is current, so of that one's levels one is ours: then, a task that
 * really has disabled it is taken for one that hasn't. Those are judged by their mask, in which they are.
 */
static __always_inline bool stays(struct task_struct *p)
{
	if (!bpf_core_field_exists(p->migration_disabled))
		return false;
	return p->migration_disabled > (p == bpf_get_current_task_btf() ? 1 : 0);
}

static __noinline bool pretended(struct task_struct *p)
{
	char comm[CHK_COMM] = {};
	u32 i;

	bpf_probe_read_kernel_str(comm, sizeof(comm), p->comm);
	for (i = 0; i < CHK_COMM; i++) {
		if (comm[i] != pretend_comm[i])
			return false;
		if (!comm[i])
			break;
	}
	return true;
}

static __always_inline u64 read_mask(const struct cpumask *mask, u32 word)
{
	u64 bits = 0;

	bpf_probe_read_kernel(&bits, sizeof(bits), (const void *)mask + word * sizeof(bits));
	return bits;
}

/* The CPUs of @word, 64 to a word, that p may use. */
static __always_inline u64 mask_word(struct task_struct *p, u32 word)
{
	u64 bits = read_mask(BPF_CORE_READ(p, cpus_ptr), word);

	if (pretend_cpu >> 6 == word && pretended(p))
		bits &= ~(1ULL << (pretend_cpu & 63));
	return bits;
}

static __always_inline bool allowed(struct task_struct *p, u32 cpu)
{
	return mask_word(p, cpu >> 6) >> (cpu & 63) & 1;
}

/* Notes a violation. Returns 1 + its slot, or 0 if there is no room for it. */
static __noinline u32 violated(struct task_struct *p, u32 kind, u64 at, u64 ns, u64 cpus_of_it)
{
	struct chk_violation *v;
	u64 index;
	u32 slot;

	if (kind >= CHK_NR_KINDS)
		return 0;
	index = __sync_fetch_and_add(&nr_violations[kind], 1);
	if (index >= CHK_KEPT)
		return 0;
	slot = kind * CHK_KEPT + index;
	if (slot >= CHK_NR_KINDS * CHK_KEPT)
		return 0;
	v = &violations[slot];
	v->at = at;
	v->ns = ns;
	v->mask = mask_word(p, 0);
	v->pid = p->pid;
	v->tgid = p->tgid;
	v->cpu = cpus_of_it & 0xffffffff;
	v->other_cpu = cpus_of_it >> 32;
	v->policy = p->policy;
	bpf_probe_read_kernel_str(v->comm, sizeof(v->comm), p->comm);
	v->valid = 1;
	return slot + 1;
}

/* The violation of that slot, which counts from 1; NULL for 0. */
static __always_inline struct chk_violation *told(u32 slot)
{
	u32 index = slot - 1;

	return index < CHK_NR_KINDS * CHK_KEPT ? &violations[index] : NULL;
}

#define CPUS(cpu, other)	((u64)(u32)(other) << 32 | (u32)(cpu))

static __always_inline void note_wait(struct task_struct *p, u32 cpu, u64 ns)
{
	u64 most = longest.ns;

	/* A record is rare: this is not written at each switch. */
	if (ns <= most || __sync_val_compare_and_swap(&longest.ns, most, ns) != most)
		return;
	longest.pid = p->pid;
	longest.cpu = cpu;
	bpf_probe_read_kernel_str(longest.comm, sizeof(longest.comm), p->comm);
}

static __always_inline void start_wait(struct task_ctx *t, u32 cpu, u64 now)
{
	t->cpu = cpu;
	t->queued_since = now;
	t->seeded = 0;
	t->slot_wait = 0;
}

static __always_inline void end_wait(struct task_struct *p, struct task_ctx *t, u32 cpu, u64 now)
{
	struct chk_violation *v = told(t->slot_wait);
	u64 since = t->queued_since;

	t->queued_since = 0;
	t->slot_wait = 0;
	if (!since || now <= since)
		return;
	note_wait(p, t->cpu, now - since);
	if (v) {
		/* A pass has told it: say how it ended. */
		v->at = now;
		v->ns = now - since;
		v->open = 0;
	} else if (now - since > wait_bound_ns && t->told_wait != since) {
		violated(p, CHK_WAIT, now, now - since, CPUS(t->cpu, CHK_NO_CPU));
	}
}

static __always_inline void switch_in(struct task_struct *p, u32 cpu, u64 now)
{
	struct task_ctx *t = follow(p);
	u32 on;

	if (!t)
		return;
	on = t->on;
	if (on && on != cpu + 1)
		violated(p, CHK_TWICE, now, now - t->run_since, CPUS(cpu, on - 1));
	t->on = cpu + 1;
	t->run_since = now;
	end_wait(p, t, cpu, now);
	if (!allowed(p, cpu) && !stays(p) && now - t->mask_at > GRACE_NS) {
		violated(p, CHK_MASK, now, 0, CPUS(cpu, CHK_NO_CPU));
		t->told_mask = now;
	}
}

static __always_inline void switch_out(struct task_struct *p, u32 cpu, bool preempt, u64 now)
{
	struct task_ctx *t = follow(p);
	/* A signal may have turned a sleep into a yield: the task's own state is right, unless it was preempted. */
	u32 state = preempt ? 0 : p->__state;

	if (!t)
		return;
	t->on = 0;
	if (state)
		t->queued_since = 0;
	else
		start_wait(t, cpu, now);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(check_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u64 now = bpf_ktime_get_ns();
	u32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = cpu_of(cpu);

	if (!cc)
		return 0;
	if (!cpu)
		switches++;
	cc->known = 1;
	if (prev->pid)
		switch_out(prev, cpu, preempt, now);
	else
		cc->idle_since = 0;
	if (next->pid)
		switch_in(next, cpu, now);
	else
		cc->idle_since = now;
	return 0;
}

static __always_inline int woken(struct task_struct *p)
{
	struct task_ctx *t = follow(p);

	/* Woken on its way to sleep: it never left the CPU, or, preempted on that way, never left the queue. */
	if (!t || t->on || (t->queued_since && !t->seeded))
		return 0;
	start_wait(t, BPF_CORE_READ(p, thread_info.cpu), bpf_ktime_get_ns());
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(check_wakeup, struct task_struct *p)
{
	return woken(p);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(check_wakeup_new, struct task_struct *p)
{
	return woken(p);
}

SEC("tp_btf/sched_migrate_task")
int BPF_PROG(check_migrate, struct task_struct *p, int dest_cpu)
{
	struct task_ctx *t = find(p);

	if (t)
		t->cpu = dest_cpu;
	return 0;
}

/* Every scheduling class changes a mask in this function. */
SEC("fexit/set_cpus_allowed_common")
int BPF_PROG(check_mask, struct task_struct *p)
{
	struct task_ctx *t = follow(p);

	if (t)
		t->mask_at = bpf_ktime_get_ns();
	return 0;
}

/* Is there a task that waits as it should not? */
struct search {
	const struct cpumask *mask;
	u64 since;		/* the wait, or the last change of the mask */
	u64 now;
	u64 ns;			/* the longest that a CPU idled beside it */
	u32 cpu;		/* that CPU */
	u32 only;		/* it may use this CPU alone; CHK_NO_CPU: those of its mask */
};

static long look_at_cpu(u32 cpu, struct search *s)
{
	struct cpu_ctx *cc = cpu_of(cpu);
	const struct rq *rq;
	u64 since;

	if (!cc)
		return 1;
	since = cc->idle_since;
	if (!since || (s->only != CHK_NO_CPU && s->only != cpu))
		return 0;
	if (since < s->since)
		since = s->since;
	if (since >= s->now || s->now - since <= idle_bound_ns || s->now - since <= s->ns)
		return 0;
	rq = bpf_per_cpu_ptr(&runqueues, cpu);
	if (!rq || !BPF_CORE_READ(rq, online))
		return 0;
	if (!(read_mask(s->mask, cpu >> 6) >> (cpu & 63) & 1))
		return 0;
	s->ns = s->now - since;
	s->cpu = cpu;
	return 0;
}

static __always_inline void look_at_waiting(struct task_struct *p, struct task_ctx *t, u64 since)
{
	u64 now = pass_at;
	u32 cpu = t->cpu;
	struct chk_violation *v;
	struct search s = {
		.mask = BPF_CORE_READ(p, cpus_ptr),
		.now = now,
		.since = since > t->mask_at ? since : t->mask_at,
		.cpu = CHK_NO_CPU,
		.only = stays(p) ? cpu : CHK_NO_CPU,
	};

	if (since < waiting_since)
		nr_waiting++;
	if (now <= since)
		return;
	note_wait(p, cpu, now - since);
	if (now - since > wait_bound_ns) {
		if (t->told_wait != since) {
			t->told_wait = since;
			t->slot_wait = violated(p, CHK_WAIT, now, now - since, CPUS(cpu, CHK_NO_CPU));
		}
		v = told(t->slot_wait);
		if (v) {
			v->at = now;
			v->ns = now - since;
			/* It may have been picked since the look. */
			v->open = t->queued_since == since;
		}
	}
	if (now - since <= idle_bound_ns || t->told_idle == since)
		return;
	bpf_loop(nr_cpu_ids, look_at_cpu, &s, 0);
	/* Neither the task nor the CPU may have stirred meanwhile. */
	if (s.cpu != CHK_NO_CPU && t->queued_since == since && !on_cpu(p)) {
		t->told_idle = since;
		violated(p, CHK_IDLE, now, s.ns, CPUS(cpu, s.cpu));
	}
}

/* A task that is never switched out is seen outside its mask here alone. */
static __always_inline void look_at_running(struct task_struct *p, struct task_ctx *t, u32 cpu)
{
	u64 now = pass_at, since = t->run_since;

	if (since < t->mask_at)
		since = t->mask_at;
	if (now <= since || now - since <= idle_bound_ns || t->told_mask == t->run_since)
		return;
	if (allowed(p, cpu) || stays(p) || t->on != cpu + 1)
		return;
	t->told_mask = t->run_since;
	violated(p, CHK_MASK, now, now - since, CPUS(cpu, CHK_NO_CPU));
}

/* A task or a CPU about which no tracepoint has said anything yet. */
static __always_inline void first_look(struct task_struct *p)
{
	struct task_ctx *t;

	if (find(p) || on_cpu(p) || on_rq(p) != 1 || p->__state)
		return;
	t = follow(p);
	if (!t || t->on || t->queued_since)
		return;
	start_wait(t, BPF_CORE_READ(p, thread_info.cpu), pass_at);
	/* It may have been switched in and out since the look. */
	t->seeded = 1;
}

static long first_look_at_cpu(u32 cpu, void *arg)
{
	struct cpu_ctx *cc = cpu_of(cpu);
	const struct rq *rq;

	if (!cc)
		return 1;
	rq = bpf_per_cpu_ptr(&runqueues, cpu);
	if (rq && !cc->known && BPF_CORE_READ(rq, curr) == BPF_CORE_READ(rq, idle))
		cc->idle_since = pass_at;
	return 0;
}

SEC("iter/task")
int check_pass(struct bpf_iter__task *ctx)
{
	struct task_struct *p = ctx->task;
	struct task_ctx *t;
	u64 since;
	u32 on;

	if (!p) {
		if (pass_first)
			bpf_loop(nr_cpu_ids, first_look_at_cpu, NULL, 0);
		return 0;
	}
	if (!p->pid)
		return 0;
	if (pass_first) {
		first_look(p);
		return 0;
	}
	t = find(p);
	if (!t)
		return 0;
	since = t->queued_since;
	on = t->on;
	if (on)
		look_at_running(p, t, on - 1);
	else if (since && on_rq(p) == 1 && !on_cpu(p))
		look_at_waiting(p, t, since);
	return 0;
}
