/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who is stuck in the local queue of a CPU.
 *
 * A CPU asks for a task, or is sent one as it idles; and before it runs that one, a
 * task of a higher class comes: a real-time one or, with --partial, a normal one. The
 * kernel says so (cpu_release) only if one of ours ran there before, and nobody but
 * that CPU takes a task out of its local queue. If the other never sleeps, ours waits
 * until the watchdog ends the scheduler.
 *
 * So a thread of the daemon's, a real-time one itself, looks ten times a second, and has
 * the kernel enqueue such a task anew (scheds/control_plane/src/stuck.rs).
 *
 * It also looks for CPUs that sleep on: a task picks an idle CPU, which counts as busy
 * from then on, and the kick that is to wake it gets lost. That happens at load, and when
 * the machine was suspended: the kernel (Linux 6.12 to 7.3) hands the tasks of one CPU
 * after the other to the policy, and drops all kicks that come from the CPU which does
 * that, until its own turn comes. Such a CPU is kicked again.
 */
#ifndef __MANYCORE_STUCK_BPF_H
#define __MANYCORE_STUCK_BPF_H

/* So many are found in one look; others in the next. */
#define STUCK_MOST	16
/* So many of a queue are looked at: who may run nowhere else stays there. */
#define STUCK_DEEP	4

/* The policy has queues with the ids of CPUs, which these alone serve. */
#ifndef STUCK_QUEUES
#define STUCK_QUEUES	0
#endif

/*
 * Does @cpu, which idles, sleep on beside work from before @since, or look busy to all
 * others? A policy that doesn't say how to tell trusts that something else wakes it.
 */
#ifndef SLEEPS_ON
#define SLEEPS_ON(cpu, since)	false
#endif

/* How many the last look found, and when that was, in jiffies. */
static u32 nr_stuck;
static u64 stuck_looked_at;

/* Has @p waited since before @since, but may run elsewhere? */
static __always_inline bool is_stuck(struct task_struct *p, u64 since)
{
	return BPF_CORE_READ(p, nr_cpus_allowed) > 1 &&
	       time_before(BPF_CORE_READ(p, scx.runnable_at), since);
}

/* Instead of a CPU: more than one. */
#define SEVERAL	-1

/*
 * Who waits in the policy's queue @dsq since before @since, and may run on @cpu? Or 0.
 * Not static, so that it is verified once.
 */
s32 waits_in(u64 dsq, s32 cpu, u64 since)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	s32 found = 0;
	u32 i;

	if (!bpf_iter_scx_dsq_new(&it, dsq, 0)) {
		bpf_for(i, 0, STUCK_DEEP) {
			p = bpf_iter_scx_dsq_next(&it);
			if (!p)
				break;
			if (!time_before(p->scx.runnable_at, since))
				continue;
			if (cpu == SEVERAL ? p->nr_cpus_allowed > 1 : bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
				found = p->pid;
				break;
			}
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return found;
}

/*
 * Wakes @cpu if it sleeps on. Returns what stands for that CPU among ids of tasks, or 0
 * if there was no need. Not static, as above.
 */
s32 wake_sleeper(u32 cpu)
{
	struct rq *rq = bpf_per_cpu_ptr(&runqueues, cpu);

	if (!rq || !rq->online || BPF_CORE_READ(rq, curr, pid))
		return 0;
	if (!(SLEEPS_ON(cpu, stuck_looked_at)))
		return 0;
	scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	return -1 - (s32)cpu;
}

/*
 * Who is, in the local queue of @cpu, where a task of a higher class runs, or in the
 * policy's queue of that name, if nobody else serves it? Or 0. Not static, so that it is
 * verified once.
 */
s32 stuck_on(u32 cpu, u64 since)
{
	struct rq *rq = bpf_per_cpu_ptr(&runqueues, cpu);
	struct task_struct *p;
	struct list_head *entry;
	u32 i, queued;

	if (!rq)
		return 0;
	p = BPF_CORE_READ(rq, curr);
	/* Idle, or one of ours: the next in the queue will run. */
	if (!BPF_CORE_READ(p, pid) || BPF_CORE_READ(p, scx.flags) & SCX_TASK_QUEUED)
		return 0;
	queued = BPF_CORE_READ(rq, scx.local_dsq.nr);
	entry = BPF_CORE_READ(rq, scx.local_dsq.list.next);
	bpf_for(i, 0, STUCK_DEEP) {
		if (i >= queued)
			break;
		p = (void *)entry - bpf_core_field_offset(struct task_struct, scx.dsq_list.node);
		if (is_stuck(p, since))
			return BPF_CORE_READ(p, pid);
		entry = BPF_CORE_READ(entry, next);
	}
	return STUCK_QUEUES ? waits_in(cpu, SEVERAL, since) : 0;
}

/*
 * Tells the daemon their ids, and which CPUs slept on. (An iterator is what a thread can
 * read that knows nothing else of the scheduler. What it goes over doesn't matter: the
 * work is done at the first element.) No lock is taken, so one may be gone by then.
 */
SEC("iter/bpf_map")
int find_stuck(struct bpf_iter__bpf_map *ctx)
{
	u64 since = stuck_looked_at;
	u32 cpu, found;
	s32 tid;

	if (ctx->meta->seq_num)
		return 0;
	nr_stuck = 0;
	bpf_for(cpu, 0, nr_cpu_ids) {
		/* Not a variable, or the verifier would follow each of its values. */
		found = nr_stuck;
		if (!since || found >= STUCK_MOST)
			break;
		tid = wake_sleeper(cpu);
		if (!tid) {
			tid = stuck_on(cpu, since);
			if (!tid)
				continue;
			nr_stuck = found + 1;
			count(STUCK_FOUND);
		}
		bpf_seq_write(ctx->meta->seq, &tid, sizeof(tid));
	}
	stuck_looked_at = bpf_jiffies64();
	return 0;
}

#endif /* __MANYCORE_STUCK_BPF_H */
