/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A global FIFO with one fault, for tests only: never run it where it matters.
 *
 * It has the fault for tasks whose command name is held_comm; what else there is runs as it should.
 *
 *	hold	they are kept on the CPU held_cpu, though they may run on any: all of their wait while another CPU is idle is
 *		wasted CPU time
 *	wait	one of them runs every delay_ns only, though nothing keeps CPUs from running them
 *	lost	they are put into a queue that no CPU ever looks at
 *	mask	those that may not run on held_cpu are sent there all the same
 *	strand	each is put into the local queue of held_cpu once, whatever runs there
 *	unwoken	they are queued for held_cpu, which is not woken for them
 */
#include <scx/common.bpf.h>

#define STATS_NR 1
#include "lib/stats.bpf.h"

const volatile u32 nr_cpu_ids = 1;
const volatile s32 held_cpu = 0;

#define SHARED_DSQ	0
#define HELD_DSQ	1

#define STUCK_FOUND 0
#define SLEEPS_ON(cpu, since) ((s32)(cpu) == held_cpu && waits_in(HELD_DSQ, cpu, since))
#include "lib/stuck.bpf.h"

char _license[] SEC("license") = "GPL";

UEI_DEFINE(uei);

#define COMM_LEN	16

const volatile char held_comm[COMM_LEN] = {};
const volatile u64 slice_ns = 5000000;
const volatile u64 delay_ns = 3000000000ULL;

enum broken_fault { FAULT_HOLD, FAULT_WAIT, FAULT_LOST, FAULT_MASK, FAULT_STRAND, FAULT_UNWOKEN };

const volatile u32 fault = FAULT_HOLD;

/* With FAULT_WAIT: when one was let go last, or when the first came into the empty queue. */
u64 held_at;

static bool is_held(struct task_struct *p)
{
	char comm[COMM_LEN];
	int i;

	bpf_probe_read_kernel_str(comm, sizeof(comm), p->comm);
	for (i = 0; i < COMM_LEN; i++) {
		if (comm[i] != held_comm[i])
			return false;
		if (!comm[i])
			break;
	}
	if (fault == FAULT_HOLD)
		return bpf_cpumask_test_cpu(held_cpu, p->cpus_ptr);
	if (fault == FAULT_MASK)
		return !bpf_cpumask_test_cpu(held_cpu, p->cpus_ptr);
	return true;
}

s32 BPF_STRUCT_OPS(broken_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool idle = false;
	s32 cpu;

	if (is_held(p))
		return fault == FAULT_HOLD ? held_cpu : prev_cpu;
	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);
	if (idle)
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
	return cpu;
}

void BPF_STRUCT_OPS(broken_enqueue, struct task_struct *p, u64 enq_flags)
{
	if (is_held(p)) {
		if (fault == FAULT_MASK) {
			scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL_ON | held_cpu, slice_ns, enq_flags);
			return;
		}
		if (fault == FAULT_STRAND) {
			/* No queue here is in the order of that. */
			bool strand = !p->scx.dsq_vtime;

			p->scx.dsq_vtime = 1;
			scx_bpf_dsq_insert(p, strand ? SCX_DSQ_LOCAL_ON | held_cpu : SHARED_DSQ, slice_ns,
					   enq_flags);
			return;
		}
		if (fault == FAULT_WAIT && scx_bpf_dsq_nr_queued(HELD_DSQ) <= 0)
			held_at = bpf_ktime_get_ns();
		scx_bpf_dsq_insert(p, HELD_DSQ, slice_ns, enq_flags);
		if (fault == FAULT_HOLD)
			scx_bpf_kick_cpu(held_cpu, SCX_KICK_IDLE);
		return;
	}
	/* Only one CPU can run it: it mustn't starve behind the held ones. */
	if (p->nr_cpus_allowed == 1) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		return;
	}
	scx_bpf_dsq_insert(p, SHARED_DSQ, slice_ns, enq_flags);
}

void BPF_STRUCT_OPS(broken_dispatch, s32 cpu, struct task_struct *prev)
{
	if ((fault == FAULT_HOLD || fault == FAULT_UNWOKEN) && cpu == held_cpu &&
	    scx_bpf_dsq_move_to_local(HELD_DSQ, 0))
		return;
	if (fault == FAULT_WAIT && bpf_ktime_get_ns() > held_at + delay_ns &&
	    scx_bpf_dsq_move_to_local(HELD_DSQ, 0)) {
		held_at = bpf_ktime_get_ns();
		return;
	}
	scx_bpf_dsq_move_to_local(SHARED_DSQ, 0);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(broken_init)
{
	s32 ret = scx_bpf_create_dsq(SHARED_DSQ, -1);

	return ret ? ret : scx_bpf_create_dsq(HELD_DSQ, -1);
}

void BPF_STRUCT_OPS(broken_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(broken_ops,
	       .select_cpu	= (void *)broken_select_cpu,
	       .enqueue		= (void *)broken_enqueue,
	       .dispatch	= (void *)broken_dispatch,
	       .init		= (void *)broken_init,
	       .exit		= (void *)broken_exit,
	       .name		= "broken");
