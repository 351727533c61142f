/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a policy asks of a task: where it is, and whether it may go elsewhere.
 */
#ifndef __MANYCORE_TASK_BPF_H
#define __MANYCORE_TASK_BPF_H

/* The CPU of @p. A load, where scx_bpf_task_cpu() is a call; the kernel keeps it there on all that have sched_ext. */
static __always_inline s32 task_cpu(const struct task_struct *p)
{
	return bpf_core_field_exists(p->thread_info.cpu) ? p->thread_info.cpu : scx_bpf_task_cpu(p);
}

/* May @p run on one CPU only, now? */
static __always_inline bool is_pinned(const struct task_struct *p, u64 enq_flags)
{
	/*
	 * A task that cpu_release hands back may be the very one that runs, with
	 * one BPF program inside another: each makes it look as if it had disabled
	 * migration. If it really has, the kernel leaves it in a shared queue to
	 * its own CPU.
	 */
	return p->nr_cpus_allowed == 1 ||
	       (!(enq_flags & SCX_ENQ_REENQ) && is_migration_disabled(p));
}

/*
 * A task woke up and select_cpu was not asked where: it may run on one CPU only, or,
 * with SCX_OPS_ALLOW_QUEUED_WAKEUP, it was still going to sleep when it was woken, and
 * is enqueued on the CPU that it was about to leave.
 */
static __always_inline bool woke_in_place(u64 enq_flags)
{
	return enq_flags & SCX_ENQ_WAKEUP && !__COMPAT_is_enq_cpu_selected(enq_flags);
}

#endif /* __MANYCORE_TASK_BPF_H */
