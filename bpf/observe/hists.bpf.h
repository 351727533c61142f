/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Histograms of waits: one for all tasks, and one for each cgroup or command if asked for.
 */
#ifndef __OBSERVE_HISTS_BPF_H
#define __OBSERVE_HISTS_BPF_H

#include "observe/ctx.bpf.h"

static __always_inline u32 log2_u64(u64 v)
{
	u32 r = 0;

	if (v >> 32) { v >>= 32; r += 32; }
	if (v >> 16) { v >>= 16; r += 16; }
	if (v >> 8) { v >>= 8; r += 8; }
	if (v >> 4) { v >>= 4; r += 4; }
	if (v >> 2) { v >>= 2; r += 2; }
	if (v >> 1) r += 1;
	return r;
}

static __always_inline u32 hist_bucket(u64 ns)
{
	u32 msb;

	if (ns < HIST_STEPS)
		return ns;
	if (ns >= 1ULL << HIST_MAX_BITS)
		return HIST_BUCKETS - 1;
	msb = log2_u64(ns);
	return (msb - HIST_STEP_BITS + 1) * HIST_STEPS + ((ns >> (msb - HIST_STEP_BITS)) & (HIST_STEPS - 1));
}

static __always_inline void hist_add(u32 group, u32 which, u64 ns)
{
	u32 key = 2 * group + which, bucket = hist_bucket(ns);
	struct obs_hist *h = bpf_map_lookup_elem(&hists, &key);

	if (!h || bucket >= HIST_BUCKETS)
		return;
	h->buckets[bucket]++;
	h->sum_ns += ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
}

static __noinline u32 group_of(struct task_struct *p)
{
	struct obs_group_key key = {};
	u32 *found, slot;

	if (by_cgroup)
		key.cgroup = BPF_CORE_READ(p, cgroups, dfl_cgrp, kn, id);
	else
		bpf_probe_read_kernel_str(key.comm, sizeof(key.comm), p->comm);

	found = bpf_map_lookup_elem(&groups, &key);
	if (found)
		return *found;
	if (next_group >= nr_groups)
		return GROUP_OTHER;
	slot = __sync_fetch_and_add(&next_group, 1);
	if (slot >= nr_groups)
		return GROUP_OTHER;
	/* Another CPU may have been first; our slot then stays empty, which costs nothing but the slot. */
	bpf_map_update_elem(&groups, &key, &slot, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&groups, &key);
	return found ? *found : GROUP_OTHER;
}

static __always_inline void record(struct task_struct *p, u32 which, u64 ns)
{
	hist_add(GROUP_ALL, which, ns);
	if (by_cgroup || by_comm)
		hist_add(group_of(p), which, ns);
}

#endif /* __OBSERVE_HISTS_BPF_H */
