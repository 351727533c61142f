/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The counters of scx_steal, shared with its daemon. All are events since load.
 *
 * At any time, for the queues of this scheduler,
 *
 *	ENQ_FREE + ENQ_PINNED == DISP_OWN + DISP_SMT + DISP_LLC + DISP_NODE
 *				 + DISP_REMOTE + DEQUEUED + what is queued
 *
 * What never enters a queue (WAKE_*, unless --partial; TRANSIT, KEPT) stands on neither
 * side.
 */
#ifndef __STEAL_H
#define __STEAL_H

enum steal_event {
	STEAL_ENQ_FREE,		/* queued on a CPU, for anybody to take */
	STEAL_ENQ_PINNED,	/* queued on the only CPU that may run it */
	STEAL_DISP_OWN,		/* ran, taken by the CPU from its own queue */
	STEAL_DISP_SMT,		/* stolen from the core's other thread */
	STEAL_DISP_LLC,		/* stolen within the last-level cache */
	STEAL_DISP_NODE,	/* stolen from another cache of the node */
	STEAL_DISP_REMOTE,	/* stolen from another node */
	STEAL_DEQUEUED,		/* left a queue, and did not run then */
	STEAL_WAKE_PREV,	/* woken onto its previous CPU, which was idle */
	STEAL_WAKE_SYNC,	/* woken onto the waker's CPU, which was to sleep */
	STEAL_WAKE_LLC,		/* woken onto an idle CPU of the same cache */
	STEAL_WAKE_NODE,	/* woken onto an idle CPU of the same node */
	STEAL_WAKE_REMOTE,	/* woken onto an idle CPU of another node */
	STEAL_WENT_HOME,	/* of WAKE_PREV, LLC and NODE: in the node that it had been taken from */
	STEAL_WAITS_ELSEWHERE,	/* woken to wait in another cache or node, where fewer wait */
	STEAL_TRANSIT,		/* being migrated by the kernel, or woken by a CPU that goes: no queue */
	STEAL_KEPT,		/* the running task goes on for another slice */
	STEAL_BALANCED,		/* of DISP_*: because that queue was longer */
	STEAL_PROBES,		/* queues looked at by CPUs that ran dry */
	STEAL_PROBES_EMPTY,	/* of them: nothing to take there */
	STEAL_TOO_FRESH,	/* remote work that had not waited for long enough */
	STEAL_WENT_IDLE,	/* searches that found nothing at all */
	STEAL_RECHECKS,		/* of them: found something while going idle */
	STEAL_KICKS,		/* idle CPUs woken for a queued task */
	STEAL_PREEMPTIONS,	/* running tasks interrupted for a woken one */
	STEAL_PREEMPT_BATCH,	/* of them: batch, for one of the latency class */
	STEAL_ALARMS,		/* running tasks interrupted by the alarm for one that waited */
	STEAL_STUCK,		/* dispatched, but another class kept the CPU: enqueued anew */
	STEAL_NR_EVENTS,
};

#endif /* __STEAL_H */
