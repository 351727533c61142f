//! A flat guest of 8 CPUs, of which 6 are online.

use super::*;

fn kernel(nodes: u32) -> Topology {
    let place = |id: u32| Place {
        core: CoreId(id),
        llc: LlcId(id * nodes / 8),
    };
    let node = |id: u32| NodeId(id * nodes / 8);
    let cpu = |id: u32| Cpu {
        id: CpuId(id),
        node: Some(node(id)),
        kernel_node: Some(node(id)),
        socket: None,
        place: (id < 6).then(|| place(id)),
        siblings: Vec::new(),
        present: true,
        online: id < 6,
    };
    let on = |wanted: u32| -> Vec<CpuId> {
        (0..6)
            .filter(|&id| node(id) == NodeId(wanted))
            .map(CpuId)
            .collect()
    };
    let mut all: BTreeMap<NodeId, Node> = (0..nodes)
        .map(|id| {
            let node = Node {
                id: NodeId(id),
                cpus: on(id),
                memory_bytes: 6000,
                distances: [(NodeId(id), 10)].into(),
                attached_to: NodeId(id),
            };
            (NodeId(id), node)
        })
        .collect();
    // memory without CPUs
    let memory = Node {
        id: NodeId(9),
        cpus: Vec::new(),
        memory_bytes: 1,
        distances: [(NodeId(9), 10)].into(),
        attached_to: NodeId(0),
    };
    all.insert(NodeId(9), memory);
    Topology {
        hotplug_seq: Some(7),
        cpus: (0..8).map(|id| (CpuId(id), cpu(id))).collect(),
        llcs: (0..nodes)
            .map(|id| Llc {
                id: LlcId(id),
                node: NodeId(id),
                cpus: on(id),
            })
            .collect(),
        nodes: all,
    }
}

fn ids(ids: &[u32]) -> Vec<CpuId> {
    ids.iter().copied().map(CpuId).collect()
}

#[test]
fn what_is_written_is_read() {
    let llc = |cpus: &[u32], cores: &[&[u32]]| FileLlc {
        cpus: ids(cpus),
        cores: cores.iter().map(|core| ids(core)).collect(),
    };
    let file = File {
        nodes: vec![
            FileNode {
                id: NodeId(0),
                distances: vec![10, 21],
                llcs: vec![llc(&[0, 4], &[&[0, 4]]), llc(&[2, 6], &[])],
            },
            FileNode {
                id: NodeId(1),
                distances: vec![21, 10],
                llcs: vec![llc(&[1, 3, 5, 7], &[&[1, 5], &[3, 7]])],
            },
        ],
    };
    let text = file.text(["by a test", ""]);
    assert!(text.starts_with("# by a test\n#\nversion = 1\n"), "{text}");
    let found = parse(&text, &kernel(1)).unwrap();
    let llcs: Vec<_> = found
        .llcs()
        .iter()
        .map(|llc| (llc.node.0, llc.cpus.clone()))
        .collect();
    assert_eq!(
        llcs,
        [(0, ids(&[0, 4])), (1, ids(&[1, 3, 5])), (0, ids(&[2]))]
    );
    assert_eq!(found.cpu(CpuId(0)).unwrap().siblings, ids(&[4]));
    // its sibling is offline
    assert_eq!(found.cpu(CpuId(3)).unwrap().siblings, ids(&[]));
    assert_eq!(found.cpu(CpuId(7)).unwrap().node, Some(NodeId(1)));
    assert_eq!(found.cpu(CpuId(7)).unwrap().kernel_node, Some(NodeId(0)));
    assert_eq!(found.cpu(CpuId(7)).unwrap().place, None);
    assert_eq!(found.kernel_nodes(NodeId(1)), [NodeId(0)].into());
    assert_eq!(found.kernel_nodes(NodeId(9)), [NodeId(9)].into());
    assert_eq!(found.hotplug_seq(), Some(7));
    assert_eq!(found.distance(NodeId(0), NodeId(1)), 21);
    assert_eq!(found.node(NodeId(0)).unwrap().memory_bytes, 3000);
    assert_eq!(found.node(NodeId(9)).unwrap().attached_to, NodeId(0));
    assert_eq!(found.kernel_node_with_cpus(NodeId(9)), NodeId(0));
    assert_eq!(found.kernel_node_with_cpus(NodeId(0)), NodeId(0));
    assert_eq!(
        found.to_string(),
        "6 CPUs online of 8 possible, 4 cores, 3 LLCs, 3 nodes"
    );
}

/// The line and the reason why a file is refused.
#[track_caller]
fn refuse(text: &str, nodes: u32, line: Option<usize>, words: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hidden.toml");
    fs::write(&path, text).unwrap();
    let error = File::apply(&path, &kernel(nodes)).unwrap_err();
    assert_eq!(error.line, line, "{error}");
    assert!(error.reason.contains(words), "{error}");
    let said = error.to_string();
    let at = line.map_or("hidden.toml: ".into(), |line| {
        format!("hidden.toml:{line}: ")
    });
    assert!(said.contains(&at) && !said.trim().contains('\n'), "{said}");
}

#[test]
fn mistakes_are_refused_with_line_and_reason() {
    let node = |rest: &str| format!("version = 1\n[[node]]\nid = 0\n{rest}\n");
    let llc = |cpus: &str| node(&format!("[[node.llc]]\ncpus = \"{cpus}\""));
    refuse("version = 2\n", 1, Some(1), "version 1");
    refuse(
        "version = 1\nnodes = 3\n",
        1,
        Some(2),
        "unknown field `nodes`",
    );
    refuse("version = 1\n[[node]\n", 1, Some(2), "");
    refuse(
        &llc("0-5,8"),
        1,
        Some(5),
        "there is no CPU 8: possible are 0-7",
    );
    refuse(&llc("0-4"), 1, None, "online CPUs are in no cache: 5");
    refuse(&llc("a-b"), 1, Some(5), "not a list of CPUs");
    refuse(&llc(""), 1, Some(5), "empty list");
    refuse(
        &llc("0-5"),
        2,
        Some(5),
        "on several nodes, and these CPUs are on 0-1",
    );
    refuse(&node(""), 1, Some(3), "has no [[node.llc]]");
    refuse(
        &llc("0-5").replace("id = 0", "id = 9"),
        1,
        Some(3),
        "has no CPU",
    );
    let twice = llc("0-3") + "[[node.llc]]\ncpus = \"3-5\"\n";
    refuse(&twice, 1, Some(7), "CPU 3 is in two caches");
    let again = llc("0-3") + "[[node]]\nid = 0\n[[node.llc]]\ncpus = \"4-5\"\n";
    refuse(&again, 1, Some(7), "node 0 is there twice");
    refuse(
        &node("distances = [10, 20]\n[[node.llc]]\ncpus = \"0-5\""),
        1,
        Some(4),
        "2 distances for 1 nodes",
    );
    refuse(
        &node("distances = [20]\n[[node.llc]]\ncpus = \"0-5\""),
        1,
        Some(4),
        "10 from itself",
    );
    refuse(
        &(llc("0-5") + "cores = [\"0-1\",\n\"1-2\"]\n"),
        1,
        Some(7),
        "CPU 1 is in two cores",
    );
    refuse(
        &(llc("0-5") + "cores = [\"5-6\"]\n"),
        1,
        Some(6),
        "CPU 6 is not in this cache",
    );
    let missing = File::apply(Path::new("/nonexistent/x.toml"), &kernel(1)).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nonexistent/x.toml: cannot read it: No such file")
    );
}
