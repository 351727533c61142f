/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Queues whose CPUs are busy with something else: a task of a higher class, real
 * time or, with --partial, a normal one, may keep a CPU for seconds. Who waits in
 * its queue then waits for nothing, however short the queue is, so CPUs that even
 * queues out must take from it whatever the lengths are.
 *
 * The kernel says that a CPU is lost (cpu_release) only if one of ours ran there
 * before. So a CPU that schedules leaves a note of when it last did, at most a few
 * hundred a second, and a queue without a recent one is not served.
 *
 * What is in a queue of the policy's can be taken by another CPU. What is in a
 * CPU's local queue cannot, and on 6.12 nobody is told if the CPU was idle when
 * the other task came between (lib/stuck.bpf.h). So with --partial, where such
 * tasks may spin for ever, a woken task is never put there directly, only by the
 * CPU that is about to run it.
 */
#ifndef __MANYCORE_UNSERVED_BPF_H
#define __MANYCORE_UNSERVED_BPF_H

/* No note for that long: ticks come every 10 ms at least, ns. */
#define UNSERVED_NS	40000000ULL

/* A CPU that serves the queue schedules now. */
static __always_inline void note_served(u64 *served_at, u64 now)
{
	if (time_after(now, *served_at + UNSERVED_NS / 8))
		*served_at = now;
}

/* Has nobody served the queue for long? What is in it came at @queued_at, or 0 if that is not known. */
static __always_inline bool is_unserved(u64 served_at, u64 queued_at, u64 now)
{
	return time_after(now, served_at + UNSERVED_NS) &&
	       time_after(now, queued_at + UNSERVED_NS);
}

#endif /* __MANYCORE_UNSERVED_BPF_H */
