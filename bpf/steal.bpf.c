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
 * the queue of its previous CPU, and preempts what runs there if that has had
 * more than its share.
 *
 * Good at: many short tasks, wakeups, bursts; big machines, since CPUs share
 * next to nothing. Bad at: keeping tasks where their memory is (scx_numa does).
 *
 * Read the operations at the end first, in the order of a task's life:
 * select_cpu, enqueue, dispatch, running, stopping.
 */
#include <scx/common.bpf.h>

#include "steal.h"

#define STATS_NR STEAL_NR_EVENTS
#include "lib/stats.bpf.h"
#include "lib/fair.bpf.h"
#include "lib/shards.bpf.h"
#include "lib/sync.bpf.h"
#include "lib/unserved.bpf.h"

char _license[] SEC("license") = "GPL";

UEI_DEFINE(uei);

/* How long a task may run while others wait, in ns. Ticks end slices. */
const volatile u64 slice_ns = 3000000;
/* A running task is not interrupted for a woken one before it has run for this, in ns. */
const volatile u64 preempt_ns = 300000;
/* How long a task has to wait, for each 10 of distance, to be taken to another node, in ns. */
const volatile u64 remote_wait_ns = 50000;

/* Queues that a CPU which runs dry looks at in one cache, and caches in one node. */
#define PROBES_PER_SHARD 3
#define SHARDS_PER_NODE 3

/* What a CPU knows. Others read it, and write hint only. */
struct cpu_ctx {
	u64 clock;		/* virtual time of its queue */
	u64 run_at;		/* when the running task started, as p->se.exec_start */
	u64 run_vtime;		/* its virtual runtime then */
	u64 run_weight;
	u64 skew;		/* scx_bpf_now() less the time of p->se.exec_start */
	u64 queued_at;		/* when a free task came into the empty queue */
	u64 served_at;		/* when this CPU last scheduled, roughly */
	u64 balance_at;		/* when to compare queues next */
	u32 turn;		/* where to find a queue to compare the own one with next */
	u32 after;		/* 1 + the CPU whose queue it was last time */
	u32 hint;		/* 1 + the CPU that whoever woke this one points to */
	u16 filled;		/* its queue may have tasks */
	u16 from_own;		/* the next task was the first of its queue */
	struct sync_ctx sync;
} __attribute__((aligned(CACHE_PAIR)));

TABLE(cpu_ctxs, struct cpu_ctx);

static __always_inline struct cpu_ctx *lookup_cpu_ctx(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpu_ctxs, &key);
}

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

/* A CPU's queue has the CPU's id. */
static __always_inline bool is_pinned(const struct task_struct *p, u64 enq_flags)
{
	/*
	 * A task that cpu_release hands back only looks as if it had disabled
	 * migration, since BPF programs do.
	 */
	return p->nr_cpus_allowed == 1 ||
	       (!(enq_flags & SCX_ENQ_REENQ) && is_migration_disabled(p));
}

/* ---- wakeup ------------------------------------------------------------ */

/*
 * Take an idle CPU for @p, the nearest to @cpu. With @prev_too, @cpu itself is
 * one. Returns its id, or -EBUSY.
 */
static s32 claim_near(const struct task_struct *p __arg_trusted, s32 cpu, bool prev_too)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh;
	struct numa_node *n;
	s32 idle;
	u32 i;

	if (!seat)
		return -EBUSY;
	sh = lookup_shard(seat->shard);
	if (!sh)
		return -EBUSY;

	prev_too = prev_too && bpf_cpumask_test_cpu(cpu, p->cpus_ptr);
	if (prev_too && claim_cpu(seat, true)) {
		count(STEAL_WAKE_PREV);
		return cpu;
	}
	if (has_smt) {
		idle = claim_in_shard(p, seat->shard, true);
		if (idle >= 0) {
			count(STEAL_WAKE_LLC);
			return idle;
		}
		if (prev_too && claim_cpu(seat, false)) {
			count(STEAL_WAKE_PREV);
			return cpu;
		}
	}
	idle = claim_in_shard(p, seat->shard, false);
	if (idle >= 0) {
		count(STEAL_WAKE_LLC);
		return idle;
	}
	idle = claim_in_node(p, sh->node, seat->shard);
	if (idle >= 0) {
		count(STEAL_WAKE_NODE);
		return idle;
	}
	n = lookup_node(sh->node);
	if (!n)
		return -EBUSY;
	bpf_for(i, 0, NEAR_NODES) {
		if (i >= n->nr_near)
			break;
		idle = claim_in_node(p, n->near[i & (NEAR_NODES - 1)], NO_SHARD);
		if (idle >= 0) {
			count(STEAL_WAKE_REMOTE);
			return idle;
		}
	}
	return -EBUSY;
}

s32 BPF_STRUCT_OPS(steal_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct cpu_ctx *cc;
	s32 cpu;

	if (wake_flags & SCX_WAKE_SYNC) {
		cpu = bpf_get_smp_processor_id();
		cc = lookup_cpu_ctx(cpu);
		if (cc && sync_may_stay(&cc->sync, p, cpu)) {
			count(STEAL_WAKE_SYNC);
			goto direct;
		}
	}
	cpu = claim_near(p, prev_cpu, true);
	if (cpu < 0)
		return prev_cpu;
	cc = lookup_cpu_ctx(cpu);
direct:
	if (cc)
		p->scx.dsq_vtime = fair_marked(fair_join(p, cc->clock, clock_of(p, cc, cpu)),
					       cpu, 0);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
	return cpu;
}

/* If @p was in a queue and left it without being dispatched, count that. */
static __always_inline void leave_queue(struct task_struct *p)
{
	if (fair_is_queued(p->scx.dsq_vtime)) {
		p->scx.dsq_vtime &= ~FAIR_QUEUED;
		count(STEAL_DEQUEUED);
	}
}

/* ---- queueing ---------------------------------------------------------- */

/* @p waits on @cpu: let an idle CPU, if there is one, come and take it. */
static __always_inline void kick_idle_for(const struct task_struct *p, s32 cpu)
{
	s32 idle = claim_near(p, cpu, false);
	struct cpu_ctx *cc;

	if (idle < 0)
		return;
	cc = lookup_cpu_ctx(idle);
	if (cc)
		cc->hint = cpu + 1;
	scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
	count(STEAL_KICKS);
}

/*
 * Should a woken task of virtual runtime @vtime interrupt what runs on the CPU
 * of @cc? Only if that has run for a while: tasks that pass messages to each
 * other run for less, and are done sooner if they are left alone. And only if
 * it has by now had more than the other.
 */
static __always_inline bool should_preempt(const struct cpu_ctx *cc, u64 vtime, u64 now)
{
	s64 ran = now - cc->skew - cc->run_at;
	u64 weight = cc->run_weight;

	if (ran < (s64)preempt_ns)
		return false;
	if (weight != FAIR_WEIGHT && weight)
		ran = ran * FAIR_WEIGHT / weight;
	return time_before(vtime, cc->run_vtime + ran);
}

void BPF_STRUCT_OPS(steal_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	u64 vtime, now;

	/*
	 * Its mask has just changed and this CPU is no longer in it: the kernel
	 * will move it to one that is, and enqueue it again there.
	 */
	if (!cc || !seat || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
		leave_queue(p);
		scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_ns, enq_flags);
		count(STEAL_TRANSIT);
		return;
	}

	if (!(enq_flags & SCX_ENQ_REENQ))
		leave_queue(p);
	if (here_is_leaving()) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		count(STEAL_TRANSIT);
		return;
	}
	now = scx_bpf_now();
	vtime = fair_marked(fair_join(p, cc->clock, clock_of(p, cc, cpu)), cpu, FAIR_QUEUED);
	p->scx.dsq_vtime = vtime;
	scx_bpf_dsq_insert_vtime(p, cpu, slice_ns, vtime, enq_flags);
	cc->filled = 1;

	if (is_pinned(p, enq_flags)) {
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
		if (!(enq_flags & SCX_ENQ_WAKEUP))
			kick_idle_for(p, cpu);
	}
	if (enq_flags & SCX_ENQ_WAKEUP && should_preempt(cc, vtime, now)) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		count(STEAL_PREEMPTIONS);
	}
}

/* ---- dispatch ---------------------------------------------------------- */

/* Nobody could take from the queue of this seat: say so, unless it filled up. */
static __always_inline void drained(struct seat *seat, s32 cpu)
{
	mark_drained(seat);
	if (scx_bpf_dsq_nr_queued(cpu) > 0)
		mark_queued(seat);
}

static __always_inline bool take_own(struct cpu_ctx *cc, s32 cpu, struct seat *seat)
{
	if (!scx_bpf_dsq_move_to_local(cpu, 0)) {
		cc->filled = 0;
		mark_drained(seat);
		return false;
	}
	count(STEAL_DISP_OWN);
	cc->from_own = 1;
	if (scx_bpf_dsq_nr_queued(cpu) <= 0) {
		cc->filled = 0;
		mark_drained(seat);
	}
	return true;
}

/*
 * Take the first task of @victim that may run here. The kernel skips those that
 * may not, under the locks that keep affinity stable.
 */
static __noinline bool steal_from(struct cpu_ctx *cc, u32 victim, u32 event)
{
	struct seat *seat = lookup_seat(victim);

	if (!cc || !seat)
		return false;
	count(STEAL_PROBES);
	if (!scx_bpf_dsq_move_to_local(victim, 0)) {
		drained(seat, victim);
		count(STEAL_PROBES_EMPTY);
		return false;
	}
	count(event);
	if (scx_bpf_dsq_nr_queued(victim) <= 0)
		drained(seat, victim);
	return true;
}

/* What a CPU that looks for work is after. */
struct hunt {
	s32 cpu;		/* the thief */
	u32 event;		/* to count if it succeeds */
	u64 wait_ns;		/* how long its prey has to have waited */
};

/* Has the first task of @victim waited long enough to be taken that far? */
static __always_inline bool worth_it(u32 victim, u64 wait_ns)
{
	struct cpu_ctx *vc = lookup_cpu_ctx(victim);

	if (!wait_ns)
		return true;
	if (!vc || time_after(vc->queued_at + wait_ns, scx_bpf_now())) {
		count(STEAL_TOO_FRESH);
		return false;
	}
	return true;
}

/* Steal within shard @id, starting after the thief's number and going around. */
static __noinline bool steal_in_shard(struct cpu_ctx *cc, u32 id, const struct hunt *h)
{
	struct shard *sh = lookup_shard(id);
	struct shard_words *w = words_of_shard(id);
	u32 k, probe, from = (h->cpu + 1) & 63;

	if (!sh || !w || !cc)
		return false;
	bpf_for(k, 0, SHARD_WORDS) {
		u64 left;
		u32 first;

		if (k >= sh->nr_words)
			break;
		left = turned(PEEK(w->queued[k & (SHARD_WORDS - 1)]), from);
		first = sh->first_cpu[k & (SHARD_WORDS - 1)];
		bpf_for(probe, 0, PROBES_PER_SHARD) {
			u32 victim;

			if (!left)
				break;
			victim = first + ((lowest(left) + from) & 63);
			left &= left - 1;
			if (victim != h->cpu && worth_it(victim, h->wait_ns) &&
			    steal_from(cc, victim, h->event))
				return true;
		}
	}
	return false;
}

/* Steal within a node, but not from shard @except. */
static __noinline bool steal_in_node(struct cpu_ctx *cc, u32 id, u32 except,
				     const struct hunt *h)
{
	struct numa_node *n = lookup_node(id);
	struct node_words *nw = words_of_node(id);
	u32 try, from = (except - (n ? n->first_shard : 0) + 1) & 63;
	u64 left;

	if (!n || !nw)
		return false;
	left = turned(PEEK(nw->queued), from);
	bpf_for(try, 0, SHARDS_PER_NODE) {
		struct shard_words *w;
		u32 index, shard;

		if (!left)
			return false;
		index = (lowest(left) + from) & 63;
		left &= left - 1;
		shard = n->first_shard + index;
		if (shard == except)
			continue;
		if (steal_in_shard(cc, shard, h))
			return true;
		w = words_of_shard(shard);
		if (w && !(PEEK(w->queued[0]) | PEEK(w->queued[1]) | PEEK(w->queued[2]) | PEEK(w->queued[3]))) {
			clear_bits(&nw->queued, 1ULL << index);
			/* It may have got some in between. */
			if (PEEK(w->queued[0]) | PEEK(w->queued[1]) | PEEK(w->queued[2]) | PEEK(w->queued[3]))
				set_bits(&nw->queued, 1ULL << index);
		}
	}
	return false;
}

/* This CPU has run dry: look for work elsewhere, nearest first. */
static __noinline bool steal_anywhere(struct cpu_ctx *cc, s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct hunt h = { .cpu = cpu };
	struct shard_words *w;
	struct shard *sh;
	struct numa_node *n;
	u32 i, hint;

	if (!cc || !seat)
		return false;
	sh = lookup_shard(seat->shard);
	w = words_of_shard(seat->shard);
	if (!sh || !w)
		return false;

	if (has_smt && PEEK(w->queued[seat->sibling_word & (SHARD_WORDS - 1)]) & seat->sibling_bit &&
	    steal_from(cc, seat->sibling, STEAL_DISP_SMT))
		return true;
	h.event = STEAL_DISP_LLC;
	if (steal_in_shard(cc, seat->shard, &h))
		return true;

	hint = cc->hint;
	cc->hint = 0;
	if (hint && hint - 1 != cpu) {
		struct seat *there = lookup_seat(hint - 1);
		struct shard *sh2 = there ? lookup_shard(there->shard) : NULL;

		if (sh2 && steal_from(cc, hint - 1, sh2->node == sh->node ?
				      STEAL_DISP_NODE : STEAL_DISP_REMOTE))
			return true;
	}
	h.event = STEAL_DISP_NODE;
	if (steal_in_node(cc, sh->node, seat->shard, &h))
		return true;
	n = lookup_node(sh->node);
	if (!n)
		return false;
	h.event = STEAL_DISP_REMOTE;
	bpf_for(i, 0, NEAR_NODES) {
		u32 slot = i & (NEAR_NODES - 1);

		if (i >= n->nr_near)
			break;
		h.wait_ns = remote_wait_ns * (n->distance[slot] - 10) / 10;
		if (steal_in_node(cc, n->near[slot], NO_SHARD, &h))
			return true;
	}
	return false;
}

/* Is anything queued in this CPU's shard or node, or in its own queue? */
static __always_inline bool work_waits(struct seat *seat, s32 cpu)
{
	struct shard_words *w = words_of_shard(seat->shard);
	struct shard *sh = lookup_shard(seat->shard);
	struct node_words *nw = sh ? words_of_node(sh->node) : NULL;

	if (w && (PEEK(w->queued[0]) | PEEK(w->queued[1]) | PEEK(w->queued[2]) | PEEK(w->queued[3])))
		return true;
	if (nw && PEEK(nw->queued) & ~(1ULL << (sh->index & 63)))
		return true;
	return scx_bpf_dsq_nr_queued(cpu) > 0;
}

/* The virtual runtime of the first in @cpu's queue. False if it is empty. */
static __always_inline bool first_vtime(s32 cpu, u64 *vtime)
{
	struct task_struct *p;
	bool any = false;

	bpf_for_each(scx_dsq, p, cpu, 0) {
		*vtime = p->scx.dsq_vtime;
		any = true;
		break;
	}
	return any;
}

/*
 * Keep queues about equally long: tasks that never sleep stay where they are, so
 * without this those on a longer queue would get a smaller share forever. Once
 * a slice, a CPU whose task could go on compares its queue with that of another
 * which has work, taking turns, and takes a task from a longer one.
 *
 * A difference of one is enough within a node, though that only passes the extra
 * task around: then each gets its share of the good places. Between nodes it
 * takes two, so that equal queues pass nothing to and fro. A queue that is not
 * served at all is longer than any.
 */
static __noinline bool balance(struct cpu_ctx *cc, s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct shard *other_sh;
	struct node_words *nw;
	struct shard_words *w;
	struct cpu_ctx *vc;
	u32 turn, node, other, k, first, victim, event;
	s32 mine, theirs, margin = 0;
	u64 left;

	if (!cc || !n)
		return false;
	turn = cc->turn++;
	node = sh->node;
	other = seat->shard;
	event = STEAL_DISP_LLC;
	if (turn % 8 == 7 && n->nr_near) {
		/* Now and then, a node. */
		u32 slot = (turn / 8) % n->nr_near;

		node = n->near[slot & (NEAR_NODES - 1)];
		n = lookup_node(node);
		if (!n)
			return false;
		margin = 1;
		event = STEAL_DISP_REMOTE;
	}
	if (node != sh->node || (turn % 2 && n->nr_shards > 1)) {
		/* Every other time, another cache. */
		u32 from = (turn / 2) & 63;

		nw = words_of_node(node);
		left = nw ? turned(PEEK(nw->queued), from) : 0;
		if (!left)
			return false;
		other = n->first_shard + ((lowest(left) + from) & 63);
		if (node == sh->node && other != seat->shard)
			event = STEAL_DISP_NODE;
	}
	other_sh = lookup_shard(other);
	w = words_of_shard(other);
	if (!other_sh || !w || !other_sh->nr_words)
		return false;
	k = (turn % other_sh->nr_words) & (SHARD_WORDS - 1);
	left = PEEK(w->queued[k]);
	if (other == seat->shard && k == seat->word)
		left &= ~seat->bit;
	if (!left)
		return false;
	first = cc->after & 63;
	victim = other_sh->first_cpu[k] + ((lowest(turned(left, first)) + first) & 63);
	cc->after = victim + 1;

	mine = scx_bpf_dsq_nr_queued(cpu);
	theirs = scx_bpf_dsq_nr_queued(victim);
	vc = lookup_cpu_ctx(victim);
	if (mine < 0 || !vc ||
	    (theirs <= mine + margin && !is_unserved(vc->served_at, vc->queued_at, cc->served_at)))
		return false;
	if (!steal_from(cc, victim, event))
		return false;
	count(STEAL_BALANCED);
	return true;
}

/*
 * The running task @prev has used up its slice, or was preempted, and wants to
 * go on. Does another go first?
 */
static __always_inline bool replace(s32 cpu, struct task_struct *prev, struct cpu_ctx *cc,
				    struct seat *seat)
{
	u64 mine = cc->run_vtime + virtual_ns(prev, prev->se.exec_start - cc->run_at);
	u64 first = mine;
	bool any = first_vtime(cpu, &first);

	/* Time goes on for those who join while it runs. */
	cc->clock = fair_clock(cc->clock, time_before(first, mine) ? first : mine);
	if (time_after(prev->se.exec_start, cc->balance_at)) {
		cc->balance_at = prev->se.exec_start + slice_ns / 2;
		if (balance(cc, cpu))
			return true;
	}
	if (!any || time_before(mine, first))
		return false;
	return take_own(cc, cpu, seat);
}

void BPF_STRUCT_OPS(steal_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);

	if (!cc || !seat)
		return;
	if (prev && (prev->scx.flags & SCX_TASK_QUEUED)) {
		if (!replace(cpu, prev, cc, seat)) {
			scx_bpf_task_set_slice(prev, slice_ns);
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
	mark_idle(seat);
	if (work_waits(seat, cpu) && (take_own(cc, cpu, seat) || steal_anywhere(cc, cpu))) {
		mark_busy(seat);
		count(STEAL_RECHECKS);
	}
}

/* ---- running ----------------------------------------------------------- */

void BPF_STRUCT_OPS(steal_running, struct task_struct *p)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	u64 vtime;

	if (!cc)
		return;
	vtime = fair_marked(fair_join(p, cc->clock, clock_of(p, cc, cpu)), cpu, 0);
	p->scx.dsq_vtime = vtime;
	/* Who overtakes the queue must not take its clock along. */
	if (cc->from_own || !cc->filled)
		cc->clock = fair_clock(cc->clock, vtime);
	cc->from_own = 0;
	cc->run_vtime = vtime;
	cc->run_weight = p->scx.weight;
	cc->run_at = p->se.exec_start;
	sync_start(&cc->sync);
}

void BPF_STRUCT_OPS(steal_stopping, struct task_struct *p, bool runnable)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(bpf_get_smp_processor_id());
	u64 used;

	if (!cc)
		return;
	used = p->se.exec_start - cc->run_at;
	p->scx.dsq_vtime = fair_leave(p, used);
	sync_stop(&cc->sync, p, !runnable, used);
}

/*
 * Each tick: a task may wait here that no idle CPU was told of, because none was
 * idle then, or because a bit was lost in a race of two thieves.
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
	cc->skew = now - p->se.exec_start;
	if (scx_bpf_dsq_nr_queued(cpu) > 0) {
		mark_queued(seat);
		kick_idle_for(p, cpu);
	}
}

void BPF_STRUCT_OPS(steal_update_idle, s32 cpu, bool idle)
{
	struct seat *seat = lookup_seat(cpu);

	if (!seat)
		return;
	if (idle)
		mark_idle(seat);
	else
		mark_busy(seat);
}

/* A task of a higher class takes the CPU: what was to run there next goes back to the queue. */
void BPF_STRUCT_OPS(steal_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

void BPF_STRUCT_OPS(steal_enable, struct task_struct *p)
{
	p->scx.dsq_vtime = 0;
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
	return 0;
}

void BPF_STRUCT_OPS(steal_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

/* What the kernel prints when it throws a scheduler out, or on SysRq-D. */
void BPF_STRUCT_OPS(steal_dump, struct scx_dump_ctx *dctx)
{
	u32 i;

	bpf_for(i, 0, nr_shards) {
		struct shard_words *w = words_of_shard(i);
		struct shard *sh = lookup_shard(i);

		if (w && sh)
			scx_bpf_dump("shard %u: node %u, CPUs from %u, idle %llx, queued %llx\n",
				     i, sh->node, sh->first_cpu[0], w->idle[0], w->queued[0]);
	}
}

void BPF_STRUCT_OPS(steal_dump_cpu, struct scx_dump_ctx *dctx, s32 cpu, bool idle)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	s32 queued = scx_bpf_dsq_nr_queued(cpu);

	if (!cc || (idle && !queued))
		return;
	scx_bpf_dump("%d queued, clock=%llu run_vtime=%llu run_at=%llu hint=%u",
		     queued, cc->clock, cc->run_vtime, cc->run_at, cc->hint);
}

void BPF_STRUCT_OPS(steal_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	scx_bpf_dump("vtime=%lld slice_ns=%llu allowed=%d migration_disabled=%d",
		     p->scx.dsq_vtime, p->scx.slice, p->nr_cpus_allowed,
		     is_migration_disabled(p));
}

/* Run by the daemon when it reads the counters: how many tasks are queued. */
u64 queued_now;

SEC("syscall")
int steal_read_queued(void *ctx)
{
	u64 queued = 0;
	s32 nr;
	u32 i;

	bpf_for(i, 0, nr_cpu_ids) {
		nr = scx_bpf_dsq_nr_queued(i);
		queued += nr > 0 ? nr : 0;
	}
	queued_now = queued;
	return 0;
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
