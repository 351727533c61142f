//! What was found, in words, as JSON and as a topology file.

use control_plane::Topology;
use control_plane::topology::cluster::Level;
use control_plane::topology::structure::Structure;
use control_plane::topology::{CpuId, File, FileLlc, FileNode, NodeId, format_list};
use serde_json::{Value, json};

use super::Measured;

/// With so many at home and so much evidence, it is sure.
const SURE: (f64, f64) = (0.98, 3.0);
const LIKELY: f64 = 0.9;

/// The report for people.
pub(super) fn words(measured: &Measured, structure: &Structure, topology: &Topology) -> String {
    let mut sorted: Vec<f64> = measured.matrix.pairs().map(|(_, _, ns)| ns).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |share: usize| {
        sorted
            .get(sorted.len() * share / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    let mut text = format!(
        "{} pairs measured in {:.0} s: {:.0} ns typically, nine of ten within {:.0} to {:.0} ns.\n",
        sorted.len(),
        measured.time.as_secs_f64(),
        at(50),
        at(5),
        at(95)
    );
    if structure.is_flat() {
        return text
            + "Flat: no groups of CPUs are nearer to each other than to others. Nothing is hidden, and nothing to write.\n";
    }
    for (level, name) in names(structure) {
        text += &format!(
            "{}: {} ({:.0} ns within, {:.0} ns between): {}\n",
            name,
            groups(level, &measured.cpus),
            level.within_ns,
            level.between_ns,
            sureness(level)
        );
    }
    if structure.nodes_guessed {
        let what = if structure.nodes.len() > 1 {
            "a node each, as they are large or slow within"
        } else {
            "one node, as they are small and fast within"
        };
        text += &format!(
            "One level only, so whether these are nodes is a guess: {what}. Edit the file if you know better.\n"
        );
    }
    if same_as_kernel(measured, structure, topology) {
        text += "The kernel sees the same caches and nodes: nothing is hidden.\n";
    }
    text
}

/// What each level is called.
fn names(structure: &Structure) -> Vec<(&Level, String)> {
    let mut names = Vec::new();
    for level in &structure.levels {
        let mut roles = Vec::new();
        for (role, of) in [
            ("cores", &structure.cores),
            ("LLCs", &structure.llcs),
            ("nodes", &structure.nodes),
        ] {
            if *of == level.groups {
                roles.push(role);
            }
        }
        let name = if roles.is_empty() {
            "groups of nodes".to_string()
        } else {
            roles.join(" and ")
        };
        names.push((level, name));
    }
    names
}

/// `4 of 8 CPUs`, or the groups themselves if they are few.
fn groups(level: &Level, cpus: &[CpuId]) -> String {
    let lists: Vec<String> = level
        .groups
        .iter()
        .map(|group| format_list(group.iter().map(|&index| cpus[index].0)))
        .collect();
    if lists.len() <= 16 {
        return lists.join(" | ");
    }
    let sizes = level.groups.iter().map(Vec::len);
    let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
    if least == most {
        format!("{} of {most} CPUs", lists.len())
    } else {
        format!("{} of {least} to {most} CPUs", lists.len())
    }
}

fn sureness(level: &Level) -> String {
    let word = if level.agreement >= SURE.0 && level.evidence >= SURE.1 {
        "sure"
    } else if level.agreement >= LIKELY {
        "likely"
    } else {
        "doubtful"
    };
    format!(
        "{word}, {:.0}% are nearest to their own group, {:.0} times the evidence that chance needs",
        100.0 * level.agreement,
        level.evidence
    )
}

fn same_as_kernel(measured: &Measured, structure: &Structure, topology: &Topology) -> bool {
    let ids = |groups: &[Vec<usize>]| {
        let mut groups: Vec<Vec<CpuId>> = groups
            .iter()
            .map(|group| group.iter().map(|&index| measured.cpus[index]).collect())
            .collect();
        groups.sort();
        groups
    };
    let mut llcs: Vec<Vec<CpuId>> = topology.llcs().iter().map(|llc| llc.cpus.clone()).collect();
    llcs.sort();
    let mut nodes: Vec<Vec<CpuId>> = topology
        .nodes()
        .filter(|node| !node.cpus.is_empty())
        .map(|node| node.cpus.clone())
        .collect();
    nodes.sort();
    ids(&structure.llcs) == llcs && ids(&structure.nodes) == nodes
}

/// The report for programs: the latencies in the order of `cpus`, `null` where there is none.
pub(super) fn json(measured: &Measured, structure: &Structure) -> Value {
    let n = measured.matrix.len();
    let row = |a: usize| {
        (0..n)
            .map(|b| measured.matrix.get(a, b))
            .collect::<Vec<_>>()
    };
    let ids = |groups: &[Vec<usize>]| -> Vec<Vec<u32>> {
        groups
            .iter()
            .map(|group| group.iter().map(|&index| measured.cpus[index].0).collect())
            .collect()
    };
    let level = |(level, name): (&Level, String)| {
        json!({
            "name": name,
            "groups": ids(&level.groups),
            "within_ns": level.within_ns,
            "between_ns": level.between_ns,
            "agreement": level.agreement,
            "evidence": level.evidence,
        })
    };
    json!({
        "cpus": measured.cpus.iter().map(|cpu| cpu.0).collect::<Vec<_>>(),
        "latency_ns": (0..n).map(row).collect::<Vec<_>>(),
        "levels": names(structure).into_iter().map(level).collect::<Vec<_>>(),
        "nodes_guessed": structure.nodes_guessed,
        "distances": structure.distances,
    })
}

/// The topology file.
pub(super) fn file(measured: &Measured, structure: &Structure) -> String {
    let cpus = |group: &[usize]| {
        group
            .iter()
            .map(|&index| measured.cpus[index])
            .collect::<Vec<_>>()
    };
    let within = |inner: &[usize], outer: &[usize]| inner.iter().all(|cpu| outer.contains(cpu));
    let llc = |llc: &Vec<usize>| FileLlc {
        cpus: cpus(llc),
        cores: structure
            .cores
            .iter()
            .filter(|core| within(core, llc))
            .map(|core| cpus(core))
            .collect(),
    };
    let node = |(id, node): (usize, &Vec<usize>)| FileNode {
        id: NodeId(id as u32),
        distances: structure.distances[id].clone(),
        llcs: structure
            .llcs
            .iter()
            .filter(|inner| within(inner, node))
            .map(llc)
            .collect(),
    };
    let file = File {
        nodes: structure.nodes.iter().enumerate().map(node).collect(),
    };
    let mut comments = vec![
        "Written by manycore topo --probe from core-to-core latencies. Use it with the option"
            .to_string(),
        "--topology of the schedulers. Measure again when the virtual machine was moved."
            .to_string(),
    ];
    for (level, name) in names(structure) {
        comments.push(format!(
            "{name}: {:.0} ns within, {:.0} ns between; {}",
            level.within_ns,
            level.between_ns,
            sureness(level)
        ));
    }
    if structure.nodes_guessed {
        comments.push("Whether these groups are nodes is a guess.".to_string());
    }
    file.text(comments.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_plane::topology::cluster::Matrix;
    use std::time::Duration;

    /// 2 nodes of 2 caches of 4 CPUs with ids 0, 2, 4, ...
    fn measured() -> Measured {
        let mut matrix = Matrix::new(16);
        for a in 0..16 {
            for b in a + 1..16 {
                let ns = match (a / 4 == b / 4, a / 8 == b / 8) {
                    (true, _) => 25.0,
                    (_, true) => 100.0,
                    _ => 210.0,
                };
                matrix.set(a, b, ns);
            }
        }
        Measured {
            cpus: (0..16).map(|index| CpuId(2 * index)).collect(),
            matrix,
            time: Duration::from_secs(3),
        }
    }

    #[test]
    fn the_file_says_what_was_found() {
        let measured = measured();
        let structure = Structure::of(&measured.matrix);
        let text = file(&measured, &structure);
        let body = text.split_once("version").unwrap().1;
        assert_eq!(
            body,
            " = 1\n\n[[node]]\nid = 0\ndistances = [10, 21]\n\n\
             [[node.llc]]\ncpus = \"0,2,4,6\"\n\n[[node.llc]]\ncpus = \"8,10,12,14\"\n\n\
             [[node]]\nid = 1\ndistances = [21, 10]\n\n\
             [[node.llc]]\ncpus = \"16,18,20,22\"\n\n[[node.llc]]\ncpus = \"24,26,28,30\"\n"
        );
        assert!(
            text.contains("# LLCs: 25 ns within, 100 ns between; sure, 100% are nearest"),
            "{text}"
        );
        let json = json(&measured, &structure);
        assert_eq!(json["levels"][1]["name"], "nodes");
        assert_eq!(json["latency_ns"][0][4], 100.0);
        assert_eq!(json["latency_ns"][3][3], Value::Null);
    }
}
