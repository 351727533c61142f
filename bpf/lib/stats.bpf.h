/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Event counters: one row of 64-bit words per CPU, written by that CPU only.
 *
 * One shared word per event would be simpler, and would also move a cache line
 * between all CPUs at every context switch. Here an event costs one increment
 * of a line that no other CPU writes; the reader, once a second or so, pays for
 * the sum instead. Nothing is ever reset: a reader that wants a rate subtracts.
 *
 * Include after defining STATS_NR, the number of counters.
 */
#ifndef __MANYCORE_STATS_BPF_H
#define __MANYCORE_STATS_BPF_H

struct stats_row {
	u64 count[STATS_NR];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct stats_row);
	__uint(max_entries, 1);
} stats SEC(".maps");

/*
 * Plain increment, no atomic: the operations of a scheduler run with interrupts
 * off, so nothing else on this CPU can come between the load and the store.
 */
static __always_inline void count(u32 event)
{
	u32 zero = 0;
	struct stats_row *row = bpf_map_lookup_elem(&stats, &zero);

	/* Or a compiler that knows all callers drops the check that the verifier wants. */
	if (!__builtin_constant_p(event))
		barrier_var(event);
	if (row && event < STATS_NR)
		row->count[event]++;
}

#endif /* __MANYCORE_STATS_BPF_H */
