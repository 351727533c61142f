/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Spans, from which userspace computes the waste: which CPU was idle, or which task waited, from when to when, and where
 * that task may run.
 */
#ifndef __OBSERVE_SPANS_BPF_H
#define __OBSERVE_SPANS_BPF_H

#include "observe/ctx.bpf.h"

static __always_inline void send(struct obs_cpu *cs, void *data, u64 size)
{
	u32 cpu = bpf_get_smp_processor_id();
	void *ring = bpf_map_lookup_elem(&rings, &cpu);

	/* Userspace looks at the rings by itself: a wakeup from here would be a wakeup in what is measured. */
	if (!ring || bpf_ringbuf_output(ring, data, size, BPF_RB_NO_WAKEUP))
		cs->dropped++;
}

static __always_inline void send_span(struct obs_cpu *cs, u64 since, u64 start, u64 end, u32 who, u32 cpu)
{
	struct obs_span span = { .since = since, .start = start, .end = end, .who = who, .cpu = cpu };

	if (!begin_at || end <= start || end - since < min_span_ns)
		return;
	send(cs, &span, sizeof(span));
}

/* Number of the mask that p may run on, a new one if it hasn't been seen before. */
static __noinline u32 mask_of(struct obs_cpu *cs, struct task_struct *p)
{
	u64 hash = 0xcbf29ce484222325ULL;
	u32 zero = 0, words = mask_words, id, *found, i;
	struct obs_mask *m = bpf_map_lookup_elem(&scratch, &zero);
	const void *bits = p->cpus_ptr;

	if (!m || words > MASK_WORDS)
		return MAX_MASKS;
	/* The rest of the scratch mask was never written: it is 0. */
	if (bpf_probe_read_kernel(m, words * sizeof(u64), bits))
		return MAX_MASKS;
	for (i = 0; i < MASK_WORDS; i++) {
		if (i >= words)
			break;
		hash = (hash ^ m->words[i]) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 29;
	}

	found = bpf_map_lookup_elem(&mask_ids, &hash);
	if (found)
		return *found;
	if (next_mask >= MAX_MASKS)
		return MAX_MASKS;
	id = __sync_fetch_and_add(&next_mask, 1);
	if (id >= MAX_MASKS || bpf_map_update_elem(&masks, &id, m, BPF_ANY))
		return MAX_MASKS;
	bpf_map_update_elem(&mask_ids, &hash, &id, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&mask_ids, &hash);
	return found ? *found : MAX_MASKS;
}

/*
 * Running a BPF program disables the migration of the task that is current, in recent kernels of a tracepoint's too. So of
 * a task that is being switched out one such level is ours; where it isn't, a task that is preempted in the short stretches
 * in which it must not migrate is taken for free.
 */
static __always_inline bool migration_disabled(struct task_struct *p)
{
	if (!bpf_core_field_exists(p->migration_disabled))
		return false;
	return p->migration_disabled > (p == bpf_get_current_task_btf() ? 1 : 0);
}

/* Where p may run. A task with migration disabled stays where it is, whatever its mask says. */
static __always_inline u32 who_of(struct obs_cpu *cs, struct task_ctx *t, struct task_struct *p, u32 cpu)
{
	u32 allowed = p->nr_cpus_allowed;

	if (allowed == 1 || migration_disabled(p))
		return WHO_PIN << WHO_SHIFT | cpu;
	if (allowed >= nr_possible)
		return WHO_ANY << WHO_SHIFT;
	if (!t->mask_known) {
		t->mask = mask_of(cs, p);
		t->mask_known = t->mask < MAX_MASKS;
	}
	if (!t->mask_known) {
		cs->no_mask++;
		return WHO_ANY << WHO_SHIFT;
	}
	return WHO_MASK << WHO_SHIFT | t->mask;
}

#endif /* __OBSERVE_SPANS_BPF_H */
