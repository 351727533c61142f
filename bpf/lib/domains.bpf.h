/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Domains: the machine cut into groups of CPUs that share something, an LLC, a
 * node or everything. The control plane decides the cut and fills the tables,
 * so BPF code needs no idea of what a domain is made of:
 *
 *   cpus[cpu] ──> domain ──> near[0], near[1], ...   other domains, by distance
 *                       └──> domain_masks[domain]    its CPUs, as a cpumask
 *
 * Tables are sized at load from the machine's CPU ids, so sparse ids and CPUs
 * that are possible but absent cost nothing but an unused entry. They are
 * written at load and on hotplug only; everything else just reads them.
 */
#ifndef __MANYCORE_DOMAINS_BPF_H
#define __MANYCORE_DOMAINS_BPF_H

#include "lib/intf.h"

const volatile u32 nr_cpu_ids = 1;	/* highest possible CPU id, plus one */
const volatile u32 nr_domains = 1;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, struct cpu_place);
	__uint(max_entries, 1);		/* nr_cpu_ids, set at load */
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, struct domain);
	__uint(max_entries, 1);		/* nr_domains, set at load */
} domains SEC(".maps");

struct domain_mask {
	struct bpf_cpumask __kptr *mask;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, struct domain_mask);
	__uint(max_entries, 1);		/* nr_domains, set at load */
} domain_masks SEC(".maps");

/* Room for each CPU to intersect two masks in. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct domain_mask);
	__uint(max_entries, 1);
} scratch_masks SEC(".maps");

/* The domain of @cpu, or NO_DOMAIN. */
static __always_inline u32 domain_of(s32 cpu)
{
	u32 key = cpu;
	struct cpu_place *place = bpf_map_lookup_elem(&cpus, &key);

	return place ? place->domain : NO_DOMAIN;
}

static __always_inline u32 node_of(s32 cpu)
{
	u32 key = cpu;
	struct cpu_place *place = bpf_map_lookup_elem(&cpus, &key);

	return place ? place->node : 0;
}

/* What the kernel calls the node of @cpu: only this may be given to it. */
static __always_inline u32 kernel_node_of(s32 cpu)
{
	u32 key = cpu;
	struct cpu_place *place = bpf_map_lookup_elem(&cpus, &key);

	return place ? place->kernel_node : 0;
}

static __always_inline struct domain *lookup_domain(u32 id)
{
	return bpf_map_lookup_elem(&domains, &id);
}

/*
 * Find an idle CPU on which @p may run, the nearest to @cpu first: @cpu itself,
 * its domain, then the nodes in the order of their distance (before Linux 6.15:
 * in no particular order). The CPU's idle bit is cleared, so it is the caller's
 * to wake. Returns -EBUSY when there is none.
 *
 * Call it after the task is in its queue: see idle_recheck in the policies for
 * why that order closes the race with a CPU that is just going idle.
 */
static __noinline s32 pick_idle_near(struct task_struct *p __arg_trusted, s32 cpu)
{
	u32 zero = 0, dom = domain_of(cpu);
	struct domain_mask *slot;
	struct bpf_cpumask *local, *near;
	s32 idle;

	if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
	    scx_bpf_test_and_clear_cpu_idle(cpu))
		return cpu;

	slot = bpf_map_lookup_elem(&domain_masks, &dom);
	local = slot ? slot->mask : NULL;
	slot = bpf_map_lookup_elem(&scratch_masks, &zero);
	near = slot ? slot->mask : NULL;
	if (local && near) {
		bpf_cpumask_and(near, cast_mask(local), p->cpus_ptr);
		idle = __COMPAT_scx_bpf_pick_idle_cpu_node(cast_mask(near),
							   kernel_node_of(cpu), 0);
		if (idle >= 0)
			return idle;
	}

	return __COMPAT_scx_bpf_pick_idle_cpu_node(p->cpus_ptr,
						   kernel_node_of(cpu), 0);
}

static s32 set_mask(struct domain_mask *slot)
{
	struct bpf_cpumask *mask = bpf_cpumask_create();

	if (!mask)
		return -ENOMEM;
	mask = bpf_kptr_xchg(&slot->mask, mask);
	if (mask)
		bpf_cpumask_release(mask);
	return 0;
}

/* Build the masks from the tables. Call it from the policy's init. */
static s32 domains_init(void)
{
	struct domain_mask *slot;
	struct bpf_cpumask *mask;
	u32 i, zero = 0, dom;
	s32 err;

	bpf_for(i, 0, nr_domains) {
		slot = bpf_map_lookup_elem(&domain_masks, &i);
		if (!slot)
			return -ENOENT;
		err = set_mask(slot);
		if (err)
			return err;
	}

	bpf_for(i, 0, nr_cpu_ids) {
		/* NULL for a CPU id that is not possible */
		slot = bpf_map_lookup_percpu_elem(&scratch_masks, &zero, i);
		if (slot) {
			err = set_mask(slot);
			if (err)
				return err;
		}

		dom = domain_of(i);
		slot = bpf_map_lookup_elem(&domain_masks, &dom);
		if (!slot)
			continue;
		bpf_rcu_read_lock();
		mask = slot->mask;
		if (mask)
			bpf_cpumask_set_cpu(i, mask);
		bpf_rcu_read_unlock();
	}

	return 0;
}

/*
 * Is @cpu on its way out? It then switches to its idle task once more, with its
 * interrupt controller off. A kick from there is never delivered, and as each
 * CPU has one interrupt work for all its kicks, which stays pending, neither are
 * those that it sends once it is back. Linux 7.3 waits for that work when the
 * scheduler is unloaded: forever.
 */
static __always_inline bool is_leaving(s32 cpu)
{
	u32 key = cpu;
	struct cpu_place *place = bpf_map_lookup_elem(&cpus, &key);

	return place && place->leaving;
}

/*
 * A CPU came or went. Returns false if its place is not known, because it was
 * offline when the tables were built: the scheduler must then restart.
 */
static bool domains_hotplug(s32 cpu, bool online)
{
	u32 key = cpu, dom = domain_of(cpu);
	struct cpu_place *place = bpf_map_lookup_elem(&cpus, &key);
	struct domain *d = lookup_domain(dom);

	if (place)
		place->leaving = !online;
	if (!d)
		return false;
	__sync_fetch_and_add(&d->nr_cpus, online ? 1 : -1);
	return true;
}

#endif /* __MANYCORE_DOMAINS_BPF_H */
