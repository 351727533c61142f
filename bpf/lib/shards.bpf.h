/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shards: which CPUs are idle, and which have work queued, in words that are
 * found without looking at CPUs.
 *
 *	CPU ──> shard (CPUs of one LLC, at most 32) ──> node ──> machine
 *	        idle:   a bit per CPU                   a bit per shard
 *	        queued: a bit per CPU                   a bit per shard
 *
 * Whoever looks for an idle CPU or for work reads the words of its shard, then
 * its node's, then those of a few other nodes, nearest first. The cost does not
 * depend on how many CPUs there are.
 *
 * The words of a shard are exact: a CPU's bits change when its state does. They
 * are written by the CPUs of one shard only, so by at most 32. The words of a
 * node are hints: a bit is set when a shard gets its first idle CPU or its first
 * queued task, unless it is set already, and cleared by whoever followed it in
 * vain. So on a machine that is busy or idle throughout, nobody writes to them.
 *
 * The bits of CPUs are where they are in the kernel's cpumasks, 64 CPU ids to a
 * word, so that affinity is a single AND, however the CPUs of a cache are
 * numbered.
 */
#ifndef __MANYCORE_SHARDS_BPF_H
#define __MANYCORE_SHARDS_BPF_H

#include "lib/shards.h"
#include "lib/task.bpf.h"

const volatile u32 nr_cpu_ids = 1;	/* highest possible CPU id, plus one */
const volatile u32 nr_possible = 1;	/* CPUs that are possible */
const volatile u32 nr_shards = 1;
const volatile u32 nr_nodes = 1;
const volatile bool has_smt = false;

#define CACHE_PAIR	128	/* bytes: x86 fetches lines in pairs */

struct shard_words {
	u64 idle[SHARD_WORDS];
	u64 idle_core[SHARD_WORDS];	/* both threads idle; first thread's bit */
	u64 pad0[CACHE_PAIR / 8 - 2 * SHARD_WORDS];
	u64 queued[SHARD_WORDS];
	u64 pad1[CACHE_PAIR / 8 - SHARD_WORDS];
};

struct node_words {
	u64 idle;
	u64 pad0[CACHE_PAIR / 8 - 1];
	u64 queued;
	u64 pad1[CACHE_PAIR / 8 - 1];
	u64 trips;		/* see room.bpf.h */
	u64 trip_at;
	u64 pad2[CACHE_PAIR / 8 - 2];
};

#define TABLE(name, type_)				\
struct {						\
	__uint(type, BPF_MAP_TYPE_ARRAY);		\
	__type(key, u32);				\
	__type(value, type_);				\
	__uint(max_entries, 1);	/* set at load */	\
} name SEC(".maps")

TABLE(seats, struct seat);
TABLE(shards, struct shard);
TABLE(nodes, struct numa_node);
TABLE(shard_state, struct shard_words);
TABLE(node_state, struct node_words);

static __always_inline struct seat *lookup_seat(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&seats, &key);
}

static __always_inline struct shard *lookup_shard(u32 id)
{
	return bpf_map_lookup_elem(&shards, &id);
}

static __always_inline struct numa_node *lookup_node(u32 id)
{
	return bpf_map_lookup_elem(&nodes, &id);
}

static __always_inline struct shard_words *words_of_shard(u32 id)
{
	return bpf_map_lookup_elem(&shard_state, &id);
}

static __always_inline struct node_words *words_of_node(u32 id)
{
	return bpf_map_lookup_elem(&node_state, &id);
}

/* The position of the lowest bit of @word, which is not 0. */
static __always_inline u32 lowest(u64 word)
{
	return __builtin_ctzll(word);
}

/* The bits from @from on come first: @word turned right by that many. */
static __always_inline u64 turned(u64 word, u32 from)
{
	from &= 63;
	return word >> from | word << (-from & 63);
}

/*
 * With which bit of word @k of the CPUs of @sh to begin for the @nth time, so that each of
 * them is the first in turn: most of a word's bits may be those of other shards.
 */
static __always_inline u32 first_in_turn(const struct shard *sh, u32 k, u32 nth)
{
	u64 cpus = sh->cpus[k & (SHARD_WORDS - 1)];
	u32 from;

	if (!cpus)
		return 0;
	from = lowest(cpus);
	return (from + nth % (64 - from - __builtin_clzll(cpus))) & 63;
}

/* Of the CPUs of @sh that are @bits of word @k, which is not 0: the one whose turn it is for the @nth time. */
static __always_inline s32 cpu_in_turn(const struct shard *sh, u32 k, u64 bits, u32 nth)
{
	u32 from = first_in_turn(sh, k, nth);

	return sh->first_cpu[k & (SHARD_WORDS - 1)] + ((lowest(turned(bits, from)) + from) & 63);
}

/* A read that the compiler may not repeat or drop. */
#define PEEK(x) (*(volatile typeof(x) *)&(x))

/* Does anybody wait in the nodes that are searched after @n itself? */
static __always_inline bool work_waits_far(const struct numa_node *n)
{
	struct node_words *nw;
	u32 i;

	for (i = 0; i < NEAR_NODES && i < n->nr_near; i++) {
		nw = words_of_node(n->near[i]);
		if (nw && PEEK(nw->queued))
			return true;
	}
	return false;
}

/* Is a bit set in any of the words of a shard? */
static __always_inline bool any_bit(const u64 *words)
{
	return PEEK(words[0]) | PEEK(words[1]) | PEEK(words[2]) | PEEK(words[3]);
}

/* Set or clear @bits of a shared word, but leave its line alone if they are. */
static __always_inline void set_bits(u64 *word, u64 bits)
{
	if ((PEEK(*word) & bits) != bits)
		__sync_fetch_and_or(word, bits);
}

static __always_inline void clear_bits(u64 *word, u64 bits)
{
	if (PEEK(*word) & bits)
		__sync_fetch_and_and(word, ~bits);
}

/* Is the other thread of the core idle? True if there is none. */
static __always_inline bool sibling_idle(struct shard_words *w, struct seat *seat)
{
	return !seat->sibling_bit ||
	       PEEK(w->idle[seat->sibling_word & (SHARD_WORDS - 1)]) & seat->sibling_bit;
}

static __always_inline void mark_core_busy(struct shard_words *w, struct seat *seat)
{
	if (has_smt)
		clear_bits(&w->idle_core[seat->core_word & (SHARD_WORDS - 1)], seat->core_bit);
}

/* Mark @cpu idle, in its shard and, if it is the first there, in its node. */
static __always_inline void mark_idle(struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);
	u32 k = seat->word & (SHARD_WORDS - 1);
	struct shard *sh;
	struct node_words *nw;

	/* Whoever kicked a CPU that is going offline would wait for it forever. */
	if (!w || seat->leaving)
		return;
	set_bits(&w->idle[k], seat->bit);
	if (has_smt && sibling_idle(w, seat))
		set_bits(&w->idle_core[seat->core_word & (SHARD_WORDS - 1)], seat->core_bit);
	sh = lookup_shard(seat->shard);
	nw = sh ? words_of_node(sh->node) : NULL;
	if (nw)
		set_bits(&nw->idle, 1ULL << (sh->index & 63));
}

/* Is any CPU of this seat's shard idle, or perhaps one of its node? */
static __always_inline bool anybody_idles(struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);
	struct shard *sh = lookup_shard(seat->shard);
	struct node_words *nw = sh ? words_of_node(sh->node) : NULL;

	return (w && any_bit(w->idle)) || (nw && PEEK(nw->idle) & ~(1ULL << (sh->index & 63)));
}

/* Is @cpu taken for busy, whatever it does? Not one that is going offline. */
static __always_inline bool looks_busy(s32 cpu)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard_words *w = seat ? words_of_shard(seat->shard) : NULL;

	return w && !seat->leaving && !(PEEK(w->idle[seat->word & (SHARD_WORDS - 1)]) & seat->bit);
}

/* Mark @cpu busy. */
static __always_inline void mark_busy(struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);
	u32 k = seat->word & (SHARD_WORDS - 1);

	if (!w)
		return;
	clear_bits(&w->idle[k], seat->bit);
	mark_core_busy(w, seat);
}

/*
 * A CPU came or went. Returns false if its place is not known, because it was
 * offline when the tables were built: the scheduler must then restart.
 */
static __always_inline bool shards_hotplug(s32 cpu, bool online)
{
	struct seat *seat = lookup_seat(cpu);
	struct shard *sh = seat ? lookup_shard(seat->shard) : NULL;
	u32 k;

	if (!sh)
		return false;
	k = seat->word & (SHARD_WORDS - 1);
	seat->leaving = !online;
	__sync_fetch_and_add(&sh->nr_cpus, online ? 1 : -1);
	if (online) {
		set_bits(&sh->cpus[k], seat->bit);
	} else {
		clear_bits(&sh->cpus[k], seat->bit);
		mark_busy(seat);
	}
	return true;
}

/*
 * Does this run on a CPU that is on its way out? Late in that, its interrupt
 * controller is off, and it still wakes tasks: whoever asked for it to go. A kick
 * that it gives then is never delivered, and as each CPU has one interrupt work
 * for all its kicks, which stays pending, neither are those that it gives once it
 * is back. Linux 7.3 waits for that work when the scheduler is unloaded: forever.
 *
 * So nothing may be kicked from there. What becomes runnable goes straight to its
 * CPU, which the kernel itself wakes, with no work of ours.
 */
static __always_inline bool here_is_leaving(void)
{
	struct seat *seat = lookup_seat(bpf_get_smp_processor_id());

	return seat && seat->leaving;
}

/* Take what a bit stands for, such as an idle CPU: true for one caller only. */
static __always_inline bool claim_bit(u64 *word, u64 bit)
{
	return PEEK(*word) & bit && __sync_fetch_and_and(word, ~bit) & bit;
}

/* Take @cpu if it is idle. With @whole, only if all of its core is. */
static __always_inline bool claim_cpu(struct seat *seat, bool whole)
{
	struct shard_words *w = words_of_shard(seat->shard);
	u32 k = seat->word & (SHARD_WORDS - 1);

	if (!w)
		return false;
	if (whole && has_smt && !sibling_idle(w, seat))
		return false;
	if (!claim_bit(&w->idle[k], seat->bit))
		return false;
	mark_core_busy(w, seat);
	return true;
}

/* The bits of @p's affinity mask that belong to the word of CPU @first_cpu. */
static __always_inline u64 allowed_word(const struct task_struct *p, u32 first_cpu)
{
	u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), &p->cpus_ptr->bits[first_cpu >> 6]);
	return word;
}

/* May @p run on every CPU there is? */
static __always_inline bool runs_anywhere(const struct task_struct *p)
{
	return p->nr_cpus_allowed >= nr_possible;
}

/* The bits of word @k of this shard's CPUs: those that are online and where @p may run. */
static __always_inline u64 usable_word(const struct task_struct *p, const struct shard *sh, u32 k)
{
	u32 word = k & (SHARD_WORDS - 1);
	u64 cpus = PEEK(sh->cpus[word]);

	return runs_anywhere(p) ? cpus : cpus & allowed_word(p, sh->first_cpu[word]);
}

/*
 * May @p run on some CPU of this shard that is online? Not static, so that it is
 * verified once.
 */
bool may_run_in(struct task_struct *p __arg_trusted, u32 id)
{
	struct shard *sh = lookup_shard(id);
	u32 k;

	if (!sh)
		return false;
	bpf_for(k, 0, SHARD_WORDS) {
		if (k >= sh->nr_words)
			break;
		if (usable_word(p, sh, k))
			return true;
	}
	return false;
}

#define CLAIM_TRIES	3

/*
 * Take an idle CPU of shard @id that @p may run on, a whole core if there is
 * one. Returns its id, or -EBUSY. This and the next are not static, so that they
 * are verified once in each program, and not anew for each way to get there.
 */
s32 claim_in_shard(struct task_struct *p __arg_trusted, u32 id, bool core_only)
{
	struct shard *sh = lookup_shard(id);
	struct shard_words *w = words_of_shard(id);
	bool anywhere;
	u32 k, try;

	if (!sh || !w)
		return -EBUSY;
	anywhere = runs_anywhere(p);
	bpf_for(k, 0, SHARD_WORDS) {
		u32 first;

		if (k >= sh->nr_words)
			break;
		if (!PEEK(w->idle[k]))
			continue;
		first = sh->first_cpu[k & (SHARD_WORDS - 1)];
		bpf_for(try, 0, CLAIM_TRIES) {
			u64 idle = PEEK(w->idle[k & (SHARD_WORDS - 1)]), pick = idle;
			struct seat *seat;
			s32 cpu;

			if (has_smt) {
				u64 cores = PEEK(w->idle_core[k & (SHARD_WORDS - 1)]) & idle;

				if (cores)
					pick = cores;
				else if (core_only)
					break;
			}
			if (!anywhere) {
				u64 allowed = allowed_word(p, first);

				pick &= allowed;
				if (!pick && !core_only)
					pick = idle & allowed;
			}
			if (!pick)
				break;
			cpu = first + lowest(pick);
			seat = lookup_seat(cpu);
			if (seat && claim_cpu(seat, false))
				return cpu;
		}
	}
	return -EBUSY;
}

#define SHARD_TRIES	3

/* The same for the shards of a node but @except. Those where @p may not run are passed over. */
s32 claim_in_node(struct task_struct *p __arg_trusted, u32 id, u32 except)
{
	struct numa_node *n = lookup_node(id);
	struct node_words *nw = words_of_node(id);
	bool anywhere;
	u32 i, tries = 0;
	u64 left;

	if (!n || !nw)
		return -EBUSY;
	anywhere = runs_anywhere(p);
	left = PEEK(nw->idle);
	if (except - n->first_shard < NODE_MAX_SHARDS)
		left &= ~(1ULL << ((except - n->first_shard) & 63));
	bpf_for(i, 0, NODE_MAX_SHARDS) {
		struct shard_words *w;
		u32 index, shard;
		s32 cpu;

		if (!left || tries == SHARD_TRIES)
			break;
		index = lowest(left);
		left &= left - 1;
		shard = n->first_shard + index;
		if (!anywhere && !may_run_in(p, shard))
			continue;
		tries++;
		cpu = claim_in_shard(p, shard, false);
		if (cpu >= 0)
			return cpu;
		w = words_of_shard(shard);
		if (w && !any_bit(w->idle)) {
			clear_bits(&nw->idle, 1ULL << (index & 63));
			/* One may have become idle in between. */
			if (any_bit(w->idle))
				set_bits(&nw->idle, 1ULL << (index & 63));
		}
	}
	return -EBUSY;
}

/* @cpu has a task queued that others may take. */
static __always_inline void mark_queued(struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);
	u32 k = seat->word & (SHARD_WORDS - 1);
	struct node_words *nw;
	struct shard *sh;

	if (!w)
		return;
	set_bits(&w->queued[k], seat->bit);
	sh = lookup_shard(seat->shard);
	nw = sh ? words_of_node(sh->node) : NULL;
	if (nw)
		set_bits(&nw->queued, 1ULL << (sh->index & 63));
}

static __always_inline bool is_marked_queued(struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);

	return w && PEEK(w->queued[seat->word & (SHARD_WORDS - 1)]) & seat->bit;
}

static __always_inline void mark_drained(struct seat *seat)
{
	struct shard_words *w = words_of_shard(seat->shard);

	if (w)
		clear_bits(&w->queued[seat->word & (SHARD_WORDS - 1)], seat->bit);
}

#endif /* __MANYCORE_SHARDS_BPF_H */
