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
 * kernel saw its memory, where its process is, or where it first ran, the first
 * of these that is known. It changes when the task has run elsewhere for long,
 * when it may no longer run there, or when the daemon evens out nodes that have
 * been unequally busy for seconds. With --strict nobody ever leaves.
 *
 * Good at: services that are larger than a cache and smaller than a node; memory
 * that is expensive to reach from another node. Bad at: bursts of one process
 * that is wider than its node, since the wait at home comes before the move.
 *
 * Read the operations at the end first, in the order of a task's life:
 * init_task, select_cpu, enqueue, dispatch, running, stopping.
 */
#include <scx/common.bpf.h>

#include "numa.h"

#define STATS_NR NUMA_NR_EVENTS
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
const volatile u64 remote_wait_ns = 500000;
/* How long a task has to have run elsewhere, more than at home, to get a new home, in ns. */
const volatile u64 rehome_ns = 20000000;
/* Nobody ever leaves home. */
const volatile bool strict = false;

/* Caches that a CPU which runs dry looks at in one node. */
#define SHARDS_PER_NODE 3

/* A shard's queue has the shard's id; a CPU's queue of pinned tasks this. */
#define PINNED_DSQ(cpu) ((1ULL << 32) | (u32)(cpu))

#define NO_HOME NO_SHARD

/* What is known of a task. */
struct task_ctx {
	u32 home;		/* shard, or NO_HOME */
	u32 node;		/* of home */
	s64 away_ns;		/* run elsewhere less run at home, never below 0 */
	s32 kernel_nid;		/* the kernel's preferred node when last looked at */
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_ctx);
} task_ctxs SEC(".maps");

static __always_inline struct task_ctx *lookup_task(struct task_struct *p)
{
	return bpf_task_storage_get(&task_ctxs, p, NULL, 0);
}

/* What a CPU knows. Others read it, and write hint only. */
struct cpu_ctx {
	u64 run_at;		/* when the running task started, as p->se.exec_start */
	u64 run_vtime;		/* its virtual runtime then */
	u64 run_weight;
	u64 skew;		/* scx_bpf_now() less the time of p->se.exec_start */
	u64 balance_at;		/* when to compare queues next */
	u32 turn;		/* queue to compare the own one with next */
	u32 hint;		/* 1 + the shard that whoever woke this CPU points to */
	u32 from_own;		/* the next task was the first of its queue */
	struct sync_ctx sync;
} __attribute__((aligned(CACHE_PAIR)));

/* What the CPUs of a shard share. */
struct queue_ctx {
	u64 clock;		/* virtual time of its queue */
	u64 queued_at;		/* when a task came into the empty queue */
	u64 served_at;		/* when one of the CPUs last scheduled, roughly */
} __attribute__((aligned(CACHE_PAIR)));

TABLE(cpu_ctxs, struct cpu_ctx);
TABLE(queue_ctxs, struct queue_ctx);
TABLE(move_orders, struct move_order);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct node_time);
	__uint(max_entries, 1);	/* nr_nodes, set at load */
} node_times SEC(".maps");

static __always_inline struct cpu_ctx *lookup_cpu_ctx(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpu_ctxs, &key);
}

static __always_inline struct queue_ctx *lookup_queue(u32 shard)
{
	return bpf_map_lookup_elem(&queue_ctxs, &shard);
}

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

static __always_inline bool is_pinned(const struct task_struct *p, u64 enq_flags)
{
	/*
	 * A task that cpu_release hands back only looks as if it had disabled
	 * migration, since BPF programs do.
	 */
	return p->nr_cpus_allowed == 1 ||
	       (!(enq_flags & SCX_ENQ_REENQ) && is_migration_disabled(p));
}

/* ---- homes ------------------------------------------------------------- */

static __always_inline void set_home(struct task_ctx *tc, u32 shard, u32 event)
{
	struct shard *sh = lookup_shard(shard);

	if (!sh || tc->home == shard)
		return;
	tc->home = shard;
	tc->node = sh->node;
	tc->away_ns = 0;
	count(event);
}

/* The index of the node with this id of the kernel's, or NO_SHARD. At most 64 nodes are looked at. */
static __noinline u32 node_index(u32 kernel_node)
{
	u32 i;

	bpf_for(i, 0, NUMA_MAX_NODES) {
		struct numa_node *n;

		if (i >= nr_nodes)
			break;
		n = lookup_node(i);
		if (n && n->kernel_node == kernel_node)
			return i;
	}
	return NO_SHARD;
}

/* A shard of the node, spread by pid so that processes don't all get the first. */
static __always_inline u32 some_shard(u32 node, const struct task_struct *p)
{
	struct numa_node *n = lookup_node(node);

	return n && n->nr_shards ? n->first_shard + (u32)p->tgid % n->nr_shards : NO_HOME;
}

#define MPOL_PREFERRED_	1	/* enumerators of the kernel's, not bits */
#define MPOL_BIND_	2
#define MPOL_PREFERRED_MANY_ 5

/*
 * The one node of the kernel's that this task's memory must or should be on, by
 * its cpuset or its mempolicy; or NUMA_NO_NODE if there is no such, or several.
 */
static __noinline s32 memory_node(struct task_struct *p __arg_trusted)
{
	struct mempolicy *pol = BPF_CORE_READ(p, mempolicy);
	u64 mems = 0;

	bpf_probe_read_kernel(&mems, sizeof(mems), &p->mems_allowed.bits[0]);
	if (pol) {
		u16 mode = BPF_CORE_READ(pol, mode);
		u64 nodes = 0;

		if (mode == MPOL_PREFERRED_ || mode == MPOL_BIND_ || mode == MPOL_PREFERRED_MANY_) {
			bpf_probe_read_kernel(&nodes, sizeof(nodes), &pol->nodes.bits[0]);
			if (nodes)
				mems = nodes;
		}
	}
	if (nr_nodes < 2 || !mems || (mems & (mems - 1)))
		return NUMA_NO_NODE;
	return lowest(mems);
}

/* May @p run on any CPU of this shard? */
static __always_inline bool may_live(const struct task_struct *p, u32 shard)
{
	struct shard *sh = lookup_shard(shard);
	struct shard_words *w = words_of_shard(shard);
	u32 k;

	if (!sh || !w)
		return false;
	if (runs_anywhere(p))
		return true;
	bpf_for(k, 0, SHARD_WORDS) {
		if (k >= sh->nr_words)
			break;
		if (allowed_word(p, sh->first_cpu[k & (SHARD_WORDS - 1)]) &
		    sh->cpus[k & (SHARD_WORDS - 1)])
			return true;
	}
	return false;
}

/*
 * The shard whose queue @p waits in, now that it is about to wait and its CPU is
 * of shard @here: its home, which is decided here if it has none.
 */
static __noinline u32 home_of(struct task_struct *p __arg_trusted, struct task_ctx *tc, u32 here)
{
	struct move_order *order;
	s32 nid;

	if (!tc)
		return here;
	if (tc->home == NO_HOME) {
		u32 node;

		nid = memory_node(p);
		node = nid >= 0 ? node_index(nid) : NO_SHARD;
		if (node != NO_SHARD && may_live(p, some_shard(node, p)))
			set_home(tc, some_shard(node, p), NUMA_HOME_MEMORY);
		else
			set_home(tc, here, NUMA_HOME_FIRST);
		return tc->home == NO_HOME ? here : tc->home;
	}
	if (!runs_anywhere(p) && !may_live(p, tc->home)) {
		set_home(tc, here, NUMA_HOME_AFFINITY);
		return tc->home;
	}
	/* AutoNUMA has a new opinion. */
	nid = p->numa_preferred_nid;
	if (nid != tc->kernel_nid) {
		u32 node = nid >= 0 ? node_index(nid) : NO_SHARD;

		tc->kernel_nid = nid;
		if (!strict && node != NO_SHARD && node != tc->node &&
		    may_live(p, some_shard(node, p)))
			set_home(tc, some_shard(node, p), NUMA_HOME_KERNEL);
		return tc->home;
	}
	order = bpf_map_lookup_elem(&move_orders, &tc->node);
	if (order && order->budget && !strict && may_live(p, some_shard(order->to, p))) {
		/* A race of two spends one too few: the daemon gives another. */
		order->budget--;
		set_home(tc, some_shard(order->to, p), NUMA_HOME_ORDERED);
	}
	return tc->home;
}

/* ---- wakeup ------------------------------------------------------------ */

/*
 * Take an idle CPU at the home of @p: the previous one, one of its cache, or one
 * of its node. Returns its id, or -EBUSY.
 */
static __noinline s32 claim_at_home(struct task_struct *p __arg_trusted, struct task_ctx *tc, s32 prev_cpu)
{
	struct seat *seat = lookup_seat(prev_cpu);
	struct shard *sh;
	s32 idle;

	if (!tc || !seat)
		return -EBUSY;
	sh = lookup_shard(seat->shard);
	if (sh && sh->node == tc->node && bpf_cpumask_test_cpu(prev_cpu, p->cpus_ptr)) {
		if (claim_cpu(seat, true)) {
			count(NUMA_WAKE_PREV);
			return prev_cpu;
		}
		if (has_smt) {
			idle = claim_in_shard(p, tc->home, true);
			if (idle >= 0) {
				count(NUMA_WAKE_LLC);
				return idle;
			}
			if (claim_cpu(seat, false)) {
				count(NUMA_WAKE_PREV);
				return prev_cpu;
			}
		}
	}
	idle = claim_in_shard(p, tc->home, false);
	if (idle >= 0) {
		count(NUMA_WAKE_LLC);
		return idle;
	}
	idle = claim_in_node(p, tc->node, tc->home);
	if (idle >= 0)
		count(NUMA_WAKE_NODE);
	return idle;
}

s32 BPF_STRUCT_OPS(numa_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct task_ctx *tc = lookup_task(p);
	struct queue_ctx *q;
	struct seat *seat;
	struct shard *sh;
	s32 cpu;

	if (!tc || tc->home == NO_HOME)
		return prev_cpu;
	if (wake_flags & SCX_WAKE_SYNC) {
		struct cpu_ctx *cc;

		cpu = bpf_get_smp_processor_id();
		cc = lookup_cpu_ctx(cpu);
		seat = lookup_seat(cpu);
		sh = seat ? lookup_shard(seat->shard) : NULL;
		if (cc && sh && sh->node == tc->node && sync_may_stay(&cc->sync, p, cpu)) {
			count(NUMA_WAKE_SYNC);
			goto direct;
		}
	}
	cpu = claim_at_home(p, tc, prev_cpu);
	if (cpu < 0)
		return prev_cpu;
	seat = lookup_seat(cpu);
direct:
	q = seat ? lookup_queue(seat->shard) : NULL;
	if (q)
		p->scx.dsq_vtime = fair_marked(fair_join(p, q->clock, clock_of(p, q, seat->shard)),
					       seat->shard, 0);
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
	return cpu;
}

/* ---- queueing ---------------------------------------------------------- */

/* If @p was in a queue and left it without being dispatched, count that. */
static __always_inline void leave_queue(struct task_struct *p)
{
	if (fair_is_queued(p->scx.dsq_vtime)) {
		p->scx.dsq_vtime &= ~FAIR_QUEUED;
		count(NUMA_DEQUEUED);
	}
}

static __always_inline void mark_shard_queued(struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	if (nw)
		set_bits(&nw->queued, 1ULL << (sh->index & 63));
}

static __always_inline bool is_shard_queued(struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	return nw && PEEK(nw->queued) & (1ULL << (sh->index & 63));
}

/* Nothing was found in the queue of shard @id: say so, unless it filled up. */
static __always_inline void mark_shard_drained(u32 id, struct shard *sh)
{
	struct node_words *nw = words_of_node(sh->node);

	if (!nw)
		return;
	clear_bits(&nw->queued, 1ULL << (sh->index & 63));
	if (scx_bpf_dsq_nr_queued(id) > 0)
		set_bits(&nw->queued, 1ULL << (sh->index & 63));
}

/* Wake the nearest CPU of another node that is idle and may run @p, for shard @home. */
static __noinline void kick_remote(struct task_struct *p __arg_trusted, u32 home)
{
	struct shard *sh = lookup_shard(home);
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct cpu_ctx *cc;
	u32 i;

	if (!n || strict)
		return;
	bpf_for(i, 0, NEAR_NODES) {
		s32 idle;

		if (i >= n->nr_near)
			break;
		idle = claim_in_node(p, n->near[i & (NEAR_NODES - 1)], NO_SHARD);
		if (idle < 0)
			continue;
		cc = lookup_cpu_ctx(idle);
		if (cc)
			cc->hint = home + 1;
		scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
		count(NUMA_KICKS);
		count(NUMA_KICKS_REMOTE);
		return;
	}
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

/* @p waits at shard @home: let somebody come for it who would not do so anyway. */
static __always_inline void call_for(struct task_struct *p, struct task_ctx *tc, u32 home,
				     struct shard *sh, s32 cpu)
{
	s32 idle = tc ? claim_in_shard(p, home, false) : -EBUSY;
	struct cpu_ctx *cc;

	if (idle < 0)
		idle = claim_in_node(p, sh->node, home);
	if (idle >= 0) {
		cc = lookup_cpu_ctx(idle);
		if (cc)
			cc->hint = home + 1;
		scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
		count(NUMA_KICKS);
		return;
	}
	/* More wait than there are CPUs to serve them soon: that is worth a move. */
	if (scx_bpf_dsq_nr_queued(home) >= (s32)sh->nr_cpus)
		kick_remote(p, home);
}

void BPF_STRUCT_OPS(numa_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct task_ctx *tc = lookup_task(p);
	struct shard *sh, *here;
	struct queue_ctx *q;
	bool pinned;
	u64 vtime, now;
	u32 home;

	if (!(enq_flags & SCX_ENQ_REENQ))
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
	now = scx_bpf_now();
	vtime = fair_marked(fair_join(p, q->clock, clock_of(p, q, home)), home, FAIR_QUEUED);
	p->scx.dsq_vtime = vtime;

	if (pinned) {
		scx_bpf_dsq_insert_vtime(p, PINNED_DSQ(cpu), slice_ns, vtime, enq_flags);
		count(NUMA_ENQ_PINNED);
		if (claim_cpu(seat, false)) {
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
			count(NUMA_KICKS);
			return;
		}
	} else {
		scx_bpf_dsq_insert_vtime(p, home, slice_ns, vtime, enq_flags);
		count(NUMA_ENQ_HOME);
		if (!is_shard_queued(sh))
			q->queued_at = now;
		mark_shard_queued(sh);
		call_for(p, tc, home, sh, cpu);
	}
	if (enq_flags & SCX_ENQ_WAKEUP && (pinned || here->node == sh->node) &&
	    should_preempt(cc, vtime, now)) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		count(NUMA_PREEMPTIONS);
	}
}

/* ---- dispatch ---------------------------------------------------------- */

/* Take the first task of shard @id that may run here. */
static __noinline bool take(struct cpu_ctx *cc, u32 id, u32 event)
{
	struct shard *sh = lookup_shard(id);

	if (!cc || !sh)
		return false;
	if (!scx_bpf_dsq_move_to_local(id, 0)) {
		if (scx_bpf_dsq_nr_queued(id) <= 0)
			mark_shard_drained(id, sh);
		return false;
	}
	cc->from_own = event == NUMA_DISP_OWN;
	count(event);
	return true;
}

/* Take from the caches of a node, but not from shard @except, after @wait_ns. */
static __noinline bool take_in_node(struct cpu_ctx *cc, u32 id, u32 except, u64 wait_ns)
{
	struct numa_node *n = lookup_node(id);
	struct node_words *nw = words_of_node(id);
	u32 try, from = (except - (n ? n->first_shard : 0) + 1) & 63;
	u64 left;

	if (!n || !nw || !cc)
		return false;
	left = turned(PEEK(nw->queued), from);
	bpf_for(try, 0, SHARDS_PER_NODE) {
		struct queue_ctx *q;
		u32 shard;

		if (!left)
			return false;
		shard = n->first_shard + ((lowest(left) + from) & 63);
		left &= left - 1;
		if (shard == except)
			continue;
		q = lookup_queue(shard);
		if (wait_ns && q && time_after(q->queued_at + wait_ns, scx_bpf_now())) {
			count(NUMA_TOO_FRESH);
			continue;
		}
		if (take(cc, shard, wait_ns ? NUMA_DISP_REMOTE : NUMA_DISP_NODE))
			return true;
	}
	return false;
}

/* This CPU has run dry: look elsewhere in the node, then, for who has waited, on others. */
static __noinline bool take_elsewhere(struct cpu_ctx *cc, struct seat *seat)
{
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	u32 i, hint;

	if (!cc || !n)
		return false;
	hint = cc->hint;
	cc->hint = 0;
	if (hint && hint - 1 != seat->shard) {
		struct shard *there = lookup_shard(hint - 1);

		if (there && take(cc, hint - 1, there->node == sh->node ?
				  NUMA_DISP_NODE : NUMA_DISP_REMOTE))
			return true;
	}
	if (take_in_node(cc, sh->node, seat->shard, 0))
		return true;
	if (strict)
		return false;
	bpf_for(i, 0, NEAR_NODES) {
		u32 slot = i & (NEAR_NODES - 1);
		u64 wait_ns;

		if (i >= n->nr_near)
			break;
		wait_ns = remote_wait_ns * (n->distance[slot] - 10) / 10;
		if (take_in_node(cc, n->near[slot], NO_SHARD, wait_ns ?: 1))
			return true;
	}
	return false;
}

/* The virtual runtime of the first in this queue. False if it is empty. */
static __always_inline bool first_vtime(u64 dsq, u64 *vtime)
{
	struct task_struct *p;
	bool any = false;

	bpf_for_each(scx_dsq, p, dsq, 0) {
		*vtime = p->scx.dsq_vtime;
		any = true;
		break;
	}
	return any;
}

/* Take what is first among this CPU's pinned tasks and its shard's queue. */
static __noinline bool take_own(struct cpu_ctx *cc, s32 cpu, u32 shard)
{
	u64 pinned, free;

	if (scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu)) <= 0)
		return take(cc, shard, NUMA_DISP_OWN);
	if (first_vtime(PINNED_DSQ(cpu), &pinned) && first_vtime(shard, &free) &&
	    time_before(free, pinned) && take(cc, shard, NUMA_DISP_OWN))
		return true;
	if (scx_bpf_dsq_move_to_local(PINNED_DSQ(cpu), 0)) {
		count(NUMA_DISP_PINNED);
		cc->from_own = 1;
		return true;
	}
	return take(cc, shard, NUMA_DISP_OWN);
}

/*
 * Keep queues about equally long for their number of CPUs, or tasks that never
 * sleep would get less forever on a longer one. Once a slice, a CPU whose task
 * could go on compares its queue with one other, taking turns: with those of its
 * node, and every fourth time with one of another node. There it takes a whole
 * task more for each CPU: that much less is worth a move. A queue that is not
 * served at all is longer than any.
 */
static __noinline bool balance(struct cpu_ctx *cc, struct seat *seat)
{
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL, *other;
	struct numa_node *n = sh ? lookup_node(sh->node) : NULL;
	struct queue_ctx *own, *q;
	u32 id, turn, margin, event = NUMA_DISP_NODE;
	s32 mine, theirs;

	if (!cc || !n)
		return false;
	turn = cc->turn++;
	margin = sh->nr_cpus / 4;
	if (turn % 4 == 3 && n->nr_near && !strict) {
		n = lookup_node(n->near[(turn / 4 % n->nr_near) & (NEAR_NODES - 1)]);
		margin = sh->nr_cpus;
		event = NUMA_DISP_REMOTE;
	}
	if (!n || !n->nr_shards)
		return false;
	id = n->first_shard + turn / 4 % n->nr_shards;
	other = lookup_shard(id);
	if (!other || id == seat->shard)
		return false;
	mine = scx_bpf_dsq_nr_queued(seat->shard);
	theirs = scx_bpf_dsq_nr_queued(id);
	own = lookup_queue(seat->shard);
	q = lookup_queue(id);
	if (mine < 0 || theirs <= 0 || !own || !q)
		return false;
	if ((u64)theirs * sh->nr_cpus <= ((u64)mine + 1 + margin) * other->nr_cpus &&
	    !is_unserved(q->served_at, q->queued_at, own->served_at))
		return false;
	if (!take(cc, id, event))
		return false;
	count(NUMA_BALANCED);
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
	struct queue_ctx *q = lookup_queue(seat->shard);
	u64 first, other, floor;

	if (!first_vtime(seat->shard, &first))
		first = mine + 1;
	/* Time goes on for those who join while it runs. */
	floor = time_before(first, mine) ? first : mine;
	if (q && time_before(q->clock, floor))
		q->clock = floor;
	if (time_after(prev->se.exec_start, cc->balance_at)) {
		cc->balance_at = prev->se.exec_start + slice_ns / 2;
		if (balance(cc, seat))
			return true;
	}
	if (scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu)) > 0 &&
	    first_vtime(PINNED_DSQ(cpu), &other) && time_before(other, first))
		first = other;
	if (time_before(mine, first))
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

void BPF_STRUCT_OPS(numa_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);

	if (!cc || !seat)
		return;
	if (prev && (prev->scx.flags & SCX_TASK_QUEUED)) {
		if (!replace(cpu, prev, cc, seat)) {
			scx_bpf_task_set_slice(prev, slice_ns);
			count(NUMA_KEPT);
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

void BPF_STRUCT_OPS(numa_running, struct task_struct *p)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct queue_ctx *q = seat ? lookup_queue(seat->shard) : NULL;
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	u64 vtime;

	if (!cc || !q || !sh)
		return;
	vtime = fair_marked(fair_join(p, q->clock, clock_of(p, q, seat->shard)), seat->shard, 0);
	p->scx.dsq_vtime = vtime;
	/*
	 * Who overtakes the queue must not take its clock along. Shared by the
	 * cache's CPUs: written only if it changes.
	 */
	if ((cc->from_own || !is_shard_queued(sh)) && time_before(q->clock, vtime))
		q->clock = vtime;
	cc->from_own = 0;
	cc->run_vtime = vtime;
	cc->run_weight = p->scx.weight;
	cc->run_at = p->se.exec_start;
	sync_start(&cc->sync);
}

/* @p ran @used ns on a CPU of this shard: account it to its home, and to its wish for another. */
static __always_inline void account_home(struct task_struct *p, struct shard *sh, u32 shard,
					 u64 used)
{
	struct task_ctx *tc = lookup_task(p);
	struct node_time *nt;

	if (!tc || tc->home == NO_HOME)
		return;
	nt = bpf_map_lookup_elem(&node_times, &tc->node);
	if (!nt)
		return;
	if (sh->node == tc->node) {
		nt->home_ns += used;
		tc->away_ns = tc->away_ns > (s64)used ? tc->away_ns - used : 0;
		return;
	}
	nt->away_ns += used;
	tc->away_ns += used;
	if (!strict && p->nr_cpus_allowed > 1 && tc->away_ns > (s64)rehome_ns &&
	    may_live(p, shard))
		set_home(tc, shard, NUMA_HOME_AWAY);
}

void BPF_STRUCT_OPS(numa_stopping, struct task_struct *p, bool runnable)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	struct seat *seat = lookup_seat(cpu);
	struct queue_ctx *q = seat ? lookup_queue(seat->shard) : NULL;
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	u64 used;

	if (!cc || !q || !sh)
		return;
	used = p->se.exec_start - cc->run_at;
	p->scx.dsq_vtime = fair_leave(p, used);
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
	struct cpu_ctx *other;
	u64 now = scx_bpf_now();
	s32 idle;

	if (!cc || !sh || !q)
		return;
	note_served(&q->served_at, now);
	cc->skew = now - p->se.exec_start;
	if (scx_bpf_dsq_nr_queued(seat->shard) <= 0)
		return;
	mark_shard_queued(sh);
	idle = claim_in_node(p, sh->node, NO_SHARD);
	if (idle >= 0) {
		other = lookup_cpu_ctx(idle);
		if (other)
			other->hint = seat->shard + 1;
		scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
		count(NUMA_KICKS);
	} else if (time_before(q->queued_at + remote_wait_ns, now)) {
		kick_remote(p, seat->shard);
	}
}

void BPF_STRUCT_OPS(numa_update_idle, s32 cpu, bool idle)
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
void BPF_STRUCT_OPS(numa_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

/* ---- coming and going -------------------------------------------------- */

/*
 * A task is born, or was there before the scheduler. A thread gets the home of
 * the one that started it; another process decides when it first waits.
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
	p->scx.dsq_vtime = 0;
}

/* It goes to another class, or the scheduler ends. */
void BPF_STRUCT_OPS(numa_disable, struct task_struct *p)
{
	leave_queue(p);
}

static void hotplug(s32 cpu, bool online)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;

	if (!shards_hotplug(cpu, online) || !sh)
		scx_bpf_exit(SCX_ECODE_ACT_RESTART | SCX_ECODE_RSN_HOTPLUG,
			     "CPU %d is new to the topology", cpu);
	else
		__sync_fetch_and_add(&sh->nr_cpus, online ? 1 : -1);
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
	return 0;
}

void BPF_STRUCT_OPS(numa_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

/* What the kernel prints when it throws a scheduler out, or on SysRq-D. */
void BPF_STRUCT_OPS(numa_dump, struct scx_dump_ctx *dctx)
{
	u32 i;

	bpf_for(i, 0, nr_shards) {
		struct shard_words *w = words_of_shard(i);
		struct shard *sh = lookup_shard(i);

		if (w && sh)
			scx_bpf_dump("shard %u: node %u, %u CPUs, idle %llx, %d queued\n",
				     i, sh->node, sh->nr_cpus, w->idle[0],
				     scx_bpf_dsq_nr_queued(i));
	}
}

void BPF_STRUCT_OPS(numa_dump_cpu, struct scx_dump_ctx *dctx, s32 cpu, bool idle)
{
	struct cpu_ctx *cc = lookup_cpu_ctx(cpu);
	s32 pinned = scx_bpf_dsq_nr_queued(PINNED_DSQ(cpu));

	if (!cc || (idle && !pinned))
		return;
	scx_bpf_dump("%d pinned tasks queued, run_vtime=%llu run_at=%llu hint=%u",
		     pinned, cc->run_vtime, cc->run_at, cc->hint);
}

void BPF_STRUCT_OPS(numa_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	struct task_ctx *tc = lookup_task(p);

	scx_bpf_dump("vtime=%lld slice_ns=%llu allowed=%d home=%d away_ns=%lld",
		     p->scx.dsq_vtime, p->scx.slice, p->nr_cpus_allowed,
		     tc ? (s32)tc->home : -1, tc ? tc->away_ns : 0);
}

/* Run by the daemon: how many tasks are queued, and how many at each node. */
u64 queued_home, queued_pinned;
u64 queued_at_node[NUMA_MAX_NODES];

SEC("syscall")
int numa_read_queued(void *ctx)
{
	u64 home = 0, pinned = 0;
	s32 nr;
	u32 i;

	bpf_for(i, 0, nr_nodes) {
		if (i < NUMA_MAX_NODES)
			queued_at_node[i] = 0;
	}
	bpf_for(i, 0, nr_shards) {
		struct shard *sh = lookup_shard(i);

		nr = scx_bpf_dsq_nr_queued(i);
		if (!sh || nr <= 0)
			continue;
		home += nr;
		queued_at_node[sh->node & (NUMA_MAX_NODES - 1)] += nr;
	}
	bpf_for(i, 0, nr_cpu_ids) {
		nr = scx_bpf_dsq_nr_queued(PINNED_DSQ(i));
		pinned += nr > 0 ? nr : 0;
	}
	queued_home = home;
	queued_pinned = pinned;
	return 0;
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
