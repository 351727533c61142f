//! The policy that docs/scx_pilot.md writes as an example, held to what is expected of the others.

mod lottery;
mod sim;

use lottery::Lottery;
use sim::{Job, SLICE_NS, Sim};

const MS: u64 = 1_000_000;

fn spinning(weights: &[u64]) -> Vec<Job> {
    let job = |&weight: &u64| Job {
        start_ns: 0,
        run_ns: 10 * MS,
        sleep_ns: 0,
        weight,
        mask: 0b1111,
    };
    weights.iter().map(job).collect()
}

#[test]
fn it_serves_everybody_and_the_heavy_more() {
    let mut jobs = spinning(&[50, 50, 50, 50, 100, 100, 100, 100, 400, 400, 400, 400]);
    jobs.push(Job {
        start_ns: 3 * MS,
        run_ns: 200_000,
        sleep_ns: 7 * MS,
        weight: 100,
        mask: 0b0100,
    });
    let sim = Sim::new(4, &jobs).run(Box::new(Lottery::new(SLICE_NS)), 5000 * MS);
    let got = |range: std::ops::Range<usize>| -> u64 {
        sim.tasks[range].iter().map(|task| task.total_ns).sum()
    };
    assert!(got(0..4) < got(4..8) && got(4..8) < got(8..12));
    for task in &sim.tasks {
        assert_eq!(task.wanted, task.decided);
        assert!(
            task.longest_wait_ns < 150 * MS,
            "waited {} ns: {task:?}",
            task.longest_wait_ns
        );
    }
}

#[test]
fn the_documentation_shows_this_very_code() {
    let page = include_str!("../../../docs/scx_pilot.md");
    let code = include_str!("lottery/mod.rs");
    assert!(page.contains(code), "docs/scx_pilot.md is out of date");
    assert!(code.lines().count() < 100);
}
