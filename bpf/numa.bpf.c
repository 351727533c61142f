/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scx_numa: NUMA-local.
 *
 * Every task has a home: a node, and within it a last-level cache. It waits in
 * the queue of its home, in the order of virtual runtime, and CPUs of that node
 * serve it:
 *
 *            node 0                                node 1
 *       LLC 0              LLC 1              LLC 2              LLC 3
 *     [t9 t4 t1]   <──>    [t7]             [t8]      <──>       [ ]
 *     CPU 0 CPU 1      CPU 2 CPU 3        CPU 4 CPU 5        CPU 6 CPU 7
 *          └───── shared within the node ─────┘ └──────────────────┘
 *                        ╌╌ another node takes t9 only when it has ╌╌
 *                             waited for longer than a move costs
 *
 * Home is where the task's memory must be (cpuset.mems, mempolicy), where the
 * kernel saw its memory, where its process or its parent is, the first of these that
 * is known; a task that is born where little idles gets one where more does. It
 * changes when the task has run elsewhere for long, when its node has to send tasks
 * elsewhere again and again, when it may no longer run there, or when the daemon
 * evens out nodes that have been unequally busy for seconds. With --strict nobody
 * ever leaves.
 *
 * Good at: services that are larger than a cache and smaller than a node; memory
 * that is expensive to reach from another node. Bad at: bursts of one process
 * that is wider than its node, since the wait at home comes before the move.
 *
 * Read the operations at the end first, in the order of a task's life:
 * init_task, select_cpu, enqueue, dispatch, running, stopping.
 */
#include <scx/common.bpf.h>

#include "numa/ctx.bpf.h"
#include "numa/homes.bpf.h"
#include "numa/search.bpf.h"
#include "numa/call.bpf.h"
#include "numa/show.bpf.h"

char _license[] SEC("license") = "GPL";

UEI_DEFINE(uei);

/* The clock that the virtual runtime of @p was made with: @q's, that of @shard, or another shard's. */
static __always_inline u64 clock_of(const struct task_struct *p, const struct queue_ctx *q, u32 shard)
{
	u64 vtime = p->scx.dsq_vtime;
	struct queue_ctx *other;

	if (fair_frame(vtime) == shard)
		return q->clock;
	other = lookup_queue(fair_frame(vtime));
	return other ? other->clock : q->clock;
}

/* Does anybody wait for @cpu, of shard @sh, that it may run? */
static __always_inline bool work_waits_for(const struct shard *sh, s32 cpu)
{
	return is_shard_queued(sh) || scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu)) > 0;
}

/* ---- wakeup ------------------------------------------------------------ */

s32 BPF_STRUCT_OPS(numa_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	const struct class_entry *ce = class_of(p);
	struct task_ctx *tc = lookup_task(p);
	struct queue_ctx *q;
	struct cpu_ctx *cc, *waker = NULL;
	struct seat *seat;
	struct shard *sh;
	u64 enq_flags = 0;
	s32 cpu;

	if (!tc)
		return prev_cpu;
	if (tc->home == NO_HOME) {
		seat = wake_flags & SCX_WAKE_FORK ? lookup_seat(prev_cpu) : NULL;
		if (!seat || seat->shard == NO_SHARD)
			return prev_cpu;
		home_of(p, tc, seat->shard);
	}
	if (wake_flags & SCX_WAKE_SYNC) {
		cpu = bpf_get_smp_processor_id();
		waker = lookup_cpu_ctx(cpu);
		seat = lookup_seat(cpu);
		sh = seat ? lookup_shard(seat->shard) : NULL;
		if (waker && sh && sh->node == tc->node &&
		    sync_may_stay(&waker->sync, p, cpu,
				  sync_is_long(&waker->sync) && work_waits_for(sh, cpu))) {
			count(NUMA_WAKE_SYNC);
			goto direct;
		}
	}
	cpu = wake_flags & SCX_WAKE_FORK ? claim_new_home(p, tc) : -EBUSY;
	if (cpu < 0)
		cpu = claim_at_home(p, tc, prev_cpu);
	if (cpu < 0 && class_stays_near(ce)) {
		/* Its queue is that of its cache, so only those CPUs will do. */
		cpu = claim_batch_in_shard(p, tc->home, prev_cpu);
		cc = cpu >= 0 ? lookup_cpu_ctx(cpu) : NULL;
		seat = cc ? lookup_seat(cpu) : NULL;
		q = seat ? lookup_queue(seat->shard) : NULL;
		if (q && class_takes_over(&cc->run, fair_join(p, q->clock,
							      clock_of(p, q, seat->shard), true))) {
			enq_flags = SCX_ENQ_PREEMPT;
			count(NUMA_PREEMPTIONS);
			count(NUMA_PREEMPT_BATCH);
			goto direct;
		}
		if (cpu >= 0)
			return cpu;
	}
	if (cpu < 0) {
		if (waker)
			sync_mark(&waker->sync, p);
		return prev_cpu;
	}
direct:
	if (partial)
		return cpu;
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, class_slice(ce), enq_flags);
	return cpu;
}

/* ---- queueing ---------------------------------------------------------- */

/* If @p was in a queue and has not run since, count that: it was taken out, or back from a CPU. */
static __always_inline void leave_queue(struct task_struct *p)
{
	if (fair_left(p))
		count(NUMA_DEQUEUED);
}

void BPF_STRUCT_OPS(numa_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = task_cpu(p);
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct task_ctx *tc = lookup_task(p);
	const struct class_entry *ce = class_of(p);
	u64 vtime, place, now, clock, slice = class_slice(ce);
	u32 home, kind = class_kind(ce);
	struct shard *sh, *here;
	struct queue_ctx *q;
	bool pinned, stream = enq_flags & SCX_ENQ_WAKEUP && sync_is_stream(p);

	class_leave(p, kind);
	stream_leave(p);
	leave_queue(p);
	here = seat ? lookup_shard(seat->shard) : NULL;
	/*
	 * Its mask has just changed and this CPU is no longer in it: the kernel
	 * will move it to one that is, and enqueue it again there.
	 */
	if (!cc || !here || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_ns, enq_flags);
		count(NUMA_TRANSIT);
		return;
	}

	if (here_is_leaving()) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		count(NUMA_TRANSIT);
		return;
	}
	pinned = is_pinned(p, enq_flags);
	home = pinned ? seat->shard : home_of(p, tc, seat->shard);
	sh = lookup_shard(home);
	q = lookup_queue(home);
	if (!sh || !q)
		return;
	/* Its CPU is at home and has nothing else to do: it goes on there. */
	if (woke_in_place(enq_flags) && !partial && here->node == sh->node && claim_cpu(seat, false)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, enq_flags);
		count(NUMA_WAKE_PREV);
		return;
	}
	now = scx_bpf_now();
	clock = q->clock;
	vtime = fair_join(p, clock, clock_of(p, q, home), enq_flags & SCX_ENQ_WAKEUP);
	vtime = place_within(home, vtime, clock, sh->nr_cpus, cc->run.weight);
	if (pinned)
		vtime = place_within(PINNED_DSQ(cpu), vtime, clock, 1, cc->run.weight);
	/*
	 * One that slept and owes nothing starts level with the queue. If nobody
	 * else can serve it, it starts level with who runs here: that one may be
	 * behind the queue by a slice, and would keep it waiting for as long. But
	 * not before its own turn, as one that just ran might.
	 */
	if (pinned && enq_flags & SCX_ENQ_WAKEUP && vtime == clock && time_before(cc->run.vtime, clock)) {
		vtime = clock + fair_lag(p, clock_of(p, q, home));
		if (time_before(vtime, cc->run.vtime))
			vtime = cc->run.vtime;
	}
	vtime = fair_marked(vtime - class_head(kind), home, FAIR_QUEUED);
	p->scx.dsq_vtime = vtime;

	if (pinned) {
		scx_bpf_dsq_insert_vtime(p, PINNED_DSQ(cpu), slice, vtime, enq_flags);
		count(NUMA_ENQ_PINNED);
		if (claim_cpu(seat, false)) {
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
			count(NUMA_KICKS);
			return;
		}
	} else {
		place = stream_place(vtime, stream && kind == CLASS_NORMAL, &slice);
		scx_bpf_dsq_insert_vtime(p, home, slice, place, enq_flags);
		count(NUMA_ENQ_HOME);
		if (!is_shard_queued(sh))
			q->queued_at = now;
		mark_shard_queued(sh);
		/* A wakeup is no time for long searches. */
		call_for(p, home, sh, kind, !(enq_flags & SCX_ENQ_WAKEUP) && waits_long(q, sh, now), now);
	}
	/* Only those of its home serve that queue. */
	if (seat->shard != home) {
		cpu = some_cpu(p, sh, cpu);
		cc = lookup_cpu_ctx(cpu);
		if (!cc)
			return;
	}
	press(&cc->run, cpu, vtime, hurry_of(kind, enq_flags & SCX_ENQ_WAKEUP, pinned), now);
}

/* ---- dispatch ---------------------------------------------------------- */

/* Take what is first among this CPU's pinned tasks and its shard's queue. */
static __noinline bool take_own(struct cpu_ctx *cc, s32 cpu, u32 shard)
{
	u64 pinned, free;

	cc->run.hurry = 0;
	if (scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu)) <= 0)
		return take(cc, shard, NUMA_DISP_OWN);
	if (first_vtime(PINNED_DSQ(cpu), &pinned) && first_vtime(shard, &free) &&
	    time_before(free, pinned) && take(cc, shard, NUMA_DISP_OWN))
		return true;
	if (scx_bpf_dsq_move_to_local(PINNED_DSQ(cpu), 0)) {
		cc->from = NUMA_DISP_PINNED;
		return true;
	}
	return take(cc, shard, NUMA_DISP_OWN);
}

/*
 * The running task @prev has used up its slice, or was preempted, and wants to
 * go on. Does another go first?
 */
static __always_inline bool replace(s32 cpu, struct task_struct *prev, struct cpu_ctx *cc,
				    struct seat *seat)
{
	u64 mine = run_vtime_now(&cc->run, prev);
	struct queue_ctx *q = lookup_queue(seat->shard);
	u64 first, other;

	if (!first_vtime(seat->shard, &first))
		first = mine + 1;
	if (scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu)) > 0 &&
	    first_vtime(PINNED_DSQ(cpu), &other))
		first = earlier(first, other);
	/* Time goes on for those who join while it runs. */
	if (q)
		move_clock(&q->clock, earlier(first, mine));
	if (time_after(prev->se.exec_start, cc->balance_at) && !class_is_urgent(first, mine)) {
		cc->balance_at = prev->se.exec_start + slice_ns / 2;
		if (balance(cc, seat)) {
			settle(prev, seat->shard);
			return true;
		}
	}
	if (time_before(mine - class_head(cc->run.kind), first))
		return false;
	return take_own(cc, cpu, seat->shard);
}

/* Is anything queued in this CPU's node, or for this CPU alone? */
static __always_inline bool work_waits(struct seat *seat, s32 cpu)
{
	struct shard *sh = lookup_shard(seat->shard);
	struct node_words *nw = sh ? words_of_node(sh->node) : NULL;

	return (nw && PEEK(nw->queued)) || scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu)) > 0;
}

/* Who waits here for too long, in either queue, has caught up. */
static __noinline void look_for_late(struct cpu_ctx *cc, s32 cpu, u32 shard, u64 now)
{
	struct queue_ctx *q = lookup_queue(shard);
	bool found;

	if (!cc || !q)
		return;
	found = late_catches_up(&cc->late, shard, q->clock);
	found |= late_catches_up(&cc->late, PINNED_DSQ(cpu), q->clock);
	late_looked(&cc->late, now, found);
}

void BPF_STRUCT_OPS(numa_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	u64 now;

	if (!cc || !seat)
		return;
	sync_asks(&cc->sync);
	if (late_is_due(&cc->late, &cc->run, prev, &now))
		look_for_late(cc, cpu, seat->shard, now);
	if (prev && (prev->scx.flags & SCX_TASK_QUEUED)) {
		if (!replace(cpu, prev, cc, seat)) {
			scx_bpf_task_set_slice(prev, class_slice(class_of(prev)));
			class_runs(seat, cc->run.kind);
			count(NUMA_KEPT);
			/* The next tick may be two slices away. */
			if (work_elsewhere(cpu))
				set_alarm(cpu, scx_bpf_now(), slice_ns);
		}
		return;
	}
	if (take_own(cc, cpu, seat->shard) || take_elsewhere(cc, seat))
		return;

	/*
	 * Going idle. Something may have been queued by a CPU that did not see
	 * this one idle yet, so look once more after saying so: either that CPU
	 * sees the bit, or this one sees the task.
	 */
	count(NUMA_WENT_IDLE);
	mark_idle(seat);
	if (work_waits(seat, cpu) &&
	    (take_own(cc, cpu, seat->shard) || take_elsewhere(cc, seat))) {
		mark_busy(seat);
		count(NUMA_RECHECKS);
	}
}

/* ---- running ----------------------------------------------------------- */

/*
 * Not always on the CPU of @p itself: when its class, mask or priority is changed
 * while it runs, this is called where that is done. At load, for all that run.
 */
void BPF_STRUCT_OPS(numa_running, struct task_struct *p)
{
	s32 cpu = task_cpu(p);
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct queue_ctx *q = seat ? lookup_queue(seat->shard) : NULL;
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	const struct class_entry *ce = class_of(p);
	bool queued, own;
	u64 vtime, from;

	if (!cc || !q || !sh)
		return;
	class_leave(p, class_kind(ce));
	stream_leave(p);
	queued = fair_is_queued(p->scx.dsq_vtime);
	if (queued)
		count(cc->from);
	own = queued && (cc->from == NUMA_DISP_OWN || cc->from == NUMA_DISP_PINNED);
	from = clock_of(p, q, seat->shard);
	if (queued && !own)
		from = when_first(from, p->scx.dsq_vtime);
	vtime = fair_marked(fair_join(p, q->clock, from, !queued), seat->shard, 0);
	p->scx.dsq_vtime = vtime;
	/* Who overtakes the queue must not take its clock along. */
	if ((own && !class_head(class_kind(ce))) || !is_shard_queued(sh))
		move_clock(&q->clock, vtime);
	run_start(&cc->run, p, vtime);
	class_start(&cc->run, ce, cpu);
	sync_start(&cc->sync);
	/* Where it came from others wait, too. */
	if (cc->run.hurry || (queued && !own) || is_shard_queued(sh))
		press_next(&cc->run, cpu);
}

/* @p goes to sleep while others wait: time goes on for those who join. */
static __always_inline void pass(u32 shard, s32 cpu, const struct task_struct *p)
{
	struct queue_ctx *q = lookup_queue(shard);
	u64 vtime = p->scx.dsq_vtime, first = vtime;

	if (q && fair_moves(q->clock, vtime) && first_waiting(cpu, &first))
		move_clock(&q->clock, earlier(first, vtime));
}

void BPF_STRUCT_OPS(numa_stopping, struct task_struct *p, bool runnable)
{
	s32 cpu = task_cpu(p);
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	u64 used;

	if (!cc || !sh)
		return;
	used = p->se.exec_start - cc->run.at;
	p->scx.dsq_vtime = run_stop(&cc->run, p, used);
	if (!runnable)
		pass(seat->shard, cpu, p);
	account_home(p, sh, seat->shard, used);
	sync_stop(&cc->sync, p, !runnable, used);
}

/*
 * Each tick: tasks may wait here that no idle CPU was told of. Those of the node
 * come at once, those of other nodes when the wait has cost more than the move.
 */
void BPF_STRUCT_OPS(numa_tick, struct task_struct *p)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct queue_ctx *q = seat ? lookup_queue(seat->shard) : NULL;
	struct task_struct *first;
	u64 now = scx_bpf_now();
	bool waited, done = false;

	if (!cc || !sh || !q)
		return;
	note_served(&q->served_at, now);
	run_tick(&cc->run, p, now);
	note_load(seat->shard, now);
	if (scx_bpf_dsq_nr_queued(seat->shard) <= 0)
		return;
	mark_shard_queued(sh);
	waited = waits_long(q, sh, now);
	bpf_for_each(scx_dsq, first, seat->shard, 0) {
		done = kick_near(first, seat->shard) ||
		       (waited && kick_remote(first, seat->shard)) ||
		       runs_anywhere(first);
		break;
	}
	/* It may be confined to busy CPUs, and another that waits be like the one that runs. */
	if (!done && !kick_near(p, seat->shard) && waited)
		kick_remote(p, seat->shard);
}

void BPF_STRUCT_OPS(numa_update_idle, s32 cpu, bool idle)
{
	struct seat *seat = lookup_seat(cpu);

	if (!seat)
		return;
	if (idle) {
		class_runs(seat, CLASS_NORMAL);
		mark_idle(seat);
	} else {
		mark_busy(seat);
	}
}

/* A task of a higher class takes the CPU: what was to run there next goes back to the queue. */
void BPF_STRUCT_OPS(numa_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

/* ---- coming and going -------------------------------------------------- */

/*
 * A task is born, or was there before the scheduler. A thread gets the home of
 * the one that started it; another process when it starts to run.
 */
s32 BPF_STRUCT_OPS(numa_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_ctx *tc, *parent;

	tc = bpf_task_storage_get(&task_ctxs, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!tc)
		return -ENOMEM;
	tc->home = NO_HOME;
	tc->kernel_nid = NUMA_NO_NODE;
	if (args->fork && p->pid != p->tgid) {
		parent = lookup_task(bpf_get_current_task_btf());
		if (parent && parent->home != NO_HOME)
			set_home(tc, parent->home, NUMA_HOME_INHERITED);
	}
	return 0;
}

void BPF_STRUCT_OPS(numa_enable, struct task_struct *p)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct queue_ctx *q = seat ? lookup_queue(seat->shard) : NULL;
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;

	p->scx.dsq_vtime = cc && q && sh && work_waits_for(sh, cpu) ?
		fair_enable(p, &cc->run, q->clock, seat->shard) : 0;
}

/* It goes to another class, or the scheduler ends. */
void BPF_STRUCT_OPS(numa_disable, struct task_struct *p)
{
	leave_queue(p);
}

static void hotplug(s32 cpu, bool online)
{
	if (!shards_hotplug(cpu, online))
		scx_bpf_exit(SCX_ECODE_ACT_RESTART | SCX_ECODE_RSN_HOTPLUG,
			     "CPU %d is new to the topology", cpu);
}

void BPF_STRUCT_OPS(numa_cpu_online, s32 cpu)
{
	hotplug(cpu, true);
}

void BPF_STRUCT_OPS(numa_cpu_offline, s32 cpu)
{
	hotplug(cpu, false);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(numa_init)
{
	u32 i;
	s32 err;

	bpf_for(i, 0, nr_shards) {
		struct shard *sh = lookup_shard(i);
		struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
		struct queue_ctx *q = lookup_queue(i);

		if (q)
			q->clock = FAIR_EPOCH;
		err = scx_bpf_create_dsq(i, n ? n->kernel_node : NUMA_NO_NODE);
		if (err)
			return err;
	}
	bpf_for(i, 0, nr_cpu_ids) {
		err = scx_bpf_create_dsq(PINNED_DSQ(i), NUMA_NO_NODE);
		if (err)
			return err;
	}
	return alarms_init();
}

void BPF_STRUCT_OPS(numa_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(numa_ops,
	       .select_cpu	= (void *)numa_select_cpu,
	       .enqueue		= (void *)numa_enqueue,
	       .dispatch	= (void *)numa_dispatch,
	       .running		= (void *)numa_running,
	       .stopping	= (void *)numa_stopping,
	       .tick		= (void *)numa_tick,
	       .update_idle	= (void *)numa_update_idle,
	       .cpu_release	= (void *)numa_cpu_release,
	       .init_task	= (void *)numa_init_task,
	       .enable		= (void *)numa_enable,
	       .disable		= (void *)numa_disable,
	       .cpu_online	= (void *)numa_cpu_online,
	       .cpu_offline	= (void *)numa_cpu_offline,
	       .init		= (void *)numa_init,
	       .exit		= (void *)numa_exit,
	       .dump		= (void *)numa_dump,
	       .dump_cpu	= (void *)numa_dump_cpu,
	       .dump_task	= (void *)numa_dump_task,
	       .name		= "numa");
