/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scx_pilot: what scx_rustland_core's BPF side has no way to say.
 *
 * That a task which wakes up should have a CPU at once: there, slices end on timer
 * ticks only. All CPUs have those at about the same time, and userspace is asked in
 * between only if a CPU runs dry. So a task that wakes up while all are busy waits for
 * the next tick, whatever the policy says of it. Here, when one of the latency class
 * wakes up and was not given an idle CPU, one that runs batch is interrupted, the
 * nearest of a few. That CPU asks userspace who runs next, and does so: it is still the
 * policy that decides.
 *
 * Userspace writes down the class of each task that it has decided on, by pid, in
 * memory that both share. Pids that are apart by PILOT_PIDS share a place: one of
 * them may be taken for the other, which costs a switch.
 *
 * And that a task which was decided on long ago is next after all: its rank can't be
 * changed once it waits for a CPU, but many may have come since who go before it.
 *
 * And that one which was sent to a CPU that a task of a higher class then keeps is to be
 * decided on anew, and a CPU that was not woken for one be woken (lib/stuck.bpf.h).
 */
#include <scx/common.bpf.h>
#include "lib/late.bpf.h"
#include "lib/task.bpf.h"
#include "pilot.h"

char _license[] SEC("license") = "GPL";

const volatile u32 nr_cpu_ids = 1;

#define STATS_NR 1
#include "lib/stats.bpf.h"
#define STUCK_FOUND 0
/* scx_rustland_core has. */
#define STUCK_QUEUES 1
#define SLEEPS_ON(cpu, since) waits_in(cpu, cpu, since)
#include "lib/stuck.bpf.h"

/* CPUs that are looked at for one that runs batch. */
#define PROBES		8
/* How long batch may run before it is interrupted anew, in ns. */
#define PAUSE_NS	200000

/* By pid: enum pilot_class. */
u8 class_of_pid[PILOT_PIDS];

/* When each CPU was interrupted last, in ns. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, u64);
	__uint(max_entries, 1);		/* set at load */
} interrupted_at SEC(".maps");

static __always_inline u8 class_of(const struct task_struct *p)
{
	return class_of_pid[p->pid & (PILOT_PIDS - 1)];
}

/*
 * Interrupt the nearest of a few CPUs that runs batch and that @p may use, unless that
 * was done less than @pause ns ago. If one idles, nobody need be.
 */
static __noinline void interrupt_for(const struct task_struct *p __arg_trusted, u64 pause)
{
	u32 i, from = task_cpu(p);
	u64 now = bpf_ktime_get_ns();

	bpf_for(i, 0, PROBES) {
		u32 cpu = from + i;
		struct task_struct *running;
		struct rq *rq;
		u64 *at;

		if (i >= nr_cpu_ids)
			break;
		if (cpu >= nr_cpu_ids)
			cpu -= nr_cpu_ids;
		if (!bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
			continue;
		rq = bpf_per_cpu_ptr(&runqueues, cpu);
		at = bpf_map_lookup_elem(&interrupted_at, &cpu);
		if (!rq || !at)
			break;
		if (!rq->online)
			continue;
		running = rq->curr;
		if (!running->pid)
			break;
		if (class_of(running) != PILOT_BATCH || time_before(now, *at + pause))
			continue;
		*at = now;
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		break;
	}
}

/* So that userspace is asked soon: it runs where nobody else does. */
SEC("tp_btf/sched_wakeup")
int BPF_PROG(pilot_woken, struct task_struct *p)
{
	/* It is in a queue of the kernel's already if it was given an idle CPU. */
	if (class_of(p) == PILOT_LATENCY && !p->scx.dsq)
		interrupt_for(p, PAUSE_NS);
	return 0;
}

struct decided {
	s32 pid;
};

/*
 * Userspace has decided that a task is next, on a CPU that may not run it, or for more
 * tasks than one. The CPU that was interrupted when the task woke up may have taken
 * another in the meantime.
 */
SEC("syscall")
int pilot_decided(struct decided *decided)
{
	struct task_struct *p = bpf_task_from_pid(decided->pid);

	if (!p)
		return 0;
	bpf_rcu_read_lock();
	interrupt_for(p, 0);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return 0;
}

/* When nobody in the queue for any CPU had waited for too long, in jiffies. */
u64 late_since;

/* Has one go first who waits there since the last time that this found nobody. Returns whether it did. */
SEC("syscall")
int pilot_late(void *ctx)
{
	bool found;

	bpf_rcu_read_lock();
	found = forgive_late(PILOT_QUEUE, late_since, 0, 0);
	bpf_rcu_read_unlock();
	if (!found)
		late_since = bpf_jiffies64();
	return found;
}
