/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Histograms of durations: per CPU, as the counters of stats.bpf.h and for the
 * same reason. Buckets double, so that some 40 words tell a microsecond from a
 * second:
 *
 *	bucket 0: up to 1 ns; bucket i: above 2^(i-1) ns, up to 2^i ns;
 *	the last one: everything above that
 *
 * Include after defining HISTS_NR, the number of histograms.
 */
#ifndef __MANYCORE_HIST_BPF_H
#define __MANYCORE_HIST_BPF_H

#include "intf.h"

struct hist {
	u64 sum;
	u64 count[HIST_BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct hist);
	__uint(max_entries, HISTS_NR);
} hists SEC(".maps");

static __always_inline u32 hist_bucket(u64 ns)
{
	/* The number of binary digits of ns - 1 is the logarithm, rounded up. */
	u32 bucket = ns > 1 ? log2_u64(ns - 1) : 0;

	return bucket < HIST_BUCKETS ? bucket : HIST_BUCKETS - 1;
}

static __always_inline void hist_add(u32 id, u64 ns)
{
	struct hist *h = bpf_map_lookup_elem(&hists, &id);
	u32 bucket = hist_bucket(ns);

	if (!h || bucket >= HIST_BUCKETS)
		return;
	h->sum += ns;
	h->count[bucket]++;
}

#endif /* __MANYCORE_HIST_BPF_H */
