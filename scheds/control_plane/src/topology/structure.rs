//! Names the levels of [`super::cluster`]: which groups are cores, which share a cache, which are nodes.
//!
//! What the latencies can't say is said so: groups on one level only may be caches of one node or nodes of one cache
//! each. Their size and the latency within them make one of the two likelier ([`Structure::nodes_guessed`]).

use super::cluster::{Level, Matrix, levels};

/// More CPUs than these, 16 cores of 2 threads, share a cache only where it is the one of their socket.
const MAX_CPUS_OF_COMPLEX: usize = 32;
/// Where 4 to 16 cores share a cache, a line gets from one to another in some 20 to 35 ns; over a mesh, which makes one
/// cache of a whole socket, in 45 to 70 (one way; published figures of server CPUs since 2017).
const MESH_NS: f64 = 40.0;
/// Groups of one level are nodes only up to here: no machine has more sockets with a single cache each.
const MAX_MESHES: usize = 8;
/// The range of distances that firmware may give, but 10, which is local.
const DISTANCES: std::ops::RangeInclusive<u32> = 11..=254;

/// Groups of CPUs, by index into the matrix. CPUs and groups are in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Structure {
    /// What was found, the finest first; none if the machine is flat.
    pub levels: Vec<Level>,
    /// Groups of two threads, or nothing if no level looks like cores.
    pub cores: Vec<Vec<usize>>,
    /// Groups that share a cache; one of all CPUs if the machine is flat.
    pub llcs: Vec<Vec<usize>>,
    /// Groups of caches; one of all CPUs if the machine is flat.
    pub nodes: Vec<Vec<usize>>,
    /// Between nodes, in the order of `nodes`, in the firmware's unit (10 is local).
    pub distances: Vec<Vec<u32>>,
    /// Whether only the size and speed of the groups told caches from nodes.
    pub nodes_guessed: bool,
}

impl Structure {
    /// Finds it.
    pub fn of(matrix: &Matrix) -> Self {
        let levels = levels(matrix);
        let everything = vec![(0..matrix.len()).collect::<Vec<_>>()];
        let has_cores = levels.first().is_some_and(looks_like_cores);
        let cores = if has_cores {
            levels[0].groups.clone()
        } else {
            Vec::new()
        };
        let above = &levels[usize::from(has_cores)..];
        let llcs = above
            .first()
            .map_or_else(|| everything.clone(), |level| level.groups.clone());
        let (nodes, nodes_guessed) = match above {
            [] => (everything, false),
            [only] if looks_like_nodes(only) => (only.groups.clone(), true),
            [_] => (everything, true),
            [_, nodes, ..] => (nodes.groups.clone(), false),
        };
        let distances = distances(matrix, &llcs, &nodes);
        Self {
            levels,
            cores,
            llcs,
            nodes,
            distances,
            nodes_guessed,
        }
    }

    /// Whether no structure was found.
    pub fn is_flat(&self) -> bool {
        self.levels.is_empty()
    }

    /// The least share of CPUs at home on any level, 0 to 1; 1 if the machine is flat.
    pub fn agreement(&self) -> f64 {
        self.levels
            .iter()
            .map(|level| level.agreement)
            .fold(1.0, f64::min)
    }
}

/// Pairs, or single CPUs whose sibling is missing. A cache of two cores looks the same, and may be treated the same.
fn looks_like_cores(level: &Level) -> bool {
    let pairs = level.groups.iter().filter(|group| group.len() == 2).count();
    level.groups.iter().all(|group| group.len() <= 2) && pairs * 2 > level.groups.len()
}

fn looks_like_nodes(level: &Level) -> bool {
    let largest = level.groups.iter().map(Vec::len).max().unwrap_or(0);
    largest > MAX_CPUS_OF_COMPLEX
        || (level.within_ns >= MESH_NS && level.groups.len() <= MAX_MESHES)
}

fn distances(matrix: &Matrix, llcs: &[Vec<usize>], nodes: &[Vec<usize>]) -> Vec<Vec<u32>> {
    let llc_of = |cpu: usize| llcs.iter().position(|llc| llc.contains(&cpu));
    // The way from cache to cache within a node counts as local; where a node is one cache, the way within that.
    let local = |across: bool| {
        median(
            nodes
                .iter()
                .flat_map(|node| pairs(matrix, node, node))
                .filter_map(|(a, b, ns)| (!across || llc_of(a) != llc_of(b)).then_some(ns)),
        )
    };
    let local = local(true).or_else(|| local(false));
    let distance = |a: usize, b: usize| {
        if a == b {
            return 10;
        }
        let far = median(pairs(matrix, &nodes[a], &nodes[b]).map(|(_, _, ns)| ns));
        match (local, far) {
            (Some(local), Some(far)) => {
                ((10.0 * far / local).round() as u32).clamp(*DISTANCES.start(), *DISTANCES.end())
            }
            _ => 20,
        }
    };
    (0..nodes.len())
        .map(|a| (0..nodes.len()).map(|b| distance(a, b)).collect())
        .collect()
}

fn pairs<'a>(
    matrix: &'a Matrix,
    from: &'a [usize],
    to: &'a [usize],
) -> impl Iterator<Item = (usize, usize, f64)> + 'a {
    from.iter()
        .flat_map(move |&a| to.iter().map(move |&b| (a, b)))
        .filter(|(a, b)| a != b)
        .filter_map(|(a, b)| matrix.get(a, b).map(|ns| (a, b, ns)))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}
