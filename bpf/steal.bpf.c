/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scx_steal: work-stealing.
 *
 * Every CPU has a queue, in the order of virtual runtime, and whoever runs dry
 * steals from the others, nearest first:
 *
 *            node 0                                node 1
 *       LLC 0              LLC 1              LLC 2              LLC 3
 *   CPU 0   CPU 1      CPU 2   CPU 3      CPU 4   CPU 5      CPU 6   CPU 7
 *   [t9 t4] [ ] <─1──  [t7]    [t2]       [t8]    [ ]        [t1 t3] [t5]
 *             └──────2── same node          └──3── further away, if the task
 *              same cache                          has waited for long enough
 *
 * Where work and idle CPUs are is in words of bits (lib/shards.bpf.h), so no
 * search looks at more than a few queues, on 8 CPUs as on 1024. A task that
 * wakes up goes straight onto an idle CPU if there is one near. If not, it joins
 * the queue of its previous CPU, of one of its cache where nobody waits yet, or of
 * one in a node where fewer wait, and preempts what runs there if that has had
 * more than its share.
 *
 * Good at: many short tasks, wakeups, bursts; big machines, since CPUs share
 * next to nothing. Bad at: keeping tasks where their memory is (scx_numa does);
 * one that was taken to another node goes back when it can (steal/home.bpf.h).
 *
 * Read the operations at the end first, in the order of a task's life:
 * select_cpu, enqueue, dispatch, running, stopping.
 */
#include <scx/common.bpf.h>

#include "steal/ctx.bpf.h"
#include "steal/home.bpf.h"
#include "steal/claim.bpf.h"
#include "steal/search.bpf.h"
#include "steal/show.bpf.h"

char _license[] SEC("license") = "GPL";

UEI_DEFINE(uei);

/* The clock that the virtual runtime of @p was made with: @cc's, that of @cpu, or another CPU's. */
static __always_inline u64 clock_of(const struct task_struct *p, const struct cpu_ctx *cc, s32 cpu)
{
	u64 vtime = p->scx.dsq_vtime;
	struct cpu_ctx *other;

	if (fair_frame(vtime) == cpu)
		return cc->clock;
	other = lookup_cpu_ctx(fair_frame(vtime));
	return other ? other->clock : cc->clock;
}

/*
 * The clock that the virtual runtime @vtime of a task was made with, which starts
 * to run here: that of another CPU. One that was taken from a slower queue goes on
 * as if both clocks had gone alike. One from a faster queue doesn't: it would wait
 * here for all of what others there had meanwhile, and not only for what it had.
 */
static __noinline u64 clock_it_left(const struct cpu_ctx *cc, u64 vtime)
{
	struct cpu_ctx *other = lookup_cpu_ctx(fair_frame(vtime));
	s64 ahead;

	if (!cc || !other)
		return cc ? cc->clock : 0;
	if (!fair_is_queued(vtime))
		return other->clock;
	ahead = pace_ahead(&cc->pace, cc->clock, &other->pace, other->clock);
	return when_first(other->clock + (ahead > 0 ? ahead : 0), vtime);
}

/* ---- wakeup ------------------------------------------------------------ */

s32 BPF_STRUCT_OPS(steal_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	const struct class_entry *ce = class_of(p);
	struct cpu_ctx *cc, *waker = NULL;
	u64 enq_flags = 0;
	s32 cpu;

	if (wake_flags & SCX_WAKE_SYNC) {
		cpu = bpf_get_smp_processor_id();
		waker = lookup_cpu_ctx(cpu);
		if (waker && sync_may_stay(&waker->sync, p, cpu, waker->filled)) {
			count(STEAL_WAKE_SYNC);
			goto direct;
		}
	}
	cpu = nr_nodes > 1 ? claim_home(p, prev_cpu, wake_flags & SCX_WAKE_FORK) : -EBUSY;
	if (cpu < 0)
		cpu = claim_near(p, prev_cpu, true);
	if (cpu < 0 && class_stays_near(ce)) {
		cpu = claim_batch_near(p, prev_cpu, SHARDS_PER_NODE);
		cc = cpu >= 0 ? lookup_cpu_ctx(cpu) : NULL;
		if (cc && class_takes_over(&cc->run, fair_join(p, cc->clock, clock_of(p, cc, cpu), true))) {
			enq_flags = SCX_ENQ_PREEMPT;
			count(STEAL_PREEMPTIONS);
			count(STEAL_PREEMPT_BATCH);
			goto direct;
		}
		if (cpu >= 0)
			return cpu;
	}
	if (cpu < 0)
		cpu = claim_far(p, prev_cpu, true);
	if (cpu < 0) {
		if (waker)
			sync_mark(&waker->sync, p);
		return wait_near(p, prev_cpu);
	}
direct:
	if (partial)
		return cpu;
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, class_slice(ce), enq_flags);
	return cpu;
}

/* If @p was in a queue and has not run since, count that: it was taken out, or back from a CPU. */
static __always_inline void leave_queue(struct task_struct *p)
{
	if (fair_left(p))
		count(STEAL_DEQUEUED);
}

/* ---- queueing ---------------------------------------------------------- */

void BPF_STRUCT_OPS(steal_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = task_cpu(p);
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	const struct class_entry *ce = class_of(p);
	u32 kind = class_kind(ce);
	u64 vtime, place, now, slice = class_slice(ce);
	bool far, pinned, stream = enq_flags & SCX_ENQ_WAKEUP && sync_is_stream(p);

	class_leave(p, kind);
	stream_leave(p);
	leave_queue(p);
	/*
	 * Its mask has just changed and this CPU is no longer in it: the kernel
	 * will move it to one that is, and enqueue it again there.
	 */
	if (!cc || !seat || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_ns, enq_flags);
		count(STEAL_TRANSIT);
		return;
	}

	if (here_is_leaving()) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		count(STEAL_TRANSIT);
		return;
	}
	/* Its CPU has nothing else to do: it goes on there. */
	if (woke_in_place(enq_flags) && !partial && claim_cpu(seat, false)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, enq_flags);
		count(STEAL_WAKE_PREV);
		return;
	}
	now = scx_bpf_now();
	vtime = fair_join(p, cc->clock, clock_of(p, cc, cpu), enq_flags & SCX_ENQ_WAKEUP);
	vtime = place_within(cpu, vtime, cc->clock, 1, cc->run.weight);
	vtime = fair_marked(vtime - class_head(kind), cpu, FAIR_QUEUED);
	p->scx.dsq_vtime = vtime;
	pinned = is_pinned(p, enq_flags);
	/* Alone in the queue it would only come later. */
	stream = stream && cc->filled && !pinned && kind == CLASS_NORMAL;
	place = stream_place(vtime, stream, &slice);
	scx_bpf_dsq_insert_vtime(p, cpu, slice, place, enq_flags);
	cc->filled = 1;

	if (pinned) {
		count(STEAL_ENQ_PINNED);
		if (claim_cpu(seat, false)) {
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
			count(STEAL_KICKS);
			return;
		}
	} else {
		count(STEAL_ENQ_FREE);
		if (!is_marked_queued(seat))
			cc->queued_at = now;
		mark_queued(seat);
		/*
		 * For one that wakes up, select_cpu has looked for an idle CPU. One near
		 * that went idle since has not seen the mark.
		 */
		far = !(enq_flags & SCX_ENQ_WAKEUP) || woke_in_place(enq_flags);
		if (far || (!partial && anybody_idles(seat)))
			kick_idle_for(p, cpu, far);
	}
	press(&cc->run, cpu, vtime, hurry_of(kind, enq_flags & SCX_ENQ_WAKEUP, pinned), now);
}

/* ---- dispatch ---------------------------------------------------------- */

static __always_inline bool take_own(struct cpu_ctx *cc, s32 cpu, struct seat *seat)
{
	if (!cc->filled || !scx_bpf_dsq_move_to_local(cpu, 0)) {
		cc->filled = 0;
		mark_drained(seat);
		return false;
	}
	cc->from = STEAL_DISP_OWN;
	cc->run.hurry = 0;
	if (scx_bpf_dsq_nr_queued(cpu) <= 0) {
		cc->filled = 0;
		mark_drained(seat);
	}
	return true;
}

/*
 * The running task @prev has used up its slice, or was preempted, and wants to
 * go on. Does another go first?
 */
static __always_inline bool replace(s32 cpu, struct task_struct *prev, struct cpu_ctx *cc,
				    struct seat *seat)
{
	u64 mine = run_vtime_now(&cc->run, prev);
	u64 first = mine, next;
	bool any = first_vtime(cpu, &first);

	pace_note(&cc->pace, cc->clock, prev->se.exec_start);
	/* Time goes on for those who join while it runs. */
	next = earlier(first, mine);
	move_clock(&cc->clock, next);
	if (time_after(prev->se.exec_start, cc->balance_at) && !class_is_urgent(first, mine)) {
		cc->balance_at = prev->se.exec_start + slice_ns / 2;
		if (balance(cc, cpu, next))
			return true;
	}
	if (!any || time_before(mine - class_head(cc->run.kind), first))
		return false;
	return take_own(cc, cpu, seat);
}

void BPF_STRUCT_OPS(steal_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	u64 now;

	if (!cc || !seat)
		return;
	sync_asks(&cc->sync);
	if (cc->filled && late_is_due(&cc->late, &cc->run, prev, &now))
		late_looked(&cc->late, now, late_catches_up(&cc->late, cpu, cc->clock));
	if (prev && (prev->scx.flags & SCX_TASK_QUEUED)) {
		if (!replace(cpu, prev, cc, seat)) {
			scx_bpf_task_set_slice(prev, class_slice(class_of(prev)));
			class_runs(seat, cc->run.kind);
			count(STEAL_KEPT);
		}
		return;
	}
	if (take_own(cc, cpu, seat) || steal_anywhere(cc, cpu))
		return;

	/*
	 * Going idle. Something may have been queued by a CPU that did not see
	 * this one idle yet, so look once more after saying so: either that CPU
	 * sees the bit, or this one sees the task.
	 */
	count(STEAL_WENT_IDLE);
	pace_idle(&cc->pace);
	mark_idle(seat);
	if (work_waits(cc, seat) && (take_own(cc, cpu, seat) || steal_anywhere(cc, cpu))) {
		mark_busy(seat);
		count(STEAL_RECHECKS);
	}
}

/* ---- running ----------------------------------------------------------- */

/*
 * Not always on the CPU of @p itself: when its class, mask or priority is changed
 * while it runs, this is called where that is done. At load, for all that run.
 */
void BPF_STRUCT_OPS(steal_running, struct task_struct *p)
{
	s32 cpu = task_cpu(p);
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	const struct class_entry *ce = class_of(p);
	u64 vtime, from;
	bool queued, own;

	if (!cc)
		return;
	pace_note(&cc->pace, cc->clock, p->se.exec_start);
	class_leave(p, class_kind(ce));
	stream_leave(p);
	vtime = p->scx.dsq_vtime;
	queued = fair_is_queued(vtime);
	if (queued)
		count(cc->from);
	own = queued && cc->from == STEAL_DISP_OWN;
	from = cc->clock;
	if (fair_frame(vtime) != cpu) {
		from = clock_it_left(cc, vtime);
		/* One that is new has left nothing there. */
		if (vtime && nr_nodes > 1 && (p->se.sum_exec_runtime || queued))
			note_trip(p, cpu, fair_frame(vtime));
	}
	vtime = fair_marked(fair_join(p, cc->clock, from, !queued), cpu, 0);
	p->scx.dsq_vtime = vtime;
	/* Who overtakes the queue must not take its clock along. */
	if ((own && !class_head(class_kind(ce))) || !cc->filled)
		move_clock(&cc->clock, vtime);
	run_start(&cc->run, p, vtime);
	class_start(&cc->run, ce, cpu);
	sync_start(&cc->sync);
	if (cc->filled)
		press_next(&cc->run, cpu);
}

/* @p goes to sleep while others wait: time goes on for those who join. */
static __always_inline void pass(struct cpu_ctx *cc, s32 cpu, const struct task_struct *p)
{
	u64 vtime = p->scx.dsq_vtime, first = vtime;

	if (!fair_moves(cc->clock, vtime))
		return;
	first_vtime(cpu, &first);
	pace_note(&cc->pace, cc->clock, p->se.exec_start);
	move_clock(&cc->clock, earlier(first, vtime));
}

void BPF_STRUCT_OPS(steal_stopping, struct task_struct *p, bool runnable)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(task_cpu(p));
	u64 used;

	if (!cc)
		return;
	used = p->se.exec_start - cc->run.at;
	p->scx.dsq_vtime = run_stop(&cc->run, p, used);
	if (!runnable && cc->filled)
		pass(cc, task_cpu(p), p);
	sync_stop(&cc->sync, p, !runnable, used);
}

/*
 * Each tick: a task may wait here that no idle CPU was told of, because none was
 * idle then; or that nobody sees, as a thief cleared the bit between its being set
 * and the task's being queued, which the kernel does when enqueue is done.
 */
void BPF_STRUCT_OPS(steal_tick, struct task_struct *p)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	u64 now = scx_bpf_now();

	if (!cc || !seat)
		return;
	note_served(&cc->served_at, now);
	run_tick(&cc->run, p, now);
	/* The first may be confined to busy CPUs, and another that waits be like the one that runs. */
	if (!call_thief(cpu, seat))
		kick_idle_for(p, cpu, true);
}

void BPF_STRUCT_OPS(steal_update_idle, s32 cpu, bool idle)
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
void BPF_STRUCT_OPS(steal_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

void BPF_STRUCT_OPS(steal_enable, struct task_struct *p)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);

	p->scx.dsq_vtime = cc && cc->filled ? fair_enable(p, &cc->run, cc->clock, cpu) : 0;
}

/* It goes to another class, or the scheduler ends. */
void BPF_STRUCT_OPS(steal_disable, struct task_struct *p)
{
	leave_queue(p);
}

static void hotplug(s32 cpu, bool online)
{
	struct seat *seat = lookup_seat(cpu);

	if (!shards_hotplug(cpu, online))
		scx_bpf_exit(SCX_ECODE_ACT_RESTART | SCX_ECODE_RSN_HOTPLUG,
			     "CPU %d is new to the topology", cpu);
	else if (seat && !online)
		mark_queued(seat);	/* what waits there is for the others */
}

void BPF_STRUCT_OPS(steal_cpu_online, s32 cpu)
{
	hotplug(cpu, true);
}

void BPF_STRUCT_OPS(steal_cpu_offline, s32 cpu)
{
	hotplug(cpu, false);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(steal_init)
{
	u32 i;
	s32 err;

	bpf_for(i, 0, nr_cpu_ids) {
		struct seat *seat = lookup_seat(i);
		struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
		struct numa_node *n = sh ? lookup_node(sh->node) : NULL;

		struct cpu_ctx *cc = lookup_cpu_ctx(i);

		if (cc)
			cc->clock = FAIR_EPOCH;
		err = scx_bpf_create_dsq(i, n ? n->kernel_node : NUMA_NO_NODE);
		if (err)
			return err;
	}
	return alarms_init();
}

void BPF_STRUCT_OPS(steal_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(steal_ops,
	       .select_cpu	= (void *)steal_select_cpu,
	       .enqueue		= (void *)steal_enqueue,
	       .dispatch	= (void *)steal_dispatch,
	       .running		= (void *)steal_running,
	       .stopping	= (void *)steal_stopping,
	       .tick		= (void *)steal_tick,
	       .update_idle	= (void *)steal_update_idle,
	       .cpu_release	= (void *)steal_cpu_release,
	       .enable		= (void *)steal_enable,
	       .disable		= (void *)steal_disable,
	       .cpu_online	= (void *)steal_cpu_online,
	       .cpu_offline	= (void *)steal_cpu_offline,
	       .init		= (void *)steal_init,
	       .exit		= (void *)steal_exit,
	       .dump		= (void *)steal_dump,
	       .dump_cpu	= (void *)steal_dump_cpu,
	       .dump_task	= (void *)steal_dump_task,
	       .name		= "steal");
