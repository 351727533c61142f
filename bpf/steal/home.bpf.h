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
 * places one by one, each of them for good. After a second away, or if it is taken
 * away again and again, it has settled where it is.
 */
#ifndef __STEAL_HOME_BPF_H
#define __STEAL_HOME_BPF_H

#include "steal/ctx.bpf.h"

/* After how long away a task has settled there, ns. */
#define SETTLED_NS 1000000000ULL
/* Or when it has been taken away that much: each time counts for so many wakeups. */
#define TRIP_COSTS 40
#define TRIPS_MAX (3 * TRIP_COSTS)

/* What is known of a task that has ever been in another node. */
struct trip {
	s32 home;		/* the CPU that it was taken from, plus one; 0: it isn't away */
	u32 taken;		/* how often it was taken away, recently; see TRIP_COSTS */
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
		trip->taken += TRIP_COSTS;
		if (trip->taken > TRIPS_MAX) {
			trip->taken = 0;
			return 0;
		}
		trip->home = from + 1;
		trip->since = p->se.exec_start;
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

	if (!trip)
		return -1;
	if (trip->taken)
		trip->taken--;
	if (!trip->home)
		return -1;
	home = trip->home - 1;
	/* It may have come back by way of a change of its mask. */
	if (node_of(home) != node_of(prev_cpu) && time_before(scx_bpf_now(), trip->since + SETTLED_NS))
		return home;
	trip->home = 0;
	return -1;
}

/* Not static, so that it is verified once; and it adds up in memory, where the verifier doesn't follow each sum. */
int look_for_room(u32 id, struct room *room __arg_nonnull)
{
	struct numa_node *n = lookup_node(id);
	u32 i;

	room->idle = 0;
	room->all = 0;
	if (!n)
		return 0;
	bpf_for(i, 0, NODE_MAX_SHARDS) {
		struct shard_words *w = words_of_shard(n->first_shard + i);
		struct shard *sh = lookup_shard(n->first_shard + i);
		u32 k;

		if (i >= n->nr_shards || !w || !sh)
			break;
		room->all += sh->nr_cpus;
		for (k = 0; k < SHARD_WORDS; k++)
			room->idle += __builtin_popcountll(PEEK(w->idle[k]));
	}
	return 0;
}

/* The node of which most idles, if a task that was just born is better off there than near @cpu; else NO_SHARD. */
static __noinline u32 roomy_node(struct cpu_ctx *cc, s32 cpu)
{
	u32 own = node_of(cpu), best = NO_SHARD, most, i;
	struct numa_node *n = lookup_node(own);

	if (!n || !cc)
		return NO_SHARD;
	look_for_room(own, &cc->room);
	most = cc->room.idle;
	if (4 * most >= 3 * cc->room.all)
		return NO_SHARD;
	bpf_for(i, 0, NEAR_NODES) {
		u32 node;

		if (i >= n->nr_near)
			break;
		node = n->near[i & (NEAR_NODES - 1)];
		look_for_room(node, &cc->room);
		if (cc->room.idle > most) {
			most = cc->room.idle;
			best = node;
		}
	}
	return best;
}

#endif /* __STEAL_HOME_BPF_H */
