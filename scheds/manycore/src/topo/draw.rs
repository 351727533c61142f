//! The machine as a picture of characters: nodes, in them caches, in them cores.

use control_plane::topology::format_list;

use super::view::{DomainView, LlcView, NodeView, View, count, memory};

/// Lines of the same width.
type Block = Vec<String>;

/// The corners and edges of a box: top left, top, top right, side, bottom left, bottom right.
type Frame = [char; 6];
const NODE: Frame = ['╔', '═', '╗', '║', '╚', '╝'];
const LLC: Frame = ['┌', '─', '┐', '│', '└', '┘'];

/// Draws it, no wider than `width` columns, if a single cache isn't.
pub(super) fn draw(view: &View, width: usize) -> String {
    let mut text = format!("{}\n\n", summary(view));
    let nodes: Vec<Block> = view
        .nodes
        .iter()
        .map(|node| draw_node(view, node, width))
        .collect();
    for line in flow(&nodes, width) {
        text += line.trim_end();
        text += "\n";
    }
    if !view.elsewhere.is_empty() {
        text += &format!(
            "possible, but not there: CPU {}\n",
            format_list(view.elsewhere.iter().copied())
        );
    }
    if view.nodes.len() > 1 {
        text += &format!("\n{}", distances(view));
    }
    if !view.sched_domains.is_empty() {
        let levels: Vec<String> = view.sched_domains.iter().map(level).collect();
        text += &format!(
            "\nthe kernel's scheduling domains: {}\n",
            levels.join(" < ")
        );
    }
    text
}

fn summary(view: &View) -> String {
    let mut parts = vec![format!(
        "{} CPUs online of {} possible",
        view.online, view.possible
    )];
    if view.present != view.possible {
        parts[0] += &format!(" ({} present)", view.present);
    }
    let threads = view.threads();
    if threads > 1 {
        parts.push(format!(
            "{} of {threads} threads",
            count(view.cores, "core")
        ));
    } else {
        parts.push(count(view.cores, "core"));
    }
    parts.push(count(view.llcs, "LLC"));
    parts.push(count(view.nodes.len(), "node"));
    if view.sockets > 0 {
        parts.push(count(view.sockets, "socket"));
    }
    parts.push(memory(view.memory_bytes));
    parts.join(", ")
}

/// What a node is headed with.
pub(super) fn title(node: &NodeView) -> String {
    let mut parts = vec![format!("node {}", node.id)];
    if !node.sockets.is_empty() {
        let sockets = format_list(node.sockets.iter().copied());
        let word = if node.sockets.len() == 1 {
            "socket"
        } else {
            "sockets"
        };
        parts.push(format!("{word} {sockets}"));
    }
    parts.push(match node.cpus() {
        0 => "no CPU online".to_string(),
        n => count(n, "CPU"),
    });
    parts.push(memory(node.memory_bytes));
    parts.join(" · ")
}

/// What else is to be said of a node.
pub(super) fn notes(node: &NodeView) -> Vec<String> {
    let mut notes = Vec::new();
    if node.attached_to != node.id {
        notes.push(format!("memory only, nearest to node {}", node.attached_to));
    }
    for (what, cpus) in [("offline", &node.offline), ("not there", &node.absent)] {
        if !cpus.is_empty() {
            notes.push(format!("{what}: CPU {}", format_list(cpus.iter().copied())));
        }
    }
    notes
}

fn draw_node(view: &View, node: &NodeView, width: usize) -> Block {
    let llcs: Vec<Block> = node.llcs.iter().map(|llc| draw_llc(view, llc)).collect();
    let mut lines = flow(&llcs, width.saturating_sub(4));
    lines.extend(notes(node));
    frame(&title(node), lines, NODE)
}

/// How many cores to put side by side.
pub(super) fn cores_per_row(llc: &LlcView) -> usize {
    match llc.cores.len() {
        0..=8 => 8,
        9..=32 => 8.max(llc.cores.len().div_ceil(4)),
        _ => 16,
    }
}

fn draw_llc(view: &View, llc: &LlcView) -> Block {
    // All CPUs as wide as the widest.
    let digits = view.cpus.last().map_or(1, |cpu| cpu.cpu.to_string().len());
    let threads = view.threads();
    let core = |cpus: &Vec<u32>| {
        let cpus: Vec<String> = cpus.iter().map(|cpu| format!("{cpu:digits$}")).collect();
        if threads > 1 {
            format!("[{}]", cpus.join(" "))
        } else {
            cpus.join(" ")
        }
    };
    let rows = llc.cores.chunks(cores_per_row(llc));
    let lines = rows
        .map(|row| row.iter().map(core).collect::<Vec<_>>().join(" "))
        .collect();
    frame(&format!("LLC {}", llc.id), lines, LLC)
}

fn frame(title: &str, lines: Vec<String>, [tl, top, tr, side, bl, br]: Frame) -> Block {
    let widest = lines.iter().map(|line| chars(line)).max().unwrap_or(0);
    let width = widest.max(chars(title));
    let mut block = vec![format!(
        "{tl} {title} {}{tr}",
        top.to_string().repeat(width - chars(title))
    )];
    for line in lines {
        let fill = " ".repeat(width - chars(&line));
        block.push(format!("{side} {line}{fill} {side}"));
    }
    block.push(format!("{bl}{}{br}", top.to_string().repeat(width + 2)));
    block
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// Puts blocks side by side, as many as fit into a row.
fn flow(blocks: &[Block], width: usize) -> Block {
    let mut lines = Vec::new();
    let mut row: Vec<&Block> = Vec::new();
    let mut used = 0;
    for block in blocks {
        let own = block.first().map_or(0, |line| chars(line));
        if !row.is_empty() && used + 1 + own > width {
            lines.extend(beside(&row));
            row.clear();
            used = 0;
        }
        used += own + usize::from(!row.is_empty());
        row.push(block);
    }
    lines.extend(beside(&row));
    lines
}

fn beside(row: &[&Block]) -> Block {
    let height = row.iter().map(|block| block.len()).max().unwrap_or(0);
    let line = |index: usize| {
        let part = |block: &&Block| match block.get(index) {
            Some(line) => line.clone(),
            None => " ".repeat(block.first().map_or(0, |line| chars(line))),
        };
        row.iter().map(part).collect::<Vec<_>>().join(" ")
    };
    (0..height).map(line).collect()
}

fn distances(view: &View) -> String {
    let ids: Vec<u32> = view.nodes.iter().map(|node| node.id).collect();
    let mut text = String::from("distance");
    for id in &ids {
        text += &format!(" {id:>4}");
    }
    text += "\n";
    for node in &view.nodes {
        text += &format!("{:>8}", node.id);
        for id in &ids {
            match node.distances.get(id) {
                Some(distance) => text += &format!(" {distance:>4}"),
                None => text += "    -",
            }
        }
        text += "\n";
    }
    text
}

fn level(level: &DomainView) -> String {
    let name = level.name.as_deref().unwrap_or("(unnamed)");
    match level.sizes {
        Some((least, most)) if least == most => format!("{name} of {most}"),
        Some((least, most)) => format!("{name} of {least} to {most}"),
        None => name.to_string(),
    }
}
