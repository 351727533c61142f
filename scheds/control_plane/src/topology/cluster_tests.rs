//! Synthetic machines, as noisy as no real one is.

use super::super::structure::Structure;
use super::*;

/// A machine of equal parts, the latencies of which are of real ones, in nanoseconds.
#[derive(Clone, Copy)]
struct Shape {
    threads: usize,
    /// Of one cache.
    cores: usize,
    /// Caches of one node.
    llcs: usize,
    nodes: usize,
    thread_ns: f64,
    core_ns: f64,
    llc_ns: f64,
    node_ns: f64,
}

/// Milan and later: 12 complexes of 8 cores, seen as so many nodes.
const fn epyc(nodes: usize) -> Shape {
    Shape {
        threads: 1,
        cores: 8,
        llcs: 12 / nodes,
        nodes,
        thread_ns: 0.0,
        core_ns: 26.0,
        llc_ns: 100.0,
        node_ns: if nodes == 4 { 130.0 } else { 205.0 },
    }
}

/// Two sockets, each a mesh with one cache.
const fn sockets(cores: usize, threads: usize) -> Shape {
    Shape {
        threads,
        cores,
        llcs: 1,
        nodes: 2,
        thread_ns: 12.0,
        core_ns: 52.0,
        llc_ns: 52.0,
        node_ns: 108.0,
    }
}

const fn flat(cpus: usize) -> Shape {
    Shape {
        threads: 1,
        cores: cpus,
        llcs: 1,
        nodes: 1,
        thread_ns: 0.0,
        core_ns: 52.0,
        llc_ns: 0.0,
        node_ns: 0.0,
    }
}

impl Shape {
    fn cpus(&self) -> usize {
        self.threads * self.cores * self.llcs * self.nodes
    }

    /// Which part of so many CPUs a CPU is in. CPUs are dealt out: thread 1 of all cores comes after all threads 0, as
    /// kernels number them, so that no group is a range.
    fn place(&self, cpu: usize) -> [usize; 3] {
        let cores = self.cpus() / self.threads;
        let core = cpu % cores;
        [core, core / self.cores, core / self.cores / self.llcs]
    }

    fn groups(&self, level: usize) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for cpu in 0..self.cpus() {
            groups.entry(self.place(cpu)[level]).or_default().push(cpu);
        }
        groups.into_values().collect()
    }

    fn matrix(&self, noise: impl Fn(&mut fastrand::Rng) -> f64, seed: u64) -> Matrix {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut matrix = Matrix::new(self.cpus());
        for a in 0..self.cpus() {
            for b in a + 1..self.cpus() {
                let ns = match (self.place(a), self.place(b)) {
                    (p, q) if p[0] == q[0] => self.thread_ns,
                    (p, q) if p[1] == q[1] => self.core_ns,
                    (p, q) if p[2] == q[2] => self.llc_ns,
                    _ => self.node_ns,
                };
                matrix.set(a, b, ns * noise(&mut rng));
            }
        }
        matrix
    }
}

/// Normal, with a standard deviation of 20%, and an outlier in 50: mostly two to ten times too slow, some half.
fn noisy(rng: &mut fastrand::Rng) -> f64 {
    let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
    let outlier = match rng.u32(0..250) {
        0 => 0.5,
        1..5 => 2.0 + 8.0 * rng.f64(),
        _ => 1.0,
    };
    (1.0 + 0.2 * normal).max(0.3) * outlier
}

/// Any value within 20%.
fn even(rng: &mut fastrand::Rng) -> f64 {
    0.8 + 0.4 * rng.f64()
}

fn exact(_: &mut fastrand::Rng) -> f64 {
    1.0
}

/// A factor for each latency.
type Noise = fn(&mut fastrand::Rng) -> f64;

/// What is to be found in it under every noise and seed.
#[track_caller]
fn check(name: &str, shape: Shape) {
    let cores = if shape.threads > 1 {
        shape.groups(0)
    } else {
        Vec::new()
    };
    let noises: [(&str, Noise, u64); 3] =
        [("exact", exact, 1), ("even", even, 5), ("noisy", noisy, 20)];
    for (noise, apply, seeds) in noises {
        for seed in 0..seeds {
            let found = Structure::of(&shape.matrix(apply, seed));
            let case = format!("{name}, {noise}, {seed}");
            assert_eq!(found.llcs, shape.groups(1), "{case}: LLCs");
            assert_eq!(found.nodes, shape.groups(2), "{case}: nodes");
            if noise == "noisy" {
                // Siblings have one latency only, and nothing is known of them if just that is an outlier. What is
                // found must be right, and nearly all.
                let pairs = found.cores.iter().filter(|core| core.len() == 2);
                assert!(
                    pairs.clone().all(|core| cores.contains(core)),
                    "{case}: {found:?}"
                );
                assert!(pairs.count() * 10 >= cores.len() * 8, "{case}: {found:?}");
            } else {
                assert_eq!(found.cores, cores, "{case}: cores");
            }
            assert!(found.agreement() > 0.9, "{case}: {found:?}");
        }
    }
}

#[test]
fn two_sockets() {
    check("2 x 4", sockets(4, 1));
    check("2 x 32", sockets(32, 1));
}

#[test]
fn two_sockets_with_threads() {
    check("2 x 8 x 2", sockets(8, 2));
    check("2 x 24 x 2", sockets(24, 2));
}

#[test]
fn epyc_as_one_node() {
    check("EPYC, 1 node", epyc(1));
}

#[test]
fn epyc_as_two_nodes() {
    check("EPYC, 2 nodes", epyc(2));
}

#[test]
fn epyc_as_four_nodes() {
    check("EPYC, 4 nodes", epyc(4));
}

#[test]
fn epyc_with_threads() {
    let shape = Shape {
        threads: 2,
        cores: 4,
        thread_ns: 8.0,
        ..epyc(2)
    };
    check("12 complexes of 4 cores of 2 threads, 2 nodes", shape);
}

#[test]
fn threads_on_one_cache() {
    let shape = Shape {
        threads: 2,
        thread_ns: 12.0,
        ..flat(8)
    };
    check("8 cores of 2 threads", shape);
}

#[test]
fn flat_is_flat() {
    for cpus in [1, 2, 3, 4, 5, 8, 16, 48, 96] {
        check(&format!("flat, {cpus}"), flat(cpus));
    }
    for seed in 0..500 {
        let found = Structure::of(&flat(8 + seed as usize % 17).matrix(noisy, seed));
        assert!(found.is_flat(), "{seed}: {:?}", found.levels);
    }
}

#[test]
fn a_gradient_is_not_a_level() {
    // A mesh: slower by distance, up to 30%, without any border.
    let mut matrix = Matrix::new(32);
    for a in 0..32 {
        for b in a + 1..32 {
            matrix.set(a, b, 45.0 * (1.0 + 0.3 * (b - a) as f64 / 31.0));
        }
    }
    assert_eq!(levels(&matrix), []);
}

#[test]
fn nearer_and_farther_nodes_are_told_apart() {
    // Two sockets of two nodes each: the level above the nodes shows in the distances.
    let shape = epyc(4);
    let mut matrix = shape.matrix(even, 7);
    for a in 0..96 {
        for b in 0..96 {
            if a / 48 != b / 48 {
                matrix.set(a, b, 220.0);
            }
        }
    }
    let found = Structure::of(&matrix);
    assert_eq!(found.nodes, shape.groups(2));
    assert_eq!(found.levels.len(), 3);
    assert_eq!(found.distances[0][0], 10);
    assert!((12..=14).contains(&found.distances[0][1]), "{found:?}");
    assert_eq!(found.distances[0][2], 22);
}

#[test]
fn unequal_groups_and_missing_pairs() {
    // 5 CPUs here, 3 there; each tenth pair could not be measured.
    let mut matrix = Matrix::new(8);
    for a in 0..8 {
        for b in a + 1..8 {
            let near = (a < 5) == (b < 5);
            let missing = (a + b) % 10 == 5;
            let ns = if near { 50.0 } else { 120.0 };
            matrix.set(a, b, if missing { f64::NAN } else { ns });
        }
    }
    let found = Structure::of(&matrix);
    assert_eq!(found.llcs, [vec![0, 1, 2, 3, 4], vec![5, 6, 7]]);
    assert!(Structure::of(&Matrix::new(8)).is_flat());
    assert!(Structure::of(&Matrix::new(0)).is_flat());
}
