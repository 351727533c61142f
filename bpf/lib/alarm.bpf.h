/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Alarms: a timer for each CPU, for what can't wait until the next tick.
 *
 * The kernel looks at slices on ticks, every 1 to 10 ms. A woken task that may
 * interrupt the running one only 200 us later would wait for milliseconds, and
 * slices would end late. So whoever makes a task wait behind a running one sets
 * the alarm of that CPU for when its patience ends.
 *
 * To set a timer costs as much as a context switch does elsewhere, so it is done
 * lazily: an alarm that will go off earlier is left as it is, and whoever is
 * called looks whether it was meant, and if not, sets it anew. On a CPU that
 * switches tasks all the time, that is one timer in a slice, and none on one
 * where nobody waits.
 *
 * Include after lib/shards.bpf.h. The policy defines on_alarm().
 */
#ifndef __MANYCORE_ALARM_BPF_H
#define __MANYCORE_ALARM_BPF_H

#include "lib/shards.bpf.h"

#define ALARM_CLOCK	1	/* CLOCK_MONOTONIC */
/* Set for less, it would go off before the task that waits is out of the cache, ns. */
#define ALARM_LEAST_NS	10000

struct cpu_alarm {
	struct bpf_timer timer;
	u64 at;			/* when it will go off, as scx_bpf_now(); 0: it won't */
} __attribute__((aligned(CACHE_PAIR)));

TABLE(alarms, struct cpu_alarm);

/* An alarm of CPU @cpu went off: returns in how many ns the next one is needed, or 0 for none. */
static u64 on_alarm(s32 cpu, u64 now);

/* Have on_alarm() called for @cpu in @in ns, or earlier. */
static __always_inline void set_alarm(s32 cpu, u64 now, s64 in)
{
	u32 key = cpu;
	struct cpu_alarm *alarm = bpf_map_lookup_elem(&alarms, &key);

	if (!alarm)
		return;
	if (in < ALARM_LEAST_NS)
		in = ALARM_LEAST_NS;
	/* Two who set it at once may lose the earlier time: the tick is still there. */
	if (alarm->at && time_before(now, alarm->at + slice_ns) && !time_before(now + in, alarm->at))
		return;
	alarm->at = now + in;
	bpf_timer_start(&alarm->timer, in, 0);
}

static int alarm_rings(void *map, u32 *key, struct cpu_alarm *alarm)
{
	u64 now = scx_bpf_now(), in;

	alarm->at = 0;
	if (here_is_leaving())
		return 0;
	in = on_alarm(*key, now);
	if (in)
		set_alarm(*key, now, in);
	return 0;
}

/* Call it from the policy's init. */
static s32 alarms_init(void)
{
	struct cpu_alarm *alarm;
	s32 err;
	u32 i;

	bpf_for(i, 0, nr_cpu_ids) {
		alarm = bpf_map_lookup_elem(&alarms, &i);
		if (!alarm)
			return -ENOENT;
		err = bpf_timer_init(&alarm->timer, &alarms, ALARM_CLOCK);
		if (err)
			return err;
		err = bpf_timer_set_callback(&alarm->timer, alarm_rings);
		if (err)
			return err;
	}
	return 0;
}

#endif /* __MANYCORE_ALARM_BPF_H */
