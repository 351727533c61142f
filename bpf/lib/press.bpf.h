/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One who joins a queue presses the task that runs: it interrupts that one at
 * once, or when its patience ends (lib/fair_queue.bpf.h), by way of an alarm.
 *
 * Include it where these are known:
 *	enum { PRESS_PREEMPTED, PRESS_PREEMPTED_BATCH, PRESS_ALARM }: what to count
 *	lookup_run(cpu): the run_ctx of a CPU
 *	first_waiting(cpu, &vtime): who would run next there
 *	work_elsewhere(cpu): if nobody waits there, should it look for work in other queues?
 */
#ifndef __MANYCORE_PRESS_BPF_H
#define __MANYCORE_PRESS_BPF_H

#include "lib/alarm.bpf.h"
#include "lib/class_place.bpf.h"

/* A task of virtual runtime @vtime joined a queue of @cpu: it interrupts what runs there, now or later. */
static __always_inline void press(struct run_ctx *run, s32 cpu, u64 vtime, u32 hurry, u64 now)
{
	s64 left = class_patience(run, vtime, hurry_least(run, hurry), now);

	if (left > 0) {
		if (run->hurry < hurry)
			run->hurry = hurry;
		left = class_patience(run, vtime, alarm_least(run, hurry), now);
		set_alarm(cpu, now, left);
	} else if (hurry) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		count(PRESS_PREEMPTED);
		if (hurry == HURRY_LATENCY && run->kind == CLASS_BATCH)
			count(PRESS_PREEMPTED_BATCH);
	}
}

/* A task starts to run on @cpu while others wait there: see to it that it ends. */
static __always_inline void press_next(struct run_ctx *run, s32 cpu)
{
	set_alarm(cpu, scx_bpf_now(), alarm_least(run, run->hurry));
}

/* Did the patience of the task on @cpu end, or is it time to look for work elsewhere? */
static u64 on_alarm(s32 cpu, u64 now)
{
	struct run_ctx *run = lookup_run(cpu);
	u64 first = 0;
	bool any;
	s64 left;

	if (!run)
		return 0;
	bpf_rcu_read_lock();
	any = first_waiting(cpu, &first);
	bpf_rcu_read_unlock();
	if (any) {
		left = class_patience(run, first, alarm_least(run, run->hurry), now);
		if (left > 0)
			return left;
	} else {
		run->hurry = 0;	/* somebody else took it */
		if (!work_elsewhere(cpu))
			return 0;
	}
	scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
	count(PRESS_ALARM);
	return 0;
}

#endif /* __MANYCORE_PRESS_BPF_H */
