//! The tree of cgroups with their weights, from the kernel's files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A cgroup of a tree. Parents come before their children.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// The inode number of its folder, as BPF programs know it.
    pub(super) id: u64,
    /// Where its parent stands in the tree; the root is its own.
    pub(super) parent: usize,
    pub(super) weight: Option<f64>,
}

/// What the kernel takes for a cgroup with `cpu.idle`, whose `cpu.weight` reads as 0.
const IDLE: f64 = 0.3;
/// Deeper ones are left out. The kernel itself allows any depth, and nobody needs it.
const DEPTH: usize = 32;

/// Reads the tree below `root`. Cgroups that go meanwhile are left out.
pub(super) fn read(root: &Path) -> io::Result<Vec<Node>> {
    let mut nodes = vec![Node {
        id: fs::metadata(root)?.ino(),
        parent: 0,
        weight: None,
    }];
    add_children(root, 0, DEPTH, &mut nodes);
    Ok(nodes)
}

fn add_children(folder: &Path, parent: usize, depth: usize, nodes: &mut Vec<Node>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if depth == 0 || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        nodes.push(Node {
            id: entry.metadata().map_or(0, |meta| meta.ino()),
            parent,
            weight: weight_of(&path),
        });
        add_children(&path, nodes.len() - 1, depth - 1, nodes);
    }
}

/// `None` without the cpu controller.
fn weight_of(cgroup: &Path) -> Option<f64> {
    let text = fs::read_to_string(cgroup.join("cpu.weight")).ok()?;
    let weight: f64 = text.trim().parse().ok()?;
    Some(if weight > 0.0 { weight } else { IDLE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_read_with_parents_first() {
        let root = tempfile::tempdir().unwrap();
        for (path, weight) in [("a", "100\n"), ("a/b", "250\n"), ("c", ""), ("d", "0\n")] {
            let folder = root.path().join(path);
            fs::create_dir(&folder).unwrap();
            if !weight.is_empty() {
                fs::write(folder.join("cpu.weight"), weight).unwrap();
            }
        }
        let nodes = read(root.path()).unwrap();
        let ino = |path: &str| fs::metadata(root.path().join(path)).unwrap().ino();
        let find = |path: &str| {
            let at = nodes.iter().position(|node| node.id == ino(path)).unwrap();
            (nodes[nodes[at].parent].id, nodes[at].weight)
        };
        assert_eq!(nodes.len(), 5);
        assert_eq!(find("a"), (ino(""), Some(100.0)));
        assert_eq!(find("a/b"), (ino("a"), Some(250.0)));
        assert_eq!(find("c"), (ino(""), None));
        assert_eq!(find("d"), (ino(""), Some(IDLE)));
        assert!(nodes.iter().enumerate().all(|(at, node)| node.parent <= at));
    }

    #[test]
    fn no_tree_is_an_error() {
        assert!(read(Path::new("/nonexistent")).is_err());
    }
}
