use super::*;
use proptest::prelude::*;

const CPUS: u32 = 5;
const END: u64 = 60;

fn node_of() -> Vec<usize> {
    vec![0, 0, 0, 1, 1]
}

fn masks() -> Vec<BTreeSet<u32>> {
    vec![
        BTreeSet::from([0, 1]),
        BTreeSet::from([2, 3, 4]),
        BTreeSet::from([4]),
    ]
}

fn sweep() -> Sweep {
    let mut sweep = Sweep::new(0, node_of());
    for (id, mask) in masks().into_iter().enumerate() {
        sweep.set_mask(id as u32, mask);
    }
    sweep
}

fn idle(cpu: u32, start: u64, end: u64) -> Span {
    Span {
        since: start,
        start,
        end,
        who: Who::Idle(cpu),
        cpu,
    }
}

fn wait(who: Who, cpu: u32, start: u64, end: u64) -> Span {
    Span {
        since: start,
        start,
        end,
        who,
        cpu,
    }
}

/// The definition, applied to each unit of time in turn.
fn by_definition(spans: &[Span], end: u64) -> Totals {
    let mut totals = Totals::default();
    let mut run = 0;
    for t in 0..end {
        let now: Vec<&Span> = spans.iter().filter(|s| s.start <= t && t < s.end).collect();
        let idle: BTreeSet<u32> = now
            .iter()
            .filter_map(|s| match s.who {
                Who::Idle(cpu) => Some(cpu),
                _ => None,
            })
            .collect();
        let waiting: Vec<&&Span> = now
            .iter()
            .filter(|s| !matches!(s.who, Who::Idle(_)))
            .collect();
        let eligible: Vec<u32> = waiting
            .iter()
            .filter(|s| match s.who {
                Who::Pin(cpu) => idle.contains(&cpu),
                Who::Mask(id) => !masks()[id as usize].is_disjoint(&idle),
                _ => !idle.is_empty(),
            })
            .map(|s| s.cpu)
            .collect();
        let on = |cpus: &mut dyn Iterator<Item = u32>, node| {
            cpus.filter(|&c| node_of()[c as usize] == node).count()
        };
        let in_node: usize = (0..2)
            .map(|n| on(&mut idle.iter().copied(), n).min(on(&mut eligible.iter().copied(), n)))
            .sum();
        let wasted = idle.len().min(eligible.len());
        totals.idle += idle.len() as u64;
        totals.wait += waiting.len() as u64;
        totals.wasted += wasted as u64;
        totals.wasted_in_node += in_node as u64;
        if wasted > 0 {
            totals.violated += 1;
            totals.violations += u64::from(run == 0);
            run += 1;
        } else {
            run = 0;
        }
        totals.longest = totals.longest.max(run);
    }
    totals
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        Just(Who::Any),
        (0..CPUS).prop_map(Who::Pin),
        (0..3u32).prop_map(Who::Mask),
        (0..CPUS).prop_map(Who::Idle),
        (0..CPUS).prop_map(Who::Idle),
    ]
}

fn spans() -> impl Strategy<Value = Vec<Span>> {
    let span = (who(), 0..CPUS, 0..END, 1..20u64);
    let span = span.prop_map(|(who, cpu, start, len)| wait(who, cpu, start, start + len));
    prop::collection::vec(span, 0..30)
}

proptest! {
    #[test]
    fn agrees_with_the_definition(spans in spans()) {
        let mut sweep = sweep();
        for &span in &spans {
            sweep.add(span);
        }
        prop_assert_eq!(sweep.settle(END), by_definition(&spans, END));
    }

    /// However the time is cut into periods, and each span with it, the result is that of one piece.
    #[test]
    fn periods_do_not_matter(spans in spans(), cuts in prop::collection::btree_set(1..END, 0..6)) {
        let mut cut = sweep();
        let mut from = 0;
        for to in cuts.into_iter().chain([END]) {
            for span in &spans {
                // What an open span's part looks like when the period is closed, and its rest when it ends. One that
                // ends after the period may also come whole.
                let (start, end) = (span.start.max(from), span.end.min(to));
                if start < end {
                    cut.add(Span { start, end, ..*span });
                }
            }
            cut.settle(to);
            from = to;
        }
        let mut whole = sweep();
        for &span in &spans {
            whole.add(span);
        }
        prop_assert_eq!(cut.settle(END), whole.settle(END));
    }

    /// Spans that reach past a horizon are remembered for the next period.
    #[test]
    fn spans_may_reach_past_the_horizon(spans in spans(), horizon in 1..END) {
        let mut early = sweep();
        for span in spans.iter().filter(|s| s.start < horizon) {
            early.add(*span);
        }
        early.settle(horizon);
        for span in spans.iter().filter(|s| s.start >= horizon) {
            early.add(*span);
        }
        prop_assert_eq!(early.settle(END), by_definition(&spans, END));
    }

    #[test]
    fn waste_is_bounded(spans in spans()) {
        let mut sweep = sweep();
        for &span in &spans {
            sweep.add(span);
        }
        let t = sweep.settle(END);
        prop_assert!(t.wasted <= t.idle && t.wasted <= t.wait);
        prop_assert!(t.wasted_in_node <= t.wasted);
        prop_assert!(t.longest <= t.violated && t.violated <= t.wasted);
    }
}

#[test]
fn two_tasks_pinned_to_one_busy_cpu_waste_nothing() {
    let mut sweep = sweep();
    for cpu in 1..CPUS {
        sweep.add(idle(cpu, 0, 100));
    }
    sweep.add(wait(Who::Pin(0), 0, 0, 100));
    sweep.add(wait(Who::Pin(0), 0, 0, 100));
    let t = sweep.settle(100);
    assert_eq!((t.wasted, t.longest, t.wait), (0, 0, 200));
}

#[test]
fn a_free_task_held_beside_idle_cpus_wastes_all_its_wait() {
    let mut sweep = sweep();
    for cpu in 1..CPUS {
        sweep.add(idle(cpu, 0, 100));
    }
    // Two threads take turns on CPU 0: one waits at any time.
    for turn in 0..10 {
        sweep.add(wait(Who::Any, 0, turn * 10, turn * 10 + 10));
    }
    let t = sweep.settle(100);
    assert_eq!((t.wasted, t.longest, t.violations), (100, 100, 1));
    assert_eq!(t.wasted_in_node, 100);
}

#[test]
fn waste_across_nodes_is_told_apart() {
    let mut sweep = sweep();
    sweep.add(idle(3, 0, 100));
    sweep.add(wait(Who::Any, 0, 0, 100));
    let t = sweep.settle(100);
    assert_eq!((t.wasted, t.wasted_in_node), (100, 0));
}

#[test]
fn no_more_is_wasted_than_tasks_wait() {
    let mut sweep = sweep();
    for cpu in 0..CPUS {
        sweep.add(idle(cpu, 0, 10));
    }
    sweep.add(wait(Who::Mask(0), 0, 0, 10));
    sweep.add(wait(Who::Pin(4), 4, 5, 10));
    assert_eq!(sweep.settle(10).wasted, 15);
}

#[test]
fn a_violation_goes_on_over_a_period_that_ends_in_it() {
    let mut sweep = sweep();
    sweep.add(idle(1, 0, 10));
    sweep.add(wait(Who::Any, 0, 0, 10));
    assert_eq!(sweep.settle(10).longest, 10);
    sweep.add(idle(1, 10, 15));
    sweep.add(wait(Who::Any, 0, 10, 20));
    let t = sweep.settle(20);
    assert_eq!((t.longest, t.violations), (15, 1));
}

#[test]
fn a_transient_does_not_settle() {
    let span = idle(0, 100, 150);
    assert_eq!(span.settled(50), None);
    assert_eq!(span.settled(20), Some(Span { start: 120, ..span }));
    // The later part of a long one counts from its own start.
    let rest = Span {
        since: 0,
        start: 100,
        ..span
    };
    assert_eq!(rest.settled(20), Some(rest));
}

#[test]
fn unknown_cpus_and_masks_are_ignored() {
    let mut sweep = sweep();
    sweep.add(idle(999, 0, 10));
    sweep.add(wait(Who::Mask(99), 0, 0, 10));
    sweep.add(wait(Who::Pin(999), 999, 0, 10));
    assert_eq!(sweep.settle(10), Totals::default());
}
