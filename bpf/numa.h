/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What scx_numa shares with its daemon: counters, all of them events since load,
 * and the orders that the daemon gives.
 *
 * At any time, for the queues of this scheduler,
 *
 *	ENQ_HOME + ENQ_PINNED == DISP_OWN + DISP_PINNED + DISP_NODE
 *				 + DISP_REMOTE + DEQUEUED + what is queued
 *
 * What never enters a queue (WAKE_*, unless --partial; TRANSIT, KEPT) stands on neither
 * side.
 */
#ifndef __NUMA_H
#define __NUMA_H

#include "lib/shards.h"

enum numa_event {
	NUMA_ENQ_HOME,		/* queued at home */
	NUMA_ENQ_PINNED,	/* queued on the only CPU that may run it */
	NUMA_DISP_OWN,		/* ran, taken from the CPU's own cache's queue */
	NUMA_DISP_PINNED,	/* taken from the CPU's queue of pinned tasks */
	NUMA_DISP_NODE,		/* taken from another cache of the node */
	NUMA_DISP_REMOTE,	/* taken from another node: it waited too long */
	NUMA_DEQUEUED,		/* left a queue, and did not run then */
	NUMA_WAKE_PREV,		/* woken onto its previous CPU, idle, at home */
	NUMA_WAKE_SYNC,		/* woken onto the waker's CPU, at home */
	NUMA_WAKE_LLC,		/* woken onto an idle CPU of its home cache */
	NUMA_WAKE_NODE,		/* woken onto an idle CPU of its home node */
	NUMA_TRANSIT,		/* being migrated by the kernel, or woken by a CPU that goes: no queue */
	NUMA_KEPT,		/* the running task goes on for another slice */
	NUMA_BALANCED,		/* of DISP_NODE, _REMOTE: that queue was heavier or longer */
	NUMA_TOO_FRESH,		/* remote work that had not waited for long enough */
	NUMA_WENT_IDLE,		/* searches that found nothing at all */
	NUMA_RECHECKS,		/* of them: found something while going idle */
	NUMA_KICKS,		/* idle CPUs woken for a queued task */
	NUMA_KICKS_REMOTE,	/* of them: on another node */
	NUMA_PREEMPTIONS,	/* running tasks interrupted for a woken one */
	NUMA_PREEMPT_BATCH,	/* of them: batch, for one of the latency class */
	NUMA_ALARMS,		/* running tasks interrupted by the alarm for one that waited */
	NUMA_STUCK,		/* dispatched, but another class kept the CPU: enqueued anew */
	NUMA_HOME_FIRST,	/* homes given: where the task was born, or first had to wait */
	NUMA_HOME_INHERITED,	/* homes given: that of its process */
	NUMA_HOME_MEMORY,	/* homes given or changed: where its memory must be */
	NUMA_HOME_WIDE,		/* homes changed: just born, and little was idle there */
	NUMA_HOME_KERNEL,	/* homes changed: where the kernel saw its memory */
	NUMA_HOME_AFFINITY,	/* homes changed: it may not run at the old one */
	NUMA_HOME_AWAY,		/* homes changed: it, or others of its node, ran elsewhere too much */
	NUMA_HOME_BALANCED,	/* homes changed: too much to do at the old one */
	NUMA_HOME_ORDERED,	/* homes changed: the daemon said so */
	NUMA_NR_EVENTS,
};

enum {
	NUMA_MAX_NODES	= 64,
};

/* What tasks with this home ran, per CPU; index: node. */
struct node_time {
	u64 home_ns;		/* at home */
	u64 away_ns;		/* elsewhere */
};

/* The daemon's order for tasks of a home node; index: node. */
struct move_order {
	u32 to;			/* their new home */
	u32 pad;
	u64 budget;		/* how many may still move; 0: none */
};

#endif /* __NUMA_H */
