//! What a cgroup's `cpu.weight` makes of the weight of each task in it.
//!
//! In the kernel's scheduler a cgroup competes as a whole with its siblings, and its tasks share what it gets. Policies
//! that queue tasks and know no groups come to the same with a factor for each cgroup: a task's weight times this.
//!
//! ```text
//!              root                          one task in each of a and b/c, two in b/d:
//!            /      \                        a: 100 / 100
//!   a, weight 100   b, weight 200            b/c: 200/300 of b's tasks for weight 200 / 100
//!                   /           \            b/d: 100/300 of that for two tasks of 100 each
//!           c, weight 200   d, weight 100
//! ```

/// A cgroup, as far as shares go.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Group {
    /// Where its parent stands: before it. The root, the first, is its own.
    pub(super) parent: usize,
    /// `cpu.weight`. `None` for one that doesn't compete as a whole, as its parent doesn't hand on the cpu controller:
    /// its tasks count as the parent's.
    pub(super) weight: Option<f64>,
    /// Its own tasks that run or wait, not those of its children: their weights added up, averaged over a while.
    pub(super) load: f64,
    /// And how many they are.
    pub(super) tasks: f64,
}

/// Of nice 0.
const WEIGHT: f64 = 100.0;
/// No factor is smaller, and none larger than one over this: beyond, virtual runtime gets out of hand.
const LEAST: f64 = 1.0 / 256.0;

/// For each group, what its tasks' weights are to be multiplied by; the average task's is 1.
pub(super) fn factors(groups: &[Group]) -> Vec<f64> {
    let mut factors = vec![1.0; groups.len()];
    // What competes within each group, and how many tasks are in it and below.
    let mut within: Vec<f64> = groups.iter().map(|group| group.load).collect();
    let mut below: Vec<f64> = groups.iter().map(|group| group.tasks).collect();
    for (at, group) in groups.iter().enumerate().skip(1).rev() {
        within[group.parent] += match group.weight {
            // One whose tasks sleep most of the time competes only when they don't.
            Some(weight) => weight * below[at].min(1.0),
            None => within[at],
        };
        below[group.parent] += below[at];
    }
    for (at, group) in groups.iter().enumerate().skip(1) {
        let of_parent = factors[group.parent];
        factors[at] = match group.weight {
            None => of_parent,
            // Nobody there: as for the first one who comes.
            Some(weight) if within[at] <= 0.0 => of_parent * weight / WEIGHT,
            Some(weight) => of_parent * weight * below[at].min(1.0) / within[at],
        };
    }
    // In proportion only they mean something: the average task keeps its weight.
    let load: f64 = groups.iter().map(|group| group.load).sum();
    let scaled: f64 = groups.iter().zip(&factors).map(|(g, f)| g.load * f).sum();
    let mean = if load > 0.0 && scaled > 0.0 {
        scaled / load
    } else {
        1.0
    };
    for factor in &mut factors {
        *factor = (*factor / mean).clamp(LEAST, 1.0 / LEAST);
    }
    factors
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(parent: usize, weight: Option<f64>, tasks: u32) -> Group {
        Group {
            parent,
            weight,
            load: f64::from(tasks) * WEIGHT,
            tasks: f64::from(tasks),
        }
    }

    /// What all tasks of each group get together, as a part of the whole.
    fn shares(groups: &[Group]) -> Vec<f64> {
        let got: Vec<f64> = groups
            .iter()
            .zip(factors(groups))
            .map(|(group, factor)| group.load * factor)
            .collect();
        let all: f64 = got.iter().sum();
        got.iter().map(|one| one / all).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (one, other) in got.iter().zip(expected) {
            assert!((one - other).abs() < 1e-6, "{got:?}, expected {expected:?}");
        }
    }

    #[test]
    fn without_groups_nothing_changes() {
        assert_close(&factors(&[group(0, None, 5)]), &[1.0]);
    }

    #[test]
    fn siblings_share_by_weight_however_many_tasks_they_have() {
        let groups = [
            group(0, None, 0),
            group(0, Some(100.0), 9),
            group(0, Some(200.0), 1),
        ];
        assert_close(&shares(&groups), &[0.0, 1.0 / 3.0, 2.0 / 3.0]);
    }

    #[test]
    fn nested_groups_share_what_their_parent_gets() {
        let groups = [
            group(0, None, 0),
            group(0, Some(100.0), 1),
            group(0, Some(200.0), 0),
            group(2, Some(200.0), 1),
            group(2, Some(100.0), 2),
        ];
        let expected = [0.0, 3.0 / 9.0, 0.0, 4.0 / 9.0, 2.0 / 9.0];
        assert_close(&shares(&groups), &expected);
    }

    #[test]
    fn a_task_beside_a_group_counts_as_much_as_one_of_weight_100() {
        let groups = [group(0, None, 1), group(0, Some(100.0), 4)];
        assert_close(&shares(&groups), &[0.5, 0.5]);
    }

    #[test]
    fn groups_without_the_controller_are_as_if_they_were_not_there() {
        let groups = [
            group(0, None, 1),
            group(0, None, 3),
            group(0, Some(100.0), 2),
        ];
        assert_close(&shares(&groups), &[0.2, 0.6, 0.2]);
    }

    #[test]
    fn a_group_that_sleeps_mostly_gets_its_weight_when_it_does_not() {
        let rare = Group {
            parent: 0,
            weight: Some(100.0),
            load: 10.0,
            tasks: 0.1,
        };
        let groups = [group(0, None, 0), rare, group(0, Some(100.0), 1)];
        let factors = factors(&groups);
        assert_close(&[factors[1] / factors[2]], &[1.0]);
    }

    #[test]
    fn an_empty_group_has_the_factor_of_the_first_who_comes() {
        let groups = [
            group(0, None, 0),
            group(0, Some(50.0), 0),
            group(0, Some(100.0), 1),
        ];
        let factors = factors(&groups);
        assert_close(&[factors[1] / factors[2]], &[0.5]);
    }

    /// Up to 12 groups, each below one of those before it.
    fn any_tree() -> impl Strategy<Value = Vec<Group>> {
        let one = (
            any::<prop::sample::Index>(),
            prop::option::weighted(0.8, 1.0..10000.0),
            0..20u32,
        );
        prop::collection::vec(one, 1..12).prop_map(|list| {
            let mut groups = vec![group(0, None, 3)];
            for (parent, weight, tasks) in list {
                groups.push(group(parent.index(groups.len()), weight, tasks));
            }
            groups
        })
    }

    proptest! {
        #[test]
        fn factors_are_bounded_numbers(groups in any_tree()) {
            for factor in factors(&groups) {
                prop_assert!((LEAST..=1.0 / LEAST).contains(&factor), "{factor}");
            }
        }

        /// More weight never means less.
        #[test]
        fn more_weight_is_not_less(groups in any_tree(), which in any::<prop::sample::Index>()) {
            let at = which.index(groups.len());
            let mut heavier = groups.clone();
            let Some(weight) = heavier[at].weight.as_mut() else { return Ok(()) };
            *weight *= 2.0;
            let (before, after) = (shares(&groups)[at], shares(&heavier)[at]);
            // Where a bound is met, the average moves.
            prop_assert!(after >= before * 0.99, "{before} then {after}");
        }
    }
}
