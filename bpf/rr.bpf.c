/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scx_rr: round-robin.
 *
 * Tasks wait in first-in, first-out queues and run for a fixed slice; when it
 * is used up they go to the tail again. A task that slept joins at the tail as
 * well. There are no priorities and no weights.
 *
 * There is one queue per domain, by default the CPUs that share a last-level
 * cache, because one queue for a big machine is one lock for a big machine.
 * And each CPU has a small queue for the tasks that can run nowhere else:
 *
 *      domain 0                          domain 1
 *      [t9 t7 t4 t2]────────┐            [t8]──┐
 *           │      │        │             │    │
 *   [k]──> CPU 0  CPU 1   CPU 2         CPU 3  CPU 4 <──[t5]
 *    pinned tasks
 *
 * Good at: being understood; throughput of equal, CPU-bound tasks; never
 * starving anybody. Bad at: latency, since a woken task waits for all who came
 * before it; different priorities (nice levels and cpu.weight are ignored); and
 * many tasks with narrow affinity masks, which all others in their queue have
 * to step over.
 *
 * Read the operations at the end first, in the order of a task's life:
 * select_cpu, enqueue, dispatch.
 */
#include <scx/common.bpf.h>

#include "rr.h"

#define STATS_NR RR_NR_EVENTS
#include "lib/stats.bpf.h"
#define HISTS_NR RR_NR_HISTS
#include "lib/hist.bpf.h"
#include "lib/domains.bpf.h"
#include "lib/task.bpf.h"
#include "lib/unserved.bpf.h"
#define STUCK_FOUND RR_STUCK
#define SLEEPS_ON(cpu, since) waits_in(domain_of(cpu), cpu, since)
#include "lib/stuck.bpf.h"

char _license[] SEC("license") = "GPL";

UEI_DEFINE(uei);

/* How long a task may run before it goes to the tail, in ns. */
const volatile u64 slice_ns = 4000000;
/* Tasks of other classes run beside ours. */
const volatile bool partial = false;

/*
 * So many pinned tasks may run on a CPU in a row before the domain's queue has
 * its turn. They go first, because nobody else can serve them; but pinned tasks
 * that never sleep, on all CPUs, must not starve everybody else.
 */
#define PINNED_BURST 4

/* A domain's queue has the domain's id; a CPU's queue of pinned tasks this. */
#define PINNED_DSQ(cpu) ((1ULL << 32) | (u32)(cpu))

/* What a CPU remembers between calls. Others only ever write hint. */
struct cpu_ctx {
	u32 hint;		/* 1 + the domain that this CPU was woken for */
	u32 pinned_run;		/* pinned tasks taken in a row */
	u32 next_look;		/* domain to compare the own one with next */
	u64 look_at;		/* when, in ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct cpu_ctx);
	__uint(max_entries, 1);
} cpu_ctxs SEC(".maps");

static struct cpu_ctx *lookup_cpu_ctx(s32 cpu)
{
	u32 zero = 0;

	return bpf_map_lookup_percpu_elem(&cpu_ctxs, &zero, cpu);
}

/*
 * Take the first task of @dsq that may run on this CPU. The kernel skips those
 * that may not, and does so under the locks that keep affinity stable: whatever
 * a task's mask was when it was queued, what counts is its mask now. The cost
 * is a step over each skipped task with the queue locked.
 */
static bool take(u64 dsq, u32 event)
{
	if (!scx_bpf_dsq_move_to_local(dsq, 0))
		return false;
	count(event);
	return true;
}

static bool take_from(u32 other, s32 cpu)
{
	struct domain *d = lookup_domain(other);

	/* A queue that does not exist has a negative length. */
	if (!d || scx_bpf_dsq_nr_queued(other) <= 0)
		return false;
	return take(other, d->node == node_of(cpu) ? RR_DISP_NODE : RR_DISP_REMOTE);
}

/*
 * Keep the queues about equally long for their number of CPUs: tasks that never
 * sleep stay where they are, so without this a domain that got more of them
 * would give each a smaller share forever.
 *
 * Once a slice, each CPU compares its own queue with one other, taking turns.
 * That costs the same however many domains there are, and it also empties a
 * queue whose CPUs went offline, or do something else. One task per move and a
 * margin of more than one task make sure that two equal queues don't pass tasks
 * to and fro.
 */
static bool take_from_longer(s32 cpu, u32 dom, struct cpu_ctx *cc)
{
	struct domain *own = lookup_domain(dom), *d;
	u64 now = scx_bpf_now();
	s32 mine, theirs;
	u32 other;

	if (nr_domains < 2 || !own)
		return false;
	note_served(&own->served_at, now);
	if (time_before(now, cc->look_at))
		return false;
	cc->look_at = now + slice_ns;
	other = cc->next_look % nr_domains;
	cc->next_look = other + 1;

	d = lookup_domain(other);
	if (!d || other == dom)
		return false;
	mine = scx_bpf_dsq_nr_queued(dom);
	theirs = scx_bpf_dsq_nr_queued(other);
	if (mine < 0 || theirs <= 0)
		return false;
	if ((u64)theirs * own->nr_cpus <= ((u64)mine + 1 + own->nr_cpus / 4) * d->nr_cpus &&
	    !is_unserved(d->served_at, 0, now))
		return false;

	if (!take_from(other, cpu))
		return false;
	count(RR_BALANCED);
	return true;
}

/* The usual case: a task of this CPU or of its domain. */
static bool take_own(s32 cpu, u32 dom, struct cpu_ctx *cc)
{
	bool pinned_first = cc->pinned_run < PINNED_BURST;

	if (pinned_first && take(PINNED_DSQ(cpu), RR_DISP_PINNED)) {
		cc->pinned_run++;
		return true;
	}
	cc->pinned_run = 0;

	if (take_from_longer(cpu, dom, cc) || take(dom, RR_DISP_OWN))
		return true;
	return !pinned_first && take(PINNED_DSQ(cpu), RR_DISP_PINNED);
}

/*
 * This CPU is about to go idle: look for work elsewhere, nearest first. At most
 * MAX_NEAR queues, and the one that whoever woke this CPU pointed to.
 */
static bool take_elsewhere(s32 cpu, u32 dom, struct cpu_ctx *cc)
{
	struct domain *own = lookup_domain(dom);
	u32 i, hint = cc->hint;

	cc->hint = 0;
	if (hint && hint - 1 != dom && take_from(hint - 1, cpu))
		return true;
	if (!own)
		return false;
	bpf_for(i, 0, MAX_NEAR) {
		if (i >= own->nr_near)
			break;
		if (take_from(own->near[i], cpu))
			return true;
	}
	return false;
}

/* Is anything queued where take_own() and take_elsewhere() would look? */
static bool work_waits(s32 cpu)
{
	u32 i, dom = domain_of(cpu);
	struct domain *own = lookup_domain(dom);

	if (scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu)) > 0 ||
	    scx_bpf_dsq_nr_queued(dom) > 0)
		return true;
	if (!own)
		return false;
	bpf_for(i, 0, MAX_NEAR) {
		if (i >= own->nr_near)
			break;
		if (scx_bpf_dsq_nr_queued(own->near[i]) > 0)
			return true;
	}
	return false;
}

/* @p was queued in @dom: wake one idle CPU for it, if there is one. */
static void wake_idle(struct task_struct *p, s32 cpu, u32 dom)
{
	s32 idle = pick_idle_near(p, cpu);
	struct cpu_ctx *cc;

	if (idle < 0)
		return;
	cc = lookup_cpu_ctx(idle);
	if (cc)
		cc->hint = dom + 1;
	scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
	count(RR_KICKS);
}

/*
 * A task wakes up. If a CPU is idle, it goes there at once and sees no queue;
 * the kernel prefers the previous CPU, then near ones. A pinned task does not
 * get here.
 */
s32 BPF_STRUCT_OPS(rr_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool is_idle = false;
	s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);

	/* With --partial it waits in a queue, where others find it: see lib/unserved.bpf.h. */
	if (is_idle && !partial) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
		count(RR_DIRECT);
	}
	return cpu;
}

/*
 * @p is about to be queued anew, but has neither run nor slept since it was put
 * into a queue. So the kernel took it out without a word, to move it to another
 * CPU as its NUMA balancing does; or it was dispatched and handed back, which was
 * counted then. It begins to wait anew.
 */
static void leave_queue(struct task_struct *p, u64 enq_flags)
{
	if (!p->scx.dsq_vtime)
		return;
	scx_bpf_task_set_dsq_vtime(p, 0);
	if (!(enq_flags & SCX_ENQ_REENQ))
		count(RR_DEQUEUED);
}

/*
 * A task has to wait: it woke up and no CPU is idle, or its slice is used up,
 * or it was moved here.
 */
void BPF_STRUCT_OPS(rr_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = task_cpu(p);
	u32 dom = domain_of(cpu);

	leave_queue(p, enq_flags);
	/*
	 * Its mask has just changed and this CPU is no longer in it: the kernel
	 * will move it to one that is, and enqueue it again there.
	 */
	if (!bpf_cpumask_test_cpu(cpu, p->cpus_ptr) || dom == NO_DOMAIN) {
		scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_ns, enq_flags);
		count(RR_TRANSIT);
		return;
	}

	/* A CPU on its way out may kick nobody. The kernel itself wakes the other. */
	if (is_leaving(bpf_get_smp_processor_id())) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		count(RR_TRANSIT);
		return;
	}

	/* First in, first out needs no vruntime: the field holds the time. */
	scx_bpf_task_set_dsq_vtime(p, scx_bpf_now());

	if (is_pinned(p, enq_flags)) {
		scx_bpf_dsq_insert(p, PINNED_DSQ(cpu), slice_ns, enq_flags);
		count(RR_ENQ_PINNED);
		if (scx_bpf_test_and_clear_cpu_idle(cpu)) {
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
			count(RR_KICKS);
		}
		return;
	}

	scx_bpf_dsq_insert(p, dom, slice_ns, enq_flags);
	count(RR_ENQ_SHARED);
	wake_idle(p, cpu, dom);
}

/*
 * A CPU needs a task. @prev is the one that just used up its slice, if it wants
 * to go on: it has not been enqueued yet and will be if we find another.
 */
void BPF_STRUCT_OPS(rr_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	u32 dom = domain_of(cpu);

	/* A CPU that is new to the topology: the scheduler is about to restart. */
	if (!cc || dom == NO_DOMAIN)
		return;
	if (take_own(cpu, dom, cc))
		return;

	if (prev && (prev->scx.flags & SCX_TASK_QUEUED)) {
		/* Without this it would get the kernel's default of 20 ms. */
		scx_bpf_task_set_slice(prev, slice_ns);
		count(RR_KEPT);
		return;
	}

	take_elsewhere(cpu, dom, cc);
}

/* A task gets a CPU. If it comes from a queue, it has waited since then. */
void BPF_STRUCT_OPS(rr_running, struct task_struct *p)
{
	u64 since = p->scx.dsq_vtime;

	if (!since)
		return;
	scx_bpf_task_set_dsq_vtime(p, 0);
	hist_add(RR_WAIT, time_delta(scx_bpf_now(), since));
}

/*
 * No CPU may idle while work waits. This CPU found none and is now marked idle;
 * but something may have been queued in between, by a CPU that did not see it
 * idle yet. So look once more. Either that CPU's pick_idle_near(), called after
 * its insertion, sees the mark, or this, called after the marking, sees the
 * task. (Before Linux 6.15 the mark comes just after this call: a window of
 * some ns remains, and the next enqueue, at most a slice later, closes it.)
 *
 * Work in domains further away than MAX_NEAR is not seen here. There, too, the
 * CPUs are all busy, each enqueues the task it ran when the slice ends, and
 * each enqueue wakes an idle CPU and tells it where to look.
 */
void BPF_STRUCT_OPS(rr_update_idle, s32 cpu, bool idle)
{
	if (idle && !is_leaving(cpu) && work_waits(cpu)) {
		scx_bpf_kick_cpu(cpu, 0);
		count(RR_RECHECKS);
	}
}

/*
 * A task stops being runnable, or is taken out to have its properties changed.
 * It is not always running then: if it still waits in one of our queues, it
 * leaves that queue without a dispatch, and is counted here. The queues that
 * the kernel owns have an id with the highest bit set.
 */
void BPF_STRUCT_OPS(rr_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct scx_dispatch_q *dsq = p->scx.dsq;

	if (dsq && !(dsq->id & SCX_DSQ_FLAG_BUILTIN))
		count(RR_DEQUEUED);
	/* It waits no longer; the time it sleeps is no wait. */
	if (p->scx.dsq_vtime)
		scx_bpf_task_set_dsq_vtime(p, 0);
}

/* A task becomes ours. Another scheduler may have left a vruntime. */
void BPF_STRUCT_OPS(rr_enable, struct task_struct *p)
{
	scx_bpf_task_set_dsq_vtime(p, 0);
}

/*
 * A task of a higher class, real-time say, takes the CPU. What was to run there
 * next could wait for long, so it goes back to a queue that all can serve.
 */
void BPF_STRUCT_OPS(rr_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

static void hotplug(s32 cpu, bool online)
{
	if (!domains_hotplug(cpu, online))
		scx_bpf_exit(SCX_ECODE_ACT_RESTART | SCX_ECODE_RSN_HOTPLUG,
			     "CPU %d is new to the topology", cpu);
}

void BPF_STRUCT_OPS(rr_cpu_online, s32 cpu)
{
	hotplug(cpu, true);
}

void BPF_STRUCT_OPS(rr_cpu_offline, s32 cpu)
{
	hotplug(cpu, false);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(rr_init)
{
	struct cpu_ctx *cc;
	u32 i;
	s32 err;

	bpf_for(i, 0, nr_domains) {
		struct domain *d = lookup_domain(i);

		err = scx_bpf_create_dsq(i, d ? d->kernel_node : NUMA_NO_NODE);
		if (err)
			return err;
	}

	bpf_for(i, 0, nr_cpu_ids) {
		err = scx_bpf_create_dsq(PINNED_DSQ(i), NUMA_NO_NODE);
		if (err)
			return err;
		cc = lookup_cpu_ctx(i);
		if (cc)
			cc->next_look = i;	/* not all at the same one */
	}

	return domains_init();
}

void BPF_STRUCT_OPS(rr_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

/* What the kernel prints when it throws a scheduler out, or on SysRq-D. */
void BPF_STRUCT_OPS(rr_dump, struct scx_dump_ctx *dctx)
{
	u32 i;

	bpf_for(i, 0, nr_domains) {
		struct domain *d = lookup_domain(i);

		if (d)
			scx_bpf_dump("domain %u: node %u, %u CPUs online, %d queued\n",
				     i, d->node, d->nr_cpus, scx_bpf_dsq_nr_queued(i));
	}
}

void BPF_STRUCT_OPS(rr_dump_cpu, struct scx_dump_ctx *dctx, s32 cpu, bool idle)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	s32 pinned = scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu));

	if (!cc || (idle && !pinned))
		return;
	scx_bpf_dump("domain %d, %d pinned tasks queued, %u taken in a row",
		     (s32)domain_of(cpu), pinned, cc->pinned_run);
}

void BPF_STRUCT_OPS(rr_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	scx_bpf_dump("slice_ns=%llu allowed=%d migration_disabled=%d",
		     p->scx.slice, p->nr_cpus_allowed, is_migration_disabled(p));
}

/* Run by the daemon when it reads the counters: how many tasks are queued. */
u64 queued_shared, queued_pinned;

SEC("syscall")
int rr_read_queued(void *ctx)
{
	u64 shared = 0, pinned = 0;
	s32 nr;
	u32 i;

	bpf_for(i, 0, nr_domains) {
		nr = scx_bpf_dsq_nr_queued(i);
		shared += nr > 0 ? nr : 0;
	}
	bpf_for(i, 0, nr_cpu_ids) {
		nr = scx_bpf_dsq_nr_queued(PINNED_DSQ(i));
		pinned += nr > 0 ? nr : 0;
	}
	queued_shared = shared;
	queued_pinned = pinned;
	return 0;
}

SCX_OPS_DEFINE(rr_ops,
	       .select_cpu	= (void *)rr_select_cpu,
	       .enqueue		= (void *)rr_enqueue,
	       .dispatch	= (void *)rr_dispatch,
	       .running		= (void *)rr_running,
	       .update_idle	= (void *)rr_update_idle,
	       .quiescent	= (void *)rr_quiescent,
	       .enable		= (void *)rr_enable,
	       .cpu_release	= (void *)rr_cpu_release,
	       .cpu_online	= (void *)rr_cpu_online,
	       .cpu_offline	= (void *)rr_cpu_offline,
	       .init		= (void *)rr_init,
	       .exit		= (void *)rr_exit,
	       .dump		= (void *)rr_dump,
	       .dump_cpu	= (void *)rr_dump_cpu,
	       .dump_task	= (void *)rr_dump_task,
	       .name		= "rr");
