/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who waits for too long in a queue in the order of virtual time. Whoever is far from
 * its turn when many others come, or heavier ones, may wait for minutes. The kernel
 * throws a scheduler out with which a task waits for 30 s, and 7.3 also if one waits
 * for 21 s that reads what RCU keeps.
 */
#ifndef __MANYCORE_LATE_BPF_H
#define __MANYCORE_LATE_BPF_H

/* So many are looked at, from the end of the queue: there they are, as others go before them. */
#define LATE_MOST	8

/*
 * Is anybody at the end of queue @dsq who waits since before @since, in jiffies, as the
 * kernel's watchdog counts? Then its virtual time is @at, but for these @marks in it.
 * From dispatch, or where no runqueue is locked, with RCU read-locked.
 */
static __noinline bool forgive_late(u64 dsq, u64 since, u64 at, u64 marks)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	bool found = false;
	u32 i;

	if (!bpf_iter_scx_dsq_new(&it, dsq, SCX_DSQ_ITER_REV)) {
		bpf_for(i, 0, LATE_MOST) {
			p = bpf_iter_scx_dsq_next(&it);
			if (!p)
				break;
			if (!time_before(p->scx.runnable_at, since))
				continue;
			scx_bpf_dsq_move_set_vtime(&it, (at & ~marks) | (p->scx.dsq_vtime & marks));
			found = scx_bpf_dsq_move_vtime(&it, p, dsq, 0);
			break;
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return found;
}

#endif /* __MANYCORE_LATE_BPF_H */
