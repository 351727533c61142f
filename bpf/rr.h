/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The counters of scx_rr, shared with its daemon. All are events since load.
 *
 * At any time, for the queues of this scheduler,
 *
 *	ENQ_SHARED + ENQ_PINNED == DISP_OWN + DISP_PINNED + DISP_NODE
 *				   + DISP_REMOTE + DEQUEUED + what is queued
 *
 * What never enters a queue (DIRECT, TRANSIT, KEPT) stands on neither side.
 */
#ifndef __RR_H
#define __RR_H

#include "lib/intf.h"

enum rr_event {
	RR_ENQ_SHARED,		/* put into a domain's queue */
	RR_ENQ_PINNED,		/* put into a CPU's queue of pinned tasks */
	RR_DISP_OWN,		/* taken from the CPU's own domain */
	RR_DISP_PINNED,		/* taken from the CPU's queue of pinned tasks */
	RR_DISP_NODE,		/* taken from another domain, same node */
	RR_DISP_REMOTE,		/* taken from another domain, other node */
	RR_DEQUEUED,		/* left a queue without being dispatched */
	RR_DIRECT,		/* woken straight onto an idle CPU, no queue */
	RR_TRANSIT,		/* being migrated by the kernel, or woken by a CPU that goes: no queue */
	RR_KEPT,		/* nobody waits: the running task goes on */
	RR_BALANCED,		/* of DISP_NODE and DISP_REMOTE: longer queue */
	RR_KICKS,		/* idle CPUs woken for a queued task */
	RR_RECHECKS,		/* CPUs that found work while going idle */
	RR_STUCK,		/* dispatched, but another class kept the CPU: enqueued anew */
	RR_NR_EVENTS,
};

/* Histograms, in ns. */
enum rr_hist {
	RR_WAIT,		/* from a queue's tail to a CPU */
	RR_NR_HISTS,
};

#endif /* __RR_H */
