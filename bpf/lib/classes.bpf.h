/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Service classes: what the daemon's policy file says of a task, found by the
 * cgroup that it is in.
 *
 *	task ──> its cgroup in the unified hierarchy ──> id ──> class, slice, width
 *
 * The daemon enters each cgroup of a service and those below it, and takes them
 * out when they go, so one look is enough: nobody climbs the hierarchy here. A
 * task that moves to another cgroup has that one's class at its next wakeup.
 *
 * Nothing is kept per task. That would have to be changed in all tasks of a
 * cgroup when the policy does, and looking is a hash of eight bytes. Without a
 * policy, has_classes is a constant 0, and the verifier drops all of this, also
 * what follows for the kind that class_kind() returns, CLASS_NORMAL then.
 */
#ifndef __MANYCORE_CLASSES_BPF_H
#define __MANYCORE_CLASSES_BPF_H

#include "lib/classes.h"

const volatile bool has_classes = false;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u64);
	__type(value, struct class_entry);
	__uint(max_entries, 1);		/* MAX_CLASSED with a policy, set at load */
} classes SEC(".maps");

/* What the policy says of @p, or NULL. */
static __always_inline const struct class_entry *class_of(const struct task_struct *p)
{
	u64 id;

	if (!has_classes)
		return NULL;
	id = p->cgroups->dfl_cgrp->kn->id;
	return bpf_map_lookup_elem(&classes, &id);
}

static __always_inline u32 class_kind(const struct class_entry *ce)
{
	return ce ? ce->kind : CLASS_NORMAL;
}

#endif /* __MANYCORE_CLASSES_BPF_H */
