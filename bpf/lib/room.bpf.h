/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where there is room: in which node a task should be at home that was just born,
 * and when one that its node had no CPU for should be at home where it found one.
 */
#ifndef __MANYCORE_ROOM_BPF_H
#define __MANYCORE_ROOM_BPF_H

#include "lib/shards.bpf.h"

/* How many CPUs a node has, how many of them are idle, and at how many somebody waits. */
struct room {
	u32 idle;
	u32 waiting;
	u32 all;
	u32 pad;
};

/* Not static, so that it is verified once; and it adds up in memory, where the verifier doesn't follow each sum. */
int look_for_room(u32 id, struct room *room __arg_nonnull)
{
	struct numa_node *n = lookup_node(id);
	u32 i;

	room->idle = 0;
	room->waiting = 0;
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
		for (k = 0; k < SHARD_WORDS; k++) {
			room->idle += __builtin_popcountll(PEEK(w->idle[k]));
			room->waiting += __builtin_popcountll(PEEK(w->queued[k]));
		}
	}
	return 0;
}

/*
 * The node of which most idles, nearest first, if less than @quarters / 4 of node
 * @own do, and less than there; else NO_SHARD. @room is scratch.
 */
static __noinline u32 roomy_node(struct room *room, u32 own, u32 quarters)
{
	struct numa_node *n = lookup_node(own);
	u32 best = NO_SHARD, most, i;

	if (!n || !n->nr_near || !room)
		return NO_SHARD;
	look_for_room(own, room);
	most = room->idle;
	if (4 * most >= quarters * room->all)
		return NO_SHARD;
	bpf_for(i, 0, NEAR_NODES) {
		u32 node;

		if (i >= n->nr_near)
			break;
		node = n->near[i & (NEAR_NODES - 1)];
		look_for_room(node, room);
		if (room->idle > most) {
			most = room->idle;
			best = node;
		}
	}
	return best;
}

/*
 * The node where somebody waits at the smallest part of its CPUs, if that is half of
 * node @own, or more, and less by an eighth there; or less at all, if it is all of
 * @own. Else NO_SHARD. @room is scratch.
 */
u32 calmest_node(struct room *room __arg_nonnull, u32 own)
{
	struct numa_node *n = lookup_node(own);
	u32 best = NO_SHARD, waiting, all, least, of, margin, i;

	if (!n || !n->nr_near)
		return NO_SHARD;
	look_for_room(own, room);
	waiting = least = room->waiting;
	all = of = room->all;
	bpf_for(i, 0, NEAR_NODES) {
		u32 node;

		if (i >= n->nr_near || 2 * waiting < all)
			break;
		node = n->near[i & (NEAR_NODES - 1)];
		look_for_room(node, room);
		margin = waiting < all ? room->all / 8 : 0;
		if ((room->waiting + margin) * all < waiting * room->all &&
		    room->waiting * of < least * room->all) {
			least = room->waiting;
			of = room->all;
			best = node;
		}
	}
	return best;
}

/*
 * The node near @own where somebody waits at the largest part of its CPUs, if that is
 * half or more, and more than in @own; else NO_SHARD.
 */
u32 busiest_node(struct room *room __arg_nonnull, u32 own)
{
	struct numa_node *n = lookup_node(own);
	u32 best = NO_SHARD, most, of, i;

	if (!n || !n->nr_near)
		return NO_SHARD;
	look_for_room(own, room);
	most = room->waiting;
	of = room->all;
	bpf_for(i, 0, NEAR_NODES) {
		u32 node;

		if (i >= n->nr_near)
			break;
		node = n->near[i & (NEAR_NODES - 1)];
		look_for_room(node, room);
		if (2 * room->waiting >= room->all && room->waiting * of > most * room->all) {
			most = room->waiting;
			of = room->all;
			best = node;
		}
	}
	return best;
}

/* Takes an idle CPU for @p, which was just born, in roomy_node(). Returns its id, or -EBUSY. */
static __always_inline s32 claim_roomy(struct task_struct *p, struct room *room, u32 own,
				       u32 quarters)
{
	u32 node = roomy_node(room, own, quarters);

	return node == NO_SHARD ? -EBUSY : claim_in_node(p, node, NO_SHARD);
}

/* How many tasks a node may have to send away for a while before one of them stays where it went. */
#define TRIPS_MAX 3
/* After how long one of those no longer counts, ns. */
#define TRIP_FADES_NS 20000000ULL

/*
 * A task of node @id had to run elsewhere, as nobody was idle there. Is that one too
 * many in a short time? Then the node has more tasks than it can serve, and this one
 * should be at home where it went. Of two CPUs that ask at once, one may not count.
 */
static __noinline bool trip_settles(u32 id)
{
	struct node_words *nw = words_of_node(id);
	u64 faded, trips, now = scx_bpf_now();

	if (!nw)
		return false;
	faded = time_before(nw->trip_at, now) ? (now - nw->trip_at) / TRIP_FADES_NS : 0;
	trips = nw->trips > faded ? nw->trips - faded : 0;
	if (faded || !trips)
		nw->trip_at = now;
	nw->trips = trips < TRIPS_MAX ? trips + 1 : 0;
	return trips >= TRIPS_MAX;
}

#endif /* __MANYCORE_ROOM_BPF_H */
