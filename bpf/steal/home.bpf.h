/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where a task is at home.
 *
 * It is at home where it starts, near its parent; unless more than a quarter of that
 * node is busy, and another node idles more: or the threads of a wide process would
 * be at home on one node, and on their way to and from others ever after.
 *
 * A task that is taken to another node, since all are busy where its memory is,
 * remembers from which CPU. When it wakes up and somebody is idle there, it goes
 * back, even if its previous CPU is idle, too; or the tasks of two nodes would change
 * places one by one, each of them for good. After a second away, or if that node has
 * had to send away others, too, it has settled where it is (lib/room.bpf.h).
 */
#ifndef __STEAL_HOME_BPF_H
#define __STEAL_HOME_BPF_H

#include "steal/ctx.bpf.h"

/* After how long away a task has settled there, ns. */
#define SETTLED_NS 1000000000ULL

/* What is known of a task that has ever been in another node. */
struct trip {
	s32 home;		/* the CPU that it was taken from, plus one; 0: it isn't away */
	u32 pad;
	u64 since;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct trip);
} trips SEC(".maps");

/* The index of this CPU's node, or NO_SHARD. */
static __always_inline u32 node_of(s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;

	return sh ? sh->node : NO_SHARD;
}

/* @p starts to run on @cpu; before, it was on CPU @from, or waited there. */
static __noinline int note_trip(struct task_struct *p __arg_trusted, s32 cpu, s32 from)
{
	u32 node = node_of(cpu);
	struct trip *trip;

	if (node == node_of(from))
		return 0;
	trip = bpf_task_storage_get(&trips, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!trip)
		return 0;
	if (!trip->home) {
		if (trip_settles(node_of(from)))
			return 0;
		trip->home = from + 1;
		trip->since = scx_bpf_now();
	} else if (node_of(trip->home - 1) == node) {
		trip->home = 0;
	}
	return 0;
}

/* The CPU where @p, which wakes up and ran on @prev_cpu last, is at home, if it is away. Else -1. */
static __noinline s32 home_of(struct task_struct *p __arg_trusted, s32 prev_cpu)
{
	struct trip *trip = bpf_task_storage_get(&trips, p, NULL, 0);
	s32 home;

	if (!trip || !trip->home)
		return -1;
	home = trip->home - 1;
	/* It may have come back by way of a change of its mask. */
	if (node_of(home) != node_of(prev_cpu) && time_before(scx_bpf_now(), trip->since + SETTLED_NS))
		return home;
	trip->home = 0;
	return -1;
}

#endif /* __STEAL_HOME_BPF_H */
