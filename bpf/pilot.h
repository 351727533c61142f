/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What scx_pilot's own BPF program and its daemon agree on.
 */
#ifndef __PILOT_H
#define __PILOT_H

enum {
	/* Places in which pids are told apart; a power of two. */
	PILOT_PIDS	= 65536,
	/* The queue for any CPU: scx_rustland_core's SHARED_DSQ. */
	PILOT_QUEUE	= 1024,
};

enum pilot_class {
	PILOT_OTHER,
	PILOT_LATENCY,
	PILOT_BATCH,
};

#endif /* __PILOT_H */
